"""Average precision as PASCAL VOC counts it, in plain NumPy."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sm_jax import boxes as box_ops

JOINT = ("aligned", "published")
POINTS = ("all", "11")


class VocResult(NamedTuple):
    """Detection quality over a data set; every dict is keyed by class label.

    Attributes:
      ap: average precision; NaN for a class without a countable (not difficult) box.
      map: mean of `ap` over the classes where it is defined.
      map_weighted: mean of `ap` weighted by the number of countable boxes.
      recall: share of all countable boxes that were found, at the lowest score threshold.
      recall_per_class: the same per class; NaN without countable boxes.
      n_pos: number of countable boxes.
      ap_joint: average precision of all classes' detections pooled into one ranked list.
      curves: class -> (precision, recall) after each detection by descending score; only classes with
        countable boxes and detections. Precision is NaN while every detection so far was ignored.
      best_score: the detections with at least this score, of all classes together, have the best F1 (harmonic
        mean of precision and recall); NaN without countable boxes or detections.
      best_f1: that F1.
    """

    ap: dict[int, float]
    map: float
    map_weighted: float
    recall: float
    recall_per_class: dict[int, float]
    n_pos: dict[int, int]
    ap_joint: float
    curves: dict[int, tuple[np.ndarray, np.ndarray]]
    best_score: float
    best_f1: float


class _Class:
    """What is known of one class (or of the pool of all classes) so far."""

    def __init__(self):
        self.n_pos = 0
        self.scores: list[float] = []
        self.matches: list[int] = []  # 1 true positive, 0 false positive, -1 matched a difficult box


def voc(
    detections: Sequence[Mapping[str, np.ndarray]],
    ground_truth: Sequence[Mapping[str, np.ndarray]],
    *,
    iou_threshold: float = 0.5,
    points: str = "all",
    joint: str = "aligned",
) -> VocResult:
    """Score detections against annotations (OS2D spec sec. 12; published OS2D code).

    Every detection is matched to the box of its class and image with the largest IoU, difficult ones
    included; one pixel is added to x2 and y2 of both before the IoU. A detection on a difficult box counts
    neither way; the first on a box is right, later ones are wrong, with no second-best box.

    Args:
      detections: one mapping per image: `boxes` (n, 4) xyxy pixels, `scores` (n,), `labels` (n,) integers.
      ground_truth: one mapping per image: `boxes` (m, 4), `labels` (m,), `difficult` (m,) bool, if any.
      iou_threshold: the smallest IoU of a match.
      points: "all" for the area under the precision envelope, "11" for the eleven-point average.
      joint: "aligned" pools scores with their own matches; "published" repeats the published code, which
        concatenates the two in different class orders when a class is annotated before it is detected.

    Raises:
      ValueError: the two sequences differ in length, or an option is none of the above.
    """
    if len(detections) != len(ground_truth):
        raise ValueError(f"{len(detections)} images with detections, {len(ground_truth)} with ground truth")
    if points not in POINTS or joint not in JOINT:
        raise ValueError(
            f"points must be one of {POINTS} (is {points!r}), joint one of {JOINT} (is {joint!r})"
        )
    classes: dict[int, _Class] = defaultdict(_Class)
    match_order: dict[int, None] = {}  # classes in the order of their first detection
    for found, truth in zip(detections, ground_truth, strict=True):
        _count_image(classes, match_order, found, truth, iou_threshold)

    curves, ap, recall_per_class = {}, {}, {}
    for label in sorted(classes):
        entry = classes[label]
        if not entry.n_pos:
            ap[label] = recall_per_class[label] = float("nan")
            continue
        precision, recall = _curve(entry.scores, entry.matches, entry.n_pos)
        ap[label] = average_precision(precision, recall, points=points)
        recall_per_class[label] = float(recall[-1]) if len(recall) else 0.0
        if len(recall):
            curves[label] = (precision, recall)
    n_pos = {label: classes[label].n_pos for label in sorted(classes)}
    total = sum(n_pos.values())
    defined = [label for label in ap if n_pos[label]]

    scores = [score for entry in classes.values() for score in entry.scores]
    order = list(classes) if joint == "aligned" else list(match_order)
    matches = [match for label in order for match in classes[label].matches]
    own = [match for entry in classes.values() for match in entry.matches]
    best_score, best_f1 = _best_f1(scores, own, total)
    ap_joint = average_precision(*_curve(scores, matches, total), points=points) if total else float("nan")

    def weighted(values):
        return sum(values[label] * n_pos[label] for label in defined) / total if total else float("nan")

    return VocResult(
        ap=ap,
        map=float(np.mean([ap[label] for label in defined])) if defined else float("nan"),
        map_weighted=weighted(ap),
        recall=weighted(recall_per_class),
        recall_per_class=recall_per_class,
        n_pos=n_pos,
        ap_joint=ap_joint,
        curves=curves,
        best_score=best_score,
        best_f1=best_f1,
    )


def average_precision(precision: np.ndarray, recall: np.ndarray, *, points: str = "all") -> float:
    """Area under the precision envelope (`points="all"`) or the eleven-point average (`"11"`).

    Args:
      precision, recall: (n,) after each detection; NaN precision (nothing counted yet) is read as 0.
    """
    precision = np.nan_to_num(precision)
    if points == "11":
        tops = [precision[recall >= level].max(initial=0.0) for level in np.arange(0.0, 1.1, 0.1)]
        return float(np.mean(tops))
    envelope = np.concatenate(([0.0], precision, [0.0]))
    envelope = np.maximum.accumulate(envelope[::-1])[::-1]
    steps = np.concatenate(([0.0], recall, [1.0]))
    rises = np.flatnonzero(steps[1:] != steps[:-1])
    return float(np.sum((steps[rises + 1] - steps[rises]) * envelope[rises + 1]))


def _curve(scores, matches, n_pos):
    """(precision, recall) by descending score; equal scores come in reversed order, as published."""
    order = np.argsort(np.asarray(scores, np.float64), kind="stable")[::-1]
    matches = np.asarray(matches, np.int64)[order]
    right, wrong = np.cumsum(matches == 1), np.cumsum(matches == 0)
    counted = right + wrong
    precision = np.divide(right, counted, out=np.full(len(order), np.nan), where=counted > 0)
    return precision, right / n_pos


def _best_f1(scores, matches, n_pos):
    """(score, F1) where the F1 of all detections of at least that score is best; ties: the highest score."""
    if not n_pos or not len(scores):
        return float("nan"), float("nan")
    precision, recall = _curve(scores, matches, n_pos)
    ranked = np.sort(np.asarray(scores, np.float64))[::-1]
    precision = np.nan_to_num(precision)
    total = precision + recall
    f1 = np.divide(2 * precision * recall, total, out=np.zeros(len(total)), where=total > 0)
    f1 = np.where(np.append(ranked[1:] < ranked[:-1], True), f1, -1.0)  # equal scores come all or not at all
    best = int(np.argmax(f1))
    return float(ranked[best]), float(f1[best])


def _count_image(classes, match_order, found, truth, iou_threshold):
    """Add one image to the per-class lists."""
    found_labels = np.asarray(found["labels"], np.int64).reshape(-1)
    true_labels = np.asarray(truth["labels"], np.int64).reshape(-1)
    difficult = np.asarray(truth.get("difficult", np.zeros(len(true_labels))), bool).reshape(-1)
    for label in np.unique(np.concatenate([found_labels, true_labels])).tolist():
        entry = classes[label]
        mine = found_labels == label
        scores = np.asarray(found["scores"], np.float32)[mine]
        order = np.argsort(scores, kind="stable")[::-1]
        theirs = true_labels == label
        hard = difficult[theirs]
        entry.n_pos += int(np.sum(~hard))
        entry.scores.extend(scores[order].tolist())
        if not len(order):
            continue
        match_order.setdefault(label)
        if not theirs.any():
            entry.matches.extend([0] * len(order))
            continue
        grow = np.array([0, 0, 1, 1], np.float32)
        iou = box_ops.iou(
            np.asarray(found["boxes"], np.float32)[mine][order] + grow,
            np.asarray(truth["boxes"], np.float32)[theirs] + grow,
        )
        used = np.zeros(len(hard), bool)
        for best, overlap in zip(iou.argmax(axis=1), iou.max(axis=1), strict=True):
            if overlap < iou_threshold:
                entry.matches.append(0)
            elif hard[best]:
                entry.matches.append(-1)
            else:
                entry.matches.append(0 if used[best] else 1)
                used[best] = True
