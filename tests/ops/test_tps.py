"""Thin-plate splines and the labels of regions: recorded numbers, properties, refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sm_jax import boxes as box_lib
from sm_jax import points
from sm_jax.errors import DataError
from sm_jax.ops import tps
from tests import goldens

recorded = pytest.mark.parametrize("path", goldens.params("matching", "tps_*.npz"))
relaxed = settings(deadline=None, max_examples=25)


class Recorded:
    def __init__(self, path):
        self.data = goldens.load(path)
        self.keypoints = [points.one_based_to_pixels(self.data[f"in_kp_{side}"]) for side in "ab"]
        self.source, self.target = (
            box_lib.inclusive_to_half_open(self.data[f"in_boxes_{side}"]) for side in "ab"
        )
        self.sizes = [tuple(int(n) for n in self.data[f"in_size_{side}"].ravel()) for side in "ab"]
        self.spline = tps.fit(*self.keypoints)


@recorded
def test_golden_mapping(path):
    pair = Recorded(path)
    found = points.pixels_to_one_based(tps.map_pixels(pair.spline, pair.sizes[0]))
    for axis, name in enumerate(("out_warp_x_raw", "out_warp_y_raw")):
        np.testing.assert_allclose(found[..., axis].ravel(), pair.data[name].ravel(), atol=1e-6)
    np.testing.assert_allclose(pair.spline(pair.keypoints[0]), pair.keypoints[1], atol=1e-9)


@recorded
def test_golden_true_boxes_and_overlaps(path):
    pair = Recorded(path)
    found = tps.true_boxes(pair.spline, pair.source, *pair.sizes)
    np.testing.assert_allclose(box_lib.half_open_to_inclusive(found), pair.data["out_gt_boxes"], atol=1e-6)
    distance = 1 - box_lib.iou(found, pair.target)
    np.testing.assert_allclose(distance, pair.data["out_one_minus_iou"], atol=1e-6)


@recorded
def test_golden_active_regions(path):
    pair = Recorded(path)
    found = np.flatnonzero(tps.active_regions(pair.source, pair.keypoints[0]))
    np.testing.assert_array_equal(found, pair.data["out_active"].ravel())


def by_definition(source, target, xy):
    """The textbook system, without shifting or scaling."""

    def radial(a, b):
        r = np.linalg.norm(a[:, None] - b[None], axis=2)
        return r**2 * np.log(np.where(r > 0, r, 1))

    ones = np.concatenate([np.ones((len(source), 1)), source], axis=1)
    system = np.block([[radial(source, source), ones], [ones.T, np.zeros((3, 3))]])
    solution = np.linalg.solve(system, np.concatenate([target, np.zeros((3, 2))]))
    return np.concatenate([radial(xy, source), np.ones((len(xy), 1)), xy], axis=1) @ solution


@relaxed
@given(st.integers(0, 10**6), st.integers(3, 9))
def test_the_spline_is_exact_and_that_of_the_definition(seed, count):
    rng = np.random.default_rng(seed)
    while True:
        source = rng.uniform(0, 100, (count, 2))
        extents = np.linalg.svd(source - source.mean(axis=0), compute_uv=False)
        if extents[1] > 0.05 * extents[0]:
            break
    target, xy = rng.uniform(0, 100, (count, 2)), rng.uniform(-20, 120, (2, 3, 2))
    spline = tps.fit(source, target)
    np.testing.assert_allclose(spline(source), target, atol=1e-6)
    expected = by_definition(source, target, xy.reshape(-1, 2)).reshape(2, 3, 2)
    np.testing.assert_allclose(spline(xy), expected, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(spline.weights.sum(axis=0), 0, atol=1e-6)


def test_an_affine_map_has_no_bend():
    source = np.array([[10.0, 10], [50, 12], [30, 70], [60, 60]])
    spline = tps.fit(source, source @ [[1.5, 0.2], [-0.1, 0.8]] + [3, 4])
    np.testing.assert_allclose(spline.weights, 0, atol=1e-12)
    np.testing.assert_allclose(spline([1.0, 2.0]), [1.5 - 0.2 + 3, 0.2 + 1.6 + 4])


GOOD = np.array([[10.0, 10], [50, 12], [30, 70], [60, 60]])


@pytest.mark.parametrize("absent", [np.nan, -1, np.inf])
def test_absent_key_points_are_left_out(absent):
    target = GOOD + [3, 5]
    more_source = np.concatenate([GOOD, [[absent, absent], [20, 20]]])
    more_target = np.concatenate([target, [[7, 7], [absent, 9]]])
    spline = tps.fit(more_source, more_target)
    np.testing.assert_array_equal(spline.centres, GOOD)
    np.testing.assert_allclose(spline([1.0, 2.0]), [4, 7])
    with pytest.raises(DataError, match="2 key-points are in both images; .* at least 3"):
        tps.fit(np.concatenate([GOOD[:2], [[absent, 5]]]), target[:3])


def test_key_points_that_fix_no_spline():
    with pytest.raises(DataError, match="0 key-points"):
        tps.fit(np.zeros((0, 2)), np.zeros((0, 2)))
    line = np.array([[1.0, 1], [2, 3], [3, 5], [10, 19]])
    with pytest.raises(DataError, match="the 4 key-points lie on one line"):
        tps.fit(line, GOOD)
    with pytest.raises(DataError, match="on one line"):
        tps.fit(np.full((3, 2), 5.0), GOOD[:3])
    with pytest.raises(DataError, match="same place of the source"):
        tps.fit(GOOD[[0, 1, 2, 2]], GOOD)
    with pytest.raises(DataError, match="two lists of k x 2"):
        tps.fit(GOOD, GOOD[:3])


def test_true_boxes_of_a_shift_are_shifted_and_cut():
    spline = tps.fit(GOOD, GOOD + [7, -3])
    found = tps.true_boxes(spline, [[10, 20, 30, 50], [0, 0, 12, 12]], (80, 80), (60, 35))
    np.testing.assert_allclose(found, [[17, 17, 35, 47], [7, 0, 19, 9]])
    with pytest.raises(DataError, match="not finite"):
        tps.true_boxes(spline, [[np.nan, 0, 1, 1]], (80, 80), (60, 35))


def test_active_regions():
    keypoints = np.array([[10.5, 10.5], [50.5, 50.5], [np.nan, 3], [-1, -1]])
    boxes = [
        [5, 5, 55, 55],  # 1600 of 49 x 49 pixels: too little
        [8, 8, 45, 45],
        [20, 20, 40, 40],  # inside, but without a key-point
        [0, 0, 15, 15],
        [10, 10, 11, 11],  # a pixel has no area between its corners
        [45, 45, 8, 8],
    ]
    assert tps.active_regions(boxes, keypoints).tolist() == [False, True, False, False, False, False]
    assert not tps.active_regions(boxes, np.full((2, 2), np.nan)).any()
    assert not tps.active_regions(boxes, np.zeros((0, 2))).any()
    assert tps.active_regions(np.zeros((0, 4)), keypoints).shape == (0,)
