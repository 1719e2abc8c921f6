import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sm_jax.losses import ranking

SHAPE = (2, 3, 8)
MARGINS = {"positive_margin": 0.6, "negative_margin": 0.5}
FAST = settings(max_examples=25, deadline=None)
scores_and_labels = st.tuples(
    hnp.arrays(np.float32, SHAPE, elements=st.floats(-1, 1, width=16)),
    hnp.arrays(np.int32, SHAPE, elements=st.sampled_from([-1, 0, 0, 1])),
)


def example(seed=0, shape=(2, 3, 40)):
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0.2, 0.9, shape).astype(np.float32)
    return scores, rng.choice([-1, 0, 0, 0, 1], shape).astype(np.int32)


def ranked_list_by_loops(scores, labels, *, ratio=1e-3, positive_margin=0.6, negative_margin=0.5):
    """Written out with Python loops, class axis 1."""
    positives = [0.5 * max(positive_margin - s, 0) for s in scores[labels == 1]]
    if not positives:
        return 0.0
    active = [loss for loss in positives if loss > 0]
    total = sum(active) / len(active) if active else 0.0
    per_class = []
    for number in range(scores.shape[1]):
        negatives = scores[:, number][labels[:, number] == 0]
        losses = np.array([0.5 * (s - negative_margin) for s in negatives if s > negative_margin])
        if not len(losses) or losses.max() <= 1e-5:
            continue
        weights = np.exp((losses - losses.max()) * np.log(1 / ratio) / losses.max())
        per_class.append((weights * losses).sum() / weights.sum())
    return total + (np.mean(per_class) if per_class else 0.0)


def contrastive_by_loops(scores, labels, *, ratio=3, positive_margin=1.0, negative_margin=0.5):
    positives = [(0.5 * max(positive_margin - s, 0)) ** 2 for s in scores[labels == 1]]
    if not positives:
        return 0.0
    negatives = sorted(((0.5 * max(s - negative_margin, 0)) ** 2 for s in scores[labels == 0]), reverse=True)
    return (sum(positives) + sum(negatives[: ratio * len(positives)])) / len(positives)


@FAST
@given(scores_and_labels)
def test_ranked_list_equals_the_loops(drawn):
    scores, labels = drawn
    loss = ranking.ranked_list_loss(scores, labels, class_axis=1)
    np.testing.assert_allclose(loss, ranked_list_by_loops(scores, labels), rtol=1e-5, atol=1e-6)


@FAST
@given(scores_and_labels)
def test_contrastive_equals_the_loops(drawn):
    scores, labels = drawn
    loss = ranking.contrastive_loss(scores, labels)
    np.testing.assert_allclose(loss, contrastive_by_loops(scores, labels), rtol=1e-5, atol=1e-6)


@FAST
@given(scores_and_labels, st.integers(0, 60))
def test_largest_keeps_exactly_that_many(drawn, count):
    values, labels = drawn
    where = labels == 0
    kept = np.asarray(ranking.largest(values, jnp.int32(count), where=where))
    assert kept.sum() == min(count, where.sum())
    assert not (kept & ~where).any()
    if kept.any() and (where & ~kept).any():
        assert values[kept].min() >= values[where & ~kept].max()


LOSSES = [ranking.ranked_list_loss, ranking.contrastive_loss]


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_those_of_finite_differences(loss):
    scores, labels = example()
    # Away from the margins and with the weights fixed, only the contrastive loss and the positives of the
    # ranked list are differentiable functions of the scores; its negatives' weights carry no gradient by
    # definition.
    labels = np.where(labels == 0, -1, labels) if loss is ranking.ranked_list_loss else labels
    scores = (
        scores + np.where(abs(scores - 0.6) < 5e-3, 0.01, 0) + np.where(abs(scores - 0.5) < 5e-3, 0.01, 0)
    )
    grad = np.asarray(jax.grad(loss)(jnp.float32(scores), labels))
    direction = np.random.default_rng(1).normal(size=scores.shape).astype(np.float32)
    step = 1e-3
    difference = loss(scores + step * direction, labels) - loss(scores - step * direction, labels)
    np.testing.assert_allclose((grad * direction).sum(), difference / (2 * step), rtol=2e-2)


def test_weights_of_negatives_carry_no_gradient():
    scores, labels = example()
    terms = ranking.ranked_list_terms(scores, labels, class_axis=1)
    grad = jax.grad(ranking.ranked_list_loss)(jnp.float32(scores), labels, class_axis=1)
    negative = (labels == 0) & (scores > 0.5)
    np.testing.assert_allclose(
        grad[negative], 0.5 * (terms.weights / terms.num_positive)[negative], rtol=1e-5, atol=1e-9
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_padding_does_not_count(loss):
    scores, labels = example()
    padded = np.pad(scores, ((0, 1), (0, 2), (0, 5)), constant_values=np.nan)
    more = np.pad(labels, ((0, 1), (0, 2), (0, 5)), constant_values=1)
    more[..., -3:] = 0
    where = np.pad(np.ones(scores.shape, bool), ((0, 1), (0, 2), (0, 5)))
    value, grad = jax.value_and_grad(loss)(padded, more, class_axis=1, where=where)
    expected, expected_grad = jax.value_and_grad(loss)(scores, labels, class_axis=1)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(
        np.asarray(grad)[where].reshape(scores.shape), expected_grad, rtol=1e-5, atol=1e-8
    )
    np.testing.assert_array_equal(np.asarray(grad)[~where], 0)


@pytest.mark.parametrize("loss", LOSSES)
def test_class_weights(loss):
    scores, labels = example()
    plain = loss(scores, labels, class_axis=1)
    np.testing.assert_allclose(
        loss(scores, labels, class_axis=1, class_weights=jnp.full(3, 2.5)), plain, rtol=1e-6
    )
    weights = jnp.array([1.0, 0.0, 1.0])
    without = loss(scores[:, ::2], labels[:, ::2], class_axis=1)
    np.testing.assert_allclose(loss(scores, labels, class_axis=1, class_weights=weights), without, rtol=1e-6)
    skewed = loss(scores, labels, class_axis=1, class_weights=jnp.array([5.0, 1.0, 1.0]))
    assert abs(skewed - plain) > 1e-4
    with pytest.raises(ValueError, match="class_axis"):
        loss(scores, labels, class_weights=weights)
    with pytest.raises(ValueError, match="shape"):
        loss(scores, labels, class_axis=2, class_weights=weights)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kept", [[-1], [-1, 0], [-1, 1]], ids=["nothing", "negatives", "positives"])
def test_missing_kinds_leave_finite_values_and_gradients(loss, kept):
    scores, labels = example()
    labels = np.where(np.isin(labels, kept), labels, -1)
    value, grad = jax.value_and_grad(loss)(jnp.float32(scores), labels, class_axis=1)
    assert np.isfinite(value) and np.isfinite(grad).all()
    if 1 not in kept:
        assert value == 0  # no positive in the batch: no recognition loss
        np.testing.assert_array_equal(grad, 0)
    assert loss(np.zeros((0, 3, 4), np.float32), np.zeros((0, 3, 4), np.int32), class_axis=1) == 0


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("score", [0.5, 0.6, 0.0, 1.0])
def test_equal_scores_leave_finite_gradients(loss, score):
    _, labels = example()
    grad = jax.grad(loss)(jnp.full(labels.shape, score), labels, class_axis=1)
    assert np.isfinite(grad).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("label", [0, 1])
def test_nan_at_a_real_element_shows(loss, label):
    scores, labels = example()
    scores[tuple(np.argwhere(labels == label)[0])] = np.nan
    assert np.isnan(loss(scores, labels, class_axis=1))
    assert np.isnan(jax.jit(functools.partial(loss, class_axis=1))(scores, labels))


def test_hardest_negative_weighs_most_and_the_margin_least():
    scores = np.array([[[0.9, 0.7, 0.50001, 0.3, 0.1]]], np.float32)
    labels = np.array([[[0, 0, 0, 0, 1]]], np.int32)
    weights = ranking.ranked_list_terms(scores, labels, weight_ratio=1e-2).weights[0, 0]
    np.testing.assert_allclose(weights[:4] / weights[0], [1, 0.1, 0.01, 0], rtol=1e-3)
    np.testing.assert_allclose(np.sum(weights), 1, rtol=1e-6)


def test_infinite_ratio_keeps_every_negative():
    scores, labels = example()
    terms = ranking.contrastive_terms(scores, labels, neg_to_pos_ratio=float("inf"))
    np.testing.assert_array_equal(terms.negatives_used, labels == 0)
    few = ranking.contrastive_terms(scores, labels, neg_to_pos_ratio=1.0)
    assert few.negatives_used.sum() == (labels == 1).sum()


def test_hinge_is_flat_at_the_margin():
    labels = jnp.array([1, 0, -1])
    scores = jnp.array([0.6, 0.5, 0.0])
    np.testing.assert_array_equal(ranking.hinge(scores, labels, **MARGINS), 0)
    grad = jax.grad(lambda s: ranking.hinge(s, labels, **MARGINS).sum())(scores)
    np.testing.assert_array_equal(grad, 0)
    np.testing.assert_allclose(
        ranking.hinge(jnp.array([0.2, 0.9, 7.0]), labels, scale=1.0, **MARGINS), [0.4, 0.4, 0.0], rtol=1e-6
    )
