"""From scores and boxes of every pyramid level to a list of detections, in NumPy on the host."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from sm_jax import boxes as box_ops
from sm_jax.errors import ConfigError
from sm_jax.ops.nms import nms_chunked

PUBLISHED_SCALES = (0.5, 0.625, 0.8, 1.0, 1.2, 1.4, 1.6)
FIELDS = ("boxes", "scores", "corners", "anchors", "template")


def pyramid_sizes(size: tuple[int, int], scales: Sequence[float]) -> list[tuple[int, int]]:
    """(height, width) of each level: the product truncated, at least one pixel (OS2D spec sec. 11)."""
    return [(max(1, math.trunc(size[0] * s)), max(1, math.trunc(size[1] * s))) for s in scales]


def decode_pyramid(
    levels: Sequence[Mapping[str, np.ndarray]],
    *,
    image_size: tuple[int, int],
    class_ids: Sequence[int],
    iou: float = 0.3,
    score_threshold: float | Sequence[float] = -math.inf,
    nms: str = "exact",
    max_detections: int | None = None,
    across_classes: bool = False,
) -> dict[str, np.ndarray]:
    """Detections of one image: clip, drop, map to the image, suppress per class (OS2D spec sec. 11).

    All templates with the same class id are views of one class and compete in one suppression.

    Args:
      levels: per level `scores` (c, n), `boxes` (c, n, 4) and `corners` (c, n, 4, 2) in pixels of that
        level, `anchors` (n, 4) or (c, n, 4), `size` (height, width) of the level. Scores that are not finite
        are dropped. An optional `cut` (c,) is the highest score that may be missing from the level.
      image_size: (height, width) that the results are in.
      class_ids: (c,) class of each template.
      iou: overlap above which the lower score of a class is dropped.
      score_threshold: only scores strictly above it are kept; one for all templates or one for each.
      nms: "exact" greedy, or "chunked": the published scheme in blocks of 10,000 candidates.
      max_detections: the best so many per class (all classes together with `across_classes`); None keeps all.
      across_classes: a second suppression over all classes together.

    Returns:
      boxes (m, 4), scores (m,), labels (m,) int64, corners (m, 4, 2), anchors (m, 4, not clipped), template
      (m,) index into `class_ids`; classes in order of first appearance, then descending score. And `exact`:
      False when a level's `cut` may have hidden a detection, or a box that would have suppressed one; `best`:
      (c,) the highest score of each template whatever the threshold, -inf where it has no box.

    Raises:
      ConfigError: an unknown `nms`.
    """
    if nms not in ("exact", "chunked"):
        raise ConfigError(f"nms must be 'exact' or 'chunked', is {nms!r}")
    class_ids = np.asarray(class_ids, np.int64)
    thresholds = np.broadcast_to(np.asarray(score_threshold, np.float32), class_ids.shape)
    found, exact, best = [], True, np.full(len(class_ids), -np.inf, np.float32)
    for label in dict.fromkeys(class_ids.tolist()):
        templates = np.flatnonzero(class_ids == label)
        parts = [_level(level, t, image_size, thresholds[t]) for t in templates for level in levels]
        for part, template in zip(parts, np.repeat(templates, len(levels)), strict=True):
            best[template] = max(best[template], part["best"])
        merged = {key: np.concatenate([part[key] for part in [*parts, _empty()]]) for key in FIELDS}
        keep = _suppress(merged, iou, nms)
        cut = max(
            (float(np.max(level["cut"][templates])) for level in levels if "cut" in level), default=-math.inf
        )
        certain = int(np.sum(merged["scores"][keep] > cut))
        wanted = math.inf if max_detections is None else max_detections
        if cut > thresholds[templates].min() and certain < wanted:
            exact = False
        kept = {key: value[keep[:max_detections]] for key, value in merged.items()}
        found.append(kept | {"labels": np.full(len(kept["scores"]), label, np.int64)})
    limit = max_detections if across_classes else None
    result = merge(found, iou=iou, nms=nms, across_classes=across_classes, max_detections=limit)
    return result | {"exact": np.bool_(exact), "best": best}


def merge(
    found: Sequence[Mapping[str, np.ndarray]],
    *,
    iou: float = 0.3,
    nms: str = "exact",
    across_classes: bool = False,
    max_detections: int | None = None,
) -> dict[str, np.ndarray]:
    """Put the detections of disjoint sets of classes together; `across_classes`: suppress over all of them.

    Args:
      found: dicts with the arrays that `decode_pyramid` returns.
      max_detections: in all; only used with `across_classes`.
    """
    found = [*found, _empty()]
    result = {key: np.concatenate([part[key] for part in found]) for key in (*FIELDS, "labels")}
    if across_classes:
        keep = _suppress(result, iou, nms)[:max_detections]
        result = {key: value[keep] for key, value in result.items()}
    return result


def _level(level, template, image_size, score_threshold):
    """One template's candidates on one level, cleaned and mapped to the image."""
    size = level["size"]
    boxes = box_ops.clip(np.asarray(level["boxes"][template], np.float32), size)
    scores = np.asarray(level["scores"][template], np.float32)
    keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    keep &= np.isfinite(scores)
    best = np.max(scores[keep], initial=-np.inf)
    keep &= scores > score_threshold
    anchors = np.asarray(level["anchors"], np.float32)
    anchors = anchors[template] if anchors.ndim == 3 else anchors
    factor = np.array([image_size[1] / size[1], image_size[0] / size[0]], np.float32)
    return {
        "boxes": box_ops.scale(boxes[keep], factor),
        "scores": scores[keep],
        "corners": np.asarray(level["corners"][template], np.float32)[keep] * factor,
        "anchors": box_ops.scale(anchors[keep], factor),
        "template": np.full(int(keep.sum()), template, np.int64),
        "best": best,
    }


def _suppress(candidates, iou, scheme):
    """Indices of the survivors by descending score."""
    boxes, scores = candidates["boxes"], candidates["scores"]
    if not len(scores):
        return np.zeros(0, np.int64)
    block = {} if scheme == "chunked" else {"chunk": len(scores)}
    return np.asarray(nms_chunked(boxes, scores, iou=iou, **block), np.int64)


def _empty():
    shapes = {"boxes": (0, 4), "scores": (0,), "corners": (0, 4, 2), "anchors": (0, 4)}
    ints = {"template": np.zeros(0, np.int64), "labels": np.zeros(0, np.int64)}
    return {key: np.zeros(shape, np.float32) for key, shape in shapes.items()} | ints
