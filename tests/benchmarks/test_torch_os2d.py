"""The PyTorch peer of the benchmark computes the right thing: against the recorded numbers of OS2D."""

import numpy as np
import pytest

from tests import goldens, weight_rule

torch = pytest.importorskip("torch")

from benchmarks import torch_os2d as peer  # noqa: E402  needs torch
from benchmarks import torch_tuned as tuned  # noqa: E402

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def close(actual, expected, atol):
    actual = actual.detach().numpy() if hasattr(actual, "detach") else actual
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


def rule_weights(depth, norm, seed, **options):
    shapes = weight_rule.backbone_shapes(depth, norm)
    return {name: weight_rule.value(name, shape, seed, **options) for name, shape in shapes.items()}


@pytest.mark.parametrize("path", goldens.params("os2d", "backbone_resnet50*.npz"))
def test_golden_features_eager_and_tuned(path):
    data = goldens.load(path)
    norm = "group_norm" if "groupnorm" in path.stem else "frozen_bn"
    w = peer.as_tensors(rule_weights(50, norm, int(data["seed"])))
    for name in (name for name in data if name.endswith("_normalized_nchw")):
        expected = data[name.replace("_normalized_nchw", "_features_nchw")]
        image = torch.from_numpy(data[name])
        close(peer.features(w, image), expected, 2e-4)
        if norm == "frozen_bn":
            close(tuned.features(tuned.prepare(w), image), expected, 5e-4)


def cases():
    found = []
    for path in goldens.files("os2d", "head_*_v[12].npz"):
        found.append(pytest.param(path, id=path.stem))
    skip = pytest.mark.skip(reason="no golden file os2d/head_*_v?.npz")
    return found or [pytest.param(None, id="absent", marks=skip)]


def load_head(path):
    version = path.stem[-2:]
    common = goldens.load(goldens.companion(path, f"{path.stem[:-3]}_common.npz"))
    net = goldens.load(goldens.companion(path, f"transformnet_{version}.npz"))
    weights = peer.as_tensors({f"transform.{name}": array for name, array in net.items()})
    return goldens.load(path), common, weights, version == "v2"


@pytest.mark.parametrize("path", cases())
def test_golden_head_eager(path):
    expected, common, weights, inverse = load_head(path)
    count = sum(name.startswith("class_features_") and name[-1].isdigit() for name in common)
    maps = [torch.from_numpy(common[f"class_features_{k}"])[None] for k in range(count)]
    templates = torch.cat([peer.template(one) for one in maps])
    close(templates, common["class_features_norm"], 1e-6)
    image = torch.from_numpy(common["image_features"])
    corr = peer.correlation(peer.normalise(image, 1e-5), templates)
    if "corr" in common:
        close(corr, common["corr"], 1e-5)
    parameters = peer.transform_parameters(weights, corr)
    close(parameters, expected["transform_params"], 1e-5)
    close(peer.transforms(parameters, inverse), expected["theta"], 1e-5)
    out = peer.head(weights, image, templates, inverse=inverse, detached=True)
    assert torch.equal(out["scores"], out["scores_detached"])
    close(out["scores"][:, :, None], expected["scores"], 2e-6)
    close(out["boxes"], expected["boxes_minmax_image"], 1e-3)
    close(out["loc"], expected["loc"], 2e-5)
    close(out["corners"], expected["corners"], 1e-3)
    close(peer.decode(out["loc"]), expected["boxes_decoded"], 1e-3)
    single = peer.head_per_class(weights, image, templates, inverse=inverse)
    for key, value in single.items():
        close(value, out[key].detach(), 1e-3 if key in ("boxes", "corners") else 1e-5)


@pytest.mark.parametrize("path", cases())
def test_golden_head_tuned(path):
    expected, common, weights, inverse = load_head(path)
    templates = torch.from_numpy(common["class_features_norm"])
    backbone = {name: torch.ones(shape) for name, shape in weight_rule.backbone_shapes(50).items()}
    layers = tuned.prepare({**backbone, **weights})
    image = torch.from_numpy(common["image_features"])
    out = tuned.head(layers, image, tuned.bank(templates), inverse=inverse, chunk=2)
    close(out["scores"][:, :, None], expected["scores"], 2e-6)
    close(out["boxes"], expected["boxes_minmax_image"], 1e-3)


@pytest.mark.parametrize("path", cases())
def test_golden_gradients_of_the_head(path):
    _, common, weights, inverse = load_head(path)
    grads = goldens.load(goldens.companion(path, f"{path.stem}_grads.npz"))
    peer.trainable(weights)
    count = sum(name.startswith("class_features_") and name[-1].isdigit() for name in common)
    maps = [torch.from_numpy(common[f"class_features_{k}"])[None].requires_grad_() for k in range(count)]
    image = torch.from_numpy(common["image_features"]).requires_grad_()
    templates = torch.cat([peer.template(one) for one in maps])
    out = peer.head(weights, image, templates, inverse=inverse, detached=True)
    upstream = {name: torch.from_numpy(grads[f"upstream_{name}"]) for name in ("scores", "loc")}
    detached = torch.from_numpy(grads["upstream_scores_transform_detached"])
    loss = (out["scores"] * upstream["scores"].reshape(out["scores"].shape)).sum()
    loss = loss + (out["loc"] * upstream["loc"].reshape(out["loc"].shape)).sum()
    loss = loss + (out["scores_detached"] * detached.reshape(out["scores"].shape)).sum()
    loss.backward()

    def same(actual, expected):
        close(actual.reshape(expected.shape), expected, 1e-4 * np.abs(expected).max())

    same(image.grad, grads["grad_image_features"])
    for k, one in enumerate(maps):
        same(one.grad, grads[f"grad_class_features_{k}"])
    for name, expected in grads.items():
        key = name.replace("grad_", "transform.", 1)
        if name.startswith("grad_") and key in weights:
            same(weights[key].grad, expected)


@pytest.mark.parametrize("path", goldens.params("os2d", "train_step_*_rll.npz"))
def test_golden_training_step(path):
    data = goldens.load(path)
    parameters = data["step1.grad.os2d_head_creator.aligner.parameter_regressor.linear.bias"].shape[0]
    seed, simple = int(data["seed"]), parameters == 4
    arrays = rule_weights(50, "frozen_bn", seed, sparse_last=True)
    net = weight_rule.transform_arrays(parameters, seed, linear_scale=float(data["linear_scale"]))
    w = peer.as_tensors({**arrays, **{f"transform.{name}": array for name, array in net.items()}})

    def picture(name):
        image = (data[name].astype(np.float32) / 255 - MEAN) / STD
        return torch.from_numpy(image.transpose(2, 0, 1)[None].copy())

    def listed(prefix, suffix):
        names = sorted(name for name in data if name.startswith(prefix) and name.endswith(suffix))
        return [name for name in names if "." not in name]

    batch = {
        "images": torch.cat([picture(name) for name in listed("image", "_uint8_hwc_rgb")]),
        "classes": [picture(name) for name in listed("class", "_uint8_hwc_rgb")],
        **{key: [torch.from_numpy(data[name]) for name in listed("gt", f"_{key}")]
           for key in ("boxes", "labels", "difficult")},
        "cls_targets": torch.from_numpy(data["cls_targets"]),
        "loc_targets": torch.from_numpy(data["loc_targets"]),
    }  # fmt: skip
    sgd = peer.optimizer(w)
    options = {"margins": tuple(map(float, data["margins_neg_pos"])), "loc_weight": float(data["loc_weight"])}
    for step in ("step1", "step2"):
        out = peer.train_step(w, sgd, batch, inverse=not simple, train_norm=simple, **options)
        for ours, theirs in (
            ("loss", "loss"),
            ("positive", "cls_loss_pos"),
            ("negative", "cls_loss_neg"),
            ("loc", "loc_loss"),
        ):
            np.testing.assert_allclose(float(out[ours]), data[f"{step}.{theirs}"], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(float(out["grad_norm"]), data[f"{step}.grad_norm_before_clip"], rtol=1e-3)
        if f"{step}.cls_targets_remapped" in data:
            np.testing.assert_array_equal(out["targets"].numpy(), data[f"{step}.cls_targets_remapped"])
    for name, expected in data.items():
        if name.startswith("step2.after."):
            key = name.removeprefix("step2.after.").replace("net_feature_maps.", "")
            key = key.replace("os2d_head_creator.aligner.parameter_regressor.", "transform.")
            close(w[key], expected, 5e-3 * np.abs(expected).max())


@pytest.mark.parametrize("path", goldens.params("os2d", "boxcoder.npz"))
def test_golden_blocked_suppression(path):
    data = goldens.load(path)
    boxes, scores = torch.from_numpy(data["nms_boxes"]), torch.from_numpy(data["nms_scores"])
    for threshold in (30, 50):
        kept = peer.greedy_nms(boxes, scores, threshold / 100)
        np.testing.assert_array_equal(kept.numpy(), data[f"nms_keep_{threshold}"])
        for block in (16, 64):
            key = f"nms_keep_{threshold}_chunk{block}"
            if key in data:
                kept = peer.blocked_nms(boxes, scores, threshold / 100, block)
                np.testing.assert_array_equal(kept.numpy(), data[key])


def test_tuned_in_half_precision_stays_close():
    w = peer.as_tensors(
        {
            **rule_weights(50, "frozen_bn", 3),
            **{
                f"transform.{name}": array
                for name, array in weight_rule.transform_arrays(6, 3, linear_scale=0.008).items()
            },
        }
    )
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(1, 64, 9, 11, generator=generator)
    templates = peer.normalise(torch.rand(2, 64, 15, 15, generator=generator), 1e-5)
    exact = tuned.head(tuned.prepare(w), maps, tuned.bank(templates), inverse=True)
    layers = tuned.prepare(w, dtype=torch.bfloat16)
    half = tuned.head(layers, maps, tuned.bank(templates, torch.bfloat16), inverse=True)
    assert half["scores"].dtype == torch.float32
    close(half["scores"], exact["scores"].detach(), 2e-2)
