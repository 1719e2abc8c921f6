"""Losses that push the scores of positives above a margin and those of negatives below another.

Every function takes `scores` of any shape and `labels` of the same shape: 1 positive, 0 negative, anything
else ignored. `where` (same shape or broadcastable) marks the real elements, so that padding costs nothing.
Counts and normalisers run over *all* elements of the call: give it the whole batch. A call without a real
element is 0; a NaN at a real element makes the loss NaN.

Source: OS2D (ECCV 2020), sec. 5.2, with the factors and normalisers of the published OS2D code, which differ
from the paper: both hinges carry a factor 1/2 and the ranked list weights its negatives per class over the
whole batch.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array

ACTIVE_LOSS = 1e-5  # a class whose hardest negative costs no more than this has no active negative
NEGLIGIBLE_WEIGHT = 1e-8


class RankingTerms(NamedTuple):
    """A ranking loss in parts; `s` is the shape of the scores, `k` the number of classes.

    Attributes:
      positive: scalar, the loss of the positives.
      negative: scalar, the loss of the negatives that are used.
      elements: "s", per-element losses; the sum over positives is `positive * num_positive`, and the sum over
        `negatives_used` is `negative * num_positive`.
      negatives_used: bool "s", the negatives that enter the loss.
      num_positive: i32 scalar, number of positives, at least 1 (the divisor).
      num_active_positive: i32 scalar, positives below their margin (contrastive: all positives).
      weights: "s", weights of the negatives, times `num_positive` (contrastive: 1 at negatives).
      hardest: "k", largest hinge of a negative of the class (0 if it has none).
      temperature: "k", temperature of the weights (contrastive: 0).
    """

    positive: Array
    negative: Array
    elements: Array
    negatives_used: Array
    num_positive: Array
    num_active_positive: Array
    weights: Array
    hardest: Array
    temperature: Array


def hinge(
    scores: Array,
    labels: Array,
    *,
    positive_margin: float = 0.6,
    negative_margin: float = 0.5,
    scale: float = 0.5,
    where: Array | None = None,
) -> Array:
    """Two-sided hinge per element: how far a score lies on the wrong side of its margin.

    Args:
      scores: f32 of any shape.
      labels: integers of the same shape: 1 positive, 0 negative, else ignored.
      positive_margin: positives should score at least this.
      negative_margin: negatives should score at most this.
      scale: factor of both hinges; 1/2 in the published OS2D code.
      where: real elements; the others give 0 and no gradient.

    Returns:
      f32 of the same shape; `scale * max(positive_margin - s, 0)` at positives,
      `scale * max(s - negative_margin, 0)` at negatives, 0 elsewhere. No gradient at the margin itself.
    """
    positive, negative = _masks(labels, where)
    scores = jnp.where(positive | negative, scores, 0.0)
    below = jax.nn.relu(positive_margin - scores)
    above = jax.nn.relu(scores - negative_margin)
    return scale * (jnp.where(positive, below, 0.0) + jnp.where(negative, above, 0.0))


def ranked_list_loss(
    scores: Array,
    labels: Array,
    *,
    positive_margin: float = 0.6,
    negative_margin: float = 0.5,
    weight_ratio: float = 1e-3,
    negative_weight: float = 1.0,
    class_axis: int | None = None,
    class_weights: Array | None = None,
    where: Array | None = None,
) -> Array:
    """Ranked list loss with the adaptive temperature, a scalar.

    See `ranked_list_terms` for the arguments; `negative_weight` multiplies the part of the negatives.
    """
    terms = ranked_list_terms(
        scores,
        labels,
        positive_margin=positive_margin,
        negative_margin=negative_margin,
        weight_ratio=weight_ratio,
        class_axis=class_axis,
        class_weights=class_weights,
        where=where,
    )
    return terms.positive + negative_weight * terms.negative


def contrastive_loss(
    scores: Array,
    labels: Array,
    *,
    positive_margin: float = 1.0,
    negative_margin: float = 0.5,
    neg_to_pos_ratio: float = 3.0,
    negative_weight: float = 1.0,
    class_axis: int | None = None,
    class_weights: Array | None = None,
    where: Array | None = None,
) -> Array:
    """Contrastive loss with hard negatives, a scalar.

    See `contrastive_terms` for the arguments; `negative_weight` multiplies the part of the negatives.
    """
    terms = contrastive_terms(
        scores,
        labels,
        positive_margin=positive_margin,
        negative_margin=negative_margin,
        neg_to_pos_ratio=neg_to_pos_ratio,
        class_axis=class_axis,
        class_weights=class_weights,
        where=where,
    )
    return terms.positive + negative_weight * terms.negative


def ranked_list_terms(
    scores: Array,
    labels: Array,
    *,
    positive_margin: float = 0.6,
    negative_margin: float = 0.5,
    weight_ratio: float = 1e-3,
    class_axis: int | None = None,
    class_weights: Array | None = None,
    where: Array | None = None,
) -> RankingTerms:
    """Ranked list loss in parts.

    The positives below their margin are averaged. The negatives of a class are averaged with weights that
    fall from 1 at the hardest to `weight_ratio` at the margin (exponential in the hinge; no gradient through
    them), and the classes that have an active negative are averaged. Without a positive the loss is 0.

    Args:
      scores: f32 of any shape, for example "b c n".
      labels: integers of the same shape: 1 positive, 0 negative, else ignored.
      positive_margin: positives should score at least this.
      negative_margin: negatives should score at most this.
      weight_ratio: weight of a negative at the margin, relative to the hardest one of its class.
      class_axis: axis that counts the classes; None = one class.
      class_weights: f32 "k", weight of each class in all three averages; None = 1. A class of weight 0 is as
        good as absent.
      where: real elements.

    Returns:
      `RankingTerms`.
    """
    layout = _Layout(scores, class_axis, class_weights)
    positive, negative = _masks(labels, layout.present(where))
    losses = hinge(
        scores,
        labels,
        positive_margin=positive_margin,
        negative_margin=negative_margin,
        where=layout.present(where),
    )
    fixed = jax.lax.stop_gradient(losses)
    num_positive = jnp.sum(positive)
    divisor = jnp.maximum(num_positive, 1)

    active = positive & ~(fixed <= 0)
    positive_weights = layout.spread(layout.weights) * positive
    positive_weights = divisor * _over(positive_weights, jnp.sum(positive_weights * active))

    above = jnp.where(negative, fixed, 0.0)
    hardest = layout.per_class(jnp.max, above)
    active_class = ~(hardest <= ACTIVE_LOSS)  # spelled so that a NaN counts, and shows
    temperature = jnp.where(
        active_class, -math.log(weight_ratio) / jnp.where(active_class, hardest, 1.0), 0.0
    )
    weights = jnp.exp((above - layout.spread(hardest)) * layout.spread(temperature))
    weights = jnp.where(~(above <= 0) & layout.spread(active_class), weights, 0.0)
    norm = layout.per_class(jnp.sum, weights)
    share = _over(layout.weights * active_class, jnp.sum(layout.weights * active_class))
    weights = divisor * weights * layout.spread(_over(share, norm))
    weights = jnp.where(weights <= NEGLIGIBLE_WEIGHT, 0.0, weights)

    # All negatives are used: the infinite ratio of the published code, in its CUDA meaning (the same
    # conversion of infinity to an integer on x86 drops every negative).
    negatives_used = negative & (num_positive > 0)
    positive_elements = losses * positive_weights
    negative_elements = jnp.where(negative, losses, 0.0) * weights
    return RankingTerms(
        positive=jnp.sum(positive_elements) / divisor,
        negative=jnp.sum(negative_elements * negatives_used) / divisor,
        elements=positive_elements + negative_elements,
        negatives_used=negatives_used,
        num_positive=divisor,
        num_active_positive=jnp.sum(active),
        weights=weights,
        hardest=hardest,
        temperature=temperature,
    )


def contrastive_terms(
    scores: Array,
    labels: Array,
    *,
    positive_margin: float = 1.0,
    negative_margin: float = 0.5,
    neg_to_pos_ratio: float = 3.0,
    class_axis: int | None = None,
    class_weights: Array | None = None,
    where: Array | None = None,
) -> RankingTerms:
    """Contrastive loss in parts: squared hinges, and only the hardest negatives of the whole call.

    The `neg_to_pos_ratio * num_positive` negatives of largest loss are kept (all of them for an infinite
    ratio), and both sums are divided by the number of positives. Without a positive the loss is 0.

    Args:
      scores: f32 of any shape, for example "b c n".
      labels: integers of the same shape: 1 positive, 0 negative, else ignored.
      positive_margin: positives should score at least this.
      negative_margin: negatives should score at most this.
      neg_to_pos_ratio: negatives kept per positive.
      class_axis: axis that counts the classes; only needed with `class_weights`.
      class_weights: f32 "k", weight of each class in the sums and in the divisor; None = 1.
      where: real elements.

    Returns:
      `RankingTerms`.
    """
    layout = _Layout(scores, class_axis, class_weights)
    positive, negative = _masks(labels, layout.present(where))
    losses = hinge(
        scores,
        labels,
        positive_margin=positive_margin,
        negative_margin=negative_margin,
        where=layout.present(where),
    )
    above = jax.lax.stop_gradient(jnp.where(negative, losses, 0.0))
    num_positive = jnp.sum(positive)
    divisor = jnp.maximum(num_positive, 1)
    if math.isinf(neg_to_pos_ratio):
        used = negative & (num_positive > 0)
    else:
        count = jnp.floor(neg_to_pos_ratio * num_positive).astype(jnp.int32)
        used = largest(above, count, where=negative)

    class_weights = layout.spread(layout.weights)
    scale = divisor * _over(class_weights, jnp.sum(class_weights * positive))
    scale = jnp.where(num_positive > 0, scale, class_weights)
    elements = jnp.square(losses) * scale
    return RankingTerms(
        positive=jnp.sum(elements * positive) / divisor,
        negative=jnp.sum(elements * used) / divisor,
        elements=elements,
        negatives_used=used,
        num_positive=divisor,
        num_active_positive=num_positive,
        weights=scale * negative,
        hardest=layout.per_class(jnp.max, above),
        temperature=jnp.zeros_like(layout.weights),
    )


def largest(values: Array, count: Array, *, where: Array) -> Array:
    """Mask of the `count` largest of the `values` marked by `where`.

    Args:
      values: f32 of any shape.
      count: i32 scalar, may be traced; more than there are = all.
      where: bool of the same shape, the candidates.

    Returns:
      bool of the same shape with exactly `min(count, sum(where))` True; among equals the first win. A NaN
      counts as the largest of all.
    """
    if not values.size:
        return where
    ranked = jnp.where(jnp.isnan(values), jnp.inf, values)
    ranked = jnp.where(where, ranked, -jnp.inf).reshape(-1)
    last = jnp.clip(count, 1, ranked.size) - 1
    threshold = jax.lax.dynamic_index_in_dim(-jnp.sort(-ranked), last, keepdims=False)
    above = ranked > threshold
    tied = ranked == threshold
    tied &= jnp.cumsum(tied) <= count - jnp.sum(above)
    return ((above | tied) & (count > 0)).reshape(values.shape) & where


class _Layout:
    """Moves between per-element and per-class arrays for one shape and class axis."""

    def __init__(self, scores: Array, class_axis: int | None, class_weights: Array | None):
        if class_axis is None and class_weights is not None:
            raise ValueError("class_weights needs class_axis")
        axis = None if class_axis is None else range(scores.ndim)[class_axis]
        self.others = tuple(i for i in range(scores.ndim) if i != axis)
        self.shape = tuple(n if i == axis else 1 for i, n in enumerate(scores.shape))
        count = 1 if axis is None else scores.shape[axis]
        self.weights = jnp.ones(count) if class_weights is None else jnp.asarray(class_weights, jnp.float32)
        self.weighted = class_weights is not None
        if self.weights.shape != (count,):
            raise ValueError(f"class_weights has shape {self.weights.shape}, expected {(count,)}")

    def per_class(self, reduce_fn, values: Array) -> Array:
        return reduce_fn(values, axis=self.others, initial=0.0).reshape(-1)

    def spread(self, values: Array) -> Array:
        return values.reshape(self.shape)

    def present(self, where: Array | None) -> Array | None:
        """`where` without the classes of weight 0."""
        if not self.weighted:
            return where
        weighted = self.spread(self.weights > 0)
        return weighted if where is None else weighted & where


def _masks(labels: Array, where: Array | None) -> tuple[Array, Array]:
    positive, negative = labels == 1, labels == 0
    return (positive, negative) if where is None else (positive & where, negative & where)


def _over(numerator: Array, denominator: Array) -> Array:
    """Quotient that is 0 where the denominator is not above the underflow guard of the published code."""
    fits = ~(denominator <= NEGLIGIBLE_WEIGHT)  # true for NaN
    return jnp.where(fits, numerator / jnp.where(fits, denominator, 1.0), 0.0)
