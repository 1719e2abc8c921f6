"""What the cross-modal detector learns from: anchors against boxes, and proposals against the phrase.

Source: Ferreira et al. 2023, sec. 3. Everything is masked and of fixed shape; averages run over the whole
batch, which under `jax.jit` is the global batch, however it is sharded.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sm_jax import boxes as box_lib
from sm_jax import rpn, settings
from sm_jax.errors import ConfigError
from sm_jax.losses.classification import sigmoid_bce
from sm_jax.systems.crossmodal import model
from sm_jax.text import RESERVED, UNK

Array = jax.Array

FORCE = ("per_gt", "per_image", "none")
ALIGN_BOXES = ("decoded", "anchor", "gt")


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """Constants of the objective.

    Attributes:
      positive_iou: an anchor that overlaps a box by more than this is positive.
      negative_iou: one that overlaps every box by less than this is negative; the others are ignored.
      force: a box also takes its best anchor: "per_gt" always, "per_image" only in an image without a
        positive (the literal reading of the paper), "none" never.
      max_positives: positives of an image that are used; as many negatives at most.
      rpn_weight: weight of the proposals' loss.
      loc_weight: weight of its box part (the paper's lambda).
      align_weight: weight of the alignment loss.
      align_boxes: boxes whose features are compared with the phrase: "decoded" from the positive anchors, the
        "anchor" itself, or the matched annotated box ("gt").
      gt_mix_steps: with "decoded", half of the boxes are annotated ones in the first so many optimizer steps.
      unk_rate: share of the words that are replaced by the unknown word.
      beta: where the smooth l1 loss of the boxes turns linear.
    """

    positive_iou: float = 0.6
    negative_iou: float = 0.1
    force: str = "per_gt"
    max_positives: int = 32
    rpn_weight: float = 1.0
    loc_weight: float = 1.0
    align_weight: float = 1.0
    align_boxes: str = "decoded"
    gt_mix_steps: int = 125
    unk_rate: float = 0.01
    beta: float = 1.0

    def __post_init__(self):
        for name, known in (("force", FORCE), ("align_boxes", ALIGN_BOXES)):
            if getattr(self, name) not in known:
                raise ConfigError(f"objective.{name}: {getattr(self, name)!r} is none of {', '.join(known)}")
        if not 0 <= self.negative_iou <= self.positive_iou <= 1:
            raise ConfigError("objective: needs 0 <= negative_iou <= positive_iou <= 1")
        if self.max_positives < 1:
            raise ConfigError(f"objective.max_positives: {self.max_positives} is not positive")
        for name in ("rpn_weight", "loc_weight", "align_weight", "beta", "gt_mix_steps"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"objective.{name}: {value} must be finite and not negative")
        if not 0 <= self.unk_rate <= 1:
            raise ConfigError(f"objective.unk_rate: {self.unk_rate} is not within 0..1")

    @classmethod
    def create(cls, options: Mapping[str, Any]) -> "ObjectiveConfig":
        """From the `objective` section of a config; an unknown key is a `ConfigError` naming the nearest."""
        return settings.from_section(cls, options, section="objective")


def assign(config: ObjectiveConfig, batch: dict[str, Array], anchors: Array, key: Array) -> rpn.RpnTargets:
    """Sampled anchors of every image and what they should say; `RpnTargets` with a leading batch axis.

    Args:
      config: thresholds and `max_positives`.
      batch: `boxes` f32 "b m 4", `boxes_valid` bool "b m", `valid` bool "b".
      anchors: f32 "n 4".
      key: random key of the sample.
    """

    def one(boxes, where, key):
        return rpn.rpn_targets(
            boxes,
            anchors,
            key,
            where=where,
            positive_iou=config.positive_iou,
            negative_iou=config.negative_iou,
            force=config.force,
            max_positives=config.max_positives,
        )

    real = batch["boxes_valid"] & batch["valid"][:, None]
    return jax.vmap(one)(batch["boxes"], real, jax.random.split(key, real.shape[0]))


def positive_boxes(
    config: ObjectiveConfig,
    codes: Array,
    anchors: Array,
    gt: Array,
    *,
    image_size: tuple[int, int],
    mix: Array,
) -> Array:
    """The boxes whose features are compared with the phrase; no gradient.

    Args:
      config: `align_boxes`.
      codes: f32 "b k 4", predicted for the positive anchors.
      anchors: f32 "b k 4", those anchors.
      gt: f32 "b k 4", the annotated boxes that they are matched with.
      image_size: (height, width) in pixels; decoded boxes are clipped to it, as proposals are.
      mix: bool "b k", with "decoded": take the annotated box.

    Returns:
      f32 "b k 4".
    """
    if config.align_boxes != "decoded":
        return {"anchor": anchors, "gt": gt}[config.align_boxes]
    decoded = box_lib.decode(jax.lax.stop_gradient(codes), anchors, weights=rpn.WEIGHTS)
    return jnp.where(mix[..., None], gt, box_lib.clip(decoded, image_size))


def replace_words(tokens: Array, key: Array, *, rate: float) -> Array:
    """`tokens` with a share `rate` of the words (not of PAD, ENC) replaced by UNK."""
    chosen = jax.random.bernoulli(key, rate, tokens.shape) & (tokens >= RESERVED)
    return jnp.where(chosen, UNK, tokens)


def loss(
    model_config: model.ModelConfig,
    config: ObjectiveConfig,
    variables: dict[str, Any],
    batch: dict[str, Array],
    key: Array,
) -> tuple[Array, tuple[dict[str, Array], dict[str, Any]]]:
    """Loss of one training batch of `b` images with one phrase each.

    Args:
      model_config: the network.
      config: the objective.
      variables: `params` and `batch_stats`.
      batch: `image` f32 "b H W 3" normalised, or `trunk` "b h w c" (see `model.trunk`); `boxes` f32 "b m 4"
        in pixels of the image, `boxes_valid` and `aligned` bool "b m" (the phrase means this box); `tokens`
        i32 "b l" or `text_features` f32 "b e"; `valid` bool "b"; optional `step` i32 () or "b", the number of
        the optimizer step, without which no annotated boxes are mixed in. Images that are not valid have no
        part in the loss, but batch statistics count them.
      key: random key: sampled anchors, mixed boxes, dropout, unknown words.

    Returns:
      `(loss, (metrics, updates))`: scalars `rpn_loss` and of it `cls_loss` and `box_loss`; `align_loss`,
      `align_accuracy` (share of the positives on whose alignment the network is right, NaN without any) and
      `positives` (per image); and the `batch_stats` that the step replaces.
    """
    sample_key, mix_key, word_key, dropout_key = jax.random.split(key, 4)
    features, updates = model.features_train(model_config, variables, batch)
    cells = features.shape[1:3]
    image_size = (cells[0] * model.STRIDE, cells[1] * model.STRIDE)
    anchors = jnp.asarray(model.anchors(model_config, cells))

    targets = assign(config, batch, anchors, sample_key)
    found = model.score_anchors(model_config, variables, features, targets.anchors)
    rpn_loss, parts = rpn.rpn_loss(
        found["logits"], found["codes"], targets, weight=config.loc_weight, beta=config.beta
    )

    # Positives come first.
    chosen, valid, matched, codes = (
        part[:, : config.max_positives]
        for part in (targets.anchors, targets.valid, targets.matched, found["codes"])
    )
    matched = jnp.maximum(matched, 0)
    gt, aligned = jax.vmap(lambda boxes, flags, index: (boxes[index], flags[index]))(
        batch["boxes"], batch["aligned"], matched
    )
    early = jnp.max(batch["step"]) < config.gt_mix_steps if "step" in batch else False
    mix = jax.random.bernoulli(mix_key, 0.5, valid.shape) & early
    boxes = positive_boxes(config, codes, anchors[chosen], gt, image_size=image_size, mix=mix)
    proposals = model.encode_proposals(model_config, variables, features, boxes)

    text = model.text_of(model_config, batch)
    if model_config.text_encoder == "transformer":
        text = replace_words(text, word_key, rate=config.unk_rate)
    text = model.encode_text(model_config, variables, text, key=dropout_key)
    compare = functools.partial(model.align_logits, model_config, variables)
    logits = jax.vmap(lambda proposals, text: compare(proposals, text[None])[0])(proposals, text)
    align_loss = sigmoid_bce(logits, aligned, where=valid)

    count = jnp.sum(valid)
    metrics = {
        "rpn_loss": rpn_loss,
        **parts,
        "align_loss": align_loss,
        "align_accuracy": jnp.sum(((logits > 0) == aligned) & valid) / count,  # 0 / 0 is no value
        "positives": count / jnp.maximum(jnp.sum(batch["valid"]), 1),
    }
    return config.rpn_weight * rpn_loss + config.align_weight * align_loss, (metrics, updates)
