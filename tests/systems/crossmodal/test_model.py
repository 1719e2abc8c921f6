"""The network's functions: start, trunk and tail, pooled features, bad options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax.errors import ConfigError
from sm_jax.ops.roi import roi_align
from sm_jax.systems.crossmodal import model
from tests.systems.crossmodal import tiny


def test_parts_of_the_start():
    config = model.ModelConfig(vocabulary=tiny.WORDS)
    shapes = jax.eval_shape(functools.partial(model.init, config), jax.random.key(0))
    assert set(shapes["params"]) == {"backbone", "rpn", "proposal", "text", "align"}
    assert set(shapes["batch_stats"]) == {"backbone"}
    sizes = {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in shapes["params"].items()}
    assert sizes["backbone"] == 2_223_872
    assert sizes["rpn"] == 9 * 1280 * 256 + 256 + 256 * 5 + 5
    assert sizes["proposal"] == 9 * 1280 * 256 + 256 + 1024 * 256 + 256 + 256 * 64 + 64
    layer = 4 * (64 * 64 + 64) + 64 * 256 + 256 + 256 * 64 + 64 + 4 * 64
    assert sizes["text"] == (3 + len(tiny.WORDS)) * 64 + 16 * 64 + layer
    assert sizes["align"] == 128 * 64 + 64 + 64 + 1
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))


def test_the_trunk_and_the_rest_are_the_whole():
    config = tiny.config(trainable="last2")
    variables = tiny.variables(config)
    image = np.random.default_rng(0).normal(size=(2, 64, 32, 3)).astype(np.float32)

    @jax.jit
    def both(image):
        trunk = model.trunk(config, variables, image)
        whole = model.features(config, variables, {"image": image})
        return trunk, whole, model.features(config, variables, {"trunk": trunk})

    trunk, whole, tail = both(image)
    assert trunk.shape == (2, 2, 1, 160) and whole.shape == (2, 2, 1, 1280)
    np.testing.assert_allclose(tail, whole, atol=1e-5)
    assert np.abs(whole).max() > 0.1


def test_pooled_features_of_every_image_and_box():
    config = tiny.config()
    variables = tiny.variables(config)
    rng = np.random.default_rng(1)
    features = rng.normal(size=(2, 4, 5, 1280)).astype(np.float32)
    low = rng.uniform(0, 60, (2, 3, 2))
    boxes = np.concatenate([low, low + rng.uniform(20, 60, (2, 3, 2))], axis=-1).astype(np.float32)
    got = model.encode_proposals(config, variables, features, boxes)
    assert got.shape == (2, 3, 6)
    encoder = model.proposal_encoder(config)
    for b in range(2):
        cells = roi_align(features[b], boxes[b], stride=32)
        want = encoder.apply({"params": variables["params"]["proposal"]}, cells)
        np.testing.assert_allclose(got[b], want, atol=1e-5)
    other = model.encode_proposals(tiny.config(roi="max"), variables, features, boxes)
    assert np.abs(other - got).max() > 0.01


@pytest.mark.parametrize(("trainable", "cut"), [("all", 0), ("heads", 19), ("last1", 18), ("last19", 0)])
def test_cut(trainable, cut):
    assert model.cut(tiny.config(trainable=trainable)) == cut


def test_a_trunk_needs_frozen_units_and_images_whole_cells():
    config = tiny.config(trainable="all")
    with pytest.raises(ConfigError, match="no part of the backbone is frozen"):
        model.trunk(config, {}, jnp.zeros((1, 32, 32, 3)))
    with pytest.raises(ConfigError, match="needs images"):
        model.features(config, {}, {"trunk": jnp.zeros((1, 1, 1, 1280))})
    with pytest.raises(ValueError, match="multiples of 32"):
        model.features(config, {}, {"image": jnp.zeros((1, 33, 64, 3))})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_with": 8}, "did you mean 'text_width'"),
        ({"roi": "mean"}, "model.roi"),
        ({"align": "dot"}, "model.align"),
        ({"text_encoder": "lstm"}, "model.text_encoder"),
        ({"text_encoder": "features"}, "model.text_features"),
        ({"dtype": "int8"}, "model.dtype"),
        ({"trainable": "last0"}, "model.trainable"),
        ({"trainable": "last20"}, "model.trainable"),
        ({"trainable": "some"}, "model.trainable"),
        ({"text_heads": 3}, "text_heads"),
        ({"rpn_width": 0}, "rpn_width"),
        ({"anchor_sizes": ()}, "anchor_sizes"),
        ({"anchor_aspects": (1.0, -1.0)}, "anchor_aspects"),
        ({"image_size": (500, 512)}, "image_size"),
        ({"dropout": 1.0}, "dropout"),
        ({"vocabulary": ("a", "a")}, "twice"),
        ({"vocabulary": ("Two Words",)}, "one lower-case word"),
        ({"text_length": 1}, "text_length"),
    ],
)
def test_bad_options_are_one_line(options, message):
    with pytest.raises(ConfigError, match=message) as error:
        tiny.config(**options)
    assert "\n" not in str(error.value)


def test_a_start_without_words_is_refused():
    with pytest.raises(ConfigError, match="model.vocabulary"):
        model.init(tiny.config(vocabulary=()), jax.random.key(0))
