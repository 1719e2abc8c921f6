"""Generalised-mean pooling: one number per channel, between the mean (p = 1) and the maximum (p to infinity).

Source: "Fine-tuning CNN Image Retrieval with No Human Annotation" (PAMI 2018), sec. 3.1; cnnimageretrieval
  v1.1.
"""

import jax
import jax.numpy as jnp
import numpy as np

EPSILON = 1e-6


def gem(features, p, *, where=None, epsilon=EPSILON):
    """`mean(max(x, epsilon) ** p) ** (1 / p)` over the cells of a map: "h w c" -> float32 "c".

    Computed as a log-sum-exp, so that no power overflows whatever `p` is. Cells below `epsilon` get no
    gradient. Written for one map; `vmap` for batches.

    Args:
      features: the map, not negative as a rule (after a ReLU).
      p: the exponent, a scalar above 0; may be traced and learned.
      where: bool "h w 1", the valid cells; None: all. Without any the result is `epsilon`.
      epsilon: least value of a cell.
    """
    logs = p * jnp.log(jnp.maximum(features.astype(jnp.float32), epsilon))
    if where is None:
        where = jnp.ones((*features.shape[:2], 1), bool)
    count = jnp.sum(where, dtype=jnp.float32)
    top = jax.lax.stop_gradient(jnp.max(logs, axis=(0, 1), keepdims=True, where=where, initial=-jnp.inf))
    top = jnp.where(count > 0, top, p * jnp.log(epsilon))
    # Hidden cells become the top before the exponential: no infinity that a zero gradient could meet.
    terms = jnp.exp(jnp.where(where, logs, top) - top) * where
    total = jnp.where(count > 0, jnp.sum(terms, axis=(0, 1)), 1.0)
    return jnp.exp((jnp.log(total / jnp.maximum(count, 1.0)) + top[0, 0]) / p)


def gem_reference(features, p, *, where=None, epsilon=EPSILON):
    """The definition of `gem`, cell by cell in float64 NumPy."""
    height, width, channels = np.shape(features)
    total, count = np.zeros(channels), 0
    for row in range(height):
        for column in range(width):
            if where is None or np.asarray(where)[row, column, 0]:
                total += np.maximum(np.asarray(features[row, column], np.float64), epsilon) ** float(p)
                count += 1
    return (total / count) ** (1 / float(p)) if count else np.full(channels, epsilon)
