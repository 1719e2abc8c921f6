"""The detector's parts: names and shapes at real size, what trains, and padding that changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax import systems
from sm_jax.errors import ConfigError
from sm_jax.systems.detector import model
from sm_jax.weights.io import flatten
from tests.systems.detector import tiny


@functools.cache
def _real():
    """Config and shapes of the variables of a class detector on a real ResNet."""
    config = model.ModelConfig.create({"classes": 5, "frozen_blocks": 4})
    return config, jax.eval_shape(functools.partial(model.init, config), jax.random.key(0))


def _shapes_of(config, variables, size=(608, 400)):
    image = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    valid = jax.ShapeDtypeStruct((2, 2), jnp.int32)
    boxes = jax.ShapeDtypeStruct((2, 7, 4), jnp.float32)

    def run(variables, image, valid, boxes):
        features, updates = model.extract(config, variables, image, valid)
        assert not updates
        anchors = model.score_anchors(config, variables, features)
        return features, anchors, *model.score_boxes(config, variables, features, boxes, valid)

    return jax.eval_shape(run, variables, image, valid, boxes)


def test_shapes_at_real_size():
    config, variables = _real()
    assert set(variables["params"]) == {"backbone", "rpn", "projection", "roi"}
    assert set(variables["batch_stats"]) == {"backbone"}
    features, anchors, logits, codes = _shapes_of(config, variables)
    assert features.shape == (2, 38, 25, 1024)
    assert anchors["codes"].shape == (2, len(model.anchors(config, (38, 25))), 4) == (2, 38 * 25 * 12, 4)
    assert logits.shape == (2, 7, 6) and codes.shape == (2, 7, 5, 4) and logits.dtype == jnp.float32


@pytest.mark.parametrize(
    ("options", "logits", "codes"),
    [
        ({"shared_boxes": False}, 2, (1, 4)),
        ({"classes": 5}, 6, (4,)),
        ({"roi_channels": 0}, 2, (4,)),
    ],
)
def test_shapes_of_other_heads(monkeypatch, options, logits, codes):
    tiny.patch(monkeypatch)
    config = tiny.config(**options)
    variables = jax.eval_shape(functools.partial(model.init, config), jax.random.key(0))
    assert ("projection" in variables["params"]) == bool(config.roi_channels)
    _, _, *found = _shapes_of(config, variables)
    assert found[0].shape == (2, 7, logits) and found[1].shape == (2, 7, *codes)


def test_what_trains():
    config, variables = _real()
    names = [name.removeprefix("params/") for name in flatten(variables) if name.startswith("params/")]
    units = {name.split("/")[1] for name in names if model.trainable(config, name)}
    assert {"layer2_0", "layer3_5"} <= units and not {"conv1", "bn1", "layer1_0", "layer1_2"} & units
    frozen = model.ModelConfig.create({"train_features": False})
    parts = {name.split("/")[0] for name in names if model.trainable(frozen, name)}
    assert parts == {"rpn", "projection", "roi"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"depth": 34}, "model.depth"),
        ({"norm": "layer"}, "model.norm"),
        ({"classes": -1}, "model.classes"),
        ({"roi_size": 0}, "model.roi_size"),
        ({"anchor_sizes": ()}, "model.anchor_sizes"),
        ({"anchor_aspects": (0.0,)}, "model.anchor_aspects"),
        ({"frozen_blocks": 99}, "model.frozen_blocks"),
        ({"clases": 3}, "did you mean 'classes'"),
    ],
)
def test_a_model_that_cannot_be_is_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        model.ModelConfig.create(options)


def test_the_system_is_registered():
    with pytest.raises(ConfigError, match="objective.roi_iou"):
        systems.make(_sections(objective={"roi_iou": 2}))
    system = systems.make(_sections())
    assert system.encode({}, {}) == {} and system.trainable("roi/logits/kernel")


def _sections(**sections):
    from ml_collections import ConfigDict

    return ConfigDict({"system": "detector", "model": {}, "objective": {}} | sections)


def test_boxes_at_the_border_read_the_same_with_and_without_padding(monkeypatch):
    tiny.patch(monkeypatch)
    config = tiny.config()
    variables = model.init(config, jax.random.key(0))
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, 64, 96, 3)).astype(np.float32)
    boxes = np.float32([[[0, 0, 40, 40], [60, 20, 96, 64], [80, 50, 96, 64]]])

    @jax.jit
    def run(image, size):
        features, _ = model.extract(config, variables, image, size)
        return model.score_boxes(config, variables, features, boxes, size)

    plain = run(image, jnp.array([[64, 96]]))
    padded = run(np.pad(image, ((0, 0), (0, 48), (0, 32), (0, 0))), jnp.array([[64, 96]]))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), plain, padded)
    assert np.abs(plain[0]).max() > 1e-3


def test_boxes_of_a_large_picture_are_read_in_parts(monkeypatch):
    rng = np.random.default_rng(1)
    features = rng.normal(size=(4, 6, 3)).astype(np.float32)
    boxes = np.float32([[0, 0, 40, 40], [60, 20, 96, 64], [80, 50, 96, 64]])
    config = tiny.config()
    whole = jax.jit(functools.partial(model._read, config))(features, boxes)
    monkeypatch.setattr(model, "ROI_WEIGHTS", 2 * 9 * 4 * 6)  # two boxes at a time
    parts = jax.jit(lambda *arrays: model._read(config, *arrays))(features, boxes)
    np.testing.assert_allclose(parts, whole, atol=1e-6)
