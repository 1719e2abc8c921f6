"""OS2D's baseline "sliding window, target aspect ratio": the class map as it is, correlated convolutionally.

The class picture's feature map is neither resized to 15x15 nor aligned. It is laid on the image's map with
its middle on each cell in turn; the score is the mean correlation of the cells that lie on each other, those
that stick out of the image counting as 0. The box is the class picture itself in level pixels, so every box
has its aspect ratio. Source: OS2D (ECCV 2020), sec. 6; the published code does not hold it.

Class maps have many shapes. A template is therefore a list of cells of fixed length, zero after the last real
one, and where the cells lie is data (`ops.correlation.sum_shifted`): one program serves queries of any shape.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sm_jax import points
from sm_jax.backbones.common import hide, valid_cells
from sm_jax.errors import ImageError
from sm_jax.ops import affine
from sm_jax.ops.correlation import l2_normalize, sum_shifted
from sm_jax.systems.os2d import model
from sm_jax.systems.os2d.head import FEATURE_EPSILON, STRIDE, TEMPLATE, HeadOutput, correlation, output

Array = jax.Array

LONGEST = 25
"""Aspect ratio that a template surely holds; queries a little longer may still fit."""
CELL_STEP = 32
"""The length of templates is a multiple of it."""


def capacity(query_size: int) -> int:
    """Cells of a template: enough for pictures of the area `query_size`**2 up to `LONGEST` to 1."""
    side, root = query_size / STRIDE, math.sqrt(LONGEST)
    most = (side * root + 1) * (side / root + 1)
    return CELL_STEP * math.ceil(most / CELL_STEP)


def encoded_sizes(shapes: Sequence[tuple[float, float]], *, query_size: int) -> np.ndarray:
    """(c, 2) float32 (height, width) in pixels of the class pictures as they were encoded.

    Args:
      shapes: (height, width) of each before it was brought to the area `query_size`**2.

    Raises:
      ImageError: a picture too long and thin for a template.
    """
    from sm_jax.data.images import fit_to_area  # the model itself needs no data libraries

    sizes = np.array([fit_to_area(shape, query_size) for shape in shapes], np.float32).reshape(-1, 2)
    cells = np.prod(np.ceil(sizes / STRIDE), axis=1)
    if np.any(cells > capacity(query_size)):
        height, width = shapes[int(np.argmax(cells))]
        raise ImageError(
            f"a class picture of {width:g}x{height:g} pixels is too long and thin for a window of its shape: "
            f"up to {LONGEST}:1 is sure to fit"
        )
    return sizes


def _cells(sizes: Array) -> Array:
    """(c, 2) int32 rows and columns of the feature maps of pictures of `sizes` pixels."""
    return -(-sizes.astype(jnp.int32) // STRIDE)


def encode(
    config: model.ModelConfig, variables: model.Variables, requests: dict[str, Array]
) -> dict[str, Array]:
    """Class pictures to templates, once per request.

    Args:
      requests: `image` (r, h, w, 3) normalised, zero padded; `size` (r, 2) int32.

    Returns:
      `template` (r, k, d) float32: the normalised cells of the class map, row by row, then zeros; k is
      `capacity`. `layout` (r, 2) float32: the size in pixels, which `head` needs.
    """
    features, cells = model.extract(config, variables, requests["image"], requests["size"])
    index = jnp.arange(capacity(config.query_size))[None]
    row, column = index // cells[:, 1:], index % cells[:, 1:]
    limit = features.shape[1:3]
    taken = jax.vmap(lambda one, y, x: one[jnp.minimum(y, limit[0] - 1), jnp.minimum(x, limit[1] - 1)])(
        features.astype(jnp.float32), row, column
    )
    real = index < jnp.prod(cells, axis=1, keepdims=True)
    template = jnp.where(real[..., None], l2_normalize(taken, epsilon=FEATURE_EPSILON), 0.0)
    return {"template": template, "layout": requests["size"].astype(jnp.float32)}


def head(
    features: Array, features_size: Array | None, template: Array, sizes: Array, *, dtype=jnp.float32
) -> HeadOutput:
    """Every class map at every cell of every image.

    Args:
      features: (b, h, w, d) of `model.extract`.
      features_size: (b, 2) int32 valid size in cells; None: all.
      template: (c, k, d) of `encode`.
      sizes: (c, 2) (height, width) in pixels of the encoded class pictures.
      dtype: type of the correlation's factors; sums are float32.

    Returns:
      `HeadOutput`; boxes reach out of the image where the window does, and are not clipped yet.
    """
    images, height, width, _ = features.shape
    inside = None if features_size is None else valid_cells(features_size, (height, width))
    corr = correlation(hide(features, inside), template, dtype=dtype).astype(jnp.float32)
    shifts = jax.vmap(lambda cells: _shifts(cells, corr.shape[2]))(_cells(sizes))
    total = jax.vmap(jax.vmap(sum_shifted), in_axes=(0, None))(corr, shifts)
    scores = total / jnp.prod(_cells(sizes), axis=1)[None, :, None, None]
    if inside is not None:
        scores = jnp.where(inside[:, None, ..., 0], scores, 0.0)
    transform = affine.params_to_transform(_placed(sizes.astype(jnp.float32)), inverse=False)
    shape = (images, len(template), height, width, 2, 3)
    return output(scores, scores, jnp.broadcast_to(transform[None, :, None, None], shape))


def _shifts(cells: Array, length: int) -> Array:
    """(k, 2) (dx, dy) from a cell to each cell of the window of `cells` (2,) rows and columns around it."""
    index, first = jnp.arange(length), points.window_to_pixels(0, cells, stride=1)
    row, column = index // cells[1], index % cells[1]
    return jnp.stack([column + first[1], row + first[0]], axis=-1)


def _placed(sizes: Array) -> Array:
    """(c, 4) parameters (sx, tx, sy, ty) of windows of `sizes` (c, 2) pixels, in the frame of their cell."""
    middle = points.window_to_pixels(0, _cells(sizes), stride=STRIDE) + sizes / 2
    shift, scale = points.pixels_to_local(middle, 0), sizes / (TEMPLATE * STRIDE)
    return jnp.stack([scale[:, 1], shift[:, 1], scale[:, 0], shift[:, 0]], axis=-1)
