"""The single-shot semantic matcher against PyTorch, in one process, with the same weights and pictures.

    python -m benchmarks.ssm
    python -m benchmarks.ssm --sections search --requests 1,10 --fusions product_gap --json result.json
    python -m benchmarks.ssm --device cuda --dtype bfloat16 --batch 64 --train-images 32 --rounds 15

It times the features of images, the encoding of requests, the search of one image for cached requests and of
a batch for one, the post-processing, and training steps. "eager" is the network in the style of the
publication, whose head runs two 1024-wide convolutions per request; "tuned" the same with channels last,
merged convolutions and the collapsed head, as ours. PyTorch must be installed
(`pip install sm_jax[convert]`). What came out: docs/performance.md.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if not __package__:  # python benchmarks/ssm.py
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import measure
from benchmarks.commandline import add_common, chosen, collect, finish, numbers, settle
from benchmarks.measure import Row
from sm_jax.errors import ConfigError, run_main

SECTIONS = ("features", "encoding", "search", "predictor", "batched", "postprocess", "training")
OF_FUSION = ("search", "predictor", "batched")
FUSIONS = ("product_aligned", "product_gap")
PAPER = "paper: more than 30 fps with one request, GTX 1080 Ti and Core i7"


def parser() -> argparse.ArgumentParser:
    """The options."""
    result = argparse.ArgumentParser(
        prog="python -m benchmarks.ssm",
        description="The semantic matcher in jax against PyTorch.",
    )
    add = result.add_argument
    add_common(add, SECTIONS)
    add("--size", type=int, default=512, help="side of the images in pixels, a multiple of 16; requests: / 4")
    add("--batch", type=int, default=4, help="images, and requests, of a batch")
    add("--fusions", default=",".join(FUSIONS), help=f"comma-separated, of {','.join(FUSIONS)}")
    add("--requests", type=numbers(int), default=(1, 10, 100, 1000), help="cached, against one image")
    add("--kept", type=int, default=100, help="different ones; more are passes over these")
    add("--eager-requests", type=int, default=10, help="the most that eager is timed with")
    add("--train-images", type=int, default=2, help="batch of a training step")
    add("--train-size", type=int, default=256, help="side of its images")
    add("--backbone", default="googlenet-bvlc", help="weights: registry name or path, '' random")
    return result


class Run:
    """The options and the peers of one fusion; its methods yield rows for the table and the JSON."""

    def __init__(self, options: argparse.Namespace, fusion: str):
        from benchmarks import ssm_subjects as subjects

        self.options, self.subjects = options, subjects
        self.peers = subjects.make(
            side=options.size,
            images=options.batch,
            fusion=fusion,
            backbone=options.backbone,
            device=options.device,
            dtype=options.dtype,
        )
        self.facts = {"size": (options.size,) * 2}

    def time(self, what: str, compared: Any, **facts: Any) -> Row:
        """One row: times of all calls, ratios of ours to the others, images per second."""
        calls, program = compared
        options = {"rounds": self.options.rounds, "clock": measure.clock(self.options.device)}
        facts = {**self.facts, **facts, **measure.compiler_facts(program)}
        return measure.compare(what, calls, **options, **facts)

    def features(self) -> Iterator[Row]:
        """The test branch on one image and on a batch."""
        for images in (1, self.options.batch):
            compared = self.subjects.features(self.peers, images)
            agreement = self.subjects.difference(compared.calls, "feature")
            yield self.time("features", compared, images=images, agreement=agreement)

    def encoding(self) -> Iterator[Row]:
        """The request branch on one request and on a batch."""
        for count in (1, self.options.batch):
            compared = self.subjects.encode(self.peers, count)
            agreement = self.subjects.difference(compared.calls, "feature")
            facts = {"size": (self.options.size // 4,) * 2, "requests": count, "agreement": agreement}
            yield self.time("encoding of requests", compared, **facts)

    def search(self) -> Iterator[Row]:
        """One image, its features included, against cached requests."""
        for count in self.options.requests:
            kept = self.subjects.bank(self.peers, min(count, self.options.kept))
            eager = count <= self.options.eager_requests
            compared = self.subjects.search(self.peers, kept, repeats=-(-count // len(kept)), eager=eager)
            agreement = self.subjects.difference(compared.calls, "output")
            if count == 1:
                agreement["note"] = PAPER
            facts = {"requests": count, "fusion": self.peers.config.fusion, "agreement": agreement}
            yield self.time("search", compared, images=1, **facts)

    def predictor(self) -> Iterator[Row]:
        """The library's own call, without the image's features: what giving the requests as NumPy costs."""
        count = min(32, self.options.kept)
        calls = self.subjects.predictor(self.peers, self.subjects.bank(self.peers, count))
        options = {"rounds": self.options.rounds, "clock": measure.clock(self.options.device)}
        facts = {**self.facts, "requests": count, "fusion": self.peers.config.fusion}
        yield measure.compare("Predictor.search, features given", calls, **options, **facts)

    def batched(self) -> Iterator[Row]:
        """A batch of images, features included, with one cached request."""
        compared = self.subjects.batched(self.peers, self.options.batch)
        agreement = self.subjects.difference(compared.calls, "output")
        facts = {"requests": 1, "fusion": self.peers.config.fusion, "agreement": agreement}
        yield self.time("search, images in a batch", compared, images=self.options.batch, **facts)

    def postprocess(self) -> Iterator[Row]:
        """Of one request's maps, on the host."""
        from benchmarks import ssm_voting

        options = {"rounds": self.options.rounds, "clock": measure.clock("cpu")}
        for what, (calls, facts) in ssm_voting.calls(self.options.size).items():
            yield measure.compare(what, calls, **options, **facts)

    def training(self) -> Iterator[Row]:
        """A step that trains both branches and the head."""
        from benchmarks import ssm_training

        options = self.options
        calls, program, first = ssm_training.make(
            self.subjects.make(
                side=options.train_size,
                images=options.train_images,
                fusion=self.peers.config.fusion,
                backbone=options.backbone,
                device=options.device,
                dtype=options.dtype,
            )
        )
        agreement = {
            name: {"ours": first["ours"][name], "eager": first["eager"][name]} for name in first["ours"]
        }
        facts = {"size": (options.train_size,) * 2, "images": options.train_images, "agreement": agreement}
        row = self.time("training step, all", (calls, program), **facts)
        if options.device == "cpu":
            row["extra_mb"] = measure.extra_megabytes(calls)
        yield row


def run(options: argparse.Namespace) -> dict:
    """Measure, print as results come, and return everything."""
    sections = chosen(options.sections, SECTIONS)
    fusions = options.fusions.split(",")
    unknown = [name for name in fusions if name not in FUSIONS]
    if unknown:
        raise ConfigError(f"--fusions: {unknown[0]!r} is none of {', '.join(FUSIONS)}")
    for name in ("size", "train_size"):
        side = getattr(options, name)
        if side < 32 or side % 16:
            raise ConfigError(f"--{name.replace('_', '-')}: {side} must be a multiple of 16 and at least 32")
    for name in ("batch", "kept", "train_images"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')}: {getattr(options, name)} must be positive")
    odd = [count for count in options.requests if count > options.kept and count % options.kept]
    if odd:
        raise ConfigError(f"--requests: {odd[0]} is more than --kept {options.kept} and no multiple of it")
    settle(options)
    return collect(options, _rows(options, sections, fusions))


def _rows(options: argparse.Namespace, sections: list[str], fusions: list[str]) -> Iterator[Row]:
    for number, fusion in enumerate(fusions):
        state = Run(options, fusion)
        for name in sections:
            if not number or name in OF_FUSION:  # the others are the same for every fusion
                yield from getattr(state, name)()


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    options = parser().parse_args(arguments)
    return finish(options, run(options))


if __name__ == "__main__":
    sys.exit(run_main(main))
