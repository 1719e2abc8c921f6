"""A picture as one descriptor: ResNet features, generalised-mean pooling, learned whitening.

`params` has up to three parts: "backbone", "pool" (the exponent `p`) and, with whitening, "whiten". Source:
"Fine-tuning CNN Image Retrieval with No Human Annotation" (PAMI 2018) and cnnimageretrieval v1.1 with
end-to-end whitening, the retrieval of OS2D's baseline (ECCV 2020; specification, sec. 16). Here the network
is cut after C4, as everywhere in the library.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sm_jax import settings
from sm_jax.backbones import resnet
from sm_jax.backbones.common import DTYPES, uniform_fan_in, valid_cells
from sm_jax.errors import ConfigError
from sm_jax.ops.correlation import l2_normalize
from sm_jax.ops.gem import gem

Array = jax.Array
Variables = dict[str, Any]

FEATURES = 1024
"""Channels of the features at level C4."""
EPSILON = 1e-6
"""Added to the norm that a descriptor is divided by (cnnimageretrieval v1.1)."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture, precision and what is frozen.

    Attributes:
      depth: ResNet depth, 50 or 101.
      norm: "frozen_bn" (running statistics, as published), or "group_norm".
      p: exponent of the pooling at the start; it is learned.
      whiten: whether a linear layer with bias, and a second normalisation, follow the pooling.
      dim: numbers of a whitened descriptor; 0: as many as there are channels.
      image_size: the longer side of pictures in training, in pixels.
      train_features: whether the backbone trains.
      frozen_blocks: backbone units (stem, then residual blocks) that do not train in any case.
      dtype: type of the backbone's activations; pooling and whitening are float32.
      remat: recompute the backbone's blocks in the backward pass.
    """

    depth: int = 50
    norm: str = "frozen_bn"
    p: float = 3.0
    whiten: bool = True
    dim: int = 0
    image_size: int = 240
    train_features: bool = True
    frozen_blocks: int = 0
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self):
        known = {"depth": (50, 101), "norm": ("frozen_bn", "group_norm"), "dtype": DTYPES}
        for name, values in known.items():
            if getattr(self, name) not in values:
                listed = ", ".join(map(str, values))
                raise ConfigError(f"model.{name}: {getattr(self, name)!r} is none of {listed}")
        if not 0 < self.p < 100:
            raise ConfigError(f"model.p: {self.p} is not within 0..100")
        if not 0 <= self.dim <= FEATURES or (self.dim and not self.whiten):
            raise ConfigError(
                f"model.dim: {self.dim} is not within 0..{FEATURES}, or there is no whitening (model.whiten)"
            )
        if self.image_size < 32:
            raise ConfigError(f"model.image_size: {self.image_size} pixels are too few; 32 is the least")
        units = len(resnet.unit_names(self.depth))
        if not 0 <= self.frozen_blocks <= units:
            raise ConfigError(f"model.frozen_blocks: {self.frozen_blocks} is not within 0..{units}")

    @property
    def width(self) -> int:
        """Numbers of a descriptor."""
        return self.dim or FEATURES

    @classmethod
    def create(cls, options: Mapping[str, Any]) -> "ModelConfig":
        """From the `model` section of a config; an unknown key is a `ConfigError` with the nearest name."""
        return settings.from_section(cls, options, section="model")


def backbone(config: ModelConfig) -> resnet.ResNet:
    """The feature extractor as a linen module."""
    return resnet.ResNet(
        norm=config.norm,
        depth=config.depth,
        frozen_blocks=config.frozen_blocks,
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
    )


def init(config: ModelConfig, key: Array) -> Variables:
    """Random variables: the pooling at `config.p`, the whitening as a linear layer of PyTorch starts."""
    keys = jax.random.split(key, 3)
    variables = jax.jit(backbone(config).init)(keys[0], jnp.zeros((1, 32, 32, 3)))
    params = {"backbone": variables["params"], "pool": {"p": jnp.full((1,), config.p, jnp.float32)}}
    if config.whiten:
        start = uniform_fan_in(FEATURES)
        params["whiten"] = {
            "kernel": start(keys[1], (FEATURES, config.width)),
            "bias": start(keys[2], (config.width,)),
        }
    rest = {"batch_stats": {"backbone": variables["batch_stats"]}} if "batch_stats" in variables else {}
    return {"params": params, **rest}


def trainable(config: ModelConfig, path: str) -> bool:
    """Whether the parameter at `path` ("backbone/conv1/kernel") is trained; the rest gets no weight decay."""
    part, name = path.split("/", 1)
    if part != "backbone":
        return True
    frozen = resnet.is_frozen(name, depth=config.depth, frozen_blocks=config.frozen_blocks)
    return config.train_features and not frozen


def extract(config: ModelConfig, variables: Variables, image: Array, size: Array) -> Array:
    """Features of normalised pictures.

    Args:
      config: the model.
      variables: `params` and `batch_stats`; read is the backbone.
      image: "b h w 3" RGB, normalised, zero padded outside `size`.
      size: int32 "b 2" valid (height, width) in pixels.

    Returns:
      "b ceil(h/16) ceil(w/16) 1024" in `config.dtype`, zero outside the valid cells.
    """
    own = {kind: tree["backbone"] for kind, tree in variables.items() if "backbone" in tree}
    features = backbone(config).apply(own, image, size)["c4"]
    return features if config.train_features else jax.lax.stop_gradient(features)


def describe_features(config: ModelConfig, variables: Variables, features: Array, size: Array) -> Array:
    """Descriptors f32 "b d" of feature maps "b h w 1024", valid within `size` int32 "b 2" pixels."""
    return whiten(config, variables, pool(variables, features, size))


def pool(variables: Variables, features: Array, size: Array) -> Array:
    """Pooled, L2-normalised features f32 "b c" of maps "b h w c", valid within `size` int32 "b 2" pixels."""
    where = valid_cells(resnet.feature_size(size), features.shape[1:3])
    p = variables["params"]["pool"]["p"][0]
    pooled = jax.vmap(lambda one, valid: gem(one, p, where=valid))(features, where)
    return l2_normalize(pooled, epsilon=EPSILON)


def whiten(config: ModelConfig, variables: Variables, pooled: Array) -> Array:
    """The learned whitening of pooled features "b c", L2-normalised again: "b d"; as they are without one."""
    if not config.whiten:
        return pooled
    layer = variables["params"]["whiten"]
    return l2_normalize(pooled @ layer["kernel"] + layer["bias"][None], epsilon=EPSILON)


def describe(config: ModelConfig, variables: Variables, image: Array, size: Array) -> Array:
    """Descriptors f32 "b d" of normalised pictures; arguments as of `extract`."""
    return describe_features(config, variables, extract(config, variables, image, size), size)


def scale_power(config: ModelConfig, variables: Variables) -> float:
    """Exponent of the mean of a picture's descriptors over its scales: that of the pooling, 1 with whitening.

    Source: cnnimageretrieval v1.1. Without whitening descriptors are not negative.
    """
    return 1.0 if config.whiten else float(variables["params"]["pool"]["p"][0])


def encode(config: ModelConfig, variables: Variables, requests: dict[str, Array]) -> dict[str, Array]:
    """`{"descriptor": (r, d)}` of class pictures `image` "r h w 3" with their `size` int32 "r 2"."""
    return {"descriptor": describe(config, variables, requests["image"], requests["size"])}


def predict(
    config: ModelConfig, variables: Variables, images: dict[str, Array], encoded: dict[str, Array]
) -> dict[str, Array]:
    """`{"scores": (b, r)}`: the cosine of every picture (`image`, `size` as in `encode`) with every
    request."""
    found = describe(config, variables, images["image"], images["size"])
    return {"scores": found @ encoded["descriptor"].T}
