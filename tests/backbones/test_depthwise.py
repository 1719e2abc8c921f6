"""The depthwise convolution and the sums per channel against XLA's own, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax.backbones.channels import add_shift, channel_sums, moments, scale_shift
from sm_jax.backbones.depthwise import borders, depthwise


def grouped(x, kernel, *, stride=1, padding="torch"):
    """The reference: XLA's convolution with one channel per group."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [borders(length, stride, padding) for length in x.shape[1:3]],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("padding", ["torch", "tf_same"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(6, 7), (5, 8), (1, 2)])
def test_values_and_gradients_are_those_of_the_grouped_convolution(size, stride, padding):
    x, kernel = normal(4, *size, 5), normal(3, 3, 1, 5, seed=1)

    def run(function):
        def one(x, kernel):
            return function(x, kernel, stride=stride, padding=padding)

        value, pull = jax.vjp(one, x, kernel)
        return value, pull(normal(*value.shape, seed=2))

    got, want = jax.jit(lambda: (run(depthwise), run(grouped)))()
    assert got[0].shape == (4, -(-size[0] // stride), -(-size[1] // stride), 5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, want)


def test_tf_same_pads_only_after_even_sizes():
    assert borders(8, 2, "tf_same") == (0, 1) and borders(7, 2, "tf_same") == (1, 1)
    assert borders(8, 1, "tf_same") == borders(8, 2, "torch") == (1, 1)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_keeps_its_type_and_sums_in_float32(dtype):
    x, kernel = normal(8, 16, 16, 4).astype(dtype), normal(3, 3, 1, 4, seed=1)

    def loss(x, kernel):
        return jnp.sum(depthwise(x, kernel).astype(jnp.float32) ** 2)

    assert depthwise(x, kernel).dtype == dtype
    got = jax.grad(loss, (0, 1))(x, kernel)
    assert got[0].dtype == dtype and got[1].dtype == jnp.float32
    want = jax.grad(lambda x, k: jnp.sum(grouped(x, k) ** 2), (0, 1))(x.astype(jnp.float32), kernel)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.03 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("pictures", [1, 7, 12, 11])
def test_sums_over_any_number_of_pictures(pictures):
    x, y = normal(pictures, 3, 5, 4), normal(pictures, 3, 5, 4, seed=1)
    got = jax.jit(lambda x, y: channel_sums(jnp.multiply, x, y))(x, y)
    np.testing.assert_allclose(got, jnp.sum(x * y, (0, 1, 2)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_moments_and_their_gradients(offset):
    x = normal(6, 4, 5, 3) * jnp.asarray([0.1, 1.0, 9.0])[None, None, None] + offset

    def plain(x):
        mean = jnp.mean(x, (0, 1, 2))
        return mean, jnp.mean((x - mean[None, None, None]) ** 2, (0, 1, 2))

    (got, pull), (want, pull_plain) = jax.vjp(moments, x), jax.vjp(plain, x)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    cotangents = (normal(3, seed=3), normal(3, seed=4))
    np.testing.assert_allclose(pull(cotangents)[0], pull_plain(cotangents)[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("relu6", [True, False])
def test_scale_and_shift_with_relu6(relu6):
    x, factor, shift = 4 * normal(8, 3, 4, 5), normal(5, seed=1), 2 + normal(5, seed=2)

    def plain(x, factor, shift):
        y = x * factor[None, None, None] + shift[None, None, None]
        return jnp.clip(y, 0, 6) if relu6 else y

    got, pull = jax.vjp(lambda *args: scale_shift(*args, relu6), x, factor, shift)
    want, pull_plain = jax.vjp(plain, x, factor, shift)
    np.testing.assert_allclose(got, want, atol=1e-6)
    gradient = normal(*x.shape, seed=5)
    for a, b in zip(pull(gradient), pull_plain(gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    one = jnp.ones(5)
    got, pull = jax.vjp(lambda x, shift: add_shift(x, shift, relu6), x, shift)
    want, pull_plain = jax.vjp(lambda x, shift: plain(x, one, shift), x, shift)
    np.testing.assert_allclose(got, want, atol=1e-6)
    for a, b in zip(pull(gradient), pull_plain(gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_relu6_passes_no_gradient_at_its_bends():
    x = jnp.asarray([-1.0, 0.0, 3.0, 6.0, 7.0]).reshape(1, 1, 5, 1)
    one, zero = jnp.ones(1), jnp.zeros(1)
    for function in (lambda x: scale_shift(x, one, zero, True), lambda x: add_shift(x, zero, True)):
        slope = jax.grad(lambda x: jnp.sum(function(x)))(x)  # noqa: B023
        np.testing.assert_array_equal(slope.ravel(), [0, 0, 1, 0, 0])
