"""The proposals' network, targets, loss and boxes; vectors of the specification, section 6."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sm_jax import boxes as box_lib
from sm_jax import rpn
from sm_jax.losses import assignment, regression
from sm_jax.ops.anchors import grid_anchors

ANCHORS = grid_anchors((16, 16), stride=32)
IMAGE = (512, 512)
relaxed = settings(deadline=None, max_examples=20)


@functools.partial(jax.jit, static_argnames=("force", "max_positives"))
def targets_of(boxes, key, where, force="per_gt", max_positives=32):
    return rpn.rpn_targets(boxes, ANCHORS, key, where=where, force=force, max_positives=max_positives)


@jax.jit
def matched(iou):
    index = assignment.match(iou, positive_iou=0.6, negative_iou=0.1)
    return assignment.force_best(iou, index)


@functools.partial(jax.jit, static_argnames=("size", "min_conf"))
def proposals(logits, codes, size=100, min_conf=0.5):
    return rpn.propose(logits, codes, ANCHORS, image_size=IMAGE, size=size, min_conf=min_conf)


@functools.partial(jax.jit, static_argnames=("weight", "beta"))
def loss_and_gradients(logits, codes, targets, weight=1.0, beta=1.0):
    loss = functools.partial(rpn.rpn_loss, targets=targets, weight=weight, beta=beta)
    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(logits, codes)


def scene(seed, *, count=12, sides=(48, 80), room=20):
    """Square boxes inside the image, mostly apart, padded with rubbish: boxes "room 4", where "room"."""
    rng = np.random.default_rng(seed)
    boxes = np.zeros((0, 4), np.float32)
    while len(boxes) < count:
        side = rng.uniform(*sides)
        corner = rng.uniform(0, 512 - side, 2)
        new = np.concatenate([corner, corner + side])[None].astype(np.float32)
        if not box_lib.iou(new, boxes).any():
            boxes = np.concatenate([boxes, new])
    rubbish = rng.uniform(0, 512, (room - count, 4)).astype(np.float32)
    return np.concatenate([boxes, rubbish]), np.arange(room) < count


# targets ------------------------------------------------------------------------------------------


def test_vector_2_one_box_no_anchor_above_the_threshold():
    box = np.float32([[150, 170, 214, 222]])
    iou = box_lib.iou(box, ANCHORS)[0]
    order = np.argsort(-iou)
    assert [(a % 16, a // 16) for a in order[:6].tolist()] == [(5, 6), (5, 5), (6, 6), (6, 5), (4, 6), (4, 5)]
    expected = [0.560976, 0.422222, 0.307963, 0.241472, 0.192036, 0.153512]
    np.testing.assert_allclose(iou[order[:6]], expected, atol=1e-6)
    index = matched(iou[None])
    assert [(index == kind).sum() for kind in (0, assignment.NEGATIVE, assignment.IGNORED)] == [1, 249, 6]
    target = targets_of(box, jax.random.key(0), np.array([True]))
    assert target.anchors[0] == 6 * 16 + 5 and target.matched[0] == 0
    assert target.valid.sum() == 2 and target.valid[32] and target.labels.sum() == 1
    np.testing.assert_allclose(target.codes[0], [0.09375, -0.1875, 0, -0.207639], atol=1e-6)
    back = box_lib.decode(target.codes[:1], ANCHORS[101:102], weights=rpn.WEIGHTS)
    np.testing.assert_allclose(back, box, atol=1e-3)


def test_vector_3_decoding():
    anchor = box_lib.cxcywh_to_xyxy(np.float32([[144, 176, 64, 64]]))
    codes = np.float32([[0.25, -0.5, np.log(1.5), np.log(0.5)]])
    found = box_lib.decode(codes, anchor, weights=rpn.WEIGHTS)
    np.testing.assert_allclose(found, [[112, 128, 208, 160]], atol=1e-4)


@relaxed
@given(st.integers(0, 10**6), st.integers(0, 16))
def test_targets_are_what_they_say(seed, count):
    boxes, where = scene(seed, count=count)
    target = jax.tree.map(np.asarray, targets_of(boxes, jax.random.key(seed), where))
    iou = box_lib.iou(boxes[:count], ANCHORS)
    best = iou.argmax(axis=1)
    positive, negative = target.valid & (target.labels == 1), target.valid & (target.labels == 0)
    np.testing.assert_array_equal(positive.nonzero()[0], np.arange(positive.sum()))
    assert negative.sum() == positive.sum()
    if not count:
        assert not target.valid.any()
        return
    assert (iou[:, target.anchors[negative]] < 0.1).all()
    # every box has a positive, except where another one overlaps its best anchor more
    for box in range(count):
        rivals = iou[best == best[box], best[box]]
        if iou[box, best[box]] == rivals.max():
            assert box in target.matched[positive]
    for anchor, box in zip(target.anchors[positive], target.matched[positive], strict=True):
        assert iou[box, anchor] > 0.6 or anchor == best[box]
    everything = np.flatnonzero((iou > 0.6).any(axis=0))
    assert set(target.anchors[positive]) == set(everything) | set(best)
    back = box_lib.decode(target.codes, ANCHORS[target.anchors], weights=rpn.WEIGHTS)
    np.testing.assert_allclose(back[positive], boxes[target.matched[positive]], atol=1e-2)
    np.testing.assert_array_equal(target.codes[~positive], 0)
    np.testing.assert_array_equal(target.matched[~positive], -1)


def test_share_of_boxes_that_only_force_reaches():
    """Table of section 3, sides 48 to 80: .57 of the boxes have no anchor above 0.6; 6.5 positives, 143
    negatives per image from the thresholds, and a mean best overlap of .59."""
    rng = np.random.default_rng(0)
    lonely, best, positives, negatives = [], [], [], []
    for seed in range(150):
        boxes, where = scene(seed, count=int(rng.integers(10, 21)))
        iou = box_lib.iou(boxes[where], ANCHORS)
        lonely.extend(iou.max(axis=1) <= 0.6)
        best.extend(iou.max(axis=1))
        positives.append((iou.max(axis=0) > 0.6).sum())
        negatives.append((iou.max(axis=0) < 0.1).sum())
    assert abs(np.mean(lonely) - 0.57) < 0.03
    assert abs(np.mean(best) - 0.59) < 0.01
    assert abs(np.mean(positives) - 6.5) < 0.5
    assert abs(np.mean(negatives) - 143) < 5


def test_ways_to_force():
    far = np.float32([[150, 170, 214, 222], [310, 330, 374, 382]])  # none above 0.6
    near = np.float32([[16, 16, 80, 80], [150, 170, 214, 222]])  # the first is an anchor
    both, key = np.ones(2, bool), jax.random.key(0)

    def count(boxes, force):
        return int(targets_of(boxes, key, both, force=force).labels.sum())

    assert [count(far, force) for force in ("none", "per_image", "per_gt")] == [0, 2, 2]
    assert [count(near, force) for force in ("none", "per_image", "per_gt")] == [1, 1, 2]
    with pytest.raises(ValueError, match="force is"):
        rpn.rpn_targets(far, ANCHORS, key, force="always")


def test_positive_is_strictly_above_the_threshold():
    anchors = np.float32([[0, 0, 10, 10]])
    targets = jax.jit(functools.partial(rpn.rpn_targets, force="none", max_positives=1))
    for height, labels in ((6, 0), (6.001, 1)):  # overlaps 0.6 and a little more
        target = targets(np.float32([[0, 0, 10, height]]), anchors, jax.random.key(0))
        assert target.labels.sum() == labels


def test_more_positives_than_slots_and_a_random_choice_of_them():
    boxes, where = scene(5, count=16)
    seen = set()
    for seed in range(20):
        target = targets_of(boxes, jax.random.key(seed), where, max_positives=4)
        assert target.valid.all() and target.labels.sum() == 4 and target.anchors.shape == (8,)
        seen.update(target.matched[:4].tolist())
    assert seen == set(range(16))


def test_negatives_may_fill_the_slots():
    boxes, where = scene(6, count=3)
    fill = jax.jit(functools.partial(rpn.rpn_targets, fill=True, max_positives=16))
    target = fill(boxes, ANCHORS, jax.random.key(0), where=where)
    positives = int(target.labels.sum())
    assert 0 < positives < 16 and target.valid.all() and len(set(target.anchors.tolist())) == 32
    assert (box_lib.iou(boxes[where], ANCHORS[target.anchors[positives:]]) < 0.1).all()
    assert (np.asarray(target.matched[:positives]) >= 0).all()
    batch = jax.tree.map(lambda leaf: leaf[None], target)
    losses = [
        rpn.rpn_loss(jnp.zeros((1, 32)), jnp.ones((1, 32, 4)), batch, per=per)[1]["box_loss"]
        for per in ("positive", "sample")
    ]
    np.testing.assert_allclose(losses[0] * positives, losses[1] * 32, rtol=1e-5)
    empty = fill(boxes, ANCHORS, jax.random.key(0), where=where & False)
    assert empty.valid.all() and not empty.labels.any()


def test_difficult_boxes_are_neither_positive_nor_negative():
    boxes, difficult = np.float32([[16, 16, 80, 80], [310, 330, 374, 382]]), np.array([True, False])
    match = jax.jit(functools.partial(rpn.rpn_targets, fill=True, max_positives=300))
    target = match(boxes, ANCHORS, jax.random.key(0), difficult=difficult)
    assert target.labels.sum() == 1 and target.matched[0] == 1
    chosen = ANCHORS[np.asarray(target.anchors)[np.asarray(target.valid)]]
    assert box_lib.iou(boxes[:1], chosen).max() < 0.1


def test_without_boxes_everything_is_invalid_and_costs_nothing():
    none = np.zeros((0, 4), np.float32)
    target = targets_of(none, jax.random.key(0), None, max_positives=4)
    assert not target.valid.any() and not target.labels.any() and not target.codes.any()
    batch = jax.tree.map(lambda leaf: leaf[None], target)
    dirty = np.full((1, 8), np.nan, np.float32), np.full((1, 8, 4), np.nan, np.float32)
    (loss, parts), gradients = loss_and_gradients(*dirty, batch)
    assert loss == parts["cls_loss"] == parts["box_loss"] == 0
    assert not any(gradient.any() for gradient in gradients)


# loss ---------------------------------------------------------------------------------------------


def loss_example():
    conf = np.array([[0.8, 0.6, 0.5], [0.1, 0.3, 0.5]])
    residuals = np.zeros((2, 3, 4), np.float32)
    residuals[0, :2] = [[0.1, -0.2, 0.05, 0], [0, 0.4, -1.5, 0.2]]
    residuals[:, 2] = 9  # not valid
    residuals[1, 0] = 7  # negative
    labels = np.array([[1, 1, 0], [0, 0, 0]])
    valid = np.array([[True, True, False], [True, True, False]])
    target_codes = np.float32([[[0.3, 0.2, 0.1, 0.0]]])
    codes = np.where(labels[..., None] == 1, target_codes, np.float32(0))
    targets = rpn.RpnTargets(np.zeros((2, 3), int), labels, valid, np.where(labels, 0, -1), codes)
    return np.log(conf / (1 - conf)).astype(np.float32), codes + residuals, targets


def test_vectors_4_and_5_the_loss():
    error = np.float32([0.5, -2, 0.1, 0])
    assert abs(regression.smooth_l1(error, np.zeros_like(error), reduce_fn=jnp.sum) - 1.63) < 1e-6
    logits, codes, targets = loss_example()
    (loss, parts), _ = loss_and_gradients(logits, codes, targets)
    np.testing.assert_allclose(parts["cls_loss"], 0.299001, atol=1e-6)
    np.testing.assert_allclose(parts["box_loss"], 0.563125, atol=1e-6)
    np.testing.assert_allclose(loss, 0.862126, atol=1e-6)
    (double, _), _ = loss_and_gradients(logits, codes, targets, weight=2.0)
    np.testing.assert_allclose(double, 0.299001 + 2 * 0.563125, atol=1e-6)
    (_, parts), _ = loss_and_gradients(logits, codes, targets, beta=0.0)
    np.testing.assert_allclose(parts["box_loss"], (0.35 + 2.1) / 2, atol=1e-6)


def test_gradient_of_the_loss():
    logits, codes, targets = loss_example()
    gradient, to_codes = jax.grad(lambda *pair: rpn.rpn_loss(*pair, targets)[0], argnums=(0, 1))(
        logits, codes
    )
    expected = np.array([[-0.2, -0.4, 0], [0.1, 0.3, 0]]) / 4
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
    np.testing.assert_allclose(to_codes[0, 0], np.array([0.1, -0.2, 0.05, 0]) / 2, atol=1e-6)
    np.testing.assert_allclose(to_codes[0, 1], np.array([0, 0.4, -1, 0.2]) / 2, atol=1e-6)
    assert not to_codes[1].any() and not to_codes[0, 2].any()


# network ------------------------------------------------------------------------------------------


def network(kinds, cells=(4, 5), channels=6):
    net = rpn.RPN(width=7, anchors_per_cell=kinds)
    features = jax.random.normal(jax.random.key(1), (3, *cells, channels))
    variables = net.init(jax.random.key(0), features[:, :1, :1])
    noise = jax.random.split(jax.random.key(2), len(jax.tree.leaves(variables)))
    leaves, tree = jax.tree.flatten(variables)
    leaves = [jax.random.normal(key, leaf.shape) for key, leaf in zip(noise, leaves, strict=True)]
    return net, jax.tree.unflatten(tree, leaves), features


@pytest.mark.parametrize("kinds", [1, 3])
def test_chosen_anchors_have_the_values_and_gradients_of_all(kinds):
    net, variables, features = network(kinds)
    rng = np.random.default_rng(0)
    chosen = jnp.asarray(rng.integers(0, 20 * kinds, (3, 11)), jnp.int32)
    chosen = chosen.at[0, :4].set(jnp.array([0, 5 * kinds - 1, 15 * kinds, 20 * kinds - 1]))  # corners
    chosen = chosen.at[1, 1].set(chosen[1, 0])  # one twice
    weights = jnp.asarray(rng.normal(size=(3, 11, 5)), jnp.float32)

    def dense(variables, features):
        out = net.apply(variables, features)
        logits = jnp.take_along_axis(out["logits"], chosen, axis=1)
        return jnp.concatenate(
            [logits[..., None], jnp.take_along_axis(out["codes"], chosen[..., None], axis=1)], axis=-1
        )

    def sparse(variables, features):
        out = net.apply(variables, features, chosen, method="at")
        return jnp.concatenate([out["logits"][..., None], out["codes"]], axis=-1)

    both = [jax.jit(f)(variables, features) for f in (dense, sparse)]
    np.testing.assert_allclose(*both, rtol=1e-4, atol=1e-4)
    gradients = [
        jax.jit(jax.grad(lambda *args, f=f: jnp.sum(weights * f(*args) ** 2), argnums=(0, 1)))(
            variables, features
        )
        for f in (dense, sparse)
    ]
    largest = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(gradients[0]))
    for one, other in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6 * largest)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_chosen_anchors_are_as_exact_in_half_precision_as_all(dtype):
    """Nine products are added up before they are rounded: the error is that of one convolution."""
    rng = np.random.default_rng(4)
    features = jnp.asarray(np.maximum(rng.normal(size=(2, 5, 6, 256)), 0), dtype)
    kernel = jnp.asarray(0.05 * rng.normal(size=(3, 3, 256, 32)), jnp.float32)
    cell = jnp.tile(jnp.arange(30)[None], (2, 1))
    convolve_at = jax.jit(rpn._convolve_at)
    wanted = convolve_at(features.astype(jnp.float32), kernel.astype(dtype).astype(jnp.float32), cell)
    found = convolve_at(features, kernel, cell)
    assert found.dtype == dtype
    step = jnp.finfo(dtype).eps / 2  # half a unit of the last place, of values up to twice the power of two
    np.testing.assert_allclose(found.astype(jnp.float32), wanted, rtol=1.01 * float(step), atol=1e-5)


def test_the_order_is_that_of_the_anchors():
    """A network that answers with the centre of its cell and the number of the anchor in the cell."""
    net, variables, _ = network(3, channels=2)
    rows, columns = np.meshgrid(np.arange(4.0), np.arange(5.0), indexing="ij")
    features = np.stack([columns + 0.5, rows + 0.5], axis=-1)[None].astype(np.float32) * 8
    variables = jax.tree.map(jnp.zeros_like, variables)
    tree = variables["params"]
    tree["conv"]["kernel"] = tree["conv"]["kernel"].at[1, 1, :, :2].set(jnp.eye(2))
    tree["codes"]["kernel"] = tree["codes"]["kernel"].at[:2, ::4].set(jnp.array([[1.0], [0.0]]))
    tree["codes"]["kernel"] = tree["codes"]["kernel"].at[:2, 1::4].set(jnp.array([[0.0], [1.0]]))
    tree["objectness"]["bias"] = jnp.arange(3.0)
    out = jax.jit(net.apply)(variables, features)
    anchors = box_lib.xyxy_to_cxcywh(grid_anchors((4, 5), stride=8, aspects=(0.5, 1.0, 2.0)))
    np.testing.assert_allclose(out["codes"][0, :, :2], anchors[:, :2], rtol=1e-5)
    np.testing.assert_array_equal(out["logits"][0], np.arange(60) % 3)


def test_shapes_types_and_start_at_real_size():
    net = rpn.RPN()
    features = jax.ShapeDtypeStruct((32, 16, 16, 1280), jnp.bfloat16)
    out, variables = jax.eval_shape(lambda f: net.init_with_output(jax.random.key(0), f), features)
    shapes = jax.tree.map(lambda leaf: leaf.shape, variables["params"])
    assert shapes == {
        "conv": {"kernel": (3, 3, 1280, 256), "bias": (256,)},
        "objectness": {"kernel": (256, 1), "bias": (1,)},
        "codes": {"kernel": (256, 4), "bias": (4,)},
    }
    chosen = jax.ShapeDtypeStruct((32, 64), jnp.int32)
    some = jax.eval_shape(functools.partial(net.apply, method="at"), variables, features, chosen)
    for found, count in ((out, 256), (some, 64)):
        assert found["logits"].shape == (32, count) and found["codes"].shape == (32, count, 4)
        assert found["logits"].dtype == found["codes"].dtype == jnp.float32
    start = rpn.RPN(width=64).init(jax.random.key(0), jnp.zeros((1, 1, 1, 32)))["params"]
    assert abs(float(jnp.std(start["conv"]["kernel"])) - 0.01) < 5e-4
    assert not start["conv"]["bias"].any() and not start["codes"]["bias"].any()


def test_sampled_training_does_not_compute_the_dense_map():
    """At the default sizes, a sixth of the dense products (40 of 256 cells)."""
    net = rpn.RPN(width=8)
    features = jnp.zeros((1, 16, 16, 16))
    variables = net.init(jax.random.key(0), features)
    chosen = jnp.zeros((1, 40), jnp.int32)
    lowered = jax.jit(functools.partial(net.apply, method="at")).lower(variables, features, chosen)
    assert "convolution" not in lowered.as_text()


# proposals ----------------------------------------------------------------------------------------


def test_proposals_are_decoded_clipped_suppressed_and_sorted():
    codes = np.zeros((256, 4), np.float32)
    logits = np.full(256, -5, np.float32)
    logits[[0, 100, 101, 200, 255]] = [1, 3, 2, 0, 4]  # 200 is at confidence 0.5 exactly
    codes[101] = [-0.5, 0, 0, 0]  # moved onto the anchor of 100
    codes[255] = [0, 0, -10, 0]  # narrower than 4 px
    found = jax.tree.map(np.asarray, proposals(logits, codes, size=6))
    np.testing.assert_array_equal(found["valid"], [True, True] + [False] * 4)
    np.testing.assert_allclose(found["conf"][:2], 1 / (1 + np.exp([-3.0, -1.0])), rtol=1e-5)
    np.testing.assert_allclose(found["boxes"][:2], [ANCHORS[100], [0, 0, 48, 48]], atol=1e-4)
    np.testing.assert_array_equal(found["boxes"][2:], 0)
    np.testing.assert_array_equal(found["conf"][2:], 0)


@relaxed
@given(st.integers(0, 10**6))
def test_proposals_are_apart_inside_and_sorted(seed):
    rng = np.random.default_rng(seed)
    logits, codes = rng.normal(0, 2, 256), rng.normal(0, 0.5, (256, 4))
    codes[rng.random(256) < 0.05] = np.nan
    found = jax.tree.map(np.asarray, proposals(logits.astype(np.float32), codes.astype(np.float32), size=30))
    boxes, conf, valid = found["boxes"], found["conf"], found["valid"]
    assert (conf[valid] > 0.5).all() and (np.diff(conf) <= 0).all() and np.isfinite(boxes).all()
    assert boxes.min() >= 0 and boxes.max() <= 512
    kept = boxes[valid]
    assert (kept[:, 2:] - kept[:, :2] >= 4).all()
    overlap = box_lib.iou(kept, kept)
    np.fill_diagonal(overlap, 0)
    assert (overlap <= 0.5).all()


def test_no_proposals_and_images_by_vmap():
    quiet = proposals(np.full(256, -3, np.float32), np.zeros((256, 4), np.float32))
    assert quiet["boxes"].shape == (100, 4) and not quiet["valid"].any() and not quiet["boxes"].any()
    broken = proposals(np.full(256, np.nan, np.float32), np.zeros((256, 4), np.float32))
    assert not broken["valid"].any()
    rng = np.random.default_rng(0)
    logits, codes = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 256), (3, 256, 4)))
    sizes = jnp.array([[512, 512], [100, 512], [512, 200]])

    @jax.jit
    @jax.vmap
    def together(logits, codes, size):
        return rpn.propose(logits, codes, ANCHORS, image_size=size)

    found = together(logits, codes, sizes)
    one = proposals(logits[0], codes[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, atol=1e-3), found, one)
    assert found["boxes"][1, :, 3].max() <= 100 and found["boxes"][2, :, 2].max() <= 200
