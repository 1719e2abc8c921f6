"""GoogLeNet v1 in the BVLC form (LRN, ceil pooling, 5x5 branches, no batch norm), NHWC.

Source: "Going Deeper with Convolutions" (CVPR 2015) as released with Caffe; the two uses without all poolings
are those of the Single-Shot Semantic Matcher (specification, sec. 1). The input is BGR, bytes minus a mean,
not scaled (`data.transforms.bgr_minus_mean`).
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sm_jax.backbones.common import convolve
from sm_jax.backbones.once import compute_once
from sm_jax.errors import ConfigError
from sm_jax.ops.lrn import lrn

Array = jax.Array

CLASSES = 1000
BIAS = 0.2
"""Where the biases of all convolutions start."""


class Widths(NamedTuple):
    """Channels of an inception module: into it, of its four branches, and of the two reductions."""

    inner: int
    one: int
    reduce_three: int
    three: int
    reduce_five: int
    five: int
    pool: int

    @property
    def out(self) -> int:
        """Channels of the result."""
        return self.one + self.three + self.five + self.pool


MODULES = {
    "3a": Widths(192, 64, 96, 128, 16, 32, 32),
    "3b": Widths(256, 128, 128, 192, 32, 96, 64),
    "4a": Widths(480, 192, 96, 208, 16, 48, 64),
    "4b": Widths(512, 160, 112, 224, 24, 64, 64),
    "4c": Widths(512, 128, 128, 256, 24, 64, 64),
    "4d": Widths(512, 112, 144, 288, 32, 64, 64),
    "4e": Widths(528, 256, 160, 320, 32, 128, 128),
    "5a": Widths(832, 256, 160, 320, 32, 128, 128),
    "5b": Widths(832, 384, 192, 384, 48, 128, 128),
}
END = "end"
STAGES = ("conv1", "conv2", *MODULES)
"""In order. A stage includes the pooling (and LRN) after it, so that the next one starts from its result."""
POOLS = {"conv1": 1, "conv2": 2, "3b": 3, "4e": 4}
"""The stages after which a pooling may come, and its number."""
CHANNELS = MODULES["5b"].out


def index(stage: str) -> int:
    """The number of a stage in `STAGES`; `END` is the one after the last.

    Raises:
      ConfigError: no such stage.
    """
    if stage == END:
        return len(STAGES)
    if stage not in STAGES:
        raise ConfigError(f"GoogLeNet: {stage!r} is no stage; there are {', '.join(STAGES)} and {END}")
    return STAGES.index(stage)


def is_frozen(name: str, *, start: str) -> bool:
    """Whether the parameter `name` (its path below the network) lies in a stage before `start`."""
    return index(name.split("/")[0].removeprefix("inception_").removesuffix("_reduce")) < index(start)


def input_channels(stage: str) -> int:
    """Channels of what `stage` (or `END`: whoever takes the features) is given."""
    return {"conv1": 3, "conv2": 64, END: CHANNELS}.get(stage) or MODULES[stage].inner


def max_pool(x: Array) -> Array:
    """3x3 maximum, stride 2, as Caffe does it: the last window may reach one cell beyond, which counts -inf.

    `(b, h, w, c)` to `ceil((n - 3) / 2) + 1` cells along both axes (n / 2 of even n). As maxima of even and
    odd cells, because the gradient of a window reduction is slow on CPU.
    """
    for axis in (1, 2):
        out = max(x.shape[axis] // 2, 1)
        x = _pad(x, axis, 0, x.shape[axis] % 2)
        pairs = x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
        even, odd = (jax.lax.index_in_dim(pairs, k, axis + 1, keepdims=False) for k in (0, 1))
        both = jax.lax.slice_in_dim(jnp.maximum(even, odd), 0, out, axis=axis)
        after = jax.lax.slice_in_dim(even, 1, min(out + 1, even.shape[axis]), axis=axis)
        x = jnp.maximum(both, _pad(after, axis, 0, out - after.shape[axis]))
    return x


def max_pool_same(x: Array) -> Array:
    """3x3 maximum, stride 1, size kept: `(b, h, w, c)`; one axis after the other, as shifted maxima."""
    for axis in (1, 2):
        padded, length = _pad(x, axis, 1, 1), x.shape[axis]
        before, after = (jax.lax.slice_in_dim(padded, k, k + length, axis=axis) for k in (0, 2))
        x = jnp.maximum(x, jnp.maximum(before, after))
    return x


def _pad(x: Array, axis: int, before: int, after: int) -> Array:
    """`x` with -inf around along `axis`."""
    widths = [(before, after) if i == axis else (0, 0) for i in range(x.ndim)]
    return jnp.pad(x, widths, constant_values=-jnp.inf) if before or after else x


def xavier(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """Caffe's Xavier: uniform with variance 1 / fan in, for HWIO shapes."""
    bound = math.sqrt(3.0 / math.prod(shape[:-1]))
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class Layer(nn.Module):
    """Kernel `(k, k, in, out)` and bias of one convolution; called without an input it returns both."""

    shape: tuple[int, int, int, int]
    bias: float = BIAS

    @nn.compact
    def __call__(self, x: Array | None = None, *, stride: int = 1) -> Array | tuple[Array, Array]:
        """The convolution of `x` with "same" padding (k // 2), plus the bias; no activation."""
        kernel = self.param("kernel", xavier, self.shape)
        bias = self.param("bias", nn.initializers.constant(self.bias), self.shape[-1:])
        if x is None:
            return kernel, bias
        return convolve(x, kernel, stride=stride) + bias.astype(x.dtype)[None, None, None]


class Inception(nn.Module):
    """Four branches side by side: 1x1 | 1x1, 3x3 | 1x1, 5x5 | 3x3 maximum, 1x1; ReLU after every one."""

    widths: Widths

    @nn.compact
    def __call__(self, x: Array) -> Array:
        w = self.widths
        # The three 1x1 convolutions of the same input are one matrix product.
        firsts = [("one", w.one), ("reduce_three", w.reduce_three), ("reduce_five", w.reduce_five)]
        layers = [Layer((1, 1, w.inner, out), name=name)() for name, out in firsts]
        kernel = jnp.concatenate([kernel for kernel, _ in layers], axis=-1)
        bias = jnp.concatenate([bias for _, bias in layers]).astype(x.dtype)
        first = nn.relu(convolve(x, kernel) + bias[None, None, None])
        one, three, five = jnp.split(first, (w.one, w.one + w.reduce_three), axis=-1)
        three = nn.relu(Layer((3, 3, w.reduce_three, w.three), name="three")(three))
        five = nn.relu(Layer((5, 5, w.reduce_five, w.five), name="five")(five))
        pool = nn.relu(Layer((1, 1, w.inner, w.pool), name="pool")(max_pool_same(x)))
        return jnp.concatenate([one, three, five, pool], axis=-1)


class GoogLeNet(nn.Module):
    """GoogLeNet without its classifiers: 5,973,552 parameters, whatever the poolings.

    Attributes:
      stride: of the first convolution, 2 or 1.
      pools: which of the poolings 1 to 4 are there. (1, 2, 3) with stride 2 has an output stride of 16,
        (1, 2) with stride 1 one of 4; the classifying network is stride 2 with all four, 32.
      dtype: type of the activations; parameters and the sums of LRN are float32.
    """

    stride: int = 2
    pools: tuple[int, ...] = (1, 2, 3)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: Array, *, start: str = STAGES[0], stop: str = END) -> dict[str, Array]:
        """Feature maps of pictures, or of what the first stages made of them.

        Args:
          image: `(b, h, w, 3)`, BGR minus a mean; with `start` what that stage takes.
          start, stop: only the stages from `start` on and before `stop` are run; `stop=s` gives under "last"
            what `start=s` takes.

        Returns:
          "last", and of the stages run by name: "conv1" (64 channels), "conv2" (192), "3a" ... "5b" (1024)
          before any pooling; "pool1" ... "pool4" after it ("pool1" before its LRN). In `dtype`.

        Raises:
          ConfigError: an unknown stage, nothing to run, or an input of other channels.
        """
        first, end = index(start), index(stop)
        if first >= end:
            raise ConfigError(f"GoogLeNet: start={start}, stop={stop}: there is nothing to run")
        if image.ndim != 4 or image.shape[-1] != input_channels(start):
            raise ConfigError(
                f"GoogLeNet: {start} takes (b, h, w, {input_channels(start)}), not {tuple(image.shape)}"
            )
        x = jnp.asarray(image, self.dtype)
        stages = {}
        for stage in STAGES[first:end]:
            if stage == "conv1":
                x = nn.relu(Layer((7, 7, 3, 64), name="conv1")(x, stride=self.stride))
            elif stage == "conv2":
                x = nn.relu(Layer((1, 1, 64, 64), name="conv2_reduce")(x))
                x = nn.relu(Layer((3, 3, 64, 192), name="conv2")(x))
            else:
                x = Inception(MODULES[stage], name=f"inception_{stage}")(x)
            stages[stage] = x
            # Stored: XLA for CPU would normalise again in every window of the pooling that sees the cell.
            x = compute_once(lrn(x)) if stage == "conv2" else x
            pool = POOLS.get(stage)
            if pool in self.pools:
                x = stages[f"pool{pool}"] = max_pool(x)
            x = lrn(x) if stage == "conv1" else x
        return {**stages, "last": x}


class Classifier(nn.Module):
    """Mean over all cells, then one linear layer; used to check weights, no matcher has it."""

    classes: int = CLASSES

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """`(b, h, w, 1024)` features ("5b" of the network with all poolings) to `(b, classes)` logits."""
        kernel = self.param("kernel", xavier, (features.shape[-1], self.classes))
        bias = self.param("bias", nn.initializers.zeros, (self.classes,))
        return jnp.mean(features.astype(jnp.float32), axis=(1, 2)) @ kernel + bias[None]
