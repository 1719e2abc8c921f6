"""The automatic choice of scales, and what is made of pictures."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sm_jax import search

sides = st.integers(1, 6000)


@given(st.tuples(sides, sides), st.lists(st.tuples(sides, sides), min_size=1, max_size=4))
def test_automatic_scales_cover_a_sensible_range(image, queries):
    scales = search.automatic_scales(image, queries)
    sizes = 240 / np.array(scales)  # of the objects, in pixels of the image
    whole = math.sqrt(image[0] * image[1])
    assert np.all(np.diff(scales) > 0) or len(scales) == 1
    assert np.all(sizes[:-1] / sizes[1:] <= 1.25 + 1e-6)
    assert whole / 16 * 0.999 <= sizes.min() and sizes.max() <= whole * 1.001
    assert len(scales) <= 14
    smallest = min(min(math.sqrt(h * w), whole) for h, w in queries)
    if smallest >= whole / 16:
        assert sizes.min() <= smallest * 1.001
    largest = max(min(math.sqrt(h * w), whole) for h, w in queries)
    assert sizes.max() >= min(largest, whole) * 0.999


@pytest.mark.parametrize(
    "image,query,low,high",
    [
        ((1512, 1134), (148, 80), 87, 218),  # a product cropped from a shelf
        ((507, 685), (143, 352), 59, 449),  # a product shot against a small picture
        ((480, 640), (3000, 3000), 139, 554),  # a query larger than the image
    ],
)
def test_documented_examples(image, query, low, high):
    sizes = 240 / np.array(search.automatic_scales(image, [query]))
    assert sizes.min() == pytest.approx(low, rel=0.02) and sizes.max() == pytest.approx(high, rel=0.02)


def test_levels_are_normalised_and_of_the_right_size():
    image = np.full((30, 40, 3), 255, np.uint8)
    levels = list(search.levels(image, [0.5, 1.0, 2.0]))
    assert [level.shape for level in levels] == [(15, 20, 3), (30, 40, 3), (60, 80, 3)]
    want = (1 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(levels[1][0, 0], want, rtol=1e-5)
