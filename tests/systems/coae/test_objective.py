"""CoAE's objective: what costs, what gets a gradient, and that a tiny network learns from it."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sm_jax import rpn
from sm_jax.errors import ConfigError
from sm_jax.systems.coae import objective
from tests.systems.coae import tiny

CONFIG = objective.ObjectiveConfig(rpn_positives=8, rois=16)


def batch(seed=0):
    """Two grey images with a square of the query's colour and one of another colour."""
    rng = np.random.default_rng(seed)
    image = rng.normal(0, 0.1, (2, 96, 112, 3)).astype(np.float32)
    query = np.zeros((2, 48, 48, 3), np.float32)
    boxes = np.zeros((2, 3, 4), np.float32)
    for row in range(2):
        colours = rng.permutation(2 * np.eye(3, dtype=np.float32))
        for place, x in enumerate(rng.permutation([0, 64])):
            image[row, 16:56, x : x + 40] += colours[place]
            boxes[row, place] = x, 16, x + 40, 56
        query[row] += colours[0]
    return {
        "image": image,
        "size": np.array([[96, 112]] * 2, np.int32),
        "query": query,
        "query_size": np.array([[48, 48]] * 2, np.int32),
        "query_valid": np.ones(2, bool),
        "boxes": boxes,
        "labels": np.array([[0, -1, -1]] * 2, np.int32),
        "difficult": np.zeros((2, 3), bool),
        "boxes_valid": np.array([[True, True, False]] * 2),
        "valid": np.ones(2, bool),
    }


@pytest.fixture(scope="module")
def run():
    """Loss, metrics and gradients of the tiny network, compiled once."""
    compute = jax.value_and_grad(functools.partial(objective.loss, tiny.CONFIG, CONFIG), has_aux=True)
    with tiny.network():
        yield jax.jit(compute)


def test_every_part_learns(run):
    (loss, (metrics, updates)), grads = run(tiny.variables(), batch(), jax.random.key(0))
    assert updates == {} and np.isfinite(loss)
    parts = {name: float(metrics[name]) for name in ("rpn_cls", "rpn_box", "roi_cls", "roi_box", "ranking")}
    expected = sum(parts.values()) + (CONFIG.ranking_weight - 1) * parts["ranking"]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert metrics["rois_positive"] >= 1 and 0 <= metrics["roi_accuracy"] <= 1
    for name, part in grads["params"].items():
        assert optax.tree.norm(part) > 0, name


def test_a_row_that_is_not_valid_costs_nothing(run):
    variables, key = tiny.variables(), jax.random.key(0)
    for flag in ("valid", "query_valid"):
        one = batch() | {flag: np.array([True, False])}
        loss, grads = run(variables, one, key)
        dirty = {name: value.copy() for name, value in one.items()}
        dirty["image"][1], dirty["query"][1], dirty["boxes"][1] = 9.0, -5.0, [0, 0, 50, 50]
        loss_dirty, grads_dirty = run(variables, dirty, key)
        np.testing.assert_allclose(loss[0], loss_dirty[0], rtol=1e-6)
        apart = optax.tree.norm(jax.tree.map(jnp.subtract, grads, grads_dirty))
        assert apart <= 1e-5 * optax.tree.norm(grads)
    none, _ = run(variables, batch() | {"valid": np.zeros(2, bool)}, key)
    assert none[0] == 0 and np.isnan(none[1][0]["roi_accuracy"])


def test_boxes_of_other_classes_are_background(run):
    variables, key = tiny.variables(), jax.random.key(0)
    with_other, _ = run(variables, batch(), key)
    without = batch() | {"boxes_valid": np.array([[True, False, False]] * 2)}
    np.testing.assert_allclose(run(variables, without, key)[0][0], with_other[0], rtol=1e-6)


def test_boxes_of_proposals_are_averaged_over_all_samples():
    """As in Faster R-CNN: few positives among many samples weigh little."""
    with tiny.network(), mock.patch.object(rpn, "rpn_loss", wraps=rpn.rpn_loss) as spy:
        loss = functools.partial(objective.loss, tiny.CONFIG, CONFIG)
        jax.eval_shape(loss, tiny.variables(), batch(), jax.random.key(0))
    assert spy.call_args.kwargs == {"weight": 1.0, "beta": 1 / 9, "per": "sample"}


def test_it_learns(run):
    variables = tiny.variables(1)
    optimizer = optax.adam(0.003)
    state = optimizer.init(variables)
    update = jax.jit(optimizer.update)
    apply = jax.jit(optax.apply_updates)
    losses = []
    for step in range(120):
        (loss, _), grads = run(variables, batch(step % 4), jax.random.key(step))
        changes, state = update(grads, state)
        variables = apply(variables, changes)
        losses.append(float(loss))
    assert np.mean(losses[-8:]) < 0.4 * losses[0]


@pytest.mark.parametrize(
    "options,line",
    [
        ({"rpn_negative_iou": 0.8}, "rpn_negative_iou <= rpn_positive_iou"),
        ({"negative_margin": 0.9}, "negative_margin <= positive_margin"),
        ({"rois": 0}, "objective.rois: 0 is not positive"),
        ({"roi_iou": 0.0}, "objective.roi_iou"),
        ({"ranking_weight": -1.0}, "objective.ranking_weight: -1.0 must be finite"),
        ({"ranking": 1.0}, "objective.ranking: unknown key; did you mean 'ranking_weight'"),
    ],
)
def test_constants_that_cannot_be_used_are_one_line(options, line):
    with pytest.raises(ConfigError, match=line) as error:
        objective.ObjectiveConfig.create(options)
    assert "\n" not in str(error.value)
