"""Target assignment and remapping against the numbers recorded from the published code."""

import numpy as np
import pytest

from sm_jax import boxes as box_lib
from sm_jax.losses import assignment
from sm_jax.systems.os2d import objective
from tests import goldens

FILES = goldens.params("os2d", "boxcoder*.npz")
CONFIG = objective.ObjectiveConfig()


def batch(data, boxes="asg_gt_boxes"):
    """The recorded image as a batch of one, with two padded boxes that would match if they were looked at."""
    count = len(data["asg_gt_labels"])
    valid = np.arange(count + 2) < count
    padded = np.concatenate([data[boxes], data[boxes][:2]])
    labels = np.concatenate([data["asg_gt_labels"], [0, 1]])
    difficult = np.concatenate([data["asg_gt_difficult"], [False, True]])
    arrays = {"boxes": padded, "labels": labels, "difficult": difficult, "boxes_valid": valid}
    return {name: array[None] for name, array in arrays.items()}


@pytest.mark.parametrize("path", FILES)
def test_golden_assignment(path):
    data = goldens.load(path)
    num_classes = data["asg_cls_targets"].shape[0]
    targets = objective.assign_targets(CONFIG, batch(data), data["asg_anchors"], num_classes=num_classes)
    np.testing.assert_array_equal(targets.labels[0], data["asg_cls_targets"])
    np.testing.assert_allclose(np.moveaxis(targets.codes[0], 2, 1), data["asg_loc_targets"], atol=1e-4)
    for key in data:
        if not key.startswith("asg_index_label"):
            continue
        number = int(key.removeprefix("asg_index_label"))
        members = data[f"asg_gt_ids_label{number}"]
        recorded = data[key]
        expected = np.where(recorded >= 0, members[np.maximum(recorded, 0)], recorded)
        np.testing.assert_array_equal(targets.index[0, number], expected, err_msg=key)
        iou = box_lib.iou(data["asg_gt_boxes"][members], data["asg_anchors"])
        np.testing.assert_allclose(iou, data[f"asg_iou_label{number}"], atol=1e-5)


@pytest.mark.parametrize("path", FILES)
def test_golden_assignment_in_the_original_image(path):
    data = goldens.load(path)
    (height, width), (to_height, to_width) = data["asg_image_hw"], data["asg_orig_hw"]
    ratio = np.asarray([to_width / width, to_height / height] * 2, np.float32)
    targets = objective.assign_targets(
        CONFIG,
        batch(data, "asg_orig_gt_boxes"),
        data["asg_anchors"] * ratio,
        num_classes=data["asg_cls_targets"].shape[0],
    )
    np.testing.assert_array_equal(targets.labels[0], data["asg_orig_cls_targets"])
    np.testing.assert_allclose(np.moveaxis(targets.codes[0], 2, 1), data["asg_orig_loc_targets"], atol=1e-4)


@pytest.mark.parametrize("path", FILES)
def test_golden_remapping(path):
    data = goldens.load(path)
    codes = np.moveaxis(data["remap_loc_scores"], 2, 3)
    inputs = batch(data)
    labels = objective.remap_labels(CONFIG, inputs, codes, data["asg_anchors"])
    np.testing.assert_array_equal(labels, data["remap_cls_targets"])

    predicted = box_lib.decode(codes, np.broadcast_to(data["asg_anchors"], codes.shape))
    for number in range(codes.shape[1]):
        members = data["asg_gt_labels"] == number
        if not members.any():
            continue
        real = data["asg_gt_boxes"][members]
        for boxes, key in (
            (data["asg_anchors"], "remap_iou_anchor"),
            (predicted[0, number], "remap_iou_predicted"),
        ):
            best = np.max(box_lib.iou(real, boxes), axis=0)
            np.testing.assert_allclose(best, data[key][0, number], atol=1e-5, err_msg=key)


@pytest.mark.parametrize("path", FILES)
def test_golden_assignment_of_one_class(path):
    data = goldens.load(path)
    members = data["asg_gt_labels"] == 0
    targets = assignment.assign(
        data["asg_gt_boxes"][members], data["asg_anchors"], difficult=data["asg_gt_difficult"][members]
    )
    np.testing.assert_array_equal(targets.index, data["asg_index_label0"])
    np.testing.assert_array_equal(targets.labels, data["asg_cls_targets"][0])
