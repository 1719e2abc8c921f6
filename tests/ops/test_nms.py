"""Suppression: recorded results, and the fast path against the plain definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sm_jax import boxes as box_ops
from sm_jax.ops import nms
from tests import goldens

relaxed = settings(deadline=None, max_examples=40)  # the first example may compile
recorded = pytest.mark.parametrize("path", goldens.params("os2d", "boxcoder*.npz"))


@functools.partial(jax.jit, static_argnames=("size", "block"))
def fast(boxes, scores, iou, where, size, block):
    return nms.nms(boxes, scores, iou=iou, size=size, where=where, block=block)


@jax.jit
def full(boxes, scores, iou, where):
    return nms.nms_all(boxes, scores, iou=iou, where=where)


def fast_indices(boxes, scores, *, iou, size, where=None, block=512):
    """Kept indices of the fast path, as a list."""
    where = np.ones(len(scores), bool) if where is None else where
    indices, valid = fast(boxes, scores, iou, where, size, block)
    assert (np.diff(np.asarray(valid).astype(int)) <= 0).all() and not np.asarray(indices)[~valid].any()
    return np.asarray(indices)[np.asarray(valid)].tolist()


def full_indices(boxes, scores, *, iou, where=None):
    """Kept indices of the full path in descending score (stable), as a list."""
    where = np.ones(len(scores), bool) if where is None else where
    keep = np.asarray(full(boxes, scores, iou, where))
    order = np.argsort(-np.where(keep, scores, -np.inf), kind="stable")
    return order[: keep.sum()].tolist()


def threshold_of(name):
    return int(name.split("_")[2]) / 100


@recorded
def test_golden_greedy(path):
    data = goldens.load(path)
    boxes, scores, labels = data["nms_boxes"], data["nms_scores"], data["nms_labels"]
    names = [key for key in data if key.startswith("nms_keep_")]
    plain = [name for name in names if name.count("_") == 2]
    assert plain
    for name in plain:
        wanted, iou = data[name].tolist(), threshold_of(name)
        assert full_indices(boxes, scores, iou=iou) == wanted
        for block in (len(scores), 16):
            assert fast_indices(boxes, scores, iou=iou, size=len(scores), block=block) == wanted
        assert nms.nms_chunked(boxes, scores, iou=iou).tolist() == wanted
    for name in (name for name in names if name.endswith("_score_gt_half")):
        wanted, iou = data[name].tolist(), threshold_of(name)
        assert nms.nms_chunked(boxes, scores, iou=iou, score_threshold=0.5).tolist() == wanted
        assert full_indices(boxes, scores, iou=iou, where=scores > 0.5) == wanted
        assert fast_indices(boxes, scores, iou=iou, size=len(scores), where=scores > 0.5) == wanted
    for name in (name for name in names if name.endswith("_per_label")):
        iou = threshold_of(name)
        each = [labels == label for label in np.unique(labels)]
        found = [fast_indices(boxes, scores, iou=iou, size=len(scores), where=where) for where in each]
        assert sum(found, []) == data[name].tolist()
        assert sum((full_indices(boxes, scores, iou=iou, where=where) for where in each), []) == sum(
            found, []
        )


@recorded
def test_golden_published_chunks(path):
    data = goldens.load(path)
    names = [key for key in data if "_chunk" in key]
    assert names
    for name in names:
        chunk, iou = int(name.rsplit("_chunk", 1)[1]), threshold_of(name)
        found = nms.nms_chunked(data["nms_boxes"], data["nms_scores"], iou=iou, chunk=chunk)
        assert found.tolist() == data[name].tolist()


def plain_greedy(boxes, scores, iou):
    """The definition, in Python."""
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        if np.isfinite(scores[i]) and all(box_ops.iou(boxes[[i]], boxes[[k]])[0, 0] <= iou for k in kept):
            kept.append(int(i))
    return kept


def crowd(seed, count=60, extent=60.0):
    """Overlapping boxes with scores of few levels (many ties), some of them not finite."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, extent, (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(1, 30, (count, 2))], axis=1).astype(np.float32)
    scores = rng.integers(0, 12, count).astype(np.float32)
    scores[rng.random(count) < 0.1] = rng.choice([np.nan, np.inf, -np.inf])
    return boxes, scores


@relaxed
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.3, 0.5, 0.9]), st.sampled_from([1, 7, 60]))
def test_every_path_is_greedy(seed, iou, block):
    boxes, scores = crowd(seed)
    iou = np.float32(iou)
    wanted = plain_greedy(boxes, scores, iou)
    assert full_indices(boxes, scores, iou=iou) == wanted
    assert fast_indices(boxes, scores, iou=iou, size=60, block=block) == wanted
    assert fast_indices(boxes, scores, iou=iou, size=5, block=block) == wanted[:5]
    finite = np.where(np.isfinite(scores), scores, np.nan)
    assert nms.nms_chunked(boxes, finite, iou=iou).tolist() == wanted


@relaxed
@given(st.integers(0, 10**6))
def test_nothing_kept_overlaps_and_everything_dropped_does(seed):
    boxes, scores = crowd(seed)
    keep = np.asarray(full(boxes, scores, 0.3, np.ones(60, bool)))
    overlap = box_ops.iou(boxes, boxes[keep])
    assert (overlap[keep] > 0.3).sum() == keep.sum()
    better = scores[keep][None, :] >= scores[:, None]
    dropped = ~keep & np.isfinite(scores)
    assert ((overlap > 0.3) & better)[dropped].any(axis=1).all()


def test_a_chain_needs_many_rounds():
    left = np.arange(200, dtype=np.float32) * 4
    boxes = np.stack([left, np.zeros(200), left + 10, np.full(200, 10)], axis=1).astype(np.float32)
    scores = np.linspace(1, 0, 200, dtype=np.float32)
    wanted = list(range(0, 200, 2))  # each box overlaps its neighbours (IoU 0.43), not the next but one
    assert fast_indices(boxes, scores, iou=0.3, size=200) == wanted
    assert fast_indices(boxes, scores, iou=0.3, size=200, block=50) == wanted


def test_threshold_is_strict():
    boxes = np.float32([[0, 0, 2, 2], [0, 0, 2, 1]])  # IoU exactly 0.5
    scores = np.float32([1, 0.5])
    assert fast_indices(boxes, scores, iou=0.5, size=2) == [0, 1]
    assert fast_indices(boxes, scores, iou=0.499, size=2) == [0]


def test_mask_nothing_and_everything():
    boxes, scores = crowd(0)
    none = np.zeros(60, bool)
    assert fast_indices(boxes, scores, iou=0.3, size=4, where=none) == []
    assert not full(boxes, scores, 0.3, none).any()
    indices, valid = nms.nms(jnp.zeros((0, 4)), jnp.zeros(0), iou=0.5, size=3)
    assert indices.shape == valid.shape == (3,) and not valid.any()
    assert nms.nms_all(jnp.zeros((0, 4)), jnp.zeros(0), iou=0.5).shape == (0,)
    assert nms.nms_chunked(np.zeros((0, 4)), np.zeros(0), iou=0.5).shape == (0,)
    assert nms.nms_chunked(boxes, np.full(60, np.nan), iou=0.5).shape == (0,)


def test_classes_by_vmap_and_by_map():
    pairs = [crowd(seed) for seed in range(3)]
    boxes, scores = (jnp.stack([jnp.asarray(pair[i]) for pair in pairs]) for i in range(2))
    one = functools.partial(nms.nms, iou=0.3, size=20, block=16)
    wanted = [plain_greedy(*pair, 0.3)[:20] for pair in pairs]
    for indices, valid in (
        jax.jit(jax.vmap(one))(boxes, scores),
        jax.jit(lambda *pair: jax.lax.map(lambda p: one(*p), pair))(boxes, scores),
    ):
        assert [np.asarray(i)[np.asarray(v)].tolist() for i, v in zip(indices, valid, strict=True)] == wanted


def test_shapes_and_half_precision_scores():
    boxes, scores = crowd(3)
    out = jax.eval_shape(
        functools.partial(nms.nms, iou=0.3, size=100), jnp.zeros((50_000, 4)), jnp.zeros(50_000, jnp.float16)
    )
    assert [(o.shape, o.dtype) for o in out] == [((100,), jnp.int32), ((100,), jnp.bool_)]
    half = fast_indices(boxes, scores.astype(np.float16), iou=0.3, size=60)
    assert half == fast_indices(boxes, scores, iou=0.3, size=60)
