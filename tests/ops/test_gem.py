"""Generalised-mean pooling against its definition, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax.ops.gem import gem, gem_reference

RNG = np.random.default_rng(0)
MAP = np.maximum(RNG.normal(size=(4, 5, 6)), 0).astype(np.float32)
WHERE = np.arange(4)[:, None, None] + np.arange(5)[None, :, None] < 5


@pytest.mark.parametrize("p", [1.0, 3.0, 7.5])
@pytest.mark.parametrize("where", [None, WHERE])
def test_it_is_the_mean_of_powers(p, where):
    np.testing.assert_allclose(gem(MAP, p, where=where), gem_reference(MAP, p, where=where), rtol=2e-5)


def test_it_lies_between_the_mean_and_the_maximum():
    np.testing.assert_allclose(gem(MAP, 1.0), np.maximum(MAP, 1e-6).mean(axis=(0, 1)), rtol=1e-5)
    many = gem(MAP * 1e3, 200.0)  # whose powers float32 cannot hold
    assert np.all(np.isfinite(many)) and np.all(many <= 1.0001e3 * MAP.max(axis=(0, 1)))
    np.testing.assert_allclose(many, 1e3 * MAP.max(axis=(0, 1)), rtol=0.05)


def test_hidden_cells_change_nothing():
    padded = np.pad(MAP, ((0, 2), (0, 3), (0, 0)), constant_values=9.0)
    where = np.pad(np.ones((4, 5, 1), bool), ((0, 2), (0, 3), (0, 0)))
    np.testing.assert_allclose(gem(padded, 3.0, where=where), gem(MAP, 3.0), rtol=1e-6)
    grad = jax.jit(jax.grad(lambda x: jnp.sum(gem(x, 3.0, where=where))))(padded)
    assert np.all(np.isfinite(grad)) and not np.any(np.where(where, 0, grad))


def test_a_map_without_valid_cells_is_epsilon_with_finite_gradients():
    nothing = np.zeros((4, 5, 1), bool)
    np.testing.assert_allclose(
        gem(MAP, 3.0, where=nothing), gem_reference(MAP, 3.0, where=nothing), rtol=1e-5
    )
    grads = jax.jit(jax.grad(lambda x, p: jnp.sum(gem(x, p, where=nothing)), argnums=(0, 1)))(MAP, 3.0)
    assert all(np.all(np.isfinite(grad)) for grad in grads)


def test_gradients_are_those_of_the_definition():
    """Central differences of the float64 definition, towards random directions of the map and of p."""
    x, p = MAP + 0.1, 3.0  # away from the bend at epsilon
    weights = RNG.normal(size=6)
    grad = jax.grad(lambda x, p: jnp.sum(gem(x, p, where=WHERE) * weights), argnums=(0, 1))
    dx, dp = jax.jit(grad)(x, p)

    def value(x, p):
        return float(gem_reference(x, p, where=WHERE) @ weights)

    step = 1e-5
    direction = RNG.normal(size=x.shape)
    wide = x.astype(np.float64)
    expected = (value(wide + step * direction, p) - value(wide - step * direction, p)) / (2 * step)
    np.testing.assert_allclose(np.sum(np.asarray(dx) * direction), expected, rtol=1e-4)
    expected = (value(wide, p + step) - value(wide, p - step)) / (2 * step)
    np.testing.assert_allclose(float(dp), expected, rtol=1e-3)
    assert not np.any(jax.jit(jax.grad(lambda x: jnp.sum(gem(x, 3.0))))(jnp.full((2, 2, 1), -1.0)))


def test_half_precision_is_pooled_in_float32():
    out = gem(jnp.asarray(MAP, jnp.bfloat16), 3.0)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, gem_reference(jnp.asarray(MAP, jnp.bfloat16), 3.0), rtol=1e-4)
