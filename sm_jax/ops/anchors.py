"""Anchors: the boxes of fixed shape that a detector starts from, some around every cell of a feature map."""

import math
from collections.abc import Sequence

import numpy as np

from sm_jax import boxes as box_lib


def grid_anchors(
    cells: tuple[int, int],
    *,
    stride: int,
    sizes: Sequence[float] = (64.0,),
    aspects: Sequence[float] = (1.0,),
) -> np.ndarray:
    """Anchors of every size and aspect around the centre of every cell.

    Args:
      cells: (height, width) of the feature map.
      stride: pixels per cell; the centre of cell (row i, column j) is (stride (j + 1/2), stride (i + 1/2)).
      sizes: side of the square of the same area, in pixels.
      aspects: height / width; the area stays `size ** 2`.

    Returns:
      f32 "h*w*a 4" xyxy, a = sizes x aspects, ordered by row, column, size, aspect; not clipped to the image.
      NumPy: the anchors of a shape are constants (`jnp.asarray` them before indexing with a traced array).
    """
    if stride <= 0 or min(cells) < 0:
        raise ValueError(f"stride is {stride} and cells are {cells}, expected positive numbers")
    if not sizes or not aspects or min(*sizes, *aspects) <= 0:
        raise ValueError(f"sizes are {sizes} and aspects {aspects}, expected positive numbers")
    extents = [(size * math.sqrt(aspect), size / math.sqrt(aspect)) for size in sizes for aspect in aspects]
    grids = [box_lib.anchor_grid(cells, stride=stride, box_size=extent) for extent in extents]
    return np.stack(grids, axis=1).reshape(-1, 4)
