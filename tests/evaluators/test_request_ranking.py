"""`rank_requests` against an order worked out by hand."""

import numpy as np
import pytest

from sm_jax.errors import ConfigError, DataError, ImageError
from sm_jax.evaluators.request_ranking import rank_requests
from tests.evaluators.fake_matcher import Scripted, Tiles

ROWS = [["0.0", "1.5"], ["0.2", "1.9"], ["0.3"]]
MATCHER = Scripted(confusion={2: 0.85, 9: 0.65})


def test_the_best_request_comes_first():
    ranked = rank_requests(MATCHER, None, Tiles(ROWS))
    assert list(ranked) == ["cat", "dog"]
    # leave-one-out: cats 0 and 3 find cats only; cat 2 finds cat 3 (0.9), a dog (0.85), cat 0 (0.8)
    assert [one.instance.index for one in ranked["cat"]] == [0, 2, 1]
    assert [one.ap for one in ranked["cat"]] == pytest.approx([1, 1, 0.5 + 0.5 * 2 / 3])
    # dog 9 finds cats 0 and 3 at 0.65, then dog 5 at 0.6
    assert [one.ap for one in ranked["dog"]] == pytest.approx([1, 1 / 3])
    worst = ranked["dog"][1]
    assert worst.point == pytest.approx((1 / 3, 1, 0.5)) and worst.threshold == pytest.approx(0.6)
    assert worst.picture.shape == (40, 40, 3) and worst.picture[0, 0, 1] == 9 and worst.number == -1


def test_own_pictures_are_ranked_on_all_images():
    pictures = [np.full((20, 20, 3), (1, shade, 200), np.uint8) for shade in (2, 0)]
    ranked = rank_requests(MATCHER, None, Tiles(ROWS), requests={"cat": pictures})
    # shade 2 finds cat 2 (1.0), cat 3 (0.9), two dogs (0.85), cat 0 (0.8)
    assert [one.number for one in ranked["cat"]] == [1, 0]
    assert [one.ap for one in ranked["cat"]] == pytest.approx([1, 2 / 3 + 1 / 3 * 3 / 5])
    # F1 without the dogs: 2 * 2 / (2 + 3) = 0.8; with all: 2 * 3 / (5 + 3) = 0.75
    assert ranked["cat"][1].threshold == pytest.approx(0.875) and ranked["cat"][1].instance is None
    assert ranked["cat"][1].point == pytest.approx((1, 2 / 3, 0.8))
    np.testing.assert_array_equal(ranked["cat"][1].picture, pictures[0])


def test_requests_are_drawn_by_the_seed():
    source = Tiles([["0.0", "0.1", "0.2", "0.3"]] * 5)
    drawn = [
        [(one.instance.index, one.instance.box_index) for one in ranked["cat"]]
        for seed in (0, 0, 1)
        for ranked in [rank_requests(MATCHER, None, source, max_requests=4, seed=seed)]
    ]
    assert drawn[0] == drawn[1] != drawn[2] and len(drawn[0]) == 4


def test_a_request_that_finds_nothing_is_last_and_has_no_threshold():
    ranked = rank_requests(Scripted(blind=True), None, Tiles(ROWS))
    assert [one.ap for one in ranked["cat"]] == [0, 0, 0] and np.isnan(ranked["cat"][0].threshold)


@pytest.mark.parametrize(
    "rows,options,error,line",
    [
        ([], {}, DataError, "the source has no pictures"),
        ([[""]], {}, DataError, "no class has a request"),
        ([["0.1"]], {}, DataError, "no class is in an image other than that of its request"),
        (ROWS, {"requests": {}}, DataError, "no class has a request"),
        (ROWS, {"requests": {"bird": []}}, ConfigError, "the source has no class 'bird'"),
        (ROWS, {"requests": {"cat": ["missing.png"]}}, ImageError, "request 0 of 'cat'"),
        (ROWS, {"iou_rule": "loose"}, ConfigError, "iou_rule is one of fixed, ilsvrc"),
        (ROWS, {"max_requests": -1}, ConfigError, "no cap is negative"),
    ],
)
def test_nothing_to_rank_is_one_line(rows, options, error, line):
    with pytest.raises(error, match=line):
        rank_requests(MATCHER, None, Tiles(rows), **options)


def test_all_refused_requests_are_one_line():
    with pytest.raises(DataError, match="nothing to rank: request cat in 0, box 0: a blank request"):
        rank_requests(Scripted(refused=[0]), None, Tiles([["0.0"]]))
