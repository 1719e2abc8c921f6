"""The second stage of a detector: proposals, the sample of them that is learned from, losses and detections.

Written for one image with fixed shapes: `vmap` over images. The first stage is `sm_jax.rpn`, features of
boxes are `ops.roi`; what stands between features and logits belongs to the system that uses this. Boxes are
xyxy in pixels of the image that enters the network. Classes: 0 is the background, the class with label `k` is
number `k + 1`; "c" counts without the background (1 in a class-agnostic detector). Codes are those of
`boxes.encode` with `WEIGHTS`, either "n 4" for all classes together or "n c 4" for each class.

Source: Ren et al., Faster R-CNN (NIPS 2015), sec. 3; Girshick, Fast R-CNN (ICCV 2015), sec. 2.3. Plain
loops that say the same are in `sm_jax.two_stage_reference`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sm_jax import boxes as box_lib
from sm_jax import rpn
from sm_jax.losses import assignment, classification, regression
from sm_jax.ops.nms import nms

Array = jax.Array

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""Weights of the box coder (the inverse spread of the codes, Faster R-CNN's published code)."""
BACKGROUND = 0


class RoiTargets(NamedTuple):
    """The boxes of one image that the second stage learns from, in `s` slots: positives, negatives, padding.

    Attributes:
      boxes: f32 "s 4".
      classes: i32 "s", 0 background, label + 1 else.
      codes: f32 "s 4", of the matched annotated box, 0 for negatives.
      matched: i32 "s", number of the annotated box, -1 for negatives.
      valid: bool "s"; everything else is 0 (`matched` -1) where False.
    """

    boxes: Array
    classes: Array
    codes: Array
    matched: Array
    valid: Array


def proposals(
    logits: Array,
    codes: Array,
    anchors: Array,
    *,
    image_size: tuple[int | Array, int | Array],
    candidates: int = 2000,
    iou: float = 0.7,
    size: int = 300,
    min_side: float = 1.0,
) -> dict[str, Array]:
    """The best boxes of the first stage: the best anchors, decoded, clipped, without small ones and overlaps.

    Anchors whose centre lies outside the image (in the padding of a batch) never take part. No gradient.

    Args:
      logits: f32 "n", of `rpn.RPN`.
      codes: f32 "n 4".
      anchors: f32 "n 4".
      image_size: (height, width) of the picture in pixels, numbers or traced scalars.
      candidates: anchors that are decoded, by descending logit.
      iou: of two boxes that overlap by more than this the lower is dropped.
      size: number of slots.
      min_side: boxes with a shorter side are dropped.

    Returns:
      As `rpn.propose`: {"boxes" f32 "size 4", "conf" f32 "size", "valid" bool "size"} by descending
      confidence.
    """
    logits, codes, anchors = (
        jnp.asarray(jax.lax.stop_gradient(part), jnp.float32) for part in (logits, codes, anchors)
    )
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    inside = (centres[:, 0] < image_size[1]) & (centres[:, 1] < image_size[0])
    best, chosen = jax.lax.top_k(jnp.where(inside, logits, -jnp.inf), min(candidates, logits.shape[0]))
    return rpn.propose(
        best,
        codes[chosen],
        anchors[chosen],
        image_size=image_size,
        min_conf=0.0,
        iou=iou,
        size=size,
        min_side=min_side,
    )


def sample_rois(
    proposals: Array,
    boxes: Array,
    labels: Array,
    key: Array,
    *,
    proposals_valid: Array | None = None,
    where: Array | None = None,
    difficult: Array | None = None,
    num: int = 128,
    positive_fraction: float = 0.25,
    positive_iou: float = 0.5,
    negative_iou: tuple[float, float] = (0.0, 0.5),
    append_boxes: bool = True,
) -> RoiTargets:
    """Choose the boxes that the second stage learns from, and what it should say of them.

    A box is positive where its best overlap is at least `positive_iou`, negative where that lies in
    `negative_iou` (the upper end excluded), and ignored between, or where its best annotated box is
    difficult. At most `positive_fraction` of the slots are positive; negatives fill the rest. No gradient.

    Args:
      proposals: f32 "p 4".
      boxes: f32 "g 4", annotated.
      labels: i32 "g", from 0; zeros in a class-agnostic detector.
      key: random key of the sample.
      proposals_valid: bool "p", the real proposals.
      where: bool "g", the real annotated boxes.
      difficult: bool "g", those that are neither to be found nor background.
      num: slots, s.
      positive_fraction: at most so much of them is positive.
      positive_iou: see above.
      negative_iou: see above.
      append_boxes: the annotated boxes that are real and not difficult are candidates too.

    Returns:
      `RoiTargets`.
    """
    boxes, candidates = jnp.asarray(boxes), jax.lax.stop_gradient(jnp.asarray(proposals))
    real = jnp.ones(boxes.shape[:1], bool) if where is None else where
    usable = jnp.ones(candidates.shape[:1], bool) if proposals_valid is None else proposals_valid
    if append_boxes:
        candidates = jnp.concatenate([candidates, boxes])
        usable = jnp.concatenate([usable, real if difficult is None else real & ~difficult])
    low, high = negative_iou
    iou = box_lib.iou(boxes, candidates)
    index = assignment.match(
        iou, positive_iou=positive_iou, negative_iou=high, difficult=difficult, where=real
    )
    best = jnp.max(jnp.where(real[:, None], iou, 0.0), axis=0, initial=0.0)
    index = jnp.where(usable & ((index >= 0) | (best >= low)), index, assignment.IGNORED)
    chosen, positive, valid = assignment.sample_fraction(
        index, key, num=num, positive_fraction=positive_fraction
    )
    positive = positive == 1
    matched = jnp.where(positive, index[chosen], -1)
    rois = jnp.where(valid[:, None], candidates[chosen], 0.0)
    if not boxes.shape[0]:
        return RoiTargets(rois, jnp.zeros(num, jnp.int32), jnp.zeros((num, 4)), matched, valid)
    codes = box_lib.encode(boxes[matched], rois, weights=WEIGHTS)
    classes = jnp.where(positive, labels[matched] + 1, BACKGROUND)
    return RoiTargets(
        rois, classes.astype(jnp.int32), jnp.where(positive[:, None], codes, 0.0), matched, valid
    )


def roi_loss(
    logits: Array, codes: Array, targets: RoiTargets, *, weight: float = 1.0, beta: float = 1.0
) -> tuple[Array, dict[str, Array]]:
    """Loss of the sampled boxes of one image, or of a batch with any leading axes.

    Args:
      logits: f32 "... s c+1", the background first.
      codes: f32 "... s 4", or "... s c 4", of which only the true class is compared.
      targets: `RoiTargets` with the same leading axes.
      weight: weight of the box part.
      beta: where smooth l1 turns linear.

    Returns:
      Scalar loss, and its parts before `weight`: "cls_loss", cross entropy averaged over all valid slots, and
      "box_loss", smooth l1 summed over the codes of the positives and divided by the number of valid slots
      (so every box weighs the same, however many are positive). Both are 0 without a valid slot.
    """
    valid = targets.valid
    positive = valid & (targets.classes != BACKGROUND)
    cls_loss = classification.softmax_ce(logits, targets.classes, where=valid)
    codes = _of_class(codes.astype(jnp.float32), targets.classes, targets.codes.ndim)
    total = regression.smooth_l1(
        codes, targets.codes, beta=beta, where=positive[..., None], reduce_fn=jnp.sum
    )
    box_loss = total / jnp.maximum(jnp.sum(valid), 1)
    return cls_loss + weight * box_loss, {"cls_loss": cls_loss, "box_loss": box_loss}


def decode_rois(
    logits: Array, codes: Array, rois: Array, *, image_size: tuple[int | Array, int | Array]
) -> tuple[Array, Array]:
    """Boxes and scores that the second stage gives to the boxes `rois` of one image.

    Args:
      logits: f32 "n c+1".
      codes: f32 "n 4" or "n c 4".
      rois: f32 "n 4".
      image_size: (height, width) that boxes are clipped to.

    Returns:
      boxes f32 "n 4" or "n c 4", as the codes; scores f32 "n c", softmax without the background.
    """
    codes = codes.astype(jnp.float32)
    anchors = rois if codes.ndim == 2 else jnp.broadcast_to(rois[:, None], codes.shape)
    boxes = box_lib.clip(box_lib.decode(codes, anchors, weights=WEIGHTS), image_size)
    return boxes, jax.nn.softmax(logits.astype(jnp.float32), axis=-1)[:, 1:]


def detections(
    boxes: Array,
    scores: Array,
    *,
    where: Array | None = None,
    iou: float = 0.5,
    score_threshold: float | Array = 0.05,
    max_detections: int = 100,
) -> dict[str, Array]:
    """Detections of one image: greedy suppression class by class, then the best of all classes.

    Args:
      boxes: f32 "n 4", or "n c 4" for each class; empty ones are dropped.
      scores: f32 "n c".
      where: bool "n", the real boxes.
      iou: of two boxes of a class that overlap by more than this the lower is dropped.
      score_threshold: scores must be above this.
      max_detections: slots, for all classes together.

    Returns:
      {"boxes" f32 "d 4", "scores" f32 "d", "labels" i32 "d" from 0, "index" i32 "d" (number of the input
      box), "valid" bool "d"} by descending score, equal scores by label; 0 where not valid.
    """
    count, classes = scores.shape
    per_class = jnp.moveaxis(boxes, 1, 0) if boxes.ndim == 3 else None
    usable = scores > score_threshold if where is None else (scores > score_threshold) & where[:, None]

    def one(number: Array) -> tuple[Array, Array]:
        own = boxes if per_class is None else per_class[number]
        keep = usable[:, number] & box_lib.nonempty(own)
        return nms(own, scores[:, number], iou=iou, size=max_detections, where=keep)

    # One class after the other: a class without a usable box then costs nothing.
    index, valid = jax.lax.map(one, jnp.arange(classes))
    label = jnp.broadcast_to(jnp.arange(classes, dtype=jnp.int32)[:, None], index.shape)
    index, valid, label = index.reshape(-1), valid.reshape(-1), label.reshape(-1)
    score = jnp.where(valid, scores[index, label], -jnp.inf) if count else jnp.full(valid.shape, -jnp.inf)
    _, order = jax.lax.top_k(score, max_detections)
    index, valid, label = index[order], valid[order], label[order]
    if not count:
        box = jnp.zeros((max_detections, 4))
    else:
        box = boxes[index] if per_class is None else per_class[label, index]
    return {
        "boxes": jnp.where(valid[:, None], box, 0.0),
        "scores": jnp.where(valid, score[order], 0.0),
        "labels": jnp.where(valid, label, 0),
        "index": jnp.where(valid, index, 0),
        "valid": valid,
    }


def covered(found: Array, boxes: Array, *, iou: float = 0.5, where: Array | None = None) -> Array:
    """Which boxes "g 4" some box of `found` "n 4" overlaps by at least `iou`; `where` "n", the real of these.

    Returns:
      bool "g"; the share of True is the recall of `found`.
    """
    overlap = box_lib.iou(boxes, found)
    overlap = overlap if where is None else jnp.where(where[None], overlap, 0.0)
    return jnp.max(overlap, axis=1, initial=0.0) >= iou


def _of_class(codes: Array, classes: Array, ndim: int) -> Array:
    """Codes "... s 4" of the class of every slot (of the first class for the background)."""
    if codes.ndim == ndim:
        return codes
    chosen = jax.nn.one_hot(jnp.maximum(classes - 1, 0), codes.shape[-2], dtype=bool)
    return jnp.sum(jnp.where(chosen[..., None], codes, 0.0), axis=-2)
