import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sm_jax import boxes as box_lib
from sm_jax.losses import assignment

ANCHORS = box_lib.anchor_grid((6, 7))


def random_boxes(rng, count):
    corner = rng.uniform(-100, 60, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(150, 300, (count, 2))], axis=1).astype(np.float32)


def match_by_loops(boxes, difficult, anchors, positive, negative):
    result = []
    for anchor in anchors:
        overlaps = np.array([box_lib.iou(box[None], anchor[None])[0, 0] for box in boxes])
        if not len(boxes) or overlaps.max() < negative:
            result.append(assignment.NEGATIVE)
        elif overlaps.max() < positive or difficult[overlaps.argmax()]:
            result.append(assignment.IGNORED)
        else:
            result.append(overlaps.argmax())
    return result


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 4))
def test_equals_the_loops_whatever_lies_in_the_padding(seed, count):
    rng = np.random.default_rng(seed)
    boxes = random_boxes(rng, 6)
    difficult = rng.random(6) < 0.3
    where = np.arange(6) < count
    targets = assignment.assign(
        boxes, ANCHORS, positive_iou=0.6, negative_iou=0.45, difficult=difficult, where=where
    )
    expected = match_by_loops(boxes[:count], difficult, ANCHORS, 0.6, 0.45)
    np.testing.assert_array_equal(targets.index, expected)
    matched = np.asarray(targets.index) >= 0
    np.testing.assert_array_equal(targets.labels == 1, matched)
    decoded = box_lib.decode(np.asarray(targets.codes), ANCHORS)
    np.testing.assert_allclose(decoded[matched], boxes[targets.index[matched]], atol=1e-2)


def test_classes_do_not_see_each_other():
    rng = np.random.default_rng(3)
    boxes, labels = random_boxes(rng, 8), np.array([0, 1, 0, 2, -1, -2, 0, 1])
    options = {"positive_iou": 0.6, "negative_iou": 0.4}
    targets = assignment.assign_classes(boxes, labels, ANCHORS, num_classes=4, **options)
    for number in range(4):
        one = assignment.assign(boxes, ANCHORS, where=labels == number, **options)
        np.testing.assert_array_equal(targets.index[number], one.index)
        np.testing.assert_array_equal(targets.labels[number], one.labels)
        np.testing.assert_allclose(targets.codes[number], one.codes, atol=1e-5)
    np.testing.assert_array_equal(targets.labels[3], 0)  # no box of this class: everything is negative
    np.testing.assert_array_equal(targets.codes[3], 0)


def test_own_anchors_for_every_class():
    rng = np.random.default_rng(4)
    boxes, labels = random_boxes(rng, 4), np.array([0, 1, 1, 0])
    anchors = np.stack([ANCHORS, ANCHORS + 11])
    targets = assignment.assign_classes(boxes, labels, anchors, num_classes=2)
    shifted = assignment.assign(boxes, anchors[1], where=labels == 1)
    np.testing.assert_array_equal(targets.index[1], shifted.index)


def test_thresholds_are_inclusive_above_and_exclusive_below():
    iou = jnp.array([[0.5, 0.49999, 0.1, 0.09999]])
    np.testing.assert_array_equal(assignment.match(iou), [0, -2, -2, -1])


def test_ties_go_to_the_first_and_difficult_boxes_compete():
    iou = jnp.array([[0.7, 0.6], [0.7, 0.8]])
    np.testing.assert_array_equal(assignment.match(iou), [0, 1])
    np.testing.assert_array_equal(assignment.match(iou, difficult=np.array([False, True])), [0, -2])
    np.testing.assert_array_equal(assignment.match(iou, where=np.array([True, False])), [0, 0])


def test_nan_overlap_is_no_match():
    np.testing.assert_array_equal(assignment.match(jnp.array([[jnp.nan]])), [assignment.IGNORED])


def test_without_room_for_boxes():
    nothing = np.zeros((0, 4), np.float32)
    targets = assignment.assign(nothing, ANCHORS)
    np.testing.assert_array_equal(targets.labels, 0)
    np.testing.assert_array_equal(targets.codes, 0)


def test_shapes_and_no_gather():
    def targets(boxes, labels, valid):
        return jax.vmap(lambda b, l, v: assignment.assign_classes(b, l, ANCHORS, num_classes=3, where=v))(
            boxes, labels, valid
        )

    specs = (
        jax.ShapeDtypeStruct((2, 5, 4), jnp.float32),
        jax.ShapeDtypeStruct((2, 5), jnp.int32),
        jax.ShapeDtypeStruct((2, 5), jnp.bool_),
    )
    out = jax.eval_shape(targets, *specs)
    assert [leaf.shape for leaf in out] == [(2, 3, 42), (2, 3, 42), (2, 3, 42, 4)]
    assert "gather" not in jax.jit(targets).lower(*specs).as_text()


def force_by_loops(iou, index, where, per):
    result, best = np.array(index), np.zeros(iou.shape[1])
    if per == "image" and (result >= 0).any():
        return result
    for box in np.flatnonzero(where):
        anchor = iou[box].argmax()
        if iou[box, anchor] > best[anchor]:
            best[anchor], result[anchor] = iou[box, anchor], box
    return result


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["gt", "image"]))
def test_forced_matches_equal_the_loops(seed, per):
    rng = np.random.default_rng(seed)
    iou = rng.integers(0, 7, (5, 9)).astype(np.float32) / 10  # many ties, boxes without any overlap
    iou[rng.random(5) < 0.2] = 0
    where = rng.random(5) < 0.7
    index = assignment.match(jnp.asarray(iou), positive_iou=0.6, where=where)
    forced = assignment.force_best(jnp.asarray(iou), index, where=where, per=per)
    np.testing.assert_array_equal(forced, force_by_loops(iou, index, where, per))


def test_two_boxes_with_the_same_best_anchor():
    iou = jnp.array([[0.3, 0.4, 0.0], [0.2, 0.5, 0.1], [0.0, 0.5, 0.05]])
    index = jnp.full(3, assignment.IGNORED)
    np.testing.assert_array_equal(assignment.force_best(iou, index), [-2, 1, -2])
    without = np.array([True, False, False])
    np.testing.assert_array_equal(assignment.force_best(iou, index, where=without), [-2, 0, -2])


def test_nothing_to_force():
    index = jnp.array([assignment.NEGATIVE, 0, assignment.IGNORED])
    for iou in (jnp.zeros((0, 3)), jnp.zeros((2, 3)), jnp.full((2, 3), jnp.nan)):
        np.testing.assert_array_equal(assignment.force_best(iou, index), index)
    none = np.zeros(2, bool)
    np.testing.assert_array_equal(assignment.force_best(jnp.ones((2, 3)), index, where=none), index)
    with pytest.raises(ValueError, match="per is"):
        assignment.force_best(jnp.zeros((2, 3)), index, per="box")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1), st.sampled_from([1, 2]))
def test_a_sample_is_balanced_distinct_and_full(seed, positive, negative, ratio):
    rng = np.random.default_rng(seed)
    kind = rng.random(50)
    index = np.where(kind < positive / 2, rng.integers(0, 4, 50), -2)
    index = np.where(kind > 1 - negative / 2, -1, index)
    anchors, labels, valid = _sample(index, jax.random.key(seed), max_positives=8, ratio=ratio)
    assert anchors.shape == labels.shape == valid.shape == (8 * (1 + ratio),)
    positives, negatives = anchors[:8][valid[:8]], anchors[8:][valid[8:]]
    assert len(positives) == min(8, (index >= 0).sum())
    assert len(negatives) == min(ratio * len(positives), (index == -1).sum())
    assert (index[positives] >= 0).all() and (index[negatives] == -1).all()
    assert len(set(anchors[valid].tolist())) == valid.sum()
    np.testing.assert_array_equal(labels, np.where(valid, np.arange(len(valid)) < 8, 0))
    for part in (valid[:8], valid[8:]):
        assert (np.diff(part.astype(int)) <= 0).all()
    np.testing.assert_array_equal(anchors[~valid], 0)


def test_samples_are_uniform():
    index = np.array([0] * 6 + [-2] * 3 + [-1] * 12)
    keys = jax.random.split(jax.random.key(0), 4000)
    anchors, _, valid = jax.vmap(
        lambda key: assignment.sample_balanced(jnp.asarray(index), key, max_positives=3)
    )(keys)
    assert valid.all()
    share = np.bincount(np.asarray(anchors).reshape(-1), minlength=21) / 4000
    np.testing.assert_allclose(share[:6], 0.5, atol=0.04)
    np.testing.assert_array_equal(share[6:9], 0)
    np.testing.assert_allclose(share[9:], 0.25, atol=0.035)


def test_samples_of_few_anchors_and_none():
    for index, wanted in (
        ([2, -1], [True] * 1 + [False] * 3 + [True] + [False] * 3),
        ([-1, -2], [False] * 8),
    ):
        _, labels, valid = _sample(np.array(index), jax.random.key(0), max_positives=4, ratio=1)
        np.testing.assert_array_equal(valid, wanted)
        assert labels.sum() == valid[:4].sum()
    _, _, valid = _sample(np.zeros(0, np.int32), jax.random.key(0), max_positives=4, ratio=1)
    assert valid.shape == (8,) and not valid.any()


@functools.partial(jax.jit, static_argnames=("max_positives", "ratio"))
def _compiled(index, key, max_positives, ratio):
    return assignment.sample_balanced(index, key, max_positives=max_positives, negatives_per_positive=ratio)


def _sample(index, key, *, max_positives, ratio):
    return [np.asarray(part) for part in _compiled(index, key, max_positives, ratio)]
