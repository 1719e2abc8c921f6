"""Hard patches: the crops of every training image that the model did worst on, and how batches choose them.

A batch stays a pure function of (source, options, seed, memory, k): `HardPatches` is the memory, an immutable
set of arrays of one form for the whole run, and part of the training iterator's state. Who looks for the
patches: `sm_jax.training.mining`. Source: OS2D, published code (hard patch mining; spec sec. 10).
"""

import base64
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from sm_jax import settings
from sm_jax.errors import ConfigError, DataError

ROLES = ("neg", "pos", "pos_loc")
"""Why a patch is kept: recognition loss of a negative, of a positive; localisation loss of a positive."""

PATCH_STREAM, MINING_STREAM = 4, 5
"""Random streams (see `order.rng`): which patch a row takes; scales and classes of an image when mining."""

_TYPES = {"labels": "<i4", "crops": "<i4", "losses": "<f4"}


@dataclass(frozen=True)
class MiningOptions:
    """The config section `data.mining`; the defaults are the published ones.

    Attributes:
      enabled: whether training mines at all.
      every: steps between two passes over the training images; the first is before step 0.
      patches: how many are kept per image and role.
      scales: pyramid levels per image, at random scales within `eval.scales`.
      random_classes: classes searched in an image besides its own.
      nms_iou: patches of one role overlap by no more than this.
    """

    enabled: bool = False
    every: int = 5000
    patches: int = 10
    scales: int = 2
    random_classes: int = 200
    nms_iou: float = 0.5

    def __post_init__(self):
        for name, low in (("every", 1), ("patches", 1), ("scales", 1), ("random_classes", 0)):
            if getattr(self, name) < low:
                raise ConfigError(f"data.mining.{name}: must be at least {low}, not {getattr(self, name)}")
        if not (math.isfinite(self.nms_iou) and 0 <= self.nms_iou <= 1):
            raise ConfigError(f"data.mining.nms_iou: must lie in [0, 1], not {self.nms_iou}")


def options(data: Any) -> MiningOptions:
    """From the config section `data`; without `data.mining` nothing is mined.

    Raises:
      ConfigError: a value that cannot be used, or the plain True or False of older configs.
    """
    section = data.get("mining", {})
    if not hasattr(section, "items"):
        raise ConfigError(
            f"data.mining={section}: is a section now; write data.mining.enabled={section} "
            "(docs/os2d.md has the other options)"
        )
    return settings.from_section(MiningOptions, section, section="data.mining")


class Patch(NamedTuple):
    """One crop to train on.

    Attributes:
      role: one of `ROLES`.
      label: class index of the source that the loss is of.
      crop: i32 (4,) xyxy pixels of the stored image; right and bottom may lie outside it.
      loss: when it was found.
    """

    role: str
    label: int
    crop: np.ndarray
    loss: float


@dataclass(frozen=True, eq=False)
class HardPatches:
    """The memory: `patches` places per image and role, hardest first, then empty ones (label -1).

    Attributes (m images, 3 roles in the order of `ROLES`, k places):
      step: when it was mined.
      labels: i32 (m, 3, k), class index or -1.
      crops: i32 (m, 3, k, 4), see `Patch`.
      losses: f32 (m, 3, k).
    """

    step: int
    labels: np.ndarray
    crops: np.ndarray
    losses: np.ndarray

    @classmethod
    def empty(cls, images: int, patches: int, *, step: int = 0) -> "HardPatches":
        """Room for `patches` per role of `images` images."""
        shape = (images, len(ROLES), patches)
        return cls(
            step,
            np.full(shape, -1, np.int32),
            np.zeros((*shape, 4), np.int32),
            np.zeros(shape, np.float32),
        )

    def of(self, image: int) -> list[Patch]:
        """The patches of an image: role by role, hardest first."""
        labels, crops, losses = self.labels[image], self.crops[image], self.losses[image]
        return [
            Patch(ROLES[at[0]], int(labels[at]), crops[at], float(losses[at]))
            for at in map(tuple, np.argwhere(labels >= 0))
        ]

    def choose(self, rng: np.random.Generator, image: int, *, positive: bool) -> Patch | None:
        """A random patch of an image, of a positive role or of the negative one.

        Where the wanted role is missing it is any of the image's, None where there is none at all.
        """
        patches = self.of(image)
        wanted = [patch for patch in patches if (patch.role != ROLES[0]) == positive] or patches
        return wanted[rng.integers(len(wanted))] if wanted else None

    def counts(self) -> dict[str, int]:
        """How many patches of each role there are."""
        return dict(zip(ROLES, (self.labels >= 0).sum(axis=(0, 2)).tolist(), strict=True))

    @cached_property
    def json(self) -> dict[str, Any]:
        """As JSON holds it: each array as base64 of its little-endian bytes, compressed by zlib."""
        packed = {
            name: base64.b64encode(
                zlib.compress(np.ascontiguousarray(getattr(self, name), kind).tobytes())
            ).decode()
            for name, kind in _TYPES.items()
        }
        return {"step": self.step, "shape": list(self.labels.shape), **packed}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "HardPatches":
        """The inverse of `json`. Raises DataError for anything else."""
        try:
            shape = tuple(int(extent) for extent in value["shape"])
            arrays = {
                name: np.frombuffer(zlib.decompress(base64.b64decode(value[name], validate=True)), kind)
                for name, kind in _TYPES.items()
            }
            arrays = {
                name: array.reshape((*shape, 4) if name == "crops" else shape)
                for name, array in arrays.items()
            }
            return cls(int(value["step"]), **arrays)
        except (TypeError, ValueError, KeyError, zlib.error) as error:
            raise DataError(f"the hard patches of this checkpoint are damaged ({error})") from error
