"""The objective: what takes part in it, where gradients go, and that learning finds the objects."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sm_jax.errors import ConfigError
from sm_jax.systems.detector import model, objective
from sm_jax.systems.detector.predict import Predictor, parts
from tests.evaluators.fake_source import Squares
from tests.systems.detector import tiny

OBJECTIVE = objective.ObjectiveConfig(
    anchor_samples=32, candidates=96, proposals=24, roi_samples=24, anchor_positive_iou=0.5
)


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        tiny.patch(patch)
        yield


@functools.cache
def _compiled(**options):
    """(config, variables, loss with gradients), compiled once for all tests."""
    config = tiny.config(**options)
    loss = functools.partial(objective.loss, config, OBJECTIVE)

    def of_params(params, variables, batch, key):
        return loss(variables | {"params": params}, batch, key)

    variables = model.init(config, jax.random.key(0))
    return config, variables, jax.jit(jax.value_and_grad(of_params, has_aux=True))


def _run(batch, key=0, **options):
    _, variables, step = _compiled(**options)
    return step(variables["params"], variables, batch, jax.random.key(key))


def test_the_loss_is_the_sum_of_its_parts_and_reaches_every_part():
    (loss, (metrics, updates)), gradient = _run(tiny.batch(), classes=2)
    parts = [metrics[name] for name in ("anchor_cls", "anchor_box", "roi_cls", "roi_box")]
    np.testing.assert_allclose(loss, sum(parts), rtol=1e-5)
    assert not updates and metrics["positives"] > 0 and 0 <= metrics["roi_recall"] <= 1
    for name, tree in gradient.items():
        assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(tree)), name


@pytest.mark.parametrize("trains", [False, True])
def test_frozen_features_get_no_gradient(trains):
    config, image = tiny.config(train_features=trains), tiny.batch(1)["image"]
    variables = model.init(config, jax.random.key(0))

    def total(params):
        return jnp.sum(model.extract(config, variables | {"params": params}, image)[0])

    gradient = jax.jit(jax.grad(total))(variables["params"])["backbone"]
    assert any(leaf.any() for leaf in jax.tree.leaves(gradient)) == trains


def test_any_object_has_no_class():
    batch = tiny.batch()
    first, second = _run(batch), _run(batch | {"labels": batch["labels"] + 7})
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_what_is_not_valid_has_no_part():
    batch = tiny.batch()
    batch["valid"][1] = False
    other = jax.tree.map(np.copy, batch)
    other["image"][1] += 1
    other["boxes"][1] += 5
    other["boxes"][0, 2] = [3, 3, 90, 90]  # padding
    first, second = _run(batch, classes=2), _run(other, classes=2)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), first, second)


def test_an_image_without_boxes_teaches_the_background():
    batch = tiny.batch()
    batch["boxes_valid"][:] = False
    (loss, (metrics, _)), _ = _run(batch, classes=2)
    assert loss > 0 and metrics["anchor_box"] == metrics["roi_box"] == metrics["positives"] == 0
    assert np.isnan(metrics["roi_recall"])


def test_it_learns_to_find_the_squares():
    config, variables, step = _compiled(classes=2)
    optimizer = optax.adam(5e-3)

    @jax.jit
    def update(params, state, gradient):
        changes, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, changes), state

    params, batch = variables["params"], jax.tree.map(jnp.asarray, tiny.batch())
    state = optimizer.init(params)
    for key in jax.random.split(jax.random.key(1), 250):
        _, gradient = step(params, variables, batch, key)
        params, state = update(params, state, gradient)
    predictor = Predictor(parts(config, candidates=96, proposals=24), step=64)
    for index in range(2):
        found = predictor.detect(
            variables | {"params": params}, [np.asarray(batch["image"][index])], image_size=(128, 192),
            score_threshold=0.5,
        )  # fmt: skip
        truth = Squares(2).annotation(index)
        order = np.argsort(found["boxes"][:, 0])
        assert found["labels"][order].tolist() == truth["labels"].tolist()
        np.testing.assert_allclose(found["boxes"][order], truth["boxes"], atol=12)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"anchor_negative_iou": 0.8}, "anchor_negative_iou"),
        ({"anchor_samples": 7}, "not even"),
        ({"proposals": 0}, "objective.proposals"),
        ({"roi_fraction": 1.5}, "objective.roi_fraction"),
        ({"anchor_beta": float("nan")}, "objective.anchor_beta"),
        ({"roi_samplse": 3}, "did you mean 'roi_samples'"),
    ],
)
def test_an_objective_that_cannot_be_is_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        objective.ObjectiveConfig.create(options)
