import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from sm_jax.losses.classification import sigmoid_bce, softmax_ce


def logit(probability):
    probability = np.asarray(probability, np.float64)
    return np.log(probability / (1 - probability)).astype(np.float32)


def test_the_alignment_example():
    """Spec section 6, vector 7."""
    loss = sigmoid_bce(logit([0.9, 0.2, 0.6]), np.array([1, 0, 1]))
    np.testing.assert_allclose(loss, 0.279777, atol=1e-6)


def test_values_equal_those_of_optax():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(3, 5)).astype(np.float32) * 4, rng.random((3, 5)).astype(np.float32)
    expected = optax.sigmoid_binary_cross_entropy(logits, labels)
    np.testing.assert_allclose(sigmoid_bce(logits, labels, reduce_fn=None), expected, rtol=1e-5)
    np.testing.assert_allclose(sigmoid_bce(logits, labels), jnp.mean(expected), rtol=1e-5)
    np.testing.assert_allclose(sigmoid_bce(logits, labels, reduce_fn=jnp.sum), jnp.sum(expected), rtol=1e-5)


def test_large_logits_are_exact():
    logits = jnp.float32([-1e4, -50, 50, 1e4])
    right, wrong = jnp.array([0, 0, 1, 1]), jnp.array([1, 1, 0, 0])
    np.testing.assert_allclose(sigmoid_bce(logits, right, reduce_fn=None)[1:3], np.exp(-50), rtol=1e-5)
    np.testing.assert_array_equal(sigmoid_bce(logits, wrong, reduce_fn=None), [1e4, 50, 50, 1e4])
    gradient = jax.grad(lambda x: sigmoid_bce(x, wrong, reduce_fn=jnp.sum))(logits)
    np.testing.assert_allclose(gradient, [-1, -1, 1, 1], atol=1e-6)


def test_gradient():
    logits, labels = jnp.float32([-2, -0.5, 0, 0.3, 3]), jnp.float32([1, 0, 0.25, 1, 0])
    check_grads(lambda x: sigmoid_bce(x, labels), (logits,), order=1, modes=["rev"], eps=1e-2, rtol=1e-2)
    gradient = jax.grad(lambda x: sigmoid_bce(x, labels, reduce_fn=jnp.sum))(logits)
    np.testing.assert_allclose(gradient, jax.nn.sigmoid(logits) - labels, atol=1e-6)


@pytest.mark.parametrize("reduce_fn", [jnp.mean, jnp.sum, None])
def test_padding_has_neither_value_nor_gradient(reduce_fn):
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(2, 6)).astype(np.float32), rng.integers(0, 2, (2, 6))
    where = np.arange(6)[None] < 4
    dirty = np.where(where, logits, np.nan)

    def total(logits, labels, where):
        return jnp.sum(sigmoid_bce(logits, labels, where=where, reduce_fn=reduce_fn))

    both = jax.jit(jax.value_and_grad(total))
    value, gradient = both(dirty, labels, where)
    expected, expected_gradient = both(logits[:, :4], labels[:, :4], None)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient[:, :4], expected_gradient, rtol=1e-6)
    np.testing.assert_array_equal(gradient[:, 4:], 0)


def test_empty_is_zero_and_nan_shows():
    logits, labels = jnp.ones((3, 4)), jnp.ones((3, 4))
    value, gradient = jax.value_and_grad(sigmoid_bce)(logits, labels, where=jnp.zeros((3, 4), bool))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)
    assert sigmoid_bce(jnp.zeros((0,)), jnp.zeros((0,))) == 0
    assert np.isnan(sigmoid_bce(logits.at[0, 0].set(jnp.nan), labels))


def test_half_precision_is_computed_in_float32():
    loss = sigmoid_bce(jnp.float16([30, -30]), jnp.array([0, 1]), reduce_fn=None)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, 30, rtol=1e-6)


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        sigmoid_bce(jnp.zeros((3, 1)), jnp.zeros((3, 4)))
    with pytest.raises(ValueError, match="leading axes"):
        softmax_ce(jnp.zeros((3, 4)), jnp.zeros((4,), int))


def test_one_class_of_many():
    rng = np.random.default_rng(2)
    logits, labels = rng.normal(0, 20, (2, 3, 5)).astype(np.float32), rng.integers(0, 5, (2, 3))
    where = np.array([[True, True, False], [True, False, True]])
    dirty = np.where(where[..., None], logits, np.nan)
    value, gradient = jax.jit(jax.value_and_grad(softmax_ce))(dirty, np.where(where, labels, -7), where=where)
    shares = np.exp(logits - logits.max(-1, keepdims=True)).astype(np.float64)
    shares /= shares.sum(-1, keepdims=True)
    expected = -np.log(np.take_along_axis(shares, labels[..., None], -1)[..., 0])
    np.testing.assert_allclose(value, expected[where].mean(), rtol=1e-5)
    wanted = (shares - np.eye(5)[labels]) * where[..., None] / where.sum()
    np.testing.assert_allclose(gradient, wanted, atol=1e-6)
    assert np.isnan(softmax_ce(logits, labels + 5))
