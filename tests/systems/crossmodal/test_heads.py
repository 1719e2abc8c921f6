"""The proposal encoder's convolution against a general one, and the aligner on the numbers of the spec."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax.systems.crossmodal.heads import (
    CosineAligner,
    MlpAligner,
    ProposalEncoder,
    convolve_two_by_two,
)


def reference(cells, kernel):
    return jax.lax.conv_general_dilated(
        cells, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def test_convolution_equals_the_general_one_with_gradients():
    rng = np.random.default_rng(0)
    cells, kernel, weights = (
        rng.normal(size=shape).astype(np.float32) for shape in ((5, 2, 2, 7), (3, 3, 7, 4), (5, 2, 2, 4))
    )
    got, backward = jax.vjp(convolve_two_by_two, cells, kernel)
    want, backward_reference = jax.vjp(reference, cells, kernel)
    np.testing.assert_allclose(got, want, atol=1e-5)
    for mine, theirs in zip(backward(weights), backward_reference(weights), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    assert convolve_two_by_two(jnp.asarray(cells, jnp.bfloat16), jnp.asarray(kernel)).dtype == jnp.bfloat16


def test_proposals_have_length_one_also_in_half_precision():
    encoder = ProposalEncoder(8, 9, 6)
    cells = np.random.default_rng(1).normal(size=(3, 2, 2, 5)).astype(np.float32)
    variables, apply = jax.jit(encoder.init)(jax.random.key(0), cells), jax.jit(encoder.apply)
    full = apply(variables, cells)
    half = apply(variables, jnp.asarray(cells, jnp.float16))
    assert full.dtype == half.dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(full, axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(half, full, atol=1e-2)
    params = jax.device_get(variables["params"])
    x = np.maximum(reference(cells, params["conv"]["kernel"]) + params["conv_bias"].reshape(1, 1, 1, -1), 0)
    x = np.maximum(x.reshape(3, -1) @ params["hidden"]["kernel"], 0) @ params["embed"]["kernel"]
    np.testing.assert_allclose(full, x / np.linalg.norm(x, axis=-1, keepdims=True), atol=1e-5)


def test_vector_6_alignment():
    params = {
        "hidden_kernel": np.float32([[1, -1], [0.5, 0.5], [-1, 2], [0, 1]]),
        "hidden_bias": np.float32([0.1, -0.2]),
        "out": {"kernel": np.float32([[2], [-1]]), "bias": np.float32([0.05])},
    }
    proposals, text = np.float32([[0.6, 0.8]]), np.float32([[1, 0]])
    logits = MlpAligner(2).apply({"params": params}, proposals, text)
    np.testing.assert_allclose(logits, [[-1.35]], atol=1e-6)
    np.testing.assert_allclose(jax.nn.sigmoid(logits), [[0.205870]], atol=1e-6)
    np.testing.assert_allclose(0.9 * jax.nn.sigmoid(logits), [[0.185283]], atol=1e-6)


def test_pairs_equal_the_perceptron_on_joined_vectors():
    rng = np.random.default_rng(2)
    proposals, text = (rng.normal(size=(n, 6)).astype(np.float32) for n in (5, 3))
    aligner = MlpAligner(7)
    variables = jax.jit(aligner.init)(jax.random.key(0), proposals, text)
    params = jax.device_get(variables["params"])
    got = jax.jit(aligner.apply)(variables, proposals, text)
    assert got.shape == (3, 5)
    for q in range(3):
        for k in range(5):
            joined = np.concatenate([proposals[k], text[q]])
            hidden = np.maximum(joined @ params["hidden_kernel"] + params["hidden_bias"], 0)
            want = hidden @ params["out"]["kernel"] + params["out"]["bias"]
            np.testing.assert_allclose(got[q, k], want[0], atol=1e-5)


@pytest.mark.parametrize("bias", [0.0, -1.5])
def test_cosine_is_a_scaled_product(bias):
    rng = np.random.default_rng(3)
    proposals, text = (rng.normal(size=(n, 6)).astype(np.float32) for n in (5, 3))
    params = {"scale": np.float32(4), "bias": np.float32(bias)}
    got = CosineAligner().apply({"params": params}, proposals, text)
    np.testing.assert_allclose(got, 4 * (text @ proposals.T) + bias, rtol=1e-5)
