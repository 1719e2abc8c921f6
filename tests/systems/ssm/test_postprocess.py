"""Voting, merging and grouping: hand-made values, recorded ones, readable references, and odd inputs."""

import numpy as np
import pytest

from sm_jax import boxes as box_ops
from sm_jax.errors import ConfigError
from sm_jax.systems.ssm import postprocess
from sm_jax.systems.ssm.postprocess import decode, detect, group_rectangles, merge_released, vote
from tests import goldens


def voted_reference(boxes, coverage, iterations=1, threshold=0.5):
    """The rule cell by cell; cells below the threshold become box 0 with coverage 1."""
    height, width = coverage.shape
    for _ in range(iterations):
        new_boxes, new_coverage = np.zeros((height, width, 4)), np.ones((height, width))
        for row, column in np.argwhere(coverage > threshold):
            own = boxes[row, column]
            weight, weighted, number = coverage[row, column], own * coverage[row, column], 1
            x1, x2 = (min(max(int(own[k] / 16), 0), width - 1) for k in (0, 2))
            y1, y2 = (min(max(int(own[k] / 16), 0), height - 1) for k in (1, 3))
            for y in range(y1, y2 + 1):
                for x in range(x1, x2 + 1):
                    overlap = box_ops.iou(own[None], boxes[y, x][None])[0, 0]
                    if coverage[y, x] > threshold and overlap > 0.4:
                        weighted = weighted + boxes[y, x] * coverage[y, x]
                        weight, number = weight + coverage[y, x], number + 1
            new_boxes[row, column], new_coverage[row, column] = weighted / weight, weight / number
        boxes, coverage = new_boxes, new_coverage
    return boxes, coverage


def on_grid(shape, voted):
    """Boxes and coverage of all cells from those of `vote`."""
    boxes, coverage = np.zeros((*shape, 4)), np.ones(shape)
    rows, columns = voted[2].T
    boxes[rows, columns], coverage[rows, columns] = voted[:2]
    return boxes, coverage


def noisy(seed=0, shape=(8, 10)):
    """Two objects whose cells know them roughly, and noise elsewhere."""
    rng = np.random.default_rng(seed)
    coverage = 0.6 * rng.random(shape)
    boxes = rng.uniform(-20, 180, (*shape, 4))
    boxes[..., 2:] = boxes[..., :2] + rng.uniform(5, 60, (*shape, 2))
    for box in ([20, 30, 70, 100], [90.0, 5, 150, 120]):
        x1, y1, x2, y2 = (int(v / 16) for v in box)
        coverage[y1 : y2 + 1, x1 : x2 + 1] = rng.uniform(0.45, 1, (y2 - y1 + 1, x2 - x1 + 1))
        boxes[y1 : y2 + 1, x1 : x2 + 1] = box + rng.normal(0, 4, (y2 - y1 + 1, x2 - x1 + 1, 4))
    return coverage, boxes


def test_decode_is_the_inverse_of_the_offsets():
    """SSM specification, sec. 8, no. 2."""
    offsets = np.zeros((1, 32, 32, 4), np.float32)
    offsets[0, 3, 6], offsets[0, 8, 11], offsets[0, 5, 7] = (
        [4, 12, 84, 92],
        [-76, -68, 4, 12],
        [-12, -20, 68, 60],
    )
    boxes = decode(offsets)
    for cell in ((3, 6), (8, 11), (5, 7)):
        np.testing.assert_array_equal(boxes[0][cell], [100, 60, 180, 140])
    assert boxes.dtype == np.float32 and boxes.shape == (1, 32, 32, 4)


def test_voting_hand_made_values():
    """SSM specification, sec. 8, no. 4."""
    coverage, boxes = np.zeros((8, 8)), np.zeros((8, 8, 4))
    coverage[2, 2], boxes[2, 2] = 0.9, [0, 0, 100, 100]
    coverage[3, 3], boxes[3, 3] = 0.6, [10, 0, 110, 100]
    coverage[4, 4], boxes[4, 4] = 0.5, [0, 0, 100, 100]  # not above the threshold
    found, scores, cells = vote(boxes, coverage)
    assert cells.tolist() == [[2, 2], [3, 3]]
    np.testing.assert_allclose(found[0], [2.5, 0, 102.5, 100])
    np.testing.assert_allclose(scores[0], 0.8)


@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_voting_is_the_reference(iterations):
    for seed in range(4):
        coverage, boxes = noisy(seed)
        got = on_grid(coverage.shape, vote(boxes, coverage, iterations=iterations))
        want = voted_reference(boxes, coverage, iterations)
        if iterations == 0:
            want = [np.where((coverage > 0.5)[..., None], boxes, 0), np.where(coverage > 0.5, coverage, 1)]
        np.testing.assert_allclose(got[0], want[0], atol=1e-9)
        np.testing.assert_allclose(got[1], want[1], atol=1e-12)


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("path", goldens.params("matching", "ssm_*.npz"))
def test_golden_voting(path, iterations):
    stored = goldens.load(path)
    coverage = stored["pred_coverage"][0]
    boxes = decode(stored["pred_offsets"].transpose(1, 2, 0))
    found, scores = on_grid(coverage.shape, vote(boxes, coverage, iterations=iterations))
    got = np.concatenate([found, scores[..., None]], axis=-1).transpose(1, 0, 2).reshape(-1, 5)
    np.testing.assert_allclose(got, stored[f"voted_iter{iterations}"], atol=1e-6)
    assert (scores < 1).any()


@pytest.mark.parametrize("path", goldens.params("matching", "ssm_*.npz"))
def test_golden_merging(path):
    stored = goldens.load(path)
    voted = stored["voted_iter1"]
    voted = voted[(voted[:, :4] > 0).all(1)]
    got = merge_released(voted[:, :4], voted[:, 4])
    np.testing.assert_allclose(got, stored["union_iter1"].reshape(-1, 6), atol=1e-6)
    boxes, scores = detect(
        stored["pred_coverage"][0], decode(stored["pred_offsets"].transpose(1, 2, 0)), method="released"
    )
    order = np.argsort(-got[:, 4])
    np.testing.assert_allclose(boxes, got[order, :4], atol=1e-3)
    np.testing.assert_allclose(scores, got[order, 4], rtol=1e-5)


@pytest.mark.parametrize("path", goldens.params("matching", "ssm_*.npz"))
def test_golden_grouping(path):
    stored = goldens.load(path)
    rectangles, weights = group_rectangles(stored["group_in"], group_threshold=1, eps=0.2)
    np.testing.assert_array_equal(rectangles, stored["group_rects"].reshape(-1, 4))
    np.testing.assert_array_equal(weights, stored["group_weights"].ravel())


def test_grouping_is_that_of_opencv_where_it_is_installed():
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    for threshold, eps in ((1, 0.2), (2, 0.05), (3, 0.02), (1, 0.6)):
        centres = rng.integers(0, 200, (8, 4)) + [0, 0, 20, 20]
        rectangles = np.repeat(centres, rng.integers(1, 9, 8), axis=0)
        rectangles = rectangles + rng.integers(-4, 5, rectangles.shape)
        want, weights = cv2.groupRectangles(rectangles.tolist(), threshold, eps)
        got, mine = group_rectangles(rectangles, group_threshold=threshold, eps=eps)
        np.testing.assert_array_equal(got, np.reshape(want, (-1, 4)))
        np.testing.assert_array_equal(mine, np.ravel(weights))


def test_grouping_rules():
    base = np.array([10, 10, 100, 100])
    rectangles = np.stack([base, base + [4, 0, 0, 0], base + [8, 0, 0, 0], [300, 300, 50, 50], base + 1])
    got, weights = group_rectangles(rectangles, group_threshold=1, eps=0.05)  # within 5: a chain, one alone
    assert weights.tolist() == [4] and got.tolist() == [[13, 10, 100, 100]]  # 13.25
    assert len(group_rectangles(rectangles, group_threshold=4, eps=0.05)[0]) == 0
    same, ones = group_rectangles(rectangles, group_threshold=0)
    assert (same == rectangles).all() and ones.tolist() == [1] * 5
    # A small group inside a strong one is dropped, beside it kept.
    inside, beside = np.array([[30, 30, 40, 40]] * 2), np.array([[200, 30, 40, 40]] * 2)
    got, weights = group_rectangles(np.concatenate([[base] * 4, inside, beside]), group_threshold=1)
    assert weights.tolist() == [4, 2] and got[1].tolist() == [200, 30, 40, 40]
    # Not much stronger, it must be small; and it may stand out by a margin of eps.
    for outer, inner, kept in ((3, 3, [3, 3]), (4, 3, [4]), (4, 4, [4, 4]), (3, 2, [3])):
        rectangles = np.concatenate([[base] * outer, [[30, 30, 40, 40]] * inner])
        assert group_rectangles(rectangles, group_threshold=1)[1].tolist() == kept
    rectangles = np.concatenate([[base] * 5, [[-5, 30, 40, 40]] * 2])
    assert group_rectangles(rectangles, group_threshold=1, eps=0.2)[1].tolist() == [5]
    assert group_rectangles(rectangles, group_threshold=1, eps=0.1)[1].tolist() == [5, 2]
    assert group_rectangles(np.zeros((0, 4), int))[0].shape == (0, 4)


def test_default_finds_both_objects_once():
    coverage, boxes = noisy()
    found, scores = detect(coverage, boxes)
    assert found.dtype == scores.dtype == np.float32
    assert (np.diff(scores) <= 0).all()
    assert (box_ops.iou(found[:2], np.float32([[20, 30, 70, 100], [90, 5, 150, 120]])).max(0) > 0.8).all()
    overlaps = box_ops.iou(found, found)[np.triu_indices(len(found), 1)]
    assert (overlaps <= 0.5).all()
    assert (found >= 0).all() and (found[:, 2] <= 160).all() and (found[:, 3] <= 128).all()


def test_clipping_keeps_what_the_released_rule_loses():
    coverage, boxes = np.zeros((8, 8)), np.zeros((8, 8, 4))
    coverage[:4, :4] = 0.9
    boxes[:4, :4] = [-3, -2, 60, 62]
    boxes = boxes + np.random.default_rng(0).normal(0, 0.1, boxes.shape)
    found, scores = detect(coverage, boxes, size=(100, 50))
    np.testing.assert_allclose(found, [[0, 0, 50, 62]], atol=0.2)
    np.testing.assert_allclose(scores, [0.9], atol=1e-6)
    assert len(detect(coverage, boxes, method="released")[0]) == 0
    boxes += 10
    np.testing.assert_allclose(detect(coverage, boxes, method="released")[0], [[7, 8, 70, 72]], atol=0.5)


def test_detectnet_rule():
    coverage, boxes = np.zeros((8, 8)), np.zeros((8, 8, 4))
    coverage[0, :5], boxes[0, :5] = 0.6, [10.9, 10, 60, 60.5]
    coverage[1, :6], boxes[1, :6] = 0.9, [70, 10, 120, 31]  # 21 pixels high
    coverage[2, :3], boxes[2, :3] = 0.9, [10, 70, 60, 120]  # no more than 3
    found, scores = detect(coverage, boxes, method="grouprect", threshold=0.6)
    np.testing.assert_allclose(found, [[10, 10, 60, 60]])
    np.testing.assert_allclose(scores, [np.log(5)], rtol=1e-6)
    many = np.float32([[10 + 60 * i, 10, 50 + 60 * i, 50] for i in range(60)])
    coverage, boxes = np.ones((60, 4)), np.repeat(many[:, None], 4, axis=1)
    assert len(detect(coverage, boxes, method="grouprect")[0]) == postprocess.MAX_BOXES


@pytest.mark.parametrize("kind", postprocess.METHODS)
def test_no_detections_are_empty_arrays(kind):
    boxes, scores = detect(np.zeros((4, 5)), np.zeros((4, 5, 4)), method=kind)
    assert boxes.shape == (0, 4) and scores.shape == (0,)


def test_boxes_without_area_and_unknown_rules():
    coverage, boxes = np.ones((4, 5)), np.zeros((4, 5, 4))
    assert len(detect(coverage, boxes)[0]) == 0
    with pytest.raises(ConfigError, match="method='relased' is not known; did you mean 'released'"):
        detect(coverage, boxes, method="relased")
