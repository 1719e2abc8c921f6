import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from sm_jax import systems
from sm_jax.errors import ConfigError
from sm_jax.ops import hough
from sm_jax.systems.scnet import model
from sm_jax.weights import io
from tests.systems.scnet import tiny

KEY = jax.random.key(0)
encode, pair_scores, predict = (
    jax.jit(function, static_argnums=0) for function in (model.encode, model.pair_scores, model.predict)
)


def _batch(rng, n=5, m=6, channels=512):
    """A pair with kept features, the last box of either side padding."""
    source, target = tiny.boxes(rng, n), tiny.boxes(rng, m)
    valid = [np.arange(count)[None] < count - 1 for count in (n, m)]
    return {
        "source_roi": rng.random((1, n, 7, 7, channels)).astype(np.float16),
        "target_roi": rng.random((1, m, 7, 7, channels)).astype(np.float16),
        "bins": hough.bins(source, target, tiny.SIZE, tiny.SIZE)[None],
        "source_valid": valid[0],
        "target_valid": valid[1],
    }


@pytest.mark.parametrize("backbone", model.BACKBONES)
def test_shapes_of_every_trunk(backbone):
    config = model.ModelConfig(backbone=backbone)
    variables = jax.eval_shape(lambda: model.init(config, KEY))
    parts = variables["params"]
    assert set(parts) == {"backbone", "fc", "fc_geometry"}
    assert io.unflatten(io.flatten(variables)) == variables  # as a file gives them back: nothing empty
    assert parts["fc"]["kernel"].shape == (49 * config.channels, 2048) and parts["fc"]["bias"].shape == (
        2048,
    )

    def run(variables, images, boxes):
        maps = model.features(config, variables, images)
        return maps, model.roi(config, maps[0], boxes)

    images, boxes = (
        jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.uint8),
        jax.ShapeDtypeStruct((9, 4), jnp.float32),
    )
    maps, pooled = jax.eval_shape(run, variables, images, boxes)
    assert maps.shape == (2, 14, 14, config.channels) and pooled.shape == (9, 7, 7, config.channels)


def test_published_numbers_of_parameters():
    shapes = jax.eval_shape(lambda: model.init(model.ModelConfig(variant="A"), KEY))["params"]
    count = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in shapes.items()}
    assert count == {"backbone": 7_635_264, "fc": 51_380_224 + 2048}


def test_both_embeddings_start_equal():
    params = tiny.variables()["params"]
    np.testing.assert_array_equal(params["fc"]["kernel"], params["fc_geometry"]["kernel"])
    assert float(jnp.std(params["fc"]["kernel"])) == pytest.approx(0.01, rel=0.02)
    assert not np.any(params["fc"]["bias"])


def test_embedding_is_one_dense_layer_of_unit_length():
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: x, tiny.variables())
    variables["params"]["fc_geometry"] = {
        "kernel": jnp.array(rng.normal(size=(49 * 512, 8)), jnp.float32),
        "bias": jnp.array(rng.normal(size=8), jnp.float32),
    }
    pooled = rng.random((2, 3, 7, 7, 512)).astype(np.float32)
    found = model.embed(tiny.config(), variables, pooled, which="geometry")
    layer = jax.device_get(variables["params"]["fc_geometry"])
    expected = np.einsum("bnijc,ijce->bne", pooled, layer["kernel"].reshape(7, 7, 512, 8)) + layer["bias"]
    expected /= np.sqrt(np.sum(expected**2, axis=-1, keepdims=True) + 1e-10)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    # where there is nothing to compare the length stays 0, and the gradient finite
    zero = jnp.zeros((1, 7, 7, 512))
    loss = lambda x: jnp.sum(model.embed(tiny.config(), tiny.variables(), x))  # noqa: E731
    assert float(loss(zero)) == 0 and np.isfinite(jax.grad(loss)(zero)).all()


@pytest.mark.parametrize("variant", ["A", "AG", "AG+"])
def test_pair_scores_are_the_definition(variant):
    config = tiny.config(variant=variant, vote_threshold=0.1, vote_bias=0.02)
    variables = jax.device_get(tiny.variables(variant))
    if variant == "AG+":
        variables["params"]["fc_geometry"] = jax.tree.map(np.negative, variables["params"]["fc_geometry"])
        variables["params"]["fc_geometry"]["kernel"] = variables["params"]["fc_geometry"]["kernel"][::-1]
    batch = _batch(np.random.default_rng(1))
    found = np.asarray(pair_scores(config, variables, batch))[0]

    def unit(side, part):
        layer = variables["params"][part]
        flat = batch[f"{side}_roi"][0].astype(np.float64).reshape(-1, 49 * 512)
        x = flat @ layer["kernel"] + layer["bias"]
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    f = np.maximum(unit("source", "fc") @ unit("target", "fc").T, 0)
    g = f
    if variant == "AG+":
        g = np.maximum(unit("source", "fc_geometry") @ unit("target", "fc_geometry").T, 0)
    real = batch["source_valid"][0][:, None] & batch["target_valid"][0][None]
    expected = np.where(real, f, 0)
    if variant != "A":
        weights = np.where(real, np.maximum(g - 0.1, 0), 0)
        expected = expected * (hough.vote_reference(weights, batch["bins"][0]) + 0.02)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found[:-1, :-1].any() and not found[-1].any() and not found[:, -1].any()


def test_encode_and_predict_are_the_two_halves():
    config, rng = tiny.config(), np.random.default_rng(2)
    images = {
        side: rng.integers(0, 256, (1, *tiny.SIZE, 3)).astype(np.uint8) for side in ("source", "target")
    }
    boxes = {"source": tiny.boxes(rng, 4), "target": tiny.boxes(rng, 5)}
    bins = hough.bins(boxes["source"], boxes["target"], tiny.SIZE, tiny.SIZE)[None]
    valid = {"source_valid": np.ones((1, 4), bool), "target_valid": np.ones((1, 5), bool)}
    batch = {f"{side}_image": images[side] for side in images} | valid | {"bins": bins}
    batch |= {f"{side}_boxes": boxes[side][None] for side in boxes}
    expected = pair_scores(config, tiny.variables(), batch)
    one = encode(config, tiny.variables(), {"image": images["source"], "boxes": boxes["source"][None]})
    target = {"image": images["target"], "boxes": boxes["target"][None], "bins": bins}
    target["where"] = np.ones((1, 4, 5), bool)
    found = predict(config, tiny.variables(), target, one)
    np.testing.assert_allclose(found["scores"], expected, atol=1e-6)
    np.testing.assert_array_equal(found["index"], np.argmax(expected, axis=2))
    np.testing.assert_allclose(found["confidence"], np.max(expected, axis=2), atol=1e-6)


def test_the_system_under_its_name():
    config = ConfigDict({"system": "scnet", "model": tiny.OPTIONS | {"variant": "AG"}, "objective": {}})
    system = systems.make(config)
    shapes = jax.eval_shape(lambda: system.init(KEY, None))
    assert set(shapes["params"]) == {"backbone", "fc"}
    assert system.trainable("fc/kernel") and not system.trainable("backbone/conv1_1/kernel")

    def run(variables, source, target):
        return system.predict(variables, target, system.encode(variables, source))

    image, boxes = jax.ShapeDtypeStruct((2, *tiny.SIZE, 3), jnp.uint8), jax.ShapeDtypeStruct((2, 4, 4), float)
    source = {"image": image, "boxes": boxes}
    pair = {
        "bins": jax.ShapeDtypeStruct((2, 4, 4), jnp.int32),
        "where": jax.ShapeDtypeStruct((2, 4, 4), bool),
    }
    found = jax.eval_shape(run, shapes, source, source | pair)
    assert {name: value.shape for name, value in found.items()} == {
        "scores": (2, 4, 4), "index": (2, 4), "confidence": (2, 4)
    }  # fmt: skip
    with pytest.raises(ConfigError, match="objective.margin: unknown key"):
        systems.make(ConfigDict(config.to_dict() | {"objective": {"margin": 1}}))


def test_statistics_of_the_training_pictures_replace_imagenets():
    config = tiny.config(input_norm="dataset_pixel")
    variables = model.init_backbone(config, KEY)
    images = np.random.default_rng(0).integers(0, 256, (2, *tiny.SIZE, 3)).astype(np.uint8)
    plain = model.normalize(tiny.config(), {}, images)
    np.testing.assert_allclose(model.normalize(config, variables, images), plain, atol=1e-5)
    statistics = {"mean": jnp.full((*tiny.SIZE, 3), 100.0), "std": jnp.full((*tiny.SIZE, 3), 50.0)}
    own = {"batch_stats": {"input": statistics}}
    np.testing.assert_allclose(model.normalize(config, own, images), (images - 100.0) / 50, atol=1e-5)


def test_googlenet_takes_bgr_minus_a_mean():
    image = np.array([200, 100, 50], np.uint8).reshape(1, 1, 1, 3)
    config = model.ModelConfig(backbone="googlenet-4e")
    found = np.ravel(model.normalize(config, {}, image))
    np.testing.assert_allclose(found, [50 - 104, 100 - 117, 200 - 123])
    own = dataclasses.replace(config, input_norm="dataset_pixel", image_size=(16, 16))
    variables = {"batch_stats": {"input": {
        "mean": 255 * np.broadcast_to(np.float32(model.MEAN), (1, 1, 3)),
        "std": 255 * np.broadcast_to(np.float32(model.STD), (1, 1, 3)),
    }}}  # fmt: skip
    np.testing.assert_allclose(np.ravel(model.normalize(own, variables, image)), found, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"variant": "A"}, {"fc"}),
        ({"variant": "AG"}, {"fc"}),
        ({"variant": "AG+"}, {"fc_geometry"}),
        ({"variant": "AG+", "agplus_schedule": "alternate"}, {"fc", "fc_geometry"}),
        ({"variant": "AG+", "agplus_schedule": "joint"}, {"fc", "fc_geometry"}),
        ({"variant": "A", "trainable": "all"}, {"fc", "backbone"}),
    ],
)
def test_what_trains(options, parts):
    config = tiny.config(**options)
    names = ("backbone/conv1_1/kernel", "fc/kernel", "fc_geometry/bias")
    assert {name.split("/")[0] for name in names if model.trainable(config, name)} == parts


def test_alternate_takes_turns():
    config = tiny.config(agplus_schedule="alternate")
    assert [model.trained_parts(config, epoch) for epoch in (1, 2, 3)] == [("fc",), ("fc_geometry",), ("fc",)]
    assert model.trained_parts(tiny.config(agplus_schedule="joint"), 7) == ("fc", "fc_geometry")


@pytest.mark.slow
def test_a_frozen_trunk_gets_no_gradient_and_an_open_one_does():
    rng = np.random.default_rng(3)
    images, boxes = rng.random((1, *tiny.SIZE, 3)) * 255, tiny.boxes(rng, 3)[None]
    for trainable, moves in (("heads", False), ("all", True)):
        config = tiny.config(variant="A", trainable=trainable)
        loss = lambda v: jnp.sum(model.encode(config, v, {"image": images, "boxes": boxes})["appearance"])  # noqa: B023, E731
        grads = jax.jit(jax.grad(loss))(tiny.variables("A"))["params"]
        assert bool(np.any(grads["backbone"]["conv4_3"]["kernel"])) is moves
        assert np.any(grads["fc"]["kernel"])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"variant": "B"}, "model.variant: 'B' is none of A, AG, AG+"),
        ({"backbone": "vgg19"}, "model.backbone: 'vgg19' is none of vgg16, resnet50"),
        ({"embedd": 8}, "model.embedd: unknown key; did you mean 'embed'"),
        ({"embed": 0}, "model.embed: 0 is not positive"),
        ({"vote_threshold": 1.0}, "model.vote_threshold: 1.0 must lie in 0..1"),
        ({"image_size": (224, 220)}, "model.image_size: .* must be two positive multiples of 16"),
        ({"agplus_schedule": "both"}, "model.agplus_schedule: 'both' is none of freeze_a"),
    ],
)
def test_bad_config_is_one_line(options, line):
    with pytest.raises(ConfigError, match=line):
        model.ModelConfig.create(options)


def test_kept_features_need_a_frozen_trunk():
    batch = _batch(np.random.default_rng(0))
    with pytest.raises(ConfigError, match="the trunk trains, so the batch needs pictures"):
        model.pair_scores(tiny.config(trainable="all"), tiny.variables(), batch)


def test_similarity_of_padding_never_votes():
    """The scores of real matches do not depend on what the padding holds."""
    config, batch = tiny.config(vote_threshold=0.0), _batch(np.random.default_rng(4))
    first = pair_scores(config, tiny.variables(), batch)
    batch["source_roi"][0, -1], batch["target_roi"][0, -1] = 7, 3
    batch["bins"][0, -1], batch["bins"][0, :, -1] = batch["bins"].max(), batch["bins"].max()
    np.testing.assert_allclose(pair_scores(config, tiny.variables(), batch), first, atol=1e-7)
