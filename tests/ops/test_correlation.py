"""Correlation and the normalisations around it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax.ops import correlation, resample
from tests import goldens

common = pytest.mark.parametrize("path", goldens.params("os2d", "head_*_common.npz"))


def channels_last(array):
    return jnp.moveaxis(jnp.asarray(array), -3, -1)


def row_major(array, template=15):
    """Recorded channels (column-major, "n k h w") to "n h w i j"."""
    n, k, height, width = array.shape
    assert k == template**2
    return np.transpose(array.reshape(n, template, template, height, width), (0, 3, 4, 2, 1))


@common
def test_golden_correlation(path):
    data = goldens.load(path)
    image = correlation.l2_normalize(channels_last(data["image_features"]), epsilon=1e-5)
    np.testing.assert_allclose(image, channels_last(data["image_features_norm"]), rtol=0, atol=1e-6)
    if "corr" not in data:
        pytest.skip("no correlation recorded for this case")
    query = channels_last(data["class_features_norm"])
    pairs = jax.vmap(jax.vmap(correlation.correlate, in_axes=(None, 0)), in_axes=(0, None))
    corr = pairs(image, query)
    corr = corr.reshape(-1, *corr.shape[2:])
    np.testing.assert_allclose(corr, row_major(data["corr"]), rtol=0, atol=1e-5)
    flat = jax.nn.relu(corr).reshape(*corr.shape[:3], -1)
    normed = correlation.l2_normalize(flat, epsilon=1e-6).reshape(corr.shape)
    np.testing.assert_allclose(normed, row_major(data["corr_norm"]), rtol=0, atol=1e-6)


@common
def test_golden_class_features(path):
    data = goldens.load(path)
    maps = [data[f"class_features_{k}"] for k in range(len(data["class_features_resized"]))]
    tall, wide = (max(m.shape[axis] for m in maps) + 3 for axis in (1, 2))
    resize = jax.jit(resample.resize_align_corners)
    for k, m in enumerate(maps):
        features = channels_last(m)
        expected = channels_last(data["class_features_resized"][k])
        resized = resize(features)
        np.testing.assert_allclose(resized, expected, rtol=0, atol=1e-5)
        normed = correlation.l2_normalize(resized, epsilon=1e-5)
        wanted = channels_last(data["class_features_norm"][k])
        np.testing.assert_allclose(normed, wanted, rtol=0, atol=1e-6)
        # the same map in a padded frame
        frame = jnp.full((tall, wide, m.shape[0]), jnp.nan).at[: m.shape[1], : m.shape[2]].set(features)
        padded = resize(frame, size=jnp.array(m.shape[1:]))
        np.testing.assert_allclose(padded, expected, rtol=0, atol=1e-5)


def test_correlation_is_a_dot_product_of_every_pair():
    image, query = np.random.default_rng(0).standard_normal((2, 3, 4, 7)).astype(np.float32)
    corr = correlation.correlate(jnp.asarray(image), jnp.asarray(query))
    assert corr.shape == (3, 4, 3, 4)
    np.testing.assert_allclose(corr[2, 1, 0, 3], image[2, 1] @ query[0, 3], rtol=1e-5)


def test_half_precision_is_accumulated_in_float32():
    image, query = jnp.ones((1, 1, 4096), jnp.float16), jnp.ones((1, 1, 4096), jnp.float16)
    query = query.at[..., 1:].set(2.0**-12)
    wide = correlation.correlate(image, query, dtype=jnp.float32)
    assert wide.dtype == jnp.float32
    np.testing.assert_allclose(wide, 1 + 4095 / 4096, rtol=1e-6)
    assert correlation.correlate(image, query).dtype == jnp.float16
    assert jax.eval_shape(correlation.correlate, image, query.astype(jnp.float32)).dtype == jnp.float32


def test_normalisation_of_zeros_is_zero_with_a_finite_gradient():
    zeros = jnp.zeros((2, 5))
    assert not np.asarray(correlation.l2_normalize(zeros, epsilon=1e-5)).any()
    gradient = jax.grad(lambda x: correlation.l2_normalize(x, epsilon=1e-5).sum())(zeros)
    assert np.isfinite(gradient).all()
    half = correlation.l2_normalize(jnp.full((3, 1024), 60000.0, jnp.float16), epsilon=1e-5)
    np.testing.assert_allclose(half, 1 / 32, rtol=1e-3)
