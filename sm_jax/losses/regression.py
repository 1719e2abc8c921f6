"""Distances between predictions and targets: l1, l2 and the smooth l1 between them.

`pred` and `target` have the same shape. `where` marks the real elements and must be broadcastable to it;
`reduce_fn` is called as `reduce_fn(losses, where=where)` (`jnp.mean`, `jnp.sum`), or is None for per-element
losses with 0 at padding. An empty selection gives 0; a NaN at a real element shows, one in the padding does
not, neither in the value nor in the gradient.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sm_jax.losses.reduction import reduce_losses

Array = jax.Array


def l1(
    pred: Array, target: Array, *, where: Array | None = None, reduce_fn: Callable | None = jnp.mean
) -> Array:
    """Absolute difference; its gradient at 0 is 0."""
    return _reduce(_size, pred, target, where, reduce_fn)


def l2(
    pred: Array, target: Array, *, where: Array | None = None, reduce_fn: Callable | None = jnp.mean
) -> Array:
    """Half the squared difference, so that the gradient is the difference."""
    return _reduce(lambda error: 0.5 * jnp.square(error), pred, target, where, reduce_fn)


def smooth_l1(
    pred: Array,
    target: Array,
    *,
    beta: float = 1.0,
    where: Array | None = None,
    reduce_fn: Callable | None = jnp.mean,
) -> Array:
    """Smooth l1 (Fast R-CNN, ICCV 2015, sec. 2.3): quadratic up to `beta`, linear with slope 1 beyond.

    `0.5 e^2 / beta` where |e| < beta, else `|e| - beta / 2`; `beta` 0 is `l1`.
    """
    if beta < 0:
        raise ValueError(f"beta is {beta}, expected >= 0")

    def smooth(error: Array) -> Array:
        size = _size(error)
        return jnp.where(size < beta, 0.5 * jnp.square(error) / beta, size - 0.5 * beta)

    return _reduce(smooth if beta else _size, pred, target, where, reduce_fn)


def _size(error: Array) -> Array:
    """|error| with gradient 0 at 0, where that of `jnp.abs` is 1."""
    return error * jax.lax.stop_gradient(jnp.sign(error))


def _reduce(distance: Callable, pred: Array, target: Array, where: Array | None, reduce_fn: Callable | None):
    if pred.shape != target.shape:
        raise ValueError(f"pred {pred.shape} and target {target.shape} differ in shape")
    error = pred - target
    if where is not None:
        where = jnp.broadcast_to(where, error.shape)
        error = jnp.where(where, error, 0.0)  # before the distance: padding has no gradient either
    losses = distance(error)
    return reduce_losses(losses, where, reduce_fn)
