"""Losses of yes-or-no predictions, and of one class of many, from logits.

`where` and `reduce_fn` are as in `losses.regression`: an empty selection gives 0; a NaN at a real element
shows, one in the padding does not, neither in the value nor in the gradient.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sm_jax.losses.reduction import reduce_losses

Array = jax.Array


def sigmoid_bce(
    logits: Array, labels: Array, *, where: Array | None = None, reduce_fn: Callable | None = jnp.mean
) -> Array:
    """Binary cross entropy `-y log p - (1 - y) log(1 - p)`, p = sigmoid(logits), exact for any finite logit.

    Args:
      logits: any shape.
      labels: same shape, bool or numbers in [0, 1].
      where: bool, broadcastable; the real elements.
      reduce_fn: `jnp.mean`, `jnp.sum` or None (per element, 0 at padding).

    Returns:
      float32: scalar, or the shape of the logits.
    """
    if logits.shape != labels.shape:
        raise ValueError(f"logits {logits.shape} and labels {labels.shape} differ in shape")
    logits, labels = jnp.asarray(logits, jnp.float32), jnp.asarray(labels, jnp.float32)
    if where is not None:
        where = jnp.broadcast_to(where, logits.shape)
        logits = jnp.where(where, logits, 0.0)  # before the loss: padding has no gradient either
        labels = jnp.where(where, labels, 0.0)
    losses = labels * jax.nn.softplus(-logits) + (1 - labels) * jax.nn.softplus(logits)
    return reduce_losses(losses, where, reduce_fn)


def softmax_ce(
    logits: Array, labels: Array, *, where: Array | None = None, reduce_fn: Callable | None = jnp.mean
) -> Array:
    """Cross entropy `-log softmax(logits)[label]` of one class of many.

    Args:
      logits: "... c".
      labels: int "...", in 0..c-1; a number outside has no class and gives NaN.
      where: bool, broadcastable to the labels; the real elements.
      reduce_fn: `jnp.mean`, `jnp.sum` or None (per element, 0 at padding).

    Returns:
      float32: scalar, or the shape of the labels.
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"logits {logits.shape} and labels {labels.shape} differ in their leading axes")
    logits = jnp.asarray(logits, jnp.float32)
    if where is not None:
        where = jnp.broadcast_to(where, labels.shape)
        logits = jnp.where(where[..., None], logits, 0.0)  # before the loss: padding has no gradient either
        labels = jnp.where(where, labels, 0)
    count = logits.shape[-1]
    chosen = jax.nn.one_hot(labels, count, dtype=bool)
    found = jnp.sum(jnp.where(chosen, jax.nn.log_softmax(logits), 0.0), axis=-1)
    inside = (labels >= 0) & (labels < count)
    return reduce_losses(jnp.where(inside, -found, jnp.nan), where, reduce_fn)
