"""Features of boxes: a grid of cells read from one feature map for each box.

One image; `vmap` over images. Boxes are xyxy in pixels of the image, `stride` is the number of pixels per
cell. Boxes get no gradient.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def roi_align(
    features: Array, boxes: Array, *, stride: int, output_size: tuple[int, int] = (2, 2), samples: int = 2
) -> Array:
    """Mean of bilinear samples in every bin of every box (RoIAlign; Mask R-CNN, ICCV 2017, sec. 3).

    The centre of cell i lies at `stride * (i + 1/2)` ("aligned"): position x has index `x / stride - 1/2`.
    As in torchvision, a sample with an index below -1 or above the number of cells is 0, and any other beyond
    the outer centres takes the border cell. A box that is not finite gives 0.

    Every bin is a weighted mean of cells, so the result is one matrix product with the map, without a gather;
    on CPU this is several times faster than the two products of the separable form.

    Args:
      features: "h w c".
      boxes: "n 4".
      stride: pixels per cell.
      output_size: bins per box, (rows, columns).
      samples: samples per bin and axis.

    Returns:
      "n i j c", type of the features.
    """
    boxes = jax.lax.stop_gradient(boxes) / stride - 0.5
    rows = _bin_weights(boxes[:, 1], boxes[:, 3], features.shape[0], output_size[0], samples)
    columns = _bin_weights(boxes[:, 0], boxes[:, 2], features.shape[1], output_size[1], samples)
    weights = rows[:, :, None, :, None] * columns[:, None, :, None, :]
    weights = weights.reshape(*weights.shape[:3], features.shape[0] * features.shape[1]).astype(
        features.dtype
    )
    return weights @ features.reshape(-1, features.shape[-1])


def roi_max(features: Array, boxes: Array, *, stride: int, output_size: tuple[int, int] = (2, 2)) -> Array:
    """Maximum over the cells of every bin, all corners rounded to cells (Fast R-CNN, ICCV 2015, sec. 2.1).

    Rounding as published and in torchvision: the box covers the cells from `round(x1 / stride)` to
    `round(x2 / stride)`, both included (at least one); bin k of b covers those from `floor(k * size / b)` to
    `ceil((k + 1) * size / b)` (excluded). A bin without cells inside the map, or of a box that is not finite,
    is 0. Neighbouring bins may share cells, and equal cells share the gradient. (Pooling of inclusive
    corners, as in MatConvNet, is this of `boxes - (0, 0, 1, 1)`.)

    Args:
      features: "h w c".
      boxes: "n 4".
      stride: pixels per cell.
      output_size: bins per box, (rows, columns).

    Returns:
      "n i j c", type of the features.
    """
    boxes = jax.lax.stop_gradient(boxes) / stride
    rows = _bin_cells(boxes[:, 1], boxes[:, 3], features.shape[0], output_size[0])
    columns = _bin_cells(boxes[:, 0], boxes[:, 2], features.shape[1], output_size[1])
    lowest = jnp.array(-jnp.inf, features.dtype)

    @jax.checkpoint
    def pool(box: tuple[Array, Array]) -> Array:
        rows, columns = box
        best = jnp.max(jnp.where(rows[:, :, None, None], features[None], lowest), axis=1)
        return jnp.max(jnp.where(columns[None, :, :, None], best[:, None], lowest), axis=2)

    best = jax.lax.map(pool, (rows, columns))  # one box at a time: all of them would be gigabytes in training
    some = jnp.any(rows, axis=2)[:, :, None] & jnp.any(columns, axis=2)[:, None, :]
    return jnp.where(some[..., None], best, jnp.zeros((), features.dtype))


def _bin_weights(low: Array, high: Array, cells: int, bins: int, samples: int) -> Array:
    """Weight of every cell in the mean of every bin: ends "n" in cell indices -> "n bins cells"."""
    steps = (jnp.arange(bins * samples, dtype=jnp.float32) + 0.5) / (bins * samples)
    at = low[:, None] + (high - low)[:, None] * steps[None, :]
    inside = (at >= -1) & (at <= cells)
    at = jnp.clip(at, 0, cells - 1)
    hats = jnp.maximum(1 - jnp.abs(at[..., None] - jnp.arange(cells, dtype=jnp.float32)[None, None]), 0)
    hats = jnp.where(inside[..., None], hats, 0.0)
    return jnp.mean(hats.reshape(-1, bins, samples, cells), axis=2)


def _bin_cells(low: Array, high: Array, cells: int, bins: int) -> Array:
    """Which cells belong to every bin: ends "n" in cells -> bool "n bins cells"."""
    real = jnp.isfinite(low) & jnp.isfinite(high)
    low, high = _round_half_away(low), _round_half_away(high)
    size = jnp.maximum(high - low + 1, 1)[:, None]
    number = jnp.arange(bins)[None, :]
    start = low[:, None] + number * size // bins
    end = low[:, None] + -(-(number + 1) * size // bins)
    cell = jnp.arange(cells)[None, None, :]
    return (cell >= start[..., None]) & (cell < end[..., None]) & real[:, None, None]


def _round_half_away(x: Array) -> Array:
    """C's `round`, halves away from 0, as int32 (exact divisions follow); 0 for what is not a number."""
    far = 2.0**20  # of any map; bins of so large a box still fit the type
    x = jnp.clip(jnp.nan_to_num(x, nan=0.0, posinf=far, neginf=-far), -far, far)
    return jnp.trunc(x + jnp.where(x < 0, -0.5, 0.5)).astype(jnp.int32)
