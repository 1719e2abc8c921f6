"""Request pictures cut from annotated images: every object of a split as a possible request.

The list is made from annotations alone, in one pass, and holds plain arrays: half a million boxes take a few
megabytes, and it travels to worker processes with the batch builder. No picture is decoded.
"""

from typing import NamedTuple

import numpy as np

from sm_jax.data.sources.base import Source
from sm_jax.errors import ImageError

MIN_SIDE = 32.0  # pixels; smaller crops show nothing to compare with (SSM specification, section 4)


class Instance(NamedTuple):
    """One request picture.

    Attributes:
      index: of the image in the source.
      box_index: row of the annotation's boxes.
      label: class index.
      box: f32 (4,) xyxy, pixels of the stored image.
      image_id: of the image.
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


def picture_serves(source: Source, label: int, min_side: float = MIN_SIDE) -> bool:
    """Whether the class picture can be read and has both sides at least `min_side` pixels."""
    try:
        size = source.query_size(label) if hasattr(source, "query_size") else source.query(label).shape[:2]
    except ImageError:
        return False
    return min(size) >= min_side


def cut(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """A copy of the pixels of `image` that `box` (xyxy, f (4,)) touches; at least one."""
    height, width = image.shape[:2]
    left, top = np.clip(np.floor(box[:2]).astype(int), 0, [width - 1, height - 1])
    right, bottom = np.clip(np.ceil(box[2:]).astype(int), [left + 1, top + 1], [width, height])
    return image[top:bottom, left:right].copy()


def _joined(notes: list[dict], key: str, dtype: type) -> np.ndarray:
    parts = [np.asarray(note[key], dtype) for note in notes if len(note[key])]
    return np.concatenate(parts) if parts else np.zeros(0, dtype)
