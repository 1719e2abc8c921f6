"""The two-stage detector as pure functions over `variables`: features, region proposals, boxes of the second
stage.

ResNet features of stride 16 (C4), one region proposal network over them, and RoIAlign with two linear layers.
Boxes are xyxy in pixels of the image that enters the network. Source: Ren et al., Faster R-CNN (NIPS 2015);
the box head of two linear layers is that of Lin et al., Feature Pyramid Networks (CVPR 2017), on one level.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sm_jax import settings
from sm_jax.backbones import resnet
from sm_jax.backbones.common import DTYPES
from sm_jax.errors import ConfigError
from sm_jax.ops.anchors import grid_anchors
from sm_jax.ops.roi import repeat_border, roi_align
from sm_jax.rpn import RPN

Array = jax.Array
Variables = dict[str, Any]

STRIDE = 16
"""Pixels per cell of the feature map."""
CHANNELS = 1024
ROI_WEIGHTS = 1 << 26
"""Numbers that RoIAlign may hold at once for one image, 256 MB."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture, precision and what is frozen.

    Attributes:
      classes: number of the classes; 0: any object, without a class (the scores of one class, "object").
      depth: of the ResNet, 50 or 101.
      norm: of the backbone, see `resnet.ResNet`.
      frozen_blocks: units of the backbone (stem, then residual blocks) that do not train.
      train_features: whether the backbone trains at all.
      anchor_sizes: sides of the anchors in pixels (of the square of the same area).
      anchor_aspects: height / width of the anchors.
      rpn_width: channels inside the region proposal network.
      roi_channels: channels that the features are projected to before boxes read them; 0: none, all 1024.
      roi_size: cells per side that a box reads.
      roi_hidden: units of either linear layer of the second stage.
      shared_boxes: the second stage corrects a box once for all classes, not for each class.
      dtype: type of the activations of the backbone and of the convolutions on it.
      remat: recompute residual blocks in the backward pass, which saves memory.
    """

    classes: int = 0
    depth: int = 50
    norm: str = "frozen_bn"
    frozen_blocks: int = 0
    train_features: bool = True
    anchor_sizes: tuple[float, ...] = (64.0, 128.0, 256.0, 512.0)
    anchor_aspects: tuple[float, ...] = (0.5, 1.0, 2.0)
    rpn_width: int = 256
    roi_channels: int = 256
    roi_size: int = 7
    roi_hidden: int = 1024
    shared_boxes: bool = False
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self):
        for name, known in {"depth": (50, 101), "norm": resnet.NORMS, "dtype": DTYPES}.items():
            if getattr(self, name) not in known:
                listed = ", ".join(map(str, known))
                raise ConfigError(f"model.{name}: {getattr(self, name)!r} is none of {listed}")
        units = len(resnet.unit_names(self.depth))
        if not 0 <= self.frozen_blocks <= units:
            raise ConfigError(f"model.frozen_blocks: {self.frozen_blocks} is not within 0..{units}")
        for name, least in {
            "classes": 0,
            "roi_channels": 0,
            "rpn_width": 1,
            "roi_size": 1,
            "roi_hidden": 1,
        }.items():
            if getattr(self, name) < least:
                raise ConfigError(f"model.{name}: {getattr(self, name)} is below {least}")
        for name in ("anchor_sizes", "anchor_aspects"):
            if not getattr(self, name) or min(getattr(self, name)) <= 0:
                raise ConfigError(f"model.{name}: {getattr(self, name)} must be some positive numbers")

    @classmethod
    def create(cls, options: Mapping[str, Any]) -> "ModelConfig":
        """From the `model` section of a config; an unknown key is a `ConfigError` with the nearest name."""
        return settings.from_section(cls, options, section="model")

    @property
    def scored(self) -> int:
        """Classes that have a score: `classes`, or 1 where any object is meant."""
        return max(self.classes, 1)


class RoiHead(nn.Module):
    """Two linear layers with ReLU on the cells of every box, then logits and codes. Results are float32."""

    hidden: int
    classes: int
    shared_boxes: bool

    @nn.compact
    def __call__(self, cells: Array) -> tuple[Array, Array]:
        """Cells "n i j k" -> logits "n c+1" and codes "n c 4", or "n 4" with `shared_boxes`."""
        x = cells.reshape(cells.shape[0], -1)
        for name in ("hidden1", "hidden2"):
            layer = nn.Dense(self.hidden, dtype=x.dtype, kernel_init=nn.initializers.he_normal(), name=name)
            x = nn.relu(layer(x))
        x = x.astype(jnp.float32)
        logits = nn.Dense(self.classes + 1, kernel_init=nn.initializers.normal(0.01), name="logits")(x)
        boxes = 1 if self.shared_boxes else self.classes
        codes = nn.Dense(4 * boxes, kernel_init=nn.initializers.normal(0.001), name="codes")(x)
        return logits, codes if self.shared_boxes else codes.reshape(-1, boxes, 4)


# parts --------------------------------------------------------------------------------------------


def backbone(config: ModelConfig) -> resnet.ResNet:
    """The feature extractor as a linen module."""
    return resnet.ResNet(
        norm=config.norm,
        depth=config.depth,
        frozen_blocks=config.frozen_blocks,
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
    )


def rpn(config: ModelConfig) -> RPN:
    """The region proposal network as a linen module."""
    return RPN(config.rpn_width, len(config.anchor_sizes) * len(config.anchor_aspects))


def projection(config: ModelConfig) -> nn.Dense:
    """What makes `roi_channels` of the 1024 channels, as a linen module."""
    return nn.Dense(config.roi_channels, dtype=jnp.dtype(config.dtype))


def roi_head(config: ModelConfig) -> RoiHead:
    """The head of the second stage as a linen module."""
    return RoiHead(config.roi_hidden, config.scored, config.shared_boxes)


def init(config: ModelConfig, key: Array) -> Variables:
    """Random variables.

    Returns:
      `{"params": {"backbone", "rpn", "projection", "roi"}, "batch_stats": {"backbone"}}`, float32;
      "projection" only where there is one.
    """
    width = config.roi_channels or CHANNELS
    makers = {
        "backbone": (backbone(config), (1, 32, 32, 3)),
        "rpn": (rpn(config), (1, 1, 1, CHANNELS)),
        "projection": (projection(config), (1, 1, 1, CHANNELS)),
        "roi": (roi_head(config), (1, config.roi_size, config.roi_size, width)),
    }
    if not config.roi_channels:
        del makers["projection"]
    parts = {
        name: jax.jit(module.init)(part_key, jnp.zeros(shape))
        for part_key, (name, (module, shape)) in zip(
            jax.random.split(key, len(makers)), makers.items(), strict=True
        )
    }
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


def anchors(config: ModelConfig, cells: tuple[int, int]) -> np.ndarray:
    """f32 "n 4" anchors of a feature map of (height, width) `cells`, n = cells x sizes x aspects."""
    return grid_anchors(cells, stride=STRIDE, sizes=config.anchor_sizes, aspects=config.anchor_aspects)


def _part(variables: Variables, name: str) -> Variables:
    """The variables of one linen module."""
    return {kind: tree[name] for kind, tree in variables.items() if name in tree}


# functions ----------------------------------------------------------------------------------------


def extract(
    config: ModelConfig, variables: Variables, image: Array, size: Array | None = None, *, train: bool = False
) -> tuple[Array, Variables]:
    """Features of normalised pictures.

    Args:
      config: the model.
      variables: `params` and `batch_stats`.
      image: f32 "b h w 3" RGB, normalised, zero padded outside `size`.
      size: i32 "b 2" valid (height, width) in pixels; None: the whole array.
      train: with `norm="batch_norm"`, use the statistics of the batch.

    Returns:
      "b ceil(h/16) ceil(w/16) 1024" in `config.dtype`, zero outside the valid cells, and updates:
      `{"batch_stats": {"backbone": ...}}`, or `{}` where the statistics do not train.
    """
    net, own = backbone(config), _part(variables, "backbone")
    if train and config.norm == "batch_norm" and config.train_features:
        levels, changed = net.apply(own, image, size, train=True, mutable=["batch_stats"])
        return levels["c4"], {"batch_stats": {"backbone": changed["batch_stats"]}}
    features = net.apply(own, image, size)["c4"]
    return features if config.train_features else jax.lax.stop_gradient(features), {}


def score_anchors(config: ModelConfig, variables: Variables, features: Array) -> dict[str, Array]:
    """All anchors of features "b h w c": {"logits" f32 "b n", "codes" f32 "b n 4"}, as in `sm_jax.rpn`."""
    return rpn(config).apply(_part(variables, "rpn"), features)


def score_boxes(
    config: ModelConfig, variables: Variables, features: Array, boxes: Array, size: Array | None = None
) -> tuple[Array, Array]:
    """What the second stage says of boxes; no gradient to the boxes.

    Args:
      config: the model.
      variables: `params`.
      features: "b h w 1024" of `extract`.
      boxes: f32 "b k 4".
      size: i32 "b 2" valid (height, width) in pixels; None: all.

    Returns:
      Logits f32 "b k c+1" and codes f32 "b k c 4" ("b k 4" with `shared_boxes`), as in `sm_jax.two_stage`.
    """
    if size is not None:
        features = jax.vmap(repeat_border)(features, resnet.feature_size(size))
    if config.roi_channels:
        features = projection(config).apply(_part(variables, "projection"), features)
    cells = jax.vmap(functools.partial(_read, config))(features, boxes)
    flat = cells.reshape(-1, *cells.shape[2:])
    logits, codes = roi_head(config).apply(_part(variables, "roi"), flat)
    lead = boxes.shape[:2]
    return logits.reshape(*lead, *logits.shape[1:]), codes.reshape(*lead, *codes.shape[1:])


def _read(config: ModelConfig, features: Array, boxes: Array) -> Array:
    """Cells "k i j c" of the boxes "k 4" of one image."""
    side = config.roi_size
    pool = functools.partial(roi_align, stride=STRIDE, output_size=(side, side))
    # RoIAlign is a product with "k * side ** 2" rows of all cells: of a large picture only some at a time.
    some = max(1, ROI_WEIGHTS // (side * side * features.shape[0] * features.shape[1]))
    if some >= boxes.shape[0]:
        return pool(features, boxes)
    return jax.lax.map(lambda box: pool(features, box[None])[0], boxes, batch_size=some)
