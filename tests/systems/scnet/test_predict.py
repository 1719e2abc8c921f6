import numpy as np
import pytest

from sm_jax.errors import ConfigError, DataError
from sm_jax.ops import flow as flows
from sm_jax.ops import hough
from sm_jax.ops import matching_reference as reference
from sm_jax.systems.scnet import model, predict
from tests.systems.scnet import tiny

BUCKETS = (8, 16)


def _picture(seed, size):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def trained():
    return predict.Predictor(tiny.config(vote_threshold=0.1), tiny.variables(), buckets=BUCKETS)


@pytest.fixture(scope="module")
def plain():
    return predict.Predictor(tiny.config(), features="hog", buckets=BUCKETS)


def _pair(predictor, n=5, m=7):
    rng = np.random.default_rng(0)
    sizes = (50, 60), (90, 40)
    boxes = [tiny.boxes(rng, count, size) for count, size in zip((n, m), sizes, strict=True)]
    images = [_picture(seed, size) for seed, size in enumerate(sizes)]
    return [predictor.describe(image, some) for image, some in zip(images, boxes, strict=True)]


def _where(method, *sides):
    """Boxes and sizes where a method works."""
    if method in predict.OWN_PIXELS:
        return [side.boxes for side in sides], [side.size for side in sides]
    return [side.frame_boxes[: len(side.boxes)] for side in sides], [tiny.SIZE] * 2


@pytest.mark.parametrize("method", predict.METHODS)
def test_every_method_is_its_reference_without_padding(trained, method):
    source, target = _pair(trained)
    found = trained.match(source, target, method=method)
    f, g = (
        np.asarray(source.vectors[name][:5], np.float64) @ np.asarray(target.vectors[name][:7]).T
        for name in ("appearance", "geometry")
    )
    boxes, sizes = _where(method, source, target)
    if method in ("nam", "lom"):
        expected = reference.nam(f, hough.aspect_gate(*boxes))
        if method == "lom":
            expected = reference.lom(expected, *boxes)
    elif method == "phm":
        expected = reference.phm(f, hough.bins(*boxes, *sizes, kind="phm"), hough.grid(sizes[1], kind="phm"))
    else:
        bins = None if method == "a" else hough.bins(*boxes, *sizes)
        expected = reference.scnet_scores(
            f, bins, geometry=g if method == "ag+" else None, vote_threshold=0.1
        )
    np.testing.assert_allclose(found.scores, expected, atol=2e-5)
    np.testing.assert_array_equal(found.confidence, found.scores.max(axis=1))
    np.testing.assert_array_equal(found.index, found.scores.argmax(axis=1))


def test_one_program_per_bucket(plain, trained):
    predictor = predict.Predictor(tiny.config(), tiny.variables(), buckets=BUCKETS)
    for n, m in ((5, 7), (3, 8), (8, 2), (12, 3), (16, 16), (1, 9)):
        sides = _pair(predictor, n, m)
        predictor.match(*sides, method="ag")
        predictor.match(*sides, method="nam")
    assert dict(predictor.compiles) == {"describe": 2, "ag": 2, "nam": 2}
    assert [plain._bucket(n) for n in (1, 8, 9, 16, 17, 40)] == [8, 8, 16, 16, 32, 48]


def test_one_program_of_phm_for_pictures_of_many_sizes(trained):
    predictor = trained.with_variables(tiny.variables())
    before = predictor.compiles["phm"]
    boxes = tiny.boxes(np.random.default_rng(1), 5, (40, 40))
    for size in ((50, 60), (52, 61), (60, 64)):
        side = predictor.describe(_picture(0, size), boxes)
        predictor.match(side, side, method="phm")
    assert predictor.compiles["phm"] - before <= 1 and predictor.compiles is trained.compiles


def test_other_variables_give_other_vectors(trained):
    image, boxes = _picture(0, (50, 60)), tiny.boxes(np.random.default_rng(1), 5, (50, 60))
    before = trained.compiles["describe"]
    other = trained.with_variables(model.init(trained.config, tiny.jax.random.key(5)))
    pair = [one.describe(image, boxes).vectors["appearance"] for one in (trained, other)]
    assert not np.allclose(*pair, atol=0.1)
    assert trained.compiles["describe"] - before <= 1


def test_a_picture_matches_itself(plain):
    image, boxes = _picture(3, (60, 80)), tiny.boxes(np.random.default_rng(3), 8, (60, 80))
    side = plain.describe(image, boxes)
    found = plain.match(side, side, method="nam")
    np.testing.assert_array_equal(found.index, np.arange(8))
    flow = predict.dense_flow(side, side, found)
    assert flow.valid.any() and not flow.shift[flow.valid].any()


def test_plain_features_of_a_backbone():
    config = tiny.config(roi_size=2)
    variables = model.init_backbone(config, tiny.jax.random.key(1))
    predictor = predict.Predictor(config, variables, features="roi", buckets=BUCKETS)
    source, target = _pair(predictor)
    assert source.vectors["appearance"].shape == (8, 2 * 2 * 512)
    scores = predictor.match(source, target, method="a").scores
    assert scores.shape == (5, 7) and 0 <= scores.min() and scores.max() <= 1.001 and scores.any()
    with pytest.raises(ConfigError, match=r"method: 'ag\+' needs weights of an AG\+ model"):
        predictor.match(source, target, method="ag+")


def test_degenerate_boxes_match_nothing(plain):
    image = _picture(4, (60, 80))
    boxes = np.float32([[5, 5, 40, 40], [9, 9, 9, 30], [20, 20, 10, 40], [7, 7, 7, 7]])
    side = plain.describe(image, boxes)
    for method in ("nam", "phm", "lom", "ag"):
        found = plain.match(side, side, method=method)
        assert np.isfinite(found.scores).all()
        if method != "ag":
            assert found.confidence[0] > 0 and not found.scores[1:].any() and not found.scores[:, 1:].any()
        flow = predict.dense_flow(side, side, found)
        assert flow.valid.sum() == 35 * 35 and not np.nan_to_num(flow.shift).any()


def test_where_nothing_is_similar_nothing_moves(plain):
    """Grey pictures have no gradient: every similarity, vote and confidence is 0."""
    grey = np.full((40, 50, 3), 77, np.uint8)
    side = plain.describe(grey, np.float32([[2, 2, 30, 30], [5, 5, 45, 35]]))
    for method in ("nam", "phm", "lom", "a", "ag"):
        found = plain.match(side, side, method=method)
        assert not found.confidence.any() and not found.index.any()
        flow = predict.dense_flow(side, side, found)
        assert not flow.valid.any()
        moved = predict.transfer([(10, 10)], flow)
        assert not moved.valid[0] and np.isnan(moved.xy).all() and moved.confidence[0] == 0


def test_points_follow_the_region_that_covers_them():
    boxes = np.float32([[0, 0, 20, 10], [4, 2, 8, 6]])
    flow = flows.dense_flow(boxes, boxes + [3, 1, 3, 1], [0.5, 0.9], (12, 40), (30, 50))
    points = [(5, 3), (1, 1), (30, 3), (-1, 4), (41, 2), (np.nan, 2), (20, 10), (40, 12)]
    found = predict.transfer(points, flow)
    np.testing.assert_array_equal(found.valid, [True, True, False, False, False, False, False, False])
    np.testing.assert_allclose(found.xy[:2], [(8, 4), (4, 2)])
    np.testing.assert_allclose(found.confidence[:3], [0.9, 0.5, 0])
    assert np.isnan(found.xy[2:]).all()


@pytest.mark.parametrize(
    ("boxes", "line"),
    [(np.zeros((0, 4)), "no region: give at least one box"), ([[0, 0, np.inf, 3]], "1 boxes are not finite")],
)
def test_boxes_that_cannot_be_used(plain, boxes, line):
    with pytest.raises(DataError, match=line):
        plain.describe(_picture(0, (20, 20)), boxes)


def test_unknown_names(plain):
    side = plain.describe(_picture(0, (20, 20)), [[0, 0, 9, 9]])
    with pytest.raises(ConfigError, match="method: 'best' is none of nam, phm"):
        plain.match(side, side, method="best")
    for options, line in (
        ({"features": "sift"}, "features: 'sift' is none"),
        ({"pool": "max"}, "pool: 'max' is"),
    ):
        with pytest.raises(ConfigError, match=line):
            predict.Predictor(tiny.config(), **options)
