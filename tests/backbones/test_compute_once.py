"""`compute_once` changes no value and no gradient, and keeps the memory of the features down."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax.backbones.once import compute_once
from sm_jax.backbones.resnet import ResNet


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_is_the_identity(dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, 5)), dtype)
    np.testing.assert_array_equal(jax.jit(compute_once)(x), x)
    np.testing.assert_array_equal(jax.vmap(compute_once)(x), x)
    slope = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(compute_once(x)))))(x)
    np.testing.assert_array_equal(slope, jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(x))))(x))
    assert compute_once(x).dtype == dtype


def test_residual_blocks_do_not_keep_each_other_in_memory():
    height, width = 128, 160
    net, image = ResNet(level="c2"), jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), image)
    compiled = jax.jit(net.apply).lower(variables, image).compile()
    # At its widest: input, sum and result of one block of 256 channels at a sixteenth of the pixels.
    assert compiled.memory_analysis().temp_size_in_bytes < 1.1 * 3 * 256 * 4 * (height * width / 16)
