"""What the detector learns from: anchors against boxes, and its own proposals against boxes.

Both stages train together, the second on the proposals of the first, through which no gradient flows.
Everything is masked and of fixed shape; averages run over the whole batch. Source: Ren et al., Faster R-CNN
(NIPS 2015), sec. 3, with the defaults of the published maskrcnn-benchmark configs (OS2D spec sec. 16).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sm_jax import rpn, settings, two_stage
from sm_jax.errors import ConfigError
from sm_jax.systems.detector import model

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """Constants of the objective.

    Attributes:
      anchor_positive_iou: an anchor that overlaps a box by more than this is positive, and so is the best
        anchor of every box.
      anchor_negative_iou: one that overlaps every box by less than this is negative.
      anchor_samples: anchors of an image that are learned from, at most half of them positive.
      anchor_beta: where the smooth l1 of anchors turns linear.
      candidates: anchors of an image that may become proposals.
      proposals: proposals of an image.
      proposal_iou: overlap at which the lower of two proposals is dropped.
      roi_samples: boxes of an image that the second stage learns from.
      roi_fraction: at most so much of them is positive.
      roi_iou: a proposal that overlaps a box by at least this is positive, any other one negative.
      roi_beta: where the smooth l1 of the second stage turns linear.
      roi_weight: weight of the second stage.
    """

    anchor_positive_iou: float = 0.7
    anchor_negative_iou: float = 0.3
    anchor_samples: int = 256
    anchor_beta: float = 1 / 9
    candidates: int = 2000
    proposals: int = 1000
    proposal_iou: float = 0.7
    roi_samples: int = 512
    roi_fraction: float = 0.25
    roi_iou: float = 0.5
    roi_beta: float = 1.0
    roi_weight: float = 1.0

    def __post_init__(self):
        if not 0 <= self.anchor_negative_iou <= self.anchor_positive_iou <= 1:
            raise ConfigError("objective: needs 0 <= anchor_negative_iou <= anchor_positive_iou <= 1")
        for name in ("anchor_samples", "candidates", "proposals", "roi_samples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"objective.{name}: {getattr(self, name)} is not positive")
        if self.anchor_samples % 2:
            raise ConfigError(f"objective.anchor_samples: {self.anchor_samples} is not even")
        for name in ("proposal_iou", "roi_fraction", "roi_iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"objective.{name}: {getattr(self, name)} is not within 0..1")
        for name in ("anchor_beta", "roi_beta", "roi_weight"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ConfigError(f"objective.{name}: {getattr(self, name)} must be finite and not negative")

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
    """Loss of one training batch of `b` images.

    Args:
      model_config: the network.
      config: the objective.
      variables: `params` and `batch_stats`.
      batch: `image` f32 "b h w 3" normalised; `boxes` f32 "b m 4" in pixels of it, `labels` i32 "b m" (not
        read without classes), `difficult` and `boxes_valid` bool "b m"; `valid` bool "b". Images that are not
        valid have no part in the loss.
      key: random key of the samples.

    Returns:
      `(loss, (metrics, updates))`: scalars `anchor_cls`, `anchor_box`, `roi_cls`, `roi_box`; `positives`, the
      positive proposals per image; `roi_recall`, the share of the annotated boxes that a proposal overlaps by
      `roi_iou`, NaN without any; and the `batch_stats` that the step replaces.
    """
    features, updates = model.extract(model_config, variables, batch["image"], train=True)
    anchors = jnp.asarray(model.anchors(model_config, features.shape[1:3]))
    found = model.score_anchors(model_config, variables, features)
    size = batch["image"].shape[1:3]
    labels = batch["labels"] if model_config.classes else jnp.zeros_like(batch["labels"])
    real = batch["boxes_valid"] & batch["valid"][:, None]

    def one(logits, codes, boxes, labels, where, difficult, key):
        anchor_key, roi_key = jax.random.split(key)
        targets = rpn.rpn_targets(
            boxes,
            anchors,
            anchor_key,
            where=where,
            difficult=difficult,
            positive_iou=config.anchor_positive_iou,
            negative_iou=config.anchor_negative_iou,
            max_positives=config.anchor_samples // 2,
            fill=True,
        )
        proposed = two_stage.proposals(
            logits,
            codes,
            anchors,
            image_size=size,
            candidates=config.candidates,
            iou=config.proposal_iou,
            size=config.proposals,
        )
        rois = two_stage.sample_rois(
            proposed["boxes"],
            boxes,
            labels,
            roi_key,
            proposals_valid=proposed["valid"],
            where=where,
            difficult=difficult,
            num=config.roi_samples,
            positive_fraction=config.roi_fraction,
            positive_iou=config.roi_iou,
            negative_iou=(0.0, config.roi_iou),
        )
        covered = two_stage.covered(proposed["boxes"], boxes, iou=config.roi_iou, where=proposed["valid"])
        return targets, (logits[targets.anchors], codes[targets.anchors]), rois, covered

    keys = jax.random.split(key, real.shape[0])
    targets, sampled, rois, covered = jax.vmap(one)(
        found["logits"], found["codes"], batch["boxes"], labels, real, batch["difficult"], keys
    )
    on = batch["valid"][:, None]
    targets = targets._replace(valid=targets.valid & on)
    rois = rois._replace(valid=rois.valid & on)
    anchor_loss, anchor_parts = rpn.rpn_loss(*sampled, targets, beta=config.anchor_beta, per="sample")
    logits, codes = model.score_boxes(model_config, variables, features, rois.boxes)
    roi_loss, roi_parts = two_stage.roi_loss(logits, codes, rois, beta=config.roi_beta)
    wanted = real & ~batch["difficult"]
    metrics = {
        "anchor_cls": anchor_parts["cls_loss"],
        "anchor_box": anchor_parts["box_loss"],
        "roi_cls": roi_parts["cls_loss"],
        "roi_box": roi_parts["box_loss"],
        "positives": jnp.sum(rois.classes > 0) / jnp.maximum(jnp.sum(batch["valid"]), 1),
        "roi_recall": jnp.sum(covered & wanted) / jnp.sum(wanted),  # 0 / 0 is no value
    }
    return anchor_loss + config.roi_weight * roi_loss, (metrics, updates)
