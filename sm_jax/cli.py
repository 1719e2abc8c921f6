"""The command `sm-jax`: detect | data check, preview | weights ..."""

import argparse
import sys
from collections.abc import Sequence

import sm_jax
from sm_jax.errors import run_main

EXIT_CODES = """\
exit codes: 0 all well; 1 done, but some picture could not be read (named on stderr), or a check found
problems; 2 nothing done (one line on stderr says why)."""

DETECT_OPTIONS = {
    "--image": {"nargs": "+", "required": True, "metavar": "PATH", "help": "pictures to search, or folders"},
    "--query": {
        "nargs": "+",
        "required": True,
        "metavar": "PATH",
        "help": "pictures of one thing each, or folders of them",
    },
    "--label": {
        "nargs": "+",
        "metavar": "NAME",
        "help": "a name for each query, or one for all (default: file names); queries of one name compete",
    },
    "--out": {"metavar": "DIR", "help": "write each image with its detections, and detections.json"},
    "--json": {
        "action": "store_true",
        "help": "print one JSON document on stdout; all else goes to stderr",
    },
    "--scales": {
        "nargs": "+",
        "type": float,
        "metavar": "X",
        "help": "search the image at these sizes, 1 = as it is; an object is found where it is about 240 "
        "pixels large (default: objects from a tenth of the image, or a quarter of the query if that is "
        "larger, up to twice the query or the whole image)",
    },
    "--rotations": {"action": "store_true", "help": "also search the queries turned by 90, 180, 270 degrees"},
    "--mirrored": {"action": "store_true", "help": "also search their mirror images"},
    "--threshold": {"type": float, "metavar": "S", "help": "only scores above it (default: 0.55)"},
    "--max": {
        "type": int,
        "default": 100,
        "metavar": "N",
        "help": "at most so many per name and image (default: 100)",
    },
    "--iou": {
        "type": float,
        "default": 0.3,
        "metavar": "R",
        "help": "of two detections of one name that overlap more, the better one stays (default: 0.3)",
    },
    "--across-labels": {
        "action": "store_true",
        "help": "different names compete too: at most one detection for each object",
    },
    "--weights": {
        "default": "resnet50-caffe-c4",
        "metavar": "W",
        "help": "name (sm-jax weights list), file, or folder of a training run (default: the packaged "
        "ImageNet features, whose templates are not deformed)",
    },
    "--transform": {
        "default": "",
        "metavar": "FILE",
        "help": "weights of the transformation network from another file",
    },
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: this process's); returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments = parser(whole=argv[:1] == ["weights"]).parse_args(argv)
    return run_main(lambda: arguments.run(arguments))


def parser(*, whole: bool = True) -> argparse.ArgumentParser:
    """The parser; `whole=False` only names the commands whose options take long to import."""
    top = argparse.ArgumentParser(
        prog="sm-jax",
        description="Semantic matching: show it one example, it finds it everywhere.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"sm-jax {sm_jax.__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_detect(commands)
    _add_data(commands)
    if whole:
        from sm_jax.weights import cli as weights

        weights.add_parser(commands)
    else:
        commands.add_parser("weights", help="list, inspect, convert and check pretrained weights")
    return top


def _add_detect(commands) -> None:
    command = commands.add_parser(
        "detect",
        help="find the objects of some pictures in other pictures",
        description="Find what the query pictures show in the images.",
        epilog="example: sm-jax detect --image shelf.jpg --query product.jpg --out found\n\n" + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, options in DETECT_OPTIONS.items():
        command.add_argument(name, **options)
    command.set_defaults(run=_detect)


def _detect(arguments) -> int:
    from sm_jax import platform

    platform.setup()
    from sm_jax import detect_command  # after the platform is settled

    return detect_command.run(arguments)


def _add_data(commands) -> None:
    command = commands.add_parser("data", help="look at a data set before training on it")
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)
    action = actions.add_parser(
        "check", help="format, counts, sizes, and everything that is wrong; writes nothing"
    )
    action.add_argument("path", help="COCO JSON, Pascal VOC folder, OS2D CSV, or a folder per class")
    action.add_argument("--json", action="store_true", help="print the report as one JSON document")
    action.set_defaults(run=_data_check)
    action = actions.add_parser(
        "preview", help="a picture of the first scenes, with boxes and class pictures"
    )
    action.add_argument("out", help="the picture to write (.png or .jpg)")
    action.add_argument(
        "--data", default="shelves", metavar="PATH", help="a data set (default: generated shelves)"
    )
    action.add_argument("--split", default="train", help="default: train")
    action.add_argument("-n", type=int, default=6, help="number of scenes (default: 6)")
    action.set_defaults(run=_data_preview)


def _data_check(arguments) -> int:
    import json

    from sm_jax.data import check

    if not arguments.json:
        return check.run(arguments.path)
    report = check.check(arguments.path)
    print(json.dumps(report.to_dict(), indent=2))
    return report.exit_code


def _data_preview(arguments) -> int:
    from pathlib import Path

    from sm_jax.data import open_source
    from sm_jax.data.sources.files import outside
    from sm_jax.data.synthetic import ShelvesSource, preview
    from sm_jax.errors import ConfigError

    out = Path(arguments.out)
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ConfigError(f"{out}: the picture must be a .png or a .jpg")
    if arguments.data == "shelves":
        source = ShelvesSource(arguments.split)
    else:
        source = open_source(arguments.data, split=arguments.split)
        outside(out, arguments.data)
    if not out.parent.is_dir():
        raise ConfigError(f"{out}: there is no folder {out.parent}")
    print(preview(source, out, n=arguments.n))
    return 0


if __name__ == "__main__":
    sys.exit(main())
