"""Which anchor answers for which annotated box.

Written for one image and one class, with fixed shapes: `vmap` over images, `assign_classes` over classes.
Boxes are xyxy in pixels of one common frame. An index is the number of the matched box, `NEGATIVE` or
`IGNORED`.

Source: OS2D (ECCV 2020), sec. 5.1 and the published OS2D code; the rule is that of Faster R-CNN without
forcing a match for every box.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sm_jax import boxes as box_lib

Array = jax.Array

NEGATIVE = -1
IGNORED = -2


class Targets(NamedTuple):
    """Targets of `n` anchors: `index` i32 "n", `labels` i32 "n" (1, 0, -1 ignored), `codes` f32 "n 4"."""

    index: Array
    labels: Array
    codes: Array


def match(
    iou: Array,
    *,
    positive_iou: float = 0.5,
    negative_iou: float = 0.1,
    difficult: Array | None = None,
    where: Array | None = None,
) -> Array:
    """Match every anchor with the box that it overlaps most.

    Args:
      iou: f32 "g n", overlap of each of `g` boxes with each of `n` anchors.
      positive_iou: an anchor with at least this overlap is matched.
      negative_iou: an anchor with less than this overlap is `NEGATIVE`; between the two it is `IGNORED`.
      difficult: bool "g"; an anchor whose best box is difficult is `IGNORED` (the box still competes for it).
      where: bool "g", the real boxes; without any, every anchor is `NEGATIVE`.

    Returns:
      i32 "n": number of the matched box (the first of equals), `NEGATIVE` or `IGNORED`.
    """
    if not iou.shape[0]:
        return jnp.full(iou.shape[1:], NEGATIVE, jnp.int32)
    if where is not None:
        iou = jnp.where(where[:, None], iou, -1.0)
    best = jnp.max(iou, axis=0)
    index = jnp.argmax(iou, axis=0).astype(jnp.int32)
    ignored = ~(best >= positive_iou)  # a NaN overlap is never a match
    if difficult is not None:
        ignored |= jnp.any(difficult[:, None] & _one_hot(index, iou.shape[0]), axis=0)
    return jnp.where(best < negative_iou, NEGATIVE, jnp.where(ignored, IGNORED, index))


def index_to_labels(index: Array) -> Array:
    """Class target per anchor, i32 of the shape of `index`: 1 matched, 0 negative, -1 ignored."""
    return jnp.where(index >= 0, 1, jnp.where(index == NEGATIVE, 0, -1)).astype(jnp.int32)


def matched_boxes(boxes: Array, index: Array, *, where: Array | None = None) -> Array:
    """The matched box of every anchor, selected without a gather.

    Args:
      boxes: f32 "g 4".
      index: i32 "n" as returned by `match`.
      where: bool "g", the real boxes.

    Returns:
      f32 "n 4". Unmatched anchors get the first real box, all anchors zeros where there is none.
    """
    where = jnp.ones(boxes.shape[:1], bool) if where is None else where
    if not boxes.shape[0]:
        return jnp.zeros((*index.shape, 4), boxes.dtype)
    first = jnp.argmax(where).astype(jnp.int32)
    chosen = _one_hot(jnp.where(index >= 0, index, first), boxes.shape[0]) & where[:, None]
    return jnp.sum(jnp.where(chosen[:, :, None], boxes[:, None, :], 0.0), axis=0)


def assign(
    boxes: Array,
    anchors: Array,
    *,
    positive_iou: float = 0.5,
    negative_iou: float = 0.1,
    difficult: Array | None = None,
    where: Array | None = None,
) -> Targets:
    """Targets of every anchor from the boxes of one class in one image.

    Args:
      boxes: f32 "g 4", annotated boxes; they may reach beyond the image.
      anchors: f32 "n 4".
      positive_iou: see `match`.
      negative_iou: see `match`.
      difficult: bool "g", see `match`.
      where: bool "g", the real boxes of this class.

    Returns:
      `Targets`; `codes` encode the matched box relative to its anchor, after the min-size rule on both.
      Unmatched anchors encode the first box of the class (the published code does so; no loss uses it), zeros
      without one.
    """
    index = match(
        box_lib.iou(boxes, anchors),
        positive_iou=positive_iou,
        negative_iou=negative_iou,
        difficult=difficult,
        where=where,
    )
    codes = box_lib.encode(matched_boxes(boxes, index, where=where), anchors)
    any_box = boxes.shape[0] > 0 if where is None else jnp.any(where)
    return Targets(index, index_to_labels(index), jnp.where(any_box, codes, 0.0))


def assign_classes(
    boxes: Array,
    labels: Array,
    anchors: Array,
    *,
    num_classes: int,
    positive_iou: float = 0.5,
    negative_iou: float = 0.1,
    difficult: Array | None = None,
    where: Array | None = None,
) -> Targets:
    """`assign` for each of `num_classes` classes of one image.

    Args:
      boxes: f32 "g 4".
      labels: i32 "g", class number; negative ones (class not searched, object cut off) match no class.
      anchors: f32 "n 4" for all classes, or "c n 4" for each (for example the predicted boxes of each class).
      num_classes: c.
      positive_iou: see `match`.
      negative_iou: see `match`.
      difficult: bool "g".
      where: bool "g", the real boxes.

    Returns:
      `Targets` with a leading class axis; `index` counts the boxes of all classes together.
    """

    def one(number: Array, anchors: Array) -> Targets:
        members = labels == number
        members = members if where is None else members & where
        return assign(
            boxes,
            anchors,
            positive_iou=positive_iou,
            negative_iou=negative_iou,
            difficult=difficult,
            where=members,
        )

    return jax.vmap(one, in_axes=(0, 0 if anchors.ndim == 3 else None))(jnp.arange(num_classes), anchors)


def _one_hot(index: Array, count: int) -> Array:
    """bool "count n": whether anchor n chose this number."""
    return jnp.arange(count, dtype=jnp.int32)[:, None] == index[None, :]
