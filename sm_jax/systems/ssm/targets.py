"""What the matcher should say of every cell: coverage, offsets of the box's corners, and normalisers.

Boxes are xyxy in pixels of the image, cells 16 x 16 pixels. Source: NVIDIA's DetectNet coverage generator,
and SSM eq. 1 to 3 (specification, sec. 2).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sm_jax import boxes as box_ops
from sm_jax.systems.ssm.model import STRIDE

Array = jax.Array

MIN_COVERAGE = 20.0
"""Pixels: a side of the covered rectangle is at least so long, or as long as the box."""
TOUCH = 1e-7
"""A cell is covered where more than this share of its area is."""


class Targets(NamedTuple):
    """Of every cell; 0 where no box covers it.

    Attributes:
      coverage: "h w", 1 where a box covers the cell.
      offsets: "h w 4", corners x1 y1 x2 y2 of the clipped box minus the cell's top left corner, pixels.
      inverse_size: "h w 2", 1 / width and 1 / height of the clipped box.
      obj_norm: "h w", the area of a cell / the area of the covered rectangle.
      k_norm: "h w", 1 / sqrt(width * height) of the clipped box.
      share: "h w", 1 / the number of cells that the box covers, also those that a later box takes over.
    """

    coverage: Array
    offsets: Array
    inverse_size: Array
    obj_norm: Array
    k_norm: Array
    share: Array


def corners(cells: tuple[int, int]) -> np.ndarray:
    """f32 "h w 4": the top left corner of every cell, twice (x, y, x, y), in pixels."""
    y, x = np.mgrid[: cells[0], : cells[1]].astype(np.float32) * STRIDE
    return np.stack([x, y, x, y], axis=-1)


def small_last(boxes: Array, where: Array, size: tuple[int, int]) -> tuple[Array, Array]:
    """Boxes "n 4" and their mask by descending visible area: of two over a cell the smaller is the later."""
    order = jnp.argsort(-box_ops.area(box_ops.clip(boxes, size)), stable=True)
    return boxes[order], where[order]


def coverage_targets(
    boxes: Array,
    *,
    cells: tuple[int, int],
    where: Array | None = None,
    scale: float = 1.0,
    min_coverage: float = MIN_COVERAGE,
    small_wins: bool = False,
) -> Targets:
    """The targets of one image.

    Args:
      boxes: f32 "n 4", of the requested class; empty ones, and those outside the image, cover nothing.
      cells: (rows, columns) of the feature map; the image is 16 times as large.
      where: bool "n", the real boxes.
      scale: sides of the covered rectangle in parts of the box's: 1 (SSM) or .4 (DetectNet).
      min_coverage: pixels that the rectangle's sides have at least, if the box has them.
      small_wins: a cell under several boxes goes to the smallest; else to the last.

    Returns:
      `Targets`, float32.
    """
    size = (cells[0] * STRIDE, cells[1] * STRIDE)
    where = jnp.ones(boxes.shape[0], bool) if where is None else where
    if small_wins:
        boxes, where = small_last(boxes, where, size)
    boxes = box_ops.clip(boxes, size)
    sides = boxes[:, 2:] - boxes[:, :2]
    real = where & box_ops.nonempty(boxes)
    half = jnp.maximum(sides * scale, jnp.minimum(sides, min_coverage)) / 2
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    rectangle = jnp.concatenate([centre - half, centre + half], axis=-1)

    def along(axis, count):  # the common length of the rectangle and each row or column of cells: "n count"
        start = STRIDE * jnp.arange(count, dtype=jnp.float32)[None]
        low, high = rectangle[:, axis, None], rectangle[:, axis + 2, None]
        return jnp.maximum(jnp.minimum(high, start + STRIDE) - jnp.maximum(low, start), 0)

    common = along(1, cells[0])[:, :, None] * along(0, cells[1])[:, None, :]
    covers = real[:, None, None] & (common > TOUCH * STRIDE**2)
    # The last box that covers a cell; 0 without any, which `coverage` hides.
    owner = jnp.max(jnp.where(covers, jnp.arange(boxes.shape[0])[:, None, None], 0), axis=0, initial=0)
    covered = jnp.any(covers, axis=0)

    def per_cell(values):
        values = values[owner] if boxes.shape[0] else jnp.zeros((*cells, *values.shape[1:]))
        return jnp.where(covered.reshape(*cells, *[1] * (values.ndim - 2)), values, 0.0)

    inverse = 1 / jnp.where(real[:, None], sides, 1.0)
    area = jnp.where(real, jnp.prod(2 * half, axis=-1), 1.0)
    corner = jnp.where(covered[..., None], corners(cells), 0.0)
    return Targets(
        coverage=covered.astype(jnp.float32),
        offsets=per_cell(boxes) - corner,
        inverse_size=per_cell(inverse),
        obj_norm=per_cell(STRIDE**2 / area),
        k_norm=per_cell(jnp.sqrt(jnp.prod(inverse, axis=-1))),
        share=per_cell(1 / jnp.maximum(jnp.sum(covers, axis=(1, 2)), 1)),
    )


def coverage_targets_reference(
    boxes: np.ndarray, *, cells: tuple[int, int], scale: float = 1.0, min_coverage: float = MIN_COVERAGE
) -> Targets:
    """The definition, box by box and cell by cell, in float64 NumPy: the reference of `coverage_targets`."""
    height, width = cells
    shapes = {"offsets": (height, width, 4), "inverse_size": (height, width, 2)}
    result = Targets(*(np.zeros(shapes.get(name, cells)) for name in Targets._fields))
    for x1, y1, x2, y2 in np.asarray(boxes, np.float64):
        x1, x2 = np.clip([x1, x2], 0, width * STRIDE)
        y1, y2 = np.clip([y1, y2], 0, height * STRIDE)
        w, h = x2 - x1, y2 - y1
        if w <= 0 or h <= 0:
            continue
        half_w, half_h = (max(side * scale, min(side, min_coverage)) / 2 for side in (w, h))
        left, right = (x1 + x2) / 2 - half_w, (x1 + x2) / 2 + half_w
        top, bottom = (y1 + y2) / 2 - half_h, (y1 + y2) / 2 + half_h
        own = []
        for gy in range(height):
            for gx in range(width):
                x, y = gx * STRIDE, gy * STRIDE
                common = max(min(right, x + STRIDE) - max(left, x), 0)
                common *= max(min(bottom, y + STRIDE) - max(top, y), 0)
                if common > TOUCH * STRIDE**2:
                    own.append((gy, gx))
                    result.coverage[gy, gx] = 1
                    result.offsets[gy, gx] = x1 - x, y1 - y, x2 - x, y2 - y
                    result.inverse_size[gy, gx] = 1 / w, 1 / h
                    result.obj_norm[gy, gx] = STRIDE**2 / (4 * half_w * half_h)
                    result.k_norm[gy, gx] = 1 / np.sqrt(w * h)
        for cell in own:
            result.share[cell] = 1 / len(own)
    return result
