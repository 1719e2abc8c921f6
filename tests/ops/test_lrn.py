"""Local response normalisation: hand-made values, the reference in value and gradient, precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax.ops.lrn import lrn, lrn_reference


def test_hand_made_values():
    """SSM specification, sec. 8, no. 6."""
    got = lrn(jnp.full((1, 5), 10.0))
    np.testing.assert_allclose(got[0, [2, 0, 4]], [9.92565, 9.95523, 9.95523], atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 3, 64), (4, 7), (3,)])
def test_value_and_gradient_are_those_of_the_reference(shape):
    rng = np.random.default_rng(0)
    x = jnp.asarray(300 * rng.standard_normal(shape), jnp.float32)
    weight = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    np.testing.assert_allclose(lrn(x), lrn_reference(x), rtol=2e-6, atol=1e-5)
    got, want = (jax.grad(lambda x, f=f: jnp.sum(weight * f(x)))(x) for f in (lrn, lrn_reference))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_sums_do_not_overflow_in_half_precision(dtype):
    x = jnp.full((2, 8), 3000.0, dtype)  # its square is none of float16
    got = lrn(x)
    assert got.dtype == dtype and jnp.isfinite(got.astype(jnp.float32)).all()
    np.testing.assert_allclose(got.astype(jnp.float32), lrn_reference(x).astype(jnp.float32), rtol=1e-2)
    assert jax.grad(lambda x: jnp.sum(lrn(x).astype(jnp.float32)))(x).dtype == dtype
