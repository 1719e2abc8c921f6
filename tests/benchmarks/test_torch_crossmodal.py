"""The PyTorch peer computes what the cross-modal system computes: the same weights, the same numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks import crossmodal_subjects as subjects  # noqa: E402  need torch
from benchmarks import torch_crossmodal as peer  # noqa: E402
from sm_jax import rpn  # noqa: E402
from sm_jax.systems.crossmodal import model, objective, predict  # noqa: E402

SIDE = (192, 224)
OPTIONS = {
    "vocabulary": ("blue", "circle", "red", "square"),
    "rpn_width": 12,
    "proposal_width": 8,
    "dropout": 0.0,
    "image_size": SIDE,
}
OBJECTIVE = objective.ObjectiveConfig(unk_rate=0.0, loc_weight=3.0)


def config(trainable):
    return model.ModelConfig.create({**OPTIONS, "trainable": trainable})


@functools.cache
def variables():
    """ImageNet features; every other tensor at random, also those that training starts from 0 or 1."""
    rng = np.random.default_rng(1)
    made = subjects.make_variables(config("all"), "mobilenetv2-tv")
    made["params"] |= {
        part: jax.tree.map(lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape).astype("f"), tree)
        for part, tree in made["params"].items()
        if part != "backbone"
    }
    return made


def batch(seed=0):
    rng = np.random.default_rng(seed)
    centre = rng.uniform(0, 1, (3, 4, 2)) * SIDE[::-1]
    half = rng.uniform(24, 48, (3, 4, 2))
    tokens = np.array([[1, 5, 4, 0, 0], [1, 3, 6, 2, 4], [1, 2, 0, 0, 0]], np.int32)
    return {
        "image": rng.normal(0, 1, (3, *SIDE, 3)).astype(np.float32),
        "boxes": np.concatenate([centre - half, centre + half], -1).astype(np.float32),
        "boxes_valid": np.arange(4)[None] < np.array([4, 2, 0])[:, None],
        "aligned": rng.random((3, 4)) < 0.5,
        "tokens": tokens,
        "valid": np.ones(3, bool),
    }


def tensor(array):
    array = np.asarray(array)
    return torch.from_numpy(np.array(np.moveaxis(array, -1, 1) if array.ndim == 4 else array, order="C"))


def theirs(arrays):
    named = {"valid": arrays["boxes_valid"], "aligned": arrays["aligned"], "boxes": arrays["boxes"]}
    inputs = np.asarray(arrays.get("trunk", arrays.get("image")), np.float32)
    named |= {"tokens": arrays["tokens"], "images": inputs}
    return {name: tensor(array) for name, array in named.items()}


def close(actual, expected, tolerance=1e-5, floor=0.0):
    actual = actual.detach().numpy()
    expected = np.asarray(expected)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max() + floor)


def near(actual, expected, tolerance, floor):
    """As whole tensors: root mean square of the difference against that of what is expected."""
    difference = np.sqrt(np.mean((actual.detach().numpy() - expected) ** 2))
    assert difference <= tolerance * np.sqrt(np.mean(expected**2)) + floor


def test_every_part():
    net, settings, inputs = peer.load(variables()).eval(), config("all"), batch()
    features = jax.jit(functools.partial(model.features, settings))(variables(), inputs)
    maps = net.backbone(tensor(inputs["image"]))
    close(maps, np.moveaxis(np.asarray(features), -1, 1))
    close(peer.tuned(net).backbone(tensor(inputs["image"])), np.moveaxis(np.asarray(features), -1, 1))

    maps = tensor(features)
    scored = model.score_anchors(settings, variables(), features)
    for actual, name in zip(net.rpn(maps), ("logits", "codes"), strict=True):
        close(actual, scored[name])
    some = np.random.default_rng(0).integers(0, 42, (3, 7))
    scored = model.score_anchors(settings, variables(), features, jnp.asarray(some, jnp.int32))
    for actual, name in zip(net.rpn.at(maps, torch.from_numpy(some)), ("logits", "codes"), strict=True):
        close(actual, scored[name])

    vectors = model.encode_proposals(settings, variables(), features, inputs["boxes"])
    close(net.proposal(maps, tensor(inputs["boxes"])), vectors)
    texts = model.encode_text(settings, variables(), inputs["tokens"])
    close(net.text(tensor(inputs["tokens"])), texts)
    aligned = model.align_logits(settings, variables(), vectors[0], texts)
    close(net.align(tensor(vectors[0]), tensor(texts)), aligned)
    assert np.asarray(aligned).std() > 0.05


def test_detections():
    settings, inputs = config("all"), batch()
    net = peer.load(variables()).eval()
    with torch.no_grad():
        found = peer.detect(net, tensor(inputs["image"]), tensor(inputs["tokens"]))
    encoded = predict.encode(settings, variables(), {"tokens": inputs["tokens"]})
    ours = jax.jit(functools.partial(predict.predict, settings))(variables(), inputs, encoded)
    difference = subjects.detection_difference(ours, found)
    assert difference["proposals"]["ours"] == difference["proposals"]["eager"] > 3
    assert difference["eager"]["box_px"] < 1e-2 and difference["eager"]["align"] < 1e-4


@pytest.mark.parametrize("force", ["per_gt", "per_image", "none"])
def test_samples(force):
    """Which anchors are positive, and of which box; how many negatives, and that they are negatives."""
    inputs = batch()
    anchors = model.anchors(config("all"), (6, 7))
    close(peer.grid_anchors(6, 7), anchors, 0)
    real = inputs["boxes_valid"]
    found = peer.targets(
        tensor(inputs["boxes"]), tensor(real), torch.from_numpy(anchors), force=force, max_positives=16
    )
    assign = functools.partial(rpn.rpn_targets, force=force, max_positives=16)
    keys = jax.random.split(jax.random.key(0), 3)
    ours = jax.vmap(lambda boxes, key, where: assign(boxes, anchors, key, where=where))(
        inputs["boxes"], keys, real
    )
    assert not found["used"][2].any()
    for i in range(3):
        sets = []
        for sample, used in ((ours, ours.valid), (found, found["used"])):
            get = sample.get if isinstance(sample, dict) else functools.partial(getattr, sample)
            chosen, matched = np.asarray(get("anchors"))[i], np.asarray(get("matched"))[i]
            used = np.asarray(used)[i]
            positive = used & (np.asarray(get("labels"))[i] == 1)
            sets.append(dict(zip(chosen[positive], matched[positive], strict=True)))
            negative = chosen[used & ~positive]
            assert len(set(negative)) == len(negative) == positive.sum()
            overlap = peer.iou(torch.from_numpy(anchors[negative]), tensor(inputs["boxes"][i][real[i]]))
            assert (overlap < 0.1).all()
        assert sets[0] == sets[1]
    assert (force == "none") or np.asarray(ours.valid).any()


def sampled(arrays, key):
    found = objective.assign(OBJECTIVE, arrays, model.anchors(config("all"), (6, 7)), key)
    return {
        "anchors": tensor(np.asarray(found.anchors, np.int64)),
        "labels": tensor(np.asarray(found.labels, np.float32)),
        "used": tensor(found.valid),
        "matched": tensor(np.maximum(np.asarray(found.matched, np.int64), 0)),
    }


@pytest.mark.parametrize(
    "trainable, tolerance, floor",
    [("last2", 2e-3, 1e-5), pytest.param("all", 5e-2, 1e-3, marks=pytest.mark.slow)],
)
def test_loss_gradients_and_statistics(trainable, tolerance, floor):
    """The gradient of a shift before a norm is 0, rounding apart (`floor`).

    Single cells at a bend of ReLU6 fall to either side of it in float32, on every processor others, and
    through all units that moves single elements by far more than the rest: gradients are compared as whole
    tensors (`tolerance`).
    """
    settings, arrays = config(trainable), batch()
    cut = model.cut(settings)
    if cut:
        image = arrays.pop("image")
        trunk = jax.jit(functools.partial(model.trunk, settings))(variables(), image)
        arrays["trunk"] = np.asarray(trunk, np.float16)
    key = jax.random.key(5)
    net = peer.load(variables(), frozen=cut, dropout=0.0).train()
    out = peer.loss(
        net, theirs(arrays), start=cut, loc_weight=3.0, sample=sampled(arrays, jax.random.split(key, 4)[0])
    )
    out["loss"].backward()

    def total(params):
        return objective.loss(settings, OBJECTIVE, {**variables(), "params": params}, arrays, key)

    step = jax.jit(jax.value_and_grad(total, has_aux=True))
    (value, (metrics, updates)), gradients = step(variables()["params"])
    for ours, name in (
        (value, "loss"),
        (metrics["cls_loss"], "objectness"),
        (metrics["box_loss"], "box"),
        (metrics["align_loss"], "alignment"),
        (metrics["align_accuracy"], "align_accuracy"),
    ):
        np.testing.assert_allclose(float(out[name].detach()), float(ours), rtol=1e-4, err_msg=name)
        assert float(ours) > 0
    expected = peer.state({"params": gradients, "batch_stats": variables()["batch_stats"]})
    checked = 0
    for name, weight in net.named_parameters():
        assert weight.requires_grad == (weight.grad is not None), name
        if weight.requires_grad:
            checked += 1
            near(weight.grad, expected[name].numpy(), tolerance, floor)
        else:
            assert not expected[name].any()
    assert checked > 20
    stats = {**variables()["batch_stats"]["backbone"], **updates["batch_stats"]["backbone"]}
    expected = peer.state({"params": variables()["params"], "batch_stats": {"backbone": stats}})
    for name, value in net.state_dict().items():
        if "running" in name:
            close(value, expected[name].numpy(), 1e-4, 1e-6)


def test_weights_that_do_not_fit_are_refused():
    broken = {**variables(), "params": {**variables()["params"]}}
    broken["params"]["text"] = {
        name: part for name, part in broken["params"]["text"].items() if name != "layer_0"
    }
    with pytest.raises(ValueError, match=r"missing .*text\.encoder"):
        peer.load(broken)
