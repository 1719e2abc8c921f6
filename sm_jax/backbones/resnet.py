"""ResNet-50 and ResNet-101 in the torchvision arrangement (stride on the 3x3 convolution), NHWC.

Source: "Deep Residual Learning for Image Recognition" (CVPR 2016); the cut after the third stage ("C4") and
the frozen normalisation follow OS2D (ECCV 2020).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sm_jax.backbones.common import (
    BatchNorm,
    GroupNorm,
    Kernel,
    convolve,
    halve,
    hide,
    max_pool,
    valid_cells,
)
from sm_jax.backbones.once import compute_once
from sm_jax.errors import ConfigError

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
LEVELS = ("c2", "c3", "c4", "c5")
NORMS = ("frozen_bn", "batch_norm", "group_norm")


def feature_size(size, stride: int = 16):
    """Size of the feature map of a picture: one ceil-halving per stride-2 stage.

    Args:
      size: height, width or both, in pixels; integers or integer arrays (also traced ones).
      stride: 4, 8, 16 or 32.

    Returns:
      The size in cells, same type.
    """
    for _ in range(stride.bit_length() - 1):
        size = halve(size)
    return size


def unit_names(depth: int, level: str = "c4") -> list[str]:
    """The units that can be frozen, in order: `"stem"` (conv1 and bn1), then every block (`"layer1_0"`)."""
    stages = BLOCKS[depth][: LEVELS.index(level) + 1]
    return ["stem", *(f"layer{s}_{i}" for s, blocks in enumerate(stages, 1) for i in range(blocks))]


def is_frozen(name: str, *, depth: int, frozen_blocks: int) -> bool:
    """Whether the parameter `name` (its path below `backbone/`) lies in the first `frozen_blocks` units."""
    first = name.split("/")[0]
    unit = "stem" if first in ("conv1", "bn1") else first
    return unit in unit_names(depth, "c5")[:frozen_blocks]


class Unit(nn.Module):
    """What the stem and the residual blocks share: a convolution followed by its norm, before the ReLU."""

    norm: str

    def conv_norm(self, x, out, *, kernel, stride, conv, bn, where, train):
        """`where` are the valid cells of the result (used by statistics only)."""
        weights = Kernel((kernel, kernel, x.shape[-1], out), name=conv)()
        if self.norm == "group_norm":
            return GroupNorm(name=bn)(convolve(x, weights, stride=stride), where)
        layer = BatchNorm(out, name=bn)
        if self.norm == "batch_norm" and train:
            y = convolve(x, weights, stride=stride)
            factor, shift = layer(y, where)
        else:
            factor, shift = layer()
            if x.dtype.itemsize < 4:
                # The cast copies the kernel anyway, so folding is free. In float32 it costs more than it
                # saves, and moves activations enough to flip some ReLUs: the first layer's gradient then
                # differs from the published code's by 5e-3 of its largest entry instead of 4e-4.
                y = convolve(x, weights * factor[None, None, None], stride=stride)
                return y + shift.astype(x.dtype)[None, None, None]
            y = convolve(x, weights, stride=stride)
        return (y * factor[None, None, None] + shift[None, None, None]).astype(x.dtype)


class Bottleneck(Unit):
    """1x1, 3x3 (stride here), 1x1 convolutions with norms, plus the shortcut, then ReLU."""

    width: int = 64
    stride: int = 1

    @nn.compact
    def __call__(self, x, where_in, where_out, train: bool):
        def conv_norm(x, out, kernel, stride, names, where):
            conv, bn = names
            return self.conv_norm(
                x, out, kernel=kernel, stride=stride, conv=conv, bn=bn, where=where, train=train
            )

        y = nn.relu(conv_norm(x, self.width, 1, 1, ("conv1", "bn1"), where_in))
        y = nn.relu(conv_norm(hide(y, where_in), self.width, 3, self.stride, ("conv2", "bn2"), where_out))
        y = conv_norm(y, 4 * self.width, 1, 1, ("conv3", "bn3"), where_out)
        if x.shape[-1] != y.shape[-1] or self.stride != 1:
            names = ("downsample_conv", "downsample_bn")
            x = conv_norm(x, 4 * self.width, 1, self.stride, names, where_out)
        return compute_once(nn.relu(x + y))


class ResNet(Unit):
    """ResNet up to a named level.

    Attributes:
      norm: `"frozen_bn"` (running statistics, never updated; scale and bias train), `"batch_norm"` (batch
        statistics when `train`), or `"group_norm"` (32 groups).
      depth: 50 or 101.
      level: last level computed: `"c2"` (stride 4) ... `"c5"` (stride 32).
      frozen_blocks: units (stem, then residual blocks) that get no gradient.
      dtype: type of the activations; parameters are float32.
      remat: recompute each residual block in the backward pass instead of keeping its activations.
    """

    norm: str = "frozen_bn"
    depth: int = 50
    level: str = "c4"
    frozen_blocks: int = 0
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, image, size=None, *, train: bool = False) -> dict[str, jax.Array]:
        """Feature maps of normalised pictures.

        Args:
          image: `(b, h, w, 3)`, RGB, normalised, zero padded outside `size`.
          size: `(b, 2)` int32 valid (height, width) in pixels, or None when everything is valid.
          train: use and update batch statistics (`norm="batch_norm"` only).

        Returns:
          `{"c2": (b, ceil(h/4), ceil(w/4), 256), ...}` up to `level`, in `dtype`, after the ReLU, zero
          outside the valid cells (`feature_size(size, stride)`).
        """
        self._check()
        units = iter(range(1, 1 + len(unit_names(self.depth, self.level))))

        def freeze(x):
            return jax.lax.stop_gradient(x) if next(units) == self.frozen_blocks else x

        def cells(x, size):
            return None if size is None else valid_cells(size, x.shape[1:3])

        x = jnp.asarray(image, self.dtype)
        size = None if size is None else halve(size)
        where = None if size is None else valid_cells(size, (halve(x.shape[1]), halve(x.shape[2])))
        x = self.conv_norm(x, 64, kernel=7, stride=2, conv="conv1", bn="bn1", where=where, train=train)
        x = freeze(max_pool(hide(nn.relu(x), where)))
        size = None if size is None else halve(size)
        where = cells(x, size)
        block_type = nn.remat(Bottleneck, static_argnums=(4,)) if self.remat else Bottleneck
        levels = {}
        for stage, blocks in enumerate(BLOCKS[self.depth][: LEVELS.index(self.level) + 1], start=1):
            for i in range(blocks):
                stride = 2 if stage > 1 and i == 0 else 1
                where_in = where
                if stride == 2 and size is not None:
                    size = halve(size)
                    where = valid_cells(size, (halve(x.shape[1]), halve(x.shape[2])))
                block = block_type(self.norm, 32 * 2**stage, stride, name=f"layer{stage}_{i}")
                x = freeze(block(x, where_in, where, train))
            levels[LEVELS[stage - 1]] = hide(x, where)
        return levels

    def _check(self):
        for name, value, known in (
            ("depth", self.depth, tuple(BLOCKS)),
            ("norm", self.norm, NORMS),
            ("level", self.level, LEVELS),
        ):
            if value not in known:
                raise ConfigError(f"ResNet: {name}={value!r} is not one of {', '.join(map(str, known))}")
        units = len(unit_names(self.depth, self.level))
        if not 0 <= self.frozen_blocks <= units:
            raise ConfigError(f"ResNet: frozen_blocks={self.frozen_blocks}, but there are 0 to {units} units")
