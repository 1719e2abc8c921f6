"""Detection by request against numbers worked out by hand, and properties that hold for any detections."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sm_jax.evaluators import request_metrics as metrics
from sm_jax.evaluators.request_metrics import Outcome, Point, RequestScore

TRUTH = np.float32([[0, 0, 10, 10], [20, 0, 30, 10]])


def _outcome(pairs, positives):
    ranked = sorted(pairs, key=lambda pair: -pair[0])
    return Outcome(
        np.array([s for s, _ in ranked], np.float32), np.array([m for _, m in ranked], np.int8), positives
    )


def test_the_limit_of_small_boxes_is_lower():
    boxes = np.float32([[0, 0, 10, 10], [5, 5, 25, 45], [0, 0, 100, 100]])
    assert metrics.iou_limits(boxes).tolist() == [0.5, 0.5, 0.5]
    # 100 / 400; 800 / (30 * 50) = 0.533; 10000 / 12100
    assert metrics.iou_limits(boxes, rule="ilsvrc").tolist() == [0.25, 0.5, 0.5]
    assert metrics.iou_limits(np.zeros((0, 4))).shape == (0,)
    with pytest.raises(ValueError, match="fixed"):
        metrics.iou_limits(boxes, rule="loose")


def test_a_detection_takes_the_best_free_box():
    boxes = [[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 9], [50, 50, 60, 60]]
    found = metrics.match(boxes, [0.6, 0.9, 0.5, 0.7], TRUTH)
    # by score: (1, 0, 11, 10) takes the first box; (50 ...) is wrong; the exact one comes too late; the third
    np.testing.assert_array_equal(found.matches, [1, 0, 0, 1])
    np.testing.assert_array_equal(found.scores, np.float32([0.9, 0.7, 0.6, 0.5]))
    assert found.positives == 2


def test_a_second_detection_takes_the_neighbour_if_it_overlaps_enough():
    truth = [[0, 0, 10, 10], [0, 2, 10, 12]]
    found = metrics.match([[0, 0, 10, 10], [0, 0, 10, 10]], [0.9, 0.8], truth)
    np.testing.assert_array_equal(found.matches, [1, 1])  # IoU with the second box 80 / 120


def test_an_iou_of_exactly_a_half_is_no_match():
    half = [[0, 0, 10, 5]]
    assert metrics.match(half, [1.0], TRUTH).matches.tolist() == [0]
    assert metrics.match(half, [1.0], TRUTH, rule="ilsvrc").matches.tolist() == [1]  # above 0.25


def test_difficult_boxes_count_neither_way():
    found = metrics.match(
        [[0, 0, 10, 10], [20, 0, 30, 10], [20, 0, 30, 10]], [0.9, 0.8, 0.7], TRUTH, difficult=[False, True]
    )
    assert found.matches.tolist() == [1, -1, -1] and found.positives == 1
    ranked = metrics.curve([found])
    assert ranked.scores.tolist() == [np.float32(0.9)] and metrics.request_ap(ranked) == 1.0


def test_nothing_detected_and_nothing_there():
    empty = metrics.match(np.zeros((0, 4)), [], TRUTH)
    assert metrics.request_ap(metrics.curve([empty])) == 0.0
    assert metrics.at_threshold(metrics.curve([empty]), 0.5) == (0.0, 0.0, 0.0)
    assert np.isnan(metrics.best_threshold(metrics.curve([empty])))
    absent = metrics.match([[0, 0, 9, 9]], [0.5], np.zeros((0, 4)))
    assert absent.matches.tolist() == [0] and absent.positives == 0
    assert np.isnan(metrics.request_ap(metrics.curve([absent])))
    assert np.isnan(metrics.request_ap(metrics.curve([])))
    assert all(np.isnan(metrics.at_threshold(metrics.curve([absent]), 0.1)))


@pytest.mark.parametrize("scores", [[0.5, 0.4], [float("nan")], [float("inf")]])
def test_scores_that_cannot_be_ranked_are_refused(scores):
    with pytest.raises(ValueError, match="finite scores"):
        metrics.match([[0, 0, 9, 9]], scores, TRUTH)


def test_average_precision_of_two_images_by_hand():
    first = _outcome([(0.9, 1), (0.6, 0), (0.3, 1)], positives=2)
    second = _outcome([(0.8, 0), (0.5, 1)], positives=2)
    ranked = metrics.curve([first, second])
    # right: 1 1 1 2 3 of 1 2 3 4 5
    np.testing.assert_allclose(ranked.precision, [1, 1 / 2, 1 / 3, 2 / 4, 3 / 5])
    np.testing.assert_allclose(ranked.recall, [0.25, 0.25, 0.25, 0.5, 0.75])
    # envelope: 1 up to 0.25, 3/5 up to 0.75, nothing after
    assert metrics.request_ap(ranked) == pytest.approx(0.25 * 1 + 0.5 * 0.6)
    assert metrics.at_threshold(ranked, 0.5) == pytest.approx((1 / 3, 0.25, 2 / 7))  # 0.5 is not above 0.5
    assert metrics.at_threshold(ranked, 0.95) == (0, 0, 0)
    # F1: 2/5 of 1 found ... 2 * 3 / (5 + 4) = 2/3 with all five
    assert metrics.best_threshold(ranked) < 0.3 and metrics.best_threshold(ranked) == pytest.approx(0.3)


def test_equal_scores_come_all_or_not_at_all():
    ranked = metrics.curve([_outcome([(0.5, 1), (0.5, 0), (0.4, 1)], positives=2)])
    np.testing.assert_allclose(ranked.precision, [1 / 2, 2 / 3])
    assert metrics.request_ap(ranked) == pytest.approx(2 / 3)


def test_the_best_threshold_is_half_way_to_the_next_score():
    ranked = metrics.curve([_outcome([(0.75, 1), (0.25, 0)], positives=1)])
    assert metrics.best_threshold(ranked) == 0.5
    near = np.nextafter(np.float32(0.75), np.float32(0))
    ranked = metrics.curve([_outcome([(0.75, 1), (near, 0)], positives=1)])
    assert metrics.at_threshold(ranked, metrics.best_threshold(ranked)).f1 == 1.0
    only_wrong = metrics.curve([_outcome([(0.75, 0)], positives=1)])
    assert np.isnan(metrics.best_threshold(only_wrong))


def _score(label, ap, point, own, validation_ap, validation_f1):
    return RequestScore(label, ap, Point(*point), Point(*own), 0.5, validation_ap, validation_f1)


def test_classes_and_their_means_by_hand():
    nan = float("nan")
    scores = [
        _score(0, 0.2, (0.4, 0.2, 0.27), (0.5, 0.3, 0.4), 0.3, 0.9),
        _score(0, 0.6, (0.8, 0.6, 0.69), (0.7, 0.5, 0.6), 0.1, 0.2),
        _score(1, 0.5, (1.0, 0.5, 0.67), (1.0, 0.5, 0.67), nan, nan),  # not in the validation images
        _score(1, nan, (nan, nan, nan), (nan, nan, nan), 1.0, 1.0),  # alone in the test images
        _score(2, nan, (nan, nan, nan), (nan, nan, nan), 1.0, 1.0),
    ]
    classes = metrics.score_classes(scores)
    assert list(classes) == [0, 1]
    # top and best choose the first request of class 0 (validation), the oracle the second (test)
    np.testing.assert_allclose(classes[0], [0.4, 0.2, 0.4, 0.6, 0.4, 0.4, 0.2, 0.6, 0.4, 0.8, 0.6])
    np.testing.assert_allclose(classes[1], [0.5, nan, nan, 1.0, 0.5, nan, nan, 1.0, 0.5, 1.0, 0.5])
    # where a class has no choice, the mean is over the others
    np.testing.assert_allclose(
        metrics.summarize(classes), [0.45, 0.2, 0.4, 0.8, 0.45, 0.4, 0.2, 0.8, 0.45, 0.9, 0.55]
    )
    assert all(np.isnan(metrics.summarize({})))


def test_a_request_is_scored_at_its_own_threshold_too():
    test = [_outcome([(0.9, 1), (0.45, 1), (0.2, 0)], positives=2)]
    validation = [_outcome([(0.6, 1), (0.4, 1), (0.2, 0)], positives=2)]
    score = metrics.score_request(3, test, validation, threshold=0.5)
    assert (score.label, score.ap, score.validation_ap) == (3, 1.0, 1.0)
    assert score.point == pytest.approx((1.0, 0.5, 2 / 3)) and score.validation_f1 == pytest.approx(2 / 3)
    assert score.own_threshold == pytest.approx(0.3) and score.own_point == (1.0, 1.0, 1.0)
    without = metrics.score_request(3, test, [], threshold=0.5)
    assert without.own_threshold == 0.5 and without.own_point == without.point


MATCHES = st.lists(st.tuples(st.integers(1, 20), st.sampled_from([-1, 0, 1])), max_size=12)
IMAGES = st.lists(MATCHES, min_size=1, max_size=5)


def _images(images):
    return [
        _outcome([(s / 20, m) for s, m in pairs], max(1, sum(m == 1 for _, m in pairs))) for pairs in images
    ]


@settings(deadline=None, max_examples=150)
@given(IMAGES, st.randoms(use_true_random=False))
def test_the_order_of_images_does_not_matter(images, random):
    outcomes = _images(images)
    mixed = random.sample(outcomes, len(outcomes))
    before, after = metrics.curve(outcomes), metrics.curve(mixed)
    assert metrics.request_ap(before) == metrics.request_ap(after)
    np.testing.assert_equal(metrics.best_threshold(before), metrics.best_threshold(after))


@settings(deadline=None, max_examples=150)
@given(IMAGES, st.integers(1, 20))
def test_a_wrong_detection_never_raises_the_average_precision(images, score):
    outcomes = _images(images)
    worse = [*outcomes, _outcome([(score / 20, 0)], positives=0)]
    assert metrics.request_ap(metrics.curve(worse)) <= metrics.request_ap(metrics.curve(outcomes)) + 1e-12


@settings(deadline=None, max_examples=100)
@given(IMAGES)
def test_no_threshold_is_better_than_the_best_one(images):
    ranked = metrics.curve(_images(images))
    best = metrics.best_threshold(ranked)
    others = [metrics.at_threshold(ranked, float(score) - 1e-3).f1 for score in ranked.scores]
    if np.isnan(best):
        assert not any(others)
    else:
        assert metrics.at_threshold(ranked, best).f1 == pytest.approx(max(others))
