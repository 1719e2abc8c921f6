import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sm_jax.losses import regression

LOSSES = [regression.l1, regression.l2, regression.smooth_l1]


@pytest.fixture(name="pair")
def _pair():
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, 3, 5, 7)).astype(np.float32) * 2


def test_values_equal_those_of_optax(pair):
    pred, target = pair
    for ours, theirs in (
        (regression.l2(pred, target, reduce_fn=None), optax.l2_loss(pred, target)),
        (regression.smooth_l1(pred, target, reduce_fn=None), optax.huber_loss(pred, target, delta=1.0)),
        (
            regression.smooth_l1(pred, target, beta=0.5, reduce_fn=None),
            optax.huber_loss(pred, target, delta=0.5) / 0.5,
        ),
        (regression.l1(pred, target, reduce_fn=None), np.abs(pred - target)),
        (regression.smooth_l1(pred, target, beta=0.0), np.mean(np.abs(pred - target))),
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("reduce_fn", [jnp.mean, jnp.sum, None])
def test_padding_has_neither_value_nor_gradient(loss, reduce_fn, pair):
    pred, target = pair
    where = np.arange(7) < 4
    masked = where[None, None, :]
    dirty = np.where(masked, pred, np.nan)

    def total(pred, target, where):
        return jnp.sum(loss(pred, target, where=where, reduce_fn=reduce_fn))

    value, grad = jax.value_and_grad(total)(dirty, target, masked)
    expected, expected_grad = jax.value_and_grad(total)(pred[..., :4], target[..., :4], None)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(grad[..., :4], expected_grad, rtol=1e-6)
    np.testing.assert_array_equal(grad[..., 4:], 0)


@pytest.mark.parametrize("loss", LOSSES)
def test_empty_is_zero_and_nan_shows(loss, pair):
    pred, target = pair
    value, grad = jax.value_and_grad(loss)(pred, target, where=jnp.zeros(pred.shape, bool))
    assert value == 0
    np.testing.assert_array_equal(grad, 0)
    assert loss(np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32)) == 0
    pred = pred.copy()
    pred[0, 0, 0] = np.nan
    assert np.isnan(loss(pred, target))
    assert np.isnan(loss(pred, target, where=jnp.ones(pred.shape, bool)))


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_at_zero_is_zero(loss):
    zeros = jnp.zeros((3, 4))
    np.testing.assert_array_equal(jax.grad(loss)(zeros, zeros), 0)
    np.testing.assert_array_equal(jax.grad(loss)(zeros, zeros, where=zeros == 0), 0)


def test_misuse_is_refused(pair):
    pred, target = pair
    with pytest.raises(ValueError, match="differ in shape"):
        regression.l1(pred, target[..., :1])
    with pytest.raises(ValueError, match="beta"):
        regression.smooth_l1(pred, target, beta=-1.0)
