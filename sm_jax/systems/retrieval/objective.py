"""What descriptors learn from: tuples of a query, a positive and hard negatives.

Source: cnnimageretrieval v1.1 (tuples, their sum as the loss of a batch) as OS2D's baseline uses it
(specification, sec. 16).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sm_jax import settings
from sm_jax.errors import ConfigError
from sm_jax.losses.pairs import contrastive
from sm_jax.systems.retrieval import model

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """Constants of the objective.

    Attributes:
      margin: negatives should be at least this far from the query; 0.85 is for whitened descriptors.
    """

    margin: float = 0.85

    def __post_init__(self):
        if not 0 < self.margin <= 2:
            raise ConfigError(f"objective.margin: {self.margin} is not within 0..2, where distances are")

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
    """Loss of one training batch of `b` tuples of `t` pictures: query, positive, then negatives.

    Args:
      model_config: the network.
      config: the objective.
      variables: `params` and `batch_stats`.
      batch: `image` f32 "b t h w 3", normalised, zero padded, or `image_trunk` "b t h' w' 1024", the features
        of a backbone that does not train; `size` int32 "b t 2", valid (height, width) in pixels; `valid` bool
        "b t", pictures that could be read.
      key: not used.

    Returns:
      `(loss, (metrics, updates))`: the sum over all pairs of a query with another of its tuple; scalars
      `positive_distance` and `negative_distance` (means), `violated` (share of the negatives that are nearer
      than the positive) and `p`; and no updates.
    """
    del key
    size = batch["size"]
    flat_size = size.reshape(-1, 2)
    if "image_trunk" in batch:
        features = batch["image_trunk"].reshape(-1, *batch["image_trunk"].shape[2:])
        found = model.describe_features(model_config, variables, features, flat_size)
    else:
        images = batch["image"].reshape(-1, *batch["image"].shape[2:])
        found = model.describe(model_config, variables, images, flat_size)
    found = found.reshape(*size.shape[:2], -1)

    valid = batch["valid"][:, :1] & batch["valid"][:, 1:]
    positive = jnp.broadcast_to(jnp.arange(valid.shape[1])[None] == 0, valid.shape)
    pairs, distances = contrastive(found[:, :1], found[:, 1:], positive, margin=config.margin, where=valid)
    negatives = valid & ~positive
    nearer = negatives & valid[:, :1] & (distances < distances[:, :1])

    def mean(values, where):
        return jnp.sum(values * where) / jnp.sum(where)

    metrics = {
        "positive_distance": mean(distances, valid & positive),
        "negative_distance": mean(distances, negatives),
        "violated": mean(nearer, negatives),
        "p": variables["params"]["pool"]["p"][0],
    }
    return jnp.sum(pairs), (metrics, {})
