"""`sm-jax weights list | show | convert | export | verify`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sm_jax.errors import WeightsError
from sm_jax.weights import checkpoints, export, formats, registry
from sm_jax.weights.io import DTYPES, read_tensors, sha256


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Add the command `weights`; each of its actions sets `run`, a function `args -> exit code`."""
    parser = subparsers.add_parser("weights", help="list, inspect, convert and check pretrained weights")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    action = actions.add_parser("list", help="the weights known by name, and where each one is")
    action.set_defaults(run=run_list)

    action = actions.add_parser("show", help="metadata, card and tensors of one file")
    action.add_argument("name", help="a name from the list, or the path of a .safetensors file")
    action.add_argument("--tensors", action="store_true", help="list every tensor")
    action.set_defaults(run=run_show)

    action = actions.add_parser("convert", help="a published checkpoint into a .safetensors file of ours")
    action.add_argument("input", help=".pth, .pt, .npz or .safetensors file (a .pth needs torch)")
    action.add_argument("output", help="the .safetensors file to write")
    action.add_argument("--format", default="auto", choices=("auto", *formats.CONVERTERS))
    action.add_argument("--dtype", default="f32", choices=tuple(DTYPES), help="of the convolution kernels")
    action.add_argument(
        "--pixel-std",
        nargs=3,
        type=float,
        metavar=("R", "G", "B"),
        help="INPUT.PIXEL_STD of a maskrcnn-benchmark model (1 1 1)",
    )
    action.add_argument(
        "--rgb255", action="store_true", help="a maskrcnn-benchmark model with INPUT.TO_BGR255 off"
    )
    action.add_argument("--force", action="store_true", help="replace an existing output file")
    action.set_defaults(run=run_convert)

    action = actions.add_parser(
        "export", help="the model of a training run as one .safetensors file with its config"
    )
    action.add_argument("workdir", help="the folder of the run")
    action.add_argument("--out", required=True, metavar="FILE", help="the .safetensors file to write")
    action.add_argument("--step", default="", help="a step, best or last (default: best if evaluated so)")
    action.add_argument("--dtype", default="f16", choices=tuple(DTYPES), help="of kernels and tables")
    action.add_argument("--force", action="store_true", help="replace an existing file")
    action.set_defaults(run=run_export)

    action = actions.add_parser("verify", help="check hash, structure and finiteness")
    action.add_argument("names", nargs="*", help="names or paths; without any, all that are on this machine")
    action.set_defaults(run=run_verify)
    return parser


def _console():
    import sys

    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 200, highlight=False)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    _console().print(table)


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"


def _place(weights: registry.Weights) -> tuple[str, str]:
    path = registry.find_local(weights)
    if path is None and weights.by_hand:
        return f"not here: wants {weights.by_hand}", ""
    if path is None:
        return "not here: downloaded from the Hugging Face hub when asked for", ""
    where = "comes with sm_jax" if path.parent == registry.PACKAGED else str(path)
    return where, _megabytes(path)


def run_list(args: argparse.Namespace) -> int:
    """Print every registered name, what it is, its licence and source, and where its file is."""
    rows = []
    for weights in registry.REGISTRY.values():
        place, size = _place(weights)
        rows.append((weights.name, weights.architecture, weights.licence, weights.source, place, size))
    _table("Weights", ("name", "architecture", "licence", "source", "where", "size"), rows)
    known = {name for weights in registry.REGISTRY.values() for name in weights.files}
    others = [
        (path.name, str(folder), _megabytes(path))
        for folder in registry.folders()
        for path in sorted(folder.glob("*.safetensors"))
        if path.name not in known
    ]
    if others:
        _table(f"Other files in {registry.VARIABLE}", ("file", "folder", "size"), others)
    return 0


def run_show(args: argparse.Namespace) -> int:
    """Print where a file comes from, its metadata, what it is, its tensors and its card."""
    if not args.name:
        raise WeightsError("give a name (see 'sm-jax weights list') or the path of a file")
    path = registry.resolve(args.name)
    if path.suffix != ".safetensors":
        raise WeightsError(f"{path}: not a .safetensors file; convert it first with 'sm-jax weights convert'")
    tensors, metadata = read_tensors(path)
    console = _console()

    def line(key: str, value: str) -> None:
        console.print(f"{key:12s} {value}", markup=False, soft_wrap=True)

    line("file", f"{path} ({_megabytes(path)})")
    line("sha256", sha256(path))
    if weights := registry.REGISTRY.get(args.name):
        for key in ("architecture", "licence", "source", "input", "note"):
            line(key, getattr(weights, key))
    for key, value in sorted(metadata.items()):
        line(f"[{key}]", value)
    try:
        if what := export.verify(path):
            line("fits", what)
        else:
            converted = formats.convert(tensors, where=str(path))
            line("fits", f"{converted.architecture}, in {converted.format} names")
            line("ignored", str(len(converted.ignored)))
    except WeightsError as error:
        line("fits", f"no network of sm_jax: {str(error).splitlines()[0]}")
    elements = sum(array.size for array in tensors.values())
    line("tensors", f"{len(tensors)}, {elements:,} numbers")
    if args.tensors:
        rows = [(name, str(tuple(array.shape))) for name, array in sorted(tensors.items())]
        _table("Tensors", ("name", "shape"), rows)
    if text := registry.card(path):
        console.print(f"\n{text}", markup=False, soft_wrap=True)
    return 0


def run_convert(args: argparse.Namespace) -> int:
    """Convert a published file; prints what it was and which of its tensors were not used."""
    if Path(args.output).exists() and not args.force:
        raise WeightsError(f"{args.output}: exists; give another name, or --force to replace it")
    options = {"pixel_std": tuple(args.pixel_std)} if args.pixel_std else {}
    options |= {"to_bgr255": False} if args.rgb255 else {}
    converted = checkpoints.convert_file(
        args.input, args.output, format=args.format, dtype=args.dtype, **options
    )
    count = sum(np.size(array) for array in converted.tensors.values())
    print(f"{args.input}: {converted.architecture}, in {converted.format} names")
    if converted.ignored:
        some = ", ".join(converted.ignored[:4]) + (", ..." if len(converted.ignored) > 4 else "")
        print(f"not used: {len(converted.ignored)} tensors ({some})")
    size = _megabytes(Path(args.output))
    print(f"wrote {args.output}: {len(converted.tensors)} tensors, {count:,} numbers, {size}")
    return 0


def run_export(args: argparse.Namespace) -> int:
    """Write the model of a run with its config; prints the step, its results and how to use the file."""
    if Path(args.out).exists() and not args.force:
        raise WeightsError(f"{args.out}: exists; give another name, or --force to replace it")
    step = int(args.step) if args.step.isdigit() else args.step or None
    done = export.export(args.workdir, args.out, step=step, dtype=args.dtype)
    print(f"{args.workdir}: step {done.step}")
    for name, value in done.metrics.items():
        print(f"  {name} {value:.4f}")
    print(f"wrote {args.out}: {done.tensors} tensors, {done.numbers:,} numbers, {_megabytes(done.path)}")
    return 0


def _verify(name: str) -> tuple[str, str, str, str]:
    weights = registry.REGISTRY.get(name)
    path = registry.resolve(name)
    what = export.verify(path)
    if what is None:
        converted, _ = checkpoints.read(path)
        what = f"{converted.architecture}, {len(converted.tensors)} tensors"
    known = "as registered" if weights and weights.sha256 else "no hash on record"
    return name, "ok", f"{sha256(path)[:16]}... ({known})", what


def run_verify(args: argparse.Namespace) -> int:
    """Check each file's hash, names, shapes and values; exit code 1 when one of several fails."""
    names = args.names
    if not names:
        names = [name for name, weights in registry.REGISTRY.items() if registry.find_local(weights)]
    rows, failed = [], 0
    for name in names:
        try:
            rows.append(_verify(name))
        except WeightsError as error:
            if len(names) == 1:
                raise
            failed += 1
            rows.append((name, "FAILED", "", str(error)))
    _table("Verified", ("name", "result", "sha256", "what"), rows)
    return 1 if failed else 0
