"""`Detections` and `PhraseDetections` from the raw arrays of their predictors."""

import numpy as np
import pytest

from sm_jax.detections import Detections, PhraseDetections
from sm_jax.requests import Request, RequestBank


def test_turned_views_are_told_in_terms_of_the_query():
    """A query of 40x20 found by its view turned by 90 degrees, twice as large."""
    template = np.zeros((4, 1, 1, 1), np.float32)
    bank = RequestBank([Request("a", template, "rotation90", (20, 40))])
    _, _, request_of, view_of = bank.templates()
    # the turned view is 20 wide and 40 high; at twice the size it covers x 100..140, y 50..130
    corners = np.array([[[100, 50], [140, 50], [100, 130], [140, 130]]], np.float32)
    found = {
        "boxes": np.array([[100, 50, 140, 130]], np.float32),
        "scores": np.array([0.5], np.float32),
        "labels": np.array([0]),
        "corners": corners,
        "anchors": np.zeros((1, 4), np.float32),
        "template": np.array([1]),
    }
    got = Detections.build((200, 300), found, bank, request_of, view_of)
    np.testing.assert_allclose(got.angles, [90], atol=1e-4)
    np.testing.assert_allclose(got.scales, [2], rtol=1e-6)
    # turned counter-clockwise, the query's top left comes to lie at the bottom left
    np.testing.assert_allclose(got.corners[0], [[100, 130], [100, 50], [140, 50], [140, 130]], atol=1e-4)


def test_best_first_over_labels():
    template = np.zeros((1, 1, 1, 1), np.float32)
    bank = RequestBank([Request("a", template, "", (10, 10)), Request("b", template, "", (10, 10))])
    _, _, request_of, view_of = bank.templates()
    corners = np.tile(np.array([[0, 0], [1, 0], [0, 1], [1, 1]], np.float32), (3, 1, 1))
    found = {
        "boxes": np.arange(12, dtype=np.float32).reshape(3, 4),
        "scores": np.array([0.5, 0.2, 0.9], np.float32),
        "labels": np.array([0, 0, 1]),
        "corners": corners,
        "anchors": np.zeros((3, 4), np.float32),
        "template": np.array([0, 0, 1]),
    }
    got = Detections.build((9, 9), found, bank, request_of, view_of)
    assert got.labels == ["b", "a", "a"] and got.queries.tolist() == [1, 0, 0]
    assert [d["score"] for d in got.to_dict()["detections"]] == [0.9, 0.5, 0.2]


@pytest.mark.parametrize(
    ("threshold", "limits", "expected"),
    [(0.5, {}, [1, 2, 0, 3]), (0.6, {}, [1, 2, 0]), (0.6, {"top_k": 2}, [1, 2]), (0.9, {}, []),
     (0.5, {"max_detections": 3}, [1, 2, 0]), (-1.0, {}, [1, 2, 0, 3, 4])],
)  # fmt: skip
def test_the_answer_to_one_phrase(threshold, limits, expected):
    """Best product of conf and align first, of equals the first; limits after the threshold."""
    conf, align = np.float32([0.9, 0.8, 0.8, 0.6, 0.99]), np.float32([[0.7, 0.9, 0.9, 0.95, 0.1]])
    boxes = np.arange(20, dtype=np.float32).reshape(5, 4)
    bank = RequestBank([Request("a", np.zeros(3, np.float32), text="a")])
    options = {"threshold": threshold, "max_detections": 100, "top_k": None} | limits
    found = PhraseDetections.build((90, 90), boxes, conf, align, bank, **options)
    assert (found.boxes[:, 0] / 4).tolist() == expected and found.proposals == 5
    np.testing.assert_allclose(found.scores, (conf * align[0])[expected])
