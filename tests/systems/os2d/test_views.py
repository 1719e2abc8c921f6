"""Class views and the meaning of an alignment in pixels of the query."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sm_jax.errors import ConfigError
from sm_jax.systems.os2d.views import AUGMENTATIONS, View, angle_and_scale, query_to_image, query_views, views


def test_views_in_the_published_order():
    image = np.arange(2 * 3 * 1).reshape(2, 3, 1)
    got = query_views(image, "horflip_rotation90")
    turned = [np.rot90(image, k) for k in range(4)]
    want = [*turned, *[t[:, ::-1] for t in turned]]
    assert len(got) == 8 and all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))
    assert [len(query_views(image, name)) for name in AUGMENTATIONS] == [1, 4, 2, 8]
    with pytest.raises(ConfigError, match="no class view called 'spin'"):
        views("spin")


def _corners(matrix, centre):
    """Corners (0,0), (0,14), (14,0), (14,14) of the unit square under an affine map."""
    unit = np.array([[-1, -1], [1, -1], [-1, 1], [1, 1]], float)
    return unit @ np.asarray(matrix, float).T + centre


@pytest.mark.parametrize("view", views("horflip_rotation90"))
def test_a_view_is_found_by_the_turned_object(view):
    """An undeformed match of a copy means the object is turned (and mirrored) like that copy."""
    size = (40, 60)  # height, width
    copy_size = view.apply(np.zeros((*size, 1))).shape[:2]
    half = np.diag([copy_size[1] / 2, copy_size[0] / 2])
    transform = query_to_image(_corners(half, [200, 300]), view, size)
    angle, scale = angle_and_scale(transform)
    assert scale == pytest.approx(1.0)
    assert (np.linalg.det(transform[:, :2]) < 0) == view.mirrored
    if not view.mirrored:
        assert angle == pytest.approx({0: 0, 1: 90, 2: 180, 3: -90}[view.quarter_turns])
    # A marked pixel of the query must land where it is in the copy.
    picture = np.zeros((*size, 1))
    picture[5, 50] = 1
    row, column = np.argwhere(view.apply(picture)[..., 0])[0]
    where = transform @ np.array([50.5, 5.5, 1])
    want = np.array([column + 0.5 - copy_size[1] / 2 + 200, row + 0.5 - copy_size[0] / 2 + 300])
    np.testing.assert_allclose(where, want, atol=1e-9)


@given(st.floats(-179, 179), st.floats(0.1, 10), st.booleans(), st.floats(20, 400), st.floats(20, 400))
def test_angle_and_scale_recover_a_similarity(degrees, factor, mirror, height, width):
    turn = np.radians(-degrees)  # y points down
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    linear = factor * rotation @ np.diag([-1.0 if mirror else 1.0, 1.0])
    corners = _corners(linear @ np.diag([width / 2, height / 2]), [7, 9])
    transform = query_to_image(corners, View(), (height, width))
    angle, scale = angle_and_scale(transform)
    np.testing.assert_allclose(transform[:, :2], linear, atol=1e-7)
    assert scale == pytest.approx(factor) and angle == pytest.approx(degrees, abs=1e-5)


def test_a_flat_alignment_stays_finite():
    angle, scale = angle_and_scale(query_to_image(np.zeros((3, 4, 2)), View(), (10, 10)))
    assert np.all(scale == 0) and np.all(np.isfinite(angle))
