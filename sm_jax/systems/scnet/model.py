"""SCNet as pure functions over `variables`: trunk, RoI pooling, embeddings, scores of all matches.

Pictures are bytes RGB resized to `config.image_size` without keeping the aspect ratio, boxes xyxy pixels of
that frame. Source: SCNet (ICCV 2017), sec. 3, and its published code (specification, sec. 1).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sm_jax import settings
from sm_jax.backbones import googlenet, resnet, vgg
from sm_jax.data.transforms import MEAN, STD
from sm_jax.errors import ConfigError
from sm_jax.ops import hough, matching
from sm_jax.ops.roi import roi_max_matconvnet

Array = jax.Array
Variables = dict[str, Any]

STRIDE = 16
"""Pixels per cell of every trunk's last map."""
BINS = 7
"""Rows and columns of pooled features, as published."""
EPSILON = 1e-10
"""Added to the squared length of an embedding."""
CAFFE_MEAN = (104.0, 117.0, 123.0)
"""B, G, R: what GoogLeNet's pictures are taken minus."""


class Trunk(NamedTuple):
    """A backbone: channels of its last map, and the registered weights that fit it."""

    channels: int
    weights: str


BACKBONES = {
    "vgg16": Trunk(512, "vgg16-tv"),
    "resnet50": Trunk(1024, "resnet50-caffe-c4"),
    "resnet101": Trunk(1024, "resnet101-tv"),
    "googlenet-4d": Trunk(528, "googlenet-bvlc"),
    "googlenet-4e": Trunk(832, "googlenet-bvlc"),
    "googlenet-5b": Trunk(1024, "googlenet-bvlc"),
}
"""VGG16 to pool4 (the published one), ResNets to C4, stages of GoogLeNet (5b without its last pooling)."""
CHOICES = {
    "variant": ("A", "AG", "AG+"),
    "backbone": tuple(BACKBONES),
    "vote_grad": ("exact", "released"),
    "input_norm": ("imagenet", "dataset_pixel"),
    "agplus_schedule": ("freeze_a", "alternate", "joint"),
    "trainable": ("heads", "all"),
    "dtype": ("float32", "bfloat16", "float16"),
}
INPUTS = ("roi", "image", "boxes")
"""What `pooled` takes of one side."""
EMBEDDINGS = {"appearance": "fc", "geometry": "fc_geometry"}
"""The part of the model behind each embedding; only AG+ has the second."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture, switches between paper and published code, precision and what is frozen.

    Attributes:
      variant: "A" compares appearance; in "AG" matches that agree in offset support each other; "AG+" has an
        embedding of its own for that.
      backbone: the trunk, one of `BACKBONES`.
      embed: channels of an embedding.
      outer_relu: similarities outside the vote are cut at 0; False is the published AG.
      vote_threshold: similarity from which on a match votes; 0 is the paper.
      vote_bias: added to the votes of every match; 0 is the paper.
      vote_grad: "exact", or "released", the published code's gradient of the vote (`ops.hough.vote`).
      input_norm: "imagenet", what the backbone's weights take; or "dataset_pixel", mean and deviation of
        every pixel and channel over the training pictures, which are kept with the weights.
      agplus_schedule: what trains in AG+: "freeze_a" the geometry embedding alone, "alternate" one of both in
        turn by epochs, "joint" both (see `trained_parts`).
      trainable: "heads" freezes the trunk; "all" gives it gradients too, for a training loop of your own on
        pictures (`train.py` trains on stored features of a frozen trunk, and refuses it).
      roi_size: rows and columns of pooled features; with 3 or 4 an embedding is a fifth or a third as large
        and as dear, for training on a few cores.
      image_size: (height, width) of the frame.
      dtype: type of the trunk's activations.
    """

    variant: str = "AG+"
    backbone: str = "vgg16"
    embed: int = 2048
    outer_relu: bool = True
    vote_threshold: float = 0.4
    vote_bias: float = 0.01
    vote_grad: str = "exact"
    input_norm: str = "imagenet"
    agplus_schedule: str = "freeze_a"
    trainable: str = "heads"
    roi_size: int = BINS
    image_size: tuple[int, int] = (224, 224)
    dtype: str = "float32"

    def __post_init__(self):
        for name, values in CHOICES.items():
            if getattr(self, name) not in values:
                raise ConfigError(f"model.{name}: {getattr(self, name)!r} is none of {', '.join(values)}")
        for name in ("embed", "roi_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name}: {getattr(self, name)} is not positive")
        if not 0 <= self.vote_threshold < 1 or self.vote_bias < 0:
            raise ConfigError(
                f"model.vote_threshold: {self.vote_threshold} must lie in 0..1 (without 1), vote_bias: "
                f"{self.vote_bias} must not be negative"
            )
        size = self.image_size
        if len(size) != 2 or any(side < STRIDE or side % STRIDE for side in size):
            raise ConfigError(f"model.image_size: {size} must be two positive multiples of {STRIDE}")

    @classmethod
    def create(cls, options: Mapping[str, Any]) -> "ModelConfig":
        """From the `model` section of a config; an unknown key is a `ConfigError` with the nearest name."""
        return settings.from_section(cls, options, section="model")

    @property
    def channels(self) -> int:
        """Channels of the trunk's last map."""
        return BACKBONES[self.backbone].channels

    @property
    def embeddings(self) -> tuple[str, ...]:
        """The names of its embeddings, "appearance" and in AG+ "geometry"."""
        return tuple(EMBEDDINGS) if self.variant == "AG+" else ("appearance",)

    @property
    def bins(self) -> int:
        """Number of offset bins of the frame."""
        return hough.grid(self.image_size).size


# variables ----------------------------------------------------------------------------------------


def backbone(config: ModelConfig) -> nn.Module:
    """The trunk as a linen module."""
    dtype = jnp.dtype(config.dtype)
    if config.backbone == "vgg16":
        return vgg.VGG16(dtype=dtype)
    if config.backbone.startswith("resnet"):
        return resnet.ResNet("frozen_bn", int(config.backbone.removeprefix("resnet")), dtype=dtype)
    return googlenet.GoogLeNet(dtype=dtype)


def init_backbone(config: ModelConfig, key: Array) -> Variables:
    """Random variables of the trunk alone, and its input statistics, which start as ImageNet's.

    Returns:
      `{"params": {"backbone"}}`, with `batch_stats` only where there are any: those of the trunk's norms, and
      with "dataset_pixel" `batch_stats/input`, "mean" and "std" "H W 3" of bytes RGB.
    """
    module = backbone(config)
    found = jax.jit(module.init)(key, jnp.zeros((1, 2 * STRIDE, 2 * STRIDE, 3)))
    variables = {kind: {"backbone": tree} for kind, tree in found.items()}
    if config.input_norm == "dataset_pixel":
        constants = {"mean": MEAN, "std": STD}
        shape = (*config.image_size, 3)
        statistics = {
            name: jnp.broadcast_to(255 * jnp.array(value, jnp.float32)[None, None], shape)
            for name, value in constants.items()
        }
        variables["batch_stats"] = variables.get("batch_stats", {}) | {"input": statistics}
    return variables


def init(config: ModelConfig, key: Array) -> Variables:
    """Random variables; kernels of the embeddings N(0, 0.01^2), biases 0, both embeddings start the same.

    Returns:
      Those of `init_backbone`, and `params/fc`, in AG+ also `params/fc_geometry`: "kernel" "7*7*c e" (row,
      column, channel), "bias" "e". Float32.
    """
    trunk_key, key = jax.random.split(key)
    variables = init_backbone(config, trunk_key)
    shape = (config.roi_size**2 * config.channels, config.embed)
    for name in config.embeddings:
        kernel = 0.01 * jax.random.normal(key, shape)  # one key: AG+ starts from two equal ones
        variables["params"][EMBEDDINGS[name]] = {"kernel": kernel, "bias": jnp.zeros(config.embed)}
    return variables


def trained_parts(config: ModelConfig, epoch: int = 1) -> tuple[str, ...]:
    """The embeddings' parts ("fc", "fc_geometry") that train in an epoch, counted from 1.

    In AG+ with "freeze_a" only "fc_geometry", with "alternate" "fc" in odd and "fc_geometry" in even epochs,
    else all there are. Source: published code, two trainers.
    """
    if config.variant != "AG+":
        return ("fc",)
    turn = ("fc",) if epoch % 2 else ("fc_geometry",)
    return {"freeze_a": ("fc_geometry",), "alternate": turn, "joint": ("fc", "fc_geometry")}[
        config.agplus_schedule
    ]


def trainable(config: ModelConfig, path: str) -> bool:
    """Whether the parameter at `path` ("fc/kernel", "backbone/conv1_1/bias") trains in some epoch."""
    part = path.split("/", 1)[0]
    if part == "backbone":
        return config.trainable == "all"
    return any(part in trained_parts(config, epoch) for epoch in (1, 2))


# features -----------------------------------------------------------------------------------------


def normalize(config: ModelConfig, variables: Variables, images: Array) -> Array:
    """Bytes RGB "b H W 3" as the trunk takes them, float32."""
    images = jnp.asarray(images, jnp.float32)
    if config.input_norm == "dataset_pixel":
        statistics = variables["batch_stats"]["input"]
        images = (images - statistics["mean"][None]) / jnp.maximum(statistics["std"], 1)[None]
        if not config.backbone.startswith("googlenet"):
            return images
        # GoogLeNet takes unscaled bytes: the deviations of ImageNet give the same range
        images = _constant(255 * np.array(STD)) * images + _constant(255 * np.array(MEAN))
    if config.backbone.startswith("googlenet"):
        return images[..., ::-1] - _constant(CAFFE_MEAN)
    return (images / 255 - _constant(MEAN)) / _constant(STD)


def features(config: ModelConfig, variables: Variables, images: Array) -> Array:
    """The trunk's last map.

    Args:
      config: the model.
      variables: `params`, `batch_stats`.
      images: uint8 or float (0..255) RGB "b H W 3", resized to `config.image_size`; normalised here.

    Returns:
      "b H/16 W/16 c" in `config.dtype`, after the ReLU (VGG16: after pool4). A frozen trunk gets no gradient.
    """
    if images.shape[1:3] != tuple(config.image_size):
        raise ValueError(f"images are {images.shape[1:3]} pixels, expected {tuple(config.image_size)}")
    parts = {kind: tree["backbone"] for kind, tree in variables.items() if "backbone" in tree}
    x = normalize(config, variables, images)
    if config.backbone.startswith("googlenet"):
        stage = config.backbone.split("-")[1]
        found = backbone(config).apply(parts, x, stop=_after(stage))[stage]
    else:
        found = backbone(config).apply(parts, x)["c4"]
    return jax.lax.stop_gradient(found) if config.trainable == "heads" else found


def roi(config: ModelConfig, features: Array, boxes: Array) -> Array:
    """Pooled features of boxes of one picture.

    Args:
      config: the model.
      features: "h w c" of one picture.
      boxes: "n 4" xyxy pixels of the frame; padding (all 0) gives numbers that mean nothing.

    Returns:
      "n r r c" with r = `roi_size` (7), type of the features.
    """
    return roi_max_matconvnet(features, boxes, stride=STRIDE, output_size=(config.roi_size,) * 2)


def pooled(config: ModelConfig, variables: Variables, inputs: Mapping[str, Array]) -> Array:
    """Pooled features "b n 7 7 c": `inputs["roi"]` where they are kept, else of "image" and "boxes".

    Args:
      config, variables: the model.
      inputs: "roi" "b n 7 7 c" of any float type; or "image" "b H W 3" (see `features`) and "boxes" "b n 4".

    Raises:
      ConfigError: kept features of a trunk that trains.
    """
    if "roi" in inputs:
        if config.trainable == "all":
            raise ConfigError("model.trainable: the trunk trains, so the batch needs pictures, not features")
        return inputs["roi"]
    maps = features(config, variables, inputs["image"])
    return jax.vmap(lambda one, boxes: roi(config, one, boxes))(maps, inputs["boxes"])


def embed(config: ModelConfig, variables: Variables, pooled: Array, *, which: str = "appearance") -> Array:
    """Unit vectors of pooled features: one dense layer without activation, then x / sqrt(sum x^2 + 1e-10).

    Args:
      config: the model.
      variables: `params`.
      pooled: "... 7 7 c".
      which: "appearance", or "geometry" in AG+.

    Returns:
      f32 "... e".
    """
    layer = variables["params"][EMBEDDINGS[which]]
    flat = pooled.reshape(*pooled.shape[:-3], -1)
    x = jnp.matmul(flat.astype(config.dtype), layer["kernel"].astype(config.dtype))
    x = x.astype(jnp.float32) + layer["bias"].reshape((1,) * (x.ndim - 1) + (-1,))
    return x / jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True) + EPSILON)


def similarity(source: Array, target: Array) -> Array:
    """Inner products of all vectors, "... n e" and "... m e" to "... n m"."""
    return jnp.matmul(source, jnp.swapaxes(target, -1, -2))


# scores -------------------------------------------------------------------------------------------


def scores(
    config: ModelConfig,
    appearance: Array,
    *,
    geometry: Array | None = None,
    bins: Array | None = None,
    where: Array | None = None,
) -> Array:
    """The score of every match of one pair, by the variant (`ops.matching.scnet_scores`).

    Args:
      config: the model.
      appearance: "n m" similarity of the appearance embeddings.
      geometry: "n m" of the geometry embeddings, in AG+.
      bins: int32 "n m" of `hough.bins` of the two sets of boxes in the frame; "A" does without.
      where: bool "n m", the matches of real boxes.
    """
    if config.variant == "A":
        return matching.scnet_scores(appearance, outer_relu=config.outer_relu, where=where)
    if bins is None or (geometry is None) != (config.variant == "AG"):
        raise ValueError(f"{config.variant} needs bins and the similarities of {config.embeddings}")
    return matching.scnet_scores(
        appearance,
        bins,
        size=config.bins,
        geometry=geometry,
        outer_relu=config.outer_relu,
        vote_threshold=config.vote_threshold,
        vote_bias=config.vote_bias,
        vote_grad=config.vote_grad,
        where=where,
    )


def encode(config: ModelConfig, variables: Variables, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The embeddings of one side's boxes by name, f32 "b n e"; `inputs` as `pooled` takes them."""
    found = pooled(config, variables, inputs)
    return {name: embed(config, variables, found, which=name) for name in config.embeddings}


def match(
    config: ModelConfig,
    source: Mapping[str, Array],
    target: Mapping[str, Array],
    *,
    bins: Array | None = None,
    where: Array | None = None,
) -> Array:
    """Scores "b n m" of two sides' embeddings (`encode`), `bins` and `where` "b n m"."""
    similarities = {name: similarity(source[name], target[name]) for name in config.embeddings}

    def one(similarities, bins, where):
        geometry = similarities.get("geometry")
        return scores(config, similarities["appearance"], geometry=geometry, bins=bins, where=where)

    return jax.vmap(one)(similarities, bins, where)


def pair_scores(config: ModelConfig, variables: Variables, batch: Mapping[str, Array]) -> Array:
    """Scores "b n m" of a batch of pairs, as in training.

    Args:
      config, variables: the model.
      batch: of either side (`source_`, `target_`) "roi" "b n 7 7 c", or "image" and "boxes" (see `pooled`);
        "source_valid", "target_valid" bool "b n": which boxes are real; "bins" int32 "b n m".
    """
    sides = [
        encode(
            config, variables, {name: batch[f"{side}_{name}"] for name in INPUTS if f"{side}_{name}" in batch}
        )
        for side in ("source", "target")
    ]
    where = batch["source_valid"][:, :, None] & batch["target_valid"][:, None, :]
    return match(config, *sides, bins=batch.get("bins"), where=where)


def predict(
    config: ModelConfig, variables: Variables, images: Mapping[str, Array], encoded: Mapping[str, Array]
) -> dict[str, Array]:
    """The best target box of every source box.

    Args:
      config, variables: the model.
      images: the target side: "roi", or "image" and "boxes"; "bins" int32 "b n m", "where" bool "b n m".
      encoded: `encode` of the source side.

    Returns:
      "scores" "b n m", "index" int32 "b n", "confidence" "b n" (`ops.matching.best_matches`).
    """
    found = match(
        config, encoded, encode(config, variables, images), bins=images.get("bins"), where=images["where"]
    )
    index, confidence = jax.vmap(lambda z, where: matching.best_matches(z, where=where))(
        found, images["where"]
    )
    return {"scores": found, "index": index, "confidence": confidence}


def _after(stage: str) -> str:
    stages = (*googlenet.STAGES, googlenet.END)
    return stages[stages.index(stage) + 1]


def _constant(values) -> Array:
    return jnp.array(values, jnp.float32)[None, None, None]
