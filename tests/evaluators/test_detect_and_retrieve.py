"""Proposals that descriptors of mean colours name, on a data set in memory."""

import numpy as np
import pytest

from sm_jax.errors import ConfigError, DataError
from sm_jax.evaluators.detect_and_retrieve import DetectAndRetrieve, per_class
from sm_jax.systems.retrieval.predict import Describer
from tests.evaluators.fake_source import SIDE, Squares
from tests.systems.retrieval.fake import VARIABLES, describe

DESCRIBER = Describer(describe, side=16, scales=(1.0, 0.5), step=16, chunk=4)
PLACES = [(0, 16), (16, 16), (112, 64), (60, 0)]


def propose(image):
    """Every place where an object can be, with a worse copy of each, and one of too low a score."""
    del image
    boxes = np.array([[x, y, x + SIDE, y + SIDE] for x, y in PLACES], np.float32)
    scores = np.array([0.9, 0.8, 0.7, 0.05], np.float32)
    return np.concatenate([boxes + 2, boxes]), np.concatenate([scores - 0.02, scores])


def _evaluator(source=None, propose=propose, **options):
    options = {"iou_thresholds": (0.5,), "query_size": 16, **options}
    return DetectAndRetrieve(propose, DESCRIBER, Squares() if source is None else source, **options)


def _searched(evaluator):
    dict(evaluator.run(VARIABLES))
    return evaluator.detections


def test_the_right_class_ranks_first_in_every_image():
    evaluator = _evaluator(detector_iou=0.9)
    metrics = dict(evaluator.run(VARIABLES))
    assert set(metrics) == {"mAP@0.50", "mAPw@0.50", "recall@0.50", "AP_joint@0.50"}
    assert metrics["recall@0.50"] == 1.0 and metrics["mAP@0.50"] > 0.9
    assert set(evaluator.results[0.5].ap) == {0, 1}
    for found in evaluator.detections:
        assert set(found["labels"].tolist()) == {0, 1} and len(found["boxes"]) == len(found["scores"])
    assert evaluator.table().startswith("3 images\n")


def test_the_detector_is_cut_and_suppressed_first():
    (found,) = _searched(_evaluator(Squares(n=1), max_images=1))  # 2 of 8 boxes have too low a score
    assert len(found["boxes"]) == 2 * 2  # copies go, and of the two left places one; two classes
    (found,) = _searched(_evaluator(Squares(n=1), detector_iou=1.0, iou=1.0))
    assert len(found["boxes"]) == 2 * 6
    (found,) = _searched(_evaluator(Squares(n=1), proposals=1))
    assert len(found["boxes"]) == 2
    (found,) = _searched(_evaluator(Squares(n=1), detector_iou=1.0, iou=1.0, max_detections=3))
    assert len(found["boxes"]) == 2 * 3


def test_an_image_without_proposals_has_no_detections():
    nothing = lambda image: (np.zeros((0, 4), np.float32), np.zeros(0, np.float32))  # noqa: E731
    metrics = dict(_evaluator(propose=nothing).run(VARIABLES))
    assert metrics["recall@0.50"] == 0.0


def test_every_class_view_is_compared():
    plain = dict(_evaluator(detector_iou=0.9).run(VARIABLES))
    turned = dict(_evaluator(detector_iou=0.9, augmentation="rotation90").run(VARIABLES))
    assert turned == pytest.approx(plain, abs=1e-5)  # a colour does not turn
    boxes = np.array([[0, 0, 9, 9], [50, 0, 59, 9]], np.float32)
    scores = np.array([[0.1, 0.8, 0.3], [0.7, 0.2, 0.4]], np.float32)
    found = per_class(boxes, scores, [4, 4, 6], iou=0.3)
    assert found["labels"].tolist() == [4, 4, 6, 6]
    np.testing.assert_allclose(found["scores"], [0.8, 0.7, 0.4, 0.3])
    assert per_class(boxes, scores, [4, 4, 6], iou=0.3, score_threshold=0.4)["labels"].tolist() == [4, 4]


def test_the_same_views_as_separate_classes_give_the_same_after_suppression():
    """Scoring a box for every view and suppressing is taking the best view of each box."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 50, (12, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(10, 30, (12, 2))], axis=1).astype(np.float32)
    scores = rng.normal(size=(12, 3)).astype(np.float32)
    found = per_class(boxes, scores, [5, 5, 5], iou=0.3)
    apart = per_class(np.tile(boxes, (3, 1)), scores.T.reshape(-1, 1), [5], iou=0.3)
    np.testing.assert_array_equal(found["boxes"], apart["boxes"])
    np.testing.assert_array_equal(found["scores"], apart["scores"])


def test_what_cannot_be_used_is_one_line():
    with pytest.raises(DataError, match="no pictures"):
        _evaluator(Squares(n=0))
    with pytest.raises(ConfigError, match="no class view called 'spin'"):
        _evaluator(augmentation="spin")
    for options in ({"proposals": 0}, {"detector_iou": 2.0}, {"iou": -1.0}):
        with pytest.raises(ConfigError, match="eval: detector_iou="):
            _evaluator(**options)
