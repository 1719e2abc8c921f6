"""What CoAE learns from: proposals and their comparison with the query, of one image and one query each.

Source: Hsieh et al., NeurIPS 2019, "Proposal ranking"; sampling of anchors and boxes as in Faster R-CNN (Ren
et al., NIPS 2015), whose code the published one is built on.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sm_jax import rpn, settings, two_stage
from sm_jax.errors import ConfigError
from sm_jax.losses.margin_ranking import margin_ranking
from sm_jax.systems.coae import model

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """Constants of the objective; the defaults are those of the paper, and where it has none Faster R-CNN's.

    Attributes:
      rpn_positive_iou: an anchor that overlaps a box by more than this is positive, and so is the best anchor
        of every box.
      rpn_negative_iou: one that overlaps every box by less than this is negative; the others are ignored.
      rpn_positives: anchors of an image that are used as positives at most; twice as many are used in all.
      rois: boxes of an image that the second stage learns from.
      roi_positive_fraction: at most so much of them is foreground.
      roi_iou: overlap from which a box is foreground; the others are background.
      rpn_weight: weight of the loss of the proposals.
      loc_weight: weight of the correction of the boxes, in both stages.
      positive_margin: m+ of the ranking loss.
      negative_margin: m- of it.
      ranking_weight: weight of it (lambda).
      rpn_beta: where the smooth l1 loss of the proposals turns linear.
      beta: the same of the second stage.
    """

    rpn_positive_iou: float = 0.7
    rpn_negative_iou: float = 0.3
    rpn_positives: int = 128
    rois: int = 128
    roi_positive_fraction: float = 0.25
    roi_iou: float = 0.5
    rpn_weight: float = 1.0
    loc_weight: float = 1.0
    positive_margin: float = 0.7
    negative_margin: float = 0.3
    ranking_weight: float = 3.0
    rpn_beta: float = 1 / 9
    beta: float = 1.0

    def __post_init__(self):
        if not 0 <= self.rpn_negative_iou <= self.rpn_positive_iou <= 1:
            raise ConfigError("objective: needs 0 <= rpn_negative_iou <= rpn_positive_iou <= 1")
        if not 0 <= self.negative_margin <= self.positive_margin <= 1:
            raise ConfigError("objective: needs 0 <= negative_margin <= positive_margin <= 1")
        for name in ("rpn_positives", "rois"):
            if getattr(self, name) < 1:
                raise ConfigError(f"objective.{name}: {getattr(self, name)} is not positive")
        for name in ("roi_positive_fraction", "roi_iou"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"objective.{name}: {getattr(self, name)} is not within 0..1 (without 0)")
        for name in ("rpn_weight", "loc_weight", "ranking_weight", "rpn_beta", "beta"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"objective.{name}: {value} must be finite and not negative")

    @classmethod
    def create(cls, options: Mapping[str, Any]) -> "ObjectiveConfig":
        """From the `objective` section of a config; an unknown key is a `ConfigError` naming the nearest."""
        return settings.from_section(cls, options, section="objective")


def loss(
    model_config: model.ModelConfig,
    config: ObjectiveConfig,
    variables: dict[str, Any],
    batch: dict[str, Array],
    key: Array,
) -> tuple[Array, tuple[dict[str, Array], dict[str, Any]]]:
    """Loss of one training batch of `b` images, each with one query.

    Args:
      model_config: the network.
      config: the objective.
      variables: `params` and `batch_stats`.
      batch: of `data.coae`: `image` f32 "b H W 3", `size` i32 "b 2"; `query` f32 "b h w 3", `query_size` i32
        "b 2"; `boxes` f32 "b m 4" in pixels of the image, `labels` i32 "b m" (0: of the query's class),
        `boxes_valid` and `difficult` bool "b m"; `valid` and `query_valid` bool "b". Without both of these a
        row costs nothing.
      key: random key of the samples.

    Returns:
      `(loss, (metrics, updates))`: scalars `rpn_cls`, `rpn_box`, `roi_cls`, `roi_box`, `ranking` (none of
      them weighted), `rois_positive` (per image), `roi_accuracy`; and no updates.
    """
    features, cells = model.extract(model_config, variables, batch["image"], batch["size"])
    requests = {"image": batch["query"], "size": batch["query_size"]}
    queries = model.encode(model_config, variables, requests)["query"]
    anchors = jnp.asarray(model.anchors(model_config, features.shape[1:3]))
    real = batch["valid"] & batch["query_valid"]
    where = batch["boxes_valid"] & (batch["labels"] == 0) & real[:, None]
    one = functools.partial(_pair, model_config, config, variables, anchors)
    out = jax.vmap(one)(
        features, cells, batch["size"], queries, batch["boxes"], where, batch["difficult"], real,
        jax.random.split(key, real.shape[0]),
    )  # fmt: skip

    rpn_targets, rois = out["rpn_targets"], out["rois"]
    rpn_loss, rpn_parts = rpn.rpn_loss(
        out["rpn_logits"],
        out["rpn_codes"],
        rpn_targets,
        weight=config.loc_weight,
        beta=config.rpn_beta,
        per="sample",
    )
    roi_loss, roi_parts = two_stage.roi_loss(
        out["logits"], out["codes"], rois, weight=config.loc_weight, beta=config.beta
    )
    count = jnp.maximum(jnp.sum(real), 1)
    ranking = jnp.sum(out["ranking"]) / count
    positive = (rois.classes != two_stage.BACKGROUND) & rois.valid
    right = (jnp.argmax(out["logits"], axis=-1) == rois.classes) & rois.valid
    metrics = {
        "rpn_cls": rpn_parts["cls_loss"],
        "rpn_box": rpn_parts["box_loss"],
        "roi_cls": roi_parts["cls_loss"],
        "roi_box": roi_parts["box_loss"],
        "ranking": ranking,
        "rois_positive": jnp.sum(positive) / count,
        "roi_accuracy": jnp.sum(right) / jnp.sum(rois.valid),  # 0 / 0 is no value
    }
    return config.rpn_weight * rpn_loss + roi_loss + config.ranking_weight * ranking, (metrics, {})


def _pair(
    model_config, config, variables, anchors, features, cells, size, query, boxes, where, difficult, real, key
) -> dict[str, Any]:
    """Predictions and targets of one image and its query; targets are not valid where `real` is False."""
    rpn_key, roi_key = jax.random.split(key)
    image = model.embed(model_config, variables, features)
    attended, features, query = model.match(model_config, variables, image, cells, query)
    found = model.first_stage(model_config, variables, attended)
    rpn_targets = rpn.rpn_targets(
        boxes,
        anchors,
        rpn_key,
        where=where,
        difficult=difficult,
        positive_iou=config.rpn_positive_iou,
        negative_iou=config.rpn_negative_iou,
        max_positives=config.rpn_positives,
        fill=True,
    )
    proposals = model.propose(model_config, found, anchors, size)
    rois = two_stage.sample_rois(
        proposals["boxes"],
        boxes,
        jnp.zeros(boxes.shape[:1], jnp.int32),
        roi_key,
        proposals_valid=proposals["valid"],
        where=where,
        difficult=difficult,
        num=config.rois,
        positive_fraction=config.roi_positive_fraction,
        positive_iou=config.roi_iou,
        negative_iou=(0.0, config.roi_iou),
    )
    rpn_targets = rpn_targets._replace(valid=rpn_targets.valid & real)
    rois = rois._replace(valid=rois.valid & real)
    logits, codes = model.second_stage(model_config, variables, features, cells, query, rois.boxes)
    ranking = margin_ranking(
        jax.nn.softmax(logits, axis=-1)[:, 1],
        rois.classes,
        positive_margin=config.positive_margin,
        negative_margin=config.negative_margin,
        where=rois.valid,
    )
    return {
        "rpn_logits": found["logits"][rpn_targets.anchors],
        "rpn_codes": found["codes"][rpn_targets.anchors],
        "rpn_targets": rpn_targets,
        "rois": rois,
        "logits": logits,
        "codes": codes,
        "ranking": ranking,
    }
