"""The OS2D network as pure functions over `variables`: features, class templates, head.

Source: OS2D (ECCV 2020), sec. 3, and the published OS2D code where they differ. Everything has fixed shapes;
a padded picture with its `size` gives the results of the unpadded one.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sm_jax import settings
from sm_jax.backbones import resnet
from sm_jax.backbones.common import DTYPES
from sm_jax.errors import ConfigError
from sm_jax.ops.correlation import l2_normalize
from sm_jax.ops.resample import resize_align_corners
from sm_jax.systems.os2d.head import FEATURE_EPSILON, TEMPLATE, HeadOutput, match
from sm_jax.systems.os2d.transformnet import CHANNELS, TransformNet

Array = jax.Array
Variables = dict[str, Any]

FEATURES = 1024
"""Channels of the features at level C4."""
WINDOWS = ("", "square", "target")
"""Values of `ModelConfig.window`."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture, precision and what is frozen.

    Attributes:
      depth: ResNet depth, 50 or 101.
      norm: backbone normalisation, `"frozen_bn"`, `"batch_norm"` or `"group_norm"`.
      simplified: 4 transformation parameters (V1) instead of 6 (V2).
      inverse: the predicted transformation is inverted before use (V2).
      window: "" for the transformation network; "square" or "target": a sliding window instead of it, which
        does not train: the template undeformed, or the class map in its own shape (see `sliding`).
      query_size: a class picture is resized to this number squared of pixels.
      freeze_bn_transform: TransformNet keeps its running statistics in training (V2).
      frozen_blocks: backbone units (stem, then residual blocks) that do not train.
      train_features: whether the backbone trains at all.
      dtype: type of the backbone's activations.
      head_dtype: type of the correlation and of TransformNet's activations; sums are float32.
      remat: recompute the backbone's blocks in the backward pass.
    """

    depth: int = 50
    norm: str = "frozen_bn"
    simplified: bool = True
    inverse: bool = False
    window: str = ""
    query_size: int = 240
    freeze_bn_transform: bool = False
    frozen_blocks: int = 0
    train_features: bool = True
    dtype: str = "float32"
    head_dtype: str = "float32"
    remat: bool = False

    def __post_init__(self):
        known = {"depth": (50, 101), "norm": resnet.NORMS, "window": WINDOWS}
        known |= {"dtype": DTYPES, "head_dtype": DTYPES}
        for name, values in known.items():
            if getattr(self, name) not in values:
                listed = ", ".join(str(value) or "''" for value in values)
                raise ConfigError(f"model.{name}: {getattr(self, name)!r} is none of {listed}")
        units = len(resnet.unit_names(self.depth))
        if not 0 <= self.frozen_blocks <= units:
            raise ConfigError(f"model.frozen_blocks: {self.frozen_blocks} is not within 0..{units}")
        if self.query_size < 1:
            raise ConfigError(f"model.query_size: {self.query_size} is not positive")

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


def transform_net(config: ModelConfig) -> TransformNet:
    """The transformation network as a linen module."""
    return TransformNet(
        4 if config.simplified else 6, jnp.dtype(config.head_dtype), frozen_norm=config.freeze_bn_transform
    )


def init(config: ModelConfig, key: Array) -> Variables:
    """Random variables; TransformNet starts as the identity transformation.

    Args:
      config: the model.
      key: random key.

    Returns:
      `{"params": {"backbone", "transform"}, "batch_stats": {...}}`, float32, names as in `weights.structure`;
      without "transform" for a sliding window.
    """
    keys = jax.random.split(key)
    parts = {"backbone": jax.jit(backbone(config).init)(keys[0], jnp.zeros((1, 32, 32, 3)))}
    if not config.window:
        parts["transform"] = jax.jit(transform_net(config).init)(keys[1], jnp.zeros((1, 1, 1, CHANNELS)))
    return {
        collection: {name: part[collection] for name, part in parts.items() if collection in part}
        for collection in ("params", "batch_stats")
    }


def trainable(config: ModelConfig, path: str) -> bool:
    """Whether the parameter at `path` ("backbone/conv1/kernel") is trained; the rest gets no weight decay."""
    part, name = path.split("/", 1)
    if part != "backbone":
        return True
    frozen = resnet.is_frozen(name, depth=config.depth, frozen_blocks=config.frozen_blocks)
    return config.train_features and not frozen


def _part(variables: Variables, name: str) -> Variables:
    """The variables of one linen module."""
    return {kind: tree[name] for kind, tree in variables.items() if name in tree}


def _full_size(image: Array) -> Array:
    return jnp.broadcast_to(jnp.asarray(image.shape[1:3], jnp.int32)[None], (image.shape[0], 2))


def extract(
    config: ModelConfig, variables: Variables, image: Array, size: Array | None = None
) -> tuple[Array, Array]:
    """Features of normalised pictures, with the running statistics of the norm.

    Args:
      config: the model.
      variables: `params` and `batch_stats`.
      image: `(b, h, w, 3)` RGB, normalised, zero padded outside `size`.
      size: `(b, 2)` int32 valid (height, width) in pixels; None: the whole array is valid.

    Returns:
      `(b, ceil(h/16), ceil(w/16), 1024)` in `config.dtype`, zero outside the valid cells, and `(b, 2)` int32
      the valid size in cells.
    """
    features = backbone(config).apply(_part(variables, "backbone"), image, size)["c4"]
    size = _full_size(image) if size is None else size
    return _stop(config, features), resnet.feature_size(size)


def extract_train(
    config: ModelConfig, variables: Variables, image: Array, size: Array | None = None
) -> tuple[Array, Array, Variables]:
    """As `extract`, in training mode: only `norm="batch_norm"` differs.

    Returns:
      features, features_size, and updates: `{"batch_stats": {"backbone": ...}}`, or `{}` when the statistics
      do not train.
    """
    if config.norm != "batch_norm" or not config.train_features:
        return *extract(config, variables, image, size), {}
    levels, updates = backbone(config).apply(
        _part(variables, "backbone"), image, size, train=True, mutable=["batch_stats"]
    )
    size = _full_size(image) if size is None else size
    return levels["c4"], resnet.feature_size(size), {"batch_stats": {"backbone": updates["batch_stats"]}}


def _stop(config: ModelConfig, features: Array) -> Array:
    return features if config.train_features else jax.lax.stop_gradient(features)


def encode_features(config: ModelConfig, features: Array, size: Array) -> Array:
    """Class feature maps to templates: corner-aligned bilinear resize to 15x15, then L2 over channels.

    Args:
      config: the model.
      features: `(r, h, w, d)`.
      size: `(r, 2)` int32 valid size in cells.

    Returns:
      `(r, 15, 15, d)` float32. Source: OS2D (ECCV 2020), sec. 3.1; eps 1e-5 as published.
    """
    del config
    resize = functools.partial(resize_align_corners, out=(TEMPLATE, TEMPLATE))
    resized = jax.vmap(lambda one, valid: resize(one, size=valid))(features.astype(jnp.float32), size)
    return l2_normalize(resized, epsilon=FEATURE_EPSILON)


def encode(config: ModelConfig, variables: Variables, requests: dict[str, Array]) -> dict[str, Array]:
    """Class pictures to templates, once per request.

    Args:
      config: the model.
      variables: `params` and `batch_stats`.
      requests: `image` `(r, h, w, 3)` normalised, zero padded; `size` `(r, 2)` int32.

    Returns:
      `{"template": (r, 15, 15, 1024) float32}`.
    """
    features, size = extract(config, variables, requests["image"], requests.get("size"))
    return {"template": encode_features(config, features, size)}


def head(
    config: ModelConfig,
    variables: Variables,
    features: Array,
    features_size: Array | None,
    template: Array,
    *,
    train: bool = False,
    query_valid: Array | None = None,
    image_valid: Array | None = None,
) -> tuple[HeadOutput, Variables]:
    """Scores and alignments of every class at every cell of every image.

    Args:
      config: the model.
      variables: `params` and `batch_stats`.
      features: `(b, h, w, d)` of `extract`.
      features_size: `(b, 2)` int32 valid size in cells; None: all.
      template: `(c, 15, 15, d)` of `encode`.
      train: batch statistics in TransformNet unless `freeze_bn_transform`.
      query_valid: `(c,)` bool, classes that enter those statistics; None: all.
      image_valid: `(b,)` bool, images that enter those statistics; None: all.

    Returns:
      `HeadOutput`, and updates: `{"batch_stats": {"transform": ...}}` or `{}`.
    """
    net, variables = transform_net(config), _part(variables, "transform")
    output, statistics = match(
        functools.partial(net.apply, variables),
        features,
        features_size,
        template,
        dtype=jnp.dtype(config.head_dtype),
        inverse=config.inverse,
        train=train,
        batch_statistics=not config.freeze_bn_transform,
        query_valid=query_valid,
        image_valid=image_valid,
    )
    return output, {} if statistics is None else {"batch_stats": {"transform": statistics}}
