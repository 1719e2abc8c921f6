"""PF-WILLOW as published: a folder per class with pictures and a `.mat` of ten points beside each.

Source: "Proposal Flow" (CVPR 2016), published data (SCNet specification, sec. 8.2). The points are counted
from 1: the point (1, 1) is the centre of the first pixel, here (0.5, 0.5).
"""

import itertools
from pathlib import Path

import numpy as np

from sm_jax import matlab
from sm_jax.data.sources.files import pictures_in
from sm_jax.data.sources.pair_records import KeypointPair, PairList, make_list, points
from sm_jax.errors import DataError

FIELD = "pts_coord"
POINTS = 10


def recognised(path: Path) -> bool:
    """Whether `path` is a folder of folders in which pictures have a `.mat` beside them."""
    return path.is_dir() and bool(_class_folders(path))


def read(path: Path) -> PairList:
    """All ordered pairs of different pictures within each class folder, all in the split "test".

    Raises:
      DataError: no such folders, a picture without its `.mat`, one without `pts_coord` (2, 10), NaN.
    """
    folders = _class_folders(path)
    if not folders:
        raise DataError(f"{path}: no PF-WILLOW data (folders with pictures and a .mat beside each)")
    pairs = []
    for folder in folders:
        pictures = pictures_in(folder)
        found = [(picture, _points(picture.with_suffix(".mat"))) for picture in pictures]
        if len(found) < 2:
            raise DataError(f"{folder}: holds one picture, which makes no pair")
        for (source, a), (target, b) in itertools.permutations(found, 2):
            pairs.append(KeypointPair(source, target, folder.name, a, b, "test"))
    return make_list("PF-WILLOW", path, pairs)


def _class_folders(path: Path) -> list[Path]:
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir())
    return [folder for folder in folders if pictures_in(folder) and any(folder.glob("*.mat"))]


def _points(path: Path) -> np.ndarray:
    content = matlab.load(path)
    if FIELD not in content:
        raise DataError(f"{path}: has no {FIELD!r}, only {_fields(content)}")
    values = np.asarray(content[FIELD])
    if values.shape != (2, POINTS):
        raise DataError(f"{path}: {FIELD} has shape {values.shape}, expected (2, {POINTS})")
    return points(values.T, convention="matlab", where=str(path), all_visible=True)


def _fields(content: dict) -> str:
    return ", ".join(sorted(name for name in content if not name.startswith("__"))) or "nothing"
