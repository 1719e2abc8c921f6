"""Half-pixel rules."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sm_jax import boxes, points

relaxed = settings(deadline=None, max_examples=60)  # the first example may compile
number = st.floats(-1e4, 1e4)


@relaxed
@given(number, st.sampled_from([1, 4, 8, 16, 32]))
def test_pixels_and_index_invert_each_other(x, stride):
    there = points.pixels_to_index(x, stride=stride)
    np.testing.assert_allclose(points.index_to_pixels(there, stride=stride), x, atol=1e-6)


def test_cell_centres():
    assert points.index_to_pixels(0, stride=16) == 8
    assert points.pixels_to_index(24.0, stride=16) == 1


@relaxed
@given(st.floats(-2, 2), st.integers(2, 200))
def test_unit_and_index_invert_each_other(u, length):
    np.testing.assert_allclose(points.index_to_unit(points.unit_to_index(u, length), length), u, atol=1e-9)


def test_unit_ends_are_the_first_and_last_index():
    assert points.unit_to_index(-1.0, 9) == 0
    assert points.unit_to_index(1.0, 9) == 8
    assert points.unit_to_index(0.3, 1) == 0


def test_identity_samples_from_seven_cells_before_to_eight_after():
    index = points.local_to_index(points.template_axis(), 20)
    np.testing.assert_allclose(index, 20 - 7 + 15 * np.arange(15) / 14, rtol=1e-6)


def test_local_pixels_of_the_identity_are_the_anchor():
    anchor = boxes.anchor_grid((3, 4))[2 * 4 + 1]
    sides = [points.local_to_pixels(u, cell) for u in (-1.0, 1.0) for cell in (1, 2)]
    np.testing.assert_array_equal(sides, anchor)


@relaxed
@given(number, st.integers(0, 300))
def test_local_and_pixels_invert_each_other(x, cell):
    np.testing.assert_allclose(points.local_to_pixels(points.pixels_to_local(x, cell), cell), x, atol=1e-6)


def test_an_odd_window_is_centred_on_its_cell_and_an_even_one_on_where_the_cell_begins():
    assert points.window_to_pixels(4, 3) == 3 * 16 and points.window_to_pixels(4, 3) + 3 * 16 == 6 * 16
    assert points.window_to_pixels(4, 2) == 3 * 16 and points.window_to_pixels(4, 2) + 2 * 16 == 5 * 16


def test_one_based_pixels_and_absent_points():
    np.testing.assert_array_equal(points.one_based_to_pixels(np.array([1.0, 7])), [0.5, 6.5])
    assert points.pixels_to_one_based(points.one_based_to_pixels(3.25)) == 3.25
    keypoints = [[0, 0], [-0.4, 3], [-0.5, 3], [-1, -1], [3, np.nan], [np.inf, 1]]
    assert points.present(keypoints).tolist() == [True, True, False, False, False, False]


def test_pixel_of():
    keypoints = [(0, 0), (1.9, 1), (4, 3), (-0.3, 2.5), (1e300, -1e300), (np.nan, 2)]
    row, column = points.pixel_of(keypoints, (3, 4))
    assert row.tolist() == [0, 1, 2, 2, 0, 0] and column.tolist() == [0, 1, 3, 0, 3, 0]
