"""A person's own key-point pairs: one CSV or one JSON beside the pictures.

    source_image,target_image,class,XA,YA,XB,YB[,split]
    a.jpg,b.jpg,mug,10;20.5;-1,30;40;-1,12;22;50,31;44;60

    {"pairs": [{"source": "a.jpg", "target": "b.jpg", "class": "mug", "split": "train",
                "keypoints_source": [[10, 30], [20.5, 40], null],
                "keypoints_target": [[12, 31], [22, 44], [50, 60]]}]}

A point that is invisible is -1, -1 (or nan, nan) in the CSV and null (or [-1, -1]) in the JSON. `class` and
`split` may be left out in the JSON, `split` in the CSV. Coordinates have pixel edges on integers (the centre
of the first pixel is 0.5, 0.5), or with `convention="matlab"` count pixel centres from 1, as the lists of
PF-PASCAL do. A point that is neither marked invisible nor lies in its picture is refused (`outside`).
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sm_jax import points as point_lib
from sm_jax.data import images
from sm_jax.data.sources.files import PictureIndex, read_json
from sm_jax.data.sources.pair_records import SHIFTS, KeypointPair, PairList, make_list, points
from sm_jax.data.sources.pf_pascal import COLUMNS, POINT_COLUMNS, listed_points, rows
from sm_jax.errors import ConfigError, DataError, ImageError
from sm_jax.settings import nearest

SLACK = 1.0  # pixels that a point may lie beyond the right and lower edge of its picture
KEYS = ("source", "target", "keypoints_source", "keypoints_target", "class", "split")
REQUIRED = KEYS[:4]
Entry = tuple[str, Callable[[], tuple]]
"""Where an entry stands, and what reads it: (names of both pictures, class, points of both, split)."""
HELP = (
    'expected {"pairs": [{"source": ..., "target": ..., "keypoints_source": [[x, y], ...], '
    '"keypoints_target": [...]}]}'
)


def recognised(path: Path) -> bool:
    """Whether the file at `path` looks like key-point pairs rather than another annotation format."""
    if not path.is_file():
        return False
    if path.suffix.lower() == ".csv":
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            return {"source_image", "target_image"} <= {name.strip() for name in file.readline().split(",")}
    if path.suffix.lower() != ".json":
        return False
    document = read_json(path)
    if isinstance(document, dict):
        return isinstance(document.get("pairs"), list)
    return isinstance(document, list) and any(isinstance(one, dict) and "source" in one for one in document)


def read(path: Path, *, convention: str = "edges") -> PairList:
    """The pairs of a `.csv` or `.json` file; those without a split are in "train".

    Pictures are looked for in the folder of the file and its `images` and `JPEGImages`.

    Raises:
      ConfigError: an unknown convention.
      DataError: the file cannot be read, a picture is missing, or points cannot be used or lie outside.
      ImageError: what should be a picture is none.
    """
    pairs, _ = _read(path, convention, lenient=False)
    return make_list("own pairs", path, pairs)


def scan(path: Path) -> tuple[PairList, list[str]]:
    """The pairs that `read` could use, and a line for every entry that it refuses; raises DataError."""
    pairs, problems = _read(path, "edges", lenient=True)
    if not pairs:
        raise DataError(problems[0] if problems else f"{path}: holds no pairs; {HELP}")
    return make_list("own pairs", path, pairs), problems


def _read(path: Path, convention: str, *, lenient: bool) -> tuple[list[KeypointPair], list[str]]:
    if convention not in SHIFTS:
        raise ConfigError(f"pairs: convention={convention!r} is not one of {', '.join(SHIFTS)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    root = path.parent.resolve()
    index = PictureIndex([root, root / "images", root / "JPEGImages"])
    entries = _csv(path, convention) if path.suffix.lower() == ".csv" else _json(path, convention)
    sizes: dict[Path, tuple[int, int]] = {}

    def read_one(where: str, parse: Callable) -> KeypointPair:
        names, class_name, ends, split = parse()
        found = []
        for name, keypoints in zip(names, ends, strict=True):
            picture = index.by_name(name)
            if picture is None:
                raise DataError(f"{where}: picture {name!r} was not found in {root}")
            if picture not in sizes:
                sizes[picture] = images.image_size(picture, orient=False)
            _check_inside(keypoints, sizes[picture], f"{where}: {name}")
            found.append(picture)
        if len(ends[0]) != len(ends[1]):
            raise DataError(f"{where}: {len(ends[0])} key-points in the source, {len(ends[1])} in the target")
        return KeypointPair(*found, class_name, *ends, split)

    pairs, problems = [], []
    for where, parse in entries:
        try:
            pairs.append(read_one(where, parse))
        except (DataError, ImageError) as error:
            if not lenient:
                raise
            problems.append(str(error))
    return pairs, problems


def _csv(path: Path, convention: str) -> Iterator[Entry]:
    for where, row in rows(path, (*COLUMNS, *POINT_COLUMNS)):
        _check_names(row, (*COLUMNS, *POINT_COLUMNS, "split"), f"{path}: column")
        yield where, partial(_of_row, row, where, convention)


def _of_row(row: dict[str, str], where: str, convention: str):
    ends = listed_points(row, where, convention=convention)
    names = row["source_image"].strip(), row["target_image"].strip()
    return names, row["class"].strip(), ends, (row.get("split") or "").strip() or "train"


def _json(path: Path, convention: str) -> Iterator[Entry]:
    document = read_json(path)
    entries = document.get("pairs") if isinstance(document, dict) else document
    if not isinstance(entries, list):
        raise DataError(f"{path}: the list 'pairs' is missing; {HELP}")
    for number, entry in enumerate(entries):
        where = f"{path}: pairs[{number}]"
        yield where, partial(_of_entry, entry, where, convention)


def _of_entry(entry: Any, where: str, convention: str):
    if not isinstance(entry, dict):
        raise DataError(f"{where}: is no object; {HELP}")
    _check_names(entry, KEYS, f"{where}: key")
    for name in REQUIRED:
        if name not in entry:
            raise DataError(f"{where}: {name!r} is missing; {HELP}")
    texts = [entry["source"], entry["target"], entry.get("class", ""), entry.get("split", "train")]
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where}: source, target, class and split are texts")
    ends = tuple(
        points(_rows(entry[name]), convention=convention, where=f"{where}: {name}")
        for name in ("keypoints_source", "keypoints_target")
    )
    return texts[:2], texts[2], ends, texts[3]


def _rows(values: Any) -> Any:
    if not isinstance(values, list):
        return values
    return [[np.nan, np.nan] if value is None else value for value in values]


def _check_names(given: Iterable[str], known: tuple[str, ...], where: str) -> None:
    """Refuse a name that nothing reads: a misspelt "split" would put the pair into "train"."""
    for name in given:
        if name not in known:
            raise DataError(f"{where} {name!r} is unknown{nearest(name, known)}")


def outside(keypoints: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Which visible key-points `(k, 2)` lie outside a picture of (height, width) `size`: bool `(k,)`.

    On the left and above that is where `points.present` takes them for absent, so that a point is either
    marked invisible, or counts.
    """
    visible = ~np.isnan(keypoints).any(1)
    beyond = (keypoints > np.array([size[1], size[0]]) + SLACK).any(1)
    return visible & (~point_lib.present(keypoints) | beyond)


def _check_inside(keypoints: np.ndarray, size: tuple[int, int], where: str) -> None:
    for row in np.flatnonzero(outside(keypoints, size))[:1]:
        x, y = keypoints[row]
        raise DataError(
            f"{where}: key-point {row} ({x:g}, {y:g}) lies outside the picture of {size[1]}x{size[0]}; an "
            "invisible one is null, in a CSV -1 and -1"
        )
