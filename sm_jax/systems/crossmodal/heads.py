"""Proposals to unit vectors, and how well each goes with a phrase.

Source: Ferreira et al. 2023, sec. 3.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from sm_jax.backbones.common import Kernel
from sm_jax.ops.correlation import l2_normalize
from sm_jax.systems.crossmodal.text import EPSILON

Array = jax.Array


def convolve_two_by_two(cells: Array, kernel: Array) -> Array:
    """3x3 convolution with one ring of zeros around maps of 2x2 cells.

    Every result reads all four cells, through four of the nine taps: one product with a matrix "4c 4k". A
    general convolution would compute 36 taps, of which 20 see zeros; on CPU it is twenty times slower.

    Args:
      cells: "n 2 2 c".
      kernel: "3 3 c k".

    Returns:
      "n 2 2 k", type of the cells.
    """
    kernel, inner, out = kernel.astype(cells.dtype), *kernel.shape[2:]
    # The result (i, j) sees the cell (p, q) through the tap (p - i + 1, q - j + 1).
    rows = jnp.stack([kernel[1:3], kernel[0:2]])  # i p 3 c k
    taps = jnp.stack([rows[:, :, 1:3], rows[:, :, 0:2]])  # j i p q c k
    matrix = taps.transpose(2, 3, 4, 1, 0, 5).reshape(4 * inner, 4 * out)
    return (cells.reshape(-1, 4 * inner) @ matrix).reshape(-1, 2, 2, out)


class ProposalEncoder(nn.Module):
    """3x3 convolution, ReLU, two linear layers with a ReLU between them, L2 over channels.

    The convolution computes in the type of its input; the rest, and the result, are float32.
    """

    width: int = 256
    hidden: int = 256
    embed: int = 64

    @nn.compact
    def __call__(self, cells: Array) -> Array:
        """Pooled features "n 2 2 c" to unit vectors f32 "n embed"."""
        shape = (3, 3, cells.shape[-1], self.width)
        kernel = Kernel(shape, nn.initializers.he_normal(), name="conv")()
        bias = self.param("conv_bias", nn.initializers.zeros, (self.width,))
        x = convolve_two_by_two(cells, kernel).astype(jnp.float32)
        x = nn.relu(x + bias[None, None, None]).reshape(cells.shape[0], 4 * self.width)
        x = nn.relu(nn.Dense(self.hidden, kernel_init=nn.initializers.he_normal(), name="hidden")(x))
        return l2_normalize(nn.Dense(self.embed, name="embed")(x), epsilon=EPSILON)


class MlpAligner(nn.Module):
    """Two-layer perceptron on [proposal, phrase]; the first layer is computed once for either side."""

    hidden: int = 64

    @nn.compact
    def __call__(self, proposals: Array, text: Array) -> Array:
        """Logits "q k" that proposals "k r" are what phrases "q t" describe."""
        width = proposals.shape[-1]
        # Either vector has length 1: this spread gives the sum of both products a variance of 1. With the
        # usual one, made for channels of variance 1, the loss stays at that of the majority for epochs.
        spread = nn.initializers.normal(math.sqrt(0.5))
        init = functools.partial(self.param, "hidden_kernel", spread)
        kernel = init((width + text.shape[-1], self.hidden))
        bias = self.param("hidden_bias", nn.initializers.zeros, (self.hidden,))
        both = (proposals @ kernel[:width])[None] + (text @ kernel[width:])[:, None]
        out = nn.Dense(1, kernel_init=nn.initializers.he_normal(), name="out")
        return out(nn.relu(both + bias[None, None]))[..., 0]


class CosineAligner(nn.Module):
    """The dot product of the two unit vectors, scaled and shifted: the baseline of the perceptron."""

    @nn.compact
    def __call__(self, proposals: Array, text: Array) -> Array:
        """Logits "q k" that proposals "k d" are what phrases "q d" describe."""
        scale = self.param("scale", nn.initializers.constant(10.0), ())
        bias = self.param("bias", nn.initializers.zeros, ())
        return scale * (text @ proposals.T) + bias
