"""Randomised Prim: the graph by hand, the fast growth against the readable one, known extremes."""

import numpy as np
import pytest

from sm_jax.proposals import prim
from tests.proposals.pictures import blocks


def example_graph(seed=0):
    lab = prim.colour_space(blocks(seed), "lab")
    labels = np.arange(60)[:, None] // 15 * 5 + np.arange(80)[None] // 16  # 4 x 5 cells
    return prim.make_graph(labels, lab)


def test_growing_equals_the_reference_draw_by_draw():
    graph, rng = example_graph(), np.random.default_rng(1)
    size, draws = len(graph.areas), 300
    starts, energies = rng.integers(size, size=draws), rng.uniform(0, 2, draws)
    uniforms = rng.random((size - 1, draws, 2))
    fast = prim.grow(graph, starts, energies, uniforms)
    slow = [prim.grow_reference(graph, starts[i], energies[i], uniforms[:, i]) for i in range(draws)]
    np.testing.assert_array_equal(fast, slow)
    assert len(np.unique(fast, axis=0)) > 50  # groups of many sizes, or the comparison says little


def test_no_patience_gives_the_superpixel_and_endless_patience_the_picture():
    graph, rng = example_graph(), np.random.default_rng(0)
    starts = np.arange(20)
    uniforms = rng.random((19, 20, 2))
    np.testing.assert_array_equal(prim.grow(graph, starts, np.zeros(20), uniforms), graph.boxes)
    np.testing.assert_array_equal(
        prim.grow(graph, starts, np.full(20, 9.0), uniforms), np.tile([0, 0, 80, 60], (20, 1))
    )


def test_a_zero_weight_is_never_drawn():
    weights = np.array([[0, 0.3, 0, 0.7, 0, 0]] * 4)
    drawn = prim._draw(weights, np.array([0.0, 0.29, 0.31, np.nextafter(1, 0)]))
    assert drawn.tolist() == [1, 1, 3, 3]


def test_drawing_by_blocks_is_drawing():
    rng = np.random.default_rng(0)
    weights = rng.random((500, 5 * prim.BLOCK)) * (rng.random((500, 5 * prim.BLOCK)) < 0.1)
    weights[:, 7] += 0.1
    uniform = rng.random(500)
    uniform[:3] = 0, np.nextafter(1, 0), 0.5
    np.testing.assert_array_equal(prim._draw_blockwise(weights, uniform), prim._draw(weights, uniform))


def test_graph_of_three_superpixels_by_hand():
    labels = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 2, 2]])
    lab = np.zeros((3, 4, 3))
    lab[:2, 2] = 0.9  # half of superpixel 1 has another colour
    graph = prim.make_graph(labels, lab)
    np.testing.assert_array_equal(graph.boxes, [[0, 0, 2, 2], [2, 0, 4, 2], [0, 2, 4, 3]])
    np.testing.assert_allclose(graph.areas, [1 / 3] * 3)
    np.testing.assert_array_equal(graph.neighbours, [[1, 2], [0, 2], [0, 1]])
    # pairs that touch: 0-1: 2 rows x 1 + 2 diagonals = 4; 0-2: 2 + 3 diagonals = 5; 1-2 likewise 5
    borders = {(0, 1): (4, 9, 9), (0, 2): (5, 9, 10), (1, 2): (5, 9, 10)}
    likeness = {(0, 1): 0.5, (0, 2): 1.0, (1, 2): 0.5}
    for (i, j), (shared, one, other) in borders.items():
        exponent = 3.0017 - 2.3655 / 3 - 1.0029 * max(shared / one, shared / other)
        want = 1 / (1 + np.exp(exponent - 2.6864 * likeness[i, j]))
        place = graph.neighbours[i].tolist().index(j)
        np.testing.assert_allclose(graph.chances[i, place], want, rtol=1e-12)


def test_shares_of_smaller_objects_follow_the_control_points():
    assert prim.smaller(0.0) == 0 and prim.smaller(1.0) == 1
    np.testing.assert_allclose(prim.smaller(0.107), 0.615)
    np.testing.assert_allclose(prim.smaller((0.107 + 0.165) / 2), (0.615 + 0.674) / 2)
    assert (np.diff(prim.AREAS) > 0).all() and (np.diff(prim.SMALLER) >= 0).all()
    assert len(prim.AREAS) == len(prim.SMALLER) == 19


@pytest.mark.parametrize("name", prim.COLOURS)
def test_colour_spaces_fill_the_unit_interval(name):
    corners = np.array(np.meshgrid([0, 255], [0, 255], [0, 255])).reshape(3, 1, -1).transpose(1, 2, 0)
    pixels = prim.colour_space(corners.astype(np.uint8), name)
    assert pixels.shape == (1, 8, 2 if name == "rg" else 3)
    assert np.isfinite(pixels).all() and pixels.min() > -1e-9 and pixels.max() < 1 + 1e-9
    grey = prim.colour_space(np.full((1, 1, 3), 128, np.uint8), name)[0, 0]
    middle = {"rg": [1 / 3, 1 / 3], "opponent": [0.5, 0.5, 128 / 255], "hsv": [0, 0, 128 / 255]}
    if name in middle:
        np.testing.assert_allclose(grey, middle[name], atol=1e-9)


def test_draws_are_divided_among_the_colour_spaces():
    found = prim.boxes(blocks(), 203, rng=np.random.default_rng(0))
    assert found.shape == (203, 4)
    assert (found[:, :2] >= 0).all() and (found[:, 2:] <= [80, 60]).all()
    assert (found[:, 2:] > found[:, :2]).all()
