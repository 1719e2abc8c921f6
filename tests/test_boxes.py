"""Box algebra: the recorded coder, overlap and crop numbers, and the properties behind them."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sm_jax import boxes
from tests import goldens

coder = pytest.mark.parametrize("path", goldens.params("os2d", "boxcoder*.npz"))
both = pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
relaxed = settings(deadline=None, max_examples=60)  # the first example may compile
coordinate = st.floats(-1000, 1000, width=32)


@st.composite
def some_boxes(draw, smallest=0.0):
    """Five boxes with sides of at least `smallest`; always five, so that jax compiles once."""
    rows = st.tuples(coordinate, coordinate, st.floats(smallest, 500), st.floats(smallest, 500))
    x, y, w, h = np.array(draw(st.lists(rows, min_size=5, max_size=5)), np.float64).T
    return np.stack([x, y, x + w, y + h], axis=-1).astype(np.float32)


# recorded numbers ---------------------------------------------------------------------------------


@coder
def test_golden_anchors(path):
    data = goldens.load(path)
    names = [key for key in data if key.startswith("anchors_image_")]
    assert names
    for name in names:
        size = tuple(int(n) for n in name.rsplit("_", 1)[1].split("x"))
        np.testing.assert_array_equal(boxes.anchor_grid(size), data[name])
        level = boxes.anchor_grid(size, stride=1, box_size=(15, 15))
        np.testing.assert_array_equal(level, data[name.replace("image", "featuremap")])


@pytest.mark.parametrize("path", goldens.params("os2d", "head_*_common.npz"))
def test_golden_anchors_of_the_head(path):
    data = goldens.load(path)
    size = data["image_features"].shape[-2:]
    np.testing.assert_array_equal(boxes.anchor_grid(size), data["anchors_image"])
    level = boxes.anchor_grid(size, stride=1, box_size=(15, 15))
    np.testing.assert_array_equal(level, data["anchors_featuremap"])


@coder
@both
def test_golden_encode_and_decode(path, xp):
    data = goldens.load(path)
    given_boxes, anchors = xp.asarray(data["enc_boxes"]), xp.asarray(data["enc_anchors"])
    np.testing.assert_array_equal(boxes.ensure_min_size(given_boxes), data["enc_boxes_after_min_size"])
    codes = boxes.encode(given_boxes, anchors)
    assert isinstance(codes, jax.Array) == (xp is jnp)
    np.testing.assert_allclose(codes, data["enc_codes"], rtol=0, atol=2e-4)
    back = boxes.decode(xp.asarray(data["enc_codes"]), anchors)
    np.testing.assert_allclose(back, data["dec_of_enc"], rtol=1e-5, atol=1e-3)
    decoded = boxes.decode(xp.asarray(data["dec_codes"]), anchors)
    np.testing.assert_allclose(decoded, data["dec_boxes"], rtol=1e-5, atol=1e-3)


@coder
@both
def test_golden_overlaps(path, xp):
    data = goldens.load(path)
    truth, anchors = xp.asarray(data["asg_gt_boxes"]), xp.asarray(data["asg_anchors"])
    overlap = np.asarray(boxes.iou(truth, anchors))
    labels = [key.removeprefix("asg_iou_label") for key in data if key.startswith("asg_iou_label")]
    assert labels
    for label in labels:
        rows = data[f"asg_gt_ids_label{label}"]
        np.testing.assert_allclose(overlap[rows], data[f"asg_iou_label{label}"], rtol=0, atol=1e-6)
    share = boxes.coverage(truth, xp.asarray(data["cov_crop"][0]))
    np.testing.assert_allclose(share, data["cov_ratio"], rtol=1e-5, atol=1e-6)


@coder
def test_golden_mining_crops(path):
    data = goldens.load(path)
    crop_size = tuple(int(n) for n in data["cut_crop_hw"])
    names = [key.removesuffix("_image_hw") for key in data if key.endswith("_image_hw")]
    names = [name for name in names if name.startswith("cut_")]
    assert names
    for name in names:
        size = tuple(int(n) for n in data[f"{name}_image_hw"])
        anchors = boxes.anchor_grid(tuple(-(-n // 16) for n in size))
        np.testing.assert_array_equal(anchors, data[f"{name}_anchors"])
        crops = boxes.mining_crops(anchors, size=size, crop_size=crop_size)
        np.testing.assert_array_equal(crops, data[f"{name}_crops"])
        for key in (key for key in data if key.startswith(f"{name}_crops_in_")):
            height, width = (int(n) for n in key.rsplit("_", 1)[1].split("x"))
            factor = np.float32(width) / np.float32(size[1]), np.float32(height) / np.float32(size[0])
            np.testing.assert_allclose(boxes.scale(crops, factor), data[key], rtol=1e-6)


# properties ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "back"),
    [
        (boxes.xyxy_to_cxcywh, boxes.cxcywh_to_xyxy),
        (boxes.xyxy_to_xywh, boxes.xywh_to_xyxy),
        (boxes.xyxy_to_yxyx, boxes.yxyx_to_xyxy),
    ],
)
@relaxed
@given(some_boxes())
def test_formats_round_trip(there, back, b):
    np.testing.assert_allclose(back(there(b)), b, rtol=1e-5, atol=1e-3)


def test_formats_name_their_numbers():
    box = np.float32([[10, 20, 30, 60]])
    np.testing.assert_array_equal(boxes.xyxy_to_cxcywh(box), [[20, 40, 20, 40]])
    np.testing.assert_array_equal(boxes.xyxy_to_xywh(box), [[10, 20, 20, 40]])
    np.testing.assert_array_equal(boxes.xyxy_to_yxyx(box), [[20, 10, 60, 30]])


@relaxed
@given(some_boxes(), some_boxes())
def test_numpy_and_jax_agree(a, b):
    for f in (boxes.intersection, boxes.iou):
        assert isinstance(f(a, b), np.ndarray)
        np.testing.assert_allclose(f(a, b), f(jnp.asarray(a), b), rtol=1e-4, atol=1e-4)
    for f in (boxes.area, boxes.ensure_min_size, lambda x: boxes.clip(x, (50, 70))):
        np.testing.assert_allclose(f(a), f(jnp.asarray(a)), rtol=1e-5, atol=1e-5)


@relaxed
@given(some_boxes(), some_boxes())
def test_iou_is_a_symmetric_share(a, b):
    value = boxes.iou(a, b)
    assert ((value >= 0) & (value <= 1 + 1e-5)).all()
    np.testing.assert_array_equal(value, boxes.iou(b, a).T)


@relaxed
@given(some_boxes(smallest=1.0))
def test_iou_with_itself_is_one(b):
    np.testing.assert_allclose(np.diag(boxes.iou(b, b)), 1, rtol=1e-4)


@relaxed
@given(some_boxes(smallest=1.5), some_boxes(smallest=1.5))
def test_decode_inverts_encode(b, anchors):
    anchors = np.broadcast_to(anchors[:1], b.shape)
    back = boxes.decode(boxes.encode(b, anchors), anchors)
    # the cap stops growth at 1000/16 of the anchor
    small = ((b[:, 2:] - b[:, :2]) < 60 * (anchors[:, 2:] - anchors[:, :2])).all(axis=1)
    np.testing.assert_allclose(back[small], b[small], rtol=1e-3, atol=0.05)


@relaxed
@given(some_boxes(), st.integers(1, 400), st.integers(1, 400))
def test_clip_stays_inside_and_keeps_the_common_area(b, height, width):
    cut = boxes.clip(b, (height, width))
    assert (cut >= 0).all() and (cut <= [width, height, width, height]).all()
    frame = np.float32([[0, 0, width, height]])
    np.testing.assert_allclose(boxes.area(cut), boxes.intersection(b, frame)[:, 0], rtol=1e-3, atol=1e-2)


@relaxed
@given(some_boxes(), st.integers(1, 400), st.integers(1, 400))
def test_coverage_is_the_share_that_a_clip_leaves(b, height, width):
    share = boxes.coverage(b, (0, 0, width, height))
    assert ((share >= 0) & (share <= 1 + 1e-5)).all()
    left = boxes.area(boxes.clip(b, (height, width)))
    np.testing.assert_allclose(share * boxes.area(b), left, rtol=1e-3, atol=1e-2)


def test_numpy_boxes_need_no_jax():
    """A data worker pays seconds and a hundred megabytes for an import of jax."""
    code = (
        "import sys, numpy as np; from sm_jax import boxes;"
        "b = np.float32([[0, 0, 4, 2], [1, 1, 1.5, 9]]);"
        "boxes.iou(b, b), boxes.coverage(b, b[0]), boxes.clip(b, (3, 3));"
        "boxes.decode(boxes.encode(b, b), b);"
        "sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-W", "error", "-c", code]).returncode == 0


def test_empty_boxes_have_no_overlap_and_no_nan():
    flat = np.float32([[3, 3, 3, 9], [5, 5, 5, 5], [9, 9, 2, 2]])
    for xp in (np, jnp):
        f = xp.asarray(flat)
        assert not np.asarray(boxes.nonempty(f)).any()
        np.testing.assert_array_equal(boxes.area(f), 0)
        np.testing.assert_array_equal(boxes.iou(f, f), 0)
        np.testing.assert_array_equal(boxes.coverage(f, flat[0]), 0)
    gradient = jax.grad(lambda b: boxes.iou(b, b).sum() + boxes.coverage(b, b[0]).sum())(jnp.asarray(flat))
    assert np.isfinite(gradient).all()
    assert boxes.iou(np.zeros((0, 4), np.float32), flat).shape == (0, 3)


def test_minimum_size_cuts_the_gradient_of_the_short_axis_only():
    b = jnp.array([[10.0, 10.0, 10.5, 40.0], [7.0, 9.0, 3.0, 2.0], [0.0, 0.0, 5.0, 5.0]])
    gradient = jax.grad(lambda x: (boxes.ensure_min_size(x) ** 2).sum())(b)
    np.testing.assert_array_equal(np.asarray(gradient) != 0, [[0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 1, 1]])


@relaxed
@given(some_boxes())
def test_codes_and_their_gradients_are_finite(b):
    anchors = jnp.float32([[0, 0, 240, 240]])
    codes, pull = jax.vjp(lambda x: boxes.encode(x, anchors), jnp.asarray(b))
    assert np.isfinite(codes).all() and np.isfinite(pull(jnp.ones_like(codes))[0]).all()


def test_decoding_caps_huge_sizes():
    wide = boxes.decode(np.float32([[0, 0, 1e6, 0]]), np.float32([[0, 0, 16, 16]]))
    np.testing.assert_allclose(wide, [[8 - 500, 0, 8 + 500, 16]], rtol=1e-5)


@relaxed
@given(
    st.tuples(st.integers(1, 900), st.integers(1, 900)),
    st.tuples(st.integers(16, 300), st.integers(16, 300)),
)
def test_mining_crops_have_their_size_and_lie_on_the_grid(size, crop_size):
    anchors = boxes.anchor_grid(tuple(-(-n // 16) for n in size))
    crops = boxes.mining_crops(anchors, size=size, crop_size=crop_size)
    np.testing.assert_array_equal(
        crops[:, 2:] - crops[:, :2], np.broadcast_to(crop_size[::-1], (len(crops), 2))
    )
    assert (crops[:, :2] >= 0).all() and (crops[:, :2] % 16 == 0).all()
    for axis, extent, crop in ((0, size[1], crop_size[1]), (1, size[0], crop_size[0])):
        assert (crops[:, axis + 2] <= max(extent, crop)).all()


def test_anchor_order_is_row_major_with_height_first():
    grid = boxes.anchor_grid((2, 3), stride=10, box_size=(4, 6))
    assert grid.dtype == np.float32 and grid.shape == (6, 4)
    np.testing.assert_array_equal(grid[1], [12, 3, 18, 7])
    np.testing.assert_array_equal(grid[3], [2, 13, 8, 17])


# 1-based inclusive corners ------------------------------------------------------------------------


@both
def test_inclusive_corners(xp):
    inclusive = xp.asarray(np.float32([[11, 11, 31, 31], [1, 1, 1, 1]]))
    found = boxes.inclusive_to_half_open(inclusive)
    np.testing.assert_array_equal(found, [[10, 10, 31, 31], [0, 0, 1, 1]])
    np.testing.assert_array_equal(boxes.area(found), [21 * 21, 1])
    np.testing.assert_array_equal(boxes.half_open_to_inclusive(found), inclusive)


@relaxed
@given(st.lists(st.floats(1, 1e4), min_size=4, max_size=4))
def test_inclusive_corners_survive_the_round_trip_exactly(corners):
    corners = np.array([corners], np.float64)
    found = boxes.half_open_to_inclusive(boxes.inclusive_to_half_open(corners))
    np.testing.assert_array_equal(found, corners)
