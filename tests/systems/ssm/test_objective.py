"""The losses: hand-made values, DetectNet's, normalisation, negatives, padding, gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax.errors import ConfigError
from sm_jax.systems.ssm import objective
from sm_jax.systems.ssm.objective import ObjectiveConfig, losses, make_targets
from tests.systems.ssm import tiny

BOX = jnp.float32([[[100, 60, 180, 140]]])
CELLS = (32, 32)


def wanted(boxes=BOX, **options):
    return make_targets(ObjectiveConfig(**options), boxes, jnp.ones(boxes.shape[:2], bool), CELLS)


def test_hand_made_values():
    """SSM specification, sec. 8, no. 3."""
    config, targets = ObjectiveConfig(), wanted()
    half = jnp.full((1, *CELLS), 0.5)
    sem, rect = losses(config, half, targets.offsets + 2, targets)
    np.testing.assert_allclose([sem[0], rect[0]], [256, 3.6], rtol=1e-5)
    sem, rect = losses(config, 0 * half, targets.offsets, targets)
    np.testing.assert_allclose([sem[0], rect[0]], [36, 0], atol=1e-6)


def test_boxes_part_divided_by_the_cells_of_each_object():
    boxes = jnp.concatenate([BOX, jnp.float32([[[300, 300, 332, 332]]])], axis=1)  # 36 cells, 9 cells
    targets = wanted(boxes)
    error = targets.offsets + 2
    _, plain = losses(ObjectiveConfig(), targets.coverage, error, targets)
    _, normed = losses(ObjectiveConfig(rect_obj_norm=True), targets.coverage, error, targets)
    np.testing.assert_allclose(plain[0], 36 * 8 / 80 + 9 * 8 / 32, rtol=1e-6)
    np.testing.assert_allclose(normed[0], 8 / 80 + 8 / 32, rtol=1e-6)


def test_detectnet_values():
    config = ObjectiveConfig(loss="detectnet")
    boxes = jnp.float32([[[100, 60, 180, 100]]])  # 80 x 40: 32 x 20 covered around (140, 80)
    targets = wanted(boxes, loss="detectnet")
    cells = 2 * 3  # of pixels 70..90, 124..156
    assert targets.coverage.sum() == cells
    sem, rect = losses(config, 0 * targets.coverage, targets.offsets + 2, targets)
    np.testing.assert_allclose(sem[0], cells / 2)
    np.testing.assert_allclose(rect[0], cells * 2 * (2 / 80 + 2 / 40) * 256 / (32 * 20), rtol=1e-5)


def run(batch=None, **options):
    model_config = tiny.config()
    variables = tiny.variables(model_config, branches=False)
    batch = tiny.make_batch() if batch is None else batch
    function = functools.partial(objective.loss, model_config, ObjectiveConfig(**options))
    return jax.jit(function)(variables, batch, jax.random.key(0))


@pytest.mark.parametrize("loss", ["ssm", "detectnet"])
def test_weights_metrics_and_gradients(loss):
    value, (metrics, updates) = run(loss=loss)
    assert set(metrics) == {"sem_loss", "rect_loss", "coverage_inside", "coverage_outside"} and updates == {}
    weight = 1 if loss == "ssm" else 2
    np.testing.assert_allclose(value, metrics["sem_loss"] + weight * metrics["rect_loss"], rtol=1e-6)
    assert 0 < metrics["coverage_inside"] < 1 and 0 < metrics["coverage_outside"] < 1
    other, (same, _) = run(loss=loss, sem_weight=3.0, rect_weight=0.5)
    np.testing.assert_allclose(other, 3 * same["sem_loss"] + 0.5 * same["rect_loss"], rtol=1e-6)
    model_config = tiny.config(dropout=0.4)
    variables = tiny.variables(model_config, branches=False)
    function = functools.partial(objective.loss, model_config, ObjectiveConfig(loss=loss))
    grad = jax.jit(jax.grad(function, has_aux=True))
    grads, (again, _) = grad(variables, tiny.make_batch(), jax.random.key(0))
    for leaf in jax.tree.leaves(grads):
        assert np.isfinite(leaf).all() and np.any(leaf)
    assert again["sem_loss"] != metrics["sem_loss"]  # dropout acts


def test_negative_pairs_want_no_coverage_and_no_boxes():
    batch = tiny.make_batch(positive=np.zeros(2, bool))
    value, (metrics, _) = run(batch=batch)
    assert metrics["rect_loss"] == 0 and np.isnan(metrics["coverage_inside"])
    np.testing.assert_allclose(value, metrics["sem_loss"])
    none, (same, _) = run(batch=tiny.make_batch(valid=np.zeros((2, 3), bool)))
    np.testing.assert_allclose(none, value, rtol=1e-6)
    half = tiny.make_batch(positive=np.array([True, False]))
    first = {name: x[:1] for name, x in tiny.make_batch().items()}
    second = {name: x[1:] for name, x in batch.items()}
    np.testing.assert_allclose(
        run(batch=half)[0], (run(batch=first)[0] + run(batch=second)[0]) / 2, rtol=1e-5
    )


def test_padding_boxes_change_nothing():
    batch = tiny.make_batch()
    more = batch | {
        "boxes": np.concatenate([batch["boxes"], np.full((2, 4, 4), 7, np.float32)], axis=1),
        "valid": np.concatenate([batch["valid"], np.zeros((2, 4), bool)], axis=1),
    }
    np.testing.assert_allclose(run(batch=more)[0], run(batch=batch)[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "ssd"}, "objective.loss: 'ssd' is none of ssm, detectnet"),
        ({"rect_weight": -1.0}, "objective.rect_weight"),
        ({"sem_weight": float("nan")}, "objective.sem_weight"),
        ({"coverage_scale": 0.0}, "objective.coverage_scale"),
        ({"loss": "detectnet", "rect_obj_norm": True}, "objective.rect_obj_norm"),
        ({"rect_norm": True}, "objective.rect_norm: unknown key; did you mean"),
    ],
)
def test_settings_that_cannot_be_run_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        ObjectiveConfig.create(options)
