"""OS2D against PyTorch, in one process, with the same weights and pictures.

    python -m benchmarks.os2d
    python -m benchmarks.os2d --scales 0.5,0.8,1.0 --classes 1,4 --json result.json
    python -m benchmarks.os2d --device cuda --height 960 --width 1280 --classes 1,4,128 \\
        --scales 0.5,0.625,0.8,1.0,1.2,1.4,1.6 --dtype bfloat16 --head-dtype float16 --rounds 15

It times features, head, the whole pyramid, suppression and a training step. "eager" runs as the publication
does (NCHW, one class after another, float64 grids, always float32); "tuned" is the same network as a PyTorch
engineer would write it today, in the dtypes asked for. PyTorch must be installed
(`pip install sm_jax[convert]`). What came out, and why: docs/performance.md.
"""

import argparse
import json
import os
import sys
from pathlib import Path

if not __package__:  # python benchmarks/os2d.py
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import measure, report
from sm_jax.errors import ConfigError, run_main

SECTIONS = ("features", "head", "pyramid", "training")


def numbers(kind):
    """A comma-separated list of `kind`, at least one, all positive."""

    def parse(text):
        values = tuple(kind(part) for part in text.split(","))
        if not all(value > 0 for value in values):
            raise argparse.ArgumentTypeError(f"{text!r}: must be positive")
        return values

    return parse


def parser() -> argparse.ArgumentParser:
    """The options."""
    result = argparse.ArgumentParser(
        prog="python -m benchmarks.os2d", description="OS2D in jax against OS2D in PyTorch."
    )
    add = result.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu", help="of both frameworks")
    add("--sections", default=",".join(SECTIONS), help=f"comma-separated, of {','.join(SECTIONS)}")
    add("--height", type=int, default=600, help="of the picture at scale 1, in pixels")
    add("--width", type=int, default=800, help="of the picture at scale 1, in pixels")
    add("--scales", type=numbers(float), default=(1.0,), help="pyramid levels, e.g. 0.5,0.8,1.0")
    add("--classes", type=numbers(int), default=(1, 4), help="for the head; pyramid: the largest")
    add("--chunk", type=int, default=0, help="classes per call of our head; 0: what the detector chooses")
    add("--depth", type=int, choices=(50, 101), default=50, help="of the ResNet")
    add("--model", choices=("v1", "v2"), default="v2", help="4 parameters; or 6, inverted")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the features")
    add(
        "--head-dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="of correlation and TransformNet; eager stays float32, as published",
    )
    add("--tf32", action="store_true", help="allow TF32 in both frameworks (GPU); otherwise full float32")
    add("--backbone", default=None, help="weights: registry name or path, '' random; default: ImageNet's")
    add("--transform", default="", help="TransformNet weights; default: random near the identity")
    add("--rounds", type=int, default=9, help="rounds of every comparison; at least 7 for figures to report")
    add("--train-images", type=int, default=1)
    add("--train-classes", type=int, default=4, help="at most the largest of --classes")
    add("--train-size", type=int, default=400, help="side of the training crops in pixels")
    add(
        "--peak",
        type=float,
        default=0.0,
        help="TFLOP/s of the GPU, or of one CPU core, in the dtype used: print the share that is reached",
    )
    add("--threads", type=int, default=0, help="of PyTorch; 0: as many as there are cores for this process")
    add("--json", metavar="FILE", help="write everything here too")
    return result


def settle(options: argparse.Namespace) -> None:
    """Both frameworks on the device and in the precision asked for; before either does any work."""
    measure.quiet_threads()
    if options.device == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    if options.device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    try:
        import torch
    except ImportError as error:
        raise ConfigError("PyTorch is not installed; pip install 'sm_jax[convert]'") from error
    jax.config.update("jax_enable_compilation_cache", False)  # compile times are measured
    jax.config.update("jax_default_matmul_precision", "default" if options.tf32 else "highest")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.tf32
    torch.backends.cudnn.benchmark = True
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(options.threads or cores)
    if options.device == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError("--device cuda: PyTorch finds no CUDA device; use --device cpu")
        if jax.default_backend() != "gpu":
            raise ConfigError("--device cuda: jax finds no GPU; install jax[cuda12], or use --device cpu")


def run(options: argparse.Namespace) -> dict:
    """Measure, print as results come, and return everything."""
    sections = options.sections.split(",")
    unknown = [name for name in sections if name not in SECTIONS]
    if unknown:
        raise ConfigError(f"--sections: {unknown[0]!r} is none of {', '.join(SECTIONS)}")
    settle(options)
    from benchmarks import subjects
    from benchmarks.sections import Run
    from sm_jax.systems.os2d.model import ModelConfig

    v2 = options.model == "v2"
    config = ModelConfig(
        depth=options.depth,
        simplified=not v2,
        inverse=v2,
        freeze_bn_transform=v2,
        dtype=options.dtype,
        head_dtype=options.head_dtype,
    )
    backbone = options.backbone
    if backbone is None:
        backbone = "resnet50-caffe-c4" if options.depth == 50 else ""
    facts = measure.environment(options.device)
    report.environment(facts, vars(options))
    peers = subjects.make(
        config,
        device=options.device,
        backbone=backbone,
        transform=options.transform,
        size=(options.height, options.width),
        classes=max(options.classes),
    )
    state = Run(options, peers)
    rows = []
    for name in sections:
        for row in getattr(state, name)():
            report.row(row, clock=state.clock)
            rows.append(row)
    report.footnotes(state.clock)
    facts["load_average_after"] = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"environment": facts, "options": vars(options), "rows": rows}


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    options = parser().parse_args(arguments)
    result = run(options)
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
