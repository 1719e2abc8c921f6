"""The affine alignment predicted at each feature cell: parameters, inverse, grid, box, corners.

A `transform` "... 2 3" maps template coordinates (u, v, 1), corner aligned in [-1, 1], u = column, v = row,
to the local frame of its cell (`points.local_to_index`, `points.local_to_pixels`). Where a function needs the
cell, the two axes before "2 3" are the feature map: "... h w 2 3".
"""

import jax.numpy as jnp
from jax import lax

from sm_jax import points
from sm_jax.errors import ConfigError

NUDGE = 1e-5
"""Added to the diagonal of a singular 3x3 matrix before it is inverted (published OS2D code)."""


def params_to_transform(params, *, inverse, fallback="element"):
    """Regressed parameters to transforms: "... 4" or "... 6" -> "... 2 3" float32.

    Six parameters are (a11, a12, tx, a21, a22, ty), four are (sx, tx, sy, ty). With `inverse` the network's
    answer maps image to template, and the result is its inverse. `fallback` is passed to
    `inverse_transform`. Source: OS2D (ECCV 2020), sec. 3.2.
    """
    if params.shape[-1] not in (4, 6):
        raise ConfigError(f"a transform has 4 or 6 parameters, got an axis of {params.shape[-1]}")
    p = jnp.moveaxis(params.astype(jnp.float32), -1, 0)
    if len(p) == 4:
        zero = jnp.zeros_like(p[0])
        p = (p[0], zero, p[1], zero, p[2], p[3])
    rows = jnp.stack([jnp.stack([*p[:3]], axis=-1), jnp.stack([*p[3:]], axis=-1)], axis=-2)
    return inverse_transform(rows, fallback=fallback) if inverse else rows


def inverse_transform(transform, *, fallback="element"):
    """Invert x -> A x + t in closed form: "... 2 3" -> "... 2 3", finite in value and gradient.

    A matrix whose determinant vanishes to float32 accuracy is inverted after 1e-5 is added to the diagonal
    of its 3x3 form, and passes no gradient to A. The published OS2D code nudges every matrix of the batch as
    soon as one is singular; `fallback="batch"` does that, over everything in `transform` (for parity; it
    makes results depend on padding and on the rest of the batch).
    """
    if fallback not in ("element", "batch"):
        raise ConfigError(f'fallback is "element" or "batch", got {fallback!r}')
    (a, b, tx), (c, d, ty) = (tuple(transform[..., i, j] for j in range(3)) for i in range(2))
    # entries of at most 1, so that determinants do not overflow
    size = jnp.maximum(jnp.maximum(jnp.abs(a), jnp.abs(b)), jnp.maximum(jnp.abs(c), jnp.abs(d)))
    size = lax.stop_gradient(jnp.maximum(size, 1.0))
    singular = _is_singular(a / size, b / size, c / size, d / size)
    nudged = jnp.any(singular) | singular if fallback == "batch" else singular
    nudge = jnp.where(nudged, NUDGE, 0.0)

    def entry(value, extra):
        return (jnp.where(singular, lax.stop_gradient(value), value) + extra) / size

    a, b, c, d = entry(a, nudge), entry(b, 0.0), entry(c, 0.0), entry(d, nudge)
    det = a * d - b * c
    floor = jnp.where(det < 0, -1e-12, 1e-12)  # -NUDGE may be the other eigenvalue
    det = jnp.where(singular & (jnp.abs(det) < 1e-12), floor, det)
    scale = 1.0 / (det * size)
    a, b, c, d = d * scale, -b * scale, -c * scale, a * scale
    last = 1.0 / (1.0 + nudge)
    tx, ty = tx * last, ty * last
    rows = (jnp.stack([a, b, -(a * tx + b * ty)], axis=-1), jnp.stack([c, d, -(c * tx + d * ty)], axis=-1))
    return jnp.stack(rows, axis=-2)


def _is_singular(a, b, c, d):
    """The determinant is 0, or no more than the rounding error of its two products."""
    rounding = 1e-7 * (jnp.abs(a * d) + jnp.abs(b * c))
    return jnp.abs(a * d - b * c) <= jnp.maximum(rounding, 1e-12)


def local_grid(transform, *, template=15):
    """The template's sampling points in the local frame: "... 2 3" -> "... t t 2" (row, column, xy)."""
    axis = points.template_axis(template)
    v, u = jnp.meshgrid(axis, axis, indexing="ij")
    lead = (1,) * (transform.ndim - 2)
    u, v = u.reshape(*lead, template, template), v.reshape(*lead, template, template)
    a = transform[..., None, None, :, :]
    return jnp.stack([a[..., i, 0] * u + a[..., i, 1] * v + a[..., i, 2] for i in range(2)], axis=-1)


def cell_grid(size, *, lead=0):
    """Index of every cell of a feature map of `size`: "h w 2" (x, y) float32, after `lead` axes of 1."""
    height, width = size
    y, x = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    return jnp.stack([x, y], axis=-1).astype(jnp.float32).reshape((1,) * lead + (height, width, 2))


def bounding_box(transform, *, template=15, stride=16):
    """Box around the warped template: "... h w 2 3" -> "... h w 4" xyxy image pixels, before any size rule.

    Closed form: an affine image of [-1, 1]^2 is centred on t and reaches |a| + |b| to either side, so the
    225 grid points are not built. Source: OS2D (ECCV 2020), sec. 3.2.
    """
    cells = cell_grid(transform.shape[-4:-2], lead=transform.ndim - 4)
    reach = jnp.abs(transform[..., 0]) + jnp.abs(transform[..., 1])
    low, high = transform[..., 2] - reach, transform[..., 2] + reach
    sides = [points.local_to_pixels(side, cells, template=template, stride=stride) for side in (low, high)]
    return jnp.concatenate(sides, axis=-1)


def corners(transform, *, template=15, stride=16):
    """The warped template's corners: "... h w 2 3" -> "... h w 4 2" xy image pixels.

    Order: template (row, column) = (first, first), (first, last), (last, first), (last, last).
    """
    cells = cell_grid(transform.shape[-4:-2], lead=transform.ndim - 4)
    across, down, shift = (transform[..., i] for i in range(3))
    local = [shift + u * across + v * down for v in (-1.0, 1.0) for u in (-1.0, 1.0)]
    warped = [points.local_to_pixels(point, cells, template=template, stride=stride) for point in local]
    return jnp.stack(warped, axis=-2)
