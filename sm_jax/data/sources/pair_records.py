"""What the readers of all key-point pairs produce, and what is done with lists of them.

Key-points are xy pixels with pixel *edges* on integers, as everywhere here. The published data sets count
pixel *centres* from 1 (MATLAB): a published coordinate is 0.5 more than ours.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from sm_jax import points as point_lib
from sm_jax.data import images
from sm_jax.errors import ConfigError, DataError
from sm_jax.settings import nearest

SHIFTS = {"edges": 0.0, "matlab": -0.5}
"""Added to coordinates of each convention: pixel edges on integers, or pixel centres counted from 1."""
SPLITS = ("train", "val", "test")
PADDING = -1.0


@dataclass(frozen=True)
class KeypointPair:
    """Two pictures of a class and the points that correspond.

    Attributes:
      source, target: paths of the pictures.
      class_name: what both show.
      keypoints_source, keypoints_target: float64 `(k, 2)`; row i of one corresponds to row i of the other.
        NaN where a point is invisible in that picture.
      split: "train", "val", "test" or another name.
    """

    source: Path
    target: Path
    class_name: str
    keypoints_source: np.ndarray
    keypoints_target: np.ndarray
    split: str = "test"

    @property
    def visible(self) -> np.ndarray:
        """Which points are present in both pictures (`points.present`), so that they count; bool `(k,)`."""
        return point_lib.present(self.keypoints_source) & point_lib.present(self.keypoints_target)

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Source and target picture, uint8 RGB `(h, w, 3)`; raises ImageError.

        The EXIF orientation is left alone: key-points are in the frame of the stored pixels.
        """
        return tuple(images.read_image(path, orient=False) for path in (self.source, self.target))


@dataclass(frozen=True)
class PairList(Sequence):
    """Pairs of one data set in its order.

    Attributes:
      kind: which format it was.
      root: the folder.
      notes: one line for each thing that was decided while reading.
    """

    kind: str
    root: Path
    pairs: tuple[KeypointPair, ...]
    notes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index):
        return self.pairs[index]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in the order of their first pair."""
        return tuple(dict.fromkeys(pair.class_name for pair in self.pairs))

    def split(self, name: str) -> "PairList":
        """The pairs of one split ("all": every pair).

        Raises:
          DataError: there is no such split.
        """
        found = tuple(pair for pair in self.pairs if name in (pair.split, "all"))
        if not found:
            known = nearest(name, {pair.split for pair in self.pairs})
            if name == "train":  # PF-WILLOW
                known += "; leave_out=CATEGORY trains on all categories but that one"
            raise DataError(f"{self.root}: there is no split {name!r} of pairs{known}")
        return replace(self, pairs=found)

    def leave_out(self, category: str) -> tuple["PairList", "PairList"]:
        """(pairs of all other categories, pairs of `category`), for leave-one-category-out.

        A category is what a class is called before the bracket: "car(G)", "car(M)" and "car(S)" are "car".
        They share pictures, so that leaving out one of them alone would train on what is tested.

        Raises:
          DataError: there is no such category, or no other.
        """
        known = {category_of(name) for name in self.class_names}
        if category not in known:
            raise DataError(f"{self.root}: no pairs of the category {category!r}{nearest(category, known)}")
        if len(known) == 1:
            raise DataError(f"{self.root}: {category!r} is the only category, so nothing is left to train on")
        parts = {True: [], False: []}
        for pair in self.pairs:
            parts[category_of(pair.class_name) == category].append(pair)
        return replace(self, pairs=tuple(parts[False])), replace(self, pairs=tuple(parts[True]))


def category_of(class_name: str) -> str:
    """The class name up to its bracket."""
    return class_name.split("(")[0].strip()


def points(values, *, convention: str, where: str, all_visible: bool = False) -> np.ndarray:
    """Checked key-points in our convention, float64 `(k, 2)`, NaN where invisible.

    A point is invisible where both coordinates are NaN, or both are the padding -1.

    Args:
      values: `(k, 2)` x, y as stored.
      convention: of `SHIFTS`.
      where: the file (and line), for messages.
      all_visible: of a format in which every point is; an invisible one is then an error.

    Raises:
      DataError: another shape, no point, infinity, half a point, or an invisible one.
    """
    try:
        values = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{where}: the key-points are not numbers") from None
    if values.ndim != 2 or values.shape[1] != 2 or not len(values):
        raise DataError(f"{where}: expected key-points x, y of shape (k, 2), found {values.shape}")
    missing = np.isnan(values)
    if all_visible and missing.any():
        row = int(np.flatnonzero(missing.any(1))[0])
        raise DataError(f"{where}: key-point {row} is NaN, but all are visible in this format")
    if np.isinf(values).any() or (missing.any(1) != missing.all(1)).any():
        bad = np.isinf(values).any(1) | (missing.any(1) != missing.all(1))
        row = int(np.flatnonzero(bad)[0])
        raise DataError(f"{where}: key-point {row} is {values[row].tolist()}, neither a point nor invisible")
    hidden = missing.any(1) | (values == PADDING).all(1)
    return np.where(hidden[:, None], np.nan, values + SHIFTS[convention])


def make_list(kind: str, root: Path, pairs: Iterable[KeypointPair], notes: Iterable[str] = ()) -> PairList:
    """A `PairList` of the pairs that share a visible point; a note says how many do not.

    Raises:
      DataError: source and target have different numbers of points, or nothing is left.
    """
    kept, dropped = [], []
    for pair in pairs:
        counts = len(pair.keypoints_source), len(pair.keypoints_target)
        if counts[0] != counts[1]:
            raise DataError(
                f"{root}: {pair.source.name} -> {pair.target.name} ({pair.class_name}): {counts[0]} "
                f"key-points in the source, {counts[1]} in the target"
            )
        (kept if pair.visible.any() else dropped).append(pair)
    notes = list(notes)
    if dropped:
        first = f"{dropped[0].source.name} -> {dropped[0].target.name}"
        count = f"{len(dropped)} pair{'s' * (len(dropped) != 1)}"
        notes.append(f"{count} left out: no key-point is visible in both pictures (first: {first})")
    if not kept:
        raise DataError(f"{root}: holds no pair with a key-point that is visible in both pictures")
    return PairList(kind, root, tuple(kept), tuple(notes))


def class_splits(count: int) -> list[str]:
    """Splits of the `count` pairs of one class in file order: ceil(7 n / 13), half of the rest, the rest.

    Source: SCNet (ICCV 2017), published code (SCNet specification, sec. 4 step 6).
    """
    train = math.ceil(7 * count / 13)
    val = math.ceil((count - train) / 2)
    return ["train"] * train + ["val"] * val + ["test"] * (count - train - val)


def split_by_class(pairs: Iterable[KeypointPair]) -> list[KeypointPair]:
    """The pairs with their splits by `class_splits`, in the order they came."""
    pairs = list(pairs)
    members: dict[str, list[int]] = {}
    for index, pair in enumerate(pairs):
        members.setdefault(pair.class_name, []).append(index)
    for indices in members.values():
        for index, split in zip(indices, class_splits(len(indices)), strict=True):
            pairs[index] = replace(pairs[index], split=split)
    return pairs


def protocol_id(pairs: Iterable[KeypointPair]) -> str:
    """12 hexadecimal digits of which pairs these are: file names and classes, whatever order and folder."""
    lines = sorted(f"{pair.class_name}\t{pair.source.name}\t{pair.target.name}" for pair in pairs)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def check_overlap(
    train: Iterable[KeypointPair], test: Iterable[KeypointPair], *, by: str = "pairs", force: bool = False
) -> list[str]:
    """Refuse to test on what was trained on.

    Pictures are the same when their files have the same content, wherever they lie (missing files: the same
    path); pairs are the same in both directions.

    Args:
      train, test: the two lists.
      by: "pairs", or "images" (stricter: PF-PASCAL's own splits share pictures).
      force: return the finding instead of raising it.

    Returns:
      Lines to report: empty, or one that says what overlaps.

    Raises:
      DataError: an overlap, without `force`. ConfigError: another `by`.
    """
    if by not in ("pairs", "images"):
        raise ConfigError(f"overlap: by={by!r} is not one of pairs, images")
    contents: dict[Path, str] = {}

    def identity(path: Path) -> str:
        if path not in contents:
            try:
                contents[path] = hashlib.sha256(path.read_bytes()).hexdigest()
            except OSError:
                contents[path] = str(path)
        return contents[path]

    def things(pairs):
        for pair in pairs:
            ends = identity(pair.source), identity(pair.target)
            for thing in [tuple(sorted(ends))] if by == "pairs" else ends:
                yield thing, pair

    trained = {thing for thing, _ in things(train)}
    shared = {thing: pair for thing, pair in things(test) if thing in trained}
    if not shared:
        return []
    pair = next(iter(shared.values()))
    what = f"1 {by[:-1]} of the test is" if len(shared) == 1 else f"{len(shared)} {by} of the test are"
    line = f"{what} also trained on, such as {pair.source.name} -> {pair.target.name} ({pair.class_name})"
    if not force:
        raise DataError(f"{line}; results would say nothing, so take other pairs, or force it")
    return [line]
