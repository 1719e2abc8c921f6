"""Metrics of correspondence: the example by hand, small cases counted by eye, and what never counts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sm_jax import points
from sm_jax.errors import DataError
from sm_jax.evaluators import correspondence_metrics as metrics

SOURCE = points.one_based_to_pixels(np.array([[10.0, 10], [50, 20], [30, 60], [80, 90]]))
MOVES = [[5, 0], [6, -2], [4, 3], [0, 0]]
TRUTH = points.one_based_to_pixels(np.array([[17.0, 10], [54, 26], [36, 62], [80, 75]]))


def predicted():
    shift = np.full((120, 160, 2), np.nan)
    for (x, y), move in zip(SOURCE, MOVES, strict=True):
        shift[int(y), int(x)] = move
    return metrics.transfer(SOURCE, shift)


@pytest.mark.parametrize(
    "norm, size, unit, expected",
    [
        ("scnet224", (224, 224), 224, (0.75, 1, 1)),
        ("bbox", (120, 160), 65, (0.5, 0.5, 0.75)),
        ("diag", (120, 160), 200, (0.75, 1, 1)),
        ("img", (120, 160), 160, (0.5, 1, 1)),
    ],
)
def test_pck_by_hand(norm, size, unit, expected):
    distances = metrics.keypoint_distances(predicted(), TRUTH, norm=norm, target_size=size)
    np.testing.assert_allclose(distances * unit, [2, 8.246211, 2.236068, 15], rtol=1e-6)
    assert tuple(metrics.pck(distances, alpha) for alpha in (0.05, 0.1, 0.15)) == expected


def test_scnet224_scales_each_axis():
    found = metrics.keypoint_distances([[10, 10]], [[20, 10]], norm="scnet224", target_size=(50, 100))
    np.testing.assert_allclose(found, 0.1)
    found = metrics.keypoint_distances([[10, 10]], [[10, 20]], norm="scnet224", target_size=(50, 100))
    np.testing.assert_allclose(found, 0.2)


def test_pck_is_strict():
    assert metrics.pck(np.array([0.1, 0.09999]), 0.1) == 0.5


@pytest.mark.parametrize("absent", [np.nan, -1.0])
@pytest.mark.parametrize("norm", list(metrics.NORMALIZERS))
@pytest.mark.parametrize("side", ["truth", "source"])
def test_padding_never_counts(absent, norm, side):
    """Neither as a key-point nor in the normaliser, wherever the prediction of it lies."""
    options = {"norm": norm, "target_size": (120, 160)}
    expected = metrics.keypoint_distances(predicted(), TRUTH, **options)
    padding, far = np.full((2, 2), absent), np.array([[500.0, 400], [0, 0]])
    truth = np.concatenate([TRUTH, padding if side == "truth" else far])
    source = np.concatenate([SOURCE, far if side == "truth" else padding])
    guesses = np.concatenate([predicted(), far])
    found = metrics.keypoint_distances(guesses, truth, source=source, **options)
    np.testing.assert_array_equal(found, expected)


def test_transfer():
    shift = np.arange(24.0).reshape(3, 4, 2)
    found = metrics.transfer([[1.9, 0.5], [1.0, 2.0], [99, -0.2], [np.nan, 1], [-1, -1]], shift)
    np.testing.assert_allclose(found[:3], [[1.9 + 2, 0.5 + 3], [1 + 18, 2 + 19], [99 + 6, -0.2 + 7]])
    assert np.isnan(found[3:]).all()


def test_a_missing_flow_is_wrong_and_a_pair_without_key_points_has_no_value():
    options = {"norm": "img", "target_size": (10, 10)}
    distances = metrics.keypoint_distances([[np.nan, 1], [2, 2]], [[1, 1], [2, 2]], **options)
    np.testing.assert_array_equal(distances, [np.inf, 0])
    assert metrics.pck(distances, 1.0) == 0.5
    none = metrics.keypoint_distances([[1, 1]], [[-1, -1]], **options)
    assert np.isnan(metrics.pck(none, 0.1))
    single = metrics.keypoint_distances([[1, 1]], [[1, 1]], norm="bbox", target_size=(10, 10))
    assert np.isnan(metrics.pck(single, 0.1))
    assert metrics.mean_over_pairs([0.5, np.nan, 1.0]) == (0.75, 2)
    mean, count = metrics.mean_over_pairs([np.nan])
    assert np.isnan(mean) and count == 0


def test_means_over_pairs_and_over_classes_differ():
    values, classes = [1.0, 0.0, 0.5, np.nan, np.nan], ["cat", "dog", "dog", "dog", "cow"]
    assert metrics.mean_over_pairs(values)[0] == 0.5
    mean, by_class = metrics.mean_over_classes(values, classes)
    assert mean == 0.625 and by_class == {"cat": 1.0, "dog": 0.25}
    with pytest.raises(DataError, match="one per pair"):
        metrics.mean_over_classes([1.0], ["a", "b"])


def test_bad_arguments():
    with pytest.raises(DataError, match="no normaliser 'max'; take one of scnet224, bbox, diag, img"):
        metrics.keypoint_distances(SOURCE, TRUTH, norm="max", target_size=(9, 9))
    with pytest.raises(DataError, match="3 predicted key-points for 4"):
        metrics.keypoint_distances(SOURCE[:3], TRUTH, norm="img", target_size=(9, 9))


def test_pcr():
    curve = metrics.pcr([np.array([1.0, 0.75]), np.array([]), np.array([0.0])])
    assert curve.shape == (101,)
    assert curve[0] == 0 and curve[1] == 0.25 and curve[25] == 0.25 and curve[26] == 0.5 and curve[100] == 0.5
    np.testing.assert_allclose(metrics.area_under_curve(np.ones(101)), 0.99)
    np.testing.assert_allclose(metrics.area_under_curve(np.arange(101) / 100), 0.99**2 / 2)
    assert np.isnan(metrics.pcr([np.array([])])).all() and np.isnan(metrics.pcr([])).all()


def test_miou_at_k():
    found = metrics.miou_at_k([np.array([0.2, 0.8, 0.5]), np.array([1.0])], [[0.1, 0.9, 0.9], [0.3]])
    np.testing.assert_allclose(found[:3], [0.9, 2.3 / 3, 2.5 / 4])
    np.testing.assert_allclose(found[3:], 2.5 / 4)
    assert found.shape == (100,)
    assert np.isnan(metrics.miou_at_k([np.array([])], [[]])).all()


def test_masks_follow_the_flow():
    target = np.zeros((4, 5))
    target[1:3, 2:4] = 1
    shift = np.zeros((3, 4, 2))
    shift[..., 0] = 1
    shift[0, 0] = np.nan
    shift[2, 3] = 9
    found = metrics.transfer_mask(shift, target)
    np.testing.assert_array_equal(found, [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0]])
    truth = np.array([[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]])
    assert metrics.label_transfer_accuracy(found, truth) == 9 / 12
    assert metrics.mask_iou(found, truth) == 2 / 5
    assert np.isnan(metrics.mask_iou(truth * 0, truth * 0))


def test_localization_error():
    source, target = np.zeros((4, 4)), np.zeros((8, 8))
    source[1:3, 1:3], target[2:6, 2:6] = 1, 1
    x, y = np.meshgrid(np.arange(4), np.arange(4))
    exact = np.stack([2 * x - x, 2 * y - y], axis=-1).astype(float)
    assert metrics.localization_error(exact, source, target) == 0
    assert metrics.localization_error(exact + [1, 0], source, target) == 1 / 4
    assert metrics.localization_error(exact + [1, -2], source, target) > 1 / 4
    exact[0] = np.nan  # missing pixels do not count
    assert metrics.localization_error(exact, source, target) == 0
    assert np.isnan(metrics.localization_error(exact + 99, source, target))
    assert np.isnan(metrics.localization_error(exact, source * 0, target))


def test_weighted_part_iou():
    truth, found = np.zeros((3, 4, 4)), np.zeros((3, 4, 4))
    truth[0, :2], found[0, :1] = 1, 1  # 8 pixels, IoU 1/2
    truth[1, 3], found[1, 3] = 1, 1  # 4 pixels, IoU 1
    found[2] = 1  # not there
    np.testing.assert_allclose(metrics.weighted_part_iou(found, truth), 8 / 12 * 0.5 + 4 / 12)
    assert np.isnan(metrics.weighted_part_iou(found, truth * 0))
    with pytest.raises(DataError, match="part masks"):
        metrics.weighted_part_iou(found[0], truth)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6))
def test_order_of_key_points_does_not_matter_and_pck_rises(seed):
    rng = np.random.default_rng(seed)
    guess, truth = rng.uniform(0, 50, (2, 6, 2))
    order = rng.permutation(6)
    for norm in metrics.NORMALIZERS:
        options = {"norm": norm, "target_size": (40, 50)}
        found = metrics.keypoint_distances(guess, truth, **options)
        moved = metrics.keypoint_distances(guess[order], truth[order], **options)
        np.testing.assert_allclose(moved, found[order])
        values = [metrics.pck(found, alpha) for alpha in (0.05, 0.1, 0.15, 1e4)]
        assert values == sorted(values) and values[-1] == 1
