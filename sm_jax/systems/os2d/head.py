"""The OS2D head: correlation, alignment, aligned score and box at every cell, for all classes at once.

Source: OS2D (ECCV 2020), sec. 3, and the published OS2D code where they differ.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sm_jax import boxes as box_ops
from sm_jax.backbones.common import hide, valid_cells
from sm_jax.ops import affine
from sm_jax.ops.correlation import l2_normalize
from sm_jax.ops.resample import pooled_scores

Array = jax.Array

TEMPLATE = 15
STRIDE = 16
FEATURE_EPSILON = 1e-5
CORR_EPSILON = 1e-6
CHANNEL_STEP = 8
"""Channels of a half-precision correlation are a multiple of it, which tensor cores ask for."""


class HeadOutput(NamedTuple):
    """What the head says at every cell (y, x) of image b about class c; cells outside an image score 0.

    Attributes:
      scores: f32 "b c h w", mean aligned correlation, in [-1, 1].
      scores_detached: f32 "b c h w", equal values, no gradient through the transformation.
      transform: f32 "b c h w 2 3", template coordinates to the cell's local frame (see `ops.affine`).
      boxes: f32 "b c h w 4", xyxy in image pixels, before the minimum-size rule.
      offsets: f32 "b c h w 4", codes of the boxes relative to the anchors (minimum-size rule applied).
      corners: f32 "b c h w 4 2", xy in image pixels of the template's corners, (row, column) = (0, 0),
        (0, 14), (14, 0), (14, 14); no gradient.
    """

    scores: Array
    scores_detached: Array
    transform: Array
    boxes: Array
    offsets: Array
    corners: Array


def correlation(features: Array, template: Array, *, dtype=jnp.float32) -> Array:
    """Correlation of every image with every class, channel first.

    Args:
      features: `(b, h, w, d)`, not normalised.
      template: `(c, ..., d)`, normalised; the axes between are its cells, 15 x 15 or of any number.
      dtype: type of the factors and of the result; sums are float32.

    Returns:
      `(b, c, k, h, w)`, channel i * 15 + j; k is the number of cells, 225, or 232 (the rest zero) in half
      precision.
    """
    images, height, width, depth = features.shape
    classes = template.shape[0]
    features = l2_normalize(features.astype(jnp.float32), epsilon=FEATURE_EPSILON).astype(dtype)
    bank = template.reshape(classes, -1, depth).astype(dtype)
    if dtype != jnp.float32:
        bank = jnp.pad(bank, ((0, 0), (0, -bank.shape[1] % CHANNEL_STEP), (0, 0)))
    # One product, classes first: an einsum puts the features first, and then transposes the result.
    corr = jax.lax.dot_general(
        bank.reshape(-1, depth),
        features.reshape(-1, depth),
        (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    corr = corr.reshape(classes, -1, images, height, width).astype(dtype)
    return jnp.moveaxis(corr, 2, 0)


def network_input(corr: Array) -> Array:
    """What TransformNet reads: ReLU, then L2 over the channels; `(b, c, k, h, w)` -> `(b * c, h, w, k)`."""
    images, classes, channels, height, width = corr.shape
    rows = jnp.moveaxis(jax.nn.relu(corr), 2, -1).reshape(images * classes, height, width, channels)
    return l2_normalize(rows, epsilon=CORR_EPSILON)


def match(
    net: Callable[..., Any],
    features: Array,
    features_size: Array | None,
    template: Array,
    *,
    dtype,
    inverse: bool,
    train: bool,
    batch_statistics: bool,
    query_valid: Array | None,
    image_valid: Array | None,
) -> tuple[HeadOutput, dict[str, Any] | None]:
    """Every class at every cell of every image.

    Args:
      net: TransformNet's `apply` with its variables bound.
      features: `(b, h, w, d)`.
      features_size: `(b, 2)` int32 valid size in cells; None: all.
      template: `(c, 15, 15, d)` normalised.
      dtype: type of the correlation.
      inverse: invert the predicted transformation.
      train: whether this is a training step.
      batch_statistics: in training, TransformNet uses and updates batch statistics.
      query_valid: `(c,)` bool or None; what else does not enter those statistics.
      image_valid: `(b,)` bool or None.

    Returns:
      `HeadOutput`, and TransformNet's new running statistics (None if they do not change).
    """
    images, height, width, _ = features.shape
    pairs = (images, template.shape[0], height, width)
    inside = None if features_size is None else valid_cells(features_size, (height, width))
    corr = correlation(hide(features, inside), template, dtype=dtype)
    rows = network_input(corr)
    where = None if inside is None else _per_pair(inside[:, None], pairs)
    statistics = None
    if train and batch_statistics:
        counted = _per_pair(_counted(inside, query_valid, image_valid), pairs)
        parameters, updates = net(rows, where, train=True, counted=counted, mutable=["batch_stats"])
        statistics = updates["batch_stats"]
    else:
        parameters = net(rows, where, train=train)
    transform = affine.params_to_transform(parameters.reshape(*pairs, -1), inverse=inverse)
    size = None if features_size is None else features_size[:, None]
    scores, detached = pooled_scores(corr, transform, size=size, template=TEMPLATE)
    if inside is not None:
        cells = inside[:, None, ..., 0]
        scores, detached = jnp.where(cells, scores, 0.0), jnp.where(cells, detached, 0.0)
    return output(scores, detached, transform), statistics


def _per_pair(mask: Array, pairs: tuple[int, int, int, int]) -> Array:
    """A mask that broadcasts to `(b, c, h, w, 1)`, as `(b * c, h, w, 1)`."""
    return jnp.broadcast_to(mask, (*pairs, 1)).reshape(-1, *pairs[2:], 1)


def _counted(inside: Array | None, query_valid: Array | None, image_valid: Array | None) -> Array:
    """The cells that enter batch statistics, broadcastable to `(b, c, h, w, 1)`."""
    counted = jnp.ones((1, 1, 1, 1, 1), bool) if inside is None else inside[:, None]
    if query_valid is not None:
        counted = counted & query_valid[None, :, None, None, None]
    if image_valid is not None:
        counted = counted & image_valid[:, None, None, None, None]
    return counted


def output(scores: Array, detached: Array, transform: Array) -> HeadOutput:
    """Adds boxes, codes and corners, in closed form from the transformation."""
    height, width = scores.shape[-2:]
    anchors = box_ops.anchor_grid((height, width), stride=STRIDE, box_size=(TEMPLATE * STRIDE,) * 2)
    anchors = jnp.asarray(np.reshape(anchors, (1, 1, height, width, 4)))
    boxes = affine.bounding_box(transform, template=TEMPLATE, stride=STRIDE)
    return HeadOutput(
        scores=scores,
        scores_detached=detached,
        transform=transform,
        boxes=boxes,
        offsets=box_ops.encode(boxes, anchors),
        corners=affine.corners(jax.lax.stop_gradient(transform), template=TEMPLATE, stride=STRIDE),
    )
