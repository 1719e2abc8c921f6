"""A folder per class: each picture shows one object, so training scenes are composed of several of them."""

from pathlib import Path
from typing import Any

import numpy as np

from sm_jax.data import images
from sm_jax.data.sources.base import ClassPicture, Collection, Record, RecordSource
from sm_jax.data.sources.files import class_folder_pictures, pictures_in
from sm_jax.errors import DataError, ImageError

_SPLIT_FOLDERS = ("train", "val", "valid", "test")
_NOT_CLASSES = {"images", "jpegimages", "annotations", "imagesets", "labels", "img", "imgs", "classes"}
GRID = 3  # cells per side of a composed scene
CELL = 224  # pixels
OBJECT_SIDES = (110, 190)  # square root of an object's area in a scene, pixels


def find(root: Path) -> dict[str, list[Path]]:
    """Class folders by split ("" if the data set is not divided); empty if `root` is not of this form."""
    divided = {name: _class_folders(root / name) for name in _SPLIT_FOLDERS if (root / name).is_dir()}
    divided = {name: folders for name, folders in divided.items() if folders}
    if divided:
        return divided
    folders = _class_folders(root)
    return {"": folders} if folders else {}


def read(root: Path, found: dict[str, list[Path]]) -> Collection:
    """Every picture is a record with one box around all of it."""
    class_names = sorted({folder.name for folders in found.values() for folder in folders})
    index = {name: label for label, name in enumerate(class_names)}
    splits = {}
    for split, folders in found.items():
        splits[split] = [
            _record(path, index[folder.name]) for folder in folders for path in pictures_in(folder)
        ]
    given = {i: ClassPicture(path) for i, path in class_folder_pictures(root, class_names).items()}
    notes = [
        f"a folder per class has no scenes: they are composed of up to {GRID}x{GRID} of its pictures, for "
        "training and for evaluation, so the score says little about real scenes"
    ]
    return Collection("a folder per class", root, class_names, splits, given, objects=True, notes=notes)


class ComposedSource:
    """`Source` of scenes composed of pictures of single objects; scene i always shows picture i.

    The others, their number, sizes and places and the background follow from `(seed, i)` alone.

    Args:
      objects: source whose pictures are one object each.
      seed: of the compositions.
    """

    def __init__(self, objects: RecordSource, *, seed: int = 0):
        self._objects = objects
        self._seed = seed
        self._labels = np.array([objects.annotation(i)["labels"][:1].sum() for i in range(len(objects))])
        self._usable = np.array([len(objects.annotation(i)["labels"]) == 1 for i in range(len(objects))])
        if not self._usable.any():
            raise DataError("none of the class pictures can be read")
        self.class_names = objects.class_names
        self.num_classes = objects.num_classes

    def __len__(self) -> int:
        return len(self._objects)

    def annotation(self, index: int) -> dict[str, Any]:
        members, boxes, _ = self._layout(index)
        return {
            "image_id": f"scene {index} with {self._objects.annotation(index)['image_id']}",
            "size": (GRID * CELL, GRID * CELL),
            "boxes": boxes.astype(np.float32),
            "labels": self._labels[members].astype(np.int32),
            "difficult": np.zeros(len(members), bool),
        }

    def image(self, index: int) -> np.ndarray:
        members, boxes, rng = self._layout(index)
        coarse = rng.integers(0, 256, (4, 4, 3)) // 2 + rng.integers(0, 128, 3)
        scene = images.resize(coarse.astype(np.uint8), (GRID * CELL, GRID * CELL), "bicubic").copy()
        for member, (left, top, right, bottom) in zip(members, boxes, strict=True):
            picture = self._objects.image(int(member))
            scene[top:bottom, left:right] = images.resize(picture, (bottom - top, right - left))
        return scene

    def query(self, label: int) -> np.ndarray:
        return self._objects.query(label)

    def query_size(self, label: int) -> tuple[int, int]:
        return self._objects.query_size(label)

    def _layout(self, index: int):
        """Objects shown, their boxes int (n, 4), and the generator to go on with."""
        if not self._usable[index]:
            self._objects.image(index)  # says what is wrong with it
            raise ImageError(f"{self._objects.annotation(index)['image_id']}: the picture cannot be used")
        rng = np.random.default_rng([self._seed, index])
        count = int(rng.integers(GRID, GRID * GRID + 1))
        others = rng.choice(np.flatnonzero(self._usable), count - 1)
        members = np.concatenate([[index], others])
        cells = rng.permutation(GRID * GRID)[:count]
        boxes = []
        for member, cell in zip(members, cells, strict=True):
            side = rng.uniform(*OBJECT_SIDES)
            height, width = images.fit_to_area(self._objects.annotation(int(member))["size"], side)
            shrink = min((CELL - 4) / max(height, width), 1.0)
            height, width = max(int(height * shrink), 1), max(int(width * shrink), 1)
            top = cell // GRID * CELL + rng.integers(CELL - height + 1)
            left = cell % GRID * CELL + rng.integers(CELL - width + 1)
            boxes.append([left, top, left + width, top + height])
        return members, np.array(boxes, np.int64), rng


def _class_folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    folders = [
        folder for folder in sorted(root.iterdir()) if folder.is_dir() and not folder.name.startswith(".")
    ]
    return [f for f in folders if f.name.lower() not in _NOT_CLASSES and pictures_in(f)]


def _record(path: Path, label: int) -> Record:
    whole = np.array([[0.0, 0.0, 1.0, 1.0]])
    return Record(
        f"{path.parent.name}/{path.stem}",
        path,
        None,
        whole,
        np.array([label], np.int32),
        np.array([False]),
        True,
    )
