"""Dense flow: recorded numbers, each step on small examples, and what is missing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sm_jax import boxes as box_lib
from sm_jax.errors import DataError
from sm_jax.ops import flow as flows
from tests import goldens
from tests.ops.matching_examples import random_boxes

recorded = pytest.mark.parametrize("path", goldens.params("matching", "flow_*.npz"))


class Recorded:
    def __init__(self, path):
        self.data = goldens.load(path)
        best = self.data["in_conf"].argmax(axis=1)
        source, target = (box_lib.inclusive_to_half_open(self.data[f"in_boxes_{side}"]) for side in "ab")
        self.target_size = tuple(int(n) for n in self.data["in_size_b"].ravel())
        self.image = self.data["in_img_a"]
        self.arguments = source, target[best], self.data["in_conf"].max(axis=1), self.image.shape[:2]

    def flow(self, **options):
        return flows.dense_flow(*self.arguments, self.target_size, **options)

    def check(self, shift, suffix=""):
        for axis, name in enumerate(("out_vx", "out_vy")):
            np.testing.assert_allclose(shift[..., axis], self.data[name + suffix], atol=1e-6)


@recorded
def test_golden_dense_flow(path):
    pair = Recorded(path)
    released, ours = pair.flow(missing="clamp"), pair.flow()
    pair.check(released.shift, "_init")
    np.testing.assert_array_equal(ours.shift[ours.valid], released.shift[ours.valid])
    assert np.isnan(ours.shift[~ours.valid]).all() and not ours.confidence[~ours.valid].any()
    assert released.valid.all() and 0 < ours.valid.mean() < 1


@recorded
def test_golden_unique(path):
    pair = Recorded(path)
    kept = flows.unique(pair.flow(missing="clamp"), pair.target_size).valid
    np.testing.assert_array_equal(kept, pair.data["ref_keep_mask"])
    without = flows.unique(pair.flow(), pair.target_size).valid
    assert (kept & ~without).sum() <= 1 and not (without & ~kept).any()  # the one uncovered pixel


@recorded
def test_golden_lab(path):
    pair = Recorded(path)
    np.testing.assert_allclose(flows.lab(pair.image), pair.data["out_lab"], atol=1e-9)


@recorded
def test_golden_static_dynamic_filter(path):
    pair = Recorded(path)
    data = pair.data
    found = flows.smooth(data["in_sd_f"], data["in_sd_mask"], data["out_lab"])
    np.testing.assert_allclose(found, data["out_sd"], atol=1e-6)


@recorded
def test_golden_regularized_flow(path):
    pair = Recorded(path)
    found = flows.regularize(flows.unique(pair.flow(missing="clamp"), pair.target_size), pair.image)
    pair.check(found.shift)
    assert found.valid.all()


def test_a_box_maps_its_first_pixel_to_the_first_and_its_last_to_the_last():
    found = flows.dense_flow([[1, 2, 4, 5]], [[10, 0, 15, 9]], [0.7], (6, 5), (20, 20))
    assert found.valid.sum() == 9 and found.valid[2:5, 1:4].all()
    np.testing.assert_array_equal(found.shift[2, 1], [10 - 1, 0 - 2])
    np.testing.assert_array_equal(found.shift[4, 3], [14 - 3, 8 - 4])
    np.testing.assert_array_equal(found.shift[3, 2], [12 - 2, 4 - 3])
    np.testing.assert_array_equal(found.confidence[found.valid], 0.7)


def by_loops(source, target, confidence, source_size, target_size):
    """Pixel by pixel, the most confident box that covers it."""
    shift = np.full((*source_size, 2), np.nan)
    a, b = (box_lib.half_open_to_inclusive(np.asarray(boxes, np.float64)) for boxes in (source, target))
    for y, x in np.ndindex(*source_size):
        inside = (a[:, 0] <= x + 1) & (x + 1 <= a[:, 2]) & (a[:, 1] <= y + 1) & (y + 1 <= a[:, 3])
        if not inside.any():
            continue
        best = max(np.flatnonzero(inside), key=lambda k: (confidence[k], -k))
        for axis, (at, limit) in enumerate(((x + 1, target_size[1]), (y + 1, target_size[0]))):
            low, high = a[best, axis], a[best, axis + 2]
            new = b[best, axis] + (at - low) * ((b[best, axis + 2] - b[best, axis]) / (high - low))
            shift[y, x, axis] = min(max(np.floor(new + 0.5), 1), limit) - at
    return shift


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6))
def test_the_flow_equals_the_loops(seed):
    rng = np.random.default_rng(seed)
    sizes = (14, 11), (9, 16)
    source, target = (random_boxes(rng, 4, size) for size in sizes)
    source[0] += [-3, -2, 5, 6]  # beyond the image
    confidence = rng.choice([0.1, 0.2, 0.3], 4)
    found = flows.dense_flow(source, target, confidence, *sizes)
    np.testing.assert_array_equal(found.shift, by_loops(source, target, confidence, *sizes))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6))
def test_unique_keeps_the_most_confident_of_every_landing_place(seed):
    rng = np.random.default_rng(seed)
    valid = rng.random((4, 5)) < 0.8
    lands = np.stack([rng.integers(0, 3, (4, 5)), rng.integers(0, 2, (4, 5))], axis=-1)
    here = np.stack(np.meshgrid(np.arange(5), np.arange(4)), axis=-1)
    shift = np.where(valid[..., None], lands - here, np.nan)
    confidence = np.where(valid, rng.choice([0.1, 0.5], (4, 5)), 0)
    kept = flows.unique(flows.Flow(shift, confidence, valid), (2, 3))
    places = {}
    for y, x in np.argwhere(valid):
        place = tuple(lands[y, x])
        if place not in places or confidence[y, x] > confidence[places[place]]:
            places[place] = (y, x)
    assert sorted(map(tuple, np.argwhere(kept.valid))) == sorted(places.values())
    assert np.isnan(kept.shift[~kept.valid]).all() and not kept.confidence[~kept.valid].any()


def test_smooth_is_the_solution_of_its_dense_system():
    rng = np.random.default_rng(0)
    values, where, guidance = rng.normal(size=(4, 5)), rng.random((4, 5)) < 0.5, rng.normal(size=(4, 5, 3))
    number = np.arange(20).reshape(4, 5)
    edges = [(number[y, x], number[y, x + 1]) for y in range(4) for x in range(4)]
    edges += [(number[y, x], number[y + 1, x]) for y in range(3) for x in range(5)]

    def weights(of, sharpness):
        d = np.array([np.linalg.norm(of[i] - of[j]) for i, j in edges])
        scaled = (d - d.min()) / (d.max() - d.min()) if d.max() > d.min() else 0 * d
        return np.exp(-sharpness * scaled) + 1e-5

    u = np.ones((20, 1))
    for _ in range(2):
        laplacian = np.zeros((20, 20))
        products = weights(guidance.reshape(20, 3), 30) * weights(u, 15)
        for (i, j), weight in zip(edges, products, strict=True):
            laplacian[[i, j], [i, j]] += weight
            laplacian[[i, j], [j, i]] -= weight
        u = np.linalg.solve(np.diag(where.ravel() * 1.0) + 20 * laplacian, (where * values).reshape(20, 1))
    np.testing.assert_allclose(flows.smooth(values, where, guidance), u.reshape(4, 5), atol=1e-8)


def test_a_constant_stays_on_a_plain_image_of_any_size():
    for size in ((3, 4), (1, 4), (1, 1)):
        where = np.zeros(size, bool)
        where[0, 0] = True
        found = flows.smooth(np.where(where, 2.5, 0), where, np.zeros((*size, 3)))
        np.testing.assert_allclose(found, 2.5, rtol=1e-6)


@pytest.mark.parametrize("box", [[4, 1, 1, 4], [1, 1, 2, 4], [np.nan, 1, 4, 4], [0, 0, 0, 0]])
def test_degenerate_and_mirrored_boxes_are_left_out(box):
    good = [1, 1, 4, 4]
    for boxes in (([box], [good]), ([good], [box])):
        assert not flows.dense_flow(*boxes, [1.0], (6, 6), (6, 6)).valid.any()
    assert not flows.dense_flow([good], [good], [np.nan], (6, 6), (6, 6)).valid.any()


def test_without_matches_everything_is_missing_and_stays_so():
    none = flows.dense_flow(np.zeros((0, 4)), np.zeros((0, 4)), [], (3, 4), (5, 6))
    assert not none.valid.any() and np.isnan(none.shift).all()
    assert not flows.unique(none, (5, 6)).valid.any()
    assert not flows.regularize(none, np.zeros((3, 4, 3), np.uint8)).valid.any()
    outside = flows.dense_flow([[-9, -9, -2, -2]], [[0, 0, 3, 3]], [1.0], (3, 4), (5, 6))
    assert not outside.valid.any()


def test_arguments_that_do_not_go_together():
    with pytest.raises(DataError, match="2 source boxes, 1 target boxes and 1 confidences"):
        flows.dense_flow(np.ones((2, 4)), np.ones((1, 4)), [1], (3, 3), (3, 3))
    with pytest.raises(ValueError, match="missing"):
        flows.dense_flow(np.ones((1, 4)), np.ones((1, 4)), [1], (3, 3), (3, 3), missing="zero")
    with pytest.raises(DataError, match="nothing to spread"):
        flows.smooth(np.zeros((2, 2)), np.zeros((2, 2)), np.zeros((2, 2, 3)))
    with pytest.raises(DataError, match="one size"):
        flows.smooth(np.zeros((2, 2)), np.ones((2, 2)), np.zeros((3, 2, 3)))
