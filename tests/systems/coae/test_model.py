"""CoAE's network: shapes at real resolution, padding, what trains, options, and the predictor."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax.errors import ConfigError
from sm_jax.systems.coae import model, parts, predict
from tests.systems.coae import tiny

HEAD_INPUTS = (jnp.zeros((2, 2, 1024)), jnp.zeros((1, 4)), jnp.zeros((2, 2, 1024)))


@pytest.fixture(scope="module")
def variables():
    return tiny.variables()


@pytest.fixture(scope="module")
def predictor():
    with tiny.network():
        yield predict.Predictor(tiny.CONFIG, step=64, block=2)


def pictures(seed, *shape):
    return np.random.default_rng(seed).normal(size=(*shape, 3)).astype(np.float32)


def test_the_light_head_has_its_width():
    config = model.ModelConfig(head="light", head_width=32)
    shapes = jax.eval_shape(model.head(config).init, jax.random.key(0), *HEAD_INPUTS)["params"]
    assert shapes["reduce"]["kernel"].shape == (1024, 32)
    assert shapes["compare_hidden"]["kernel"].shape == (64, 8) and shapes["codes"]["kernel"].shape == (32, 4)


def test_shapes_at_real_resolution():
    config = model.ModelConfig()
    shapes = jax.eval_shape(functools.partial(model.init, config), jax.random.key(0))
    expected = {"backbone", "image_attention", "query_attention", "excitation", "rpn", "head"}
    assert set(shapes["params"]) == expected
    assert shapes["params"]["image_attention"]["keys"]["kernel"].shape == (1024, 512)
    assert shapes["params"]["excitation"]["squeeze"]["kernel"].shape == (1024, 64)
    assert shapes["params"]["rpn"]["objectness"]["kernel"].shape == (512, 12)
    assert shapes["params"]["head"]["compare_hidden"]["kernel"].shape == (4096, 8)

    def run(variables, image, size, query):
        encoded = model.encode(config, variables, {"image": query})
        return encoded, predict.predict(config, variables, {"image": image, "size": size}, encoded)

    image, query = jnp.zeros((2, 600, 800, 3)), jnp.zeros((3, 200, 150, 3))
    encoded, found = jax.eval_shape(run, shapes, image, jnp.zeros((2, 2), jnp.int32), query)
    assert encoded["query"].shape == (3, 12, 12, 1024)
    assert {name: value.shape for name, value in found.items()} == {
        "boxes": (2, 3, 300, 4),
        "scores": (2, 3, 300),
        "proposals": (2, 3, 300, 4),
    }


def test_padding_changes_nothing(variables):
    """Whatever lies beside the valid part, the same boxes get the same scores."""
    size, image, query = (70, 90), pictures(0, 70, 90), pictures(1, 40, 56)
    with tiny.network():
        run = jax.jit(functools.partial(predict.predict, tiny.CONFIG))
        encode = jax.jit(functools.partial(model.encode, tiny.CONFIG))
        encoded = encode(variables, {"image": query[None], "size": jnp.array([[40, 56]])})
        padded_query = np.pad(query, ((0, 24), (0, 8), (0, 0)))[None]
        also = encode(variables, {"image": padded_query, "size": jnp.array([[40, 56]])})
        alone = run(variables, {"image": image[None], "size": jnp.array([size])}, encoded)
        padded = np.pad(image, ((0, 58), (0, 38), (0, 0)))[None]
        padded = run(variables, {"image": padded, "size": jnp.array([size])}, encoded)
    np.testing.assert_allclose(encoded["query"], also["query"], atol=1e-5)
    assert np.isfinite(alone["scores"]).sum() > 3
    np.testing.assert_allclose(alone["boxes"], padded["boxes"], atol=1e-3)
    np.testing.assert_allclose(alone["scores"], padded["scores"], atol=1e-5)


def test_both_maps_see_each_other_and_the_weights_come_from_the_query(variables):
    features, query = (np.abs(pictures(k, 4, 5, 4).reshape(4, 5, 12)) for k in (2, 3))
    query = query[:3, :3]
    cells = jnp.array([4, 5])
    with tiny.network():

        @jax.jit
        def match(features, query):
            image = model.embed(tiny.CONFIG, variables, features)
            return model.match(tiny.CONFIG, variables, image, cells, query)

        before, image_map, query_map = match(features, query)
        apply = {name: {"params": variables["params"][name]} for name in variables["params"]}
        block = parts.NonLocal(12, 6)
        rows, keys = features.reshape(-1, 12), query.reshape(-1, 12)
        attended = rows + block.apply(apply["image_attention"], rows, keys)
        own = keys + block.apply(apply["query_attention"], keys, rows)
        weights = parts.Excitation(12, 4).apply(apply["excitation"], own.mean(axis=0))
    np.testing.assert_allclose(before.reshape(-1, 12), attended, atol=1e-5)
    np.testing.assert_allclose(image_map.reshape(-1, 12), attended * weights[None], atol=1e-5)
    np.testing.assert_allclose(query_map.reshape(-1, 12), own * weights[None], atol=1e-5)


def test_the_excitation_changes_what_is_compared_but_no_proposal(variables):
    changed = jax.tree.map(lambda leaf: leaf, variables)
    changed["params"]["excitation"]["excite"]["bias"] += 1.0
    images = {"image": pictures(0, 70, 90)[None], "size": jnp.array([[70, 90]])}
    query = {"query": np.abs(pictures(3, 3, 3, 4)).reshape(1, 3, 3, 12)}
    with tiny.network():
        run = jax.jit(functools.partial(predict.predict, tiny.CONFIG))
        one, other = (run(weights, images, query) for weights in (variables, changed))
    np.testing.assert_array_equal(one["proposals"], other["proposals"])
    assert np.abs(one["scores"] - other["scores"])[np.isfinite(one["scores"])].max() > 1e-3


def test_detections_do_not_depend_on_blocks_and_programs_are_few(variables, predictor):
    levels = [pictures(4, 60, 100), pictures(5, 90, 120), pictures(6, 10, 90)]  # the last is too small
    with tiny.network():
        templates = np.stack([predictor.encode(variables, pictures(k, 40 + k, 50)) for k in range(3)])
        options = {"class_ids": [7, 9, 7], "image_size": (120, 200), "iou": 0.3}
        seen = []
        found = predictor.detect(
            variables, levels, templates, progress=lambda *state: seen.append(state), **options
        )
        assert predictor.compiles == {"encode": 1, "extract": 2, "match": 4}
        one = predict.Predictor(tiny.CONFIG, step=64, block=4).detect(variables, levels, templates, **options)
    assert seen[:3] == [("levels", 1, 0), ("levels", 2, 0), ("levels", 3, 0)] and seen[-1] == (
        "matches",
        6,
        6,
    )
    assert set(found["labels"]) == {7, 9} and len(found["scores"]) <= 2 * predict.MAX_DETECTIONS
    for name in ("boxes", "scores", "labels", "template"):
        np.testing.assert_allclose(found[name], one[name], atol=1e-3)
    assert (found["boxes"] >= 0).all() and (found["boxes"][:, 2:] <= np.array([200, 120])).all()
    np.testing.assert_array_equal(found["corners"][:, 0], found["boxes"][:, :2])
    np.testing.assert_array_equal(found["corners"][:, 2], found["boxes"][:, 2:])


def test_nothing_to_search_for_and_nothing_to_search_in(variables, predictor):
    with tiny.network():
        nothing = predictor.detect(
            variables, [], np.zeros((1, 3, 3, 12), np.float32), class_ids=[0], image_size=(60, 60)
        )
    assert nothing["boxes"].shape == (0, 4) and nothing["best"].shape == (1,)


@pytest.mark.parametrize("options", [{"step": 24}, {"block": 3}])
def test_sizes_that_cannot_be_used(options):
    with pytest.raises(ValueError, match="must be"):
        predict.Predictor(tiny.CONFIG, **options)


def test_what_trains():
    config = model.ModelConfig(frozen_blocks=1)
    assert not model.trainable(config, "backbone/conv1/kernel")
    assert model.trainable(config, "backbone/layer1_0/conv1/kernel")
    frozen = model.ModelConfig(train_features=False)
    assert not model.trainable(frozen, "backbone/layer3_0/conv1/kernel")
    for part in ("image_attention/out/kernel", "rpn/conv/kernel", "head/layer4_0/conv1/kernel"):
        assert model.trainable(frozen, part)


@pytest.mark.parametrize(
    "options,line",
    [
        ({"depth": 34}, "model.depth: 34 is none of 50, 101"),
        ({"attention": "linear"}, "model.attention: 'linear' is none of softmax, dot"),
        ({"head": "c4"}, "model.head: 'c4' is none of c5, light"),
        ({"norm": "batch_norm"}, "model.norm"),
        ({"query_size": 100}, "model.query_size: 100 is no positive multiple of 16"),
        ({"anchor_scales": ()}, "model.anchor_scales"),
        ({"proposals": 0}, "model.proposals: 0 is not positive"),
        ({"bins": 0}, "model.bins: 0 is not positive"),
        ({"proposal_iou": 0.0}, "model.proposal_iou"),
        ({"frozen_blocks": 99}, "model.frozen_blocks"),
        ({"querysize": 1}, "model.querysize: unknown key; did you mean 'query_size'"),
    ],
)
def test_options_that_cannot_be_used_are_one_line(options, line):
    with pytest.raises(ConfigError, match=line) as error:
        model.ModelConfig.create(options)
    assert "\n" not in str(error.value)
