"""Scores of matches: recorded numbers, the example by hand, and the float64 definitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sm_jax.ops import hough, matching, matching_reference
from tests.ops.matching_examples import (
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
relaxed = settings(deadline=None, max_examples=15)  # the first example may compile
scnet_scores = jax.jit(
    matching.scnet_scores, static_argnames=("size", "outer_relu", "vote_threshold", "vote_bias", "vote_grad")
)
phm = jax.jit(matching.phm, static_argnames="grid")
lom = jax.jit(matching.lom, static_argnames="inplace")
BINS = hough.bins(SOURCE, TARGET, SIZE, SIZE)
GATE = hough.aspect_gate(SOURCE, TARGET)
LOM_INPLACE = [[0.368182, 0.016972, 0, 0.015965], [0.009446, 0.441625, 0, 0.001381], [0, 0, 0.082323, 0]]


@recorded
def test_golden_similarity_and_scnet(path):
    pair = Recorded(path)
    close(pair["in_feat_a"] @ pair["in_feat_b"].T, pair.similarity)
    bins, size = pair.bins(), pair.grid().size
    close(scnet_scores(pair.similarity), np.maximum(pair.similarity, 0))
    ag = {"outer_relu": False}
    close(scnet_scores(pair.similarity, bins, size=size, **ag), pair["out_scnet_z_ag"])
    close(matching_reference.scnet_scores(pair.similarity, bins, **ag), pair["out_scnet_z_ag"])
    plus = {"geometry": pair.similarity}
    close(scnet_scores(pair.similarity, bins, size=size, **plus), pair["out_scnet_z_agplus_same"])
    close(matching_reference.scnet_scores(pair.similarity, bins, **plus), pair["out_scnet_z_agplus_same"])
    ones = jnp.ones_like(pair.similarity)  # times a factor of 1, the vote alone
    votes = scnet_scores(ones, bins, size=size, geometry=pair.similarity)
    close(votes, pair["out_scnet_g_ag"])


@recorded
def test_golden_nam(path):
    pair = Recorded(path)
    close(matching.nam(pair.similarity, pair.gate()), pair["out_nam"])
    close(matching_reference.nam(pair.similarity, pair.gate()), pair["out_nam"])


@recorded
@pytest.mark.parametrize("swap, name", [(True, "out_phm"), (False, "out_phm_wh")])
def test_golden_phm(path, swap, name):
    pair = Recorded(path)
    bins, grid = pair.bins(kind="phm", swap_reference=swap), pair.grid(kind="phm")
    close(phm(pair.similarity, bins, grid), pair[name])
    close(matching_reference.phm(pair.similarity, bins, grid), pair[name])


@recorded
@pytest.mark.parametrize("inplace, name", [(True, "out_lom"), (False, "ref_lom_synchronous")])
def test_golden_lom(path, inplace, name):
    """In float64 to the recorded precision; on the device as far as float32 carries (see `lom`)."""
    pair = Recorded(path)
    scores = matching_reference.nam(pair.similarity, pair.gate())
    close(matching_reference.lom(scores, pair.source, pair.target, inplace=inplace), pair[name])
    boxes = (np.float32(pair.source), np.float32(pair.target))
    found = lom(np.float32(scores), *boxes, inplace=inplace)
    close(found, pair[name], tolerance=0.03)
    assert np.quantile(np.abs(found - pair[name]), 0.95) <= 1e-4 * pair[name].max()
    assert np.mean(found.argmax(axis=1) == pair[name].argmax(axis=1)) > 0.98


def test_scnet_by_hand():
    size = hough.grid(SIZE).size
    paper = {"vote_threshold": 0.0, "vote_bias": 0.0}
    found = scnet_scores(SIMILARITY, BINS, size=size, **paper)
    expected = [[1.53, 0, 0, 0.36], [0.09, 1.36, 0, 0.01], [0, 0, 0.25, 0]]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    released = [[0.819, 0.005, 0.002, 0.126], [0.003, 0.728, 0.007, 0.001], [0.004, 0.002, 0.055, 0.0045]]
    np.testing.assert_allclose(scnet_scores(SIMILARITY, BINS, size=size), released, atol=1e-6)


def test_proposal_flow_by_hand():
    bins, grid = hough.bins(SOURCE, TARGET, SIZE, SIZE, kind="phm"), hough.grid(SIZE, kind="phm")
    expected = [[0.070462, 0, 0, 0.019939], [0.004985, 0.061047, 0, 0.000554], [0, 0, 0.013847, 0]]
    np.testing.assert_allclose(phm(SIMILARITY, bins, grid), expected, atol=1e-6)
    nam = matching.nam(SIMILARITY, GATE)
    np.testing.assert_allclose(nam, [[0.9, 0.5, 0, 0.6], [0.3, 0.8, 0, 0.1], [0, 0, 0.5, 0]], atol=1e-6)
    boxes = np.float32(SOURCE), np.float32(TARGET)
    for find in (lom, matching_reference.lom):
        np.testing.assert_allclose(find(nam, *boxes, inplace=True), LOM_INPLACE, atol=2e-6)
        synchronous = find(nam, *boxes)
        np.testing.assert_allclose(synchronous[0], LOM_INPLACE[0], atol=2e-6)
        rest = [[0.007163, 0.334869, 0, 0.001047], [0, 0, 0.067666, 0]]
        np.testing.assert_allclose(synchronous[1:], rest, atol=2e-6)


def test_the_outer_relu_concerns_negative_similarities_only():
    negative = SIMILARITY - np.float32(0.45)
    options = {"bins": BINS, "size": hough.grid(SIZE).size}
    kept, cut = (scnet_scores(negative, outer_relu=relu, **options) for relu in (False, True))
    np.testing.assert_array_equal(np.maximum(kept, 0), cut)
    assert np.min(kept) < 0


@functools.cache
def example(seed):
    rng = np.random.default_rng(seed)
    source, target = random_boxes(rng, 9), random_boxes(rng, 8)
    similarity, geometry = rng.uniform(-0.3, 1, (2, 9, 8)).astype(np.float32)
    return source, target, similarity, geometry, rng


@jax.jit
def nam_scores(similarity, gate, where):
    return matching.nam(similarity, gate, where=where)


@functools.partial(jax.jit, static_argnames="name")
def loss_gradient(similarity, bins, phm_bins, upstream, name):
    def loss(similarity):
        if name == "phm":
            scores = matching.phm(similarity, phm_bins, hough.grid(SIZE, kind="phm"))
        else:
            scores = matching.scnet_scores(similarity, bins, size=hough.grid(SIZE).size)
        return jnp.sum(scores * upstream)

    return jax.grad(loss)(similarity)


def everything(source, target, similarity, geometry, where=None):
    """All scores, as the device computes them."""
    bins, phm_bins = (hough.bins(source, target, SIZE, SIZE, kind=kind) for kind in ("scnet", "phm"))
    size, grid = hough.grid(SIZE).size, hough.grid(SIZE, kind="phm")
    nam = nam_scores(similarity, hough.aspect_gate(source, target), where)
    boxes = np.float32(source), np.float32(target)
    return {
        "a": scnet_scores(similarity, where=where),
        "ag": scnet_scores(similarity, bins, size=size, where=where),
        "ag+": scnet_scores(similarity, bins, size=size, geometry=geometry, where=where),
        "nam": nam,
        "phm": phm(similarity, phm_bins, grid, where=where),
        "lom": lom(nam, *boxes, where=where),
        "lom inplace": lom(nam, *boxes, inplace=True, where=where),
    }


@relaxed
@given(st.integers(0, 10**6))
def test_the_device_agrees_with_the_definitions(seed):
    source, target, similarity, geometry, _ = example(seed)
    found = everything(source, target, similarity, geometry)
    bins, phm_bins = (hough.bins(source, target, SIZE, SIZE, kind=kind) for kind in ("scnet", "phm"))
    nam = matching_reference.nam(similarity, hough.aspect_gate(source, target))
    expected = {
        "a": matching_reference.scnet_scores(similarity),
        "ag": matching_reference.scnet_scores(similarity, bins),
        "ag+": matching_reference.scnet_scores(similarity, bins, geometry=geometry),
        "nam": nam,
        "phm": matching_reference.phm(similarity, phm_bins, hough.grid(SIZE, kind="phm")),
    }
    for name, scores in expected.items():
        close(found[name], scores)


@pytest.mark.parametrize("inplace", [False, True])
def test_most_rows_of_lom_agree_with_the_definition(inplace):
    """The robust centre is badly conditioned in some rows (see `lom`), also in the order of the regions."""
    agree, same = [], []
    for seed in range(15):
        source, target, similarity, _, rng = example(seed)
        nam = matching_reference.nam(similarity, hough.aspect_gate(source, target))
        expected = matching_reference.lom(nam, source, target, inplace=inplace)
        nam, source, target = np.float32(nam), np.float32(source), np.float32(target)
        found = lom(nam, source, target, inplace=inplace)
        agree.append(np.abs(found - expected).max(axis=1) <= 1e-4 * expected.max())
        if not inplace:
            rows, columns = rng.permutation(9), rng.permutation(8)
            moved = lom(nam[np.ix_(rows, columns)], source[rows], target[columns])
            same.append(np.abs(moved - found[np.ix_(rows, columns)]).max(axis=1) <= 1e-4 * expected.max())
    assert np.mean(agree) > 0.85 and (inplace or np.mean(same) > 0.7)


@relaxed
@given(st.integers(0, 10**6))
def test_padding_changes_nothing(seed):
    source, target, similarity, geometry, rng = example(seed)
    plain = everything(source[:6], target[:5], similarity[:6, :5], geometry[:6, :5])
    where = (np.arange(9) < 6)[:, None] & (np.arange(8) < 5)[None, :]
    dirty = np.where(where, similarity, np.nan)
    padded = everything(source, target, dirty, np.where(where, geometry, np.nan), where)
    for name, scores in padded.items():
        np.testing.assert_allclose(scores[:6, :5], plain[name], rtol=1e-4, atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(np.asarray(scores)[~where], 0, err_msg=name)


@relaxed
@given(st.integers(0, 10**6))
def test_order_of_the_regions_does_not_matter(seed):
    source, target, similarity, geometry, rng = example(seed)
    rows, columns = rng.permutation(9), rng.permutation(8)
    order = np.ix_(rows, columns)
    plain = everything(source, target, similarity, geometry)
    moved = everything(source[rows], target[columns], similarity[order], geometry[order])
    for name in ("a", "ag", "ag+", "nam", "phm"):
        np.testing.assert_allclose(moved[name], plain[name][order], atol=1e-5, err_msg=name)


@relaxed
@given(st.integers(0, 10**6))
def test_gradients_are_those_of_finite_differences(seed):
    source, target, similarity, geometry, rng = example(seed)
    away = np.abs(similarity - 0.4) < 0.01
    similarity = np.where(away | (np.abs(similarity) < 0.01), 0.6, similarity).astype(np.float64)
    upstream, along = rng.normal(size=(2, 9, 8))
    bins = hough.bins(source, target, SIZE, SIZE)
    phm_bins, grid = hough.bins(source, target, SIZE, SIZE, kind="phm"), hough.grid(SIZE, kind="phm")
    definitions = {
        "ag": lambda s: matching_reference.scnet_scores(s, bins),
        "phm": lambda s: matching_reference.phm(s, phm_bins, grid),
    }
    for name, slow in definitions.items():
        found = loss_gradient(np.float32(similarity), bins, phm_bins, upstream, name)
        slope = np.sum((slow(similarity + 1e-6 * along) - slow(similarity - 1e-6 * along)) * upstream) / 2e-6
        np.testing.assert_allclose(np.sum(found * along), slope, rtol=2e-3, atol=2e-3, err_msg=name)


def test_nothing_similar_gives_zero_scores_and_zero_confidence():
    zero = np.zeros((3, 4), np.float32)
    found = everything(SOURCE, TARGET, zero - 0.1, zero)
    for name, scores in found.items():
        np.testing.assert_array_equal(scores, 0, err_msg=name)
        index, confidence = matching.best_matches(scores)
        assert not np.any(index) and not np.any(confidence)
    assert not matching_reference.lom(zero, SOURCE, TARGET).any()


def test_boxes_without_a_size_score_zero_and_do_no_harm():
    """As a third source and fourth target region: mirrored, or a single pixel."""
    source, target = SOURCE.copy(), TARGET.copy()
    source[2], target[3] = [41, 50, 20, 91], [9, 69, 10, 70]
    found = everything(source, target, SIMILARITY, SIMILARITY)
    for name in ("nam", "phm", "lom", "lom inplace"):
        assert np.isfinite(found[name]).all(), name
        assert not np.any(found[name][2]) and not np.any(found[name][:, 3]), name
    np.testing.assert_allclose(found["lom"][0, 0], LOM_INPLACE[0][0] * 2.2 / 1.7, rtol=1e-5)  # share of 1.7


def test_best_matches():
    index, confidence = matching.best_matches(np.float32([[0.2, 0.7, 0.7], [-1, -2, -3], [5, 5, 5]]))
    assert index.tolist() == [1, 0, 0] and index.dtype == jnp.int32
    np.testing.assert_allclose(confidence, [0.7, -1, 5])
    where = np.array([[True, True, False], [False, True, True], [False, False, False]])
    index, confidence = matching.best_matches(np.float32([[0, 1, 2], [9, -2, -3], [5, 5, 5]]), where=where)
    assert index.tolist() == [1, 1, 0] and confidence.tolist() == [1, -2, 0]


def test_arguments_that_do_not_go_together():
    for options in ({"bins": BINS}, {"size": 5}, {"geometry": SIMILARITY}):
        with pytest.raises(ValueError, match="go together"):
            matching.scnet_scores(SIMILARITY, **options)


def test_no_regions():
    none = jnp.zeros((0, 4))
    assert matching.lom(none, jnp.zeros((0, 4)), jnp.float32(TARGET)).shape == (0, 4)
    assert matching_reference.lom(none, np.zeros((0, 4)), TARGET).shape == (0, 4)


def test_a_batch_of_pairs_by_vmap():
    stacked = np.stack([SIMILARITY, SIMILARITY[::-1]])
    bins = np.stack([BINS, BINS[::-1]])
    size = hough.grid(SIZE).size
    both = jax.vmap(functools.partial(matching.scnet_scores, size=size))(stacked, bins)
    np.testing.assert_allclose(both[1], both[0][::-1], rtol=1e-6)
