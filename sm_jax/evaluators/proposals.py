"""Proposals and their alignment with a phrase, counted in plain NumPy (cross-modal spec sec. 5).

Every metric is a ratio of two counts of one unit: an image, or an image with one phrase. `summarize` turns
the ratios of many units into the mean over units (which the paper reports) and the ratio of the sums. A
unit whose denominator is 0 has no value and is left out of the mean: no precision without proposals, no
recall without objects.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sm_jax import boxes as box_ops

Ratio = tuple[float, float]

DEFINITIONS = {
    "precision": "proposals that match an object / proposals",
    "recall": "objects that a proposal matches / objects",
    "iou": "mean over proposals of the IoU with the nearest object, 0 for none",
    "aligned_precision": "the same of proposals with enough align and the objects that the phrase means",
    "aligned_recall_gt": "aligned objects that an aligned proposal matches / aligned objects",
    "aligned_recall_matched": "the same / aligned objects that any proposal matches (compare the paper's)",
    "aligned_iou": "mean over aligned proposals of the IoU with the nearest aligned object, 0 for none",
    "align_accuracy": "matching proposals judged right / matching proposals",
    "align_positive_recall": "matching proposals of aligned objects judged aligned / all of those",
    "majority": "align_accuracy of the answer that is more often right, given always",
    "AP@": "average precision of score = conf * align over all pairs of image and phrase, as VOC counts it",
    "false_alarms": "phrases that mean nothing in the image, yet have a box of score above the threshold",
    "boxes": "number of such boxes per phrase",
}
"""One line for each metric, printed under a table of them."""


class Match(NamedTuple):
    """Proposals of one image against its objects.

    Attributes:
      iou: (n,) float64: the IoU of each proposal with the object nearest to it; 0 without objects.
      truth: (n,) int64: index of the object that the proposal matches, -1 where it matches none.
    """

    iou: np.ndarray
    truth: np.ndarray


class Summary(NamedTuple):
    """One metric over all units.

    Attributes:
      mean: over the units where it is defined; NaN where none is.
      micro: sum of the numerators / sum of the denominators; NaN where that is 0.
      units: number of units where it is defined.
      total: sum of the denominators.
    """

    mean: float
    micro: float
    units: int
    total: float


def match(boxes: np.ndarray, conf: np.ndarray, truth: np.ndarray, *, iou: float = 0.5) -> Match:
    """Match proposals to objects one to one, greedily by descending confidence (ties: the first).

    A proposal goes for the object nearest to it and matches if their IoU is greater than `iou` and no
    proposal came before it; a later one matches nothing. So which objects are matched does not depend on
    the order, and proposals that repeat another one add none.

    Args:
      boxes: (n, 4) xyxy pixels.
      conf: (n,) confidences.
      truth: (m, 4) annotated boxes.
    """
    boxes, truth = _boxes(boxes), _boxes(truth)
    conf = np.asarray(conf, np.float64).reshape(-1)
    if len(conf) != len(boxes):
        raise ValueError(f"{len(boxes)} boxes with {len(conf)} confidences")
    matched = np.full(len(boxes), -1, np.int64)
    if not len(boxes) or not len(truth):
        return Match(np.zeros(len(boxes)), matched)
    overlap = box_ops.iou(boxes, truth)
    nearest, best = overlap.argmax(axis=1), overlap.max(axis=1)
    order = np.argsort(-conf, kind="stable")
    order = order[best[order] > iou]
    _, first = np.unique(nearest[order], return_index=True)
    matched[order[first]] = nearest[order[first]]
    return Match(best, matched)


def proposal_ratios(found: Match, *, objects: int) -> dict[str, Ratio]:
    """precision, recall and iou of all proposals of one image with so many annotated `objects`."""
    n, hits = len(found.iou), int(np.sum(found.truth >= 0))
    return {"precision": (hits, n), "recall": (hits, objects), "iou": (float(found.iou.sum()), n)}


def alignment_ratios(
    boxes: np.ndarray,
    conf: np.ndarray,
    align: np.ndarray,
    truth: np.ndarray,
    aligned: np.ndarray,
    *,
    found: Match | None = None,
    iou: float = 0.5,
    threshold: float = 0.5,
) -> dict[str, Ratio]:
    """What one phrase gives in one image.

    Args:
      boxes, conf, align: (n, 4), (n,) and (n,): all proposals, their confidence and alignment.
      truth, aligned: (m, 4) annotated boxes, (m,) bool: those that the phrase means.
      found: `match` of the proposals with `truth`, where it is known already.
      iou: a match has a greater one.
      threshold: a proposal is aligned if its alignment is greater.

    Returns:
      The aligned_* and align_* metrics of `DEFINITIONS`, and `negatives`, the share of matching proposals
      whose object is not aligned: the accuracy of always answering no.
    """
    boxes, truth, aligned = _boxes(boxes), _boxes(truth), np.asarray(aligned, bool).reshape(-1)
    conf, said = np.asarray(conf).reshape(-1), np.asarray(align).reshape(-1) > threshold
    if len(said) != len(boxes) or len(aligned) != len(truth):
        raise ValueError(
            f"{len(boxes)} boxes with {len(said)} alignments, {len(truth)} objects with {len(aligned)} flags"
        )
    found = match(boxes, conf, truth, iou=iou) if found is None else found
    mine = match(boxes[said], conf[said], truth[aligned], iou=iou)
    objects = int(aligned.sum())
    plain = proposal_ratios(mine, objects=objects)
    hit_by_aligned, hit_by_any = np.zeros(len(truth), bool), np.zeros(len(truth), bool)
    hit_by_aligned[np.flatnonzero(aligned)[mine.truth[mine.truth >= 0]]] = True
    rows = found.truth >= 0
    hit_by_any[found.truth[rows]] = True
    right, told = aligned[found.truth[rows]], said[rows]
    return {
        "aligned_precision": plain["precision"],
        "aligned_recall_gt": plain["recall"],
        "aligned_recall_matched": (
            int(np.sum(hit_by_aligned & hit_by_any)),
            int(np.sum(aligned & hit_by_any)),
        ),
        "aligned_iou": plain["iou"],
        "align_accuracy": (int(np.sum(told == right)), int(rows.sum())),
        "align_positive_recall": (int(np.sum(told & right)), int(right.sum())),
        "negatives": (int(np.sum(~right)), int(rows.sum())),
    }


def absent_ratios(conf: np.ndarray, align: np.ndarray, *, threshold: float = 0.5) -> dict[str, Ratio]:
    """false_alarms and boxes of one phrase that means nothing in the image (n proposals)."""
    boxes = int(np.sum(np.asarray(conf) * np.asarray(align) > threshold))
    return {"false_alarms": (int(boxes > 0), 1), "boxes": (boxes, 1)}


def summarize(units: Sequence[Mapping[str, Ratio]]) -> dict[str, Summary]:
    """Every metric of the units; `negatives`, if it is there, becomes `majority`, whose mean and ratio of the
    sums are each of the constant answer that does better by it."""
    units = list(units)
    result = {}
    for name in dict.fromkeys(name for unit in units for name in unit):
        ratios = np.array([unit[name] for unit in units if name in unit], np.float64).reshape(-1, 2)
        summary = _summary(ratios)
        if name == "negatives":
            mean, micro = (max(share, 1 - share) for share in summary[:2])  # "not aligned", or "aligned"
            name, summary = "majority", summary._replace(mean=mean, micro=micro)
        result[name] = summary
    return result


def _summary(ratios: np.ndarray) -> Summary:
    some = ratios[ratios[:, 1] > 0]
    if not len(some):
        return Summary(float("nan"), float("nan"), 0, 0.0)
    total = some[:, 1].sum()
    return Summary(
        float(np.mean(some[:, 0] / some[:, 1])), float(some[:, 0].sum() / total), len(some), float(total)
    )


def _boxes(boxes) -> np.ndarray:
    return np.asarray(boxes, np.float64).reshape(-1, 4)
