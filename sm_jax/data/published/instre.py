"""INSTRE-S1 and -S2: the queries of Iscen et al. (gnd_instre.mat) over the image tree (OS2D spec sec. 13).

Every query is a class of its own: the five queries of one object are five classes over the same boxes. Class
pictures are the query images cut to the query boxes (corners); the boxes of the other images stand in text
files beside them (corner, width, height), one a line.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from sm_jax import matlab
from sm_jax.data import images
from sm_jax.data.published import Published, needed
from sm_jax.data.published.stored import StoredSource, crop, stored_source
from sm_jax.data.sources.base import Record
from sm_jax.data.sources.files import checked_bytes
from sm_jax.errors import DataError

MAX_TEXT_BYTES = 1 << 20
PARTS = {"train": (0, 75), "val": (75, 80), "test": (80, 100)}
"""Split -> from and to which per cent of the queries, in their order."""


class _Query(NamedTuple):
    """A query: `name` of its class, its picture, the box in it, and the positives' paths."""

    name: str
    path: str
    box: Any
    positives: list[str]


def read(dataset: Published, root: Path, splits: Sequence[str]) -> dict[str, StoredSource]:
    """The sources; a query's positives are the pictures that show it, and no others are searched."""
    subset = dataset.name.upper()
    needed(root / subset, dataset)
    queries = _queries(needed(root / "gnd_instre.mat", dataset), subset)
    reader = _Boxes(root, subset)
    sources = {}
    for split in splits:
        first, last = (len(queries) * share // 100 for share in PARTS[split])
        if first == last:
            raise DataError(
                f"{root / 'gnd_instre.mat'}: {len(queries)} queries of {subset} are too few for {split!r}"
            )
        sources[split] = _source(root, queries[first:last], reader)
    return sources


def _source(root: Path, queries: list[_Query], boxes: "_Boxes") -> StoredSource:
    found: dict[str, list[tuple[int, np.ndarray]]] = {}
    for label, query in enumerate(queries):
        for path in query.positives:
            found.setdefault(path, []).append((label, boxes.of(path, query)))
    records = []
    for path, members in found.items():
        labels = np.repeat([label for label, _ in members], [len(rows) for _, rows in members])
        stacked = np.concatenate([rows for _, rows in members])
        none = np.zeros(len(labels), bool)
        size = images.image_size(root / path, orient=False)
        records.append(Record(path, root / path, size, stacked, labels.astype(np.int32), none))
    pictures = {
        label: crop(root / query.path, query.box, f"query {query.path}")
        for label, query in enumerate(queries)
    }
    return stored_source(records, [query.name for query in queries], pictures)


class _Boxes:
    """The text files, each read once."""

    def __init__(self, root: Path, subset: str):
        self._root, self._subset = root, subset
        self._read: dict[str, np.ndarray] = {}

    def of(self, path: str, query: _Query) -> np.ndarray:
        """f64 (n, 4) xyxy pixels of the query's object in the picture `path`.

        A picture of INSTRE-M shows two objects of INSTRE-S1: the first line is the one whose folder has "a"
        as its third character, the second that with "b".
        """
        rows = self._rows(path)
        part = path.split("/")[0].upper()
        if part == self._subset:
            return rows
        folder = query.path.split("/")[1]
        if part != "INSTRE-M" or self._subset != "INSTRE-S1":
            raise DataError(f"{self._root / path}: cannot be a positive of {query.path} ({self._subset})")
        if len(rows) != 2:
            raise DataError(f"{self._root / path}: a picture of INSTRE-M has two boxes, not {len(rows)}")
        if folder[2:3] not in ("a", "b"):
            raise DataError(
                f"{query.path}: is in a picture of INSTRE-M ({path}), but the third character of its folder "
                "is neither a nor b"
            )
        which = "ab".index(folder[2])
        return rows[which : which + 1]

    def _rows(self, path: str) -> np.ndarray:
        if path not in self._read:
            text = self._root / (path.split(".")[0] + ".txt")
            if not (self._root / path).is_file():
                raise DataError(f"{self._root / path}: gnd_instre.mat names it, but it is not there")
            lines = checked_bytes(text, MAX_TEXT_BYTES).decode("utf-8", errors="replace").splitlines()
            try:
                rows = np.array([line.split() for line in lines if line.strip()], np.float64).reshape(-1, 4)
            except ValueError:
                raise DataError(f"{text}: a line is not four numbers (x y width height)") from None
            if not len(rows):
                raise DataError(f"{text}: holds no box")
            rows[:, 2:] += rows[:, :2]
            self._read[path] = rows
        return self._read[path]


def _queries(path: Path, subset: str) -> list[_Query]:
    """The queries of one subset, in the order of the file; those of INSTRE-M belong to none."""
    stored = matlab.load(path)
    if missing := [name for name in ("qimlist", "imlist", "gnd") if name not in stored]:
        raise DataError(f"{path}: holds no {missing[0]}; it is not the gnd_instre.mat of Iscen et al.")
    names = [str(name) for name in np.atleast_1d(stored["qimlist"])]
    listed = [str(name) for name in np.atleast_1d(stored["imlist"])]
    truths = list(np.atleast_1d(stored["gnd"]))
    if len(truths) != len(names):
        raise DataError(f"{path}: {len(names)} queries, but {len(truths)} entries of gnd")
    for name in (*names, *listed):
        parts = PurePosixPath(name).parts
        if len(parts) < 3 or parts[0] == "/" or ".." in parts or "\\" in name:
            raise DataError(f"{path}: {name[:60]!r} is not a path SUBSET/FOLDER/PICTURE")
    queries = []
    for number, (name, truth) in enumerate(zip(names, truths, strict=True)):
        if name.split("/")[0].upper() != subset:
            continue
        try:  # the fields by their places: positives (counted from 1), then the box
            fields = [np.atleast_1d(getattr(truth, field)).ravel() for field in truth._fieldnames[:2]]
            places = fields[0].astype(np.int64) - 1
            box = fields[1].astype(np.float64)
        except (AttributeError, IndexError, TypeError, ValueError):
            raise DataError(f"{path}: entry {number + 1} of gnd is not positives and a box") from None
        if places.size and not (0 <= places.min() and places.max() < len(listed)):
            raise DataError(f"{path}: entry {number + 1} of gnd counts beyond the {len(listed)} pictures")
        label = f"{number:05d}_{PurePosixPath(name.replace('/', '_')).stem}"
        queries.append(_Query(label, name, box, [listed[place] for place in places.tolist()]))
    if not queries:
        raise DataError(f"{path}: holds no query of {subset}")
    return queries
