"""The objective: vectors of the spec through the real modules, masking, options, gradients, sharding."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from sm_jax import boxes as box_lib
from sm_jax.errors import ConfigError
from sm_jax.rpn import WEIGHTS
from sm_jax.systems import crossmodal
from sm_jax.systems.crossmodal import model, objective
from tests import gradients
from tests.systems.crossmodal import tiny

KEY = jax.random.key(7)
USUAL = {"dropout": 0.1}


@functools.cache
def compiled(model_options, options):
    """Values with gradients of the loss, and the variables; one compilation per shape."""
    config = tiny.config(**dict(model_options))
    conf = objective.ObjectiveConfig(**dict(options))
    variables = jax.device_put(tiny.variables(config))

    def loss(params, batch, key):
        return objective.loss(config, conf, variables | {"params": params}, batch, key)

    return jax.jit(jax.value_and_grad(loss, has_aux=True)), variables["params"]


def run(batch, model_options=USUAL, key=KEY, **options):
    """Loss, metrics, updates and gradients."""
    items = tuple(sorted(model_options.items())), tuple(sorted(options.items()))
    function, params = compiled(*items)
    (loss, (metrics, updates)), grads = function(params, batch, key)
    return loss, metrics, updates, grads


def assert_close(actual, expected, rtol=2e-5, atol=2e-6):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol), actual, expected)


def norms(grads):
    return {name: float(max(np.abs(leaf).max() for leaf in jax.tree.leaves(t))) for name, t in grads.items()}


# vectors ------------------------------------------------------------------------------------------


assign = jax.jit(objective.assign, static_argnums=0)


def one_box(boxes):
    valid = np.ones((1, len(boxes)), bool)
    return {"boxes": np.float32([boxes]), "boxes_valid": valid, "valid": np.ones(1, bool)}


def test_vector_2_a_forced_positive():
    anchors = model.anchors(model.ModelConfig(), (16, 16))
    box = [150, 170, 214, 222]
    targets = assign(objective.ObjectiveConfig(), one_box([box]), anchors, KEY)
    assert targets.valid[0].sum() == 2 and targets.anchors[0, 0] == 6 * 16 + 5
    np.testing.assert_allclose(targets.codes[0, 0], [0.09375, -0.1875, 0, -0.207639], atol=1e-6)
    found = objective.positive_boxes(
        objective.ObjectiveConfig(),
        targets.codes[:, :1],
        anchors[targets.anchors[:, :1]],
        jnp.zeros((1, 1, 4)),
        image_size=(512, 512),
        mix=jnp.zeros((1, 1), bool),
    )
    np.testing.assert_allclose(found[0, 0], box, atol=1e-3)
    for force, count in (("per_image", 2), ("none", 0)):
        conf = objective.ObjectiveConfig(force=force)
        assert assign(conf, one_box([box]), anchors, KEY).valid.sum() == count


def test_vector_3_decoding_of_the_positives():
    conf = objective.ObjectiveConfig()
    codes = jnp.array([[[0.25, -0.5, np.log(1.5), np.log(0.5)]]])
    anchor = jnp.array([[[112.0, 144.0, 176.0, 208.0]]])
    options = {"gt": jnp.ones((1, 1, 4)), "mix": jnp.zeros((1, 1), bool)}
    boxes = objective.positive_boxes(conf, codes, anchor, image_size=(512, 512), **options)
    np.testing.assert_allclose(boxes[0, 0], [112, 128, 208, 160], atol=1e-4)
    boxes = objective.positive_boxes(conf, codes, anchor, image_size=(150, 200), **options)
    np.testing.assert_allclose(boxes[0, 0], [112, 128, 200, 150], atol=1e-4)


def test_vector_7_alignment_loss_of_the_matched_boxes(monkeypatch):
    """Each proposal is known by its box: the label must be the flag of that box, wherever it is sampled."""
    batch = tiny.make_batch(images=1, boxes=4, cells=(3, 9))
    starts = np.float32([0, 96, 160, 224])
    zeros = np.zeros(4, np.float32)
    batch["boxes"][0] = np.stack([starts, zeros, starts + 64, zeros + 64], axis=-1)
    batch["aligned"][0] = [True, False, True, True]
    batch["boxes_valid"][0, 3] = False  # its flag must not count
    logits = np.log(np.float32([0.9, 0.2, 0.6]) / (1 - np.float32([0.9, 0.2, 0.6])))

    def by_box(config, variables, proposals, text):
        same = jnp.asarray(starts[:3])[None] == proposals[:, :1]
        return jnp.sum(jnp.where(same, logits[None], 0.0), axis=1)[None]

    monkeypatch.setattr(model, "encode_proposals", lambda config, variables, features, boxes: boxes)
    monkeypatch.setattr(model, "align_logits", by_box)
    config, conf = tiny.config(), objective.ObjectiveConfig(align_boxes="gt")
    loss, (metrics, _) = jax.jit(functools.partial(objective.loss, config, conf))(
        tiny.variables(config), batch, KEY
    )
    assert metrics["positives"] == 3
    np.testing.assert_allclose(metrics["align_loss"], 0.279777, atol=1e-6)
    np.testing.assert_allclose(metrics["align_accuracy"], 1)
    np.testing.assert_allclose(loss, metrics["rpn_loss"] + 0.279777, rtol=1e-6)


# masks and options --------------------------------------------------------------------------------


def padded(batch):
    """The same batch with one more image and two more boxes, all of them traps."""
    out = {}
    for key, array in batch.items():
        more = [(0, 1)] + [(0, 0)] * (array.ndim - 1)
        if key in ("boxes", "boxes_valid", "aligned"):
            more[1] = (0, 2)
        out[key] = np.pad(array, more)
    boxes = batch["boxes"].shape[1]
    out["boxes"][:, boxes:] = out["boxes"][-1] = [0, 0, 64, 64]  # would match an anchor, were they real
    out["boxes_valid"][-1] = True
    return out


# Nothing random but the sample, no decoded boxes, which pass no gradient on purpose.
PLAIN = {"freeze_bn": True}  # batch statistics count padding images
PLAIN_OBJECTIVE = {"align_boxes": "gt", "loc_weight": 0.5, "unk_rate": 0.0}


def test_padding_changes_nothing():
    expected = run(tiny.make_batch(), PLAIN, **PLAIN_OBJECTIVE)
    actual = run(padded(tiny.make_batch()), PLAIN, **PLAIN_OBJECTIVE)
    assert expected[1]["positives"] >= 2 and expected[2] == {}
    assert_close(actual[:3], expected[:3])
    gradients.assert_near(actual[3], expected[3])


def test_nothing_real_is_zero_with_finite_gradients():
    batch = tiny.make_batch()
    batch["valid"][:] = False
    loss, metrics, _, grads = run(batch)
    assert loss == 0 and metrics["positives"] == 0
    assert np.isnan(metrics["align_accuracy"])  # no value, which the trainer leaves out of its means
    assert all(np.isfinite(value) for name, value in metrics.items() if name != "align_accuracy")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_nan_in_a_real_image_shows():
    batch = tiny.make_batch()
    batch["trunk"][0] = np.nan
    assert np.isnan(run(batch)[0])


PARTS = {"backbone", "rpn", "proposal", "text", "align"}


@pytest.mark.parametrize(
    ("options", "weight"),
    [
        (USUAL, 1.0),
        ({"dtype": "bfloat16", "text_layers": 2, "text_width": 12, "text_heads": 3, "freeze_bn": True}, 1.0),
        # Without a loss of their own the boxes do not move: no gradient passes through decoded ones.
        (
            {
                "roi": "max",
                "align": "cosine",
                "text_encoder": "features",
                "text_features": 11,
                "anchor_sizes": (48.0, 80.0),
                "anchor_aspects": (0.5, 1.0, 2.0),
            },
            0.0,
        ),
    ],
    ids=["default", "deep-half", "other"],
)
def test_every_part_of_every_variant_learns(options, weight):
    batch = tiny.make_batch()
    if "text_features" in options:
        batch["text_features"] = np.random.default_rng(1).random((2, 11), np.float32)
    loss, metrics, updates, grads = run(batch, options, **({} if weight == 1 else {"rpn_weight": weight}))
    assert np.isfinite(loss) and all(np.isfinite(value) for value in metrics.values())
    sizes = norms(grads)
    assert set(sizes) == PARTS and all(np.isfinite(size) for size in sizes.values())
    assert {name for name, size in sizes.items() if size > 0} == (PARTS if weight else PARTS - {"rpn"})
    frozen = {name: tree for name, tree in grads["backbone"].items() if name != "features_18"}
    assert not any(norms(frozen).values())
    if not options.get("freeze_bn"):
        assert list(updates["batch_stats"]["backbone"]) == ["features_18"]


def test_without_a_trained_unit_there_are_no_statistics_to_update():
    config, conf = tiny.config(trainable="heads"), objective.ObjectiveConfig()
    batch = tiny.make_batch(channels=1280)
    loss = functools.partial(objective.loss, config, conf)
    assert jax.eval_shape(loss, tiny.variables(config, backbone=False), batch, KEY)[1][1] == {}


def test_weights_of_the_parts():
    metrics = run(tiny.make_batch())[1]
    config = tiny.config(**USUAL)
    conf = objective.ObjectiveConfig(rpn_weight=2.0, loc_weight=3.0, align_weight=5.0)
    loss = jax.jit(functools.partial(objective.loss, config, conf))
    want = 2 * (metrics["cls_loss"] + 3 * metrics["box_loss"]) + 5 * metrics["align_loss"]
    np.testing.assert_allclose(loss(tiny.variables(config), tiny.make_batch(), KEY)[0], want, rtol=1e-5)


def test_boxes_of_the_aligner(monkeypatch):
    """Decoded from the anchors; half of them annotated ones while `step < gt_mix_steps`."""
    seen = []

    def record(config, variables, features, boxes):
        seen.append((boxes, features))
        return jnp.zeros((*boxes.shape[:2], config.embed))

    monkeypatch.setattr(model, "encode_proposals", record)
    config, conf = tiny.config(), objective.ObjectiveConfig(gt_mix_steps=5, max_positives=8)
    variables = jax.device_put(tiny.variables(config))
    anchors = jnp.asarray(model.anchors(config, (6, 6)))

    @jax.jit
    def boxes_and_candidates(batch):
        objective.loss(config, conf, variables, batch, KEY)
        boxes, features = seen[-1]
        targets = objective.assign(conf, batch, anchors, jax.random.split(KEY, 4)[0])
        codes = model.score_anchors(config, variables, features, targets.anchors)["codes"]
        decoded = box_lib.clip(box_lib.decode(codes, anchors[targets.anchors], weights=WEIGHTS), (192, 192))
        return boxes, decoded[:, :8], targets.matched[:, :8], targets.valid[:, :8]

    for step, low, high in ((None, 0, 0), (5, 0, 0), (4, 0.25, 0.75)):
        batch = tiny.make_batch(images=8, boxes=6, cells=(6, 6))
        if step is not None:
            batch["step"] = np.full(8, step, np.int32)
        boxes, decoded, matched, valid = (np.asarray(part) for part in boxes_and_candidates(batch))
        gt = np.take_along_axis(batch["boxes"], np.maximum(matched, 0)[..., None], axis=1)
        is_gt = (boxes == gt).all(axis=-1)[valid]
        is_decoded = np.isclose(boxes, decoded, atol=1e-3).all(axis=-1)[valid]
        assert (is_gt ^ is_decoded).all() and len(is_gt) > 30
        assert low <= is_gt.mean() <= high


def test_words_become_unknown_but_never_padding():
    tokens = np.tile(np.int32([1, 3, 5, 6, 2, 0, 0]), (500, 1))
    np.testing.assert_array_equal(objective.replace_words(tokens, KEY, rate=0.0), tokens)
    every = np.asarray(objective.replace_words(tokens, KEY, rate=1.0))
    assert every[0].tolist() == [1, 2, 2, 2, 2, 0, 0]
    some = np.asarray(objective.replace_words(tokens, KEY, rate=0.1))
    assert 0.07 < (some != tokens)[:, 1:4].mean() < 0.13 and (some == tokens)[:, [0, 4, 5, 6]].all()


def test_the_key_draws_samples_and_dropout():
    batch = tiny.make_batch()
    one, same, other = (run(batch, key=jax.random.key(seed)) for seed in (1, 1, 2))
    assert one[0] == same[0] != other[0]
    assert one[1]["align_loss"] != other[1]["align_loss"] and one[1]["cls_loss"] != other[1]["cls_loss"]
    calm = [run(batch, PLAIN, key=jax.random.key(seed), **PLAIN_OBJECTIVE)[1] for seed in (1, 2)]
    np.testing.assert_allclose(*(each["align_loss"] for each in calm), rtol=1e-5)
    assert calm[0]["cls_loss"] != calm[1]["cls_loss"]


# gradients, devices, sizes ------------------------------------------------------------------------


@pytest.mark.slow
def test_gradients_against_finite_differences():
    """Along the gradient of each part, so far that the loss changes by 0.0002."""
    batch = tiny.make_batch()
    grads = run(batch, PLAIN, **PLAIN_OBJECTIVE)[3]
    function, params = compiled(*(tuple(sorted(options.items())) for options in (PLAIN, PLAIN_OBJECTIVE)))
    for name in PARTS:
        square = sum(float(jnp.vdot(leaf, leaf)) for leaf in jax.tree.leaves(grads[name]))

        def moved(sign, name=name, factor=0.0002 / square):
            part = jax.tree.map(lambda p, g: p + sign * factor * g, params[name], grads[name])
            return float(function(params | {name: part}, batch, KEY)[0][0])

        np.testing.assert_allclose(moved(1) - moved(-1), 4e-4, rtol=0.01, err_msg=name)


def test_two_devices_equal_one():
    batch = tiny.make_batch()
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    sharded = jax.device_put(batch, jax.NamedSharding(mesh, jax.P("data")))
    actual, expected = run(sharded), run(batch)
    assert_close(actual[:3], expected[:3])
    gradients.assert_near(actual[3], expected[3])


def system(model_options=(), **options):
    sections = {"model": tiny.SMALL | dict(model_options), "objective": options}
    return crossmodal.make(ml_collections.ConfigDict(sections))


@pytest.mark.parametrize("trainable", ["all", "last5"])
def test_shapes_of_the_published_batch(trainable):
    made = crossmodal.make(
        ml_collections.ConfigDict(
            {"model": {"vocabulary": tiny.WORDS, "trainable": trainable}, "objective": {}}
        )
    )
    shapes = jax.eval_shape(made.init, jax.random.key(0))
    batch = tiny.make_batch(images=32, boxes=20, cells=(16, 16), channels=96, tokens=16)
    batch["trunk"] = np.zeros((32, 32, 32, 96), np.float16)  # unit 14 halves once more
    if trainable == "all":
        batch["image"] = np.zeros((32, 512, 512, 3), np.float32)
        del batch["trunk"]
    loss, (metrics, updates) = jax.eval_shape(made.loss, shapes, batch, KEY)
    assert loss.shape == () and all(metric.shape == () for metric in metrics.values())
    assert len(updates["batch_stats"]["backbone"]) == (19 if trainable == "all" else 5)
    for name, changed in updates["batch_stats"]["backbone"].items():
        before = shapes["batch_stats"]["backbone"][name]
        assert jax.tree.map(jnp.shape, changed) == jax.tree.map(jnp.shape, before)


def test_frozen_parameters():
    def backbone(trainable):
        return [system({"trainable": trainable}).trainable(f"backbone/features_{i}/x") for i in range(19)]

    assert all(backbone("all")) and not any(backbone("heads"))
    assert backbone("last2") == [False] * 17 + [True] * 2
    assert system({"trainable": "heads"}).trainable("rpn/conv/kernel")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positive_iuo": 0.5}, "did you mean 'positive_iou'"),
        ({"force": "always"}, "objective.force"),
        ({"align_boxes": "both"}, "objective.align_boxes"),
        ({"negative_iou": 0.7}, "negative_iou <= positive_iou"),
        ({"max_positives": 0}, "max_positives"),
        ({"align_weight": -1.0}, "align_weight"),
        ({"loc_weight": float("nan")}, "loc_weight"),
        ({"unk_rate": 2.0}, "unk_rate"),
    ],
)
def test_bad_options_are_one_line(options, message):
    with pytest.raises(ConfigError, match=message) as error:
        system(**options)
    assert "\n" not in str(error.value)


# learning -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_learns_two_scenes_by_heart():
    config, conf = tiny.config(rpn_width=32, proposal_width=32, embed=16), objective.ObjectiveConfig()
    batch = tiny.make_batch(images=2, boxes=4, cells=(8, 8), seed=3)
    batch["aligned"][:] = [[True, False, True, False], [False, True, False, False]]
    variables = jax.device_put(tiny.variables(config, seed=1))

    @jax.jit
    def step(params, momentum, key):
        def total(params):
            return objective.loss(config, conf, variables | {"params": params}, batch, key)

        grads, (metrics, _) = jax.grad(total, has_aux=True)(params)
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, grads)
        return jax.tree.map(lambda p, m: p - 0.01 * m, params, momentum), momentum, metrics

    params, momentum = variables["params"], jax.tree.map(jnp.zeros_like, variables["params"])
    for i in range(300):
        params, momentum, metrics = step(params, momentum, jax.random.key(i))
    assert metrics["rpn_loss"] < 0.15 and metrics["align_loss"] < 0.1 and metrics["align_accuracy"] == 1
