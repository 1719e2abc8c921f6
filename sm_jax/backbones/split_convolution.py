"""A convolution with fewer multiplications, for large kernels in float32 on CPU.

Along one axis, split signal and kernel into even and odd samples. Two outputs y0, y1 of the even and odd
kernel g0, g1 need four half-length convolutions, or three (Winograd's F(2, 2) on the polyphase components):

    m1 = (x0 - x1) * g0,   m2 = x1 * (g0 + g1),   m3 = (x1 - x2) * g1,   y0 = m1 + m2,   y1 = m2 - m3

where x2 is x0 one sample later. Only sums and differences are added, so the rounding error is at most about
twice that of the plain convolution. 7 taps need 11/14 of the multiplications per axis; OS2D's first
TransformNet layer took 0.75 of the CPU time of the plain one forward and 0.6 with gradients (both axes, 4
maps of 38x50, 2 cores). Accelerators have better algorithms of their own and run the plain form.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sm_jax.backbones.common import convolve

GROUPS = 4
"""In inference the maps go through in so many groups, one after another: a third less memory, and where that
keeps it below the size from which the system hands out fresh pages every time (32 MB), a tenth less time."""
SPLIT_FEW, SPLIT_MANY = (6144, 12288), (3072, 4608)
"""Rows (cells of all maps) from which one axis and both are split in inference, for fewer maps than groups
and for others: below, the copies of the kernel would dominate the memory per cell."""
SPLIT_TRAINING = 2048
"""Rows from which both axes are split in training."""


def convolve_large(x: jax.Array, kernel: jax.Array, *, train: bool = False) -> jax.Array:
    """`convolve` with stride 1, by the fastest form for the platform that fits the memory.

    Args:
      x: `(b, h, w, in)`.
      kernel: `(k, k, in, out)`, k odd and more than 1.
      train: whether gradients will be taken (memory is then dominated by what they keep).

    Returns:
      `(b, h, w, out)`, equal to `convolve(x, kernel)` up to rounding.
    """
    rows = x.shape[0] * x.shape[1] * x.shape[2]
    if train:
        axes = 2 if rows >= SPLIT_TRAINING else 0
    else:
        axes = sum(rows >= least for least in (SPLIT_FEW if x.shape[0] < GROUPS else SPLIT_MANY))
    if axes == 0 or x.dtype != jnp.float32:
        return convolve(x, kernel)
    split = functools.partial(_in_groups, axes=axes, groups=1 if train else min(GROUPS, x.shape[0]))
    return jax.lax.platform_dependent(x, kernel, cpu=split, default=convolve)


def _in_groups(x: jax.Array, kernel: jax.Array, *, axes: int, groups: int) -> jax.Array:
    """`convolve_split` of one group of maps after the other."""
    done: list[jax.Array] = []
    for group in jnp.array_split(x, groups):
        if done:
            # Adds 0; without a need to wait, the compiler starts all groups at once. (No loop: on CPU the
            # gradient of a convolution inside one is many times slower.)
            group = group + (done[-1][0, 0, 0, 0] == jnp.inf).astype(x.dtype)
        done.append(convolve_split(group, kernel, axes=axes))
    return jnp.concatenate(done)


def convolve_split(x: jax.Array, kernel: jax.Array, *, axes: int) -> jax.Array:
    """Convolution with stride 1 and "same" padding, the last `axes` (1 or 2) spatial axes split.

    Args:
      x: `(b, h, w, in)`.
      kernel: `(k, k, in, out)`, k odd and more than 1.
      axes: 1 splits the columns, 2 the rows too.

    Returns:
      `(b, h, w, out)`.
    """
    pad = kernel.shape[0] // 2
    height, width = x.shape[1:3]
    rows = (pad, pad + height % 2) if axes == 2 else (0, 0)  # otherwise the convolutions pad the rows
    x = jnp.pad(x, ((0, 0), rows, (pad, pad + width % 2), (0, 0)))
    inner = functools.partial(_convolution, rows=0 if axes == 2 else pad)
    for axis in (2, 1)[:axes]:
        inner = functools.partial(_split_axis, axis=axis, inner=inner)
    return inner(x, kernel)[:, :height, :width]


def _convolution(x: jax.Array, kernel: jax.Array, *, rows: int) -> jax.Array:
    """Convolution with `rows` rows of zeros above and below, and no padding of the columns."""
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), ((rows, rows), (0, 0)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _split_axis(
    x: jax.Array, kernel: jax.Array, *, axis: int, inner: Callable[[jax.Array, jax.Array], jax.Array]
) -> jax.Array:
    """Unpadded convolution of an even number of outputs along `axis`, by three of half the length."""
    take = jax.lax.slice_in_dim
    x0, x1 = (take(x, start, None, 2, axis) for start in (0, 1))
    g0, g1 = (take(kernel, start, None, 2, axis - 1) for start in (0, 1))
    longer = [(0, 0)] * 4
    longer[axis - 1] = (0, 1)
    length = x0.shape[axis]
    m1 = inner(x0 - x1, g0)
    m2 = inner(x1, g0 + jnp.pad(g1, longer))
    m3 = inner(take(x1, 0, length - 1, 1, axis) - take(x0, 1, length, 1, axis), g1)
    interleaved = jnp.stack([m1 + m2, m2 - m3], axis=axis + 1)
    shape = list(m1.shape)
    shape[axis] *= 2
    return interleaved.reshape(shape)
