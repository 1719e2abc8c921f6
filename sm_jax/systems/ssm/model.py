"""The single-shot semantic matcher as pure functions over `variables`: two GoogLeNets, fusion, head.

`params` has three parts: "image_branch" (stride 16) and "request_branch" (stride 4), the same network twice
with weights of its own each, and "head". Pictures are BGR minus 127 (`data.transforms.bgr_minus_mean`).
Source: Single-Shot Semantic Matcher (2018) and its released network (specification, sec. 0 and 1).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sm_jax import settings
from sm_jax.backbones import googlenet
from sm_jax.backbones.googlenet import END, GoogLeNet, Layer
from sm_jax.errors import ConfigError

Array = jax.Array
Variables = dict[str, Any]

STRIDE, REQUEST_STRIDE = 16, 4
"""Pixels per cell of the image's and the request's feature map."""
CHANNELS = googlenet.CHANNELS
OUTPUTS = 5
"""The coverage's logit and the four offsets."""
BRANCHES = ("image", "request")
FUSIONS = ("product_aligned", "concat_aligned", "product_gap", "concat_gap")
DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture, sizes, precision and what is frozen.

    Attributes:
      fusion: how a cell of the image meets the request. "product_aligned", the released one: its channels
        times those of the cell of the request's map at the same place; "concat_aligned", the paper's table:
        both side by side; "product_gap", "concat_gap": the same with the mean of the request's map at every
        cell, so that the place in the image does not matter and a request is 1024 numbers.
      head_relu: a ReLU after the two 1024-wide convolutions of the head; the released one has none.
      dropout: rate of dropout on the fused channels, in training.
      prior: coverage of every cell before training, whatever is shown: the kernel of the coverage starts at 0
        and its bias at the logit. 0: as released, a random kernel and bias 0; products of ImageNet features
        are so large that the squared error then drives all cells to 0 in a few steps, where its gradient
        vanishes.
      image_size: (height, width) of the pictures in training, multiples of 16.
      request_size: (height, width) of requests, multiples of 4. The aligned fusions need as many cells on
        either side: image_size / 16 = request_size / 4.
      trainable: "all"; a stage of GoogLeNet ("conv2", "3a", ... "5b"): of both branches it and what follows;
        "head": nothing of them.
      dtype: type of the activations of the branches and of the head's wide layers.
    """

    fusion: str = "product_aligned"
    head_relu: bool = False
    dropout: float = 0.4
    prior: float = 0.0
    image_size: tuple[int, int] = (512, 512)
    request_size: tuple[int, int] = (128, 128)
    trainable: str = "all"
    dtype: str = "float32"

    def __post_init__(self):
        for name, known in (("fusion", FUSIONS), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                raise ConfigError(f"model.{name}: {getattr(self, name)!r} is none of {', '.join(known)}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.dropout: {self.dropout} is not within 0..1 (without 1)")
        if not 0 <= self.prior < 1:
            raise ConfigError(f"model.prior: {self.prior} is not within 0..1 (without 1)")
        for name, stride in (("image_size", STRIDE), ("request_size", REQUEST_STRIDE)):
            size = getattr(self, name)
            if len(size) != 2 or any(side < stride or side % stride for side in size):
                raise ConfigError(f"model.{name}: {size} must be two positive multiples of {stride}")
        if self.aligned and self.cells != self.request_cells:
            raise ConfigError(
                f"model.fusion: {self.fusion} needs as many cells in image and request, but "
                f"image_size / {STRIDE} is {self.cells}, request_size / {REQUEST_STRIDE} {self.request_cells}"
            )
        if self.trainable not in ("all", "head", *googlenet.STAGES):
            known = ", ".join(("all", "head", *googlenet.STAGES))
            raise ConfigError(f"model.trainable: {self.trainable!r} is none of {known}")

    @property
    def aligned(self) -> bool:
        """Whether a cell of the image sees only the cell of the request at the same place."""
        return self.fusion.endswith("_aligned")

    @property
    def concat(self) -> bool:
        """Whether image and request are side by side instead of multiplied."""
        return self.fusion.startswith("concat_")

    @property
    def cells(self) -> tuple[int, int]:
        """(rows, columns) of the image's map."""
        return self.image_size[0] // STRIDE, self.image_size[1] // STRIDE

    @property
    def request_cells(self) -> tuple[int, int]:
        """(rows, columns) of the request's map."""
        return self.request_size[0] // REQUEST_STRIDE, self.request_size[1] // REQUEST_STRIDE

    @classmethod
    def create(cls, options: Mapping[str, Any]) -> "ModelConfig":
        """From the `model` section of a config; an unknown key is a `ConfigError` with the nearest name."""
        return settings.from_section(cls, options, section="model")


# parts --------------------------------------------------------------------------------------------


def cut(config: ModelConfig) -> str:
    """The first stage of the branches that trains, `googlenet.END` for none; those before are the "trunk"."""
    return {"all": googlenet.STAGES[0], "head": END}.get(config.trainable, config.trainable)


def branch(config: ModelConfig, name: str) -> GoogLeNet:
    """The network of the "image" (stride 16) or of the "request" (stride 4) as a linen module."""
    stride, pools = (2, (1, 2, 3)) if name == "image" else (1, (1, 2))
    return GoogLeNet(stride, pools, jnp.dtype(config.dtype))


class Head(nn.Module):
    """Two 1x1 convolutions of 1024 channels, then the coverage's logit and four offsets of every cell.

    Attributes:
      relu: an activation after the first two.
    """

    relu: bool = False

    @nn.compact
    def __call__(self, fused: Array) -> dict[str, Array]:
        """Fused channels "b h w c" to {"logits" f32 "b h w", "offsets" f32 "b h w 4"}."""
        x = fused
        for name in ("conv1", "conv2"):
            x = Layer((1, 1, x.shape[-1], CHANNELS), name=name)(x)
            x = nn.relu(x) if self.relu else x
        x = x.astype(jnp.float32)
        logits = Layer((1, 1, CHANNELS, 1), 0.0, name="coverage")(x)[..., 0]
        return {"logits": logits, "offsets": Layer((1, 1, CHANNELS, 4), 0.0, name="boxes")(x)}


def init(config: ModelConfig, key: Array) -> Variables:
    """Random variables: kernels Xavier, biases .2, those of coverage and boxes 0 (specification, sec. 1);
    the coverage as `config.prior` says.

    Returns:
      `{"params": {"image_branch", "request_branch", "head"}}`, float32.
    """
    channels = CHANNELS * (2 if config.concat else 1)
    makers = {
        **{f"{name}_branch": (branch(config, name), (1, STRIDE, STRIDE, 3)) for name in BRANCHES},
        "head": (Head(config.head_relu), (1, 1, 1, channels)),
    }
    keys = jax.random.split(key, len(makers))
    params = {
        name: jax.jit(module.init)(part_key, jnp.zeros(shape))["params"]
        for part_key, (name, (module, shape)) in zip(keys, makers.items(), strict=True)
    }
    if config.prior:
        coverage = params["head"]["coverage"]
        logit = math.log(config.prior / (1 - config.prior))
        params["head"]["coverage"] = {
            "kernel": jnp.zeros_like(coverage["kernel"]),
            "bias": jnp.full_like(coverage["bias"], logit),
        }
    return {"params": params}


def trainable(config: ModelConfig, path: str) -> bool:
    """Whether the parameter at `path` ("image_branch/inception_3a/one/kernel") is trained."""
    part, name = path.split("/", 1)
    return part == "head" or not googlenet.is_frozen(name, start=cut(config))


# features -----------------------------------------------------------------------------------------


def trunk(config: ModelConfig, variables: Variables, pictures: Array, *, of: str) -> Array:
    """What the frozen stages make of pictures; it can be kept, and given as "image_trunk" or "request_trunk".

    Args:
      config: the model.
      variables: `params`.
      pictures: f32 "b H W 3", BGR minus 127.
      of: "image" or "request", the branch.

    Returns:
      "b h w c" in `config.dtype`; with `trainable="head"` the features themselves.

    Raises:
      ConfigError: no stage is frozen.
    """
    if cut(config) == googlenet.STAGES[0]:
        raise ConfigError("model.trainable: no stage of the branches is frozen, so they have no trunk")
    _check_size(pictures, of)
    return _run(config, variables, of, pictures, stop=cut(config))


def _features(config: ModelConfig, variables: Variables, inputs: Mapping[str, Array], of: str) -> Array:
    """The last map of one branch; frozen stages get no gradient."""
    if f"{of}_trunk" not in inputs:
        x = inputs[of]
        _check_size(x, of)
        if cut(config) != googlenet.STAGES[0]:
            x = jax.lax.stop_gradient(_run(config, variables, of, x, stop=cut(config)))
    elif cut(config) == googlenet.STAGES[0]:
        raise ConfigError("model.trainable: no stage is frozen, so the batch needs pictures, not a trunk")
    else:
        x = inputs[f"{of}_trunk"].astype(config.dtype)
    return x if cut(config) == END else _run(config, variables, of, x, start=cut(config))


def _run(config, variables, of, x, **stages):
    return branch(config, of).apply({"params": variables["params"][f"{of}_branch"]}, x, **stages)["last"]


def _check_size(pictures: Array, of: str):
    stride = STRIDE if of == "image" else REQUEST_STRIDE
    if any(side < stride or side % stride for side in pictures.shape[1:3]):
        raise ValueError(f"{of}s are {pictures.shape[1:3]} pixels, expected multiples of {stride}")


def extract(config: ModelConfig, variables: Variables, inputs: Mapping[str, Array]) -> Array:
    """Feature maps of images.

    Args:
      config: the model.
      variables: `params`.
      inputs: "image" f32 "b H W 3", BGR minus 127, sides multiples of 16; or "image_trunk" (see `trunk`).

    Returns:
      "b H/16 W/16 1024" in `config.dtype`.
    """
    return _features(config, variables, inputs, "image")


def encode(config: ModelConfig, variables: Variables, requests: Mapping[str, Array]) -> dict[str, Array]:
    """What is kept of requests.

    Args:
      config: the model.
      variables: `params`.
      requests: "request" f32 "b h w 3", BGR minus 127, sides multiples of 4; or "request_trunk".

    Returns:
      {"request": "b h/4 w/4 1024", with the gap fusions its mean f32 "b 1024"}.
    """
    features = _features(config, variables, requests, "request")
    if config.aligned:
        return {"request": features}
    return {"request": jnp.mean(features.astype(jnp.float32), axis=(1, 2))}


# head ---------------------------------------------------------------------------------------------


def fuse(config: ModelConfig, features: Array, request: Array) -> Array:
    """The channels that the head sees: features "b h w 1024" of images, each with its request.

    `request` is "b h w 1024", or "b 1024" with the gap fusions. Returns "b h w c", c 1024 or (concat) 2048.
    """
    if not config.aligned:
        request = request[:, None, None]
    elif request.shape[1:3] != features.shape[1:3]:
        raise ValueError(
            f"{config.fusion}: request of {request.shape[1:3]} cells, image of {features.shape[1:3]}"
        )
    request = request.astype(features.dtype)
    if config.concat:
        return jnp.concatenate([features, jnp.broadcast_to(request, features.shape)], axis=-1)
    return features * request


def head(
    config: ModelConfig, variables: Variables, features: Array, request: Array, *, key: Array | None = None
) -> dict[str, Array]:
    """Coverage and offsets of images, each with its own request, with the head as it is trained.

    Args:
      config: the model.
      variables: `params`.
      features: of `extract`, "b h w 1024".
      request: of `encode`, for every image one.
      key: random key of the dropout; None: no dropout.

    Returns:
      {"logits" f32 "b h w", "offsets" f32 "b h w 4": corners in pixels from the cell's top left corner}.
    """
    fused = fuse(config, features, request)
    if key is not None and config.dropout:
        keep = jax.random.bernoulli(key, 1 - config.dropout, fused.shape)
        fused = jnp.where(keep, fused / (1 - config.dropout), jnp.zeros((), fused.dtype))
    return Head(config.head_relu).apply({"params": variables["params"]["head"]}, fused)


def collapse(config: ModelConfig, variables: Variables) -> dict[str, Array]:
    """The whole head as one linear map of the fused channels: {"kernel" f32 "c 5", "bias" f32 "5"}.

    Exact, because nothing in it is not linear: W_out W_2 W_1 x + W_out (W_2 b_1 + b_2) + b_out. The first
    column is the coverage's logit (specification, sec. 0 and 8).

    Raises:
      ConfigError: a head with ReLUs is not linear.
    """
    if config.head_relu:
        raise ConfigError("model.head_relu: a head with ReLUs is not linear and cannot be collapsed")
    layers = variables["params"]["head"]
    kernels = {name: layer["kernel"][0, 0].astype(jnp.float32) for name, layer in layers.items()}
    last = jnp.concatenate([kernels["coverage"], kernels["boxes"]], axis=-1)
    bias = jnp.concatenate([layers["coverage"]["bias"], layers["boxes"]["bias"]])
    with jax.default_matmul_precision("highest"):
        second = kernels["conv2"] @ last
        bias = layers["conv1"]["bias"] @ second + layers["conv2"]["bias"] @ last + bias
        return {"kernel": kernels["conv1"] @ second, "bias": bias}


def head_many(
    config: ModelConfig, linear: Mapping[str, Array], features: Array, requests: Array
) -> dict[str, Array]:
    """Coverage and offsets of one image with many requests, with the collapsed head.

    No 1024x1024 products: 5 instead of 2100 multiplications per channel and cell. A product is folded into
    the kernel; of side by side channels either side is computed once.

    Args:
      config: the model.
      linear: of `collapse`.
      features: of `extract`, of one image: "h w 1024".
      requests: of `encode`: "n h w 1024", or "n 1024" with the gap fusions.

    Returns:
      {"logits" f32 "n h w", "offsets" f32 "n h w 4"}, as `head` for each request.
    """
    height, width, channels = features.shape
    cells = features.reshape(-1, channels).astype(jnp.float32)
    requests = requests.astype(jnp.float32)
    kernel, count = linear["kernel"], requests.shape[0]
    if config.concat:
        own = requests.reshape(-1, channels) @ kernel[channels:]
        out = (cells @ kernel[:channels])[None] + own.reshape(count, -1, OUTPUTS)
    elif config.aligned:
        rows = requests.reshape(count, -1, channels)
        # On CPU one at a time, so that the product of maps stays in the cache.
        out = jax.lax.platform_dependent(
            rows,
            cpu=lambda rows: jax.lax.map(lambda request: (request * cells) @ kernel, rows),
            default=lambda rows: ((rows * cells[None]).reshape(-1, channels) @ kernel).reshape(
                count, -1, OUTPUTS
            ),
        )
    else:
        kernels = requests[:, :, None] * kernel[None]
        out = cells @ kernels.transpose(1, 0, 2).reshape(channels, -1)
        out = out.reshape(-1, count, OUTPUTS).transpose(1, 0, 2)
    out = out + linear["bias"][None, None]
    out = out.reshape(count, height, width, OUTPUTS)
    return {"logits": out[..., 0], "offsets": out[..., 1:]}
