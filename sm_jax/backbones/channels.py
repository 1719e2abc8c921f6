"""Sums over all cells per channel, and the per-channel operations whose gradients are such sums.

XLA for CPU writes an elementwise expression to memory before it sums it over the cells, which for batch
normalisation costs more than the convolutions around it. Here a few pictures at a time are added up inside
the elementwise loop, so that only an eighth is written. Accelerators fuse by themselves: the plain sum.
"""

import functools
import math
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sm_jax.backbones.once import compute_once

AT_ONCE = 8
"""Pictures that are added up in one loop, at most."""


def channel_sums(term: Callable[..., jax.Array], *maps: jax.Array) -> jax.Array:
    """`sum over b, h, w of term(*maps)`.

    Args:
      term: elementwise function of slices of the maps (`(..., h, w, c)`), giving the same shape in float32.
      maps: `(b, h, w, c)` each.

    Returns:
      `(c,)`.
    """

    def plain(*maps):
        return jnp.sum(term(*maps), axis=(0, 1, 2))

    def in_groups(*maps):
        pictures = maps[0].shape[0]
        group = max(n for n in range(1, AT_ONCE + 1) if pictures % n == 0)
        # The group is the inner of the two axes: a batch that is split over devices stays where it is.
        maps = [x.reshape(pictures // group, group, *x.shape[1:]) for x in maps]
        terms = (term(*(x[:, i] for x in maps)) for i in range(group))
        return jnp.sum(functools.reduce(operator.add, terms), axis=(0, 1, 2))

    return jax.lax.platform_dependent(*maps, cpu=in_groups, default=plain)


def _per_channel(vector: jax.Array) -> jax.Array:
    return vector[None, None, None]


def _cells(x: jax.Array) -> int:
    return math.prod(x.shape[:3])


@jax.custom_vjp
def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance per channel of `(b, h, w, c)` over all cells, in float32: two `(c,)`.

    Both come from one pass over x - x0 and its square, x0 the mean of the first row of cells: close enough
    to the mean that the difference of the two sums loses no digits that matter.
    """
    start = jnp.mean(x[0, 0].astype(jnp.float32), axis=0)

    def centred(x):
        return x.astype(jnp.float32) - _per_channel(start)

    first = channel_sums(centred, x) / _cells(x)
    second = channel_sums(lambda x: jnp.square(centred(x)), x) / _cells(x)
    return start + first, jnp.maximum(second - jnp.square(first), 0.0)


def _moments_forward(x):
    mean, variance = moments(x)
    return (mean, variance), (x, mean)


def _moments_backward(saved, cotangents):
    x, mean = saved
    to_mean, to_variance = (cotangent / _cells(x) for cotangent in cotangents)
    slope = 2.0 * to_variance
    gradient = _per_channel(slope) * x.astype(jnp.float32) + _per_channel(to_mean - slope * mean)
    return (gradient.astype(x.dtype),)


moments.defvjp(_moments_forward, _moments_backward)


def _inside(y: jax.Array) -> jax.Array:
    return (y > 0.0) & (y < 6.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def scale_shift(x: jax.Array, factor: jax.Array, shift: jax.Array, relu6: bool) -> jax.Array:
    """`x * factor + shift` per channel, then ReLU6 if asked; `(b, h, w, c)`, type of `x`.

    The gradient of ReLU6 is 0 at both bends, as PyTorch has it.
    """
    y = x.astype(jnp.float32) * _per_channel(factor) + _per_channel(shift)
    return compute_once(jnp.clip(y, 0.0, 6.0).astype(x.dtype)) if relu6 else y.astype(x.dtype)


def _scale_shift_forward(x, factor, shift, relu6):
    return scale_shift(x, factor, shift, relu6), (x, factor, shift)


def _scale_shift_backward(relu6, saved, gradient):
    x, factor, shift = saved

    def passed(gradient, x):
        gradient = gradient.astype(jnp.float32)
        if not relu6:
            return gradient
        y = x.astype(jnp.float32) * _per_channel(factor) + _per_channel(shift)
        return jnp.where(_inside(y), gradient, 0.0)

    to_x = (passed(gradient, x) * _per_channel(factor)).astype(x.dtype)
    to_factor = channel_sums(lambda g, x: passed(g, x) * x.astype(jnp.float32), gradient, x)
    return to_x, to_factor, channel_sums(passed, gradient, x)


scale_shift.defvjp(_scale_shift_forward, _scale_shift_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def add_shift(x: jax.Array, shift: jax.Array, relu6: bool) -> jax.Array:
    """`scale_shift` with factor 1; of its input nothing is kept for the gradient."""
    y = x.astype(jnp.float32) + _per_channel(shift)
    return compute_once(jnp.clip(y, 0.0, 6.0).astype(x.dtype)) if relu6 else y.astype(x.dtype)


def _add_shift_forward(x, shift, relu6):
    y = add_shift(x, shift, relu6)
    return y, y if relu6 else None


def _add_shift_backward(relu6, y, gradient):
    def passed(gradient, *y):
        return jnp.where(_inside(y[0]), gradient, 0.0) if relu6 else gradient

    maps = (gradient, y) if relu6 else (gradient,)
    return passed(*maps), channel_sums(lambda *maps: passed(*maps).astype(jnp.float32), *maps)


add_shift.defvjp(_add_shift_forward, _add_shift_backward)
