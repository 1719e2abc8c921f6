"""Labels of the regions of a pair: by hand, and what key-points they refuse."""

import numpy as np
import pytest

from sm_jax import boxes as box_lib
from sm_jax.data.scnet_pairs import SIDE, common, label_regions, mirror, to_square
from sm_jax.errors import DataError

SIZE = (100, 200)
POINTS = np.array([[20.0, 20], [80, 20], [80, 80], [20, 80], [50, 50]])
BOXES = np.array([[30, 30, 70, 70], [10, 10, 60, 60], [120, 10, 180, 60]], np.float32)


def labels(source=POINTS, target=POINTS + [100, 0], target_boxes=BOXES + [100, 0, 100, 0]):
    return label_regions(BOXES, target_boxes, source, target, SIZE, SIZE)


def test_a_shift_moves_the_true_boxes():
    found = labels()
    np.testing.assert_array_equal(found.active, [True, False, False])  # the second lies 64 % on the object
    np.testing.assert_allclose(found.boxes[0], BOXES[0] + [100, 0, 100, 0])
    np.testing.assert_allclose(found.overlaps[0], box_lib.iou(BOXES[:1], BOXES)[0], atol=1e-6)
    assert not found.overlaps[1:].any() and not found.boxes[1:].any()


@pytest.mark.parametrize("absent", [np.nan, -1.0])
@pytest.mark.parametrize("side", ["source", "target"])
def test_absent_points_change_nothing(absent, side):
    """Their partner in the other picture counts for nothing either: not for the object's box."""
    padding, far = np.full((1, 2), absent), np.array([[150.0, 90]])
    source = np.concatenate([POINTS, padding if side == "source" else far])
    target = np.concatenate([POINTS + [100, 0], padding if side == "target" else far])
    for one, other in zip(labels(source, target), labels(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "points, message",
    [
        (POINTS[:2], "2 key-points are in both images"),
        (POINTS[[0, 4, 2]], "one line"),
        (np.where(np.arange(5)[:, None] < 2, POINTS, np.nan), "2 key-points"),
    ],
)
def test_points_without_a_spline_are_refused(points, message):
    with pytest.raises(DataError, match=message):
        labels(points, points)


def test_lists_of_unlike_length_are_refused():
    with pytest.raises(DataError, match="give two lists"):
        common(POINTS, POINTS[:3])


def test_no_active_region_is_a_result():
    found = label_regions(BOXES[2:], BOXES, POINTS, POINTS, SIZE, SIZE)
    assert not found.active.any() and not found.overlaps.any()


def test_square_frame_and_mirror():
    frame = to_square(np.array([[0, 0, 200, 100], [50, 25, 100, 50]]), SIZE)
    np.testing.assert_allclose(frame, [[0, 0, SIDE, SIDE], [56, 56, 112, 112]])
    mirrored = mirror(frame)
    np.testing.assert_allclose(mirrored[1], [112, 56, 168, 112])
    assert box_lib.nonempty(mirrored).all()  # the sides are in order, unlike the published code's
    np.testing.assert_allclose(mirror(mirrored), frame)
