"""Contrastive loss on pairs of descriptors."""

import jax
import jax.numpy as jnp

Array = jax.Array

EPSILON = 1e-6


def contrastive(
    first: Array, second: Array, positive: Array, *, margin: float = 0.85, where: Array | None = None
) -> tuple[Array, Array]:
    """The loss of every pair, and the distance it is of.

    Of a positive pair `d ** 2 / 2`, of a negative one `max(margin - d, 0) ** 2 / 2`, with the Euclidean
    distance d = ||first - second + 1e-6||.

    Args:
      first, second: f32 "... d", L2-normalised.
      positive: bool "...": whether the two belong together.
      margin: negative pairs should be at least this far apart.
      where: bool "...", real pairs; the others have loss 0.

    Returns:
      losses f32 "...", distances f32 "...". Source: "Fine-tuning CNN Image Retrieval with No Human
      Annotation" (PAMI 2018), eq. 3; cnnimageretrieval v1.1 (for the 1e-6).
    """
    squares = jnp.sum(jnp.square(first - second + EPSILON), axis=-1)
    apart = squares > 0
    distances = jnp.where(apart, jnp.sqrt(jnp.where(apart, squares, 1.0)), 0.0)  # no NaN in the gradient at 0
    losses = jnp.where(positive, squares, jnp.square(jnp.maximum(margin - distances, 0.0))) / 2
    return (losses if where is None else jnp.where(where, losses, 0.0)), distances
