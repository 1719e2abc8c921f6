import jax
import jax.numpy as jnp
import numpy as np
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
