"""The hinge with hard negatives: recorded numbers, the example by hand, and loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sm_jax.losses.hard_negatives import hard_negative_hinge
from tests import goldens

relaxed = settings(deadline=None, max_examples=40)  # the first example compiles
value_and_grad = jax.jit(jax.value_and_grad(hard_negative_hinge))
SCORES = np.float32([[0.7, 0.2, 0.1, 0.6], [0.3, 0.9, 0.05, 0.4]])
OVERLAPS = np.float32([[0.8, 0.55, 0.1, 0], [0.1, 0.7, 0.3, 0.15]])


def by_loops(scores, overlaps, positive_iou=0.5, negative_iou=0.2):
    total, count = 0.0, 0
    for row, overlap in zip(scores, overlaps, strict=True):
        positives = [z for z, o in zip(row, overlap, strict=True) if o > positive_iou]
        negatives = sorted((z for z, o in zip(row, overlap, strict=True) if o <= negative_iou), reverse=True)
        total += sum(max(0, 1 - z) for z in positives)
        total += sum(max(0, 1 + z) for z in negatives[: len(positives)])
        count += len(positives)
    return total / (2 * count) if count else 0.0


def example(seed, shape=(5, 7)):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape).astype(np.float32), rng.uniform(0, 1, shape).astype(np.float32), rng


@pytest.mark.parametrize("path", goldens.params("matching", "match_*.npz"))
@pytest.mark.parametrize("name", ["a", "ag"])
def test_golden_loss_and_gradient(path, name):
    data = goldens.load(path)
    scores = np.maximum(data["out_sim"], 0) if name == "a" else data["out_scnet_z_ag"]
    active = data["in_active_idx"].ravel()
    value, grad = value_and_grad(jnp.asarray(scores[active]), 1 - data["in_one_minus_iou"])
    np.testing.assert_allclose(value, data[f"out_loss_{name}"].item(), rtol=1e-5, atol=1e-6)
    everywhere = np.zeros_like(scores)
    everywhere[active] = grad
    np.testing.assert_allclose(everywhere, data[f"out_dloss_{name}"], atol=1e-7)


def test_the_example_by_hand():
    value, grad = value_and_grad(SCORES, OVERLAPS)
    np.testing.assert_allclose(value, 0.883333, rtol=1e-6)
    np.testing.assert_allclose(grad, np.array([[-1, -1, 1, 1], [0, -1, 0, 1]]) / 6, rtol=1e-6)


@relaxed
@given(st.integers(0, 10**6))
def test_equals_the_loops(seed):
    scores, overlaps, rng = example(seed)
    value, grad = value_and_grad(scores, overlaps)
    np.testing.assert_allclose(value, by_loops(scores, overlaps), rtol=1e-5, atol=1e-6)
    rows, columns = rng.permutation(5), rng.permutation(7)
    order = np.ix_(rows, columns)
    moved, moved_grad = value_and_grad(scores[order], overlaps[order])
    np.testing.assert_allclose(moved, value, rtol=1e-5)
    np.testing.assert_allclose(moved_grad, grad[order], atol=1e-7)


@relaxed
@given(st.integers(0, 10**6))
def test_gradient_is_that_of_finite_differences(seed):
    scores, overlaps, rng = example(seed)
    scores = np.where(np.abs(np.abs(scores) - 1) < 1e-3, 0.5, scores)
    along = rng.normal(size=scores.shape)
    wide = scores.astype(np.float64)
    slope = (by_loops(wide + 1e-6 * along, overlaps) - by_loops(wide - 1e-6 * along, overlaps)) / 2e-6
    np.testing.assert_allclose(np.sum(value_and_grad(scores, overlaps)[1] * along), slope, atol=1e-4)


@relaxed
@given(st.integers(0, 10**6))
def test_padding_changes_nothing(seed):
    scores, overlaps, _ = example(seed)
    where = (np.arange(5) < 3)[:, None] & (np.arange(7) < 5)[None, :]
    dirty = np.where(where, scores, np.nan), np.where(where, overlaps, np.nan)
    value, grad = value_and_grad(*dirty, where=where)
    expected, expected_grad = value_and_grad(scores[:3, :5], overlaps[:3, :5])
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(grad[:3, :5], expected_grad, atol=1e-7)
    np.testing.assert_array_equal(np.asarray(grad)[~where], 0)
    rows_only = value_and_grad(scores, overlaps, where=where[:, :1])[0]
    np.testing.assert_allclose(rows_only, value_and_grad(scores[:3], overlaps[:3])[0], rtol=1e-5)


def test_ties_take_the_first_negative():
    grad = value_and_grad(np.float32([[0.5, 0.3, 0.3, 0.1]]), np.float32([[0.9, 0, 0, 0]]))[1]
    np.testing.assert_array_equal(grad, [[-0.5, 0.5, 0, 0]])


def test_no_positives_no_rows_and_all_padding_give_zero():
    for scores, overlaps, where in (
        (SCORES, OVERLAPS * 0, None),
        (SCORES, OVERLAPS, np.zeros((2, 1), bool)),
        (SCORES[:0], OVERLAPS[:0], None),
    ):
        value, grad = value_and_grad(scores, overlaps, where=where)
        assert value == 0 and not np.any(grad)


def test_thresholds():
    value = hard_negative_hinge(SCORES, OVERLAPS, positive_iou=0.6, negative_iou=0.4)
    np.testing.assert_allclose(value, by_loops(SCORES, OVERLAPS, 0.6, 0.4), rtol=1e-6)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="the same n m"):
        hard_negative_hinge(jnp.zeros((2, 3)), jnp.zeros((3, 2)))
    with pytest.raises(ValueError, match="the same n m"):
        hard_negative_hinge(jnp.zeros(3), jnp.zeros(3))
