"""Targets: hand-made values, the recorded label sets, the slow reference, and odd boxes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax.systems.ssm.targets import Targets, corners, coverage_targets, coverage_targets_reference
from tests import goldens

CELLS = (32, 32)
BOX = jnp.float32([[100, 60, 180, 140]])


@functools.partial(jax.jit, static_argnames=("cells", "scale", "small_wins"))
def run(boxes, where=None, **options):
    return coverage_targets(boxes, where=where, **{"cells": CELLS, **options})


def assert_same(got, want, **tolerance):
    for name in Targets._fields:
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), err_msg=name, **tolerance)


def test_hand_made_values():
    """SSM specification, sec. 8, no. 1 and 2."""
    got = run(BOX)
    inside = np.zeros(CELLS, bool)
    inside[3:9, 6:12] = True
    np.testing.assert_array_equal(got.coverage, inside)
    np.testing.assert_allclose(np.asarray(got.k_norm), 0.0125 * inside, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(got.share), inside / 36, rtol=1e-6)
    np.testing.assert_allclose(got.offsets[3, 6], [4, 12, 84, 92])
    np.testing.assert_allclose(got.offsets[8, 11], [-76, -68, 4, 12])
    np.testing.assert_array_equal(got.offsets[~inside], 0)
    boxes = np.asarray(got.offsets) + corners(CELLS)
    np.testing.assert_allclose(boxes[inside], np.broadcast_to(BOX[0], (36, 4)))

    shrunk = run(BOX, scale=0.4)
    inside = np.zeros(CELLS, bool)
    inside[5:8, 7:10] = True
    np.testing.assert_array_equal(shrunk.coverage, inside)
    np.testing.assert_allclose(np.asarray(shrunk.obj_norm), 0.25 * inside, rtol=1e-6)
    np.testing.assert_allclose(shrunk.offsets[5, 7], [-12, -20, 68, 60])


@pytest.mark.parametrize("kind", ["full", "shrunk"])
@pytest.mark.parametrize("path", goldens.params("matching", "ssm_*.npz"))
def test_golden_label_sets(path, kind):
    stored = goldens.load(path)
    got = run(jnp.float32(stored["boxes"]), scale=1.0 if kind == "full" else 0.4)
    want = {name: stored[f"{kind}_{name}"] for name in ("coverage", "offsets", "inv_size", "obj_norm")}
    np.testing.assert_array_equal(got.coverage, want["coverage"])
    np.testing.assert_allclose(got.offsets, want["offsets"].transpose(1, 2, 0), atol=1e-3)
    np.testing.assert_allclose(got.inverse_size, want["inv_size"].transpose(1, 2, 0), rtol=1e-5)
    np.testing.assert_allclose(got.obj_norm, want["obj_norm"], rtol=1e-5)
    np.testing.assert_allclose(got.k_norm, stored[f"{kind}_inv_sqrt_area"], rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_fast_is_the_reference(scale):
    rng = np.random.default_rng(0)
    for _ in range(5):
        centre, sides = rng.uniform(-20, 200, (6, 2)), rng.uniform(1, 150, (6, 2))
        boxes = np.float32(np.concatenate([centre - sides / 2, centre + sides / 2], axis=-1))
        got = run(jnp.asarray(boxes), cells=(9, 13), scale=scale)
        want = coverage_targets_reference(boxes, cells=(9, 13), scale=scale)
        assert_same(got, want, rtol=1e-4, atol=1e-4)
        assert 0 < want.coverage.sum() < want.coverage.size


def test_padding_and_empty_boxes_cover_nothing():
    odd = jnp.float32(
        [[50, 50, 50, 90], [40, 60, 20, 80], [600, 10, 700, 90], [-90, -90, 0, -1], [0, 0, 0, 0]]
    )
    boxes = jnp.concatenate([BOX, odd, BOX + 200])
    got = run(boxes, jnp.arange(7) < 6)
    assert_same(got, run(BOX))
    for nothing in (run(boxes, jnp.zeros(7, bool)), run(jnp.zeros((0, 4)))):
        for value in nothing:
            assert not np.any(value)
    for value in jax.tree.leaves(jax.jacobian(lambda b: run(b).k_norm.sum())(boxes)):
        assert np.isfinite(value).all()


def test_of_overlapping_boxes_the_last_or_the_smallest_wins():
    small, large = [64.0, 64, 96, 96], [32.0, 32, 160, 160]
    for order in ([small, large], [large, small]):
        boxes = jnp.float32(order)
        last = np.float32(order[1])
        np.testing.assert_allclose(run(boxes).offsets[4, 4] + 64, last)
        wins = run(boxes, small_wins=True)
        np.testing.assert_allclose(wins.offsets[4, 4] + 64, small)
        np.testing.assert_allclose(wins.offsets[3, 3] + 48, large)
        assert wins.share[3, 3] == np.float32(1 / 64)  # the large one's, with the cells that it lost
        masked = run(boxes, jnp.asarray([order[0] == small, order[1] == small]), small_wins=True)
        assert masked.coverage.sum() == 4


def test_short_sides_are_not_shrunk_below_the_least():
    got = run(jnp.float32([[100, 60, 130, 300]]), scale=0.4)  # 30 x 240: 20 x 96 around (115, 180)
    inside = np.argwhere(got.coverage)
    assert inside.min(0).tolist() == [8, 6] and inside.max(0).tolist() == [14, 7]
    np.testing.assert_allclose(got.obj_norm[10, 6], 256 / (20 * 96), rtol=1e-6)
    tiny = run(jnp.float32([[100, 60, 108, 64]]), scale=0.4)  # shorter than the least: the whole box
    np.testing.assert_allclose(tiny.obj_norm[3, 6], 256 / 32, rtol=1e-6)
