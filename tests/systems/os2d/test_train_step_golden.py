"""Two whole training steps of a ResNet-50 against those of the published code.

Recorded per step: losses, gradient norms per group and per parameter, some gradients in full, parameters and
statistics after the update (golden/os2d/README.md, case 6, which also gives the tolerances).
"""

import os
import re

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import traverse_util

from sm_jax import boxes as box_lib
from sm_jax.data.transforms import normalize
from sm_jax.systems import os2d
from sm_jax.systems.os2d import objective
from sm_jax.training import optim
from tests import goldens, weight_rule

BACKBONE, TRANSFORM = "net_feature_maps.", "os2d_head_creator.aligner.parameter_regressor."
OPTIM = ml_collections.ConfigDict({"name": "sgd", "lr": 1e-4, "momentum": 0.9, "weight_decay": 1e-4})
CLIP_NORM = 100.0
SPARE_BOXES = 2
NORM_TOLERANCE, TENSOR_TOLERANCE = 1e-3, 5e-3


def params():
    """All files of `SM_JAX_GOLDEN`; without it one per objective: each compiles a ResNet-50's gradient."""
    found, quick = [], {}
    files = goldens.files("os2d", "train_step_*.npz")
    for path in files:
        wanted = "v2" if "cl" in path.stem.split("_") else "v1"
        kind = "cl" if "cl" in path.stem.split("_") else "rll"
        if kind not in quick or (wanted in path.stem and wanted not in quick[kind].stem):
            quick[kind] = path
    for path in files:
        chosen = path in quick.values() or os.environ.get("SM_JAX_GOLDEN")
        marks = () if chosen else (pytest.mark.slow,)
        found.append(pytest.param(path, id=path.stem, marks=marks))
    reason = "no golden file os2d/train_step_*.npz"
    return found or [pytest.param(None, id="absent", marks=pytest.mark.skip(reason=reason))]


def numbered(data, pattern):
    """The arrays whose key matches `pattern`, in the order of its one number."""
    found = {int(hit[1]): data[key] for key in data if (hit := re.fullmatch(pattern, key))}
    return [found[number] for number in sorted(found)]


def pad(pictures):
    """Normalised pictures of different sizes as one zero-padded array, and their sizes."""
    sizes = np.array([picture.shape[:2] for picture in pictures], np.int32)
    padded = np.zeros((len(pictures), *sizes.max(axis=0), 3), np.float32)
    for row, picture in zip(padded, pictures, strict=True):
        row[: picture.shape[0], : picture.shape[1]] = normalize(picture)
    return padded, sizes


def make_batch(data):
    """The recorded batch, with padded boxes and class pictures padded to one size."""
    image, size = pad(numbered(data, r"image(\d+)_uint8_hwc_rgb"))
    query, query_size = pad(numbered(data, r"class(\d+)_uint8_hwc_rgb"))
    classes = len(query)
    boxes = numbered(data, r"gt(\d+)_boxes")
    room = max(map(len, boxes)) + SPARE_BOXES

    def fill(arrays, value):
        shapes = [(0, room - len(array)) for array in arrays]
        return np.stack(
            [
                np.pad(array, (shape, *[(0, 0)] * (array.ndim - 1)), constant_values=value)
                for array, shape in zip(arrays, shapes, strict=True)
            ]
        )

    return {
        "image": image,
        "size": size,
        "boxes": fill(boxes, 0),
        "labels": fill([labels.astype(np.int32) for labels in numbered(data, r"gt(\d+)_labels")], 0),
        "difficult": fill(numbered(data, r"gt(\d+)_difficult"), False),
        "boxes_valid": fill([np.ones(len(b), bool) for b in boxes], False),
        "query": query,
        "query_size": query_size,
        "query_valid": np.ones(classes, bool),
        "class_ids": np.arange(classes, dtype=np.int32),
        "valid": np.ones(len(image), bool),
    }


def make_config(path, data):
    simplified = data[f"step1.grad.{TRANSFORM}linear.bias"].size == 4
    contrastive = "cl" in path.stem.split("_")
    negative_margin, positive_margin = (float(margin) for margin in data["margins_neg_pos"])
    return ml_collections.ConfigDict(
        {
            "model": {
                "depth": 50,
                "simplified": simplified,
                "inverse": not simplified,
                "freeze_bn_transform": not simplified,
            },
            "objective": {
                "class_objective": "contrastive" if contrastive else "RLL",
                "negative_margin": negative_margin,
                "positive_margin": positive_margin,
                "loc_weight": float(data["loc_weight"]),
            },
        }
    )


def make_variables(data):
    seed, outputs = int(data["seed"]), data[f"step1.grad.{TRANSFORM}linear.bias"].size
    transform = weight_rule.transform_arrays(outputs, seed, linear_scale=float(data["linear_scale"]))
    return weight_rule.merge(
        weight_rule.backbone_variables(50, "frozen_bn", seed, sparse_last=True),
        weight_rule.transform_variables(transform),
    )


def lookup(variables, name):
    """Our leaf for a name of the recorded state dict, in torch's layout."""
    if name.startswith(BACKBONE):
        short = name.removeprefix(BACKBONE)
        return weight_rule.to_torch(
            short, np.asarray(weight_rule.lookup(variables, weight_rule.backbone_path(short)))
        )
    short = name.removeprefix(TRANSFORM)
    return weight_rule.to_torch(
        short, np.asarray(weight_rule.lookup(variables, weight_rule.transform_path(short)))
    )


def make_step(system, optimizer):
    """One step as the trainer does it, which also gives the gradients and the head's output."""

    @jax.jit
    def step(variables, momentum, batch):
        def loss(params):
            value, (metrics, updates) = system.loss(variables | {"params": params}, batch, None)
            return value, (metrics, updates)

        grads, (metrics, updates) = jax.grad(loss, has_aux=True)(variables["params"])
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(grad)) for grad in jax.tree.leaves(grads)))
        clipped = optim.clip(grads, norm, CLIP_NORM)
        direction, momentum = optimizer.update(clipped, momentum, variables["params"])
        new = jax.tree.map(lambda p, d: p - OPTIM.lr * d, variables["params"], direction)
        statistics = variables["batch_stats"] | updates.get("batch_stats", {})
        return {"params": new, "batch_stats": statistics}, momentum, grads, norm, metrics, updates

    return step


def norm64(arrays):
    return float(np.sqrt(sum(np.sum(np.square(np.asarray(array, np.float64))) for array in arrays)))


def group_of(path):
    """The group of a parameter path, named as in the recorded keys."""
    torch_layers = {ours: theirs for theirs, ours in weight_rule.TRANSFORM_LAYERS.items()}
    part, layer = path[0], path[1]
    return f"backbone.{layer.split('_')[0]}" if part == "backbone" else f"transform.{torch_layers[layer]}"


def silent(name, simplified):
    """Gradients that are zero in exact arithmetic: biases before a normalisation by batch statistics."""
    return simplified and name in (f"{TRANSFORM}conv.0.bias", f"{TRANSFORM}conv.3.bias")


@pytest.mark.parametrize("path", params())
def test_golden_training_steps(path, monkeypatch):
    original = objective.evaluate

    def with_output(config, output, batch, features_size):
        return original(config, output, batch, features_size) | {"output": output}

    monkeypatch.setattr(objective, "evaluate", with_output)
    data = goldens.load(path)
    config, batch, variables = make_config(path, data), make_batch(data), make_variables(data)
    optimizer = optim.make_optimizer(OPTIM)
    step = make_step(os2d.make(config), optimizer)
    initial, momentum = variables, optimizer.init(variables["params"])
    for number in range(1, 1 + max(int(key[4]) for key in data if re.match(r"step\d\.loss$", key))):
        prefix = f"step{number}."
        recorded = {key[len(prefix) :]: data[key] for key in data if key.startswith(prefix)}
        variables, momentum, grads, norm, metrics, updates = step(variables, momentum, batch)
        for name in ("loss", "loc_loss", "cls_loss", "cls_loss_pos", "cls_loss_neg"):
            np.testing.assert_allclose(
                metrics[name], recorded[name], rtol=1e-5, atol=1e-7, err_msg=prefix + name
            )
        np.testing.assert_allclose(norm, recorded["grad_norm_before_clip"], rtol=NORM_TOLERANCE)
        assert set(updates) == ({"batch_stats"} if config.model.simplified else set())
        check_gradients(grads, recorded, config.model.simplified)
        for key, expected in recorded.items():
            name = key.removeprefix("after.")
            if name != key and not silent(name, config.model.simplified):
                # The change since the start: the parameters themselves hardly move in two steps.
                start = lookup(initial, name)
                rounding = 2.0**-22 * max(1.0, np.abs(expected).max())
                check_tensor(lookup(variables, name) - start, expected - start, name, rounding=rounding)
        if number == 1:
            check_output(metrics["output"], batch, data, recorded)


def check_gradients(grads, recorded, simplified):
    """Norms of groups and single parameters, and the gradients recorded in full."""
    groups = {}
    for path, leaf in traverse_util.flatten_dict(grads).items():
        groups.setdefault(group_of(path), []).append(leaf)
    assert set(groups) == {
        k.removeprefix("gradnorm_group.") for k in recorded if k.startswith("gradnorm_group.")
    }
    for key, expected in recorded.items():
        kind, _, name = key.partition(".")
        if kind == "gradnorm_group":
            np.testing.assert_allclose(norm64(groups[name]), expected, rtol=NORM_TOLERANCE, err_msg=key)
        elif kind == "gradnorm" and not silent(name, simplified):
            actual = norm64([lookup({"params": grads}, name)])
            np.testing.assert_allclose(actual, expected, rtol=NORM_TOLERANCE, err_msg=key)
        elif kind == "grad" and not silent(name, simplified):
            check_tensor(lookup({"params": grads}, name), expected, name)


def check_tensor(actual, expected, name, *, rounding=0.0):
    limit = TENSOR_TOLERANCE * np.abs(expected).max() + rounding
    np.testing.assert_allclose(actual, expected, rtol=0, atol=limit, err_msg=name)


def check_output(output, batch, data, recorded):
    """Scores, codes, targets and overlaps of the first step."""
    images, classes, *shape = output.scores.shape
    scores = np.asarray(output.scores).reshape(images, classes, -1)
    codes = np.asarray(output.offsets).reshape(images, classes, -1, 4)
    np.testing.assert_allclose(scores, recorded["scores"], atol=2e-6)
    np.testing.assert_allclose(np.moveaxis(codes, 3, 2), recorded["loc"], atol=2e-5)

    config, anchors = objective.ObjectiveConfig(), box_lib.anchor_grid(shape)
    targets = objective.assign_targets(config, batch, anchors, num_classes=classes)
    np.testing.assert_array_equal(targets.labels, data["cls_targets"])
    np.testing.assert_allclose(np.moveaxis(targets.codes, 3, 2), data["loc_targets"], atol=1e-4)
    remapped = objective.remap_labels(config, batch, codes, anchors)
    np.testing.assert_array_equal(remapped, recorded["cls_targets_remapped"])

    predicted = box_lib.decode(codes, np.broadcast_to(anchors, (*codes.shape[:2], *anchors.shape)))
    for image in range(images):
        for number in range(classes):
            members = batch["boxes_valid"][image] & (batch["labels"][image] == number)
            if not members.any():
                continue
            real = batch["boxes"][image][members]
            for name, boxes in (("iou_anchor", anchors), ("iou_predicted", predicted[image, number])):
                best = np.max(box_lib.iou(real, boxes), axis=0)
                np.testing.assert_allclose(best, recorded[name][image, number], atol=1e-5, err_msg=name)
