"""`sm-jax data check PATH`: what a data set holds and what is wrong with it, before anything is trained.

Reads everything and writes nothing.
"""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sm_jax.data import duplicates
from sm_jax.data.sources import classes as halves
from sm_jax.data.sources import open_collection, splits
from sm_jax.data.sources.base import Collection, Record, usable_boxes
from sm_jax.errors import DataError, ImageError

SHOWN = 10  # findings of a kind and classes printed; the report holds all
STICKS_OUT = 2.0  # pixels a box may leave the picture before it is reported: rounding of annotation tools


@dataclass(frozen=True)
class Finding:
    """One thing worth saying. `problem` False: worth knowing, but nothing has to be mended."""

    kind: str
    where: str
    detail: str
    problem: bool = True


class Verdict:
    """What every report has besides its `findings`."""

    findings: list[Finding]

    @property
    def problems(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.problem]

    @property
    def exit_code(self) -> int:
        """0 if nothing has to be mended, else 1."""
        return 1 if self.problems else 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"exit_code": self.exit_code}


@dataclass
class ClassSummary:
    """Boxes of one class; sizes are square roots of areas in pixels, aspect is width / height (medians)."""

    name: str
    boxes: dict[str, int]
    difficult: int
    median_size: float
    median_aspect: float
    class_picture: str


@dataclass
class Report(Verdict):
    """Everything `check` found.

    Attributes:
      pictures, boxes: counts per split as the training would use it.
      median_size: square root of the median area of the training split's boxes in pixels, 0 without boxes.
      scale: factor that brings it to 240 pixels, 0 without boxes.
    """

    path: str
    format: str
    pictures: dict[str, int]
    boxes: dict[str, int]
    classes: list[ClassSummary]
    median_size: float
    scale: float
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def run(path: str | Path, *, console: Console | None = None) -> int:
    """Checks `path`, prints the report and returns its exit code; raises DataError if it is no data set."""
    report = check(path)
    print_report(report, console=console)
    return report.exit_code


def check(path: str | Path) -> Report:
    """Reads every annotation and decodes every picture of the data set at `path`.

    Raises:
      DataError: nothing there, no known format, or no usable annotation at all.
    """
    collection = open_collection(path)
    records, notes = choose_splits(collection)
    findings = [Finding("annotation", str(collection.root), text) for text in collection.problems]
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        given = collection.class_pictures
        for label, problem in zip(given, pool.map(_picture_problem, given.values()), strict=True):
            if problem:
                findings.append(Finding("class picture", collection.class_names[label], problem))
    findings.extend(picture_findings(records))
    classes = _classes(collection, records)
    findings.extend(_class_findings(collection, classes))
    findings.extend(_half_findings(collection))
    sizes = _sizes(records.get("train", []))
    median = float(np.median(sizes)) if len(sizes) else 0.0
    return Report(
        path=str(path),
        format=collection.format,
        pictures={split: len(members) for split, members in records.items()},
        boxes={split: sum(len(record.boxes) for record in members) for split, members in records.items()},
        classes=classes,
        median_size=median,
        scale=240.0 / median if median else 0.0,
        findings=list(dict.fromkeys(findings)),  # splits of one family share pictures
        notes=[*collection.notes, *notes],
    )


def picture_findings(records: dict[str, list[Record]], *, first_box: int = 1) -> list[Finding]:
    """Decodes every picture of the splits: damaged ones, unusable boxes, pictures in two splits; `first_box`
    is the number of a picture's first box."""
    findings = []
    unique = {record.path: record for members in records.values() for record in members}
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        looks = dict(zip(unique, pool.map(duplicates.look, unique.values()), strict=True))
    for look_path, look in looks.items():
        if look.problem:
            findings.append(Finding("picture", str(look_path), look.problem))
    for record in {id(record): record for members in records.values() for record in members}.values():
        findings.extend(_box_findings(record, first_box))
    for twin in duplicates.across(records, looks):
        findings.append(Finding(twin.kind, str(twin.path), twin.detail, twin.certain))
    return findings


def print_report(report: Report, *, console: Console | None = None) -> None:
    """The summary table, the findings by kind and the notes."""
    console = console or Console()
    table = Table(title=f"{escape(report.path)}: {report.format}", title_justify="left")
    columns = (
        "class",
        *(f"boxes {split}" for split in report.boxes),
        "difficult",
        "size px",
        "aspect",
        "picture",
    )
    for column in columns:
        table.add_column(column, justify="left" if column in ("class", "picture") else "right")
    for entry in report.classes[: 2 * SHOWN]:
        counts = [str(entry.boxes.get(split, 0)) for split in report.boxes]
        sizes = (str(entry.difficult), f"{entry.median_size:.0f}", f"{entry.median_aspect:.2f}")
        table.add_row(escape(entry.name), *counts, *sizes, entry.class_picture)
    if len(report.classes) > 2 * SHOWN:
        table.add_row(f"... and {len(report.classes) - 2 * SHOWN} more")
    table.add_section()
    table.add_row(f"{len(report.classes)} classes", *(str(count) for count in report.boxes.values()))
    table.add_row("pictures", *(str(count) for count in report.pictures.values()))
    console.print(table)
    if report.median_size:
        console.print(
            f"median object of the training split: {report.median_size:.0f} px; training works at scale "
            f"{report.scale:.3g}, which makes it 240 px"
        )
    for note in report.notes:
        console.print(f"note: {note}", markup=False)
    print_findings(report, console)


def print_findings(report: Any, console: Console) -> None:
    """The findings of any report, by kind."""
    by_kind = Counter(finding.kind for finding in report.findings)
    for kind, count in by_kind.items():
        members = [finding for finding in report.findings if finding.kind == kind]
        word = "problem" if members[0].problem else "remark"
        console.print(f"{word}: {kind} ({count})", style="bold", markup=False)
        for finding in members[:SHOWN]:
            text = finding.detail if finding.where in finding.detail else f"{finding.where}: {finding.detail}"
            console.print(f"  {text}", markup=False, soft_wrap=True)
        if count > SHOWN:
            console.print(f"  ... and {count - SHOWN} more (--json prints all)")
    total = len(report.problems)
    count = f"{total or 'no'} problem{'s' * (total != 1)}"
    console.print(f"{count} found", style="bold")


def _picture_problem(picture) -> str:
    try:
        picture.read()
    except ImageError as error:
        return str(error)
    return ""


def choose_splits(collection: Collection) -> tuple[dict[str, list[Record]], list[str]]:
    """Splits as the training uses them: "train" and "val" first, then those the data set has beside them."""
    chosen: dict[str, list[Record]] = {}
    notes: list[str] = []
    for split in ("train", "val"):
        try:
            chosen[split], said = splits.split_records(collection, split)
            notes.extend(note for note in said if note not in notes)
        except DataError as error:
            notes.append(str(error))
    used = {id(members) for members in chosen.values()}
    for name, members in collection.splits.items():
        if name and name not in chosen and id(members) not in used:
            chosen[name] = members
    return chosen, notes


def _box_findings(record: Record, first: int) -> list[Finding]:
    size = record.known_size()
    if not size[0]:
        return []  # the picture itself is reported
    boxes = record.pixel_boxes(size)
    finite = np.isfinite(boxes).all(axis=-1)
    with np.errstate(invalid="ignore"):  # inf - inf: reported as not finite
        width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    usable = usable_boxes(boxes, size)[1]
    limit = np.array([size[1], size[0]] * 2)
    leaves = finite & ((boxes < -STICKS_OUT) | (boxes > limit + STICKS_OUT)).any(axis=-1)
    kinds = {
        "box not finite": ~finite,
        "box inverted": finite & ((width < 0) | (height < 0)),
        "box empty": finite & (width >= 0) & (height >= 0) & ~usable & ((width < 1) | (height < 1)),
        "box outside": finite & (width >= 1) & (height >= 1) & ~usable,
        "box sticks out": usable & leaves,
    }
    return [
        Finding(kind, f"{record.path}", f"box {i + first} {_corners(boxes[i])} in {size[1]}x{size[0]} pixels")
        for kind, mask in kinds.items()
        for i in np.flatnonzero(mask).tolist()
    ]


def _corners(box: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:g}" for value in box.tolist()) + ")"


def _sizes(records: list[Record]) -> np.ndarray:
    sizes = [np.zeros(0)]
    for record in records:
        size = record.known_size()
        boxes, usable = usable_boxes(record.pixel_boxes(size), size)
        boxes = boxes[usable & ~record.difficult]
        sizes.append(np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])))
    return np.concatenate(sizes)


def _classes(collection: Collection, records: dict[str, list[Record]]) -> list[ClassSummary]:
    count = len(collection.class_names)
    boxes = {split: np.zeros(count, int) for split in records}
    difficult = np.zeros(count, int)
    shapes: list[list[np.ndarray]] = [[] for _ in range(count)]
    for split, members in records.items():
        for record in members:
            size = record.known_size()
            clipped, usable = usable_boxes(record.pixel_boxes(size), size)
            np.add.at(boxes[split], record.labels[usable], 1)
            np.add.at(difficult, record.labels[usable & record.difficult], 1)
            for label, box in zip(record.labels[usable].tolist(), clipped[usable], strict=True):
                shapes[label].append(box)
    training = {label for r in splits.training_records(collection) for label in r.labels.tolist()}
    result = []
    for label, name in enumerate(collection.class_names):
        corners = np.array(shapes[label]).reshape(-1, 4)
        width, height = corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1]
        source = "cropped" if label in training else "none"
        result.append(
            ClassSummary(
                name,
                {split: int(counts[label]) for split, counts in boxes.items()},
                int(difficult[label]),
                float(np.median(np.sqrt(width * height))) if len(corners) else 0.0,
                float(np.median(width / height)) if len(corners) else 0.0,
                "given" if label in collection.class_pictures else source,
            )
        )
    return result


def _half_findings(collection: Collection) -> list[Finding]:
    """What is wrong with seen.txt and unseen.txt, where there are any."""
    files = [collection.root / file for file in halves.FILES.values() if (collection.root / file).is_file()]
    found = []
    for half in halves.FILES if files else ():
        try:
            halves.class_list(collection.root, collection.class_names, half)
        except DataError as error:
            found.append(Finding("seen and unseen", str(collection.root), str(error)))
    return found


def _class_findings(collection: Collection, classes: list[ClassSummary]) -> list[Finding]:
    findings = []
    for entry in classes:
        if not sum(entry.boxes.values()):
            findings.append(
                Finding("class without boxes", entry.name, "no usable box in any split", problem=False)
            )
        elif entry.class_picture == "none":
            detail = "no class picture and no training box: it cannot be searched for"
            findings.append(Finding("class without picture", entry.name, detail))
    if not any(sum(entry.boxes.values()) for entry in classes):
        findings.append(Finding("no boxes", str(collection.root), "not a single usable box"))
    return findings
