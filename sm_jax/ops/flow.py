"""Dense flow from region matches: where every source pixel goes, which are kept, and a smooth field of all.

Host code, float64 NumPy (SciPy for the smooth field). Boxes are the library's; the published code maps
between 1-based inclusive corners, so that a pair of boxes maps the centre of the first pixel onto that of the
first and the last onto the last. A displacement is the same in both conventions. Source: Proposal Flow (CVPR
2016), sec. 3.3, and the published code; specification sec. 7.
"""

from typing import NamedTuple

import numpy as np

from sm_jax import boxes as box_lib
from sm_jax.errors import DataError

SMOOTHNESS = 20.0
GUIDANCE_SHARPNESS, FLOW_SHARPNESS = 30.0, 15.0
_LEAST_WEIGHT = 1e-5
_SOLVES = 2
# Rec. 709 primaries, white D65 (X, Y, Z to linear R, G, B), and the constants of its transfer curve
_XYZ_TO_RGB = [
    [3.240479, -1.53715, -0.498535],
    [-0.969256, 1.875992, 0.041556],
    [0.055648, -0.204043, 1.057311],
]
_WHITE = np.array([0.950456, 1.0, 1.088754])


class Flow(NamedTuple):
    """A displacement for every source pixel.

    Attributes:
      shift: (height, width, 2) float64: x, y in pixels of the images; NaN where missing.
      confidence: (height, width) float64: score of the match it came from; 0 where missing.
      valid: (height, width) bool: not missing.
    """

    shift: np.ndarray
    confidence: np.ndarray
    valid: np.ndarray


def dense_flow(
    source_boxes: np.ndarray,
    target_boxes: np.ndarray,
    confidence: np.ndarray,
    source_size: tuple[int, int],
    target_size: tuple[int, int],
    *,
    missing: str = "nan",
) -> Flow:
    """Every source pixel follows the most confident match that covers it.

    The match of row i maps its source box linearly onto its target box, corners rounded to pixels; where a
    pixel lands is rounded (halves away from 0) and cut to the target image. Ties go to the first match.
    Matches with a box that is at most 1 pixel wide or high, mirrored or not finite, or with a confidence that
    is not finite, are left out; without any match everything is missing.

    Args:
      source_boxes, target_boxes: "k 4" xyxy pixels, row by row the two sides of a match.
      confidence: "k".
      source_size, target_size: (height, width).
      missing: what becomes of pixels that no match covers: "nan", or "clamp" for what the published code
        makes of them, a valid flow to the target's last pixel with confidence 0.

    Raises:
      DataError: the three arrays do not go together.
    """
    if missing not in ("nan", "clamp"):
        raise ValueError(f"missing is {missing!r}, expected 'nan' or 'clamp'")
    source, target = _corners(source_boxes), _corners(target_boxes)
    confidence = np.asarray(confidence, np.float64).reshape(-1)
    if not len(source) == len(target) == len(confidence):
        raise DataError(
            f"flow of {len(source)} source boxes, {len(target)} target boxes and {len(confidence)} "
            "confidences; give one of each per match"
        )
    (height, width), target_extent = source_size, np.array(target_size[::-1], np.float64)
    where_to = np.full((height, width, 2), np.nan)
    best = np.zeros((height, width))
    covered = np.zeros((height, width), bool)
    usable = _sized(source) & _sized(target) & np.isfinite(confidence)
    for match in np.argsort(-np.where(usable, confidence, -np.inf), kind="stable")[: usable.sum()]:
        x1, y1, x2, y2 = source[match]
        left, top = int(max(x1, 1)), int(max(y1, 1))
        rows, columns = slice(top - 1, max(int(y2), 0)), slice(left - 1, max(int(x2), 0))
        new = ~covered[rows, columns]
        ratio = (target[match, 2:] - target[match, :2]) / (source[match, 2:] - source[match, :2])
        x = target[match, 0] + (np.arange(left, left + new.shape[1]) - x1) * ratio[0]
        y = target[match, 1] + (np.arange(top, top + new.shape[0]) - y1) * ratio[1]
        where_to[rows, columns][new] = np.stack(np.broadcast_arrays(x[None, :], y[:, None]), axis=-1)[new]
        best[rows, columns][new] = confidence[match]
        covered[rows, columns] = True
    where_to = np.clip(round_half_away(where_to), 1, target_extent)
    if missing == "clamp":
        where_to[~covered] = target_extent
        covered = np.ones_like(covered)
    return Flow(where_to - _pixels((height, width)), best, covered)


def unique(flow: Flow, target_size: tuple[int, int]) -> Flow:
    """Of the pixels that land on one target pixel only the most confident stays (ties: first row by row)."""
    height, width = target_size
    lands = np.rint(np.nan_to_num(flow.shift) + _pixels(flow.valid.shape)).astype(np.int64) - 1
    lands = np.clip(lands[..., 1], 0, height - 1) * width + np.clip(lands[..., 0], 0, width - 1)
    candidates = np.flatnonzero(flow.valid)
    order = candidates[np.lexsort((-flow.confidence.ravel()[candidates], lands.ravel()[candidates]))]
    first = np.ones(len(order), bool)
    first[1:] = lands.ravel()[order[1:]] != lands.ravel()[order[:-1]]
    keep = np.zeros(flow.valid.size, bool)
    keep[order[first]] = True
    keep = keep.reshape(flow.valid.shape)
    return Flow(np.where(keep[..., None], flow.shift, np.nan), np.where(keep, flow.confidence, 0), keep)


def regularize(flow: Flow, image: np.ndarray) -> Flow:
    """A smooth flow of all pixels from the valid ones, bending at the edges of the source `image`.

    `smooth` of x and y with the image's CIE-LAB colours as guidance. Confidence stays; everything is valid,
    unless nothing was, which is returned as it is.

    Args:
      image: (height, width, 3) uint8 RGB of the flow's size.
    """
    if not flow.valid.any():
        return flow
    guidance = lab(image)
    parts = [smooth(np.nan_to_num(flow.shift[..., i]), flow.valid, guidance) for i in range(2)]
    return Flow(np.stack(parts, axis=-1), flow.confidence, np.ones_like(flow.valid))


def smooth(values: np.ndarray, where: np.ndarray, guidance: np.ndarray) -> np.ndarray:
    """Static/dynamic filter (Ham, Cho, Ponce, CVPR 2015): values "h w" known at `where`, over all pixels.

    Solves (C + 20 L) u = C f twice: C = diag(where), L the Laplacian of the 4-neighbour graph with weights
    w(guidance) w(u), w = exp(-s d) + 1e-5, d the distances over the edges scaled to [0, 1]; s is 30 for the
    guidance "h w c" and 15 for u, which starts constant.

    Raises:
      DataError: the shapes differ, or no value is known.
    """
    import scipy.sparse
    import scipy.sparse.linalg

    known = np.asarray(where, np.float64)
    if not values.shape == known.shape == guidance.shape[:2]:
        raise DataError(
            f"smooth: values {values.shape}, where {known.shape}, guidance {guidance.shape}; give one size"
        )
    if not known.any():
        raise DataError("smooth: no pixel has a known value; there is nothing to spread")
    size = values.size
    number = np.arange(size).reshape(values.shape)
    a = np.concatenate([number[:, :-1].ravel(), number[:-1].ravel()])
    b = np.concatenate([number[:, 1:].ravel(), number[1:].ravel()])
    fixed = _edge_weights(guidance.reshape(size, -1), a, b, GUIDANCE_SHARPNESS)
    solution = np.ones((size, 1))
    for _ in range(_SOLVES):
        weights = SMOOTHNESS * fixed * _edge_weights(solution, a, b, FLOW_SHARPNESS)
        between = scipy.sparse.coo_array(
            (np.tile(-weights, 2), (np.r_[a, b], np.r_[b, a])), shape=(size, size)
        )
        system = (between + scipy.sparse.diags_array(known.ravel() - between.sum(axis=1))).tocsc()
        factors = scipy.sparse.linalg.splu(
            system, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
        )
        solution = factors.solve((known * values).reshape(size, 1))
    return solution.reshape(values.shape)


def lab(image: np.ndarray) -> np.ndarray:
    """CIE-LAB (D65) of uint8 RGB "h w 3", float64, with the Rec. 709 transfer curve of the published code.

    The curve differs from sRGB's, so values differ from those of common libraries by up to about 10.
    """
    rgb = np.asarray(image, np.float64) / 255
    linear = np.where(rgb <= 0.018 * 4.5138, rgb / 4.5138, ((rgb + 0.099) / 1.099) ** (1 / 0.45))
    xyz = linear @ np.linalg.inv(_XYZ_TO_RGB).T / _WHITE
    x, y, z = np.moveaxis(np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * 841 / 108 + 4 / 29), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def round_half_away(x: np.ndarray) -> np.ndarray:
    """Nearest integers, halves away from 0 (MATLAB's `round`); NaN stays."""
    return np.trunc(x + np.copysign(0.5, x))


def _edge_weights(values, a, b, sharpness):
    distances = np.sqrt(np.sum((values[a] - values[b]) ** 2, axis=1))
    low, high = (distances.min(), distances.max()) if len(distances) else (0.0, 0.0)
    scaled = (distances - low) / (high - low) if high > low else np.zeros_like(distances)
    return np.exp(-sharpness * scaled) + _LEAST_WEIGHT


def _pixels(size):
    """1-based x, y of every pixel: "h w 2"."""
    height, width = size
    return np.stack(np.meshgrid(np.arange(1.0, width + 1), np.arange(1.0, height + 1)), axis=-1)


def _corners(boxes):
    """1-based inclusive corners, rounded to pixels."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    return round_half_away(box_lib.half_open_to_inclusive(boxes))


def _sized(corners):
    return np.isfinite(corners).all(axis=1) & (corners[:, 2:] > corners[:, :2]).all(axis=1)
