"""VGG16 against PyTorch level by level, its masking of padded pictures, freezing, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax.backbones import vgg
from sm_jax.errors import ConfigError


def variables(level="c4", seed=0):
    """Seeded parameters, cheaper than initialising."""
    model = vgg.VGG16(level=level)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    rng = np.random.default_rng(seed)

    def draw(leaf):
        scale = 0.1 if leaf.ndim == 1 else np.sqrt(2 / np.prod(leaf.shape[:3]))
        return (scale * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree.map(draw, shapes)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_shapes_and_parameters_at_full_size():
    model = vgg.VGG16()
    image = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 7_635_264
    assert list(shapes) == ["params"] and set(shapes["params"]) == set(vgg.unit_names())
    levels = jax.eval_shape(model.apply, shapes, image)
    for level, side, channels in (("c1", 112, 64), ("c2", 56, 128), ("c3", 28, 256), ("c4", 14, 512)):
        assert levels[level].shape == (2, side, side, channels)
    odd = jax.eval_shape(model.apply, shapes, jax.ShapeDtypeStruct((1, 47, 95, 3), jnp.float32))["c4"]
    assert odd.shape[1:3] == (vgg.feature_size(47), vgg.feature_size(95)) == (2, 5)


def test_every_level_equals_pytorch():
    torch = pytest.importorskip("torch")
    values, image = variables(), noise(2, 37, 50, 3)
    levels = jax.jit(vgg.VGG16().apply)(values, image)
    x = torch.from_numpy(image.transpose(0, 3, 1, 2))
    for stage, widths in enumerate(vgg.STAGES, start=1):
        for place in range(1, len(widths) + 1):
            layer = values["params"][f"conv{stage}_{place}"]
            kernel = torch.from_numpy(layer["kernel"].transpose(3, 2, 0, 1).copy())
            x = torch.nn.functional.conv2d(x, kernel, torch.from_numpy(layer["bias"]), padding=1).relu()
        x = torch.nn.functional.max_pool2d(x, 2)
        want = x.permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(levels[f"c{stage}"], want, atol=2e-5 * np.abs(want).max(), rtol=0)


@pytest.mark.parametrize("size", [(33, 50), (31, 48)])
def test_padded_equals_unpadded(size):
    model, values = vgg.VGG16(level="c3"), variables("c3")
    image = noise(1, *size, 3)
    padded = np.pad(image, ((0, 0), (0, 64 - size[0]), (0, 72 - size[1]), (0, 0)))
    plain, masked = model.apply(values, image), model.apply(values, padded, jnp.asarray([size]))
    for level, stride in (("c1", 2), ("c2", 4), ("c3", 8)):
        h, w = vgg.feature_size(size[0], stride), vgg.feature_size(size[1], stride)
        assert plain[level].shape[1:3] == (h, w)
        np.testing.assert_allclose(masked[level][:, :h, :w], plain[level], atol=2e-5)
        assert not np.asarray(masked[level][:, h:]).any() and not np.asarray(masked[level][:, :, w:]).any()


@pytest.mark.parametrize("frozen", [0, 2, 4])
def test_frozen_convolutions_get_no_gradient(frozen):
    values, image = variables("c2"), noise(1, 8, 8, 3)
    model = vgg.VGG16(level="c2", frozen_blocks=frozen)
    gradients = jax.grad(lambda v: (model.apply(v, image)["c2"] ** 2).sum())(values)["params"]
    for index, name in enumerate(vgg.unit_names("c2")):
        moved = any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradients[name]))
        assert moved == (index >= frozen)
        assert vgg.is_frozen(f"{name}/kernel", frozen_blocks=frozen) == (index < frozen)


def test_half_precision_stays_half_and_near():
    values, image = variables("c2"), noise(1, 16, 16, 3)
    want = vgg.VGG16(level="c2").apply(values, image)["c2"]
    got = vgg.VGG16(level="c2", dtype=jnp.bfloat16).apply(values, image)["c2"]
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.03 * float(want.max()))


@pytest.mark.parametrize(
    ("options", "size", "words"),
    [
        ({"level": "c5"}, 32, "level='c5' is not one of c1, c2, c3, c4"),
        ({"frozen_blocks": 11}, 32, "there are 0 to 10 units"),
        ({"level": "c1", "frozen_blocks": 3}, 32, "there are 0 to 2 units"),
        ({}, 15, "a picture of 15x15 pixels has no cell of level c4, which needs 16"),
    ],
)
def test_refusals(options, size, words):
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    with pytest.raises(ConfigError, match=words):
        jax.eval_shape(functools.partial(vgg.VGG16(**options).init, jax.random.key(0)), image)
