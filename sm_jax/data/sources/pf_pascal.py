"""PF-PASCAL as published: annotations per class, the list of pairs in one `.mat`, or lists as CSV.

    PF-dataset-PASCAL/
      JPEGImages/2008_000033.jpg            pictures of Pascal VOC
      Annotations/aeroplane/2008_000033.mat kps (k, 2), NaN where invisible; bbox (4,)
      parsePascalVOC.mat                    PascalVOC.pair{class} (n, 2) names of pictures
      train_pairs.csv val_pairs.csv test_pairs.csv   (optional, here or in a folder of their own)

Source: "Proposal Flow" (TPAMI 2018), published data; the lists are those published with NCNet (SCNet
specification, sec. 8.2). Points are counted from 1: (1, 1) is the centre of the first pixel, here (0.5, 0.5).
"""

import csv
import io
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from sm_jax import matlab
from sm_jax.data.sources.files import MAX_CSV_BYTES, checked_bytes
from sm_jax.data.sources.pair_records import (
    SPLITS,
    KeypointPair,
    PairList,
    make_list,
    points,
    split_by_class,
)
from sm_jax.errors import DataError

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable"),
    *("dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""In the order of Pascal VOC; the lists number them from 1."""
TABLE = "parsePascalVOC.mat"
COLUMNS = ("source_image", "target_image", "class")
POINT_COLUMNS = ("XA", "YA", "XB", "YB")


def recognised(path: Path) -> bool:
    """Whether `path` is a folder in the published layout."""
    return (path / "Annotations").is_dir() and (
        (path / TABLE).is_file() or any((path / f"{split}_pairs.csv").is_file() for split in SPLITS)
    )


def read(path: Path, *, lists: Path | None = None, check_pictures: bool = True) -> PairList:
    """The pairs with their splits.

    From the CSV lists where there are some: rows of mirrored pairs (`flip` 1) are left out, because mirroring
    is done while training; each training pair stands in both directions, as published. Otherwise from
    `parsePascalVOC.mat`, whose pairs are divided by `pair_records.class_splits`.

    Args:
      path: the folder that holds `Annotations` and `JPEGImages`. With lists that carry their points it may
        lack the first, without `check_pictures` the second.
      lists: the folder of `train_pairs.csv`, ...; default `path`.
      check_pictures: whether a picture that is not there is an error.

    Raises:
      DataError: a missing file, field or picture, another number of classes, or points that cannot be used.
    """
    lists = lists or path
    if any((lists / f"{split}_pairs.csv").is_file() for split in SPLITS):
        pairs, notes = _from_lists(path, lists)
    else:
        pairs, notes = _from_table(path), []
    if check_pictures:
        for picture in dict.fromkeys(end for pair in pairs for end in (pair.source, pair.target)):
            if not picture.is_file():
                raise DataError(
                    f"{picture}: no such picture; PF-PASCAL's are pictures of Pascal VOC, which belong into "
                    "JPEGImages"
                )
    return make_list("PF-PASCAL", path, pairs, notes)


def _from_table(root: Path) -> list[KeypointPair]:
    path = root / TABLE
    content = matlab.load(path)
    table = getattr(content.get("PascalVOC"), "pair", None)
    if table is None:
        raise DataError(f"{path}: has no field PascalVOC.pair")
    cells = np.atleast_1d(np.asarray(table, object))
    if len(cells) != len(CLASSES):
        raise DataError(f"{path}: PascalVOC.pair has {len(cells)} classes, expected {len(CLASSES)}")
    pairs, known = [], {}
    for name, cell in zip(CLASSES, cells, strict=True):
        names = np.asarray(cell, object).ravel()
        if len(names) % 2:
            raise DataError(f"{path}: the pairs of {name} are not two names each")
        for source, target in names.reshape(-1, 2):
            pairs.append(_annotated(root, name, str(source), str(target), "", known))
    return split_by_class(pairs)


def _from_lists(root: Path, lists: Path) -> tuple[list[KeypointPair], list[str]]:
    pairs, notes, known = [], [], {}
    for split in SPLITS:
        path = lists / f"{split}_pairs.csv"
        if not path.is_file():
            notes.append(f"{path.name} is missing, so there is no split {split!r}")
            continue
        mirrored = 0
        for where, row in rows(path, COLUMNS):
            if (row.get("flip") or "0").strip() == "1":
                mirrored += 1
                continue
            name = _class_name(row["class"], where)
            source, target = (_stem(row[column]) for column in COLUMNS[:2])
            if all(row.get(column) for column in POINT_COLUMNS):
                a, b = listed_points(row, where, convention="matlab")
                pairs.append(KeypointPair(_picture(root, source), _picture(root, target), name, a, b, split))
            else:
                pairs.append(_annotated(root, name, source, target, split, known))
        if mirrored:
            notes.append(f"{path.name}: {mirrored} rows of mirrored pairs are left out")
    return pairs, notes


def rows(path: Path, required: tuple[str, ...]) -> list[tuple[str, dict[str, str]]]:
    """The rows of a CSV, each with `file: line n`; raises DataError without the `required` columns."""
    text = checked_bytes(path, MAX_CSV_BYTES).decode("utf-8-sig", errors="replace")
    reader = csv.DictReader(io.StringIO(text))
    try:
        missing = [name for name in required if name not in (reader.fieldnames or ())]
        if missing:
            raise DataError(f"{path}: columns {', '.join(missing)} are missing")
        result = []
        for row in reader:
            where = f"{path}: line {reader.line_num}"
            if None in row or any(row[name] is None for name in required):
                raise DataError(f"{where}: has more or fewer values than the header")
            if empty := [name for name in required if not row[name].strip()]:
                raise DataError(f"{where}: {', '.join(empty)} is empty")
            result.append((where, row))
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num} is not valid CSV ({error})") from None
    return result


def listed_points(row: dict[str, str], where: str, *, convention: str) -> tuple[np.ndarray, np.ndarray]:
    """Source and target points of a row with the columns XA, YA, XB, YB (lists with semicolons)."""
    columns = {}
    for name in POINT_COLUMNS:
        try:
            columns[name] = [float(value) for value in row[name].split(";")]
        except ValueError:
            raise DataError(f"{where}: {name} is not a list of numbers with semicolons") from None
    counts = {len(values) for values in columns.values()}
    if len(counts) > 1:
        listed = ", ".join(f"{name} {len(values)}" for name, values in columns.items())
        raise DataError(f"{where}: unlike numbers of coordinates ({listed})")
    return tuple(
        points(np.stack([columns[f"X{end}"], columns[f"Y{end}"]], 1), convention=convention, where=where)
        for end in "AB"
    )


def _annotated(
    root: Path, class_name: str, source: str, target: str, split: str, known: dict[Path, Any]
) -> KeypointPair:
    ends = []
    for name in (source, target):
        path = root / "Annotations" / class_name / f"{_stem(name)}.mat"
        if path not in known:
            known[path] = _keypoints(path)
        ends.append(known[path])
    return KeypointPair(_picture(root, source), _picture(root, target), class_name, *ends, split)


def _keypoints(path: Path) -> np.ndarray:
    content = matlab.load(path)
    if "kps" not in content:
        raise DataError(f"{path}: has no 'kps', the key-points")
    values = np.asarray(content["kps"])
    values = values[None] if values.shape == (2,) else values  # one point, squeezed
    return points(values, convention="matlab", where=str(path))


def _picture(root: Path, name: str) -> Path:
    return root / "JPEGImages" / f"{_stem(name)}.jpg"


def _stem(name: str) -> str:
    return PurePosixPath(name.strip().replace("\\", "/")).name.removesuffix(".jpg")


def _class_name(value: str, where: str) -> str:
    value = value.strip()
    if value.isdecimal() and 1 <= int(value) <= len(CLASSES):
        return CLASSES[int(value) - 1]
    if value in CLASSES:
        return value
    raise DataError(f"{where}: class {value!r} is neither 1 to {len(CLASSES)} nor one of Pascal VOC's")
