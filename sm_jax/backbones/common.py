"""Layers shared by the networks: convolution, normalisation and exact masking of padded pictures.

A picture smaller than its array is zero padded on the right and below. Results are those of the unpadded
picture when the input of every convolution wider than one pixel, and every statistic, sees only valid cells:
`valid_cells` says which those are, `hide` zeroes the rest.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from sm_jax.backbones.channels import moments

EPSILON = 1e-5
MOMENTUM = 0.1
DTYPES = ("float32", "float16", "bfloat16")
"""Types that a model's activations can have."""


def halve(size):
    """Size after one stride-2 stage, `ceil(size / 2)`; integers or integer arrays."""
    return (size + 1) // 2


def valid_cells(size: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Which cells of a map belong to the picture.

    Args:
      size: `(b, 2)` int, valid (height, width) in cells.
      shape: (height, width) of the array.

    Returns:
      `(b, h, w, 1)` bool.
    """
    rows = jnp.arange(shape[0])[None, :] < size[:, :1]
    columns = jnp.arange(shape[1])[None, :] < size[:, 1:]
    return (rows[:, :, None] & columns[:, None, :])[..., None]


def hide(x: jax.Array, where: jax.Array | None) -> jax.Array:
    """Zero the cells of `x` `(b, h, w, c)` where `where` `(b, h, w, 1)` is False; None hides nothing."""
    return x if where is None else jnp.where(where, x, jnp.zeros((), x.dtype))


def convolve(x: jax.Array, kernel: jax.Array, *, stride: int = 1) -> jax.Array:
    """Convolution with "same" padding (k // 2 on every side), as a matrix product when the kernel is 1x1.

    On CPU the gradients of a 1x1 convolution are several times slower than those of the product; on GPU both
    compile to the same kernels.

    Args:
      x: `(b, h, w, in)`.
      kernel: `(k, k, in, out)`; cast to the type of `x`.
      stride: step in both directions.

    Returns:
      `(b, ceil(h / stride), ceil(w / stride), out)`, type of `x`.
    """
    kernel = kernel.astype(x.dtype)
    if kernel.shape[:2] == (1, 1):
        if stride != 1:
            x = x[:, ::stride, ::stride]
        rows = x.reshape(-1, x.shape[-1])
        return (rows @ kernel[0, 0]).reshape(*x.shape[:-1], kernel.shape[-1])
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def max_pool(x: jax.Array) -> jax.Array:
    """3x3 maximum, stride 2, padding 1, of non-negative `(b, h, w, c)`, as maxima of even and odd cells.

    A window reduction has a much dearer gradient on CPU, and reading pairs by a reshape instead of strided
    slices is ten times faster. Cells outside count as zero, which equals the usual -inf because the input is
    never negative.
    """
    for axis in (1, 2):
        out = halve(x.shape[axis])
        if x.shape[axis] % 2:
            x = jnp.pad(x, [(0, 1) if i == axis else (0, 0) for i in range(4)])
        pairs = x.reshape(*x.shape[:axis], out, 2, *x.shape[axis + 1 :])
        even, odd = (jax.lax.index_in_dim(pairs, k, axis + 1, keepdims=False) for k in (0, 1))
        both = jnp.maximum(even, odd)
        first, rest = (jax.lax.slice_in_dim(both, *ends, axis=axis) for ends in ((0, 1), (1, out)))
        before = jax.lax.slice_in_dim(odd, 0, out - 1, axis=axis)
        x = jnp.concatenate([first, jnp.maximum(rest, before)], axis)
    return x


def he_normal_fan_out(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Normal with variance 2 / (k * k * out) for HWIO shapes, the usual start of a ResNet's convolutions."""
    scale = math.sqrt(2.0 / (shape[0] * shape[1] * shape[3]))
    return scale * jax.random.normal(key, shape, dtype)


def uniform_fan_in(fan_in: int) -> Callable[..., jax.Array]:
    """Initialiser U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default for kernels and biases."""
    bound = 1.0 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def batch_statistics(x: jax.Array, where: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean and biased variance per channel over all valid cells, in float32.

    Args:
      x: `(b, h, w, c)`.
      where: `(b, h, w, 1)` bool or None (all valid).

    Returns:
      `mean (c,)`, `variance (c,)`, `count ()` (at least 1).
    """
    if where is None:
        return *moments(x), jnp.float32(math.prod(x.shape[:3]))
    x = x.astype(jnp.float32)
    axes = (0, 1, 2)
    count = jnp.maximum(jnp.sum(where, dtype=jnp.float32), 1.0)
    mean = jnp.sum(hide(x, where), axis=axes) / count
    centred = hide(x - mean[None, None, None], where)
    return mean, jnp.sum(centred * centred, axis=axes) / count, count


def running_update(old: jax.Array, new: jax.Array) -> jax.Array:
    """Running statistic after one step, momentum 0.1 (weight of the new value)."""
    return (1.0 - MOMENTUM) * old + MOMENTUM * new


class Kernel(nn.Module):
    """Holds the kernel `(k, k, in, out)` of a convolution under the layer's name."""

    shape: tuple[int, int, int, int]
    init_fn: Callable[..., jax.Array] = he_normal_fan_out

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("kernel", self.init_fn, self.shape)


class BatchNorm(nn.Module):
    """Batch normalisation as an affine map, eps 1e-5, momentum 0.1, unbiased variance in the running update.

    Called without arguments it gives the (factor, shift) of the running statistics, through which scale and
    bias still get gradients; the caller can fold it into the convolution before it. Called with `(x, where)`
    it gives those of the statistics of `x`, and stores the running update when `batch_stats` is mutable.
    """

    features: int

    @nn.compact
    def __call__(
        self, x: jax.Array | None = None, where: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        shape = (self.features,)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean_var = self.variable("batch_stats", "mean", jnp.zeros, shape)
        var_var = self.variable("batch_stats", "var", jnp.ones, shape)
        if x is None:
            mean, var = mean_var.value, var_var.value
        else:
            mean, var, count = batch_statistics(x, where)
            if self.is_mutable_collection("batch_stats") and not self.is_initializing():
                unbiased = var * (count / jnp.maximum(count - 1.0, 1.0))
                mean_var.value = running_update(mean_var.value, jax.lax.stop_gradient(mean))
                var_var.value = running_update(var_var.value, jax.lax.stop_gradient(unbiased))
        factor = scale * jax.lax.rsqrt(var + EPSILON)
        return factor, bias - mean * factor


class GroupNorm(nn.Module):
    """Group normalisation (32 groups, eps 1e-5) over the valid cells of each picture, float32 inside."""

    groups: int = 32

    @nn.compact
    def __call__(self, x: jax.Array, where: jax.Array | None = None) -> jax.Array:
        b, h, w, c = x.shape
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        y = x.astype(jnp.float32).reshape(b, h, w, self.groups, c // self.groups)
        cells = None if where is None else where[..., None]
        count = jnp.float32(h * w) if where is None else jnp.sum(where, axis=(1, 2, 3), dtype=jnp.float32)
        count = jnp.maximum(count, 1.0) * (c // self.groups)
        count = jnp.broadcast_to(count, (b,))[:, None, None, None, None]
        mean = jnp.sum(hide(y, cells), axis=(1, 2, 4), keepdims=True) / count
        centred = hide(y - mean, cells)
        var = jnp.sum(centred * centred, axis=(1, 2, 4), keepdims=True) / count
        y = (centred * jax.lax.rsqrt(var + EPSILON)).reshape(b, h, w, c)
        return (y * scale[None, None, None] + bias[None, None, None]).astype(x.dtype)
