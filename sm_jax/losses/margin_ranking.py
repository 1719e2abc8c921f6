"""The margin-based ranking loss of CoAE: scores on their side of a margin, and in pairs near or far apart.

Source: Hsieh et al., "One-Shot Object Detection with Co-Attention and Co-Excitation" (NeurIPS 2019), the
section "Proposal ranking". A plain loop that says the same is in `sm_jax.systems.coae.reference`.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def margin_ranking(
    scores: Array,
    labels: Array,
    *,
    positive_margin: float = 0.7,
    negative_margin: float = 0.3,
    where: Array | None = None,
) -> Array:
    """Loss of the proposals of one image, which are compared with one query.

    Each score costs `max(m+ - s_i, 0)` if positive and `max(s_i - m-, 0)` if not; each pair costs
    `max(|s_i - s_j| - m-, 0)` where the labels agree and `max(m+ - |s_i - s_j|, 0)` where they differ. The
    paper writes sums; here either part is the mean over its real elements, so that the number of proposals,
    whose pairs grow with its square, does not change the weight of the loss.

    Args:
      scores: f32 "k", probabilities of the foreground.
      labels: i32 or bool "k", 1 foreground, 0 background.
      positive_margin: m+.
      negative_margin: m-.
      where: bool "k", the real proposals; others cost nothing and get no gradient.

    Returns:
      Scalar; 0 without a real proposal.
    """
    if scores.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(f"scores {scores.shape} and labels {labels.shape}, expected both as (k,)")
    real = jnp.ones(scores.shape, bool) if where is None else where
    scores = jnp.where(real, scores.astype(jnp.float32), 0.0)
    positive = labels == 1
    single = jnp.where(positive, positive_margin - scores, scores - negative_margin)
    apart = scores[:, None] - scores[None, :]
    apart = apart * jax.lax.stop_gradient(jnp.sign(apart))  # equal scores have no direction
    same = positive[:, None] == positive[None, :]
    double = jnp.where(same, apart - negative_margin, positive_margin - apart)
    pairs = jnp.triu(real[:, None] & real[None, :], 1)
    return _mean(jax.nn.relu(single), real) + _mean(jax.nn.relu(double), pairs)


def _mean(losses: Array, where: Array) -> Array:
    return jnp.sum(jnp.where(where, losses, 0.0)) / jnp.maximum(jnp.sum(where), 1)
