"""The layers of CoAE: non-local attention, excitation of channels, and the head that compares boxes.

Source: Hsieh et al., NeurIPS 2019, sections "Non-local object proposals", "Squeeze and co-excitation" and
"Proposal ranking"; Wang et al., Non-local Neural Networks (CVPR 2018); Hu et al., Squeeze-and-Excitation
Networks (CVPR 2018). Written for one image and one query: `vmap` over both. Readable loops that say the same
are in `sm_jax.systems.coae.reference`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sm_jax.backbones.common import Kernel, convolve
from sm_jax.backbones.resnet import Bottleneck
from sm_jax.ops.roi import roi_align

Array = jax.Array

KINDS = ("softmax", "dot")
HEADS = ("c5", "light")
STRIDE = 16
"""Pixels per cell of the feature maps."""
SMALL = nn.initializers.normal(0.01)


def attend(queries: Array, keys: Array, values: Array, *, kind: str = "softmax", where: Array | None = None):
    """Weighted mean of the values for every query: the pairwise part of a non-local block.

    Args:
      queries: "n d".
      keys: "m d".
      values: "m c".
      kind: "softmax" weighs with the softmax of the products over the keys (the embedded Gaussian of Wang et
        al., eq. 3), "dot" with the products divided by the number of keys (their eq. 4).
      where: bool "m", the real keys; at least one.

    Returns:
      "n c".
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, expected one of {', '.join(KINDS)}")
    products = queries @ keys.T
    where = jnp.ones(keys.shape[:1], bool) if where is None else where
    if kind == "softmax":
        weights = jax.nn.softmax(jnp.where(where[None], products, -jnp.inf), axis=-1)
    else:
        weights = jnp.where(where[None], products, 0.0) / jnp.sum(where)
    return weights @ values


class NonLocal(nn.Module):
    """What the cells of one map take over from those of another; 0 before training, so the sum starts as is.

    Attributes:
      channels: of both maps, and of the result.
      width: channels inside.
      kind: see `attend`.
    """

    channels: int
    width: int
    kind: str = "softmax"

    def setup(self):
        self.queries, self.keys, self.values = (nn.Dense(self.width, kernel_init=SMALL) for _ in range(3))
        self.out = nn.Dense(self.channels, kernel_init=nn.initializers.zeros)

    def own(self, cells: Array) -> Array:
        """The side that attends: "n c" -> "n width"."""
        return self.queries(cells)

    def other(self, cells: Array) -> tuple[Array, Array]:
        """The side that is looked at: "m c" -> keys and values, each "m width"."""
        return self.keys(cells), self.values(cells)

    def combine(self, queries: Array, keys: Array, values: Array, where: Array | None = None) -> Array:
        """What the first side takes over: "n channels"."""
        return self.out(attend(queries, keys, values, kind=self.kind, where=where))

    def __call__(self, cells: Array, others: Array, where: Array | None = None) -> Array:
        """Cells "n c" looking at others "m c", of which `where` bool "m" are real."""
        return self.combine(self.own(cells), *self.other(others), where)


class Excitation(nn.Module):
    """Weight of every channel, from the mean of the query's map: two layers, ReLU between, sigmoid after."""

    channels: int
    ratio: int = 16

    @nn.compact
    def __call__(self, squeezed: Array) -> Array:
        """Mean over the cells "c" -> weights within 0..1 "c"."""
        hidden = nn.relu(nn.Dense(max(self.channels // self.ratio, 1), name="squeeze")(squeezed))
        return jax.nn.sigmoid(nn.Dense(self.channels, name="excite")(hidden))


class Head(nn.Module):
    """Vectors of boxes, their comparison with the vector of the query, and the correction of the boxes.

    Attributes:
      kind: "c5": the cells of a box go through the fifth stage of a ResNet, at half the resolution (2048
        channels); "light": the map is first reduced to `width` channels, then a 3x3 convolution.
      bins: cells of a box along either side.
      width: of the light head.
      hidden: units of the perceptron that compares.
      norm: of the fifth stage.
    """

    kind: str = "c5"
    bins: int = 7
    width: int = 256
    hidden: int = 8
    norm: str = "frozen_bn"

    def setup(self):
        if self.kind == "c5":
            self.blocks = [
                Bottleneck(self.norm, 512, stride, name=f"layer4_{i}") for i, stride in enumerate((2, 1, 1))
            ]
        else:
            self.reduce = nn.Dense(self.width)
            self.conv = Conv(self.width)
        self.compare_hidden = nn.Dense(self.hidden)
        self.compare_out = nn.Dense(2, kernel_init=SMALL)
        self.codes = nn.Dense(4, kernel_init=nn.initializers.normal(0.001))

    def vectors(self, features: Array, boxes: Array) -> Array:
        """Map "h w c" and boxes "k 4" in pixels -> "k e"."""
        if self.kind == "light":
            features = nn.relu(self.reduce(features))
        cells = roi_align(features, boxes, stride=STRIDE, output_size=(self.bins, self.bins))
        if self.kind == "light":
            cells = self.conv(cells)
        else:
            for block in self.blocks:
                cells = block(cells, None, None, False)
        return jnp.mean(cells, axis=(1, 2))

    def __call__(self, features: Array, boxes: Array, query: Array) -> tuple[Array, Array]:
        """Boxes of an image against a query.

        Args:
          features: "h w c" of the image; cells beyond its valid part repeat the last valid ones.
          boxes: f32 "k 4" pixels, no gradient.
          query: "i j c", whose whole map is one more box.

        Returns:
          logits f32 "k 2", background and foreground; codes f32 "k 4" of `two_stage`.
        """
        vectors = self.vectors(features, boxes)
        whole = jnp.array([[0, 0, query.shape[1] * STRIDE, query.shape[0] * STRIDE]], jnp.float32)
        query_vector = jnp.broadcast_to(self.vectors(query, whole), vectors.shape)
        both = jnp.concatenate([vectors, query_vector], axis=-1)
        logits = self.compare_out(nn.relu(self.compare_hidden(both)))
        return logits, self.codes(vectors)


class Conv(nn.Module):
    """A 3x3 convolution with bias and ReLU, "same" padding: "b h w c" -> "b h w width"."""

    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = Kernel((3, 3, x.shape[-1], self.width))()
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        return nn.relu(convolve(x, kernel) + bias[None, None, None])
