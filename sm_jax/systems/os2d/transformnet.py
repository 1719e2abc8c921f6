"""The network that reads a correlation and predicts the affine alignment at every cell.

Fully convolutional with "same" zero padding; its 15x15 receptive field is the template. Source: OS2D
(ECCV 2020), sec. 3.2, after "End-to-end weakly-supervised semantic alignment" (CVPR 2018).
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from sm_jax.backbones.common import BatchNorm, convolve, hide, uniform_fan_in
from sm_jax.backbones.split_convolution import convolve_large

CHANNELS = 225
IDENTITY = {4: (1.0, 0.0, 1.0, 0.0), 6: (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)}
"""Parameters of the identity: (sx, tx, sy, ty), and (a11, a12, tx, a21, a22, ty)."""


class Weights(nn.Module):
    """Kernel `(k, k, in, out)` and bias `(out,)` of a convolution under the layer's name."""

    shape: tuple[int, int, int, int]
    kernel_init: Callable[..., jax.Array]
    bias_init: Callable[..., jax.Array]

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        kernel = self.param("kernel", self.kernel_init, self.shape)
        return kernel, self.param("bias", self.bias_init, self.shape[-1:])


def identity_bias(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Initialiser of the last bias: the identity transformation with `shape[0]` parameters."""
    del key
    return jnp.asarray(IDENTITY[shape[0]], dtype)


class TransformNet(nn.Module):
    """Normalised correlation to transformation parameters.

    Three convolutions (7x7 to 128, 5x5 to 64, 5x5 to the parameters), batch norm and ReLU after the first
    two. A new network predicts the identity everywhere. `act1` and `act2` are sown after the ReLUs.

    Attributes:
      parameters: 4 (V1) or 6 (V2).
      dtype: type of the activations; parameters are float32, and so is the result.
      frozen_norm: use the running statistics in training too.
    """

    parameters: int = 4
    dtype: jnp.dtype = jnp.float32
    frozen_norm: bool = False

    @nn.compact
    def __call__(
        self,
        corr: jax.Array,
        where: jax.Array | None = None,
        *,
        train: bool = False,
        counted: jax.Array | None = None,
    ) -> jax.Array:
        """Parameters at every cell.

        Args:
          corr: `(m, h, w, k)`, k >= 225 channels, row-major template positions (i * 15 + j); channels past
            225 must be zero. Zero outside the valid cells.
          where: `(m, h, w, 1)` bool valid cells, or None.
          train: normalise with the statistics of this batch and update the running ones (`frozen_norm`: not).
          counted: `(m, h, w, 1)` bool cells that enter those statistics; default `where`.

        Returns:
          `(m, h, w, parameters)` float32.
        """
        counted = where if counted is None else counted
        batch_norm = train and not self.frozen_norm
        x = corr.astype(self.dtype)
        for i, (size, width, inputs) in enumerate(((7, 128, CHANNELS), (5, 64, 128)), start=1):
            init = uniform_fan_in(size * size * inputs)
            kernel, bias = Weights((size, size, inputs, width), init, init, name=f"conv{i}")()
            kernel = _pad_inputs(kernel, x.shape[-1])
            norm = BatchNorm(width, name=f"bn{i}")
            y = convolve_large(x, kernel, train=train) if size == 7 else convolve(x, kernel)
            y = y + bias.astype(self.dtype)[None, None, None]
            # Not folded into the kernel: a scaled copy of it would be a third of the head's memory.
            factor, shift = norm(y, counted) if batch_norm else norm()
            y = (y * factor[None, None, None] + shift[None, None, None]).astype(self.dtype)
            x = hide(nn.relu(y), where)
            self.sow("intermediates", f"act{i}", x)
        shape = (5, 5, 64, self.parameters)
        kernel, bias = Weights(shape, nn.initializers.zeros, identity_bias, name="linear")()
        # The bias is near 1 and the rest near 0: adding it in float32 keeps the digits of half precision.
        return convolve(x, kernel).astype(jnp.float32) + bias[None, None, None]


def _pad_inputs(kernel: jax.Array, inputs: int) -> jax.Array:
    """Zero input channels up to `inputs`, for a correlation padded to a multiple that hardware likes."""
    extra = inputs - kernel.shape[2]
    return jnp.pad(kernel, ((0, 0), (0, 0), (0, extra), (0, 0))) if extra else kernel
