"""The objective of SCNet on tiny pairs: what counts, what does not, and what gets gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax.errors import ConfigError
from sm_jax.losses.hard_negatives import hard_negative_hinge
from sm_jax.ops import hough
from sm_jax.systems.scnet import model, objective
from tests.systems.scnet.tiny import SIZE, boxes, config

N = 9


def make_batch(seed=0, pairs=2, channels=512):
    rng = np.random.default_rng(seed)
    cells = (SIZE[0] // 16, SIZE[1] // 16)
    batch = {
        f"{side}_features": rng.normal(size=(pairs, *cells, channels)).astype(np.float16)
        for side in ("source", "target")
    }
    for side in ("source", "target"):
        batch[f"{side}_boxes"] = np.stack([boxes(rng, N) for _ in range(pairs)])
        batch[f"{side}_valid"] = np.ones((pairs, N), bool)
    batch["bins"] = np.stack(
        [
            hough.bins(a, b, SIZE, SIZE)
            for a, b in zip(batch["source_boxes"], batch["target_boxes"], strict=True)
        ]
    )
    batch["overlaps"] = rng.uniform(0, 1, (pairs, N, N)).astype(np.float32)
    batch["active"] = rng.uniform(size=(pairs, N)) < 0.6
    return batch


def heads(net, seed=1):
    rng = np.random.default_rng(seed)
    shape = (net.roi_size**2 * net.channels, net.embed)
    return {
        "params": {
            model.EMBEDDINGS[name]: {
                "kernel": jnp.asarray(rng.normal(size=shape) * 0.01, jnp.float32),
                "bias": jnp.zeros(net.embed),
            }
            for name in net.embeddings
        }
    }


compiled = jax.jit(objective.loss, static_argnums=(0, 1))


def run(net, variables, batch, **options):
    return compiled(net, objective.ObjectiveConfig(**options), variables, batch, jax.random.key(0))


@functools.partial(jax.jit, static_argnums=0)
def scores_of(net, variables, batch):
    return model.pair_scores(net, variables, objective.pool(net, batch))


@pytest.mark.parametrize("variant", ["A", "AG", "AG+"])
def test_loss_is_the_hinge_over_active_rows(variant):
    net, batch = config(variant=variant, roi_size=2), make_batch()
    variables = heads(net)
    loss, (metrics, updates) = run(net, variables, batch)
    scores = np.asarray(scores_of(net, variables, batch))
    rows = [
        hard_negative_hinge(
            jnp.asarray(scores[i][batch["active"][i]]), jnp.asarray(batch["overlaps"][i][batch["active"][i]])
        )
        for i in range(2)
    ]
    np.testing.assert_allclose(loss, np.mean(rows), rtol=1e-6)
    assert not updates
    best = [scores[i].argmax(1) for i in range(2)]
    found = np.concatenate(
        [batch["overlaps"][i][np.arange(N), best[i]][batch["active"][i]] for i in range(2)]
    )
    np.testing.assert_allclose(metrics["iou"], found.mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["correct"], (found > 0.5).mean(), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["AG", "AG+"])
def test_padding_changes_nothing(variant):
    net, batch = config(variant=variant, roi_size=2), make_batch(pairs=1)
    padded = dict(batch)
    for side in ("source", "target"):
        padded[f"{side}_boxes"] = np.pad(batch[f"{side}_boxes"], ((0, 0), (0, 3), (0, 0)))
        padded[f"{side}_valid"] = np.pad(batch[f"{side}_valid"], ((0, 0), (0, 3)))
    for name in ("bins", "overlaps"):
        padded[name] = np.pad(batch[name], ((0, 0), (0, 3), (0, 3)))
    padded["active"] = np.pad(batch["active"], ((0, 0), (0, 3)), constant_values=True)
    padded["overlaps"][:, N:] = padded["overlaps"][:, :, N:] = 0.9  # would be positives
    variables = heads(net)
    whole, (metrics, _) = run(net, variables, batch)
    again, (padded_metrics, _) = run(net, variables, padded)
    np.testing.assert_allclose(whole, again, rtol=1e-5)
    for name in metrics:
        np.testing.assert_allclose(metrics[name], padded_metrics[name], rtol=1e-5)


def test_thresholds_reach_the_loss():
    net, batch = config(variant="A", roi_size=2), make_batch()
    variables = heads(net)
    assert run(net, variables, batch)[0] != run(net, variables, batch, positive_iou=0.6, negative_iou=0.4)[0]


def test_a_pair_without_active_regions_costs_nothing():
    net, batch = config(variant="A", roi_size=2), make_batch(pairs=1)
    batch["active"][:] = False
    loss, (metrics, _) = run(net, heads(net), batch)
    assert loss == 0 and np.isnan(metrics["iou"])


def test_both_embeddings_get_gradients_and_all_are_finite():
    net, batch = config(variant="AG+", roi_size=2, vote_threshold=0.0), make_batch()
    grads = jax.jit(jax.grad(lambda v: run(net, v, batch)[0]))(heads(net))["params"]
    for part in ("fc", "fc_geometry"):
        assert np.isfinite(grads[part]["kernel"]).all() and np.abs(grads[part]["kernel"]).max() > 0


@pytest.mark.parametrize("options", [{"positive_iou": 0.1}, {"negative_iou": -0.1}, {"positive_iou": 1.0}])
def test_thresholds_out_of_order_are_refused(options):
    with pytest.raises(ConfigError, match="negative_iou <= positive_iou"):
        objective.ObjectiveConfig(**options)


def test_unknown_keys_are_named():
    with pytest.raises(ConfigError, match="positive_iou"):
        objective.ObjectiveConfig.create({"positive_io": 0.5})
