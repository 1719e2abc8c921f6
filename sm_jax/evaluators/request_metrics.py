"""Detection by request in numbers (SSM spec sec. 6), in plain NumPy.

A request is one picture of a class member. All its detections in all images are pooled into one ranked list;
what it finds of its class is right. Everything here starts from an `Outcome`, one request in one image, so
that leaving an image out is leaving an outcome out.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sm_jax import boxes as box_ops
from sm_jax.evaluators.detection import average_precision

IOU_RULES = ("fixed", "ilsvrc")
NAN = float("nan")


class Outcome(NamedTuple):
    """One request in one image.

    Attributes:
      scores: (n,) float32, descending.
      matches: (n,) int8: 1 right, 0 wrong, -1 on a difficult box, which counts neither way.
      positives: number of countable (not difficult) boxes of the class.
    """

    scores: np.ndarray
    matches: np.ndarray
    positives: int


class Curve(NamedTuple):
    """Precision and recall of all detections with at least each score, over several images.

    Attributes:
      scores: (k,) the distinct scores, descending; detections of equal scores come all or not at all, so that
        the order of images does not matter.
      precision, recall: (k,); recall is NaN without positives.
      positives: number of countable boxes.
    """

    scores: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    positives: int


class Point(NamedTuple):
    """Precision, recall and their harmonic mean at one threshold."""

    precision: float
    recall: float
    f1: float


class RequestScore(NamedTuple):
    """What one request is worth; NaN is undefined.

    Attributes:
      label: its class.
      ap: average precision on the test images; NaN if they show nothing of the class.
      point: on the test images, at the threshold that all requests share.
      own_point: the same at `own_threshold`.
      own_threshold: the best one on the validation images, or the shared one where that is undefined.
      validation_ap: average precision on the validation images.
      validation_f1: on the validation images, at the shared threshold.
    """

    label: int
    ap: float
    point: Point
    own_point: Point
    own_threshold: float
    validation_ap: float
    validation_f1: float


class ClassScore(NamedTuple):
    """Requests of one class together, or (`summarize`) the mean of that over classes; NaN is undefined.

    Attributes:
      average: mean AP of the requests.
      top: AP of the request that has the best AP on the validation images.
      comparable: `average` where `top` is defined, else NaN: what `top` improves upon.
      mean_precision, mean_recall: means over the requests, at the shared threshold.
      best_precision, best_recall: of the request that has the best F1 on the validation images.
      own_precision, own_recall: means over the requests, each at its own threshold.
      oracle_precision, oracle_recall: of the request that has the best F1 on the test images themselves: what
        a perfect choice would give, not a result.
    """

    average: float
    top: float
    comparable: float
    mean_precision: float
    mean_recall: float
    best_precision: float
    best_recall: float
    own_precision: float
    own_recall: float
    oracle_precision: float
    oracle_recall: float


def iou_limits(boxes: np.ndarray, *, rule: str = "fixed") -> np.ndarray:
    """(m,) IoU that a match of each annotated box must exceed.

    "fixed" is 0.5; "ilsvrc" lets small boxes be missed by a few pixels: min(0.5, w h / ((w + 10) (h + 10))).

    Args:
      boxes: (m, 4) xyxy pixels.

    Raises:
      ValueError: an unknown rule.
    """
    if rule not in IOU_RULES:
        raise ValueError(f"rule must be one of {IOU_RULES}, is {rule!r}")
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    if rule == "fixed":
        return np.full(len(boxes), 0.5)
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    return np.minimum(0.5, width * height / ((width + 10) * (height + 10)))


def match(
    boxes: np.ndarray,
    scores: np.ndarray,
    truth: np.ndarray,
    *,
    difficult: np.ndarray | None = None,
    rule: str = "fixed",
) -> Outcome:
    """One request's detections in one image against the boxes of its class.

    By descending score (ties: as given), a detection takes the box of largest IoU among those that it may
    match (IoU above `iou_limits`) and none before it took. Without such a box it is ignored if it may match a
    difficult one, and else wrong.

    Args:
      boxes: (n, 4) xyxy pixels.
      scores: (n,) finite.
      truth: (m, 4) annotated boxes of the class.
      difficult: (m,) bool, default none.

    Raises:
      ValueError: scores that are not finite or not as many as boxes, or an unknown rule.
    """
    boxes, truth = np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(truth, np.float64).reshape(-1, 4)
    scores = np.asarray(scores, np.float32).reshape(-1)
    if len(scores) != len(boxes) or not np.isfinite(scores).all():
        raise ValueError(f"{len(boxes)} boxes need as many finite scores, not {scores}")
    hard = np.zeros(len(truth), bool) if difficult is None else np.asarray(difficult, bool).reshape(-1)
    order = np.argsort(-scores, kind="stable")
    matches, limits, free = np.zeros(len(order), np.int8), iou_limits(truth, rule=rule), ~hard
    overlaps = box_ops.iou(boxes[order], truth) if len(truth) else np.zeros((len(order), 0))
    for row, overlap in enumerate(overlaps):
        near = overlap > limits
        if (near & free).any():
            free[np.argmax(np.where(near & free, overlap, -1.0))] = False
            matches[row] = 1
        elif (near & hard).any():
            matches[row] = -1
    return Outcome(scores[order], matches, int(np.sum(~hard)))


def curve(outcomes: Iterable[Outcome]) -> Curve:
    """The ranked list of one request over several images."""
    outcomes = list(outcomes)
    positives = sum(outcome.positives for outcome in outcomes)
    scores = np.concatenate([np.zeros(0, np.float32), *(outcome.scores for outcome in outcomes)])
    matches = np.concatenate([np.zeros(0, np.int8), *(outcome.matches for outcome in outcomes)])
    scores, matches = scores[matches >= 0], matches[matches >= 0]
    order = np.argsort(-scores, kind="stable")
    scores, right = scores[order], np.cumsum(matches[order] == 1)
    last = np.append(scores[1:] < scores[:-1], np.ones(min(len(scores), 1), bool))  # of its score
    right, counted = right[last], np.flatnonzero(last) + 1
    recall = right / positives if positives else np.full(len(right), NAN)
    return Curve(scores[last], right / counted, recall, positives)


def request_ap(ranked: Curve) -> float:
    """Area under the interpolated curve; NaN without positives, 0 without detections."""
    return average_precision(ranked.precision, ranked.recall) if ranked.positives else NAN


def at_threshold(ranked: Curve, threshold: float) -> Point:
    """Of the detections with a score above `threshold`; precision is 0 if there are none.

    All values are NaN without positives.
    """
    if not ranked.positives:
        return Point(NAN, NAN, NAN)
    count = int(np.sum(ranked.scores > threshold))
    if not count:
        return Point(0.0, 0.0, 0.0)
    precision, recall = float(ranked.precision[count - 1]), float(ranked.recall[count - 1])
    return Point(precision, recall, 2 * precision * recall / (precision + recall) if recall else 0.0)


def best_threshold(ranked: Curve) -> float:
    """The threshold whose detections (scores above it) have the best F1; ties: the highest one.

    It lies half-way between the last score that counts and the next. NaN if nothing right was found.
    """
    if not ranked.positives or not np.any(ranked.recall > 0):
        return NAN
    total = ranked.precision + ranked.recall
    f1 = np.divide(2 * ranked.precision * ranked.recall, total, out=np.zeros(len(total)), where=total > 0)
    best = int(np.argmax(f1))
    score = ranked.scores[best]
    if best + 1 == len(f1):
        return float(np.nextafter(score, np.float32(-np.inf)))
    following = ranked.scores[best + 1]
    middle = following + (score - following) / np.float32(2)
    return float(middle if middle < score else following)


def score_request(
    label: int, test: Iterable[Outcome], validation: Iterable[Outcome], *, threshold: float
) -> RequestScore:
    """Everything about one request from its outcomes; `threshold` is the one that all requests share."""
    ranked, before = curve(test), curve(validation)
    own = best_threshold(before)
    own = threshold if np.isnan(own) else own
    return RequestScore(
        label=label,
        ap=request_ap(ranked),
        point=at_threshold(ranked, threshold),
        own_point=at_threshold(ranked, own),
        own_threshold=own,
        validation_ap=request_ap(before),
        validation_f1=at_threshold(before, threshold).f1,
    )


def score_classes(scores: Iterable[RequestScore]) -> dict[int, ClassScore]:
    """Label -> its requests together; a class none of whose requests has an AP is left out.

    Requests without an AP do not count, as those of a class that no other image shows. What depends on a
    choice is NaN for a class that the validation images do not show.
    """
    by_label: dict[int, list[RequestScore]] = {}
    for score in scores:
        if not np.isnan(score.ap):
            by_label.setdefault(score.label, []).append(score)
    return {label: _class_score(members) for label, members in sorted(by_label.items())}


def summarize(classes: Mapping[int, ClassScore]) -> ClassScore:
    """Means over the classes where each number is defined; `average`, `top` and `comparable` become mAP."""
    columns = zip(*classes.values(), strict=True) if classes else [()] * len(ClassScore._fields)
    return ClassScore(*(_mean(column) for column in columns))


def first_best(values: Sequence[float]) -> int | None:
    """Index of the largest value, the first of equals; None if there is none that is defined."""
    defined = [index for index, value in enumerate(values) if not np.isnan(value)]
    return max(defined, key=lambda index: values[index], default=None)


def _class_score(members: list[RequestScore]) -> ClassScore:
    nothing = Point(NAN, NAN, NAN)
    top = first_best([member.validation_ap for member in members])
    best = first_best([member.validation_f1 for member in members])
    best = nothing if best is None else members[best].point
    oracle = members[first_best([member.point.f1 for member in members])].point
    average = _mean([member.ap for member in members])
    return ClassScore(
        average=average,
        top=NAN if top is None else members[top].ap,
        comparable=NAN if top is None else average,
        mean_precision=_mean([member.point.precision for member in members]),
        mean_recall=_mean([member.point.recall for member in members]),
        best_precision=best.precision,
        best_recall=best.recall,
        own_precision=_mean([member.own_point.precision for member in members]),
        own_recall=_mean([member.own_point.recall for member in members]),
        oracle_precision=oracle.precision,
        oracle_recall=oracle.recall,
    )


def _mean(values: Iterable[float]) -> float:
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else NAN
