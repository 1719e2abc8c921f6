"""What SCNet learns from a pair of pictures: regions of both, which are active, and where they truly lie.

Labels are made in the pictures' own pixels; only then everything moves into the square frame of the network
(`SIDE`), without keeping the aspect. NumPy only. Source: SCNet (ICCV 2017), sec. 4 and its published code;
specification sec. 4. Departures from the code: coordinates are scaled with pixel edges on integers, and a
mirrored box has its sides in order (the code leaves x1 > x2 there, which pools a single column).
"""

from typing import NamedTuple

import numpy as np

from sm_jax import boxes as box_lib
from sm_jax import points
from sm_jax.errors import DataError
from sm_jax.ops import tps

SIDE = 224
"""Side of the square frame in pixels."""


class RegionLabels(NamedTuple):
    """Of the n source and m target regions of a pair.

    Attributes:
      active: bool (n,): the source region lies on the object.
      boxes: float64 (n, 4): where active ones truly lie in the target, its pixels; 0 for the others.
      overlaps: float32 (n, m): IoU of each target region with that box; 0 for the others.
    """

    active: np.ndarray
    boxes: np.ndarray
    overlaps: np.ndarray


def label_regions(
    source_boxes: np.ndarray,
    target_boxes: np.ndarray,
    keypoints_source: np.ndarray,
    keypoints_target: np.ndarray,
    source_size: tuple[int, int],
    target_size: tuple[int, int],
) -> RegionLabels:
    """Active regions, their true boxes by a thin-plate spline through the key-points, and the overlaps.

    Args:
      source_boxes, target_boxes: "n 4", "m 4" xyxy pixels, real ones only.
      keypoints_source, keypoints_target: "k 2" pixels, row by row the same point; rows that are absent in
        either picture (NaN, or padding such as -1) are left out throughout.
      source_size, target_size: (height, width).

    Raises:
      DataError: no spline goes through the key-points (fewer than 3, on one line, two on one place).
    """
    keypoints_source, keypoints_target = common(keypoints_source, keypoints_target)
    spline = tps.fit(keypoints_source, keypoints_target)
    active = tps.active_regions(source_boxes, keypoints_source)
    true = np.zeros((len(source_boxes), 4))
    overlaps = np.zeros((len(source_boxes), len(target_boxes)), np.float32)
    if active.any():
        true[active] = tps.true_boxes(spline, source_boxes[active], source_size, target_size)
        overlaps[active] = box_lib.iou(true[active], np.asarray(target_boxes, np.float64))
    return RegionLabels(active, true, overlaps)


def common(keypoints_source: np.ndarray, keypoints_target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The key-points, float64 "k 2", that are present in both pictures.

    Raises:
      DataError: the two lists do not go together.
    """
    source, target = (np.asarray(xy, np.float64) for xy in (keypoints_source, keypoints_target))
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 2:
        raise DataError(f"key-points of shapes {source.shape} and {target.shape}; give two lists of k x 2")
    real = points.present(source) & points.present(target)
    return source[real], target[real]


def to_square(boxes: np.ndarray, size: tuple[int, int], *, side: int = SIDE) -> np.ndarray:
    """Boxes "n 4" of a picture of (height, width) in the frame of side x side pixels; float32."""
    return np.asarray(box_lib.scale(np.asarray(boxes, np.float32), (side / size[1], side / size[0])))


def mirror(boxes: np.ndarray, *, side: int = SIDE) -> np.ndarray:
    """Boxes "n 4" of the frame in the mirrored one: x becomes side - x, and left and right change places."""
    return np.stack([side - boxes[:, 2], boxes[:, 1], side - boxes[:, 0], boxes[:, 3]], axis=1)
