"""What the benchmark measures, section by section; each yields rows (dicts) for the table and the JSON."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks import flops, measure, subjects, suppression, training
from benchmarks.measure import Call, Row
from benchmarks.peers import NAMES
from benchmarks.subjects import Level, Peers


class Run:
    """The options, the peers and the levels that the sections share.

    Attributes:
      options: the parsed command line.
      clock: the clock that ratios use, "cpu" on a CPU and "wall" on a GPU.
      levels: one per scale.
    """

    def __init__(self, options: Any, peers: Peers):
        self.options, self.peers = options, peers
        self.clock = measure.clock(options.device)
        height, width = options.height, options.width
        sizes = subjects.predict.pyramid_sizes((height, width), options.scales)
        self.levels = [subjects.make_level(peers, size) for size in sizes]

    def time(self, what: str, calls: dict[str, Call], *, work: float = 0.0, **facts: Any) -> Row:
        """One row: times of all `calls`, ratios of ours to the others, shares of the peak for `work` FLOP."""
        row = measure.compare(what, calls, rounds=self.options.rounds, clock=self.clock, **facts)
        if work and self.options.peak:
            row["flop"] = work
            row["share_of_peak"] = {name: self._share(work, t) for name, t in row["times"].items()}
        return row

    def _share(self, work: float, times: dict[str, float]) -> float:
        seconds = times[f"{self.clock}_median_ms"] / 1e3
        return work / seconds / (self.options.peak * 1e12)

    def extra_memory(self, calls: dict[str, Call]) -> dict[str, float | None]:
        """Megabytes on top of what is resident, per implementation (a CPU's)."""
        return measure.extra_megabytes(calls) if self.options.device == "cpu" else {}

    # sections

    def features(self) -> Iterator[Row]:
        """Features of every level."""
        for level in self.levels:
            calls = subjects.features(self.peers, level)
            results = {name: call() for name, call in calls.items()}
            agreement = {
                name: {"feature": subjects.feature_difference(results, name)} for name in ("eager", "tuned")
            }
            yield self.time(
                "features",
                calls,
                work=flops.features(level.size, self.options.depth),
                size=level.size,
                agreement=agreement,
                compile_s=level.extract.compile_seconds,
                temp_mb=megabytes(level.extract.temp_bytes),
            )

    def head(self) -> Iterator[Row]:
        """The head on every level, for every number of classes."""
        for level in self.levels:
            for classes in self.options.classes:
                yield self._head(level, classes)

    def _head(self, level: Level, classes: int) -> Row:
        part = subjects.head(self.peers, level, classes, self.options.chunk)
        results = {name: call() for name, call in part.calls.items()}
        agreement = {}
        for name in ("eager", "tuned"):
            score, box = subjects.head_difference(results, name)
            agreement[name] = {"score": score, "box_px": box}
        del results
        temp = part.programs[0].temp_bytes
        return self.time(
            "head",
            part.calls,
            work=flops.head(level.locations, classes, 4 if self.peers.config.simplified else 6),
            size=level.size,
            locations=level.locations,
            classes=classes,
            chunk=part.chunk,
            agreement=agreement,
            compile_s=sum(program.compile_seconds for program in part.programs),
            temp_per_cell=None if temp is None else temp / (part.chunk * level.locations),
            extra_mb=self.extra_memory(part.calls),
        )

    def pyramid(self) -> Iterator[Row]:
        """All levels with the largest number of classes: features, head, and both."""
        classes, names = max(self.options.classes), list(NAMES)
        heads = [subjects.head(self.peers, level, classes, self.options.chunk) for level in self.levels]
        all_heads = [part.calls for part in heads]
        all_features = [subjects.features(self.peers, level) for level in self.levels]
        locations = sum(level.locations for level in self.levels)
        parameters = 4 if self.peers.config.simplified else 6
        work = (
            sum(flops.features(level.size, self.options.depth) for level in self.levels),
            flops.head(locations, classes, parameters),
        )
        facts = {"levels": len(self.levels), "locations": locations, "classes": classes}
        for what, parts, flop in (
            ("pyramid features", all_features, work[0]),
            ("pyramid head", all_heads, work[1]),
            ("pyramid, both", [*all_features, *all_heads], sum(work)),
        ):
            yield self.time(what, subjects.together(parts, names), work=flop, **facts)
        yield self._suppression([part.calls["ours"]() for part in heads])

    def _suppression(self, outputs: list[Any]) -> Row:
        boxes, scores = suppression.candidates(self.peers, self.levels, outputs)
        calls, program = suppression.calls(self.peers, boxes, scores)
        agreement = suppression.agree({name: call() for name, call in calls.items()})
        return self.time(
            "suppression of one class",
            calls,
            candidates=len(scores),
            agreement=agreement,
            compile_s=program.compile_seconds,
        )

    def _head_gradient(self, images: int, classes: int, side: int) -> Row:
        calls, program = training.head_gradient(self.peers, images=images, classes=classes, side=side)
        ours, theirs = calls["ours"](), calls["eager"]()
        slopes = [float(np.abs(np.asarray(grad)).max()) for grad in ours[1][1:]]
        eager_slopes = [float(grad.abs().max()) for grad in theirs[1][:2]]
        agreement = {"value": {"ours": float(ours[0]), "eager": float(theirs[0])}}
        for name, a, b in zip(("features", "templates"), slopes, eager_slopes, strict=True):
            agreement[f"largest gradient, {name}"] = {"ours": a, "eager": b}
        del ours, theirs
        pairs = images * classes * subjects.model.resnet.feature_size(side) ** 2
        return self.time(
            "head, value and gradient",
            calls,
            size=(side, side),
            images=images,
            classes=classes,
            agreement=agreement,
            compile_s=program.compile_seconds,
            temp_per_cell=None if program.temp_bytes is None else program.temp_bytes / pairs,
            extra_mb=self.extra_memory(calls),
        )

    def training(self) -> Iterator[Row]:
        """The head's gradient, and one training step."""
        options = self.options
        images, classes, side = options.train_images, options.train_classes, options.train_size
        yield self._head_gradient(images, classes, side)
        step = training.make(self.peers, images=images, classes=classes, side=side)
        pairs = step.cells[0] * step.cells[1] * step.cells[2] * step.cells[3]
        agreement = {
            name: {"ours": step.first["ours"][name], "eager": step.first["eager"][name]}
            for name in step.first["ours"]
        }
        temp = step.program.temp_bytes
        yield self.time(
            "training step",
            step.calls,
            size=(side, side),
            images=images,
            classes=classes,
            agreement=agreement,
            compile_s=step.program.compile_seconds,
            temp_mb=megabytes(temp),
            temp_per_cell=None if temp is None else temp / pairs,
            extra_mb=self.extra_memory(step.calls),
        )


def megabytes(count: int | None) -> float | None:
    """Bytes to megabytes."""
    return None if count is None else count / 1e6
