"""The retrieval network: shapes, pooling and whitening, padding, what trains; tiny maps, one real compile."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from sm_jax import systems
from sm_jax.errors import ConfigError
from sm_jax.ops.gem import gem_reference
from sm_jax.systems.retrieval import model, objective

CONFIG = model.ModelConfig(dim=8, image_size=64)
_describe = jax.jit(model.describe_features, static_argnums=0)
_pool = jax.jit(model.pool)
_loss = jax.jit(objective.loss, static_argnums=(0, 1))


@functools.cache
def _head():
    """Variables without the backbone's, and two feature maps."""
    rng = np.random.default_rng(0)
    params = {
        "pool": {"p": jnp.array([2.5])},
        "whiten": {
            "kernel": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32),
            "bias": jnp.asarray(rng.normal(size=4), jnp.float32),
        },
    }
    return {"params": params}, jnp.asarray(np.maximum(rng.normal(size=(2, 3, 4, 6)), 0), jnp.float32)


def test_shapes_at_real_size():
    """Costs no computation: 240 pixels are 15 cells."""
    image, size = jax.ShapeDtypeStruct((2, 240, 240, 3), jnp.float32), jax.ShapeDtypeStruct((2, 2), jnp.int32)
    system = systems.make(ConfigDict({"system": "retrieval", "model": {"dim": 8}, "objective": {}}))
    variables = jax.eval_shape(lambda: system.init(jax.random.key(0), None))
    assert set(variables["params"]) == {"backbone", "pool", "whiten"}
    assert variables["params"]["whiten"]["kernel"].shape == (1024, 8)
    features = jax.eval_shape(functools.partial(model.extract, CONFIG), variables, image, size)
    assert features.shape == (2, 15, 15, 1024)
    encoded = jax.eval_shape(system.encode, variables, {"image": image, "size": size})
    assert encoded["descriptor"].shape == (2, 8)
    scores = jax.eval_shape(system.predict, variables, {"image": image, "size": size}, encoded)["scores"]
    assert scores.shape == (2, 2)


def test_a_descriptor_is_pooled_whitened_and_normalised_twice():
    variables, features = _head()
    size = jnp.array([[40, 60], [48, 64]])  # in cells 3 x 4 both
    found = _describe(CONFIG, variables, features, size)
    for one, descriptor in zip(np.asarray(features), found, strict=True):
        pooled = gem_reference(one, 2.5)
        pooled = pooled / np.linalg.norm(pooled)
        layer = jax.tree.map(np.asarray, variables["params"]["whiten"])
        expected = pooled @ layer["kernel"] + layer["bias"]
        np.testing.assert_allclose(descriptor, expected / np.linalg.norm(expected), rtol=1e-4, atol=1e-5)


def test_without_whitening_it_is_the_pooled_feature():
    variables, features = _head()
    size = jnp.full((2, 2), 48)
    config = model.ModelConfig(whiten=False)
    found = _describe(config, variables, features, size)
    np.testing.assert_allclose(found, _pool(variables, features, size), rtol=1e-6)
    assert "whiten" not in jax.eval_shape(lambda: model.init(config, jax.random.key(0)))["params"]


def test_cells_outside_the_picture_do_not_count():
    variables, features = _head()
    inside = _pool(variables, features[:, :2, :3], jnp.full((2, 2), 48))
    size = jnp.array([[32, 48], [17, 33]])  # in cells 2 x 3 both
    np.testing.assert_allclose(_pool(variables, features, size), inside, rtol=1e-5)


@pytest.mark.slow
def test_a_padded_picture_has_the_descriptor_of_the_picture():
    config = model.ModelConfig(dim=8)
    variables = model.init(config, jax.random.key(0))
    image = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    image[:, 40:], image[:, :, 52:] = 0, 0
    describe = jax.jit(functools.partial(model.describe, config))
    found = describe(variables, image, jnp.array([[40, 52]]))
    alone = describe(variables, image[:, :40, :52], jnp.array([[40, 52]]))
    np.testing.assert_allclose(found, alone, atol=2e-5)


def test_what_trains():
    assert model.trainable(CONFIG, "backbone/layer3_5/conv1/kernel") and model.trainable(CONFIG, "pool/p")
    frozen = model.ModelConfig(train_features=False)
    assert not model.trainable(frozen, "backbone/conv1/kernel") and model.trainable(frozen, "whiten/bias")
    some = model.ModelConfig(frozen_blocks=1)
    assert not model.trainable(some, "backbone/conv1/kernel")
    assert model.trainable(some, "backbone/layer1_0/conv1/kernel")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"depth": 18}, "model.depth"),
        ({"norm": "batch_norm"}, "model.norm"),
        ({"p": 0.0}, "model.p"),
        ({"dim": 2000}, "model.dim"),
        ({"dim": 8, "whiten": False}, "no whitening"),
        ({"image_size": 8}, "model.image_size"),
        ({"frozen_blocks": 99}, "model.frozen_blocks"),
        ({"whitening": True}, "did you mean 'whiten'"),
    ],
)
def test_options_that_cannot_be_used_are_one_line(options, line):
    with pytest.raises(ConfigError, match=line):
        model.ModelConfig.create(options)


# the objective -------------------------------------------------------------------------------------


def _batch():
    rng = np.random.default_rng(1)
    return {
        "image_trunk": np.maximum(rng.normal(size=(2, 4, 3, 4, 6)), 0).astype(np.float16),
        "size": np.full((2, 4, 2), 48, np.int32),
        "valid": np.array([[True, True, True, False], [True] * 4]),
    }


def test_the_loss_is_the_sum_over_pairs_of_a_query():
    variables, _ = _head()
    batch, config = _batch(), objective.ObjectiveConfig(margin=1.2)
    loss, (metrics, updates) = _loss(CONFIG, config, variables, batch, None)
    expected = 0.0
    for maps, valid in zip(batch["image_trunk"], batch["valid"], strict=True):
        found = np.asarray(_describe(CONFIG, variables, jnp.asarray(maps), jnp.full((4, 2), 48)))
        for place in range(1, 4):
            d = np.linalg.norm(found[0] - found[place])
            if valid[place]:
                expected += d**2 / 2 if place == 1 else max(0, 1.2 - d) ** 2 / 2
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    assert updates == {} and set(metrics) == {"positive_distance", "negative_distance", "violated", "p"}
    assert 0 <= metrics["violated"] <= 1 and metrics["p"] == 2.5


def test_a_query_that_cannot_be_read_teaches_nothing():
    variables, _ = _head()
    batch = _batch() | {"valid": np.zeros((2, 4), bool)}
    batch["image_trunk"] = np.zeros_like(batch["image_trunk"])

    def value(params):
        return objective.loss(CONFIG, objective.ObjectiveConfig(), {"params": params}, batch, None)[0]

    loss, grads = jax.jit(jax.value_and_grad(value))(variables["params"])
    assert loss == 0 and all(not np.any(leaf) for leaf in jax.tree.leaves(grads))


def test_the_margin_is_a_distance():
    with pytest.raises(ConfigError, match="objective.margin"):
        objective.ObjectiveConfig(margin=3.0)
    with pytest.raises(ConfigError, match="did you mean 'margin'"):
        objective.ObjectiveConfig.create({"margn": 1.0})
