"""The CoAE network as pure functions over `variables`: features, co-attention, proposals, second stage.

What one image and one query have to do with each other is written for that pair: `vmap` over both. A padded
picture with its `size` gives the results of the unpadded one. Boxes are xyxy in pixels of the image in the
batch. Source: Hsieh et al., "One-Shot Object Detection with Co-Attention and Co-Excitation" (NeurIPS 2019).
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sm_jax import rpn as rpn_lib
from sm_jax import settings, two_stage
from sm_jax.backbones import resnet
from sm_jax.backbones.common import DTYPES, valid_cells
from sm_jax.errors import ConfigError
from sm_jax.ops.anchors import grid_anchors
from sm_jax.ops.resample import resize_align_corners
from sm_jax.ops.roi import repeat_border
from sm_jax.systems.coae.parts import HEADS, KINDS, STRIDE, Excitation, Head, NonLocal

Array = jax.Array
Variables = dict[str, Any]

CHANNELS = 1024
"""Channels of the features at level C4."""
NORMS = ("frozen_bn", "group_norm")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture, precision and what is frozen.

    Attributes:
      depth: ResNet depth, 50 or 101.
      norm: backbone normalisation, "frozen_bn" or "group_norm".
      query_size: a class picture is resized to this number squared of pixels; its map gets
        `query_size / 16` cells along either side.
      attention: "softmax" or "dot"; see `parts.attend`.
      attention_width: channels inside the non-local blocks.
      excitation_ratio: channels per hidden unit of the excitation.
      anchor_scales: sides of the anchors in units of 16 pixels (of the square of the same area).
      anchor_aspects: height / width of the anchors.
      rpn_width: channels inside the region proposal network.
      head: "c5" or "light"; see `parts.Head`.
      bins: cells of a box along either side.
      head_width: channels of the light head.
      compare_hidden: hidden units of the perceptron that compares.
      candidates: anchors that are decoded.
      proposals: boxes that reach the second stage, at inference and before the sample of training.
      proposal_iou: of two proposals that overlap by more than this the lower is dropped.
      frozen_blocks: backbone units (stem, then residual blocks) that do not train.
      train_features: whether the backbone trains at all.
      dtype: type of the backbone's activations.
      remat: recompute the backbone's blocks in the backward pass.
    """

    depth: int = 50
    norm: str = "frozen_bn"
    query_size: int = 192
    attention: str = "softmax"
    attention_width: int = 512
    excitation_ratio: int = 16
    anchor_scales: tuple[float, ...] = (4.0, 8.0, 16.0, 32.0)
    anchor_aspects: tuple[float, ...] = (0.5, 1.0, 2.0)
    rpn_width: int = 512
    head: str = "c5"
    bins: int = 7
    head_width: int = 256
    compare_hidden: int = 8
    candidates: int = 2000
    proposals: int = 300
    proposal_iou: float = 0.7
    frozen_blocks: int = 0
    train_features: bool = True
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self):
        known = {"depth": (50, 101), "norm": NORMS, "attention": KINDS, "head": HEADS, "dtype": DTYPES}
        for name, values in known.items():
            if getattr(self, name) not in values:
                listed = ", ".join(map(str, values))
                raise ConfigError(f"model.{name}: {getattr(self, name)!r} is none of {listed}")
        for name in ("attention_width", "excitation_ratio", "rpn_width", "bins", "head_width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name}: {getattr(self, name)} is not positive")
        for name in ("compare_hidden", "candidates", "proposals"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name}: {getattr(self, name)} is not positive")
        for name in ("anchor_scales", "anchor_aspects"):
            if not getattr(self, name) or min(getattr(self, name)) <= 0:
                raise ConfigError(f"model.{name}: {getattr(self, name)} must be some positive numbers")
        if self.query_size < STRIDE or self.query_size % STRIDE:
            raise ConfigError(f"model.query_size: {self.query_size} is no positive multiple of {STRIDE}")
        if not 0 < self.proposal_iou <= 1:
            raise ConfigError(f"model.proposal_iou: {self.proposal_iou} is not within 0..1")
        units = len(resnet.unit_names(self.depth))
        if not 0 <= self.frozen_blocks <= units:
            raise ConfigError(f"model.frozen_blocks: {self.frozen_blocks} is not within 0..{units}")

    @classmethod
    def create(cls, options: Mapping[str, Any]) -> "ModelConfig":
        """From the `model` section of a config; an unknown key is a `ConfigError` with the nearest name."""
        return settings.from_section(cls, options, section="model")

    @property
    def query_cells(self) -> int:
        """Cells of a query's map along either side."""
        return self.query_size // STRIDE


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


def attention(config: ModelConfig) -> NonLocal:
    """One direction of the co-attention as a linen module; each direction has weights of its own."""
    return NonLocal(CHANNELS, config.attention_width, config.attention)


def excitation(config: ModelConfig) -> Excitation:
    """The co-excitation as a linen module."""
    return Excitation(CHANNELS, config.excitation_ratio)


def rpn(config: ModelConfig) -> rpn_lib.RPN:
    """The region proposal network as a linen module."""
    return rpn_lib.RPN(config.rpn_width, len(config.anchor_scales) * len(config.anchor_aspects))


def head(config: ModelConfig) -> Head:
    """The second stage as a linen module."""
    return Head(config.head, config.bins, config.head_width, config.compare_hidden, config.norm)


def init(config: ModelConfig, key: Array) -> Variables:
    """Random variables; before training neither map takes anything over from the other.

    Returns:
      `{"params": {"backbone", "image_attention", "query_attention", "excitation", "rpn", "head"},
      "batch_stats": {...}}`, float32.
    """
    cell, query = jnp.zeros((1, CHANNELS)), jnp.zeros((2, 2, CHANNELS))
    makers = {
        "backbone": (backbone(config), jnp.zeros((1, 32, 32, 3))),
        "image_attention": (attention(config), cell, cell),
        "query_attention": (attention(config), cell, cell),
        "excitation": (excitation(config), cell[0]),
        "rpn": (rpn(config), query[None]),
        "head": (head(config), query, jnp.zeros((1, 4)), query),
    }
    keys = jax.random.split(key, len(makers))
    parts = {
        name: jax.jit(module.init)(part_key, *inputs)
        for part_key, (name, (module, *inputs)) in zip(keys, makers.items(), strict=True)
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


def _apply(module, variables: Variables, name: str, *inputs, **options):
    part = {kind: tree[name] for kind, tree in variables.items() if name in tree}
    return module.apply(part, *inputs, **options)


def anchors(config: ModelConfig, cells: tuple[int, int]) -> np.ndarray:
    """f32 "n 4" anchors of a feature map of (height, width) `cells`, n = cells x scales x aspects."""
    sizes = [STRIDE * scale for scale in config.anchor_scales]
    return grid_anchors(cells, stride=STRIDE, sizes=sizes, aspects=config.anchor_aspects)


# features -----------------------------------------------------------------------------------------


def extract(
    config: ModelConfig, variables: Variables, image: Array, size: Array | None = None
) -> tuple[Array, Array]:
    """Features of normalised pictures.

    Args:
      config: the model.
      variables: `params` and `batch_stats`.
      image: "b h w 3" RGB, normalised, zero padded outside `size`.
      size: i32 "b 2" valid (height, width) in pixels; None: the whole array.

    Returns:
      f32 "b ceil(h/16) ceil(w/16) 1024", zero outside the valid cells, and i32 "b 2" the valid cells.
    """
    features = _apply(backbone(config), variables, "backbone", image, size)["c4"].astype(jnp.float32)
    if size is None:
        size = jnp.broadcast_to(jnp.asarray(image.shape[1:3], jnp.int32)[None], (image.shape[0], 2))
    features = features if config.train_features else jax.lax.stop_gradient(features)
    return features, resnet.feature_size(size)


def encode(config: ModelConfig, variables: Variables, requests: Mapping[str, Array]) -> dict[str, Array]:
    """Class pictures to maps of one size, once per query.

    Args:
      config: the model.
      variables: `params` and `batch_stats`.
      requests: `image` "r h w 3" normalised, zero padded; `size` i32 "r 2".

    Returns:
      `{"query": f32 "r k k 1024"}`, k = `config.query_cells`: the features, resized with aligned corners.
    """
    features, size = extract(config, variables, requests["image"], requests.get("size"))
    resize = functools.partial(resize_align_corners, out=(config.query_cells,) * 2)
    return {"query": jax.vmap(lambda one, valid: resize(one, size=valid))(features, size)}


# one image and one query --------------------------------------------------------------------------


def embed(config: ModelConfig, variables: Variables, features: Array) -> dict[str, Array]:
    """What the co-attention needs of an image whatever the query is: "h w c" -> "features" and three maps
    "h*w d" ("queries", "keys", "values")."""
    net, cells = attention(config), features.reshape(-1, features.shape[-1])
    keys, values = _apply(net, variables, "query_attention", cells, method="other")
    queries = _apply(net, variables, "image_attention", cells, method="own")
    return {"features": features, "queries": queries, "keys": keys, "values": values}


def match(
    config: ModelConfig, variables: Variables, image: Mapping[str, Array], cells: Array, query: Array
) -> tuple[Array, Array, Array]:
    """Co-attention and co-excitation of a pair.

    Either map gets what it takes over from the other one added; the mean of the query's map then gives one
    weight per channel, which multiplies both. Proposals come from the map before that, what is compared from
    those after it.

    Args:
      config: the model.
      variables: `params`.
      image: of `embed`.
      cells: i32 "2", valid (rows, columns) of the image's map.
      query: "k k c" of `encode`.

    Returns:
      The image's map "h w c" after co-attention, then after co-excitation too, 0 outside the valid cells; and
      the query's "k k c" after both.
    """
    net, features = attention(config), image["features"]
    valid = valid_cells(cells[None], features.shape[:2])[0]
    rows = query.reshape(-1, query.shape[-1])
    taken = _apply(
        net,
        variables,
        "image_attention",
        image["queries"],
        *_apply(net, variables, "image_attention", rows, method="other"),
        method="combine",
    )
    given = _apply(
        net,
        variables,
        "query_attention",
        _apply(net, variables, "query_attention", rows, method="own"),
        image["keys"],
        image["values"],
        valid.reshape(-1),
        method="combine",
    )
    query = query + given.reshape(query.shape)
    features = jnp.where(valid, features + taken.reshape(features.shape), 0.0)
    weights = _apply(excitation(config), variables, "excitation", jnp.mean(query, axis=(0, 1)))
    return features, features * weights[None, None], query * weights[None, None]


def first_stage(config: ModelConfig, variables: Variables, features: Array) -> dict[str, Array]:
    """All anchors of a map "h w c" after co-attention: {"logits" f32 "n", "codes" f32 "n 4"} as of `RPN`."""
    found = _apply(rpn(config), variables, "rpn", features[None])
    return {name: value[0] for name, value in found.items()}


def propose(config: ModelConfig, found: Mapping[str, Array], anchors: Array, size: Array) -> dict[str, Array]:
    """`two_stage.proposals` of one image from `first_stage`; `size` i32 "2" is (height, width) in pixels."""
    return two_stage.proposals(
        found["logits"],
        found["codes"],
        anchors,
        image_size=(size[0], size[1]),
        candidates=config.candidates,
        iou=config.proposal_iou,
        size=config.proposals,
    )


def second_stage(
    config: ModelConfig, variables: Variables, features: Array, cells: Array, query: Array, boxes: Array
) -> tuple[Array, Array]:
    """Boxes "k 4" of the matched map "h w c" against the matched query: logits f32 "k 2", codes f32 "k 4"."""
    return _apply(head(config), variables, "head", repeat_border(features, cells), boxes, query)
