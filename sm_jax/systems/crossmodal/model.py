"""The cross-modal detector as pure functions over `variables`: features, proposals, phrases, alignment.

Boxes are xyxy in pixels of the image in the batch. Source: Ferreira et al. 2023, sec. 3.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sm_jax import settings
from sm_jax.backbones import mobilenet
from sm_jax.backbones.common import DTYPES
from sm_jax.errors import ConfigError
from sm_jax.ops.anchors import grid_anchors
from sm_jax.ops.roi import roi_align, roi_max
from sm_jax.rpn import RPN
from sm_jax.systems.crossmodal.heads import CosineAligner, MlpAligner, ProposalEncoder
from sm_jax.systems.crossmodal.text import FeatureEncoder, TextEncoder
from sm_jax.text import LENGTH, RESERVED, Tokenizer

Array = jax.Array
Variables = dict[str, Any]

STRIDE = 32
"""Pixels per cell of the feature map."""
CHANNELS = 1280
UNITS = len(mobilenet.UNITS)
CHOICES = {
    "roi": ("align", "max"),
    "text_encoder": ("transformer", "features"),
    "align": ("mlp", "cosine"),
    "dtype": DTYPES,
    "padding": mobilenet.PADDINGS,
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture, precision and what is frozen.

    Attributes:
      vocabulary: the words that the text encoder knows (numbered as `text.Tokenizer` does it).
      text_length: tokens of the longest phrase, with the leading ENC.
      anchor_sizes: sides of the anchors in pixels (of the square of the same area).
      anchor_aspects: height / width of the anchors.
      rpn_width: channels inside the region proposal network.
      roi: how features of a box are read, "align" (RoIAlign) or "max" (max RoI pooling).
      proposal_width: channels of the proposal encoder's convolution.
      proposal_hidden: channels of its hidden linear layer.
      embed: channels of the vectors of proposals and phrases.
      text_encoder: "transformer" over tokens, or "features": given sentence embeddings.
      text_features: width of the given sentence embeddings.
      text_width: channels inside the transformer.
      text_heads: attention heads.
      text_layers: encoder layers.
      text_ffn: channels of the feed-forward part.
      dropout: rate of dropout in the transformer in training.
      align: "mlp", or "cosine" (a scaled dot product) as baseline.
      align_hidden: hidden units of the alignment perceptron.
      trainable: "all"; "lastN": of the backbone the last N of its 19 units; "heads": nothing of it.
      freeze_bn: the backbone keeps its running statistics in training.
      image_size: (height, width) of the pictures in training, multiples of 32.
      dtype: type of the backbone's activations and of the convolutions on them.
      padding: of the backbone, "torch", or "tf_same" for weights that come from TensorFlow.
    """

    vocabulary: tuple[str, ...] = ()
    text_length: int = LENGTH
    anchor_sizes: tuple[float, ...] = (64.0,)
    anchor_aspects: tuple[float, ...] = (1.0,)
    rpn_width: int = 256
    roi: str = "align"
    proposal_width: int = 256
    proposal_hidden: int = 256
    embed: int = 64
    text_encoder: str = "transformer"
    text_features: int = 0
    text_width: int = 64
    text_heads: int = 2
    text_layers: int = 1
    text_ffn: int = 256
    dropout: float = 0.1
    align: str = "mlp"
    align_hidden: int = 64
    trainable: str = "all"
    freeze_bn: bool = False
    image_size: tuple[int, int] = (512, 512)
    dtype: str = "float32"
    padding: str = "torch"

    def __post_init__(self):
        for name, values in CHOICES.items():
            if getattr(self, name) not in values:
                raise ConfigError(f"model.{name}: {getattr(self, name)!r} is none of {', '.join(values)}")
        widths = ("rpn_width", "proposal_width", "proposal_hidden", "embed", "align_hidden", "text_width")
        for name in (*widths, "text_heads", "text_layers", "text_ffn"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name}: {getattr(self, name)} is not positive")
        for name in ("anchor_sizes", "anchor_aspects"):
            if not getattr(self, name) or min(getattr(self, name)) <= 0:
                raise ConfigError(f"model.{name}: {getattr(self, name)} must be some positive numbers")
        if len(self.image_size) != 2 or any(side < STRIDE or side % STRIDE for side in self.image_size):
            raise ConfigError(f"model.image_size: {self.image_size} must be two multiples of {STRIDE}")
        if self.text_width % self.text_heads:
            raise ConfigError(
                f"model.text_heads: {self.text_heads} does not divide text_width ({self.text_width})"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.dropout: {self.dropout} is not within 0..1 (without 1)")
        if self.text_encoder == "features" and self.text_features < 1:
            raise ConfigError(
                "model.text_features: set the width of the sentence embeddings for text_encoder='features'"
            )
        if len(set(self.vocabulary)) != len(self.vocabulary):
            raise ConfigError("model.vocabulary: holds a word twice")
        Tokenizer(self.vocabulary, self.text_length)  # checks both
        cut(self)  # checks `trainable`

    @classmethod
    def create(cls, options: Mapping[str, Any]) -> "ModelConfig":
        """From the `model` section of a config; an unknown key is a `ConfigError` with the nearest name."""
        return settings.from_section(cls, options, section="model")


# parts --------------------------------------------------------------------------------------------


def cut(config: ModelConfig) -> int:
    """Number of frozen units of the backbone, 0 to 19: the "trunk", which is the same for every step."""
    if config.trainable in ("all", "heads"):
        return 0 if config.trainable == "all" else UNITS
    last = re.fullmatch(r"last([1-9][0-9]*)", config.trainable)
    if not last or int(last[1]) > UNITS:
        raise ConfigError(
            f"model.trainable: {config.trainable!r} is none of all, heads, last1 ... last{UNITS}"
        )
    return UNITS - int(last[1])


def backbone(config: ModelConfig) -> mobilenet.MobileNetV2:
    """The feature extractor as a linen module."""
    return mobilenet.MobileNetV2(cut(config), config.freeze_bn, jnp.dtype(config.dtype), config.padding)


def rpn(config: ModelConfig) -> RPN:
    """The region proposal network as a linen module."""
    return RPN(config.rpn_width, len(config.anchor_sizes) * len(config.anchor_aspects))


def proposal_encoder(config: ModelConfig) -> ProposalEncoder:
    """The encoder of pooled features as a linen module."""
    return ProposalEncoder(config.proposal_width, config.proposal_hidden, config.embed)


def text_encoder(config: ModelConfig) -> nn.Module:
    """The encoder of phrases as a linen module."""
    if config.text_encoder == "features":
        return FeatureEncoder(config.embed)
    return TextEncoder(
        vocabulary=RESERVED + len(config.vocabulary),
        length=config.text_length,
        width=config.text_width,
        heads=config.text_heads,
        layers=config.text_layers,
        ffn=config.text_ffn,
        dropout=config.dropout,
        embed=config.embed,
    )


def aligner(config: ModelConfig) -> nn.Module:
    """What compares vectors of proposals and phrases, as a linen module."""
    return CosineAligner() if config.align == "cosine" else MlpAligner(config.align_hidden)


def init(config: ModelConfig, key: Array) -> Variables:
    """Random variables.

    Returns:
      `{"params": {"backbone", "rpn", "proposal", "text", "align"}, "batch_stats": {"backbone"}}`, float32.

    Raises:
      ConfigError: a transformer without a vocabulary.
    """
    if config.text_encoder == "transformer" and not config.vocabulary:
        raise ConfigError("model.vocabulary: is empty; it is the list of words of the phrases to learn from")
    embedding = jnp.zeros((1, config.embed))
    text = jnp.zeros((1, config.text_length), jnp.int32)
    if config.text_encoder == "features":
        text = jnp.zeros((1, config.text_features))
    makers = {
        "backbone": (backbone(config), jnp.zeros((1, STRIDE, STRIDE, 3))),
        "rpn": (rpn(config), jnp.zeros((1, 1, 1, CHANNELS))),
        "proposal": (proposal_encoder(config), jnp.zeros((1, 2, 2, CHANNELS))),
        "text": (text_encoder(config), text),
        "align": (aligner(config), embedding, embedding),
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
    """Whether the parameter at `path` ("backbone/features_3/...") is trained; others get no weight decay."""
    part, name = path.split("/", 1)
    return part != "backbone" or not mobilenet.is_frozen(name, frozen_blocks=cut(config))


def _part(variables: Variables, name: str) -> Variables:
    """The variables of one linen module."""
    return {kind: tree[name] for kind, tree in variables.items() if name in tree}


def anchors(config: ModelConfig, cells: tuple[int, int]) -> np.ndarray:
    """f32 "n 4" anchors of a feature map of (height, width) `cells`, n = cells x sizes x aspects."""
    return grid_anchors(cells, stride=STRIDE, sizes=config.anchor_sizes, aspects=config.anchor_aspects)


# features -----------------------------------------------------------------------------------------


def trunk(config: ModelConfig, variables: Variables, image: Array) -> Array:
    """What the frozen units make of normalised pictures "b H W 3": "b h w c"; can be kept, given as "trunk".

    Raises:
      ConfigError: no unit is frozen.
    """
    if not cut(config):
        raise ConfigError("model.trainable: with 'all' no part of the backbone is frozen, so it has no trunk")
    _check_size(image)
    return backbone(config).apply(_part(variables, "backbone"), image, stop=cut(config))["last"]


def features(config: ModelConfig, variables: Variables, inputs: Mapping[str, Array]) -> Array:
    """Feature maps, with the running statistics.

    Args:
      config: the model.
      variables: `params` and `batch_stats`.
      inputs: "trunk" "b h w c", features of the frozen units (see `trunk`); or else "image" f32 "b H W 3",
        normalised, H and W multiples of 32.

    Returns:
      "b H/32 W/32 1280" in `config.dtype`.
    """
    return _features(config, variables, inputs, train=False)[0]


def features_train(
    config: ModelConfig, variables: Variables, inputs: Mapping[str, Array]
) -> tuple[Array, Variables]:
    """As `features` in training mode: trained units use the statistics of the batch, unless `freeze_bn`.

    Returns:
      features, and updates: `{"batch_stats": {"backbone": {unit: ...}}}` of the units that train, or `{}`.
    """
    return _features(config, variables, inputs, train=not config.freeze_bn and cut(config) < UNITS)


def _features(config, variables, inputs, *, train):
    start = cut(config) if "trunk" in inputs else 0
    x = inputs["trunk"] if "trunk" in inputs else inputs["image"]
    if "trunk" in inputs and not start:
        raise ConfigError("model.trainable: with 'all' the batch needs images, not features of a trunk")
    if "trunk" not in inputs:
        _check_size(x)
    if start == UNITS:
        return x.astype(config.dtype), {}
    net, backbone_variables = backbone(config), _part(variables, "backbone")
    if not train:
        return net.apply(backbone_variables, x, start=start)["last"], {}
    levels, changed = net.apply(backbone_variables, x, train=True, start=start, mutable=["batch_stats"])
    names = mobilenet.unit_names()[cut(config) :]
    return levels["last"], {"batch_stats": {"backbone": {n: changed["batch_stats"][n] for n in names}}}


def _check_size(image):
    if image.shape[1] % STRIDE or image.shape[2] % STRIDE:
        raise ValueError(f"images are {image.shape[1:3]} pixels, expected multiples of {STRIDE}")


# heads --------------------------------------------------------------------------------------------


def score_anchors(
    config: ModelConfig, variables: Variables, features: Array, chosen: Array | None = None
) -> dict[str, Array]:
    """Logits and codes of anchors: of all ("b n"), or of the `chosen` numbers i32 "b s" only.

    Returns:
      {"logits" f32 "b n", "codes" f32 "b n 4"}; codes as in `sm_jax.rpn`.
    """
    net, parameters = rpn(config), _part(variables, "rpn")
    if chosen is None:
        return net.apply(parameters, features)
    return net.apply(parameters, features, chosen, method="at")


def encode_proposals(config: ModelConfig, variables: Variables, features: Array, boxes: Array) -> Array:
    """Unit vectors f32 "b k d" of boxes "b k 4"; boxes get no gradient."""
    pool = functools.partial(roi_max if config.roi == "max" else roi_align, stride=STRIDE)
    cells = jax.vmap(pool)(features, boxes)
    flat = proposal_encoder(config).apply(_part(variables, "proposal"), cells.reshape(-1, *cells.shape[2:]))
    return flat.reshape(*boxes.shape[:2], -1)


def encode_text(config: ModelConfig, variables: Variables, text: Array, *, key: Array | None = None) -> Array:
    """Unit vectors f32 "q d" of phrases.

    Args:
      config: the model.
      variables: `params`.
      text: tokens i32 "q l", or sentence embeddings f32 "q e" with `text_encoder="features"`.
      key: random key of the dropout, in training only.
    """
    return text_encoder(config).apply(_part(variables, "text"), text, key=key)


def text_of(config: ModelConfig, batch: Mapping[str, Array]) -> Array:
    """The phrases of a batch as `encode_text` takes them: its "tokens" or its "text_features"."""
    return batch["text_features" if config.text_encoder == "features" else "tokens"]


def align_logits(config: ModelConfig, variables: Variables, proposals: Array, text: Array) -> Array:
    """Logits f32 "q k" that proposals "k d" are what phrases "q d" describe."""
    return aligner(config).apply(_part(variables, "align"), proposals, text)
