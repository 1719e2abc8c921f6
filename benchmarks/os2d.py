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
import sys
from collections.abc import Iterator
from pathlib import Path

if not __package__:  # python benchmarks/os2d.py
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.commandline import add_common, chosen, collect, finish, numbers, settle
from benchmarks.measure import Row
from sm_jax.errors import run_main

SECTIONS = ("features", "head", "pyramid", "training")


def parser() -> argparse.ArgumentParser:
    """The options."""
    result = argparse.ArgumentParser(
        prog="python -m benchmarks.os2d", description="OS2D in jax against OS2D in PyTorch."
    )
    add = result.add_argument
    add_common(add, SECTIONS)
    add("--height", type=int, default=600, help="of the picture at scale 1, in pixels")
    add("--width", type=int, default=800, help="of the picture at scale 1, in pixels")
    add("--scales", type=numbers(float), default=(1.0,), help="pyramid levels, e.g. 0.5,0.8,1.0")
    add("--classes", type=numbers(int), default=(1, 4), help="for the head; pyramid: the largest")
    add("--chunk", type=int, default=0, help="classes per call of our head; 0: what the detector chooses")
    add("--depth", type=int, choices=(50, 101), default=50, help="of the ResNet")
    add("--model", choices=("v1", "v2"), default="v2", help="4 parameters; or 6, inverted")
    add(
        "--head-dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="of correlation and TransformNet; eager stays float32, as published",
    )
    add("--backbone", default=None, help="weights: registry name or path, '' random; default: ImageNet's")
    add("--transform", default="", help="TransformNet weights; default: random near the identity")
    add("--train-images", type=int, default=1)
    add("--train-classes", type=int, default=4, help="at most the largest of --classes")
    add("--train-size", type=int, default=400, help="side of the training crops in pixels")
    add(
        "--peak",
        type=float,
        default=0.0,
        help="TFLOP/s of the GPU, or of one CPU core, in the dtype used: print the share that is reached",
    )
    return result


def run(options: argparse.Namespace) -> dict:
    """Measure, print as results come, and return everything."""
    sections = chosen(options.sections, SECTIONS)
    settle(options)
    return collect(options, _rows(options, sections))


def _rows(options: argparse.Namespace, sections: list[str]) -> Iterator[Row]:
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
    peers = subjects.make(
        config,
        device=options.device,
        backbone=backbone,
        transform=options.transform,
        size=(options.height, options.width),
        classes=max(options.classes),
    )
    state = Run(options, peers)
    for name in sections:
        yield from getattr(state, name)()


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    options = parser().parse_args(arguments)
    return finish(options, run(options))


if __name__ == "__main__":
    sys.exit(run_main(main))
