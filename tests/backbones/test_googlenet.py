"""GoogLeNet: shapes, poolings, parts of it, Caffe's recorded activations, and a photograph."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax import weights
from sm_jax.backbones import googlenet
from sm_jax.backbones.googlenet import Classifier, GoogLeNet, max_pool, max_pool_same
from sm_jax.data.transforms import bgr_minus_mean
from sm_jax.errors import ConfigError
from sm_jax.weights import io, registry
from tests import goldens

USES = {
    "image": (
        GoogLeNet(2, (1, 2, 3)),
        512,
        {"conv1": 256, "pool1": 128, "conv2": 128, "pool2": 64, "3b": 64},
    ),
    "request": (GoogLeNet(1, (1, 2)), 128, {"conv1": 128, "pool1": 64, "conv2": 64, "pool2": 32, "3b": 32}),
    "classify": (GoogLeNet(2, (1, 2, 3, 4)), 224, {"conv1": 112, "pool1": 56, "pool2": 28, "pool3": 14}),
}
CHANNELS = {"conv1": 64, "pool1": 64, "conv2": 192, "pool2": 192, "3a": 256, "3b": 480, "pool3": 480}
CHANNELS |= {"4a": 512, "4b": 512, "4c": 512, "4d": 528, "4e": 832, "pool4": 832, "5a": 832, "5b": 1024}


@functools.cache
def variables(seed=0):
    """Random ones in NumPy, which keep the activations of the order of 1."""
    shapes = jax.eval_shape(GoogLeNet().init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    rng = np.random.default_rng(seed)

    def fill(leaf):
        fan_in = max(1, int(np.prod(leaf.shape[:-1])))
        return np.float32(np.sqrt(2 / fan_in) * rng.standard_normal(leaf.shape))

    return jax.tree.map(fill, shapes)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def tensors(name):
    """A registered file from `SM_JAX_WEIGHTS` or beside the checkout; without it the test is skipped."""
    known = registry.REGISTRY[name]
    beside = [goldens.ROOT.parent / "shared" / "weights" / file for file in known.files]
    path = registry.find_local(known) or next((path for path in beside if path.is_file()), None)
    if path is None:
        pytest.skip(f"no {known.files[0]}")
    return io.unflatten(weights.checkpoints.read(path)[0].tensors)["params"]


@pytest.mark.parametrize("use", USES)
def test_shapes_and_size_of_the_network(use):
    net, side, sizes = USES[use]
    start = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(start)) == 5_973_552
    out = jax.eval_shape(net.apply, start, jnp.zeros((2, side, side, 3)))
    assert {name: leaf.shape[-1] for name, leaf in out.items() if name != "last"} == {
        name: CHANNELS[name] for name in out if name != "last"
    }
    assert [int(name[-1]) for name in out if name.startswith("pool")] == list(net.pools)
    for name, size in sizes.items():
        assert out[name].shape[1:3] == (size, size), name
    last = {"image": 32, "request": 32, "classify": 7}[use]
    assert out["last"].shape == out["5b"].shape == (2, last, last, 1024)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 13, 57, 114])
def test_pooling_is_that_of_caffe(size):
    x = noise(2, size, size + 1, 3)
    got = np.asarray(max_pool(jnp.asarray(x)))
    heights, widths = (max(-(-(n - 3) // 2) + 1, 1) for n in x.shape[1:3])
    assert got.shape == (2, heights, widths, 3)
    for i, j in itertools.product(range(heights), range(widths)):
        window = x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        np.testing.assert_array_equal(got[:, i, j], window.max((1, 2)))


def test_inner_pooling_keeps_the_size():
    x = noise(1, 4, 6, 2)
    got = np.asarray(max_pool_same(jnp.asarray(x)))
    for i, j in itertools.product(range(4), range(6)):
        window = x[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
        np.testing.assert_array_equal(got[:, i, j], window.max((1, 2)))


def test_gradients_of_poolings_go_to_the_maxima():
    for pool in (max_pool, max_pool_same):
        x = jnp.asarray(np.random.default_rng(1).permutation(49).reshape(1, 7, 7, 1), jnp.float32)
        got = jax.grad(lambda x, pool=pool: jnp.sum(pool(x) ** 2))(x)
        values, counts = np.unique(np.asarray(pool(x)), return_counts=True)
        want = np.zeros((1, 7, 7, 1))
        for value, count in zip(values, counts, strict=True):
            want[np.asarray(x) == value] = 2 * value * count
        np.testing.assert_allclose(got, want)


def test_an_inception_module_is_its_four_branches():
    widths = googlenet.Widths(5, 3, 4, 6, 2, 7, 1)
    module, x = googlenet.Inception(widths), jnp.asarray(noise(2, 4, 5, 5))
    params = module.init(jax.random.key(0), x)["params"]
    for i, layer in enumerate(params.values()):
        layer["bias"] = jnp.asarray(noise(*layer["bias"].shape, seed=i))

    def layer(name, x):
        y = jax.lax.conv_general_dilated(
            x, params[name]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.maximum(y + params[name]["bias"][None, None, None], 0)

    branches = (
        layer("one", x),
        layer("three", layer("reduce_three", x)),
        layer("five", layer("reduce_five", x)),
        layer("pool", max_pool_same(x)),
    )
    got = module.apply({"params": params}, x)
    np.testing.assert_allclose(got, jnp.concatenate(branches, -1), atol=1e-5)
    assert got.shape[-1] == widths.out == 17


@pytest.mark.parametrize("stage", ["conv2", "3a", "4a", "5b"])
def test_parts_in_sequence_are_the_whole(stage):
    net, image = GoogLeNet(), noise(1, 32, 48, 3)
    run = jax.jit(net.apply, static_argnames=("start", "stop"))
    first = run(variables(), image, stop=stage)
    assert stage not in first and first["last"].shape[-1] == googlenet.input_channels(stage)
    second = run(variables(), first["last"], start=stage)
    whole = run(variables(), image)
    assert set(first) | set(second) == set(whole)
    np.testing.assert_allclose(second["last"], whole["last"], rtol=1e-4, atol=1e-5)


def test_frozen_are_the_stages_before():
    names = list(variables()["params"])
    frozen = [name for name in names if googlenet.is_frozen(f"{name}/kernel", start="3b")]
    assert sorted(frozen) == ["conv1", "conv2", "conv2_reduce", "inception_3a"]
    assert not any(googlenet.is_frozen(name, start="conv1") for name in names)
    assert all(googlenet.is_frozen(f"{name}/one/bias", start=googlenet.END) for name in names)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_near(dtype):
    image = noise(1, 32, 32, 3)
    want = GoogLeNet().apply(variables(), image, stop="4a")["last"]
    got = GoogLeNet(dtype=dtype).apply(variables(), image, stop="4a")["last"]
    assert got.dtype == dtype
    error = np.abs(np.float32(got) - np.float32(want)).max() / np.abs(want).max()
    assert 0 < error < (2e-2 if dtype == jnp.bfloat16 else 4e-3)


@pytest.mark.parametrize(
    ("options", "image", "message"),
    [
        ({"start": "6a"}, (1, 16, 16, 3), "'6a' is no stage; there are conv1, conv2, 3a"),
        ({"stop": "pool3"}, (1, 16, 16, 3), "'pool3' is no stage"),
        ({"start": "4a", "stop": "4a"}, (1, 16, 16, 480), "nothing to run"),
        ({"start": "4a"}, (1, 16, 16, 3), r"4a takes \(b, h, w, 480\), not \(1, 16, 16, 3\)"),
        ({}, (16, 16, 3), r"conv1 takes \(b, h, w, 3\), not \(16, 16, 3\)"),
    ],
)
def test_wrong_use_is_one_clear_line(options, image, message):
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(lambda: GoogLeNet().apply(variables(), jnp.zeros(image), **options))


@pytest.mark.parametrize("path", goldens.params(".", "googlenet_caffe_goldens.npz"))
def test_golden_activations_of_caffe(path):
    stored, params = goldens.load(path), tensors("googlenet-bvlc-f32")
    names = {"conv1_7x7_s2": "conv1", "pool2_3x3_s2": "pool2"}
    image = stored["1_data"].transpose(1, 2, 0)[None]
    run = jax.jit(GoogLeNet(pools=(1, 2, 3, 4)).apply)
    got = run({"params": params["backbone"]}, image)
    compared = 0
    for key, want in stored.items():
        layer = key.split("_", 1)[1]
        name = names.get(layer, layer.removeprefix("inception_").removesuffix("_output"))
        if name in got:
            want = want.transpose(1, 2, 0)
            np.testing.assert_allclose(got[name][0], want, rtol=0, atol=2e-5 * want.max(), err_msg=key)
            compared += 1
    assert compared >= 4
    logits = Classifier().apply({"params": params["classifier"]}, got["last"])[0]
    np.testing.assert_allclose(logits, stored["120_loss3_classifier"], atol=1e-4)
    np.testing.assert_allclose(jax.nn.softmax(logits), stored["121_prob"], atol=1e-5)


def photo(mean):
    """The cat of scikit-image, centre cut out and resized to 224; `(1, 224, 224, 3)`."""
    from PIL import Image
    from skimage import data

    image = Image.fromarray(data.chelsea()).crop((75, 0, 375, 300)).resize((224, 224))
    return bgr_minus_mean(np.asarray(image), mean)[None]


def test_a_photograph_of_a_cat_is_one():
    params = tensors("googlenet-bvlc-f32")
    run = jax.jit(GoogLeNet(pools=(1, 2, 3, 4)).apply)
    features = run({"params": params["backbone"]}, photo((104.0, 117.0, 123.0)))["last"]
    logits = Classifier().apply({"params": params["classifier"]}, features)[0]
    cats = jax.nn.softmax(logits)[281:286]  # tabby, tiger, Persian, Siamese, Egyptian
    assert cats.sum() > 0.8


def test_packaged_features_are_nearly_those_of_the_full_file():
    run = jax.jit(GoogLeNet().apply)
    half, full = (tensors(name)["backbone"] for name in ("googlenet-bvlc", "googlenet-bvlc-f32"))
    image = photo(127.0)[:, :128, :128]
    got, want = (run({"params": params}, image)["last"] for params in (half, full))
    assert 0 < np.abs(got - want).max() < 2e-3 * want.max()
