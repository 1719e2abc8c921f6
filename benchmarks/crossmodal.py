"""The cross-modal detector against PyTorch, in one process, with the same weights, scenes and phrases.

    python -m benchmarks.crossmodal
    python -m benchmarks.crossmodal --sections training --widths 96 --json result.json
    python -m benchmarks.crossmodal --device cuda --dtype bfloat16 --batch 32 --train-images 32 \\
        --stored-images 256 --rounds 15

It times the backbone, pictures with one phrase, phrases against kept proposals, and training steps: of the
whole model, and of its last four units and heads on stored features. "eager" is the network as PyTorch
modules; "tuned" the same with channels last and, in inference, folded norms. PyTorch must be installed
(`pip install sm_jax[convert]`). What came out: docs/performance.md.
"""

import argparse
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if not __package__:  # python benchmarks/crossmodal.py
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import measure
from benchmarks.commandline import add_common, chosen, collect, finish, numbers, settle
from benchmarks.measure import Row
from sm_jax.errors import ConfigError, run_main

SECTIONS = ("features", "inference", "phrases", "training")
CHUNKS = {"cpu": 4, "cuda": 32}


def parser() -> argparse.ArgumentParser:
    """The options."""
    result = argparse.ArgumentParser(
        prog="python -m benchmarks.crossmodal",
        description="The cross-modal detector in jax against the same in PyTorch.",
    )
    add = result.add_argument
    add_common(add, SECTIONS)
    add("--size", type=int, default=512, help="side of the scenes in pixels, a multiple of 32, at least 192")
    add("--widths", type=numbers(int), default=(256, 96), help="of the RPN and the proposal encoder")
    add("--phrases", type=numbers(int), default=(1, 10, 100), help="against kept proposals of one scene")
    add("--batch", type=int, default=0, help="scenes of a batch in inference; 0: as the detector chooses")
    add("--candidates", type=int, default=32, help="confident anchors of a scene, before suppression")
    add("--train-images", type=int, default=8, help="batch of a step that trains everything")
    add("--stored-images", type=int, default=32, help="batch of a step on stored features")
    add("--backbone", default="mobilenetv2-tv", help="weights: registry name or path, '' random")
    return result


class Run:
    """The options and the peers of one width; its methods yield rows for the table and the JSON.

    Attributes:
      clock: the clock that ratios use, "cpu" on a CPU and "wall" on a GPU.
    """

    def __init__(self, options: argparse.Namespace, width: int):
        from benchmarks import crossmodal_subjects as subjects

        self.options, self.subjects = options, subjects
        self.clock = measure.clock(options.device)
        self.batch = options.batch or CHUNKS[options.device]
        self.facts = {"size": (options.size,) * 2, "width": width}
        self.detection = functools.cache(lambda images: subjects.detect(self.peers, images))
        self.peers = subjects.make(
            width=width,
            side=options.size,
            images=self.batch,
            phrases=max(options.phrases),
            candidates=options.candidates,
            backbone=options.backbone,
            device=options.device,
            dtype=options.dtype,
        )

    def time(self, what: str, calls: dict, program: measure.Program, *, images: int, **facts: Any) -> Row:
        """One row: times of all `calls`, ratios of ours to the others, images per second."""
        options = {"rounds": self.options.rounds, "clock": self.clock}
        facts = {**self.facts, "images": images, **facts, **measure.compiler_facts(program)}
        return measure.compare(what, calls, **options, **facts)

    def features(self) -> Iterator[Row]:
        """The backbone on one scene and on a batch."""
        import numpy as np

        for images in (1, self.batch):
            calls, program = self.subjects.features(self.peers, images)
            ours = np.moveaxis(np.asarray(calls["ours"](), np.float32), -1, 1)
            agreement = {}
            for name in ("eager", "tuned"):
                other = calls[name]().float().cpu().numpy()
                agreement[name] = {"feature": float(np.abs(ours - other).max() / np.abs(other).max())}
            yield self.time("features", calls, program, images=images, agreement=agreement)

    def inference(self) -> Iterator[Row]:
        """Proposals and one phrase: one scene, and a batch."""
        for images in (1, self.batch):
            calls, program = self.detection(images)
            agreement = self.subjects.detection_difference(calls["ours"](), calls["eager"]())
            yield self.time(
                "proposals and 1 phrase", calls, program, images=images, phrases=1, agreement=agreement
            )

    def phrases(self) -> Iterator[Row]:
        """Phrases against the kept proposals of one scene."""
        import numpy as np

        found = self.detection(1).calls["ours"]()
        for count in self.options.phrases:
            calls, program = self.subjects.phrases(self.peers, found["embeddings"], found["valid"], count)
            ours = np.asarray(calls["ours"]())[0, :count, np.asarray(found["valid"])[0]].T
            difference = np.abs(ours - calls["eager"]().float().cpu().numpy()).max(initial=0)
            yield self.time(
                "phrases, kept proposals",
                calls,
                program,
                images=1,
                phrases=count,
                agreement={"eager": {"align": float(difference)}},
            )

    def training(self) -> Iterator[Row]:
        """A step of the whole model, and one of the last four units and the heads on stored features."""
        options = self.options
        for what, trainable, images in (
            ("training step, all", "all", options.train_images),
            ("training step, last4 on stored features", "last4", options.stored_images),
        ):
            calls, program, first = self.subjects.training(self.peers, images=images, trainable=trainable)
            agreement = {
                name: {"ours": first["ours"][name], "eager": first["eager"][name]} for name in first["ours"]
            }
            row = self.time(what, calls, program, images=images, agreement=agreement)
            if options.device == "cpu":
                row["extra_mb"] = measure.extra_megabytes(calls)
            yield row


def run(options: argparse.Namespace) -> dict:
    """Measure, print as results come, and return everything."""
    sections = chosen(options.sections, SECTIONS)
    if options.size % 32 or options.size < 192:
        raise ConfigError(f"--size: {options.size} must be a multiple of 32 and at least 192")
    settle(options)
    return collect(options, _rows(options, sections))


def _rows(options: argparse.Namespace, sections: list[str]) -> Iterator[Row]:
    for number, width in enumerate(options.widths):
        state = Run(options, width)
        for name in sections:
            if not number or name not in ("features", "phrases"):  # those are the same at every width
                yield from getattr(state, name)()


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    options = parser().parse_args(arguments)
    return finish(options, run(options))


if __name__ == "__main__":
    sys.exit(run_main(main))
