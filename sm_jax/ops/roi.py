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


def repeat_border(features: Array, cells: Array) -> Array:
    """The last valid row and column repeated into the padding: `roi_align` then reads the same as without it.

    Args:
      features: "h w c".
      cells: i32 "2", valid (rows, columns).
    """
    for axis in (0, 1):
        index = jnp.minimum(jnp.arange(features.shape[axis]), cells[axis] - 1)
        features = jnp.take(features, index, axis=axis)
    return features


def roi_max(features: Array, boxes: Array, *, stride: int, output_size: tuple[int, int] = (2, 2)) -> Array:
    """Maximum over the cells of every bin, all corners rounded to cells (Fast R-CNN, ICCV 2015, sec. 2.1).

    Rounding as published and in torchvision: the box covers the cells from `round(x1 / stride)` to
    `round(x2 / stride)`, both included (at least one); bin k of b covers those from `floor(k * size / b)` to
    `ceil((k + 1) * size / b)` (excluded). A bin without cells inside the map, or of a box that is not finite,
    is 0. Neighbouring bins may share cells, and equal cells share the gradient. For MatConvNet's reading of
    the corners see `roi_max_matconvnet`.

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


def roi_max_matconvnet(
    features: Array, boxes: Array, *, stride: int = 16, output_size: tuple[int, int] = (7, 7)
) -> Array:
    """`roi_max` in MatConvNet's convention: the last pixel that belongs to the box is rounded, not its end.

    The box covers the cells from `round(x1 / stride)` to `round((x2 - 1) / stride)`, both included, halves
    away from 0; for 1-based inclusive corners u that is `round((u - 1) / stride)` of both, as published
    (SCNet). The result is that of `roi_max` for `boxes - (0, 0, 1, 1)`, many times faster on CPU for many
    boxes: a bin is the maximum of 2 x 2 overlapping windows whose sides are powers of 2, and those are made
    for the whole map once. Boxes get no gradient; equal cells share that of the features.

    Args:
      features: "h w c".
      boxes: "n 4" xyxy pixels, half-open like everywhere.
      stride: pixels per cell.
      output_size: bins per box, (rows, columns).

    Returns:
      "n i j c", type of the features.
    """
    height, width, channels = features.shape
    boxes = jax.lax.stop_gradient(boxes - jnp.array([0, 0, 1, 1], boxes.dtype)[None, :]) / stride
    rows = _bin_windows(boxes[:, 1], boxes[:, 3], height, output_size[0])
    columns = _bin_windows(boxes[:, 0], boxes[:, 2], width, output_size[1])
    table = jnp.stack([_powers(level, 1) for level in _powers(features, 0)])
    table = table.reshape(-1, channels)
    levels = width.bit_length()

    def pool(box: tuple) -> Array:
        (row_level, tops, some_rows), (column_level, lefts, some_columns) = box
        best = None
        for top in tops:
            for left in lefts:
                place = (row_level[:, None] * levels + column_level[None, :]) * height + top[:, None]
                part = table[place * width + left[None, :]]
                best = part if best is None else jnp.maximum(best, part)
        some = some_rows[:, None] & some_columns[None, :]
        return jnp.where(some[..., None], best, jnp.zeros((), features.dtype))

    return jax.lax.map(pool, (rows, columns))


def _powers(x: Array, axis: int) -> Array:
    """Maxima of windows of 1, 2, 4, ... cells that start at each cell along `axis`, clipped to the map.

    A new first axis has one level per power of 2 up to the length.
    """
    length = x.shape[axis]
    levels = [x]
    for level in range(length.bit_length() - 1):
        shift = min(2**level, length)
        moved = jax.lax.slice_in_dim(levels[-1], shift, length, axis=axis)
        rest = jax.lax.slice_in_dim(levels[-1], length - shift, length, axis=axis)
        levels.append(jnp.maximum(levels[-1], jnp.concatenate([moved, rest], axis=axis)))
    return jnp.stack(levels)


def _bin_windows(low: Array, high: Array, cells: int, bins: int) -> tuple:
    """Two windows that cover every bin: ends "n" in cells -> (level, two starts, some), each "n bins"."""
    start, end, real = _bin_ends(low, high, bins)
    start, end = jnp.clip(start, 0, cells), jnp.clip(end, 0, cells)
    size = jnp.maximum(end - start, 1)
    level = jnp.sum(size[..., None] >= 2 ** jnp.arange(1, cells.bit_length())[None, None, :], axis=-1)
    first = jnp.minimum(start, cells - 1)
    second = jnp.clip(end - 2**level, 0, cells - 1)
    return level, (first, second), (end > start) & real[:, None]


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
    start, end, real = _bin_ends(low, high, bins)
    cell = jnp.arange(cells)[None, None, :]
    return (cell >= start[..., None]) & (cell < end[..., None]) & real[:, None, None]


def _bin_ends(low: Array, high: Array, bins: int) -> tuple[Array, Array, Array]:
    """First cell and the one after the last of every bin "n bins"; and whether both ends are numbers "n"."""
    real = jnp.isfinite(low) & jnp.isfinite(high)
    low, high = _round_half_away(low), _round_half_away(high)
    size = jnp.maximum(high - low + 1, 1)[:, None]
    number = jnp.arange(bins)[None, :]
    start = low[:, None] + number * size // bins
    return start, low[:, None] + -(-(number + 1) * size // bins), real


def _round_half_away(x: Array) -> Array:
    """C's `round`, halves away from 0, as int32 (exact divisions follow); 0 for what is not a number."""
    far = 2.0**20  # of any map; bins of so large a box still fit the type
    x = jnp.clip(jnp.nan_to_num(x, nan=0.0, posinf=far, neginf=-far), -far, far)
    return jnp.trunc(x + jnp.where(x < 0, -0.5, 0.5)).astype(jnp.int32)
