"""How the losses of a call become one number."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array


def reduce_losses(losses: Array, where: Array | None, reduce_fn: Callable | None) -> Array:
    """`reduce_fn(losses, where=where)`, with 0 for an empty selection; per element where it is None.

    Args:
      losses: any shape; finite outside `where` too, or the gradient is NaN.
      where: bool, the shape of the losses, or None: all are real.
      reduce_fn: `jnp.mean`, `jnp.sum` or None (losses with 0 at padding).
    """
    if where is not None:
        losses = jnp.where(where, losses, 0.0)
    if reduce_fn is None:
        return losses
    if where is None:
        return reduce_fn(losses) if losses.size else jnp.zeros((), losses.dtype)
    # Nothing selected: reduce the zeros instead of dividing 0 by 0.
    return reduce_fn(losses, where=where | ~jnp.any(where))
