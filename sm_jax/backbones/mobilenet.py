"""MobileNetV2 (width 1.0) in the torchvision arrangement, NHWC, without classifier or with it.

Source: "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (CVPR 2018). Unit i is torchvision's
`features[i]`: 0 the stem, 1 to 17 the inverted residuals, 18 the last 1x1 convolution.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sm_jax.backbones.channels import add_shift, scale_shift
from sm_jax.backbones.common import BatchNorm, Kernel, convolve, uniform_fan_in
from sm_jax.backbones.depthwise import PADDINGS, borders, depthwise
from sm_jax.backbones.once import compute_once, gradient_once
from sm_jax.errors import ConfigError

LEVELS = {3: "c2", 6: "c3", 13: "c4", 18: "c5"}
"""Units whose output is the last of its stride: 4, 8, 16 and 32."""
CLASSES = 1000
GREY = tuple((0.5 - m) / s for m, s in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True))
"""A normalised pixel whose byte value is 127.5, the zero of a net that was fed RGB/127.5 - 1."""


class Shape(NamedTuple):
    """Channels of one unit (in, inside, out) and its stride."""

    inner: int
    wide: int
    out: int
    stride: int


def _units() -> tuple[Shape, ...]:
    units, inner = [Shape(3, 32, 32, 2)], 32
    for expansion, out, repeats, stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for i in range(repeats):
            units.append(Shape(inner, expansion * inner, out, 1 if i else stride))
            inner = out
    return (*units, Shape(inner, 1280, 1280, 1))


UNITS = _units()


def unit_names() -> list[str]:
    """The units in order: `"features_0"` ... `"features_18"`."""
    return [f"features_{i}" for i in range(len(UNITS))]


def is_frozen(name: str, *, frozen_blocks: int) -> bool:
    """Whether the parameter `name` (its path below `backbone/`) lies in the first `frozen_blocks` units."""
    return name.split("/")[0] in unit_names()[:frozen_blocks]


def unit_output(unit: int, image_size: tuple[int, int]) -> tuple[int, int, int]:
    """Height, width and channels of what unit `unit` gives for pictures of (height, width)."""
    height, width = image_size
    for shape in UNITS[: unit + 1]:
        height, width = -(-height // shape.stride), -(-width // shape.stride)
    return height, width, UNITS[unit].out


class Unit(nn.Module):
    """What all units share: a convolution followed by its norm and, if asked, ReLU6."""

    shape: Shape
    padding: str = "torch"

    def conv_norm(self, x, convolution, kernel_shape, name: str, *, train: bool, relu6: bool):
        kernel = Kernel(kernel_shape, name=name)()
        layer = BatchNorm(kernel_shape[-1], name="bn" if name == "conv" else f"{name}_bn")
        if train:
            y = compute_once(convolution(x, kernel)) if name == "depthwise" else convolution(x, kernel)
            return scale_shift(y, *layer(y), relu6)
        factor, shift = layer()
        return add_shift(convolution(x, kernel * factor[None, None, None]), shift, relu6)


class Stem(Unit):
    """3x3 convolution, stride 2, norm, ReLU6."""

    @nn.compact
    def __call__(self, x, train: bool):
        around = ((0, 0), *(borders(length, 2, self.padding) for length in x.shape[1:3]), (0, 0))
        if self.padding == "tf_same":
            outside = jnp.pad(jnp.zeros((1, *x.shape[1:3], 1), x.dtype), around, constant_values=1)
            x = jnp.pad(x, around) + outside * jnp.asarray(GREY, x.dtype)[None, None, None]
        else:
            x = jnp.pad(x, around)

        def convolution(x, kernel):
            return jax.lax.conv_general_dilated(
                x, kernel.astype(x.dtype), (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )

        return self.conv_norm(x, convolution, (3, 3, 3, 32), "conv", train=train, relu6=True)


class InvertedResidual(Unit):
    """1x1 expansion (none in unit 1), depthwise 3x3 (stride here), 1x1 projection without activation."""

    @nn.compact
    def __call__(self, x, train: bool):
        inner, wide, out, stride = self.shape
        y = x = gradient_once(x)
        if wide != inner:
            shape = (1, 1, inner, wide)
            y = gradient_once(self.conv_norm(y, convolve, shape, "expand", train=train, relu6=True))
        spatial = functools.partial(depthwise, stride=stride, padding=self.padding)
        y = self.conv_norm(y, spatial, (3, 3, 1, wide), "depthwise", train=train, relu6=True)
        y = self.conv_norm(y, convolve, (1, 1, wide, out), "project", train=train, relu6=False)
        return compute_once(x + y) if stride == 1 and inner == out else y


class Last(Unit):
    """1x1 convolution to 1280 channels, norm, ReLU6."""

    @nn.compact
    def __call__(self, x, train: bool):
        shape = (1, 1, self.shape.inner, self.shape.out)
        return self.conv_norm(x, convolve, shape, "conv", train=train, relu6=True)


class MobileNetV2(nn.Module):
    """MobileNetV2 without its classifier: 2,223,872 parameters, output stride 32.

    Attributes:
      frozen_blocks: the first so many of the 19 units get no gradient and always use running statistics.
      freeze_bn: use running statistics everywhere, also when `train` (scale and bias still train).
      dtype: type of the activations; parameters are float32.
      padding: `"torch"` (1 on every side), or `"tf_same"` for weights that come from TensorFlow, whose zero
        around the picture is the grey 127.5.
    """

    frozen_blocks: int = 0
    freeze_bn: bool = False
    dtype: jnp.dtype = jnp.float32
    padding: str = "torch"

    @nn.compact
    def __call__(
        self, image, *, train: bool = False, start: int = 0, stop: int = len(UNITS)
    ) -> dict[str, jax.Array]:
        """Feature maps of normalised pictures, or of what the first units made of them.

        Args:
          image: `(b, h, w, 3)`, RGB, normalised; with `start` the output of unit `start - 1`.
          train: use and update batch statistics (not in frozen units, nor with `freeze_bn`).
          start, stop: only units `start` to `stop - 1` are run; `stop=k` gives under "last" what `start=k`
            takes.

        Returns:
          `"last"`, the output of the last unit run, and of the levels passed `"c2"` (stride 4, 24 channels),
          `"c3"` (8, 32), `"c4"` (16, 96), `"c5"` (32, 1280), each after the last unit of its stride; in
          `dtype`. Sizes are those of the picture, halved with ceiling.
        """
        self._check(image.shape, start, stop)
        x = jnp.asarray(image, self.dtype)
        levels = {}
        for i in range(start, stop):
            shape, name = UNITS[i], f"features_{i}"
            kind = Stem if i == 0 else Last if i == len(UNITS) - 1 else InvertedResidual
            frozen = i < self.frozen_blocks
            x = kind(shape, self.padding, name=name)(x, train and not frozen and not self.freeze_bn)
            if i + 1 == self.frozen_blocks:
                x = jax.lax.stop_gradient(x)
            if i in LEVELS:
                levels[LEVELS[i]] = x
        return {**levels, "last": x}

    def _check(self, shape: tuple[int, ...], start: int, stop: int):
        count = len(UNITS)
        if self.padding not in PADDINGS:
            raise ConfigError(f"MobileNetV2: padding={self.padding!r} is not one of {', '.join(PADDINGS)}")
        if not 0 <= self.frozen_blocks <= count:
            raise ConfigError(
                f"MobileNetV2: frozen_blocks={self.frozen_blocks}, but there are 0 to {count} units"
            )
        if not 0 <= start < stop <= count:
            raise ConfigError(f"MobileNetV2: start={start}, stop={stop}; needed 0 <= start < stop <= {count}")
        if len(shape) != 4 or shape[-1] != UNITS[start].inner:
            raise ConfigError(
                f"MobileNetV2: unit {start} takes (b, h, w, {UNITS[start].inner}), not {tuple(shape)}"
            )


class Classifier(nn.Module):
    """Mean over all cells, then one linear layer; used to check weights, no detector has it."""

    classes: int = CLASSES

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """`(b, h, w, c)` features (`"c5"`) to `(b, classes)` logits."""
        inner = features.shape[-1]
        kernel = self.param("kernel", uniform_fan_in(inner), (inner, self.classes))
        bias = self.param("bias", nn.initializers.zeros, (self.classes,))
        return jnp.mean(features, axis=(1, 2)) @ kernel + bias[None]
