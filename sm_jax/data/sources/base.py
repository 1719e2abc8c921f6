"""What the readers of all formats produce (`Collection`), and the random-access source made from it.

A reader only lists what the files say. Unusable boxes (not finite, inverted, empty, outside the picture) stay
in the `Collection`, where `sm_jax.data.check` reports them, and are dropped when a source gives annotations.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sm_jax.data import images
from sm_jax.errors import ImageError

CACHE_BYTES = 256 << 20  # class pictures kept decoded, per process
MAX_PROBLEM_SHARE = 0.01  # of the entries may be unusable; they are left out


class Source(Protocol):
    """A data set with random access: picklable, NumPy only, read by many processes."""

    num_classes: int
    class_names: list[str]

    def __len__(self) -> int: ...

    def annotation(self, index: int) -> dict[str, Any]:
        """`image_id` str, `size` (h, w), `boxes` f32 (n, 4) pixels of the stored image, `labels` i32 (n,)
        class indices, `difficult` bool (n,). Never decodes a picture."""

    def image(self, index: int) -> np.ndarray:
        """uint8 (h, w, 3) RGB. Raises ImageError for a damaged file."""

    def query(self, label: int) -> np.ndarray:
        """The class picture, uint8 (h, w, 3) RGB. Raises ImageError for a damaged file."""


@dataclass(frozen=True)
class Record:
    """One annotated picture as its file describes it.

    Attributes:
      size: (height, width) by the annotation, None if it does not say.
      boxes: f64 (n, 4) xyxy as annotated, pixels or (`relative`) shares of the picture's width and height.
      listed: i32, the labels of which every object of the picture is annotated; None: of all classes.
    """

    image_id: str
    path: Path
    size: tuple[int, int] | None
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    relative: bool = False
    listed: np.ndarray | None = None

    def known_size(self) -> tuple[int, int]:
        """(height, width) in the frame of the boxes; (0, 0) if neither annotation nor picture tells."""
        if self.size is not None:
            return self.size
        try:
            return images.image_size(self.path)
        except ImageError:
            return (0, 0)

    def pixel_boxes(self, size: tuple[int, int]) -> np.ndarray:
        """Boxes in pixels, as annotated; f64 (n, 4)."""
        return self.boxes * np.array([size[1], size[0]] * 2, np.float64) if self.relative else self.boxes


@dataclass(frozen=True)
class ClassPicture:
    """A class picture: a file, or (`box`, xyxy pixels) a part of one; `size` as in `Record`."""

    path: Path
    box: tuple[int, int, int, int] | None = None
    size: tuple[int, int] | None = None

    def read(self) -> np.ndarray:
        image = read_annotated(self.path, self.size)
        if self.box is None:
            return image
        left, top, right, bottom = self.box
        return image[top:bottom, left:right].copy()

    def shape(self) -> tuple[int, int]:
        """(height, width) without decoding."""
        if self.box is None:
            return images.image_size(self.path)
        return self.box[3] - self.box[1], self.box[2] - self.box[0]


@dataclass
class Collection:
    """Everything a data set's files say, before a split is chosen.

    Attributes:
      format: what the reader recognised, in words.
      splits: records by the names the files use; the only key is "" if there is no division.
      class_pictures: given class pictures by class index; the others are cropped from training boxes.
      objects: each picture shows one whole object (a folder per class) and has no scene around it.
      seen: names of the classes that are "seen" where no seen.txt says so (`sources.classes`).
      refused: splits that cannot be used -> why.
      notes: what was decided on the person's behalf.
      problems: annotation entries that could not be used, one line each.
    """

    format: str
    root: Path
    class_names: list[str]
    splits: dict[str, list[Record]]
    class_pictures: dict[int, ClassPicture] = field(default_factory=dict)
    objects: bool = False
    seen: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_annotated(path: Path, size: tuple[int, int] | None) -> np.ndarray:
    """Decodes the picture in the frame of its annotation.

    EXIF orientation is applied unless the annotated size fits only the stored, unturned pixels: annotation
    tools differ in whether they honour it.

    Raises:
      ImageError: also if neither orientation has the annotated size.
    """
    image = images.read_image(path)
    if size is None or image.shape[:2] == size:
        return image
    if image.shape[1::-1] == size:
        stored = images.read_image(path, orient=False)
        if stored.shape[:2] == size:
            return stored
    raise ImageError(
        f"{path}: the annotation says {size[1]}x{size[0]} pixels, the picture has "
        f"{image.shape[1]}x{image.shape[0]}"
    )


def usable_boxes(boxes: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes clipped to the picture, f32 (n, 4), and which of them are usable, bool (n,).

    Usable: finite, at least one pixel wide and high inside the picture.
    """
    limit = np.array([size[1], size[0]] * 2, np.float64)
    finite = np.isfinite(boxes).all(axis=-1)
    clipped = np.clip(np.where(finite[:, None], boxes, 0.0), 0.0, limit)
    usable = finite & (clipped[:, 2] - clipped[:, 0] >= 1) & (clipped[:, 3] - clipped[:, 1] >= 1)
    return clipped.astype(np.float32), usable


class RecordSource:
    """`Source` over records of one split.

    Args:
      records: the pictures; labels index `class_names`.
      class_names: names by class index.
      pictures: class pictures by class index.
    """

    def __init__(self, records: list[Record], class_names: list[str], pictures: list[ClassPicture]):
        self.class_names = class_names
        self.num_classes = len(class_names)
        self._records = records
        self._pictures = pictures
        self._cache = PictureCache(CACHE_BYTES)

    def __len__(self) -> int:
        return len(self._records)

    def annotation(self, index: int) -> dict[str, Any]:
        record = self._records[index]
        size = record.known_size()
        boxes, usable = usable_boxes(record.pixel_boxes(size), size)
        return {
            "image_id": record.image_id,
            "size": size,
            "boxes": boxes[usable],
            "labels": record.labels[usable],
            "difficult": record.difficult[usable],
        }

    def image(self, index: int) -> np.ndarray:
        record = self._records[index]
        return read_annotated(record.path, record.size)

    def image_bytes(self, index: int) -> bytes | None:
        """The picture's file if decoding it gives `image(index)`; None if the boxes ignore its EXIF turn."""
        record = self._records[index]
        if record.size not in (None, images.image_size(record.path)):
            return None
        return record.path.read_bytes()

    def listed(self, index: int) -> np.ndarray | None:
        """Labels of which every object in the picture is annotated, i32; None: of all classes. A class that
        is neither listed nor annotated may be in the picture all the same."""
        return self._records[index].listed

    def query(self, label: int) -> np.ndarray:
        return self._cache.get(label, self._pictures[label].read)

    def query_size(self, label: int) -> tuple[int, int]:
        """(height, width) of the class picture without decoding it; raises ImageError for a damaged file."""
        return self._pictures[label].shape()


class PictureCache:
    """Decoded pictures up to a number of bytes, least recently used out first; empty after pickling."""

    def __init__(self, limit: int):
        self._limit = limit
        self._lock = threading.Lock()
        self._items: OrderedDict[Any, np.ndarray] = OrderedDict()
        self._bytes = 0

    def __reduce__(self):
        return PictureCache, (self._limit,)

    def get(self, key, read) -> np.ndarray:
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
                return self._items[key]
        picture = read()
        picture.flags.writeable = False  # shared between callers
        with self._lock:
            if key not in self._items:
                self._items[key] = picture
                self._bytes += picture.nbytes
            while self._bytes > self._limit and len(self._items) > 1:
                self._bytes -= self._items.popitem(last=False)[1].nbytes
        return picture
