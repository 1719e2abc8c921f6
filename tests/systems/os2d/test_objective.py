"""The objective as a whole: masking, options, sharding. A small stand-in replaces the ResNet."""

import functools
import json

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from sm_jax.backbones import resnet
from sm_jax.backbones.common import convolve, hide, valid_cells
from sm_jax.errors import ConfigError
from sm_jax.systems import os2d
from sm_jax.systems.os2d import model, objective, transformnet
from tests import gradients, weight_rule

DEPTH = 12
MARGINS = {"positive_margin": 0.95, "negative_margin": 0.3}  # random features are alike


def small_extract(config, variables, image, size=None):
    """Stands in for `model.extract_train`: means of 16x16 pixels, mixed by a trained matrix."""
    b, h, w, _ = image.shape
    cells = jnp.pad(image, ((0, 0), (0, -h % 16), (0, -w % 16), (0, 0)))
    cells = cells.reshape(b, -(-h // 16), 16, -(-w // 16), 16, 3).mean(axis=(2, 4))
    features = jax.nn.relu(cells @ variables["params"]["backbone"]["mix"])
    size = resnet.feature_size(size)
    return hide(features, valid_cells(size, features.shape[1:3])), size, {}


@pytest.fixture(autouse=True)
def _small_backbone(monkeypatch):
    monkeypatch.setattr(model, "extract_train", small_extract)


def variables(outputs=4):
    transform = weight_rule.transform_variables(weight_rule.transform_arrays(outputs, 3, linear_scale=0.02))
    mix = np.random.default_rng(5).normal(size=(3, DEPTH)).astype(np.float32)
    backbone = {"params": {"backbone": {"mix": mix}}, "batch_stats": {"backbone": {}}}
    return weight_rule.merge(backbone, transform)


def make_batch(images=2, classes=3, boxes=3, seed=0, size=(96, 128)):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-130, 30, (images, boxes, 2))
    extent = rng.uniform(200, 280, (images, boxes, 2))
    return {
        "image": rng.normal(size=(images, *size, 3)).astype(np.float32),
        "size": np.tile(np.int32(size), (images, 1)),
        "boxes": np.concatenate([corner, corner + extent], axis=-1).astype(np.float32),
        "labels": rng.integers(0, classes, (images, boxes)).astype(np.int32),
        "difficult": np.zeros((images, boxes), bool),
        "boxes_valid": np.ones((images, boxes), bool),
        "query": rng.normal(size=(classes, 64, 80, 3)).astype(np.float32),
        "query_size": np.tile(np.int32([64, 80]), (classes, 1)),
        "query_valid": np.ones(classes, bool),
        "class_ids": np.arange(classes, dtype=np.int32),
        "valid": np.ones(images, bool),
    }


def padded(batch, *, spare_size=0):
    """The same batch with more images, classes, boxes and pixels, all of them padding full of traps."""
    out = {}
    more = {"image": 1, "boxes": 1, "query": 2}
    for key, array in batch.items():
        extra = more["query"] if key.startswith("query") or key == "class_ids" else more["image"]
        pads = [(0, extra)] + [(0, 0)] * (array.ndim - 1)
        if key in ("image", "query"):
            pads[1:3] = [(0, 32), (0, 16)]
        elif key in ("boxes", "labels", "difficult", "boxes_valid"):
            pads[1] = (0, 2)
        value = {"class_ids": -1, "image": 0, "query": 0, "size": spare_size, "query_size": spare_size}
        out[key] = np.pad(array, pads, constant_values=value.get(key, 0))
    images, boxes = batch["labels"].shape
    out["boxes"][:, boxes:] = [-100, -100, 140, 140]  # would match an anchor, were it real
    out["boxes"][images:] = [-100, -100, 140, 140]
    out["boxes_valid"][images:] = True
    return out


def config(model_options=(), **options):
    return ml_collections.ConfigDict({"model": dict(model_options), "objective": MARGINS | options})


@functools.cache
def compiled(options):
    """(values, values with gradients) of the system of a config given as JSON; one compilation per shape."""
    system, weights = os2d.make(ml_collections.ConfigDict(json.loads(options))), variables()

    def loss(params, batch):
        return system.loss(weights | {"params": params}, batch, None)

    return jax.jit(loss), jax.jit(jax.value_and_grad(loss, has_aux=True)), weights["params"]


def values(batch, conf):
    """Loss, metrics and updates."""
    function, _, params = compiled(conf.to_json())
    loss, (metrics, updates) = function(params, batch)
    return loss, metrics, updates


def run(batch, conf):
    """Loss, metrics, updates and gradients."""
    _, function, params = compiled(conf.to_json())
    (loss, (metrics, updates)), grads = function(params, batch)
    return loss, metrics, updates, grads


def assert_close(actual, expected, rtol=2e-5, atol=2e-6):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol), actual, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", objective.CLASS_OBJECTIVES)
@pytest.mark.parametrize("spare_size", [0, 48])
def test_padding_changes_nothing(name, spare_size):
    conf = config(class_objective=name)
    expected = run(make_batch(), conf)
    actual = run(padded(make_batch(), spare_size=spare_size), conf)
    for count in ("num_pos", "num_pos_loc", "num_neg"):
        assert actual[1][count] == expected[1][count] > 0
    assert expected[1]["cls_loss_neg"] > 0 and expected[1]["cls_loss_pos"] > 0 and expected[1]["loc_loss"] > 0
    assert "transform" in expected[2]["batch_stats"]
    assert_close(actual[:3], expected[:3])
    gradients.assert_near(actual[3], expected[3])


def test_nothing_real_is_zero_with_finite_gradients():
    batch = make_batch()
    batch["valid"][:] = False
    loss, metrics, _, grads = run(batch, config())
    assert loss == 0 and metrics["num_neg"] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_nan_in_a_real_image_shows():
    batch = make_batch()
    batch["image"][0] = np.nan
    assert np.isnan(values(batch, config())[0])


@pytest.mark.parametrize("devices", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_several_devices_equal_one(devices, monkeypatch):
    # The split convolution is chosen by the rows at hand and rounds otherwise, which can flip a ReLU.
    monkeypatch.setattr(transformnet, "convolve_large", lambda x, kernel, **_: convolve(x, kernel))
    batch = make_batch(images=devices, classes=devices)
    mesh = jax.make_mesh(
        (devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices]
    )
    sharded = jax.device_put(batch, jax.NamedSharding(mesh, jax.P("data")))
    actual, expected = run(sharded, config()), run(batch, config())
    assert_close(actual[:3], expected[:3])
    gradients.assert_near(actual[3], expected[3])


def test_what_negatives_teach_the_transformation():
    batch = make_batch()
    frozen = {"freeze_bn_transform": True}
    batch["labels"][:] = 0
    batch["labels"][1] = 1
    # Without localisation, and with positives that are all above their margin, only negatives are left.
    options = {"loc_weight": 0.0, "positive_margin": -1.0, "remap": False}
    quiet = run(batch, config(frozen, **options))
    loud = run(batch, config(frozen, train_transform_on_negs=True, **options))
    np.testing.assert_allclose(quiet[0], loud[0], rtol=1e-6)
    assert quiet[2] == {} == loud[2]
    assert quiet[1]["cls_loss_neg"] > 0
    for leaf in jax.tree.leaves(quiet[3]["transform"]):
        np.testing.assert_array_equal(leaf, 0)
    assert np.abs(loud[3]["transform"]["linear"]["kernel"]).max() > 0
    assert np.abs(quiet[3]["backbone"]["mix"]).max() > 0  # the correlation itself still learns


def test_features_that_do_not_train_get_no_gradient():
    grads = run(make_batch(), config({"train_features": False}))[3]
    np.testing.assert_array_equal(grads["backbone"]["mix"], 0)
    assert np.abs(grads["transform"]["linear"]["kernel"]).max() > 0


def test_class_weights_count_by_class_of_the_data_set():
    batch = make_batch()
    batch["class_ids"][:] = [4, 0, 2]
    rng = np.random.default_rng(2)
    scores = rng.uniform(0, 1, (2, 3, 6, 8)).astype(np.float32)
    empty = model.HeadOutput(*[scores] * len(model.HeadOutput._fields))
    output = empty._replace(offsets=rng.normal(size=(2, 3, 6, 8, 4)).astype(np.float32))

    def loss(query_valid=(True, True, True), **options):
        conf = objective.ObjectiveConfig(**MARGINS, remap=False, **options)
        given = batch | {"query_valid": np.array(query_valid)}
        return objective.evaluate(conf, output, given, np.full((2, 2), [6, 8]))["loss"]

    np.testing.assert_allclose(loss(class_weights=(3.0,) * 5), loss(), rtol=1e-5)
    weights = (0.0, 9.0, 1.0, 9.0, 1.0)  # only the class in the middle slot, number 0, is switched off
    np.testing.assert_allclose(loss(class_weights=weights), loss(query_valid=(True, False, True)), rtol=1e-5)
    assert abs(loss(class_weights=weights) - loss()) > 1e-4


def test_difficult_and_cut_off_boxes():
    batch = make_batch()
    base = values(batch, config())[1]
    difficult = values(dict(batch, difficult=np.ones((2, 3), bool)), config())[1]
    assert difficult["num_pos"] == difficult["num_pos_loc"] == 0
    assert difficult["num_neg"] == base["num_neg"]  # their anchors are ignored
    cut = values(dict(batch, labels=np.full((2, 3), -2, np.int32)), config())[1]
    assert cut["num_neg"] == np.prod((2, 3, 6, 8))  # every anchor is a negative


def test_shapes_of_the_published_batch(monkeypatch):
    monkeypatch.undo()  # the real ResNet: nothing is computed
    system = os2d.make(config({"depth": 101}))
    batch = make_batch(images=4, classes=15, boxes=64, size=(600, 600))
    shapes = jax.eval_shape(system.init, jax.random.key(0), batch)
    loss, (metrics, updates) = jax.eval_shape(system.loss, shapes, batch, jax.random.key(1))
    assert loss.shape == () and all(metric.shape == () for metric in metrics.values())
    assert jax.tree.structure(updates["batch_stats"]["transform"]) == jax.tree.structure(
        shapes["batch_stats"]["transform"]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": 0.5}, "objective.margin: unknown key"),
        ({"positive_margn": 0.5}, "did you mean 'positive_margin'"),
        ({"class_objective": "triplet"}, "class_objective"),
        ({"negative_iou": 0.6}, "negative_iou <= positive_iou"),
        ({"remap_positive_iou": 1.5}, "remap_positive_iou"),
        ({"rll_neg_weight_ratio": 0.0}, "rll_neg_weight_ratio"),
        ({"neg_to_pos_ratio": -1.0}, "neg_to_pos_ratio"),
        ({"class_weights": (1.0, -1.0)}, "class_weights"),
    ],
)
def test_bad_options_are_one_line(options, message):
    with pytest.raises(ConfigError, match=message) as error:
        os2d.make(config(**options))
    assert "\n" not in str(error.value)
