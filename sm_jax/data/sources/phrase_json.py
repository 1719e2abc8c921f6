"""A person's own pictures with phrases: one JSON file; see `docs/own-data.md`.

    {"images": [{"image": "1.jpg", "boxes": [[x1, y1, x2, y2], ...],
                 "phrases": [{"text": "the ripe apples", "ids": [0, 2]}, ...]}, ...]}

`ids` count the boxes of the picture from 0; an empty list says that the picture shows nothing of the kind.
Boxes are xyxy pixels. Optional per picture: `names`, one text per box, and `split`.
"""

import functools
import hashlib
import logging
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from sm_jax import text
from sm_jax.data import images
from sm_jax.data.phrases import ABSENT, STANDARD
from sm_jax.data.sources import splits
from sm_jax.data.sources.base import MAX_PROBLEM_SHARE, Collection, Record, read_annotated, usable_boxes
from sm_jax.data.sources.files import PictureIndex, read_json
from sm_jax.errors import ConfigError, DataError, ImageError

_HELP = 'expected {"images": [{"image": ..., "boxes": [...], "phrases": [{"text": ..., "ids": [...]}]}]}'
MAX_WORDS = 128  # of a phrase; the longest one sets the length of every row of words
_log = logging.getLogger("sm_jax.data")


@dataclass(frozen=True)
class PhraseRecord(Record):
    """One picture with phrases: `phrases` p texts, `matches` bool (p, n), `names` n texts."""

    phrases: tuple[str, ...] = ()
    matches: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), bool))
    names: tuple[str, ...] = ()


def recognised(path: str | Path) -> bool:
    """Whether the file at `path` looks like pictures with phrases rather than another annotation format."""
    path = Path(path).expanduser()
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    document = read_json(path)
    entries = document.get("images") if isinstance(document, dict) else document
    if not isinstance(entries, list) or (isinstance(document, dict) and "annotations" in document):
        return False
    return any(isinstance(entry, dict) and ("phrases" in entry or "image" in entry) for entry in entries)


def read(path: str | Path) -> Collection:
    """What the file says: records of pictures that can be used, and a line for everything that cannot.

    A phrase without text, of more than `MAX_WORDS` words or with wrong ids is left out, and so is one that
    means an unusable box, also one outside its picture (for that the header of every picture is read, once
    per process unless the file changes); a picture without phrases is left out as well.

    Raises:
      DataError: no such file, not JSON, another form, or nothing in it that can be used.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"{path}: {'not a file' if path.exists() else 'no such file'}; {_HELP}")
    document = read_json(path)
    if isinstance(document, dict) and "annotations" in document:
        raise DataError(f"{path}: a COCO file has no phrases; {_HELP}")
    entries = document.get("images") if isinstance(document, dict) else document
    if not isinstance(entries, list):
        raise DataError(f"{path}: the list 'images' is missing; {_HELP}")
    root = path.parent.resolve()
    pictures = PictureIndex([root, root / "images"])
    problems: list[str] = []
    divided: dict[str, list[Record]] = {}
    bare = 0
    for number, entry in enumerate(entries):
        split, record = _record(f"{path}: images[{number}]", entry, pictures, problems)
        if record is not None and record.phrases:
            divided.setdefault(split, []).append(record)
        elif record is not None:
            bare += 1
    if not divided:
        first = f"; the first problem: {problems[0]}" if problems else ""
        raise DataError(f"{path}: none of its pictures ({len(entries)}) can be used{first}")
    notes = [f"{bare} picture{'s' * (bare > 1)} without a usable phrase left out"] if bare else []
    if "" in divided and len(divided) > 1:
        divided.setdefault("train", []).extend(divided.pop(""))
        notes.append("pictures without a 'split' are counted as 'train'")
    return Collection("pictures with phrases (JSON)", root, [], divided, notes=notes, problems=problems)


def open_source(path: str | Path, *, split: str = "train") -> "PhraseRecords":
    """Source of one split; what was decided on the way is logged. Splits as for the other formats.

    Raises:
      ConfigError: the path is not a JSON file. DataError: as `read`, or no such split, or more than 1 % of
        the entries cannot be used.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() != ".json":
        raise ConfigError(
            f"data.source: {str(path)!r} is neither a JSON file with phrases, nor 'shapes' or 'shelves'"
        )
    collection = read(path)
    total = sum(len(record.phrases) for records in collection.splits.values() for record in records)
    if len(collection.problems) > MAX_PROBLEM_SHARE * (total + len(collection.problems)):
        raise DataError(
            f"{collection.problems[0]} (entries that cannot be used: {len(collection.problems)}; "
            "`sm-jax data check --json` lists them)"
        )
    records, notes = splits.split_records(collection, split)
    if not records:
        raise DataError(f"{path}: split {split!r} has no pictures")
    for line in [*(f"{path}: {note}" for note in [*collection.notes, *notes]), *collection.problems]:
        _log.warning("%s", line)
    return PhraseRecords(records)


class PhraseRecords:
    """`PhraseSource` over records of one split: the kinds of queries are "standard" (phrases that mean
    something in the picture) and "absent" (those with an empty list of ids)."""

    query_kinds = (STANDARD, ABSENT)

    def __init__(self, records: list[PhraseRecord]):
        self._records = records

    @property
    def phrases(self) -> tuple[str, ...]:
        """Every phrase of the split, each once, in order."""
        return tuple(dict.fromkeys(phrase for record in self._records for phrase in record.phrases))

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every word of the phrases, sorted."""
        return text.Tokenizer.from_texts(self.phrases).vocabulary

    @property
    def most_boxes(self) -> int:
        """Of one picture."""
        return max(len(record.boxes) for record in self._records)

    def fingerprint(self) -> str:
        """Another one when a picture was replaced: of all their paths, sizes and times."""
        digest = hashlib.sha256()
        for record in self._records:
            try:
                state = record.path.stat()
            except OSError:
                continue
            digest.update(f"{record.path} {state.st_size} {state.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._records)

    def image(self, index: int) -> np.ndarray:
        return read_annotated(self._records[index].path, None)

    def annotation(self, index: int) -> dict[str, Any]:
        record = self._records[index]
        size = record.known_size()
        boxes, usable = usable_boxes(record.boxes, size)
        return {
            "image_id": record.image_id,
            "size": size,
            "boxes": boxes[usable],
            "names": [name for name, ok in zip(record.names, usable, strict=True) if ok],
            "phrases": list(record.phrases),
            "matches": record.matches[:, usable],
        }

    def queries(self, index: int, kind: str = STANDARD) -> tuple[list[str], np.ndarray]:
        if kind not in self.query_kinds:
            raise ConfigError(f"no query kind {kind!r}; there are {', '.join(self.query_kinds)}")
        note = self.annotation(index)
        asked = self._records[index].matches.any(axis=1) == (kind == STANDARD)
        return [p for p, ok in zip(note["phrases"], asked, strict=True) if ok], note["matches"][asked]


def _record(
    where: str, entry: Any, pictures: PictureIndex, problems: list[str]
) -> tuple[str, PhraseRecord | None]:
    """(split, record) of one picture; None if it cannot be used at all."""
    name = entry.get("image") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name.strip():
        problems.append(f"{where}: there is no file name under 'image'")
        return "", None
    where = f"{where} ({name})"
    picture = _find(pictures, name)
    if picture is None:
        problems.append(f"{where}: the picture was not found")
        return "", None
    boxes = entry.get("boxes")
    if not isinstance(boxes, list):
        problems.append(f"{where}: the list 'boxes' is missing")
        return "", None
    corners = np.array([_corners(box) for box in boxes], np.float64).reshape(-1, 4)
    with np.errstate(invalid="ignore"):
        usable = np.isfinite(corners).all(axis=1) & (corners[:, 2:] > corners[:, :2]).all(axis=1)
    problems += [
        f"{where}: box {i} must be [x1, y1, x2, y2] with x1 < x2 and y1 < y2, not {str(boxes[i])[:60]}"
        for i in np.flatnonzero(~usable).tolist()
    ]
    names = entry.get("names", [""] * len(boxes))
    if not isinstance(names, list) or len(names) != len(boxes):
        problems.append(f"{where}: 'names' must be one text for each of the {len(boxes)} boxes")
        names = [""] * len(boxes)
    phrases, rows = _phrases(where, entry.get("phrases"), _unusable(corners, usable, picture), problems)
    split = entry.get("split", "")
    if not isinstance(split, str):
        problems.append(f"{where}: 'split' must be a text such as \"train\"")
        split = ""
    record = PhraseRecord(
        str(PurePosixPath(name).with_suffix("")),
        picture,
        None,
        corners[usable],
        np.zeros(int(usable.sum()), np.int32),
        np.zeros(int(usable.sum()), bool),
        phrases=tuple(phrases),
        matches=np.array(rows, bool).reshape(len(phrases), len(boxes))[:, usable],
        names=tuple(str(name) for name, ok in zip(names, usable, strict=True) if ok),
    )
    return split, record


def _unusable(corners: np.ndarray, usable: np.ndarray, picture: Path) -> list[str]:
    """Why no phrase can mean a box, "" for each that one can; `usable`: those that are boxes at all."""
    reasons = np.where(usable, "", "cannot be used").astype(object)
    try:
        state = picture.stat()
        size = _size(picture, state.st_size, state.st_mtime_ns)
    except (ImageError, OSError):
        return reasons.tolist()  # a damaged picture is named when it is read
    outside = usable & ~usable_boxes(corners, size)[1]
    reasons[outside] = f"lies outside the picture ({size[1]}x{size[0]} pixels)"
    return reasons.tolist()


@functools.lru_cache(1 << 18)
def _size(picture: Path, length: int, modified: int) -> tuple[int, int]:
    """(height, width) of a picture of so many bytes and this time: a training opens its file many times."""
    return images.image_size(picture)


def _phrases(where, entries, unusable: list[str], problems: list[str]) -> tuple[list[str], list[np.ndarray]]:
    """The usable phrases of a picture and which of its boxes each means."""
    if not isinstance(entries, list):
        problems.append(f"{where}: the list 'phrases' is missing")
        return [], []
    phrases, rows = [], []
    for number, entry in enumerate(entries):
        problem, row = _meaning(entry, unusable)
        if problem:
            problems.append(f"{where}: phrases[{number}]: {problem}")
        else:
            phrases.append(" ".join(entry["text"].split()))
            rows.append(row)
    return phrases, rows


def _meaning(entry: Any, unusable: list[str]) -> tuple[str, np.ndarray]:
    """(what is wrong with a phrase, the boxes that it means)."""
    row = np.zeros(len(unusable), bool)
    phrase = entry.get("text") if isinstance(entry, dict) else None
    if not isinstance(phrase, str):
        return "there is no 'text'", row
    shown = f"{phrase[:60]!r}"
    if not (found := text.words(phrase)):
        return "the text is empty" if not phrase.strip() else f"no word in the text {shown}", row
    if len(found) > MAX_WORDS:
        return f"{shown}...: {len(found)} words, at most {MAX_WORDS} are read; make it shorter", row
    ids = entry.get("ids")
    if not isinstance(ids, list):
        return f"{shown} has no list 'ids' of the boxes that it means (empty: none of them)", row
    for value in ids:
        if not isinstance(value, int) or isinstance(value, bool):
            return f"{shown}: ids must be whole numbers, not {str(value)[:40]!r}", row
        if not 0 <= value < len(unusable):
            known = f"they count from 0 to {len(unusable) - 1}" if unusable else "the picture has no boxes"
            return f"{shown}: there is no box {value}; {known}", row
        if unusable[value]:
            return f"{shown}: it means box {value}, which {unusable[value]}", row
        row[value] = True
    return "", row


def _find(pictures: PictureIndex, name: str) -> Path | None:
    try:
        return pictures.by_name(name)
    except (OSError, ValueError):  # a name that no file can have
        return None


def _corners(box: Any) -> list[float]:
    """Four numbers; NaN for anything else."""
    good = isinstance(box, list) and len(box) == 4
    good = good and all(isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 1e9 for v in box)
    return [float(value) for value in box] if good else [float("nan")] * 4
