"""The VOC metric against recorded numbers, hand-counted cases and its own invariants."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sm_jax.evaluators.detection import average_precision, voc
from tests import goldens


def _images(g):
    def split(prefix, keys):
        image = g[f"{prefix}_image"]
        return [{k: g[f"{prefix}_{k}"][image == i] for k in keys} for i in range(len(g["image_hw"]))]

    return split("det", ("boxes", "scores", "labels")), split("gt", ("boxes", "labels", "difficult"))


@pytest.mark.parametrize("path", goldens.params("os2d", "voc*.npz"))
def test_golden_voc(path):
    g = goldens.load(path)
    detections, truth = _images(g)
    cases = [m for m in (re.fullmatch(r"(iou(\d+)(_voc07)?)_map", key) for key in g) if m]
    assert cases
    for case in cases:
        name, threshold = case[1], int(case[2]) / 100
        points = "11" if case[3] else "all"
        ours = voc(detections, truth, iou_threshold=threshold, points=points)
        for key in ("map", "map_weighted", "recall"):
            np.testing.assert_allclose(
                getattr(ours, key), g[f"{name}_{key}"], atol=1e-9, err_msg=f"{name} {key}"
            )
        published = voc(detections, truth, iou_threshold=threshold, points=points, joint="published")
        np.testing.assert_allclose(ours.ap_joint, g[f"{name}_ap_joint_classes_aligned"], atol=1e-9)
        np.testing.assert_allclose(published.ap_joint, g[f"{name}_ap_joint_classes"], atol=1e-9)
        for key, values in (("ap", "ap_per_class"), ("recall_per_class", "recall_per_class")):
            want = g[f"{name}_{values}"]
            got = np.array([getattr(ours, key).get(c, np.nan) for c in range(len(want))])
            np.testing.assert_allclose(got, want, atol=1e-9, err_msg=f"{name} {key}")
        n_pos = g[f"{name}_n_pos"]
        assert [ours.n_pos.get(c, 0) for c in range(len(n_pos))] == n_pos.tolist()
        for key in g:
            if curve := re.fullmatch(rf"{name}_(precision|recall)_class(\d+)", key):
                got = ours.curves[int(curve[2])][curve[1] == "recall"]
                np.testing.assert_allclose(got, g[key], atol=1e-9, err_msg=key)


def _image(boxes, labels, scores=None, difficult=None):
    image = {"boxes": np.array(boxes, np.float32).reshape(-1, 4), "labels": np.array(labels, np.int64)}
    if scores is not None:
        image["scores"] = np.array(scores, np.float32)
    if difficult is not None:
        image["difficult"] = np.array(difficult, bool)
    return image


def test_hand_counted():
    truth = [_image([[0, 0, 10, 10], [50, 50, 60, 60]], [1, 1], difficult=[False, True])]
    found = [
        _image(
            [[0, 0, 10, 10], [0, 0, 10, 11], [50, 50, 60, 60], [80, 80, 90, 90]],
            [1] * 4,
            [0.9, 0.8, 0.7, 0.6],
        )
    ]
    result = voc(found, truth)
    np.testing.assert_allclose(result.curves[1][0], [1, 1 / 2, 1 / 2, 1 / 3])  # hit, repeated, ignored, miss
    assert (result.map, result.recall, result.n_pos) == (1.0, 1.0, {1: 1})


def test_class_without_detection_has_ap_zero_and_class_without_boxes_is_undefined():
    truth = [_image([[0, 0, 10, 10]], [1])]
    result = voc([_image([[0, 0, 10, 10]], [2], [0.5])], truth)
    assert result.ap[1] == 0.0 and np.isnan(result.ap[2]) and result.map == 0.0 and result.recall == 0.0


def test_nothing_at_all():
    empty = _image([], [], [])
    result = voc([empty], [_image([], [])])
    assert np.isnan(result.map) and np.isnan(result.ap_joint) and result.ap == {}


def test_pixel_is_added_before_the_iou():
    # 4x4 against 4x2 inside: 8/16 without the extra pixel, 15/25 with it.
    result = voc([_image([[0, 0, 4, 2]], [0], [1.0])], [_image([[0, 0, 4, 4]], [0])], iou_threshold=0.55)
    assert result.map == 1.0


def _three(scores):
    """Two objects of different classes; a hit, a miss and a hit, in the order of `scores`."""
    truth = [_image([[0, 0, 10, 10], [50, 50, 60, 60]], [0, 1])]
    boxes = [[0, 0, 10, 10], [80, 80, 90, 90], [50, 50, 60, 60]]
    return voc([_image(boxes, [0, 0, 1], scores)], truth)


@pytest.mark.parametrize(
    "scores,score,f1",
    [
        ((0.9, 0.8, 0.75), 0.75, 0.8),  # all three: precision 2/3, recall 1
        ((0.9, 0.25, 0.75), 0.75, 1.0),  # the miss comes last
        ((0.5, 0.5, 0.5), 0.5, 0.8),  # equal scores come together, not in the order that suits
        ((0.5, 0.5, 0.25), 0.25, 0.8),
    ],
)
def test_the_score_of_the_best_f1(scores, score, f1):
    result = _three(scores)
    assert result.best_score == score and result.best_f1 == pytest.approx(f1)


def test_the_score_of_the_best_f1_without_hits_or_boxes():
    truth, far = [_image([[0, 0, 10, 10]], [0])], [[80, 80, 90, 90], [60, 60, 70, 70]]
    result = voc([_image(far, [0, 0], [0.25, 0.5])], truth)
    assert (result.best_score, result.best_f1) == (0.5, 0.0)
    for result in (
        voc([_image(far, [0, 0], [0.25, 0.5])], [_image([], [])]),
        voc([_image([], [], [])], truth),
    ):
        assert np.isnan(result.best_score) and np.isnan(result.best_f1)


@pytest.mark.parametrize("options", [{"points": "7"}, {"joint": "wrong"}])
def test_bad_options(options):
    with pytest.raises(ValueError, match="must be"):
        voc([], [], **options)
    with pytest.raises(ValueError, match="1 images"):
        voc([_image([], [], [])], [])


@given(st.integers(0, 2**32 - 1), st.integers(1, 20))
def test_perfect_detections_score_one_and_any_order_of_images_is_the_same(seed, n):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 500, (n, 2)).astype(np.float32)
    boxes = np.concatenate([corner, corner + rng.uniform(5, 50, (n, 2)).astype(np.float32)], axis=1)
    labels, image = rng.integers(0, 3, n), rng.integers(0, 2, n)
    scores = rng.permutation(n) / n
    truth = [_image(boxes[image == i], labels[image == i]) for i in range(2)]
    noise = boxes + rng.normal(0, 4, boxes.shape).astype(np.float32)
    for candidate, exact in ((noise, False), (boxes, True)):
        found = [_image(candidate[image == i], labels[image == i], scores[image == i]) for i in range(2)]
        result, swapped = voc(found, truth), voc(found[::-1], truth[::-1])
        assert 0.0 <= result.map <= 1.0 and result.map == pytest.approx(swapped.map)
        assert result.ap_joint == pytest.approx(swapped.ap_joint)
        if exact and n == 1:
            assert result.map == 1.0


def test_average_precision_of_a_perfect_ranking_is_one():
    ones, recall = np.ones(5), np.arange(1, 6) / 5
    assert average_precision(ones, recall) == pytest.approx(1.0)
    assert average_precision(ones, recall, points="11") == pytest.approx(1.0)
