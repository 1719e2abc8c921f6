"""The matcher's networks: sizes, shapes, trunks, the head and its collapse."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax.backbones import googlenet
from sm_jax.errors import ConfigError
from sm_jax.systems.ssm import model
from tests.systems.ssm import tiny


def count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("fusion", model.FUSIONS)
def test_parameter_counts_of_the_specification(fusion):
    params = tiny.shapes(model.ModelConfig(fusion=fusion))["params"]
    extra = 1024 * 1024 if fusion.startswith("concat") else 0
    assert count(params["image_branch"]) == count(params["request_branch"]) == 5_973_552
    assert count(params["head"]) == 2_104_325 + extra
    assert count(params["head"]["coverage"]) == 1_025 and count(params["head"]["boxes"]) == 4_100
    assert count(params) == 14_051_429 + extra


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fusion", model.FUSIONS)
def test_shapes_at_full_size(fusion, dtype):
    config = model.ModelConfig(fusion=fusion, dtype=dtype)
    inputs = {"image": jnp.zeros((2, 512, 512, 3)), "request": jnp.zeros((2, 128, 128, 3))}

    def everything(variables, inputs):
        features = model.extract(config, variables, inputs)
        request = model.encode(config, variables, inputs)["request"]
        return features, request, model.head(config, variables, features, request)

    features, request, out = jax.eval_shape(everything, tiny.shapes(config), inputs)
    assert features.shape == (2, 32, 32, 1024) and features.dtype == dtype
    assert request.shape == ((2, 32, 32, 1024) if config.aligned else (2, 1024))
    assert request.dtype == (dtype if config.aligned else "float32")
    assert out["logits"].shape == (2, 32, 32) and out["offsets"].shape == (2, 32, 32, 4)
    assert out["logits"].dtype == out["offsets"].dtype == jnp.float32


def test_initialisation():
    params = jax.device_get(model.init(tiny.config(), jax.random.key(0)))["params"]
    kernel = params["image_branch"]["inception_4a"]["three"]["kernel"]
    bound = np.sqrt(3 / (9 * 96))
    assert 0.99 * bound < np.abs(kernel).max() <= bound
    for part in ("conv1", "conv2"):
        assert (params["head"][part]["bias"] == np.float32(0.2)).all()
        assert (params["request_branch"][part]["bias"] == np.float32(0.2)).all()
    assert not params["head"]["coverage"]["bias"].any() and not params["head"]["boxes"]["bias"].any()
    assert (params["image_branch"]["conv1"]["kernel"] != params["request_branch"]["conv1"]["kernel"]).any()


@pytest.mark.parametrize("fusion", model.FUSIONS)
def test_the_collapsed_head_is_the_head(fusion):
    """SSM specification, sec. 8, no. 5; also of one image with many requests."""
    config = tiny.config(fusion=fusion)
    variables = tiny.variables(config, branches=False)
    features = tiny.features(1, 4, 6)
    requests = tiny.features(*((3, 4, 6) if config.aligned else (3,)), seed=1)
    repeated = np.repeat(features, 3, axis=0)
    want = model.head(config, variables, repeated, requests)
    linear = model.collapse(config, variables)
    fused = model.fuse(config, jnp.asarray(repeated), jnp.asarray(requests))
    assert linear["kernel"].shape == (fused.shape[-1], 5) and linear["bias"].shape == (5,)
    got = fused @ linear["kernel"] + linear["bias"][None, None, None]
    np.testing.assert_allclose(got[..., 0], want["logits"], atol=1e-4)
    np.testing.assert_allclose(got[..., 1:], want["offsets"], atol=1e-4)
    many = jax.jit(functools.partial(model.head_many, config))(linear, features[0], requests)
    for name in ("logits", "offsets"):
        assert many[name].shape == want[name].shape
        np.testing.assert_allclose(many[name], want[name], atol=1e-4)
        assert np.std(want[name]) > 0.05  # or the comparison says nothing


def test_a_head_with_relus_differs_and_is_not_collapsed():
    config = tiny.config(head_relu=True)
    variables = tiny.variables(config, branches=False)
    features, requests = tiny.features(1, 4, 6), tiny.features(1, 4, 6, seed=1)
    curved = model.head(config, variables, features, requests)["logits"]
    straight = model.head(tiny.config(), variables, features, requests)["logits"]
    assert np.abs(curved - straight).max() > 1e-2
    with pytest.raises(ConfigError, match="head_relu"):
        model.collapse(config, variables)


def test_fusions_are_what_they_say():
    features, aligned = (jnp.asarray(tiny.features(1, 2, 3, seed=seed)) for seed in (0, 1))
    vector = aligned.mean((1, 2))
    size = {"image_size": (32, 48), "request_size": (8, 12)}
    got = {
        fusion: model.fuse(tiny.config(fusion=fusion, **size), features, request)
        for fusion, request in zip(model.FUSIONS, (aligned, aligned, vector, vector), strict=True)
    }
    np.testing.assert_array_equal(got["product_aligned"], features * aligned)
    np.testing.assert_array_equal(got["concat_aligned"][..., 1024:], aligned)
    np.testing.assert_allclose(got["product_gap"], features * vector[:, None, None], rtol=1e-6)
    np.testing.assert_array_equal(got["concat_gap"][..., :1024], features)
    np.testing.assert_array_equal(got["concat_gap"][0, 1, 2, 1024:], vector[0])
    with pytest.raises(ValueError, match=r"request of \(4, 6\) cells, image of \(2, 3\)"):
        model.fuse(tiny.config(), features, jnp.zeros((1, 4, 6, 1024)))


def test_dropout_acts_on_the_fused_channels_in_training_only():
    config = tiny.config(dropout=0.4)
    variables = tiny.variables(config, branches=False)
    features, request = tiny.features(1, 4, 6), tiny.features(1, 4, 6, seed=1)
    run = functools.partial(model.head, config, variables, features, request)
    plain = run()["logits"]
    drawn = [run(key=jax.random.key(i))["logits"] for i in range(3)]
    for one, other in itertools.combinations([plain, *drawn], 2):
        assert np.abs(one - other).max() > 1e-3
    np.testing.assert_array_equal(run(key=jax.random.key(1))["logits"], drawn[1])
    without = model.head(tiny.config(), variables, features, request, key=jax.random.key(0))["logits"]
    np.testing.assert_array_equal(without, plain)
    mean = np.mean([run(key=jax.random.key(i))["logits"] for i in range(60)], axis=0)
    np.testing.assert_allclose(mean, plain, atol=5 * np.std(drawn[0] - plain) / np.sqrt(60))


@pytest.mark.parametrize("trainable", ["4a", "head"])
def test_features_of_frozen_stages_can_be_kept(trainable):
    config = tiny.config(trainable=trainable)
    variables = tiny.variables(config)
    rng = np.random.default_rng(0)
    pictures = {"image": (1, 32, 48, 3), "request": (1, 8, 12, 3)}
    pictures = {name: rng.uniform(-127, 128, shape).astype(np.float32) for name, shape in pictures.items()}
    run = jax.jit(
        lambda inputs: (model.extract(config, variables, inputs), model.encode(config, variables, inputs))
    )
    features, encoded = run(pictures)
    keep = jax.jit(functools.partial(model.trunk, config), static_argnames="of")
    trunks = {f"{of}_trunk": keep(variables, x, of=of) for of, x in pictures.items()}
    channels = {"4a": 480, "head": 1024}[trainable]
    assert {x.shape for x in trunks.values()} == {(1, 2, 3, channels)}
    again, encoded_again = run(trunks)
    np.testing.assert_allclose(again, features, rtol=1e-4, atol=1e-4 * np.abs(features).max())
    want = np.asarray(encoded["request"])
    np.testing.assert_allclose(encoded_again["request"], want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
    assert np.std(features) > 0 and np.std(want) > 0


@pytest.mark.parametrize(
    ("trainable", "trained", "frozen"),
    [
        ("all", "image_branch/conv1/kernel", None),
        ("5a", "request_branch/inception_5a/one/bias", "request_branch/inception_4e/one/bias"),
        ("conv2", "image_branch/conv2_reduce/kernel", "image_branch/conv1/bias"),
        ("head", "head/conv1/kernel", "image_branch/inception_5b/one/kernel"),
    ],
)
def test_what_trains(trainable, trained, frozen):
    config = model.ModelConfig(trainable=trainable)
    assert model.trainable(config, trained) and model.trainable(config, "head/boxes/bias")
    assert frozen is None or not model.trainable(config, frozen)


def test_frozen_stages_get_no_gradient():
    config = tiny.config(trainable="5b", image_size=(16, 16), request_size=(4, 4))
    variables = tiny.variables(config)
    image = 50 * np.random.default_rng(0).standard_normal((1, 16, 16, 3)).astype(np.float32)

    def loss(variables):
        return jnp.sum(model.extract(config, variables, {"image": image}) ** 2)

    grads = jax.jit(jax.grad(loss))(variables)["params"]["image_branch"]
    for name, layer in grads.items():
        some = any(np.any(leaf) for leaf in jax.tree.leaves(layer))
        assert some == (not googlenet.is_frozen(name, start="5b")), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fusion": "product"}, "model.fusion: 'product' is none of product_aligned, "),
        ({"dtype": "float64"}, "model.dtype"),
        ({"dropout": 1.0}, "model.dropout"),
        ({"image_size": (512, 500)}, r"model.image_size: \(512, 500\) must be two positive multiples of 16"),
        ({"request_size": (126, 128)}, "model.request_size"),
        ({"image_size": (512, 640)}, r"model.fusion: .* is \(32, 40\), request_size / 4 \(32, 32\)"),
        ({"trainable": "last3"}, "model.trainable: 'last3' is none of all, head, conv1"),
        ({"fussion": "product_gap"}, "model.fussion: unknown key; did you mean 'fusion'"),
    ],
)
def test_configs_that_cannot_be_run_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        model.ModelConfig.create(options)
    model.ModelConfig(fusion="product_gap", image_size=(512, 640))  # the gap fusions take any size


def test_wrong_inputs_are_refused():
    config = model.ModelConfig()
    with pytest.raises(ConfigError, match="no stage of the branches is frozen"):
        model.trunk(config, {}, jnp.zeros((1, 16, 16, 3)), of="image")
    with pytest.raises(ConfigError, match="the batch needs pictures, not a trunk"):
        model.extract(config, {}, {"image_trunk": jnp.zeros((1, 1, 1, 480))})
    with pytest.raises(ValueError, match=r"images are \(24, 16\) pixels, expected multiples of 16"):
        model.extract(config, {}, {"image": jnp.zeros((1, 24, 16, 3))})
    with pytest.raises(ValueError, match="requests are"):
        model.encode(config, {}, {"request": jnp.zeros((1, 6, 8, 3))})
