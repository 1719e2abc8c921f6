"""Hinge over region matches, with as many hard negatives as positives in every row.

Source: SCNet (ICCV 2017), sec. 3.4, with the labels, thresholds and normaliser of the published code (the
paper names 0.6 and 0.4); specification sec. 3.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def hard_negative_hinge(
    scores: Array,
    overlaps: Array,
    *,
    positive_iou: float = 0.5,
    negative_iou: float = 0.2,
    where: Array | None = None,
) -> Array:
    """Mean hinge of positives (margin 1) and of the hardest negatives (margin -1) of one pair, a scalar.

    Positives of a row are the targets with IoU > `positive_iou`, n of them; its negatives are the n highest
    scores among those with IoU <= `negative_iou` (ties: the first; fewer if there are fewer). The sum of
    max(0, 1 - z) and max(0, 1 + z) is divided by twice the number of positives of all rows; without any the
    loss is 0. No gradient through the choice, nor at the margin. Scores that are never negative keep the loss
    at 1/2 or above when no row is short of negatives.

    Args:
      scores: "n m": one row per active source region.
      overlaps: "n m": IoU of each target region with the true box of the row's region.
      where: real elements, bool "n m" or broadcastable with equal rank (such as "n 1" for padded rows);
        the others neither count nor get a gradient.
    """
    if scores.shape != overlaps.shape or scores.ndim != 2:
        raise ValueError(f"scores {scores.shape} and overlaps {overlaps.shape}, expected the same n m")
    positive, negative = overlaps > positive_iou, overlaps <= negative_iou
    if where is not None:
        where = jnp.broadcast_to(where, scores.shape)
        positive, negative = positive & where, negative & where
        scores = jnp.where(where, scores, 0)
    if not scores.size:
        return jnp.zeros((), scores.dtype)
    count = jnp.sum(positive, axis=1, keepdims=True)
    ranked = jax.lax.stop_gradient(jnp.where(negative, scores, -jnp.inf))
    rank = jnp.argsort(jnp.argsort(ranked, axis=1, descending=True, stable=True), axis=1)
    negative &= rank < count
    total = jnp.sum(jnp.where(positive, jax.nn.relu(1 - scores), 0))
    total += jnp.sum(jnp.where(negative, jax.nn.relu(1 + scores), 0))
    return total / jnp.maximum(2 * jnp.sum(count), 1)
