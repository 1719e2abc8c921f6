"""From coverage and boxes of cells to detections of an image."""

import numpy as np
import pytest

from sm_jax import windows
from sm_jax.coverage_search import Options, Search
from sm_jax.requests import Request, RequestBank

TEMPLATE = np.zeros((1, 1, 1, 4), np.float32)
BANK = RequestBank([Request("a", TEMPLATE), Request("b", TEMPLATE), Request("a", TEMPLATE)])
OBJECT = [40, 40, 88, 88]


def search(coverage, boxes, *, threshold=0.5, method="default"):
    layout = windows.fitted((128, 64), (128, 128))
    one = Search(layout, Options(BANK, threshold, 100, 0.5, method))
    one.add(layout.corners[0], coverage, boxes)
    return one.result()


@pytest.fixture
def answers():
    """Nothing covered; every cell's box is the object."""
    return np.full((3, 8, 8), 0.01, np.float32), np.tile(np.float32(OBJECT), (3, 8, 8, 1))


@pytest.mark.parametrize("column,count", [(0, 0), (1, 0), (2, 1), (5, 1), (6, 0)])
def test_cells_of_filling_are_no_answers_wherever_their_boxes_point(answers, column, count):
    """The image lies in the columns 2..5."""
    coverage, boxes = answers
    coverage[0, 3, column] = 0.9
    found = search(coverage, boxes)
    assert len(found) == count and (found.best_scores["a"] > 0.5) == count
    if count:
        assert found.boxes.tolist() == [[8, 40, 56, 88]] and found.labels == ["a"]


def test_the_request_of_a_detection_is_the_one_behind_its_best_cell(answers):
    coverage, boxes = answers
    coverage[0, 2:6, 2:6], coverage[2, 2:6, 2:6] = 0.6, 0.55
    assert search(coverage, boxes).queries.tolist() == [0]
    coverage[2, 3, 3] = 0.95
    found = search(coverage, boxes)
    assert found.queries.tolist() == [2] and found.best_scores == {
        "a": pytest.approx(0.95),
        "b": pytest.approx(0.01),
    }
    assert found.coverage["a"].shape == (8, 4) and found.coverage["a"][3, 1] == np.float32(0.95)


def test_labels_do_not_compete(answers):
    coverage, boxes = answers
    coverage[:2, 2:6, 2:6] = 0.8
    assert sorted(search(coverage, boxes).labels) == ["a", "b"]


def test_a_box_outside_of_the_image_is_dropped(answers):
    coverage, boxes = answers
    coverage[1, 3, 3], boxes[1, 3, 3] = 0.9, [0, 0, 30, 128]  # all in the filling
    found = search(coverage, boxes)
    assert not len(found) and found.best_scores["b"] == pytest.approx(0.9)


@pytest.mark.parametrize("threshold", [0.5, 0.0, -1.0])
@pytest.mark.parametrize(
    "method,low,high", [("released", 2.0, 16 * 0.8), ("grouprect", 1.5, np.log(16) + 1e-6)]
)
def test_other_post_processing_has_scores_of_its_own(answers, method, low, high, threshold):
    coverage, boxes = answers
    coverage[1, 2:6, 2:6], coverage[coverage < 0.1] = 0.8, 0.0
    boxes[1] += np.linspace(0, 0.5, 64).reshape(8, 8, 1) * np.float32([1, -1, 0.5, 2])  # no two alike
    found = search(coverage, boxes, method=method, threshold=threshold)
    assert found.labels == ["b"] and low < found.scores[0] <= high and found.queries.tolist() == [1]
    np.testing.assert_allclose(found.boxes, [[8, 40, 56, 88]], atol=2)
    assert found.best_scores["b"] == pytest.approx(0.8)
