"""The split convolution equals the plain one in value and gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax.backbones import split_convolution
from sm_jax.backbones.common import convolve


def operands(shape, size, out=5):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(np.float32)
    kernel = rng.normal(size=(size, size, shape[-1], out)).astype(np.float32) / (size * shape[-1] ** 0.5)
    return jnp.asarray(x), jnp.asarray(kernel)


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("size", [3, 5, 7])
@pytest.mark.parametrize("shape", [(2, 8, 11, 3), (1, 9, 6, 4), (1, 1, 1, 2)])
def test_equals_plain_convolution(axes, size, shape):
    x, kernel = operands(shape, size)

    def value_and_grads(function):
        def loss(x, kernel):
            y = function(x, kernel)
            return jnp.sum(jnp.sin(y)), y

        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(x, kernel)

    want = value_and_grads(convolve)
    got = value_and_grads(functools.partial(split_convolution.convolve_split, axes=axes))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, want)


def test_choice_depends_on_size_type_and_training(monkeypatch):
    monkeypatch.setattr(split_convolution, "SPLIT_FEW", (64, 128))
    monkeypatch.setattr(split_convolution, "SPLIT_MANY", (32, 48))
    monkeypatch.setattr(split_convolution, "SPLIT_TRAINING", 32)

    def convolutions(shape, dtype=jnp.float32, train=False):
        x, kernel = operands(shape, 7)
        function = jax.jit(functools.partial(split_convolution.convolve_large, train=train))
        np.testing.assert_allclose(function(x, kernel), convolve(x, kernel), atol=2e-5)
        return function.lower(x.astype(dtype), kernel).compile().as_text().count("convolution(")

    counts = [convolutions(shape) for shape in ((1, 7, 9, 2), (1, 8, 8, 2), (2, 8, 8, 2))]
    assert counts[0] <= 1 < counts[1] < counts[2]
    assert counts[2] == 2 * convolutions((1, 16, 8, 2))  # two maps are two groups
    assert convolutions((1, 4, 8, 2), train=True) == counts[2] / 2
    assert convolutions((4, 2, 4, 2)) == 4 * counts[1]  # more maps are split sooner
    assert convolutions((2, 8, 8, 2), dtype=jnp.float16) <= 1


def test_groups_equal_the_whole_and_keep_to_themselves(monkeypatch):
    monkeypatch.setattr(split_convolution, "SPLIT_MANY", (1, 1))
    x, kernel = operands((6, 5, 7, 3), 5)
    run = jax.jit(split_convolution.convolve_large)
    np.testing.assert_allclose(run(x, kernel), convolve(x, kernel), atol=2e-5)
    for bad in (jnp.nan, 1e30):
        spoilt = run(x.at[0].set(bad), kernel)
        np.testing.assert_allclose(spoilt[2:], convolve(x, kernel)[2:], atol=2e-5)
    slopes = [jax.grad(lambda x, f=f: jnp.sum(jnp.sin(f(x, kernel))))(x) for f in (run, convolve)]
    np.testing.assert_allclose(*slopes, atol=1e-4)
