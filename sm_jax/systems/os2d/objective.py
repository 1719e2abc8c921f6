"""What OS2D learns from: targets of every anchor and class, and the loss on them.

Source: OS2D (ECCV 2020), sec. 5 and the published OS2D code. Everything is masked and of fixed shape; arrays
are "b c n" (image, class, anchor), where an anchor is a position of the feature map, row by row. Counts and
averages run over the whole batch, which under `jax.jit` is the global batch, however it is sharded.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sm_jax import boxes as box_lib
from sm_jax import settings
from sm_jax.errors import ConfigError
from sm_jax.losses import assignment, ranking, regression
from sm_jax.systems.os2d import model

Array = jax.Array

CLASS_OBJECTIVES = ("RLL", "contrastive")


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """Constants of the objective; the defaults are the published ones of the ranked list loss.

    Attributes:
      class_objective: "RLL" (ranked list) or "contrastive".
      positive_margin: score that a positive should reach (the published contrastive runs use 1.0).
      negative_margin: score that a negative should stay below.
      loc_weight: weight of the localisation loss.
      class_neg_weight: weight of the negatives' part of the recognition loss.
      neg_to_pos_ratio: contrastive only, hard negatives kept per positive.
      rll_neg_weight_ratio: RLL only, weight of a negative at the margin relative to the hardest.
      positive_iou: overlap of anchor and box from which they are matched.
      negative_iou: overlap below which an anchor is a negative.
      remap: judge recognition by the predicted boxes instead of the anchors.
      remap_positive_iou: as `positive_iou`, for predicted boxes.
      remap_negative_iou: as `negative_iou`, for predicted boxes.
      train_transform_on_negs: let negatives move the transformation too.
      class_weights: weight of every class of the data set in all averages, by `class_ids`; empty = 1 each.
    """

    class_objective: str = "RLL"
    positive_margin: float = 0.6
    negative_margin: float = 0.5
    loc_weight: float = 0.2
    class_neg_weight: float = 1.0
    neg_to_pos_ratio: float = 3.0
    rll_neg_weight_ratio: float = 0.001
    positive_iou: float = 0.5
    negative_iou: float = 0.1
    remap: bool = True
    remap_positive_iou: float = 0.8
    remap_negative_iou: float = 0.4
    train_transform_on_negs: bool = False
    class_weights: tuple[float, ...] = ()

    def __post_init__(self):
        if self.class_objective not in CLASS_OBJECTIVES:
            raise ConfigError(
                f"objective.class_objective: {self.class_objective!r} is none of {CLASS_OBJECTIVES}"
            )
        for low, high in (("negative_iou", "positive_iou"), ("remap_negative_iou", "remap_positive_iou")):
            if not 0 <= getattr(self, low) <= getattr(self, high) <= 1:
                raise ConfigError(f"objective: needs 0 <= {low} <= {high} <= 1")
        if not 0 < self.rll_neg_weight_ratio < 1:
            raise ConfigError("objective.rll_neg_weight_ratio: must lie between 0 and 1")
        if self.neg_to_pos_ratio < 0:
            raise ConfigError("objective.neg_to_pos_ratio: must not be negative")
        if not all(math.isfinite(weight) and weight >= 0 for weight in self.class_weights):
            raise ConfigError("objective.class_weights: must be finite and not negative")

    @classmethod
    def create(cls, options: Mapping[str, Any]) -> "ObjectiveConfig":
        """From the `objective` section of a config; an unknown key is a `ConfigError` naming the nearest."""
        return settings.from_section(cls, options, section="objective")


class Criterion(NamedTuple):
    """The loss in parts.

    Attributes:
      loss: scalar, `cls_pos + class_neg_weight * cls_neg + loc_weight * loc`.
      cls_pos: scalar, recognition loss of the positives.
      cls_neg: scalar, recognition loss of the negatives.
      loc: scalar, localisation loss.
      cls_elements: f32 "b c n", recognition loss per anchor (see `ranking.RankingTerms.elements`).
      loc_elements: f32 "b c n", localisation loss per anchor, 0 where it does not count.
      positive: bool "b c n", anchors that count as positive in recognition.
      negative: bool "b c n", anchors that count as negative in recognition.
      negatives_used: bool "b c n", negatives that entered the loss.
      loc_positive: bool "b c n", anchors that count in localisation.
      num_positive: i32 scalar, number of positives, at least 1.
      num_loc_positive: i32 scalar, number of `loc_positive`.
      ranking: `ranking.RankingTerms`; None in mining mode.
    """

    loss: Array
    cls_pos: Array
    cls_neg: Array
    loc: Array
    cls_elements: Array
    loc_elements: Array
    positive: Array
    negative: Array
    negatives_used: Array
    loc_positive: Array
    num_positive: Array
    num_loc_positive: Array
    ranking: ranking.RankingTerms | None


def assign_targets(
    config: ObjectiveConfig,
    batch: dict[str, Array],
    anchors: Array,
    *,
    num_classes: int,
) -> assignment.Targets:
    """Targets of the anchors of every image and class.

    Args:
      config: thresholds.
      batch: `boxes` f32 "b m 4" in pixels of the frame of the anchors, `labels` i32 "b m", `difficult` and
        `boxes_valid` bool "b m".
      anchors: f32 "n 4"; for evaluation and mining in the frame of the stored image, like the boxes.
      num_classes: number of classes of the batch.

    Returns:
      `assignment.Targets` with `index`, `labels` "b c n" and `codes` "b c n 4".
    """

    def one(boxes, labels, difficult, valid):
        return assignment.assign_classes(
            boxes,
            labels,
            anchors,
            num_classes=num_classes,
            positive_iou=config.positive_iou,
            negative_iou=config.negative_iou,
            difficult=difficult,
            where=valid,
        )

    return jax.vmap(one)(batch["boxes"], batch["labels"], batch["difficult"], batch["boxes_valid"])


def remap_labels(config: ObjectiveConfig, batch: dict[str, Array], codes: Array, anchors: Array) -> Array:
    """Class targets judged by the predicted boxes.

    Args:
      config: thresholds `remap_positive_iou` and `remap_negative_iou`.
      batch: as in `assign_targets`.
      codes: f32 "b c n 4", predicted boxes relative to their anchors; no gradient.
      anchors: f32 "n 4".

    Returns:
      i32 "b c n": 1, 0 or -1 (ignored).
    """
    predicted = box_lib.decode(
        jax.lax.stop_gradient(codes), jnp.broadcast_to(anchors, (*codes.shape[:2], *anchors.shape))
    )

    def one(boxes, labels, difficult, valid, predicted):
        def of_class(number, predicted):
            index = assignment.match(
                box_lib.iou(boxes, predicted),
                positive_iou=config.remap_positive_iou,
                negative_iou=config.remap_negative_iou,
                difficult=difficult,
                where=valid & (labels == number),
            )
            return assignment.index_to_labels(index)

        return jax.vmap(of_class)(jnp.arange(predicted.shape[0]), predicted)

    return jax.vmap(one)(batch["boxes"], batch["labels"], batch["difficult"], batch["boxes_valid"], predicted)


def criterion(
    config: ObjectiveConfig,
    scores: Array,
    codes: Array,
    labels: Array,
    target_codes: Array,
    *,
    scores_detached: Array | None = None,
    labels_remapped: Array | None = None,
    class_weights: Array | None = None,
    where: Array | None = None,
    mining: bool = False,
) -> Criterion:
    """The loss of predictions against targets.

    Args:
      config: margins and weights.
      scores: f32 "b c n".
      codes: f32 "b c n 4", predicted boxes relative to their anchors.
      labels: i32 "b c n", 1, 0 or -1 (ignored), by the anchors.
      target_codes: f32 "b c n 4".
      scores_detached: f32 "b c n", the same scores without a gradient into the transformation; used at
        negatives if given (leave it out when negatives shall move the transformation, and at evaluation).
      labels_remapped: i32 "b c n", by the predicted boxes; drive recognition if given.
      class_weights: f32 "c".
      where: bool, broadcastable to "b c n", the real anchors of real images and classes.
      mining: for the search of hard patches: plain hinges, every negative counts, one score.

    Returns:
      `Criterion`.
    """
    where = jnp.broadcast_to(True if where is None else where, scores.shape)
    recognition = labels if labels_remapped is None else labels_remapped
    positive, negative = (recognition == 1) & where, (recognition == 0) & where
    if scores_detached is not None and not mining:
        scores = jnp.where(negative, scores_detached, scores)
    margins = {"positive_margin": config.positive_margin, "negative_margin": config.negative_margin}
    terms = None
    if mining:
        cls_elements = ranking.hinge(scores, recognition, where=where, **margins)
        if config.class_objective == "contrastive":
            cls_elements = jnp.square(cls_elements)
        num_positive, negatives_used = jnp.maximum(jnp.sum(positive), 1), negative
        cls_pos = jnp.sum(cls_elements * positive) / num_positive
        cls_neg = jnp.sum(cls_elements * negative) / num_positive
    else:
        options = {"class_axis": 1, "class_weights": class_weights, "where": where, **margins}
        if config.class_objective == "RLL":
            terms = ranking.ranked_list_terms(
                scores, recognition, weight_ratio=config.rll_neg_weight_ratio, **options
            )
        else:
            terms = ranking.contrastive_terms(
                scores, recognition, neg_to_pos_ratio=config.neg_to_pos_ratio, **options
            )
        cls_elements, num_positive, negatives_used = terms.elements, terms.num_positive, terms.negatives_used
        cls_pos, cls_neg = terms.positive, terms.negative

    loc_positive = (labels == 1) & where
    loc_elements = jnp.sum(
        regression.smooth_l1(codes, target_codes, where=loc_positive[..., None], reduce_fn=None), axis=-1
    )
    num_loc_positive = jnp.sum(loc_positive)
    loc_count: Array = jnp.maximum(num_loc_positive, 1)
    if class_weights is not None and not mining:
        weights = class_weights[None, :, None]
        loc_elements = loc_elements * weights
        total = jnp.sum(loc_positive * weights)
        loc_count = jnp.where(total > 0, total, 1.0)
    loc = jnp.sum(loc_elements) / loc_count
    return Criterion(
        loss=cls_pos + config.class_neg_weight * cls_neg + config.loc_weight * loc,
        cls_pos=cls_pos,
        cls_neg=cls_neg,
        loc=loc,
        cls_elements=cls_elements,
        loc_elements=loc_elements,
        positive=positive,
        negative=negative,
        negatives_used=negatives_used,
        loc_positive=loc_positive,
        num_positive=num_positive,
        num_loc_positive=num_loc_positive,
        ranking=terms,
    )


def real_anchors(batch: dict[str, Array], features_size: Array, shape: tuple[int, int]) -> Array:
    """Which anchors are real: inside the valid feature map, of a real image and a real class.

    Args:
      batch: `valid` bool "b", `query_valid` bool "c".
      features_size: i32 "b 2", valid (height, width) of the feature map.
      shape: (height, width) of the padded feature map.

    Returns:
      bool "b c n".
    """
    rows = jnp.arange(shape[0])[None, :] < features_size[:, :1]
    columns = jnp.arange(shape[1])[None, :] < features_size[:, 1:]
    inside = (rows[:, :, None] & columns[:, None, :]).reshape(rows.shape[0], 1, -1)
    return inside & batch["valid"][:, None, None] & batch["query_valid"][None, :, None]


def loss(
    model_config: model.ModelConfig,
    config: ObjectiveConfig,
    variables: dict[str, Any],
    batch: dict[str, Array],
    key: Array | None = None,
) -> tuple[Array, tuple[dict[str, Array], dict[str, Any]]]:
    """Loss of one training batch of `b` crops and `c` class pictures.

    Args:
      model_config: the network.
      config: the objective.
      variables: `params` and `batch_stats`.
      batch: `image` f32 "b h w 3" normalised, zero padded; `size` i32 "b 2" valid (height, width); `valid`
        bool "b"; `boxes` f32 "b m 4" in pixels of the crop, not clipped; `labels` i32 "b m", number of the
        class picture, -1 class not searched, -2 cut off by the crop; `difficult`, `boxes_valid` bool "b m";
        `query` f32 "c h w 3" normalised, zero padded; `query_size` i32 "c 2"; `query_valid` bool "c";
        `class_ids` i32 "c", class of the data set, -1 padding.
      key: unused; the step has no randomness.

    Returns:
      `(loss, (metrics, updates))`: scalars by name, and the `batch_stats` that the step replaces (empty when
      the TransformNet's statistics are frozen).
    """
    del key
    valid, query_valid = batch["valid"], batch["query_valid"]
    # Padding counts as a picture without a single valid pixel, whatever size it came with.
    size = jnp.where(valid[:, None], batch["size"], 0)
    query_size = jnp.where(query_valid[:, None], batch["query_size"], 0)
    features, features_size, updates = model.extract_train(model_config, variables, batch["image"], size)
    variables = _replaced(variables, updates)
    queries, queries_size, more = model.extract_train(model_config, variables, batch["query"], query_size)
    if not model_config.train_features:
        features, queries = jax.lax.stop_gradient((features, queries))
    # The head clamps coordinates to the valid map, which therefore must not be empty.
    features_size = jnp.where(valid[:, None], features_size, jnp.asarray(features.shape[1:3])[None])
    queries_size = jnp.where(query_valid[:, None], queries_size, jnp.asarray(queries.shape[1:3])[None])
    output, statistics = model.head(
        model_config,
        variables,
        features,
        features_size,
        model.encode_features(model_config, queries, queries_size),
        train=True,
        query_valid=query_valid,
        image_valid=valid,
    )
    metrics = evaluate(config, output, batch, features_size)
    return metrics["loss"], (metrics, _replaced(_replaced(updates, more), statistics))


def _replaced(tree: dict[str, Any], updates: dict[str, Any]) -> dict[str, Any]:
    """`tree` with the parts of its collections that `updates` holds."""
    return tree | {kind: tree.get(kind, {}) | parts for kind, parts in updates.items()}


def evaluate(
    config: ObjectiveConfig, output: model.HeadOutput, batch: dict[str, Array], features_size: Array
) -> dict[str, Array]:
    """Metrics of the head's output on a batch; `loss` carries the gradient.

    Args:
      config: the objective.
      output: `HeadOutput` with `scores`, `scores_detached` "b c h w" and `offsets` "b c h w 4".
      batch: as in `loss`.
      features_size: i32 "b 2".

    Returns:
      Scalars: `loss`, `cls_loss`, `cls_loss_pos`, `cls_loss_neg`, `loc_loss`, `num_pos`, `num_pos_loc`,
      `num_neg`, and of the anchors that count the mean `score_pos` (NaN without a positive) and the highest
      `score_neg`.
    """
    images, classes, *shape = output.scores.shape
    flat = (images, classes, -1)
    scores = output.scores.astype(jnp.float32).reshape(flat)
    detached = output.scores_detached.astype(jnp.float32).reshape(flat)
    codes = output.offsets.astype(jnp.float32).reshape(*flat, 4)
    anchors = box_lib.anchor_grid(tuple(shape))
    targets = assign_targets(config, batch, anchors, num_classes=classes)
    terms = criterion(
        config,
        scores,
        codes,
        targets.labels,
        targets.codes,
        scores_detached=None if config.train_transform_on_negs else detached,
        labels_remapped=remap_labels(config, batch, codes, anchors) if config.remap else None,
        class_weights=_class_weights(config, batch),
        where=real_anchors(batch, features_size, tuple(shape)),
    )
    fixed = jax.lax.stop_gradient(scores)
    return {
        "loss": terms.loss,
        "cls_loss": terms.cls_pos + config.class_neg_weight * terms.cls_neg,
        "cls_loss_pos": terms.cls_pos,
        "cls_loss_neg": terms.cls_neg,
        "loc_loss": terms.loc,
        "num_pos": jnp.sum(terms.positive),
        "num_pos_loc": terms.num_loc_positive,
        "num_neg": jnp.sum(terms.negative),
        "score_pos": jnp.sum(jnp.where(terms.positive, fixed, 0.0)) / jnp.sum(terms.positive),
        "score_neg": jnp.max(jnp.where(terms.negative, fixed, -1.0)),
    }


def _class_weights(config: ObjectiveConfig, batch: dict[str, Array]) -> Array | None:
    if not config.class_weights:
        return None
    weights = jnp.asarray(config.class_weights, jnp.float32)
    ids = batch["class_ids"]
    return jnp.where(ids >= 0, jnp.take(weights, jnp.maximum(ids, 0), mode="fill", fill_value=jnp.nan), 0.0)
