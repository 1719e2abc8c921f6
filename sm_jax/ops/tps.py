"""Thin-plate splines through key-points, and the labels of regions that follow from them.

Host code, float64 NumPy; coordinates are the library's pixels (edges on integers). Source: SCNet (ICCV 2017),
sec. 4, and its published code, which works on 1-based pixels and inclusive boxes: specification sec. 4. The
two meet in `boxes.half_open_to_inclusive` and `points.one_based_to_pixels`.
"""

from typing import NamedTuple

import numpy as np

from sm_jax import boxes as box_lib
from sm_jax import points
from sm_jax.errors import DataError
from sm_jax.ops.flow import round_half_away

ACTIVE_COVERAGE = 0.75
_COLLINEAR = 1e-9  # least ratio of the two extents of the key-points


class Spline(NamedTuple):
    """A mapping of the plane: affine part plus weights of r^2 ln r around its centres.

    Attributes:
      centres: (k, 2) source key-points.
      weights: (k, 2) of the centres, for x and y.
      affine: (3, 2): constant, factor of x, factor of y.
    """

    centres: np.ndarray
    weights: np.ndarray
    affine: np.ndarray

    def __call__(self, xy: np.ndarray) -> np.ndarray:
        """Where points go: "... 2" -> "... 2" float64."""
        xy = np.asarray(xy, np.float64)
        flat = xy.reshape(-1, 2)
        bend = _radial(flat, self.centres) @ self.weights
        return (bend + _affine_rows(flat) @ self.affine).reshape(xy.shape)


def fit(source: np.ndarray, target: np.ndarray) -> Spline:
    """The thin-plate spline that maps source key-points exactly onto target key-points.

    Args:
      source, target: "k 2" pixels, row by row the same point; rows absent in either (`points.present`: NaN or
        padding) are left out.

    Raises:
      DataError: the two do not go together; fewer than 3 key-points are in both; they lie on one line; two
        lie on the same place.
    """
    source, target = (np.asarray(keypoints, np.float64) for keypoints in (source, target))
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 2:
        raise DataError(f"key-points of shapes {source.shape} and {target.shape}; give two lists of k x 2")
    real = points.present(source) & points.present(target)
    source, target = source[real], target[real]
    count = len(source)
    if count < 3:
        raise DataError(f"{count} key-points are in both images; a thin-plate spline needs at least 3")
    middle = source.mean(axis=0)
    spread = source - middle
    extents = np.linalg.svd(spread, compute_uv=False)
    if not extents[1] > _COLLINEAR * extents[0]:
        raise DataError(f"the {count} key-points lie on one line; a thin-plate spline needs one beside it")
    apart = np.linalg.norm(source[:, None] - source[None], axis=2)[np.triu_indices(count, 1)]
    if not apart.min() > _COLLINEAR * extents[0]:
        raise DataError("two key-points lie on the same place of the source; leave one out")
    # the spline of shifted and scaled points is the same, and the system is far better conditioned
    unit = spread / extents[0]
    system = np.zeros((count + 3, count + 3))
    system[:count, :count] = _radial(unit, unit)
    system[:count, count:] = _affine_rows(unit)
    system[count:, :count] = system[:count, count:].T
    solution = np.linalg.solve(system, np.concatenate([target, np.zeros((3, 2))]))
    weights, (constant, *linear) = solution[:count], solution[count:]
    weights, linear = weights / extents[0] ** 2, np.array(linear) / extents[0]
    # r^2 ln(r / e) = r^2 ln r - r^2 ln e; as the weights and their first moments sum to 0, the last term sums
    # to a constant
    constant = constant - middle @ linear - np.log(extents[0]) * (np.sum(spread**2, axis=1) @ weights)
    return Spline(source, weights, np.concatenate([constant[None], linear]))


def map_pixels(spline: Spline, source_size: tuple[int, int]) -> np.ndarray:
    """Where the centre of every source pixel goes: (height, width) -> "h w 2" pixels of the target, uncut."""
    return spline(points.one_based_to_pixels(_one_based_pixels(source_size)))


def true_boxes(
    spline: Spline, source_boxes: np.ndarray, source_size: tuple[int, int], target_size: tuple[int, int]
) -> np.ndarray:
    """Where source boxes truly lie in the target: "n 4" -> "n 4" float64 xyxy pixels.

    The four corner pixels are mapped, rounded and cut to the target; a side lies in the mean of the two
    corners on it. Corners are rounded to pixels of the source first. Source: published SCNet code.

    Raises:
      DataError: a box is not finite.
    """
    boxes = box_lib.half_open_to_inclusive(np.asarray(source_boxes, np.float64).reshape(-1, 4))
    if not np.isfinite(boxes).all():
        raise DataError("true boxes of regions that are not finite numbers; leave those out")
    extents = [np.array(size[::-1], np.float64) for size in (source_size, target_size)]
    x1, y1, x2, y2 = np.clip(round_half_away(boxes), 1, np.tile(extents[0], 2)).T
    corners = np.stack([np.stack(xy, axis=-1) for xy in ((x1, y1), (x2, y1), (x2, y2), (x1, y2))], axis=1)
    mapped = points.pixels_to_one_based(spline(points.one_based_to_pixels(corners)))
    mapped = np.sort(np.clip(round_half_away(mapped), 1, extents[1]), axis=1)
    sides = np.concatenate([mapped[:, :2].mean(axis=1), mapped[:, 2:].mean(axis=1)], axis=1)
    return box_lib.inclusive_to_half_open(sides)


def active_regions(boxes: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
    """Which source regions lie on the object: bool "n".

    More than 3/4 of the box lies in the box of the visible key-points, and it contains one of them. Nothing
    is active without key-points, nor a box without a size.

    Args:
      boxes: "n 4" xyxy pixels.
      keypoints: "k 2" pixels; absent ones (`points.present`) do not count.
    """
    boxes = box_lib.half_open_to_inclusive(np.asarray(boxes, np.float64).reshape(-1, 4))
    keypoints = np.asarray(keypoints, np.float64).reshape(-1, 2)
    keypoints = points.pixels_to_one_based(keypoints[points.present(keypoints)])
    if not len(keypoints):
        return np.zeros(len(boxes), bool)
    around = np.concatenate([keypoints.min(axis=0), keypoints.max(axis=0)])
    x, y = keypoints.T
    inside = (x >= boxes[:, :1]) & (x <= boxes[:, 2:3]) & (y >= boxes[:, 1:2]) & (y <= boxes[:, 3:4])
    return (box_lib.coverage(boxes, around) > ACTIVE_COVERAGE) & inside.any(axis=1)


def _radial(xy, centres):
    """r^2 ln r of every pair, 0 at r = 0."""
    squared = np.sum((xy[:, None, :] - centres[None, :, :]) ** 2, axis=2)
    return 0.5 * squared * np.log(np.where(squared > 0, squared, 1))


def _affine_rows(xy):
    return np.concatenate([np.ones((len(xy), 1)), xy], axis=1)


def _one_based_pixels(size):
    height, width = size
    return np.stack(np.meshgrid(np.arange(1.0, width + 1), np.arange(1.0, height + 1)), axis=-1)
