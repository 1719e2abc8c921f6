"""Pyramid decoding against recorded results and hand-made levels."""

import re

import numpy as np
import pytest

from sm_jax import boxes as box_ops
from sm_jax.errors import ConfigError
from sm_jax.systems.os2d.decode import decode_pyramid, pyramid_sizes
from tests import goldens

STRIDE = 16


def _golden_levels(g):
    levels = []
    for i, (height, width) in enumerate(g["pyr_image_hw"].tolist()):
        loc, corners = g[f"pyr_loc_{i}"], g[f"pyr_corners_{i}"]
        anchors = box_ops.anchor_grid((-(-height // STRIDE), -(-width // STRIDE)))
        classes, _, n = loc.shape
        levels.append(
            {
                "scores": g[f"pyr_score_{i}"],
                "boxes": box_ops.decode(loc.transpose(0, 2, 1), anchors[None]),
                "corners": corners.transpose(0, 2, 1).reshape(classes, n, 4, 2),
                "anchors": anchors,
                "size": (height, width),
            }
        )
    return levels


@pytest.mark.parametrize("path", goldens.params("os2d", "boxcoder*.npz"))
def test_golden_pyramid(path):
    g = goldens.load(path)
    if "pyr_image_hw" not in g:
        pytest.skip("no pyramid in this file")
    levels, size = _golden_levels(g), tuple(g["pyr_orig_hw"].tolist())
    assert pyramid_sizes(size, g["pyr_scales"].tolist()) == [tuple(s) for s in g["pyr_image_hw"].tolist()]
    cases = sorted(
        {
            key.removeprefix("pyr_out_").removesuffix("boxes")
            for key in g
            if re.search(r"^pyr_out_.*boxes$", key)
        }
    )
    cases = [case for case in cases if not case.endswith("default_")]
    assert cases
    for case in cases:
        options = {}
        if threshold := re.fullmatch(r"thr(\d)(\d*)_", case):
            options["score_threshold"] = float(f"{threshold[1]}.{threshold[2] or 0}")
        options["across_classes"] = case == "joint_"
        got = decode_pyramid(levels, image_size=size, class_ids=g["pyr_class_ids"], **options)
        want = {
            key: g[f"pyr_out_{case}{key}"]
            for key in ("boxes", "scores", "labels", "corners", "default_boxes")
        }
        assert len(got["scores"]) == len(want["scores"])
        assert got["exact"]
        # classes come in any order; inside a class by descending score
        for label in np.unique(want["labels"]):
            ours, theirs = got["labels"] == label, want["labels"] == label
            assert ours.sum() == theirs.sum()
            np.testing.assert_allclose(got["scores"][ours], want["scores"][theirs], atol=1e-6)
            np.testing.assert_allclose(got["boxes"][ours], want["boxes"][theirs], atol=2e-2)
            np.testing.assert_allclose(
                got["corners"][ours].reshape(-1, 8), want["corners"][theirs], atol=2e-2
            )
            np.testing.assert_allclose(got["anchors"][ours], want["default_boxes"][theirs], atol=2e-2)


def _level(scores, boxes, size=(100, 100)):
    scores, boxes = np.array(scores, np.float32), np.array(boxes, np.float32)
    corners = boxes[..., [0, 1, 2, 1, 0, 3, 2, 3]].reshape(*boxes.shape[:-1], 4, 2)
    return {"scores": scores, "boxes": boxes, "corners": corners, "anchors": boxes[0], "size": size}


def _decode(levels, **options):
    return decode_pyramid(levels, **{"image_size": (200, 100), "class_ids": [4], **options})


def test_boxes_are_clipped_dropped_and_scaled_to_the_image():
    boxes = [[[-10, -10, 20, 20], [-30, 5, -1, 9], [80, 80, 120, 90], [3, 3, 3, 9]]]
    found = _decode([_level([[0.1, 0.9, 0.5, 0.8]], boxes)])
    np.testing.assert_allclose(found["boxes"], [[80, 160, 100, 180], [0, 0, 20, 40]])
    np.testing.assert_allclose(found["anchors"][1], [-10, -20, 20, 40])  # not clipped
    assert found["labels"].tolist() == [4, 4] and found["template"].tolist() == [0, 0]


def test_views_of_a_class_compete_and_other_classes_do_not():
    box = [[[0, 0, 50, 50]], [[0, 0, 50, 51]], [[0, 0, 50, 52]]]
    level = _level([[0.5], [0.7], [0.6]], box)
    found = _decode([level], class_ids=[9, 3, 9])
    assert found["labels"].tolist() == [9, 3] and found["template"].tolist() == [2, 1]
    joint = _decode([level], class_ids=[9, 3, 9], across_classes=True)
    assert joint["labels"].tolist() == [3]


def test_scores_not_finite_or_at_the_threshold_are_dropped():
    boxes = [[[i * 30, 0, i * 30 + 10, 10] for i in range(4)]]
    level = _level([[np.nan, 0.5, -np.inf, 0.75]], boxes, size=(100, 200))
    assert _decode([level], score_threshold=0.5)["scores"].tolist() == [0.75]
    assert _decode([level])["scores"].tolist() == [0.75, 0.5]
    other = _level([[0.5], [0.5]], [[[0, 0, 9, 9]], [[50, 50, 59, 59]]])
    assert _decode([other], class_ids=[1, 1], score_threshold=[0.6, 0.4])["template"].tolist() == [1]


def test_cut_levels_are_exact_only_above_the_cut():
    boxes = [[[i * 30, 0, i * 30 + 10, 10] for i in range(3)]]
    level = _level([[0.9, 0.8, 0.7]], boxes, size=(100, 200)) | {"cut": np.array([0.75], np.float32)}
    assert _decode([level], max_detections=2)["exact"]
    assert not _decode([level], max_detections=3)["exact"]
    assert not _decode([level])["exact"]
    assert not _decode([level], score_threshold=0.72)["exact"]
    assert _decode([level], score_threshold=0.75)["exact"]


def test_nothing_found_and_bad_option():
    empty = _decode([_level([[-np.inf]], [[[0, 0, 1, 1]]])])
    assert (
        empty["boxes"].shape == (0, 4)
        and empty["corners"].shape == (0, 4, 2)
        and empty["labels"].shape == (0,)
    )
    assert _decode([], class_ids=[])["boxes"].shape == (0, 4)
    with pytest.raises(ConfigError, match="nms must be"):
        _decode([], nms="soft")


def test_published_scheme_loses_a_box_that_exact_suppression_keeps():
    """B removes C in the first block of 10,000, then A of the second block removes B."""
    place = np.arange(10_001) * 20.0
    boxes = np.stack([place, place * 0, place + 10, place * 0 + 10], axis=-1)
    a, b, c = -1, 0, 1
    boxes[a], boxes[b], boxes[c] = [0, 50, 100, 90], [40, 50, 140, 90], [80, 50, 180, 90]
    scores = np.full(10_001, 0.1)
    scores[[a, b, c]] = 0.9, 0.8, 0.7
    level = _level(scores[None], boxes[None], size=(10**6, 10**6))
    frame = {"image_size": (10**6, 10**6), "max_detections": 2}
    assert _decode([level], **frame)["scores"].tolist() == pytest.approx([0.9, 0.7])
    assert _decode([level], nms="chunked", **frame)["scores"].tolist() == pytest.approx([0.9, 0.1])


@pytest.mark.parametrize(
    "size,scales,want", [((507, 685), [0.5, 1.6], [(253, 342), (811, 1096)]), ((3, 3), [0.1], [(1, 1)])]
)
def test_pyramid_sizes_are_truncated(size, scales, want):
    assert pyramid_sizes(size, scales) == want
