"""What SCNet learns from: of an active region, the matches that overlap its true box and the hardest others.

Source: SCNet (ICCV 2017), sec. 3.4, with the constants of the published code (specification, sec. 3). The L2
regularisation is `optim.weight_decay`; which embedding trains when is `model.agplus_schedule`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sm_jax import settings
from sm_jax.errors import ConfigError
from sm_jax.losses.hard_negatives import hard_negative_hinge
from sm_jax.ops.matching import best_matches
from sm_jax.systems.scnet import model

Array = jax.Array

CORRECT_IOU = 0.5
"""From which overlap on the metrics call a match right."""


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """Constants of the objective.

    Attributes:
      positive_iou: a target region is a positive above this IoU with the true box (paper: 0.6).
      negative_iou: and may be a hard negative up to this one (paper: 0.4).
    """

    positive_iou: float = 0.5
    negative_iou: float = 0.2

    def __post_init__(self):
        if not 0 <= self.negative_iou <= self.positive_iou < 1:
            raise ConfigError("objective: needs 0 <= negative_iou <= positive_iou < 1")

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
    """Mean loss of the pairs of a batch (see `data.scnet.BatchBuilder`).

    Args:
      model_config: the network.
      config: the objective.
      variables: `params`.
      batch: of either side (`source_`, `target_`) "features" f16 "b h w c", the map of the frozen trunk, or
        what `model.pair_scores` takes; "boxes" f32 "b n 4" and "valid" bool "b n"; "bins" i32 "b n n",
        "overlaps" f32 "b n n", "active" bool "b n".
      key: not needed: nothing is random.

    Returns:
      `(loss, (metrics, updates))`: scalars `correct`, the share of active regions whose best match overlaps
      the true box by more than `CORRECT_IOU`; `iou`, the mean overlap of the best matches; `positive` and
      `negative`, mean scores above `positive_iou` and up to `negative_iou` (NaN without any); no updates.
    """
    del key
    scores = model.pair_scores(model_config, variables, pool(model_config, batch))
    active = batch["active"] & batch["source_valid"]
    where = active[:, :, None] & batch["target_valid"][:, None, :]
    overlaps = batch["overlaps"]

    def one(scores, overlaps, where):
        return hard_negative_hinge(
            scores,
            overlaps,
            positive_iou=config.positive_iou,
            negative_iou=config.negative_iou,
            where=where,
        )

    total = jnp.mean(jax.vmap(one)(scores, overlaps, where))
    index, _ = jax.vmap(lambda z, real: best_matches(z, where=real))(scores, where)
    found = jnp.take_along_axis(overlaps, index[:, :, None], axis=2)[:, :, 0]
    metrics = {
        "correct": _mean(found > CORRECT_IOU, active),
        "iou": _mean(found, active),
        "positive": _mean(scores, where & (overlaps > config.positive_iou)),
        "negative": _mean(scores, where & (overlaps <= config.negative_iou)),
    }
    return total, (metrics, {})


def pool(config: model.ModelConfig, batch: Mapping[str, Array]) -> dict[str, Array]:
    """The batch with "roi" "b n r r c" of either side in place of the stored "features"."""
    batch = dict(batch)
    for side in ("source", "target"):
        if f"{side}_features" in batch:
            maps, boxes = batch.pop(f"{side}_features"), batch[f"{side}_boxes"]
            batch[f"{side}_roi"] = jax.vmap(lambda one, some: model.roi(config, one, some))(maps, boxes)
    return batch


def _mean(values: Array, where: Array) -> Array:
    return jnp.sum(jnp.where(where, values, 0)) / jnp.sum(where)
