"""Which anchor answers for which annotated box.

Written for one image and one class, with fixed shapes: `vmap` over images, `assign_classes` over classes.
Boxes are xyxy in pixels of one common frame. An index is the number of the matched box, `NEGATIVE` or
`IGNORED`.

Source: OS2D (ECCV 2020), sec. 5.1 and the published OS2D code; the rule is that of Faster R-CNN without
forcing a match for every box. `force_best` adds that, `sample_balanced` and `sample_fraction` the choice of
the anchors that take part in the loss (Ren et al., Faster R-CNN, NIPS 2015, sec. 3.1; Ferreira et al. 2023,
sec. 3).
"""

from typing import Literal, NamedTuple

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


def force_best(
    iou: Array, index: Array, *, where: Array | None = None, per: Literal["gt", "image"] = "gt"
) -> Array:
    """Match every real box with the anchor that overlaps it most, however little that is.

    Of equal anchors a box takes the first. An anchor that several boxes want goes to the one that overlaps it
    most (the first of equals); the others keep what `match` gave them. A box that overlaps no anchor gets
    none. An anchor that is forced loses the box that `match` gave it.

    Args:
      iou: f32 "g n", as for `match`.
      index: i32 "n" as returned by `match`.
      where: bool "g", the real boxes.
      per: "gt" always; "image" only where `index` has no match at all (the literal reading of "if there is no
        positive anchor").

    Returns:
      i32 "n".
    """
    if per not in ("gt", "image"):
        raise ValueError(f'per is {per!r}, expected "gt" or "image"')
    if not iou.size:
        return index
    if where is not None:
        iou = jnp.where(where[:, None], iou, -1.0)
    wants = _one_hot(jnp.argmax(iou, axis=1).astype(jnp.int32), iou.shape[1]).T & (iou > 0)
    forced = jnp.any(wants, axis=0)
    if per == "image":
        forced &= ~jnp.any(index >= 0)
    owner = jnp.argmax(jnp.where(wants, iou, -1.0), axis=0).astype(jnp.int32)
    return jnp.where(forced, owner, index)


def sample_balanced(
    index: Array, key: Array, *, max_positives: int, negatives_per_positive: int = 1
) -> tuple[Array, Array, Array]:
    """Choose matched anchors and, for each, so many negative ones, in a fixed number of slots.

    All matched anchors are chosen, or a random subset where they are more than `max_positives`; then
    `negatives_per_positive` times as many negatives, uniform without replacement (all where they are fewer).
    Without a matched anchor nothing is chosen.

    Args:
      index: i32 "n" as returned by `match`.
      key: random key.
      max_positives: slots for matched anchors.
      negatives_per_positive: negatives for each chosen matched anchor.

    Returns:
      `anchors` i32 "s", `labels` i32 "s" (1 or 0) and `valid` bool "s", s = max_positives * (1 +
      negatives_per_positive). Slots before `max_positives` hold matched anchors, the others negatives; in
      both parts valid slots come first, the rest are 0.
    """
    key_positive, key_negative = jax.random.split(key)
    positive, positive_valid = _sample(index >= 0, key_positive, max_positives)
    negative, negative_valid = _sample(
        index == NEGATIVE, key_negative, max_positives * negatives_per_positive
    )
    wanted = negatives_per_positive * jnp.sum(positive_valid)
    negative_valid &= jnp.arange(negative.shape[0]) < wanted
    valid = jnp.concatenate([positive_valid, negative_valid])
    anchors = jnp.where(valid, jnp.concatenate([positive, negative]), 0)
    labels = (jnp.arange(valid.shape[0]) < max_positives) & valid
    return anchors, labels.astype(jnp.int32), valid


def sample_fraction(
    index: Array, key: Array, *, num: int, positive_fraction: float
) -> tuple[Array, Array, Array]:
    """Choose `num` anchors, at most a fraction of them matched, the rest negative, in fixed slots.

    `round(num * positive_fraction)` random matched anchors, or all where they are fewer; then random
    negatives until there are `num`, or all of them (Girshick, Fast R-CNN, ICCV 2015, sec. 2.3). Without
    replacement; ignored anchors are never chosen.

    Args:
      index: i32 "n" as returned by `match`.
      key: random key.
      num: slots.
      positive_fraction: of the slots, in 0..1.

    Returns:
      `anchors` i32 "num", `labels` i32 "num" (1 or 0) and `valid` bool "num": matched anchors, then
      negatives, then slots that are not valid (0).
    """
    key_positive, key_negative = jax.random.split(key)
    positive, positive_valid = _sample(index >= 0, key_positive, round(num * positive_fraction))
    negative, negative_valid = _sample(index == NEGATIVE, key_negative, num)
    positives, slot = jnp.sum(positive_valid), jnp.arange(num)
    negative_slot = jnp.maximum(slot - positives, 0)
    first = slot < positives
    valid = first | negative_valid[negative_slot]
    chosen = negative[negative_slot]
    if len(positive):
        chosen = jnp.where(first, positive[jnp.minimum(slot, len(positive) - 1)], chosen)
    return jnp.where(valid, chosen, 0), first.astype(jnp.int32), valid


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


def _sample(members: Array, key: Array, slots: int) -> tuple[Array, Array]:
    """Random members without replacement: bool "n" -> numbers i32 "slots" and valid bool "slots"."""
    order = jnp.where(members, jax.random.uniform(key, members.shape), -1.0)
    best, numbers = jax.lax.top_k(order, min(slots, members.shape[0]))
    missing = (0, slots - numbers.shape[0])
    return jnp.pad(numbers.astype(jnp.int32), missing), jnp.pad(best >= 0, missing)


def _one_hot(index: Array, count: int) -> Array:
    """bool "count n": whether anchor n chose this number."""
    return jnp.arange(count, dtype=jnp.int32)[:, None] == index[None, :]
