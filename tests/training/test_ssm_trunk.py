"""Stored features of SSM's branches: the same pairs, the same loss as on pictures, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import ssm as ssm_config
from sm_jax import data, systems
from sm_jax.data import transforms
from sm_jax.errors import ConfigError, WeightsError
from sm_jax.systems.ssm import model
from sm_jax.training.trunk import make_train_iterator
from sm_jax.training.trunk_ssm import Trunk
from sm_jax.weights import initialize
from sm_jax.weights.io import save_variables


def make_config(folder, **changes):
    config = ssm_config.get_config("runlocal,trainable=3b")
    config.model.update(image_size=(64, 64), request_size=(16, 16), dropout=0.0)
    config.data.update(cache_dir=str(folder), workers=0, object_size=40.0)
    config.data.shelves.update(num_train=3, num_classes=8, image_size=(96, 128), object_size=(40.0, 60.0))
    config.data.shelves.update(classes_per_scene=(2, 2), objects=(2, 4))
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return config


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """(config, trunk, stored features)."""
    config = make_config(tmp_path_factory.mktemp("cache"))
    trunk = Trunk(config)
    return config, trunk, trunk.fill(lambda line: None)


def test_what_is_stored_is_what_the_frozen_stages_give(filled):
    config, trunk, found = filled
    options = model.ModelConfig.create(config.model)
    for branch, members in (("image", trunk.pairs.windows), ("request", trunk.pairs.crops)):
        stored = getattr(found, branch)
        assert len(stored) == len(members) and not stored.damaged()
        picture = transforms.bgr_minus_mean(members.picture(1))[None]
        features = model.trunk(options, trunk.variables, jnp.asarray(picture), of=branch)[0]
        np.testing.assert_allclose(stored[1], features, rtol=2e-3, atol=2e-3 * float(jnp.abs(features).max()))


@pytest.mark.slow
def test_loss_on_stored_features_is_the_loss_on_pictures(filled):
    config = filled[0]
    plain = config.copy_and_resolve_references()
    plain.data.cache_trunk = False
    iterators = [make_train_iterator(each, say=print) for each in (config, plain)]
    on_features, on_pictures = (next(iterator) for iterator in iterators)
    for iterator in iterators:
        iterator.close()
    assert "image_trunk" in on_features and "image" in on_pictures
    for name in ("boxes", "valid", "positive"):
        np.testing.assert_array_equal(on_features[name], on_pictures[name])
    system = systems.make(config)
    variables = _start(config, system)
    losses = [
        float(jax.jit(system.loss)(variables, batch, jax.random.key(1))[0])
        for batch in (on_features, on_pictures)
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-3)


def test_going_on_with_other_frozen_stages_is_refused(filled):
    config = filled[0]
    iterator = make_train_iterator(config, say=print)
    variables = jax.tree.map(np.array, _start(config, systems.make(config)))
    iterator.check(variables)
    params = variables["params"]
    params["request_branch"]["inception_3b"]["one"]["kernel"] *= 2  # trains, so it may differ
    params["head"]["conv1"]["kernel"] *= 2
    iterator.check(variables)
    params["request_branch"]["conv1"]["kernel"] *= 2
    with pytest.raises(WeightsError, match="not what config.init names"):
        iterator.check(variables)
    iterator.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__trainable": "all"}, "nothing of the branches is frozen"),
        ({"init__backbone": ""}, "random numbers; name real features with init.backbone=googlenet-bvlc"),
        ({"data__fixed_crops": False}, "set data.fixed_crops=True"),
    ],
)
def test_features_that_mean_nothing_are_refused(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words) as error:
        make_train_iterator(make_config(tmp_path, **changes), say=print)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"data__views": 2}, {"model__trainable": "4a"}, {"data__object_size": 30.0}]
)
def test_other_features_have_another_file(filled, changes):
    config, trunk, _ = filled
    other = config.copy_and_resolve_references()
    other.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    assert _paths(Trunk(other)).isdisjoint(_paths(trunk))


def test_a_moved_box_is_another_file(filled, monkeypatch):
    config, trunk, _ = filled
    make = data.make_ssm_source

    def moved(config):
        source = make(config)
        annotation = source.annotation

        def one_box_moved(index):
            entry = annotation(index)
            return entry | {"boxes": entry["boxes"] + np.float32([1, 0, 1, 0]) * (index == 0)}

        source.annotation = one_box_moved
        return source

    assert _paths(Trunk(config)) == _paths(trunk)
    monkeypatch.setattr(data, "make_ssm_source", moved)
    assert _paths(Trunk(config)).isdisjoint(_paths(trunk))


def test_branches_of_their_own_are_what_is_stored(filled, tmp_path):
    config, trunk, _ = filled
    path = tmp_path / "other.safetensors"
    branch = jax.tree.map(np.asarray, _start(config, systems.make(config))["params"]["request_branch"])
    branch["conv1"]["kernel"] = branch["conv1"]["kernel"] * 2
    save_variables(path, {"params": {"backbone": branch}})
    other = config.copy_and_resolve_references()
    other.init.request_branch = str(path)
    found = Trunk(other)
    np.testing.assert_array_equal(
        found.variables["params"]["request_branch"]["conv1"]["kernel"], branch["conv1"]["kernel"]
    )
    assert _paths(found).isdisjoint(_paths(trunk))
    iterator = make_train_iterator(other, say=print)
    iterator.check(_start(other, systems.make(other)))  # what the run starts from
    iterator.close()
    other.init.update(backbone="", request_branch="googlenet-bvlc")
    with pytest.raises(ConfigError, match="random numbers"):  # the other branch
        Trunk(other)


def _paths(trunk):
    return {file.path for file in trunk.files.values()}


def _start(config, system):
    """Random variables on the packaged branches, as a run starts."""
    shapes = jax.eval_shape(lambda: system.init(jax.random.key(0), None))
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda leaf: 0.05 * rng.standard_normal(leaf.shape, np.float32), shapes)
    return jax.tree.map(jnp.asarray, initialize(drawn, config.init)[0])
