"""Bins and votes: recorded numbers, the example by hand, and the plain definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sm_jax.ops import hough, matching
from tests.ops.matching_examples import (
    BINS,
    RECORDED,
    SIMILARITY,
    SIZE,
    SOURCE,
    TARGET,
    Recorded,
    close,
    random_boxes,
)

recorded = pytest.mark.parametrize("path", RECORDED)
relaxed = settings(deadline=None, max_examples=25)  # the first example may compile
vote = jax.jit(hough.vote, static_argnames=("size", "vote_grad"))


def loss_of_votes(similarity, bins, size, upstream, vote_grad):
    votes = hough.vote(jax.nn.relu(similarity - 0.4), bins, size, vote_grad=vote_grad)
    return jnp.sum(votes * upstream)


gradient = jax.jit(jax.grad(loss_of_votes), static_argnums=(2, 4))


@recorded
def test_golden_bins(path):
    pair = Recorded(path)
    np.testing.assert_array_equal(pair.bins(), pair["out_bin_index"])
    assert pair.bins().dtype == np.int32


@recorded
def test_golden_margins(path):
    pair = Recorded(path)
    found = hough.edge_margin(pair.source, pair.target, *pair.sizes)
    np.testing.assert_allclose(found, pair["ref_edge_margin"], rtol=1e-5, atol=1e-6)


def test_a_wider_grid_has_the_same_bins_and_votes():
    rng = np.random.default_rng(0)
    sizes = (70, 90), (60, 100)
    boxes = [random_boxes(rng, 30, size) for size in sizes]
    cells, table = hough.grid(sizes[1], kind="phm"), hough.bins(*boxes, *sizes, kind="phm")
    wider, wide = hough.spread(table, cells, step=32)
    assert (wide.columns, wide.rows) == (64, 32) and (cells.columns, cells.rows) == (40, 24)
    np.testing.assert_array_equal(wider > 0, table > 0)
    assert len(np.unique(wider)) == len(np.unique(table)) > 10 and wider.max() <= wide.size
    similarity = jnp.asarray(rng.random((30, 30)), jnp.float32)
    found = matching.phm(similarity, jnp.asarray(wider), wide)
    np.testing.assert_allclose(found, matching.phm(similarity, jnp.asarray(table), cells), rtol=1e-5)
    np.testing.assert_array_equal(hough.spread(table, cells, step=1)[0], table)


@recorded
def test_golden_float32_boxes_agree_away_from_edges(path):
    pair = Recorded(path)
    bins = hough.bins(pair.source.astype(np.float32), pair.target.astype(np.float32), *pair.sizes)
    safe = pair["ref_edge_margin"] >= 1e-3
    np.testing.assert_array_equal(bins[safe], pair["out_bin_index"][safe])


@recorded
def test_golden_votes(path):
    pair = Recorded(path)
    bins, size = pair.bins(), pair.grid().size
    for name, threshold in (("out_vote_relu", 0.0), ("out_vote_relu04", 0.4)):
        weights = np.maximum(pair.similarity - np.float32(threshold), 0)
        close(vote(weights, bins, size), pair[name])
        close(hough.vote_reference(weights, bins), pair[name])


@recorded
@pytest.mark.parametrize(
    "vote_grad, name", [("exact", "ref_vote_true_gradient"), ("released", "out_vote_backward")]
)
def test_golden_gradients(path, vote_grad, name):
    pair = Recorded(path)
    found = gradient(pair.similarity, pair.bins(), pair.grid().size, pair["in_upstream"], vote_grad)
    close(found, pair[name])


def test_the_example_by_hand():
    np.testing.assert_array_equal(hough.bins(SOURCE, TARGET, SIZE, SIZE), BINS)
    assert hough.grid(SIZE).shape == (40, 8, 8)
    found = hough.bins(SOURCE, TARGET, SIZE, SIZE, kind="phm")
    np.testing.assert_array_equal(found, [[16943, 0, 0, 16833], [8372, 16903, 0, 8343], [0, 0, 10380, 0]])
    assert hough.grid(SIZE, kind="phm").shape == (20, 40, 40)
    votes = vote(SIMILARITY, np.array(BINS), hough.grid(SIZE).size)
    np.testing.assert_allclose(votes, [[1.7, 0, 0, 0.6], [0.3, 1.7, 0, 0.1], [0, 0, 0.5, 0]], rtol=1e-6)


def test_grids_of_the_published_size_and_of_tiny_images():
    assert hough.grid((224, 224)).shape == (40, 18, 18)
    assert hough.grid((224, 224), kind="phm").shape == (20, 89, 89)
    x, y, s = hough.grid((224, 224)).edges()
    assert (x[0], y[-1], len(s), s[0], s[20]) == (1, 448, 41, -4, 0)
    np.testing.assert_allclose(x[1] - x[0], 447 / 18)
    assert hough.grid((1, 1)).size == 40
    with pytest.raises(ValueError, match="positive"):
        hough.grid((0, 5))
    with pytest.raises(ValueError, match="expected one of"):
        hough.grid((5, 5), kind="lom")


def test_a_value_on_an_edge_goes_up():
    """Equal boxes: s = 0 is an edge, and the corner of the image lands at (101, 101), edge 4 of 8 x 25."""
    box = np.array([[20.0, 30, 61, 71]])
    scales, columns, rows = (a.item() for a in np.unravel_index(bins_of(box, box) - 1, (40, 8, 8)))
    assert scales == 20
    grid = hough.grid(SIZE)
    assert grid.edges()[0][columns] <= 100 < grid.edges()[0][columns + 1] and columns == rows
    assert hough.edge_margin(box, box, SIZE, SIZE)[0, 0] == 0


def bins_of(source, target):
    return hough.bins(source, target, SIZE, SIZE)


def test_the_swapped_reference_differs_only_for_oblong_sources():
    options = {"kind": "phm", "swap_reference": True}
    np.testing.assert_array_equal(
        hough.bins(SOURCE, TARGET, SIZE, SIZE, **options), hough.bins(SOURCE, TARGET, SIZE, SIZE, kind="phm")
    )
    swapped = hough.bins(SOURCE, TARGET, (100, 120), SIZE, **options)
    np.testing.assert_array_equal(swapped, hough.bins(SOURCE, TARGET, (120, 100), SIZE, kind="phm"))
    assert (swapped != hough.bins(SOURCE, TARGET, (100, 120), SIZE, kind="phm")).any()


@pytest.mark.parametrize(
    "box",
    [
        [0, 0, 0, 0],
        [10, 10, 11, 40],
        [40, 10, 10, 40],
        [40, 40, 10, 10],
        [np.nan, 0, 9, 9],
        [0, 0, np.inf, 9],
    ],
)
def test_boxes_without_a_size_have_no_valid_match(box):
    """Padding, a width of 1 pixel, mirrored in one or both axes, not finite."""
    bad = np.concatenate([SOURCE, [box]])
    np.testing.assert_array_equal(bins_of(bad, TARGET)[:3], BINS)
    assert not bins_of(bad, TARGET)[3].any() and not bins_of(TARGET, bad)[:, 3].any()
    assert np.isinf(hough.edge_margin(bad, TARGET, SIZE, SIZE)[3]).all()


def test_the_aspect_gate_is_strict():
    square, wide = np.array([[0, 0, 11, 11.0]]), np.array([[0, 0, 21, 11.0]])
    assert not hough.aspect_gate(square, wide) and not hough.aspect_gate(wide, square)
    assert hough.aspect_gate(square, wide - [0, 0, 1, 0])


def test_all_votes_zero_and_no_boxes():
    bins, size = np.array(BINS), hough.grid(SIZE).size
    assert not np.any(vote(np.zeros((3, 4), np.float32), bins, size))
    assert not np.any(vote(SIMILARITY, np.zeros((3, 4), np.int32), size))
    none = bins_of(SOURCE[:0], TARGET)
    assert none.shape == (0, 4) and vote(jnp.zeros((0, 4)), none, size).shape == (0, 4)


@functools.cache
def example(seed):
    rng = np.random.default_rng(seed)
    source, target = random_boxes(rng, 9), random_boxes(rng, 8)
    return bins_of(source, target), rng.uniform(-0.3, 1, (9, 8)).astype(np.float32), rng


@relaxed
@given(st.integers(0, 10**6))
def test_votes_equal_the_definition_and_do_not_depend_on_order(seed):
    bins, weights, rng = example(seed)
    size = hough.grid(SIZE).size
    found = vote(weights, bins, size)
    np.testing.assert_allclose(found, hough.vote_reference(weights, bins), atol=1e-5)
    rows, columns = rng.permutation(9), rng.permutation(8)
    order = np.ix_(rows, columns)
    np.testing.assert_allclose(vote(weights[order], bins[order], size), found[order], atol=1e-5)
    np.testing.assert_allclose(vote(weights, bins, size + 100), found, atol=1e-6)


@relaxed
@given(st.integers(0, 10**6))
def test_exact_gradient_is_that_of_finite_differences(seed):
    bins, weights, rng = example(seed)
    similarity = np.where(np.abs(weights - 0.4) < 0.01, 0.5, weights).astype(np.float64)
    upstream, along = rng.normal(size=(2, 9, 8))
    found = gradient(similarity, bins, hough.grid(SIZE).size, upstream, "exact")

    def total(similarity):
        return np.sum(hough.vote_reference(np.maximum(similarity - 0.4, 0), bins) * upstream)

    slope = (total(similarity + 1e-5 * along) - total(similarity - 1e-5 * along)) / 2e-5
    np.testing.assert_allclose(np.sum(found * along), slope, rtol=1e-3, atol=1e-3)


def test_released_gradient_leaves_out_the_lowest_bin_without_an_invalid_match():
    weights, ones = jnp.array([[1.0, 2.0, 0.5]]), jnp.ones((1, 3))

    def grads(bins):
        return jax.vjp(lambda w: hough.vote(w, jnp.array([bins]), 4, vote_grad="released"), weights)[1](ones)

    np.testing.assert_array_equal(grads([2, 3, 3])[0], [[0, 2, 2]])
    np.testing.assert_array_equal(grads([0, 3, 3])[0], [[0, 2, 2]])
    with pytest.raises(ValueError, match="vote_grad"):
        hough.vote(weights, jnp.zeros((1, 3), jnp.int32), 4, vote_grad="other")


def test_shapes_of_a_batch_at_real_size():
    shapes = (
        jax.ShapeDtypeStruct((2, 1000, 1000), jnp.bfloat16),
        jax.ShapeDtypeStruct((2, 1000, 1000), jnp.int32),
    )
    out = jax.eval_shape(jax.vmap(functools.partial(hough.vote, size=12960)), *shapes)
    assert out.shape == (2, 1000, 1000) and out.dtype == jnp.bfloat16
