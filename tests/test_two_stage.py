"""The second stage against the plain loops of `two_stage_reference`, and the rules of its sample."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax import boxes as box_lib
from sm_jax import two_stage, two_stage_reference
from sm_jax.losses import assignment
from sm_jax.ops.anchors import grid_anchors

SIZE = (96, 128)
ANCHORS = grid_anchors((7, 9), stride=16, sizes=(24.0, 48.0), aspects=(0.5, 1.0))  # a padded map: one more


def random_boxes(rng, count, *, size=SIZE, sides=(8, 60)):
    low = rng.uniform(-4, [size[1] - 10, size[0] - 10], (count, 2))
    return np.concatenate([low, low + rng.uniform(*sides, (count, 2))], axis=1).astype(np.float32)


# proposals ----------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("candidates",))
def proposed(logits, codes, image_size, candidates=80):
    return two_stage.proposals(
        logits, codes, ANCHORS, image_size=image_size, candidates=candidates, iou=0.6, size=24, min_side=6.0
    )


@pytest.mark.parametrize("image_size", [SIZE, (40, 70)])
def test_proposals_are_those_of_the_loop(image_size):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=len(ANCHORS)).astype(np.float32)
    codes = (0.4 * rng.normal(size=(len(ANCHORS), 4))).astype(np.float32)
    found = proposed(logits, codes, image_size)
    boxes, conf = two_stage_reference.proposals(
        logits, codes, ANCHORS, image_size=image_size, candidates=80, iou=0.6, size=24, min_side=6.0
    )
    valid = np.asarray(found["valid"])
    assert valid.sum() == len(boxes) and not valid[len(boxes) :].any()
    np.testing.assert_allclose(found["boxes"][: len(boxes)], boxes, atol=1e-3)
    np.testing.assert_allclose(found["conf"][: len(boxes)], conf, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(found["boxes"])[~valid], 0)


def test_anchors_in_the_padding_take_no_candidate_slot():
    logits = np.where((ANCHORS[:, 0] + ANCHORS[:, 2]) / 2 > 70, 50.0, 0.0).astype(np.float32)
    found = proposed(logits, np.zeros((len(ANCHORS), 4), np.float32), (40, 70), candidates=8)
    assert found["valid"].any() and found["conf"].max() == 0.5


def test_more_candidates_than_anchors():
    found = proposed(np.zeros(len(ANCHORS), np.float32), np.zeros((len(ANCHORS), 4), np.float32), SIZE, 9999)
    assert found["valid"].any()


# the sample ---------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("num", "negative_iou", "append_boxes"))
def sampled(proposals, boxes, labels, key, masks, num=32, negative_iou=(0.0, 0.5), append_boxes=True):
    proposals_valid, where, difficult = masks
    return two_stage.sample_rois(
        proposals, boxes, labels, key, proposals_valid=proposals_valid, where=where, difficult=difficult,
        num=num, negative_iou=negative_iou, append_boxes=append_boxes,
    )  # fmt: skip


def crowd(seed, *, room=6, real=4, proposals=60):
    """Annotated boxes with padding, one of them difficult, and proposals around and beside them."""
    rng = np.random.default_rng(seed)
    boxes = random_boxes(rng, room, sides=(20, 60))
    near = boxes[rng.integers(0, room, proposals)] + rng.normal(0, 4, (proposals, 4)).astype(np.float32)
    far = random_boxes(rng, proposals)
    candidates = np.where(rng.random((proposals, 1)) < 0.6, near, far).astype(np.float32)
    masks = rng.random(proposals) < 0.9, np.arange(room) < real, np.arange(room) == 1
    return candidates, boxes, rng.integers(0, 5, room).astype(np.int32), masks


@pytest.mark.parametrize("negative_iou", [(0.0, 0.5), (0.1, 0.4)])
def test_sample_obeys_its_rule(negative_iou):
    candidates, boxes, labels, masks = crowd(1)
    proposals_valid, where, difficult = masks
    everything = np.concatenate([candidates[proposals_valid], boxes[where & ~difficult]])
    index = two_stage_reference.match(
        everything, boxes[where], difficult=difficult[where], positive_iou=0.5, negative_iou=negative_iou
    )
    for seed in range(8):
        key = jax.random.key(seed)
        target = jax.tree.map(
            np.asarray, sampled(candidates, boxes, labels, key, masks, negative_iou=negative_iou)
        )
        positive, valid = target.classes > 0, target.valid
        assert positive.sum() == min(8, (index >= 0).sum())
        assert (valid & ~positive).sum() == min(32 - positive.sum(), (index == -1).sum())
        rows = [np.flatnonzero((everything == box).all(axis=1))[0] for box in target.boxes[valid]]
        assert len(set(rows)) == len(rows)
        expected = index[rows]
        np.testing.assert_array_equal(target.matched[valid], expected)
        np.testing.assert_array_equal(target.classes[valid], np.where(expected >= 0, labels[expected] + 1, 0))
        back = box_lib.decode(target.codes, target.boxes)
        np.testing.assert_allclose(back[positive], boxes[target.matched[positive]], atol=1e-3)
        for part, empty in zip(target[:4], (0, 0, 0, -1), strict=True):
            np.testing.assert_array_equal(part[~valid], empty)
        np.testing.assert_array_equal(target.codes[~positive], 0)


def test_sample_is_random_and_its_key_decides():
    scene = crowd(2)
    first, again, other = (sampled(*scene[:3], jax.random.key(k), scene[3]) for k in (0, 0, 1))
    np.testing.assert_array_equal(first.boxes, again.boxes)
    assert (np.asarray(first.boxes) != np.asarray(other.boxes)).any()


def test_annotated_boxes_are_candidates_unless_difficult():
    boxes = np.float32([[10, 10, 40, 40], [60, 20, 90, 50], [0, 0, 5, 5]])
    masks = np.zeros(60, bool), np.array([True, True, False]), np.array([False, True, False])
    rest = np.zeros((60, 4), np.float32), boxes, np.int32([3, 4, 0]), jax.random.key(0), masks
    target = sampled(*rest)
    assert target.valid.sum() == 1 and target.classes[0] == 4
    np.testing.assert_array_equal(target.boxes[0], boxes[0])
    assert not sampled(*rest, append_boxes=False).valid.any()


def test_image_without_boxes_gives_negatives_only():
    candidates, boxes, labels, (usable, where, difficult) = crowd(3)
    target = sampled(candidates, boxes, labels, jax.random.key(0), (usable, where & False, difficult))
    assert target.valid.all() and not target.classes.any()
    sample = jax.jit(functools.partial(two_stage.sample_rois, num=8))
    none = sample(candidates, np.zeros((0, 4), np.float32), np.zeros(0, np.int32), jax.random.key(0))
    assert none.valid.all() and not none.classes.any()


def test_a_fraction_of_nothing_is_all_negatives():
    index = jnp.array([0, 1, -1, -1, -2], jnp.int32)
    sample = jax.jit(functools.partial(assignment.sample_fraction, num=6, positive_fraction=0.0))
    anchors, labels, valid = sample(index, jax.random.key(0))
    assert sorted(np.asarray(anchors)[np.asarray(valid)].tolist()) == [2, 3] and not labels.any()


# loss ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_class", [False, True])
def test_loss_and_gradients_are_those_of_the_loop(per_class):
    rng = np.random.default_rng(4)
    count, classes = 7, 3
    logits = rng.normal(0, 2, (2, count, classes + 1))
    codes = rng.normal(0, 2, (2, count, classes, 4) if per_class else (2, count, 4))
    valid = rng.random((2, count)) < 0.7
    numbers = np.where(valid, rng.integers(0, classes + 1, (2, count)), 0).astype(np.int32)
    numbers[0, 0], valid[0, 0] = 2, True
    wanted = np.where(numbers[..., None] > 0, rng.normal(0, 2, (2, count, 4)), 0)
    poisoned = np.where(valid[..., None], logits, np.nan)  # what stands in the padding has no part

    def reference(logits, codes):
        return two_stage_reference.roi_loss(
            logits[valid], codes[valid], numbers[valid], wanted[valid], weight=2.0, beta=0.7
        )

    with jax.enable_x64(True):
        targets = two_stage.RoiTargets(None, jnp.asarray(numbers), jnp.asarray(wanted), None, valid)
        weighted = functools.partial(two_stage.roi_loss, weight=2.0, beta=0.7)
        run = jax.jit(jax.value_and_grad(weighted, argnums=(0, 1), has_aux=True))
        (value, parts), gradients = run(jnp.asarray(poisoned), jnp.asarray(codes), targets)
    expected = reference(logits, codes)
    np.testing.assert_allclose([value, parts["cls_loss"], parts["box_loss"]], expected, rtol=1e-5)
    for number, (array, gradient) in enumerate(zip((logits, codes), gradients, strict=True)):
        numeric = np.zeros_like(array)
        for place in np.ndindex(array.shape):
            sides = []
            for step in (1e-5, -1e-5):
                moved = [logits.copy(), codes.copy()]
                moved[number][place] += step
                sides.append(reference(*moved)[0])
            numeric[place] = (sides[0] - sides[1]) / 2e-5
        np.testing.assert_allclose(gradient, numeric, atol=1e-5)


def test_loss_of_nothing_is_zero():
    targets = two_stage.RoiTargets(None, jnp.zeros(4, jnp.int32), jnp.zeros((4, 4)), None, jnp.zeros(4, bool))
    gradient, parts = jax.jit(jax.grad(two_stage.roi_loss, has_aux=True))(
        jnp.full((4, 2), jnp.nan), jnp.full((4, 4), jnp.nan), targets
    )
    assert not gradient.any() and not any(part.item() for part in parts.values())


# detections ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_class", [False, True])
def test_detections_are_those_of_the_loop(per_class):
    rng = np.random.default_rng(5)
    count, classes = 40, 3
    rois = random_boxes(rng, count)
    logits = rng.normal(0, 2, (count, classes + 1)).astype(np.float32)
    codes = rng.normal(0, 2, (count, classes, 4) if per_class else (count, 4)).astype(np.float32)
    where = np.arange(count) < 33

    @jax.jit
    def run(logits, codes):
        boxes, scores = two_stage.decode_rois(logits, codes, rois, image_size=SIZE)
        options = {"iou": 0.3, "score_threshold": 0.2, "max_detections": 12}
        return boxes, scores, two_stage.detections(boxes, scores, where=where, **options)

    boxes, scores, found = jax.tree.map(np.asarray, run(logits, codes))
    np.testing.assert_allclose(boxes, two_stage_reference.decode(codes, rois, SIZE), atol=1e-2, rtol=1e-4)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(scores, shares[:, 1:], atol=1e-6)
    expected = two_stage_reference.detections(
        boxes[where], scores[where], iou=0.3, score_threshold=0.2, max_detections=12
    )
    assert len(expected) == 12 and found["valid"].all()
    rows = list(zip(found["scores"], found["labels"], found["index"], strict=True))
    assert rows == expected
    for box, (_, label, number) in zip(found["boxes"], rows, strict=True):
        np.testing.assert_array_equal(box, boxes[number, label] if per_class else boxes[number])


def test_slots_without_a_detection_are_zero():
    boxes = jnp.asarray([[0.0, 0, 10, 10], [5, 5, 5, 9], [20, 0, 30, 10]])
    scores = jnp.asarray([[0.9], [0.8], [0.1]])
    detect = jax.jit(functools.partial(two_stage.detections, score_threshold=0.2, max_detections=3))
    found = detect(boxes, scores)
    np.testing.assert_array_equal(found["valid"], [True, False, False])
    np.testing.assert_array_equal(found["boxes"][1:], 0)
    np.testing.assert_allclose(found["scores"], [0.9, 0, 0], atol=1e-6)
    empty = detect(jnp.zeros((0, 4)), jnp.zeros((0, 2)))
    assert not empty["valid"].any() and empty["boxes"].shape == (3, 4)


def test_covered_boxes():
    found = np.float32([[0, 0, 10, 10], [20, 20, 30, 30]])
    boxes = jnp.asarray([[0, 0, 10, 11], [20, 20, 30, 45], [20, 20, 30, 30]], jnp.float32)
    hit = jax.jit(two_stage.covered)
    assert hit(found, boxes).tolist() == [True, False, True]
    assert hit(found, boxes, where=np.array([True, False])).tolist() == [True, False, False]
    assert hit(np.zeros((0, 4), np.float32), boxes).tolist() == [False] * 3


def test_everything_maps_over_images():
    scenes = [crowd(seed) for seed in (6, 7)]
    stacked = jax.tree.map(lambda *parts: np.stack(parts), *[(s[0], s[1], s[2], s[3]) for s in scenes])
    keys = jax.random.split(jax.random.key(0), 2)
    both = jax.vmap(sampled)(*stacked[:3], keys, stacked[3])
    for i, scene in enumerate(scenes):
        one = sampled(*scene[:3], keys[i], scene[3])
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a[i], b), both, one)
