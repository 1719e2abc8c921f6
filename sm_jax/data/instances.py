"""Request pictures cut from annotated images: every object of a split as a possible request.

The list is made from annotations alone, in one pass, and holds plain arrays: half a million boxes take a few
megabytes, and it travels to worker processes with the batch builder. Pictures are decoded by `crop` only.
"""

from typing import NamedTuple

import numpy as np

from sm_jax.data.sources.base import Source
from sm_jax.errors import ImageError

MIN_SIDE = 32.0  # pixels; smaller crops show nothing to compare with (SSM specification, section 4)
CLASS_PICTURE = -1  # `Instance.index` of a class picture


class Instance(NamedTuple):
    """One request picture.

    Attributes:
      index: of the image in the source, or `CLASS_PICTURE`.
      box_index: row of the annotation's boxes; -1 for a class picture.
      label: class index.
      box: f32 (4,) xyxy, pixels of the stored image.
      image_id: of the image; the class name for a class picture.
    """

    index: int
    box_index: int
    label: int
    box: np.ndarray
    image_id: str


class Instances:
    """All boxes of a source, and which of them serve as requests; make it with `find`.

    Attributes (n boxes, ordered by image, m images):
      image, box_index, labels: i32 (n,), `index`, `box_index` and `label` of an `Instance`.
      boxes: f32 (n, 4).
      difficult: bool (n,).
      request: bool (n,): not difficult, both sides at least `min_side`.
      starts: i64 (m + 1,): the boxes of image i are the rows `starts[i]:starts[i + 1]`.
      sizes: i32 (m, 2), (height, width).
      image_ids: m strings.
    """

    def __init__(self, notes: list[dict], num_classes: int, min_side: float):
        counts = [len(note["labels"]) for note in notes]
        self.num_classes = num_classes
        self.starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
        self.sizes = np.array([note["size"] for note in notes], np.int32).reshape(-1, 2)
        self.image_ids = [note["image_id"] for note in notes]
        self.image = np.repeat(np.arange(len(notes), dtype=np.int32), counts)
        self.box_index = (np.arange(self.starts[-1]) - self.starts[self.image]).astype(np.int32)
        self.boxes = _joined(notes, "boxes", np.float32).reshape(-1, 4)
        self.labels = _joined(notes, "labels", np.int32)
        self.difficult = _joined(notes, "difficult", bool)
        sides = (self.boxes[:, 2:] - self.boxes[:, :2]).min(axis=1, initial=np.inf)
        self.request = ~self.difficult & (sides >= min_side)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> Instance:
        """Box `row` as an instance."""
        image = int(self.image[row])
        place = int(self.box_index[row])
        return Instance(image, place, int(self.labels[row]), self.boxes[row], self.image_ids[image])

    def rows(self, image: int) -> np.ndarray:
        """Rows of the boxes of an image."""
        return np.arange(self.starts[image], self.starts[image + 1])

    def rows_by_class(self, where: np.ndarray) -> list[np.ndarray]:
        """Per class the rows among `where` (bool (n,)), ascending."""
        rows = np.flatnonzero(where)
        rows = rows[np.argsort(self.labels[rows], kind="stable")]
        ends = np.searchsorted(self.labels[rows], np.arange(self.num_classes + 1))
        return [rows[ends[label] : ends[label + 1]] for label in range(self.num_classes)]

    def requests(self, label: int) -> list[Instance]:
        """The instances of a class that serve as requests, in the order of the source; perhaps none."""
        return [self[row] for row in np.flatnonzero(self.request & (self.labels == label))]


def find(source: Source, *, min_side: float = MIN_SIDE) -> Instances:
    """Every box of `source`, never decoding a picture.

    Args:
      min_side: pixels that both sides of a request must have.
    """
    notes = []
    for index in range(len(source)):
        try:
            notes.append(source.annotation(index))
        except ImageError:  # a scene around a damaged picture: it is named when the picture is read
            notes.append({"image_id": str(index), "size": (0, 0), "boxes": [], "labels": [], "difficult": []})
    return Instances(notes, source.num_classes, min_side)


def class_picture(source: Source, label: int) -> Instance:
    """The class picture of `label` as an instance; its box is the whole picture if its size is known without
    decoding, else (0, 0, 0, 0). Raises ImageError for a damaged file."""
    height, width = source.query_size(label) if hasattr(source, "query_size") else (0, 0)
    box = np.array([0, 0, width, height], np.float32)
    return Instance(CLASS_PICTURE, -1, label, box, source.class_names[label])


def class_requests(
    source: Source, found: Instances, label: int, *, min_side: float = MIN_SIDE
) -> list[Instance]:
    """The requests of a class: its instances, else its class picture, else (too small, damaged) none."""
    requests = found.requests(label)
    return requests or ([class_picture(source, label)] if picture_serves(source, label, min_side) else [])


def picture_serves(source: Source, label: int, min_side: float = MIN_SIDE) -> bool:
    """Whether the class picture can be read and has both sides at least `min_side` pixels."""
    try:
        size = source.query_size(label) if hasattr(source, "query_size") else source.query(label).shape[:2]
    except ImageError:
        return False
    return min(size) >= min_side


def crop(source: Source, instance: Instance) -> np.ndarray:
    """The picture of an instance, uint8 (h, w, 3) RGB: the pixels its box touches, or the class picture.

    Raises:
      ImageError: the picture cannot be read.
    """
    if instance.index == CLASS_PICTURE:
        return source.query(instance.label)
    return cut(source.image(instance.index), instance.box)


def cut(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """A copy of the pixels of `image` that `box` (xyxy, f (4,)) touches; at least one."""
    height, width = image.shape[:2]
    left, top = np.clip(np.floor(box[:2]).astype(int), 0, [width - 1, height - 1])
    right, bottom = np.clip(np.ceil(box[2:]).astype(int), [left + 1, top + 1], [width, height])
    return image[top:bottom, left:right].copy()


def _joined(notes: list[dict], key: str, dtype: type) -> np.ndarray:
    parts = [np.asarray(note[key], dtype) for note in notes if len(note[key])]
    return np.concatenate(parts) if parts else np.zeros(0, dtype)
