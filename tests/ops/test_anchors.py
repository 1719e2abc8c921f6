"""Anchors: spec section 6 vector 1, order, sizes and aspects."""

import numpy as np
import pytest

from sm_jax import boxes as box_lib
from sm_jax.ops.anchors import grid_anchors


def test_the_paper_s_anchors():
    anchors = grid_anchors((16, 16), stride=32)
    assert anchors.shape == (256, 4) and anchors.dtype == np.float32
    np.testing.assert_array_equal(anchors[0], [-16, -16, 48, 48])
    centres = box_lib.xyxy_to_cxcywh(anchors).reshape(16, 16, 4)
    np.testing.assert_array_equal(centres[:, 3, 1], np.arange(16, 512, 32))
    np.testing.assert_array_equal(centres[3, :, 0], np.arange(16, 512, 32))
    np.testing.assert_array_equal(centres[..., 2:], 64)


def test_order_and_constant_area():
    sizes, aspects = (32.0, 100.0), (0.5, 1.0, 2.0)
    anchors = grid_anchors((3, 5), stride=8, sizes=sizes, aspects=aspects)
    number = 0
    for row in range(3):
        for column in range(5):
            for size in sizes:
                for aspect in aspects:
                    cx, cy, width, height = box_lib.xyxy_to_cxcywh(anchors[number])
                    np.testing.assert_allclose((cx, cy), (8 * (column + 0.5), 8 * (row + 0.5)), atol=1e-5)
                    np.testing.assert_allclose(height / width, aspect, rtol=1e-5)
                    np.testing.assert_allclose(height * width, size**2, rtol=1e-5)
                    number += 1
    assert number == len(anchors)


def test_agrees_with_the_anchors_of_os2d():
    ours = grid_anchors((4, 6), stride=16, sizes=(240.0,))
    np.testing.assert_array_equal(ours, box_lib.anchor_grid((4, 6)))


def test_without_cells():
    assert grid_anchors((0, 4), stride=32).shape == (0, 4)


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 0},
        {"stride": 8, "sizes": ()},
        {"stride": 8, "sizes": (0.0,)},
        {"stride": 8, "aspects": (-1,)},
    ],
)
def test_misuse_is_refused(options):
    with pytest.raises(ValueError, match="expected positive"):
        grid_anchors((2, 2), **options)
