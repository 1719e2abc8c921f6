"""SCNet and Proposal Flow: the vote, the scores of all matches, RoI pooling, and whole pairs of pictures.

    python -m benchmarks.scnet
    python -m benchmarks.scnet --sections voting,roi --proposals 1000 --json result.json
    python -m benchmarks.scnet --device cuda --dtype bfloat16 --rounds 15

The vote and the scores are held against NumPy (of `ops/matching_reference.py`, float64), RoI pooling against
the cell-by-cell form. A pair goes through the library's `Predictor` from two pictures and given proposals to
the dense flow. Weights and boxes are random, on which the times hardly depend. PyTorch takes no part. What
came out: docs/performance.md.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if not __package__:  # python benchmarks/scnet.py
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import measure
from benchmarks.commandline import add_common, chosen, collect, finish, numbers, settle
from benchmarks.measure import Row
from sm_jax.errors import ConfigError, run_main

SECTIONS = ("voting", "matching", "roi", "pair")
PAPER = "Titan X Pascal: AG+ 0.33 s a pair, all of it; LOM 3.15 s, and 0.21 s for its features"


def parser() -> argparse.ArgumentParser:
    """The options."""
    result = argparse.ArgumentParser(
        prog="python -m benchmarks.scnet",
        description="SCNet and Proposal Flow in jax: parts, whole pairs.",
    )
    add = result.add_argument
    add_common(add, SECTIONS)
    add("--proposals", type=numbers(int), default=(500, 1000), help="of either picture; scores and RoI: most")
    add("--width", type=int, default=500, help="of the pictures in pixels; their height is 3/4 of it")
    add("--frame", type=int, default=224, help="side of the network's frame, a multiple of 16")
    add("--embed", type=int, default=2048, help="channels of an embedding")
    return result


class Run:
    """The options; its methods yield rows for the table and the JSON."""

    def __init__(self, options: argparse.Namespace):
        from benchmarks import scnet_subjects as subjects

        self.options, self.subjects = options, subjects
        self.clock = measure.clock(options.device)

    def time(self, what: str, calls: dict, **facts: Any) -> Row:
        """One row: times of all calls, ratios of ours to the others."""
        return measure.compare(what, calls, rounds=self.options.rounds, clock=self.clock, **facts)

    def voting(self) -> Iterator[Row]:
        """Bins on the host; the vote alone, and with its gradient."""
        for count in self.options.proposals:
            material = self.subjects.matches(count, self.options.frame)
            facts = {"proposals": count}
            yield self.time("bins, on the host", self.subjects.bins(material), **facts)
            for what, compared in self.subjects.voting(material).items():
                yield self.time(what, compared.calls, **facts, **_facts(compared))

    def matching(self) -> Iterator[Row]:
        """Scores of all matches from similarities; the references of seconds are timed once."""
        count = max(self.options.proposals)
        material = self.subjects.matches(count, self.options.frame)
        for method in self.subjects.METHODS:
            compared, reference = self.subjects.scores(material, method)
            row = self.time(f"scores, {method}", compared.calls, proposals=count, **_facts(compared))
            row["times"]["reference"] = reference.summary()
            ours, theirs = (row["times"][name][f"{self.clock}_median_ms"] for name in row["times"])
            row["ratio"] = {"reference": ours / theirs}
            row["agreement"]["note"] = "the reference was timed once"
            yield row

    def roi(self) -> Iterator[Row]:
        """Max pooling of every box of one map, as large and deep as VGG16's."""
        options = self.options
        compared = self.subjects.roi(max(options.proposals), options.frame, options.dtype)
        yield self.time("RoI max pooling", compared.calls, proposals=len(compared.result), **_facts(compared))

    def pair(self) -> Iterator[Row]:
        """Whole pairs and their parts, proposals given."""
        options = self.options
        predictor = self.subjects.predictor(
            options.frame, options.embed, options.dtype, sorted(set(options.proposals))
        )
        for count in options.proposals:
            calls = self.subjects.pair(predictor, count, (options.width * 3 // 4, options.width))
            row = self.time("pair", calls, proposals=count, agreement={"paper": PAPER})
            if options.device == "cpu":
                wholes = {name: call for name, call in calls.items() if name.startswith("whole")}
                row["extra_mb"] = measure.extra_megabytes(wholes)
            yield row


def _facts(compared: Any) -> Row:
    return {"agreement": compared.agreement, **measure.compiler_facts(compared.program)}


def run(options: argparse.Namespace) -> dict:
    """Measure, print as results come, and return everything."""
    sections = chosen(options.sections, SECTIONS)
    if options.frame < 32 or options.frame % 16:
        raise ConfigError(f"--frame: {options.frame} must be a multiple of 16 and at least 32")
    for name, least in (("width", 32), ("embed", 1), ("rounds", 1)):
        if getattr(options, name) < least:
            raise ConfigError(f"--{name}: {getattr(options, name)} must be at least {least}")
    settle(options, peer=False)
    state = Run(options)
    return collect(options, (row for name in sections for row in getattr(state, name)()))


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    options = parser().parse_args(arguments)
    return finish(options, run(options))


if __name__ == "__main__":
    sys.exit(run_main(main))
