"""Measured instead of demanded from a person: the scale of the objects and the canvas of class pictures."""

import math
from typing import NamedTuple

import numpy as np

from sm_jax.data import instances
from sm_jax.data.images import fit_to_area
from sm_jax.data.sources.base import Source
from sm_jax.errors import DataError, ImageError

MAX_QUERY_SIDE = 480  # aspect ratios up to 4:1 keep the full area of 240**2
CANVAS_STEP = 32


class Measured(NamedTuple):
    """Object sizes of a source.

    Attributes:
      scale: factor that brings the median object to the wanted size.
      object_size: median over the boxes of the square root of the area, pixels of the stored images.
      num_boxes: boxes looked at (difficult ones do not count).
    """

    scale: float
    object_size: float
    num_boxes: int


def measure(source: Source, *, object_size: float = 240.0, max_images: int = 256) -> Measured:
    """Object size of `source`, from the annotations of at most `max_images` evenly spaced pictures.

    Raises:
      DataError: there is no usable box.
    """
    sizes = []
    for index in _spaced(len(source), max_images):
        try:
            entry = source.annotation(index)
        except ImageError:  # a scene around a damaged picture; reading it will name it
            continue
        boxes = entry["boxes"][~entry["difficult"]]
        sizes.append(np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])))
    values = np.concatenate(sizes) if sizes else np.zeros(0)
    if not len(values):
        raise DataError("the object size cannot be measured: no picture has a box that is not difficult")
    median = float(np.median(values))
    return Measured(object_size / median, median, len(values))


def query_canvas(
    source: Source,
    *,
    side: int = 240,
    max_side: int = MAX_QUERY_SIDE,
    max_classes: int = 2048,
    boxes: bool = False,
) -> tuple[int, int]:
    """(height, width) that holds every class picture at area `side`**2, in steps of `CANVAS_STEP`.

    With `boxes` every box that is not difficult serves as a class picture too.

    One canvas for the whole run means one compiled program. Neither side exceeds `max_side`: class pictures
    of more extreme aspect are shrunk in proportion (`transforms.fit_query`). At most `max_classes` evenly
    spaced classes are looked at; damaged class pictures are passed over.
    """
    extent = np.array([1, 1])
    for label in _spaced(source.num_classes, max_classes):
        try:
            extent = np.maximum(extent, fit_to_area(_query_size(source, label), side))
        except ImageError:
            continue
    if boxes:
        found = instances.find(source, min_side=1)
        for width, height in found.boxes[~found.difficult, 2:] - found.boxes[~found.difficult, :2]:
            extent = np.maximum(extent, fit_to_area((height, width), side))
    steps = [math.ceil(min(value, max_side) / CANVAS_STEP) * CANVAS_STEP for value in extent.tolist()]
    return steps[0], steps[1]


def _query_size(source: Source, label: int) -> tuple[int, int]:
    if hasattr(source, "query_size"):
        return source.query_size(label)
    return source.query(label).shape[:2]


def _spaced(count: int, limit: int) -> list[int]:
    if count <= limit:
        return list(range(count))
    return np.linspace(0, count - 1, limit).round().astype(int).tolist()
