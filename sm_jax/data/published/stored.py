"""Pictures as their files store them: the original reads published sets without the EXIF orientation, and
their boxes are meant so."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sm_jax.data import images
from sm_jax.data.sources.base import ClassPicture, Record, RecordSource
from sm_jax.errors import DataError


@dataclass(frozen=True)
class StoredPicture(ClassPicture):
    """`ClassPicture` without the EXIF orientation."""

    def read(self) -> np.ndarray:
        image = images.read_image(self.path, orient=False)
        if self.box is None:
            return image
        left, top, right, bottom = self.box
        return image[top:bottom, left:right].copy()

    def shape(self) -> tuple[int, int]:
        if self.box is None:
            return images.image_size(self.path, orient=False)
        return self.box[3] - self.box[1], self.box[2] - self.box[0]


class StoredSource(RecordSource):
    """`RecordSource` without the EXIF orientation; the records' sizes are those of the stored pixels."""

    def image(self, index: int) -> np.ndarray:
        record = self._records[index]
        image = images.read_image(record.path, orient=False)
        if image.shape[:2] != record.size:
            raise DataError(
                f"{record.path}: the annotation says {record.size[1]}x{record.size[0]} pixels, the picture "
                f"has {image.shape[1]}x{image.shape[0]}"
            )
        return image

    def image_bytes(self, index: int) -> bytes | None:
        content = self._records[index].path.read_bytes()
        return None if images.turned(content) else content  # whoever reads it back would turn it


def stored_source(records: list[Record], class_names: list[str], pictures: dict[int, ClassPicture]):
    """`StoredSource` of the classes that the records show, in their order; labels are counted anew.

    Args:
      records: labels index `class_names`.
      pictures: one for each class that is shown.

    Raises:
      DataError: no records, or none with a box.
    """
    present = sorted({int(label) for record in records for label in record.labels})
    if not present:
        raise DataError("nothing to build: no picture has a box")
    index = np.full(len(class_names), -1, np.int32)
    index[present] = np.arange(len(present), dtype=np.int32)
    relabelled = []
    for record in records:
        listed = None if record.listed is None else index[record.listed]
        size = record.size or images.image_size(record.path, orient=False)
        changes = {"labels": index[record.labels], "size": size}
        changes["listed"] = None if listed is None else listed[listed >= 0]
        relabelled.append(Record(**{**vars(record), **changes}))
    names = [class_names[label] for label in present]
    return StoredSource(relabelled, names, [pictures[label] for label in present])


def crop(path: Path, box: np.ndarray, what: str) -> StoredPicture:
    """The part `box` (xyxy pixels, rounded) of a picture, cut at its border; DataError if it is empty."""
    height, width = images.image_size(path, orient=False)
    corners = np.asarray(box, np.float64).reshape(-1)
    if corners.shape != (4,) or not np.isfinite(corners).all():
        raise DataError(f"{what}: its box is not four numbers")
    left, top, right, bottom = (
        np.clip(corners.round(), 0, [width, height, width, height]).astype(int).tolist()
    )
    if left >= right or top >= bottom:
        raise DataError(f"{what}: its box {corners.tolist()} is empty in {path} ({width}x{height} pixels)")
    return StoredPicture(path, (left, top, right, bottom))
