"""VGG16 up to its fourth pooling ("pool4", stride 16), NHWC.

Source: "Very Deep Convolutional Networks for Large-Scale Image Recognition" (ICLR 2015), configuration D; the
cut after pool4 follows SCNet (ICCV 2017). Pooling rounds sizes down, as all published weights do.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sm_jax.backbones.common import convolve, he_normal_fan_out, hide, valid_cells
from sm_jax.errors import ConfigError

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512))
"""Output channels of the convolutions before each pooling."""
LEVELS = ("c1", "c2", "c3", "c4")
"""pool1 (stride 2) ... pool4 (stride 16)."""


def feature_size(size, stride: int = 16):
    """Size of the feature map of a picture, `size // stride`.

    Args:
      size: height, width or both, in pixels; integers or integer arrays (also traced ones).
      stride: 2, 4, 8 or 16.

    Returns:
      The size in cells, same type.
    """
    return size // stride


def unit_names(level: str = "c4") -> list[str]:
    """The convolutions in order, the units that can be frozen: `"conv1_1"` ... `"conv4_3"`."""
    stages = STAGES[: LEVELS.index(level) + 1]
    return [f"conv{s}_{i}" for s, widths in enumerate(stages, 1) for i in range(1, len(widths) + 1)]


def is_frozen(name: str, *, frozen_blocks: int) -> bool:
    """Whether the parameter `name` (its path below `backbone/`) lies in the first `frozen_blocks` units."""
    return name.split("/")[0] in unit_names()[:frozen_blocks]


class Convolution(nn.Module):
    """A 3x3 convolution with bias, padding 1, stride 1, before the ReLU."""

    out: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (3, 3, x.shape[-1], self.out)
        kernel = self.param("kernel", he_normal_fan_out, shape)  # the published start needs a shallower net
        bias = self.param("bias", nn.initializers.zeros, (self.out,))
        return convolve(x, kernel) + bias.astype(x.dtype)[None, None, None]


class VGG16(nn.Module):
    """VGG16 up to a named level.

    Attributes:
      level: last level computed: `"c1"` (pool1, stride 2) ... `"c4"` (pool4, stride 16).
      frozen_blocks: convolutions that get no gradient, from the first on; 10 are all.
      dtype: type of the activations; parameters are float32.
    """

    level: str = "c4"
    frozen_blocks: int = 0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, size=None, *, train: bool = False) -> dict[str, jax.Array]:
        """Feature maps of normalised pictures.

        Args:
          image: `(b, h, w, 3)`, RGB, normalised, zero padded outside `size`.
          size: `(b, 2)` int32 valid (height, width) in pixels, or None when everything is valid.
          train: of no effect: there are no statistics.

        Returns:
          `{"c1": (b, h // 2, w // 2, 64), ...}` up to `level`, in `dtype`, after ReLU and pooling, zero
          outside the valid cells (`feature_size(size, stride)`).

        Raises:
          ConfigError: an unknown level, `frozen_blocks` out of range, or a picture smaller than one cell.
        """
        self._check(image.shape)
        x = jnp.asarray(image, self.dtype)
        where = None if size is None else valid_cells(size, x.shape[1:3])
        units, levels = 0, {}
        for stage, widths in enumerate(STAGES[: LEVELS.index(self.level) + 1], start=1):
            for index, width in enumerate(widths, start=1):
                layer = Convolution(width, name=f"conv{stage}_{index}")
                x = hide(nn.relu(layer(x)), where)
                units += 1
                x = jax.lax.stop_gradient(x) if units == self.frozen_blocks else x
            x = halve(x)
            if size is not None:
                size = size // 2
                where = valid_cells(size, x.shape[1:3])
            x = hide(x, where)  # an odd last row was pooled with the padding below it
            levels[LEVELS[stage - 1]] = x
        return levels

    def _check(self, shape):
        if self.level not in LEVELS:
            raise ConfigError(f"VGG16: level={self.level!r} is not one of {', '.join(LEVELS)}")
        units = len(unit_names(self.level))
        if not 0 <= self.frozen_blocks <= units:
            raise ConfigError(f"VGG16: frozen_blocks={self.frozen_blocks}, but there are 0 to {units} units")
        stride = 2 << LEVELS.index(self.level)
        if min(shape[1:3]) < stride:
            raise ConfigError(
                f"VGG16: a picture of {shape[2]}x{shape[1]} pixels has no cell of level {self.level}, which "
                f"needs {stride} pixels in both directions"
            )


def halve(x: jax.Array) -> jax.Array:
    """2x2 maximum, stride 2, of `(b, h, w, c)`; an odd last row or column is left out."""
    b, h, w, c = x.shape
    cells = x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c)
    return cells.max((2, 4))
