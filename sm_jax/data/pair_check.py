"""`sm-jax data check PATH` for pairs with key-points: what they hold, and what is wrong with them.

Reads everything and writes nothing.
"""

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sm_jax.data import images
from sm_jax.data.check import Finding, Verdict, print_findings
from sm_jax.data.sources import pair_files, pf_pascal, pf_willow
from sm_jax.data.sources.pair_records import KeypointPair, PairList, check_overlap
from sm_jax.errors import DataError, ImageError
from sm_jax.ops import tps


@dataclass(frozen=True)
class SplitSummary:
    """What one split holds.

    Attributes:
      pairs: all; `trainable`: those with a spline through their key-points (regions may drop more).
      pictures: different ones.
      keypoints: visible in both pictures of a pair, mean over the pairs.
      classes: number of pairs of each.
    """

    pairs: int
    trainable: int
    pictures: int
    keypoints: float
    classes: dict[str, int]


@dataclass
class PairReport(Verdict):
    """Everything `check` found."""

    path: str
    format: str
    splits: dict[str, SplitSummary]
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def recognised(path: str | Path) -> bool:
    """Whether `path` holds key-point pairs: a CSV or JSON, or the folder of PF-PASCAL or PF-WILLOW."""
    path = Path(path).expanduser()
    return pair_files.recognised(path) or pf_pascal.recognised(path) or pf_willow.recognised(path)


def run(path: str | Path, *, console: Console | None = None) -> int:
    """Checks `path`, prints the report and returns its exit code; raises DataError if it cannot be read."""
    report = check(path)
    print_report(report, console=console)
    return report.exit_code


def check(path: str | Path) -> PairReport:
    """Reads every pair and decodes every picture.

    Raises:
      DataError: not of these forms, nothing in it that can be used, or a fault of published data.
    """
    path = Path(path).expanduser()
    if path.is_file():
        pairs, problems = pair_files.scan(path)
    else:
        pairs, problems = (pf_pascal if pf_pascal.recognised(path) else pf_willow).read(path), []
    findings = [Finding("entry", str(path), problem) for problem in problems]
    splits: dict[str, list[KeypointPair]] = {}
    for pair in pairs:
        splits.setdefault(pair.split, []).append(pair)
    sizes = _sizes(pairs)
    findings += [
        Finding("picture", str(picture), size) for picture, size in sizes.items() if isinstance(size, str)
    ]
    findings += _outside(pairs, sizes)
    for pair in pairs:
        if problem := _no_spline(pair):
            findings.append(Finding("pair without regions", _name(pair), problem, problem=False))
    for name in splits if "train" in splits else ():
        for line in check_overlap(splits["train"], splits[name], force=True) if name != "train" else ():
            findings.append(Finding(f"in train and in {name}", str(path), line))
    return PairReport(
        path=str(path),
        format=f"key-point pairs ({pairs.kind})",
        splits={name: _summary(members) for name, members in splits.items()},
        findings=list(dict.fromkeys(findings)),
        notes=[*pairs.notes, *_missing_splits(pairs)],
    )


def print_report(report: PairReport, *, console: Console | None = None) -> None:
    """A table of classes and splits, the notes and the findings by kind."""
    console = console or Console()
    table = Table(title=f"{escape(report.path)}: {report.format}", title_justify="left")
    table.add_column("class")
    for name in report.splits:
        table.add_column(f"pairs {escape(name)}", justify="right")
    splits = report.splits.values()
    for name in dict.fromkeys(name for entry in splits for name in entry.classes):
        table.add_row(escape(name) or "(none)", *(str(entry.classes.get(name, 0)) for entry in splits))
    table.add_section()
    table.add_row("pairs", *(str(entry.pairs) for entry in splits))
    table.add_row("to train on", *(str(entry.trainable) for entry in splits))
    table.add_row("pictures", *(str(entry.pictures) for entry in splits))
    table.add_row("key-points of a pair", *(f"{entry.keypoints:.1f}" for entry in splits))
    console.print(table)
    for note in report.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    print_findings(report, console)


def _summary(pairs: list[KeypointPair]) -> SplitSummary:
    return SplitSummary(
        pairs=len(pairs),
        trainable=sum(not _no_spline(pair) for pair in pairs),
        pictures=len({end for pair in pairs for end in (pair.source, pair.target)}),
        keypoints=float(np.mean([pair.visible.sum() for pair in pairs])),
        classes=dict(Counter(pair.class_name for pair in pairs)),
    )


def _sizes(pairs: PairList) -> dict[Path, tuple[int, int] | str]:
    """(height, width) of every picture, or what is wrong with it."""

    def look(path: Path) -> tuple[int, int] | str:
        try:
            return images.read_image(path, orient=False).shape[:2]
        except ImageError as error:
            return str(error)

    paths = list(dict.fromkeys(end for pair in pairs for end in (pair.source, pair.target)))
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        return dict(zip(paths, pool.map(look, paths), strict=True))


def _outside(pairs: PairList, sizes: dict[Path, tuple[int, int] | str]) -> Iterator[Finding]:
    """Points of published data outside their pictures (an own file's are refused with their entry)."""
    for pair in pairs:
        for path, xy in ((pair.source, pair.keypoints_source), (pair.target, pair.keypoints_target)):
            if isinstance(size := sizes[path], str):
                continue
            for row in np.flatnonzero(pair_files.outside(xy, size)):
                detail = f"key-point {row} ({xy[row, 0]:g}, {xy[row, 1]:g}) in {size[1]}x{size[0]} pixels"
                yield Finding("key-point outside", str(path), detail, problem=False)


def _no_spline(pair: KeypointPair) -> str:
    """Why the pair says nothing about regions, so that it is not trained on; "" if it does."""
    try:
        tps.fit(pair.keypoints_source, pair.keypoints_target)
    except DataError as error:
        return str(error)
    return ""


def _missing_splits(pairs: PairList) -> Iterator[str]:
    for name, means in (("train", "nothing is trained on"), ("val", "training keeps its last epoch")):
        try:
            pairs.split(name)
        except DataError as error:
            yield f"{means}: {error}"


def _name(pair: KeypointPair) -> str:
    return f"{pair.source.name} -> {pair.target.name} ({pair.class_name})"
