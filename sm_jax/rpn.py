"""Region proposals: a small network that says of every anchor whether it shows an object, and where exactly.

Anchors are those of `ops.anchors.grid_anchors` for the feature map, in its order: n = h * w * a. Boxes are
xyxy in pixels of the image. Codes are (dx, dy, dw, dh) of `boxes.encode` with all weights 1.

Source: Ren et al., Faster R-CNN (NIPS 2015), sec. 3.1; thresholds, sampling and loss as in Ferreira et al.
2023, sec. 3, where positive is strictly above its threshold.
"""

from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sm_jax import boxes as box_lib
from sm_jax.backbones.common import convolve
from sm_jax.losses import assignment, classification, regression
from sm_jax.ops.nms import nms

Array = jax.Array

WEIGHTS = (1.0, 1.0, 1.0, 1.0)
"""Weights of the box coder."""


class RpnTargets(NamedTuple):
    """The anchors of one image that take part in the loss, in `s` slots, positives first.

    Attributes:
      anchors: i32 "s", numbers of the anchors.
      labels: i32 "s", 1 positive, 0 negative.
      valid: bool "s"; everything else is 0 (`matched` -1) where False.
      matched: i32 "s", number of the matched box, -1 for negatives.
      codes: f32 "s 4", codes of the matched box, 0 for negatives.
    """

    anchors: Array
    labels: Array
    valid: Array
    matched: Array
    codes: Array


class Convolution(nn.Module):
    """Kernel `(3, 3, in, width)` and bias of a convolution; N(0, 0.01) and 0."""

    width: int

    @nn.compact
    def __call__(self, channels: int) -> tuple[Array, Array]:
        kernel = self.param("kernel", nn.initializers.normal(0.01), (3, 3, channels, self.width))
        return kernel, self.param("bias", nn.initializers.zeros, (self.width,))


class RPN(nn.Module):
    """3x3 convolution to `width` channels, ReLU, then one logit and four codes for every anchor of a cell.

    Computes in the type of the features; results are float32.
    """

    width: int = 256
    anchors_per_cell: int = 1

    def setup(self):
        self.conv = Convolution(self.width)
        init = {"kernel_init": nn.initializers.normal(0.01)}
        self.objectness = nn.Dense(self.anchors_per_cell, **init)
        self.codes = nn.Dense(4 * self.anchors_per_cell, **init)

    def __call__(self, features: Array) -> dict[str, Array]:
        """All anchors: features "b h w c" -> {"logits" "b n", "codes" "b n 4"}."""
        kernel, bias = self.conv(features.shape[-1])
        logits, codes = self._heads(convolve(features, kernel), bias)
        shape = (features.shape[0], features.shape[1] * features.shape[2] * self.anchors_per_cell)
        return {"logits": logits.reshape(shape), "codes": codes.reshape(*shape, 4)}

    def at(self, features: Array, anchors: Array) -> dict[str, Array]:
        """The same for chosen anchors only, computed at their cells: anchors i32 "b s" -> "b s", "b s 4"."""
        kernel, bias = self.conv(features.shape[-1])
        cell, kind = anchors // self.anchors_per_cell, anchors % self.anchors_per_cell
        logits, codes = self._heads(_convolve_at(features, kernel, cell), bias)
        chosen = jax.nn.one_hot(kind, self.anchors_per_cell, dtype=jnp.float32)
        return {
            "logits": jnp.sum(logits * chosen, axis=-1),
            "codes": jnp.sum(codes * chosen[..., None], axis=-2),
        }

    def _heads(self, hidden: Array, bias: Array) -> tuple[Array, Array]:
        """Logits "... a" and codes "... a 4" of the convolution's result "... width"."""
        bias = bias.astype(hidden.dtype).reshape((1,) * (hidden.ndim - 1) + (-1,))
        hidden = nn.relu(hidden + bias).astype(jnp.float32)
        codes = self.codes(hidden)
        return self.objectness(hidden), codes.reshape(*codes.shape[:-1], self.anchors_per_cell, 4)


def rpn_targets(
    boxes: Array,
    anchors: Array,
    key: Array,
    *,
    where: Array | None = None,
    difficult: Array | None = None,
    positive_iou: float = 0.6,
    negative_iou: float = 0.1,
    force: Literal["per_gt", "per_image", "none"] = "per_gt",
    max_positives: int = 32,
    fill: bool = False,
) -> RpnTargets:
    """Match the boxes of one image with anchors and sample as many negatives as positives.

    Args:
      boxes: f32 "g 4".
      anchors: f32 "n 4".
      key: random key of the sample.
      where: bool "g", the real boxes.
      difficult: bool "g", boxes whose anchors are ignored (see `assignment.match`); none is forced.
      positive_iou: an anchor that overlaps a box by more than this is positive.
      negative_iou: one that overlaps every box by less than this is negative; the others are ignored.
      force: every box also takes its best anchor ("per_gt"), only in an image without a positive
        ("per_image"), or never; see `assignment.force_best`.
      max_positives: slots for positives; there are as many for negatives.
      fill: negatives take all slots that positives leave, also without any positive (the sampling of Faster
        R-CNN).

    Returns:
      `RpnTargets` with s = 2 * max_positives.
    """
    boxes, anchors = jnp.asarray(boxes), jnp.asarray(anchors)
    if force not in ("per_gt", "per_image", "none"):
        raise ValueError(f'force is {force!r}, expected "per_gt", "per_image" or "none"')
    iou = box_lib.iou(boxes, anchors)
    above = float(
        np.nextafter(np.float32(positive_iou), np.float32(np.inf))
    )  # `match` includes its threshold
    index = assignment.match(
        iou, positive_iou=above, negative_iou=negative_iou, difficult=difficult, where=where
    )
    if force != "none":
        wanted = where
        if difficult is not None:
            wanted = ~difficult if where is None else where & ~difficult
        index = assignment.force_best(iou, index, where=wanted, per="gt" if force == "per_gt" else "image")
    if fill:
        chosen, labels, valid = assignment.sample_fraction(
            index, key, num=2 * max_positives, positive_fraction=0.5
        )
    else:
        chosen, labels, valid = assignment.sample_balanced(index, key, max_positives=max_positives)
    matched = jnp.where(labels == 1, index[chosen], -1)
    codes = box_lib.encode(
        assignment.matched_boxes(boxes, matched, where=where), anchors[chosen], weights=WEIGHTS
    )
    return RpnTargets(chosen, labels, valid, matched, jnp.where((labels == 1)[:, None], codes, 0.0))


def rpn_loss(
    logits: Array,
    codes: Array,
    targets: RpnTargets,
    *,
    weight: float = 1.0,
    beta: float = 1.0,
    per: Literal["positive", "sample"] = "positive",
) -> tuple[Array, dict[str, Array]]:
    """Loss of the sampled anchors of a batch.

    Args:
      logits: f32 "b s", at the sampled anchors (`RPN.at`).
      codes: f32 "b s 4".
      targets: `RpnTargets` with a leading batch axis.
      weight: weight of the box part.
      beta: where smooth l1 turns linear.
      per: what the box part is divided by: the number of positives, or of all samples (Faster R-CNN).

    Returns:
      Scalar loss, and its parts: "cls_loss", binary cross entropy averaged over all samples of the batch, and
      "box_loss", smooth l1 of the positives summed over the four codes and divided as `per` says (before
      `weight`). Both are 0 where there is no such sample.
    """
    positive = targets.valid & (targets.labels == 1)
    cls_loss = classification.sigmoid_bce(logits, targets.labels, where=targets.valid)
    total = regression.smooth_l1(
        codes.astype(jnp.float32), targets.codes, beta=beta, where=positive[..., None], reduce_fn=jnp.sum
    )
    counted = positive if per == "positive" else targets.valid
    box_loss = total / jnp.maximum(jnp.sum(counted), 1)
    return cls_loss + weight * box_loss, {"cls_loss": cls_loss, "box_loss": box_loss}


def propose(
    logits: Array,
    codes: Array,
    anchors: Array,
    *,
    image_size: tuple[int | Array, int | Array],
    min_conf: float = 0.5,
    iou: float = 0.5,
    size: int = 100,
    min_side: float = 4.0,
) -> dict[str, Array]:
    """Boxes of one image: decode, clip to the image, drop small ones, suppress overlaps.

    Args:
      logits: f32 "n".
      codes: f32 "n 4".
      anchors: f32 "n 4".
      image_size: (height, width) of the picture in pixels, numbers or traced scalars.
      min_conf: confidence, `sigmoid(logits)`, must be above this.
      iou: of two boxes that overlap by more than this the less confident is dropped.
      size: number of slots.
      min_side: boxes with a shorter side are dropped.

    Returns:
      {"boxes" f32 "size 4", "conf" f32 "size", "valid" bool "size"} by descending confidence, 0 where not
      valid.
    """
    conf = jax.nn.sigmoid(logits.astype(jnp.float32))
    boxes = box_lib.decode(codes.astype(jnp.float32), jnp.asarray(anchors), weights=WEIGHTS)
    boxes = box_lib.clip(boxes, image_size)
    large = jnp.all(boxes[:, 2:] - boxes[:, :2] >= min_side, axis=1)
    chosen, valid = nms(boxes, conf, iou=iou, size=size, where=large & (conf > min_conf))
    return {
        "boxes": jnp.where(valid[:, None], boxes[chosen], 0.0),
        "conf": jnp.where(valid, conf[chosen], 0.0),
        "valid": valid,
    }


def _convolve_at(features: Array, kernel: Array, cell: Array) -> Array:
    """`convolve` with a 3x3 kernel at some cells: "b h w c", "3 3 c width", i32 "b s" -> "b s width".

    One product for each of the nine neighbours, which are fetched again for the gradient: they would be nine
    times the size of the chosen features. Sums are float32 and rounded once to the type of the features;
    only the gradient with respect to these adds up in their type.
    """
    batch, height, width, channels = features.shape
    cells = features.reshape(batch, height * width, channels)
    row, column = cell // width, cell % width

    @jax.checkpoint
    def add(total: Array, tap: tuple[Array, Array]) -> tuple[Array, None]:
        step, weights = tap
        to_row, to_column = row + step[0], column + step[1]
        inside = (to_row >= 0) & (to_row < height) & (to_column >= 0) & (to_column < width)
        neighbour = jnp.where(inside, to_row * width + to_column, 0)
        found = jax.vmap(lambda cells, index: cells.at[index].get(mode="promise_in_bounds"))(cells, neighbour)
        product = jnp.matmul(found, weights, preferred_element_type=jnp.float32)
        return total + jnp.where(inside[..., None], product, 0), None

    steps = jnp.stack(jnp.meshgrid(jnp.arange(-1, 2), jnp.arange(-1, 2), indexing="ij"), axis=-1)
    kernel = kernel.astype(features.dtype).reshape(9, channels, -1)
    start = jnp.zeros((*cell.shape, kernel.shape[-1]), jnp.float32)
    return jax.lax.scan(add, start, (steps.reshape(9, 2), kernel))[0].astype(features.dtype)
