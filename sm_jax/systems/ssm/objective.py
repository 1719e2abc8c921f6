"""What the matcher learns from: squared error of the coverage, scaled absolute error of the corners.

Source: SSM eq. 1 to 3, and DetectNet for comparison (specification, sec. 2 and 3). Everything is masked and
of fixed shape; sums are per image, averaged over the batch.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sm_jax import settings
from sm_jax.errors import ConfigError
from sm_jax.systems.ssm import model, targets
from sm_jax.systems.ssm.targets import Targets

Array = jax.Array

LOSSES = {"ssm": (1.0, 1.0), "detectnet": (2.0, 0.4)}
"""Of each loss the weight of the boxes' part and the coverage's scale, where the config leaves them out."""


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """Constants of the objective.

    Attributes:
      loss: "ssm": sum of (coverage - target)^2, plus the sum of |offset - target| / sqrt(w h) over covered
        cells. "detectnet": half the sum of squares, and |offset - target| divided by w (x) or h (y) and by
        the object's covered area in cells.
      sem_weight: weight of the coverage's part.
      rect_weight: weight of the boxes' part; None: 1 (ssm), 2 (detectnet).
      rect_obj_norm: with "ssm", the boxes' part is also divided by the number of cells that the object
        covers, so that large objects do not outweigh small ones.
      coverage_scale: sides of the covered rectangle in parts of the box's; None: 1 (ssm), .4 (detectnet).
      min_coverage: least sides of the covered rectangle, in pixels.
      small_wins: a cell under several boxes goes to the smallest; else to the last one.
    """

    loss: str = "ssm"
    sem_weight: float = 1.0
    rect_weight: float | None = None
    rect_obj_norm: bool = False
    coverage_scale: float | None = None
    min_coverage: float = targets.MIN_COVERAGE
    small_wins: bool = True

    def __post_init__(self):
        if self.loss not in LOSSES:
            raise ConfigError(f"objective.loss: {self.loss!r} is none of {', '.join(LOSSES)}")
        for name in ("sem_weight", "rect_weight", "min_coverage"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"objective.{name}: {value} must be finite and not negative")
        if self.coverage_scale is not None and not 0 < self.coverage_scale <= 1:
            raise ConfigError(
                f"objective.coverage_scale: {self.coverage_scale} is not within 0..1 (without 0)"
            )
        if self.rect_obj_norm and self.loss != "ssm":
            raise ConfigError(
                "objective.rect_obj_norm: is for loss='ssm'; 'detectnet' has its own normaliser"
            )

    @classmethod
    def create(cls, options: Mapping[str, Any]) -> "ObjectiveConfig":
        """From the `objective` section of a config; an unknown key is a `ConfigError` naming the nearest."""
        return settings.from_section(cls, options, section="objective")


def make_targets(config: ObjectiveConfig, boxes: Array, where: Array, cells: tuple[int, int]) -> Targets:
    """`targets.coverage_targets` of a batch: boxes "b n 4", where bool "b n", all with a leading axis b."""
    scale = LOSSES[config.loss][1] if config.coverage_scale is None else config.coverage_scale
    one = functools.partial(
        targets.coverage_targets,
        cells=cells,
        scale=scale,
        min_coverage=config.min_coverage,
        small_wins=config.small_wins,
    )
    return jax.vmap(lambda boxes, where: one(boxes, where=where))(boxes, where)


def losses(config: ObjectiveConfig, coverage: Array, offsets: Array, wanted: Targets) -> tuple[Array, Array]:
    """The two parts of the loss of every image, not weighted: coverage f32 "b", boxes f32 "b".

    Args:
      config: which loss.
      coverage: "b h w" predicted, 0 to 1.
      offsets: "b h w 4" predicted.
      wanted: targets of the same cells.
    """
    square = jnp.sum((coverage - wanted.coverage) ** 2, axis=(1, 2))
    apart = jnp.abs(offsets - wanted.offsets)  # the normalisers are 0 outside
    if config.loss == "detectnet":
        norm = jnp.concatenate([wanted.inverse_size] * 2, axis=-1) * wanted.obj_norm[..., None]
        return square / 2, jnp.sum(apart * norm, axis=(1, 2, 3))
    norm = wanted.k_norm * wanted.share if config.rect_obj_norm else wanted.k_norm
    return square, jnp.sum(apart * norm[..., None], axis=(1, 2, 3))


def loss(
    model_config: model.ModelConfig,
    config: ObjectiveConfig,
    variables: dict[str, Any],
    batch: dict[str, Array],
    key: Array,
) -> tuple[Array, tuple[dict[str, Array], dict[str, Any]]]:
    """Loss of one training batch of `b` pairs of an image and a request.

    Args:
      model_config: the network.
      config: the objective.
      variables: `params`.
      batch: `image` f32 "b H W 3", BGR minus 127, or `image_trunk` (see `model.trunk`); `request` f32
        "b h w 3" or `request_trunk`; `boxes` f32 "b n 4", pixels of the image, only those of the requested
        class; `valid` bool "b n", the real ones; `positive` bool "b", whether the image holds the class:
        where False the coverage should be 0 everywhere, and the boxes have no part.
      key: random key of the dropout.

    Returns:
      `(loss, (metrics, updates))`: scalars `sem_loss` and `rect_loss` (not weighted), `coverage_inside` and
      `coverage_outside`, the mean predicted coverage of covered and of other cells (NaN where there are
      none); and no updates.
    """
    features = model.extract(model_config, variables, batch)
    request = model.encode(model_config, variables, batch)["request"]
    out = model.head(model_config, variables, features, request, key=key)
    coverage = jax.nn.sigmoid(out["logits"])

    where = batch["valid"] & batch["positive"][:, None]
    wanted = make_targets(config, batch["boxes"], where, features.shape[1:3])
    sem_loss, rect_loss = (jnp.mean(part) for part in losses(config, coverage, out["offsets"], wanted))
    rect_weight = LOSSES[config.loss][0] if config.rect_weight is None else config.rect_weight
    inside, outside = wanted.coverage, 1 - wanted.coverage
    metrics = {
        "sem_loss": sem_loss,
        "rect_loss": rect_loss,
        "coverage_inside": jnp.sum(coverage * inside) / jnp.sum(inside),
        "coverage_outside": jnp.sum(coverage * outside) / jnp.sum(outside),
    }
    return config.sem_weight * sem_loss + rect_weight * rect_loss, (metrics, {})
