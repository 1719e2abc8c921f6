"""Sampling a correlation along warped grids, and the pooled OS2D score.

`resample_correlation` and `pooled_scores_reference` are the readable form; `pooled_scores` is the one models
call: equal in value and gradient, without a grid, in almost no memory. Samples are clamped to the map (border
replication), never zero padded: zeros would change scores near the border by up to 0.5.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sm_jax import points
from sm_jax.errors import ConfigError
from sm_jax.ops import affine

BORDER = 2
"""Template rows and columns that the pooled score leaves out on each side (published OS2D code)."""


# readable reference -------------------------------------------------------------------------------


def resample_correlation(corr, grid, *, size=None, implementation="gather"):
    """Sample each template channel at its own point: corr "h w i j", grid "h w i j 2" -> "h w i j" float32.

    out[y, x, i, j] is the bilinear sample of corr[:, :, i, j] at grid[y, x, i, j] = (x, y) in index
    coordinates, clamped to the map. `size` (height, width), which may be traced, is the valid part of a
    padded map. `implementation` "gather" reads four neighbours; "einsum" multiplies with hat weights (no
    scatter in the gradient; much more arithmetic). Source: OS2D (ECCV 2020), sec. 3.2.
    """
    if implementation not in ("gather", "einsum"):
        raise ConfigError(f'implementation is "gather" or "einsum", got {implementation!r}')
    height, width, rows, columns = corr.shape
    valid = jnp.asarray((height, width) if size is None else size)
    limits = (valid[::-1] - 1).astype(jnp.float32)
    grid = jnp.clip(grid.astype(jnp.float32), 0.0, limits.reshape(1, 1, 1, 1, 2))
    maps = jnp.moveaxis(corr.astype(jnp.float32).reshape(height, width, rows * columns), -1, 0)
    x, y = (jnp.moveaxis(grid[..., i].reshape(height, width, rows * columns), -1, 0) for i in range(2))
    sample = _sample_gather if implementation == "gather" else _sample_einsum
    out = jax.vmap(sample, in_axes=(0, 0, 0, None))(maps, x, y, valid)
    return jnp.moveaxis(out, 0, -1).reshape(corr.shape)


def _sample_gather(values, x, y, valid):
    """Bilinear samples of one map "h w" at (x, y) inside its `valid` part."""
    x0, y0 = jnp.floor(x), jnp.floor(y)
    columns = [jnp.clip(x0.astype(jnp.int32) + step, 0, valid[1] - 1) for step in (0, 1)]
    rows = [jnp.clip(y0.astype(jnp.int32) + step, 0, valid[0] - 1) for step in (0, 1)]
    (v00, v01), (v10, v11) = ([values[row, column] for column in columns] for row in rows)
    fx, fy = x - x0, y - y0
    return (1 - fy) * ((1 - fx) * v00 + fx * v01) + fy * ((1 - fx) * v10 + fx * v11)


def _sample_einsum(values, x, y, valid):
    """The same as a product with hat weights; `valid` is respected because x and y are clamped to it."""
    del valid
    (height, width), lead = values.shape, (1,) * x.ndim
    wx = jnp.maximum(1 - jnp.abs(x[..., None] - jnp.arange(width, dtype=jnp.float32).reshape(*lead, -1)), 0)
    wy = jnp.maximum(1 - jnp.abs(y[..., None] - jnp.arange(height, dtype=jnp.float32).reshape(*lead, -1)), 0)
    return jnp.einsum("...h,...w,hw->...", wy, wx, values, precision="highest")


def sampling_grid(transform, *, template=15):
    """Index coordinates that OS2D samples: "h w 2 3" -> "h w t t 2" (row, column, xy), not clamped."""
    cells = affine.cell_grid(transform.shape[:2])[:, :, None, None, :]
    return points.local_to_index(affine.local_grid(transform, template=template), cells, template=template)


def pooled_scores_reference(corr, transform, *, size=None, implementation="gather"):
    """The score map of one image and query: corr "h w t t", transform "h w 2 3" -> "h w" float32.

    Mean of the resampled correlation over the template without its border (11 x 11 of 15 x 15).
    Source: OS2D (ECCV 2020), sec. 3.2, and published code.
    """
    grid = sampling_grid(transform, template=corr.shape[-1])
    warped = resample_correlation(corr, grid, size=size, implementation=implementation)
    return jnp.mean(warped[:, :, BORDER:-BORDER, BORDER:-BORDER], axis=(2, 3))


def resize_align_corners(features, *, out=(15, 15), size=None):
    """Corner-aligned bilinear resize: features "h w c" -> "*out c", same dtype (computed in float32).

    Output k of n samples position k (m - 1) / (n - 1) of an axis of m cells; one cell gives a constant.
    `size` (height, width), which may be traced, is the valid part of a padded map: the rest is treated as
    absent, whatever it holds. Two small interpolation products. Source: OS2D class features, published code.
    """
    height, width, _ = features.shape
    size = jnp.asarray((height, width) if size is None else size)
    inside = (jnp.arange(height) < size[0])[:, None, None] & (jnp.arange(width) < size[1])[None, :, None]
    values = jnp.where(inside, features.astype(jnp.float32), 0.0)
    down, across = (
        _interpolation(n, m, size[i]) for i, (n, m) in enumerate(zip(out, (height, width), strict=True))
    )
    product = jnp.einsum("kh,hwc->kwc", down, values, precision="highest")
    return jnp.einsum("lw,kwc->klc", across, product, precision="highest").astype(features.dtype)


def _interpolation(n, m, valid):
    """Matrix "n m" of corner-aligned bilinear weights from the first `valid` of m cells.

    Positions are split into cell and fraction as integers, so that the weights are exact to rounding.
    """
    steps = jnp.arange(n) * (valid - 1)
    cell, part = steps // max(n - 1, 1), steps % max(n - 1, 1)
    offset = (jnp.arange(m)[None] - cell[:, None]).astype(jnp.float32)
    fraction = part.astype(jnp.float32) / max(n - 1, 1)
    return jnp.maximum(1 - jnp.abs(offset - fraction[:, None]), 0.0)


# fast form ----------------------------------------------------------------------------------------


def pooled_scores(corr, transform, *, size=None, template=15):
    """Scores of many correlations at once, and the same scores without gradient through the transform.

    corr "... k h w" is channel first: k >= template**2 channels, channel i*template + j for template row i
    and column j, the rest ignored (padding for tensor cores). transform "... h w 2 3"; `size` "... 2" int
    (height, width) is the valid part of each padded map, broadcast against the leading axes. Returns two
    "... h w" float32 arrays of equal value: gradients of the first reach `corr` and `transform`, of the
    second `corr` only (OS2D trains negatives with it). Half-precision `corr` is accumulated in float32.

    The leading axes (images, classes) may be any number; give them here rather than through `vmap`, which
    also works. Working memory is a few planes; in the gradient, about 1 KB per cell and map.
    """
    lead, (channels, height, width) = corr.shape[:-3], corr.shape[-3:]
    if transform.shape != (*lead, height, width, 2, 3):
        raise ValueError(f"corr {corr.shape} does not fit transform {transform.shape}")
    if channels < template**2:
        raise ValueError(f"corr has {channels} channels, a template of side {template} needs {template**2}")
    if corr.size >= 2**31:
        raise ValueError(
            f"corr {corr.shape} has 2**31 elements or more: pass fewer classes or images at once"
        )
    count = int(np.prod(lead))
    valid = jnp.asarray((height, width) if size is None else size, jnp.float32)
    valid = jnp.broadcast_to(valid.reshape((1,) * (len(lead) + 1 - valid.ndim) + valid.shape), (*lead, 2))
    planes = jnp.moveaxis(transform.astype(jnp.float32).reshape(count, height, width, 6), -1, 0)
    scores, detached = _pooled_pair(
        template, corr.reshape(count, channels, height, width), planes, valid.reshape(count, 2)
    )
    return scores.reshape(*lead, height, width), detached.reshape(*lead, height, width)


def _geometry(template, shape, planes, valid):
    """Loop invariants of maps of `shape` "n k h w", as a function (row, columns) -> where that row samples.

    For m columns it gives "m n h w" arrays: the flat index of the upper left neighbour, then per axis (x, y)
    the fraction towards the next neighbour and whether the gradient passes the clamp.
    """
    count, channels, height, width = shape
    a, b, tx, c, d, ty = (plane[None] for plane in planes)
    cells = affine.cell_grid((height, width), lead=2)
    x_shift, y_shift = (
        points.local_to_index(shift, cells[..., i], template=template) for i, shift in enumerate((tx, ty))
    )
    last_y, last_x = (valid[:, i].reshape(1, count, 1, 1) - 1 for i in range(2))
    maps = lax.broadcasted_iota(jnp.int32, (1, count, 1, 1), 1) * (channels * height * width)
    half = points.local_to_index(1.0, -0.5, template=template)
    axis = points.template_axis(template)

    def along(raw, last):
        value = jnp.clip(raw, 0.0, last)
        low = jnp.maximum(jnp.minimum(jnp.floor(value), last - 1), 0.0)
        return low.astype(jnp.int32), value - low, (raw >= 0) & (raw <= last) & (last > 0)

    def row_points(row, columns):
        v, u = jnp.asarray(axis)[row] * half, (axis[columns] * half).reshape(-1, 1, 1, 1)
        x, *x_rest = along(x_shift + b * v + a * u, last_x)
        y, *y_rest = along(y_shift + d * v + c * u, last_y)
        channel = (row * template + columns).reshape(-1, 1, 1, 1) * (height * width)
        return maps + channel + (y * width + x), x_rest, y_rest

    return row_points


def _corners_of(index, shape):
    """The four neighbours' flat indices: (upper left, upper right, lower left, lower right).

    A map of one row or column has no second one: the index is then the first, and its weight is 0.
    """
    right, down = (1 if shape[3] > 1 else 0), (shape[3] if shape[2] > 1 else 0)
    return index, index + right, index + down, index + (down + right)


def _read(flat, index):
    """Values at in-bounds flat indices, in float32 (a NaN coordinate converts to index 0)."""
    return flat.at[index].get(mode="promise_in_bounds").astype(jnp.float32)


def _zeros_like(array):
    """Float32 zeros that vary over a mesh as `array` does, which `shard_map` asks of a loop's carry."""
    return jnp.where(False, array.astype(jnp.float32), 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pooled_pair(template, corr, planes, valid):
    """corr "n k h w", planes "6 n h w", valid "n 2" float -> two equal "n h w" score maps."""
    row_points = _geometry(template, corr.shape, planes, valid)
    flat = corr.reshape(-1)

    def add_row(row, total):
        # columns unrolled: the whole row becomes one fused kernel that stores nothing but the sum
        for column in range(BORDER, template - BORDER):
            index, (fx, _), (fy, _) = row_points(row, np.array([column]))
            v00, v01, v10, v11 = (_read(flat, corner) for corner in _corners_of(index, corr.shape))
            upper, lower = v00 + fx * (v01 - v00), v10 + fx * (v11 - v10)
            total = total + (upper + fy * (lower - upper))[0]
        return total

    total = lax.fori_loop(BORDER, template - BORDER, add_row, _zeros_like(planes[2]))
    scores = total / (template - 2 * BORDER) ** 2
    return scores, scores


def _pooled_pair_forward(template, corr, planes, valid):
    return _pooled_pair(template, corr, planes, valid), (corr, planes, valid)


def _pooled_pair_backward(template, saved, cotangents):
    """One pass for both scores: `corr` takes both cotangents, the transform only the first one's."""
    corr, planes, valid = saved
    # a batch axis, not one flat array: XLA's scatter on CPU then takes less than half the time
    gradients = jax.vmap(
        functools.partial(_map_gradients, template), in_axes=(0, 1, 0, 0, 0), out_axes=(0, 1)
    )
    return *gradients(corr, planes, valid, *cotangents), jnp.zeros_like(valid)


def _map_gradients(template, corr, planes, valid, g_score, g_detached):
    """Gradients of one map: corr "k h w", planes "6 h w" and cotangents "h w" -> like corr, like planes."""
    shape = (1, *corr.shape)
    row_points = _geometry(template, shape, planes[:, None], valid[None])
    flat = corr.reshape(-1)
    pooled = (template - 2 * BORDER) ** 2
    g_corr = ((g_score + g_detached) / pooled)[None, None]
    columns = np.arange(BORDER, template - BORDER)
    axis = points.template_axis(template)
    u = axis[columns].reshape(-1, 1, 1, 1)

    def add_row(row, carry):
        # columns as an axis: unrolled scatters would take five times as long to compile
        d_corr, d_planes = carry
        index, (fx, x_inside), (fy, y_inside) = row_points(row, columns)
        indices = _corners_of(index, shape)
        v00, v01, v10, v11 = (_read(flat, corner) for corner in indices)
        d_x = jnp.where(x_inside, (1 - fy) * (v01 - v00) + fy * (v11 - v10), 0.0)
        d_y = jnp.where(y_inside, (1 - fx) * (v10 - v00) + fx * (v11 - v01), 0.0)
        weights = ((1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy)
        for corner, weight in zip(indices, weights, strict=True):
            d_corr = d_corr.at[corner].add(weight * g_corr, mode="promise_in_bounds")
        v = jnp.asarray(axis)[row]
        rows = [(jnp.sum(u * d, axis=(0, 1)), jnp.sum(d, axis=(0, 1))) for d in (d_x, d_y)]
        return d_corr, d_planes + jnp.stack([part for du, d in rows for part in (du, v * d, d)])

    start = _zeros_like(flat), _zeros_like(planes)
    d_corr, d_planes = lax.fori_loop(BORDER, template - BORDER, add_row, start)
    half = points.local_to_index(1.0, -0.5, template=template)
    return d_corr.reshape(corr.shape).astype(corr.dtype), d_planes * (half / pooled * g_score)[None]


_pooled_pair.defvjp(_pooled_pair_forward, _pooled_pair_backward)
