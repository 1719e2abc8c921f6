"""Homographies, clipping and warping against rasterised masks and closed forms."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from sm_jax.data.synthetic import geometry


def _quads():
    """Convex quads: a projected, turned rectangle somewhere around a 60 x 80 frame."""

    def build(x, y, w, h, turn, tilt):
        lens = np.array([[1, 0, 0], [0, 1, 0], [tilt / 100, 0, 1]])
        flat = geometry.rect(-w / 2, -h / 2, w / 2, h / 2)
        return geometry.project(geometry.rotation(turn) @ lens, flat) + (x, y)

    number = st.floats
    return st.builds(
        build,
        number(-20, 100),
        number(-20, 80),
        number(8, 60),
        number(8, 60),
        number(-180, 180),
        number(-1, 1),
    )


@given(_quads())
@settings(max_examples=60, deadline=None)
def test_homography_maps_corners_and_inverts(quad):
    matrix = geometry.homography(geometry.UNIT, quad)
    np.testing.assert_allclose(geometry.project(matrix, geometry.UNIT), quad, atol=1e-8)
    np.testing.assert_allclose(geometry.project(np.linalg.inv(matrix), quad), geometry.UNIT, atol=1e-8)


@given(_quads())
@settings(max_examples=60, deadline=None)
def test_clip_matches_a_fine_mask(quad):
    fine = 8
    mask = Image.new("L", (80 * fine, 60 * fine))
    ImageDraw.Draw(mask).polygon([tuple(p * fine) for p in quad], fill=1)
    clipped = geometry.clip(quad, (60, 80))
    seen = np.asarray(mask)
    perimeter = 2 * (80 + 60)
    assert abs(geometry.area(clipped) - seen.sum() / fine**2) < perimeter / fine
    if len(clipped) >= 3:
        x1, y1, x2, y2 = geometry.bounds(clipped)
        assert x1 >= 0 and y1 >= 0 and x2 <= 80 and y2 <= 60


def test_clip_outside_is_empty_and_inside_is_unchanged():
    assert len(geometry.clip(geometry.rect(-9, -9, -1, -1), (10, 10))) == 0
    inside = geometry.rect(1, 2, 8, 9)
    np.testing.assert_array_equal(np.sort(geometry.clip(inside, (10, 10)), axis=0), np.sort(inside, axis=0))


def test_rotation_keeps_its_center():
    np.testing.assert_allclose(
        geometry.project(geometry.rotation(37, (3, 4)), np.array([[3.0, 4.0]])), [[3, 4]]
    )


def test_warp_to_an_axis_aligned_quad_is_a_shift():
    """Half-pixel conventions: an integer shift must copy pixels, up to rounding."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8))
    patch, (left, top) = geometry.warp(picture, geometry.rect(20, 30, 29, 42), (60, 80))
    inner = np.asarray(patch)[30 - top : 42 - top, 20 - left : 29 - left]
    np.testing.assert_allclose(inner.astype(int), np.asarray(picture, int), atol=1)


def test_warp_outside_the_frame_is_none():
    assert geometry.warp(Image.new("RGB", (4, 4)), geometry.rect(100, 100, 110, 110), (60, 80)) is None
