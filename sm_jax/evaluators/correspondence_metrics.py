"""How well one image was matched with another: key-points, regions, masks and parts, in plain NumPy.

Points are pixels of the library (edges on integers), boxes half-open xyxy, sizes (height, width). What has no
value (a pair without a real key-point, without an active region) is NaN and is left out of means over pairs.
Sources: SCNet (ICCV 2017), sec. 5; Proposal Flow (CVPR 2016), sec. 4; specification sec. 8.
"""

from collections.abc import Sequence

import numpy as np

from sm_jax import points
from sm_jax.errors import DataError

NORMALIZERS = {
    "scnet224": "both images scaled to 224 x 224, distances over 224 (PF-PASCAL of SCNet and later work)",
    "bbox": "longer side of the box of the true key-points (PF-WILLOW, Proposal Flow)",
    "diag": "diagonal of the target image",
    "img": "longer side of the target image",
}
"""What a distance between key-points is divided by; print it beside every PCK."""

STEPS = 100  # of the curves over tau and k


def transfer(keypoints: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Key-points moved by the flow at the pixel they lie in: "k 2", "h w 2" -> "k 2"; absent ones are NaN.

    A point outside the image takes the flow of the nearest pixel: annotations lie up to a pixel outside, and
    every annotated point counts (`systems.scnet.predict.transfer`, for points that a person asks for, does
    not move those). A missing flow (NaN) gives NaN, which counts as wrong. A point on the border of two
    pixels takes the later one, as `round` of 1-based does.
    """
    keypoints = np.asarray(keypoints, np.float64).reshape(-1, 2)
    real = points.present(keypoints)
    moved = keypoints + shift[points.pixel_of(keypoints, shift.shape[:2])]
    return np.where(real[:, None], moved, np.nan)


def keypoint_distances(
    predicted: np.ndarray,
    truth: np.ndarray,
    *,
    norm: str,
    target_size: tuple[int, int],
    source: np.ndarray | None = None,
) -> np.ndarray:
    """Distances of predicted from true key-points in units of the normaliser: (number of real ones,) float64.

    Args:
      predicted, truth: "k 2" pixels of the target. Rows whose truth is absent (`points.present`: NaN or
        padding) are left out; a prediction that is not finite is infinitely far.
      norm: one of `NORMALIZERS`.
      target_size: (height, width) of the target.
      source: "k 2" pixels of the source; rows absent there are left out too.

    Returns:
      One distance per real key-point; NaN each where the normaliser is 0 ("bbox" of a single point).

    Raises:
      DataError: no such normaliser, or the lists differ in length.
    """
    if norm not in NORMALIZERS:
        raise DataError(f"no normaliser {norm!r}; take one of {', '.join(NORMALIZERS)}")
    predicted, truth = (np.asarray(xy, np.float64).reshape(-1, 2) for xy in (predicted, truth))
    real = points.present(truth)
    if source is not None:
        source = np.asarray(source, np.float64).reshape(-1, 2)
    if len(predicted) != len(truth) or (source is not None and len(source) != len(truth)):
        raise DataError(f"{len(predicted)} predicted key-points for {len(truth)} true ones; give one each")
    if source is not None:
        real &= points.present(source)
    predicted, truth = predicted[real], truth[real]
    height, width = target_size
    if norm == "scnet224":
        unit = np.array([width, height], np.float64)
    elif norm == "bbox":
        unit = np.ptp(truth, axis=0).max() if len(truth) else 0.0
    else:
        unit = np.hypot(height, width) if norm == "diag" else max(height, width)
    with np.errstate(divide="ignore", invalid="ignore"):
        distances = np.linalg.norm((predicted - truth) / unit, axis=1)
    distances[~np.isfinite(predicted).all(axis=1)] = np.inf
    return distances if np.all(np.asarray(unit) > 0) else np.full(len(truth), np.nan)


def pck(distances: np.ndarray, alpha: float) -> float:
    """Fraction of correct key-points of one pair, those with a distance < alpha; NaN without a value."""
    distances = np.asarray(distances)
    if not len(distances) or np.isnan(distances).any():
        return float("nan")
    return float(np.mean(distances < alpha))


def mean_over_pairs(values: Sequence[float]) -> tuple[float, int]:
    """Mean of the pairs that have a value, and their number; (NaN, 0) without any."""
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    return (float(values.mean()) if len(values) else float("nan")), len(values)


def mean_over_classes(values: Sequence[float], classes: Sequence[str]) -> tuple[float, dict[str, float]]:
    """Unweighted mean over classes of the class means, and these by name.

    Classes without a value are left out. The published "mean" of PF-PASCAL is that over pairs, not this one.
    """
    values, classes = np.asarray(values, np.float64), np.asarray(classes)
    if values.shape != classes.shape:
        raise DataError(f"{len(values)} values for {len(classes)} class names; give one per pair")
    means = {str(name): mean_over_pairs(values[classes == name])[0] for name in np.unique(classes)}
    means = {name: mean for name, mean in means.items() if not np.isnan(mean)}
    return mean_over_pairs(list(means.values()))[0], means


def pcr(overlaps: Sequence[np.ndarray]) -> np.ndarray:
    """Fraction of correct regions over tau = 0, 0.01 ... 1: (101,).

    Args:
      overlaps: per pair, the IoU of each active region's match with its true box. A region is correct where
        1 - IoU < tau; the result is the mean over pairs with an active region (NaN without any).
    """
    tau = np.arange(STEPS + 1) / STEPS
    curves = [np.mean(1 - np.asarray(o)[:, None] < tau[None, :], axis=0) for o in overlaps if len(o)]
    return np.mean(curves, axis=0) if curves else np.full(STEPS + 1, np.nan)


def miou_at_k(overlaps: Sequence[np.ndarray], confidences: Sequence[np.ndarray]) -> np.ndarray:
    """Mean IoU of the k most confident active regions, k = 1 ... 100: (100,).

    The first k of every pair (those that exist) are pooled over all pairs. Ties go to the first region; NaN
    without an active region.
    """
    total, count = np.zeros(STEPS), np.zeros(STEPS)
    for overlap, confidence in zip(overlaps, confidences, strict=True):
        best = np.asarray(overlap, np.float64)[np.argsort(-np.asarray(confidence), kind="stable")][:STEPS]
        total[: len(best)] += best
        count[: len(best)] += 1
    count = np.cumsum(count)
    return np.where(count > 0, np.cumsum(total) / np.maximum(count, 1), np.nan)


def area_under_curve(curve: np.ndarray) -> float:
    """Area under the first 100 values of `pcr` or `miou_at_k`: trapezoids of width 0.01, at most 0.99."""
    return float(np.trapezoid(np.asarray(curve)[:STEPS], dx=1 / STEPS))


def transfer_mask(shift: np.ndarray, target_mask: np.ndarray) -> np.ndarray:
    """The target's mask seen from the source: "h w 2" flow, "H W" mask -> bool "h w".

    True where a source pixel lands on foreground (> 0.5); a pixel without flow or landing outside is not.
    """
    rows, columns, inside = _landing(shift, target_mask.shape)
    return inside & (np.asarray(target_mask)[rows, columns] > 0.5)


def label_transfer_accuracy(predicted: np.ndarray, truth: np.ndarray) -> float:
    """LT-ACC: fraction of pixels whose transferred label, foreground (> 0.5) or not, is right."""
    return float(np.mean((np.asarray(predicted) > 0.5) == (np.asarray(truth) > 0.5)))


def mask_iou(predicted: np.ndarray, truth: np.ndarray) -> float:
    """IoU of two masks (> 0.5); NaN when both are empty."""
    predicted, truth = np.asarray(predicted) > 0.5, np.asarray(truth) > 0.5
    union = np.sum(predicted | truth)
    return float(np.sum(predicted & truth) / union) if union else float("nan")


def localization_error(shift: np.ndarray, source_mask: np.ndarray, target_mask: np.ndarray) -> float:
    """LOC-ERR: how far places move relative to the objects' boxes, |dx| + |dy|, mean over pixels.

    A place is measured from the top-left corner of the mask's box in units of the box; the mean is over all
    source pixels that land inside the target. NaN without such a pixel or with an empty mask.
    """
    if not (np.asarray(source_mask) > 0.5).any() or not (np.asarray(target_mask) > 0.5).any():
        return float("nan")
    rows, columns, inside = _landing(shift, target_mask.shape)
    if not inside.any():
        return float("nan")
    there = np.stack([columns[inside], rows[inside]], axis=-1)
    here = np.argwhere(inside)[:, ::-1]
    (low_a, side_a), (low_b, side_b) = (_mask_box(mask) for mask in (source_mask, target_mask))
    return float(np.mean(np.sum(np.abs((here - low_a) / side_a - (there - low_b) / side_b), axis=1)))


def weighted_part_iou(predicted: np.ndarray, truth: np.ndarray) -> float:
    """IoU of parts weighted by their true areas: masks "p h w" -> scalar; parts that are not there count 0.

    NaN when no part has an area. Source: PASCAL-Parts as evaluated by Proposal Flow.
    """
    predicted, truth = np.asarray(predicted) > 0.5, np.asarray(truth) > 0.5
    if predicted.shape != truth.shape or truth.ndim != 3:
        raise DataError(f"part masks of shapes {predicted.shape} and {truth.shape}; give p x h x w of both")
    areas = truth.sum(axis=(1, 2))
    common, union = ((predicted & truth).sum(axis=(1, 2)), (predicted | truth).sum(axis=(1, 2)))
    if not areas.sum():
        return float("nan")
    return float(np.sum(areas / areas.sum() * common / np.maximum(union, 1)))


def _landing(shift, size):
    """Row and column (0-based, cut to the target) that every source pixel lands on, and whether inside."""
    height, width = shift.shape[:2]
    known = np.isfinite(shift).all(axis=-1)
    safe = np.where(known[..., None], shift, 0)
    columns = np.floor(np.arange(width)[None, :] + safe[..., 0] + 0.5).astype(int)
    rows = np.floor(np.arange(height)[:, None] + safe[..., 1] + 0.5).astype(int)
    inside = known & (rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])
    return np.clip(rows, 0, size[0] - 1), np.clip(columns, 0, size[1] - 1), inside


def _mask_box(mask):
    """Top-left pixel (x, y) and extents (width, height) of a mask's foreground."""
    rows, columns = np.nonzero(np.asarray(mask) > 0.5)
    low = np.array([columns.min(), rows.min()], np.float64)
    return low, np.array([columns.max(), rows.max()]) - low + 1
