"""`sm-jax data check PATH.json` for pictures with phrases: what they say, and what is wrong with them.

Reads everything and writes nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sm_jax import text
from sm_jax.data.check import Finding, Verdict, choose_splits, picture_findings, print_findings
from sm_jax.data.sources import phrase_json
from sm_jax.data.sources.base import usable_boxes
from sm_jax.data.sources.phrase_json import PhraseRecord
from sm_jax.data.transforms import fit

IMAGE_SIZE = (512, 512)  # of the default model's pictures
SHARES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class SplitSummary:
    """What one split holds.

    Attributes:
      phrases: of all pictures; `distinct`: different texts; `absent`: those that mean no box.
      meant: mean share of a picture's boxes that a phrase means (of phrases that mean any).
    """

    pictures: int
    boxes: int
    phrases: int
    distinct: int
    absent: int
    meant: float


@dataclass
class PhraseReport(Verdict):
    """Everything `check` found.

    Attributes:
      words: of the training phrases, sorted: the vocabulary of a model trained on them.
      longest: tokens of the longest phrase, ENC included: the least `model.text_length`.
      sizes: square roots of the areas of the training split's boxes once their pictures are fitted into
        `IMAGE_SIZE`, at the shares `SHARES`; `aspects`: their height / width. Empty without boxes.
    """

    path: str
    format: str
    splits: dict[str, SplitSummary]
    words: list[str]
    longest: int
    sizes: list[float]
    aspects: list[float]
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def run(path: str | Path, *, console: Console | None = None) -> int:
    """Checks `path`, prints the report and returns its exit code; raises DataError if it cannot be read."""
    report = check(path)
    print_report(report, console=console)
    return report.exit_code


def check(path: str | Path) -> PhraseReport:
    """Reads every entry and decodes every picture of the JSON file at `path`.

    Raises:
      DataError: not a file of this form, or nothing in it that can be used.
    """
    collection = phrase_json.read(path)
    records, notes = choose_splits(collection)
    findings = [Finding("entry", str(path), problem) for problem in collection.problems]
    findings += picture_findings(records, first_box=0)
    findings += [f for members in records.values() for record in members for f in _contradictions(record)]
    train = records.get("train", [])
    words = sorted({word for record in train for phrase in record.phrases for word in text.words(phrase)})
    findings += _unseen_words(records, set(words))
    every = [phrase for members in records.values() for record in members for phrase in record.phrases]
    longest = max(1 + len(text.words(phrase)) for phrase in every)
    if longest > text.LENGTH:
        detail = f"the longest phrase needs {longest} tokens: set model.text_length={longest}"
        findings.append(Finding("long phrase", str(path), detail, problem=False))
    if train and all(record.matches.any(axis=1).all() for record in train):
        notes = [*notes, "no training phrase has an empty list of ids: nothing teaches 'nothing here'"]
    sizes, aspects = _shapes(train)
    return PhraseReport(
        path=str(path),
        format=collection.format,
        splits={name: _summary(members) for name, members in records.items()},
        words=words,
        longest=longest,
        sizes=sizes,
        aspects=aspects,
        findings=list(dict.fromkeys(findings)),
        notes=[*collection.notes, *notes],
    )


def print_report(report: PhraseReport, *, console: Console | None = None) -> None:
    """A table of the splits, the words, the notes and the findings by kind."""
    console = console or Console()
    table = Table(title=f"{escape(report.path)}: {report.format}", title_justify="left")
    for column in ("split", "pictures", "boxes", "phrases", "distinct", "absent", "boxes meant"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for name, entry in report.splits.items():
        counts = (entry.pictures, entry.boxes, entry.phrases, entry.distinct, entry.absent)
        table.add_row(escape(name), *map(str, counts), f"{entry.meant:.0%}")
    console.print(table)
    shown = " ".join(report.words[:40]) + (" ..." if len(report.words) > 40 else "")
    count = f"{len(report.words)} word{'s' * (len(report.words) != 1)}"
    console.print(f"{count} in the training phrases: {shown}", markup=False, soft_wrap=True)
    if report.sizes:
        shares = ", ".join(f"{share:.0%}" for share in SHARES)
        sizes = ", ".join(f"{size:.0f}" for size in report.sizes)
        aspects = ", ".join(f"{aspect:.2g}" for aspect in report.aspects)
        console.print(
            f"boxes of the training split, pictures fitted into {IMAGE_SIZE[1]}x{IMAGE_SIZE[0]}: {sizes} px, "
            f"height / width {aspects} (the {shares} quantiles); model.anchor_sizes and model.anchor_aspects "
            "should cover them",
            soft_wrap=True,
        )
    for note in report.notes:
        console.print(f"note: {note}", markup=False)
    print_findings(report, console)


def _summary(records: list[PhraseRecord]) -> SplitSummary:
    shares = [row.mean() for record in records for row in record.matches if row.any()]
    phrases = [phrase for record in records for phrase in record.phrases]
    return SplitSummary(
        pictures=len(records),
        boxes=sum(len(record.boxes) for record in records),
        phrases=len(phrases),
        distinct=len(set(phrases)),
        absent=len(phrases) - len(shares),
        meant=float(np.mean(shares)) if shares else 0.0,
    )


def _shapes(records: list[PhraseRecord]) -> tuple[list[float], list[float]]:
    """Quantiles of the sizes and of height / width of the boxes, as a model sees them."""
    sides = [np.zeros((0, 2))]
    for record in records:
        if (size := record.known_size())[0]:
            boxes, usable = usable_boxes(record.boxes, size)
            sides.append((boxes[usable, 2:] - boxes[usable, :2]) * fit(size, IMAGE_SIZE)[1])
    width, height = np.concatenate(sides).T
    if not len(width):
        return [], []
    values = np.sqrt(width * height), height / width
    return tuple(np.quantile(value, SHARES).round(3).tolist() for value in values)


def _contradictions(record: PhraseRecord) -> Iterator[Finding]:
    """Phrases with the same words but other boxes."""
    seen: dict[tuple[str, ...], np.ndarray] = {}
    for phrase, row in zip(record.phrases, record.matches, strict=True):
        key = tuple(text.words(phrase))
        if not np.array_equal(seen.setdefault(key, row), row):
            yield Finding(
                "contradiction", str(record.path), f"{phrase[:60]!r} is there twice, with other ids"
            )


def _unseen_words(records: dict[str, list[PhraseRecord]], words: set[str]) -> Iterator[Finding]:
    for name, members in records.items():
        if name != "train":
            used = {word for r in members for phrase in r.phrases for word in text.words(phrase)}
            if unseen := sorted(used - words):
                shown = ", ".join(unseen[:10]) + (" ..." if len(unseen) > 10 else "")
                yield Finding("words that training never sees", name, shown, problem=False)
