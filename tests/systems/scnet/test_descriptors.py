import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax.systems.scnet import descriptors
from tests.systems.scnet import tiny


def _picture(rng, size=(70, 90)):
    return rng.integers(0, 256, (*size, 3)).astype(np.uint8)


def test_hog_is_that_of_scikit_image():
    rng = np.random.default_rng(0)
    image, boxes = _picture(rng), tiny.boxes(rng, 70, (70, 90))  # more than one group of boxes
    found, expected = descriptors.hog(image, boxes), descriptors.hog_reference(image, boxes)
    assert found.shape == (70, 1764) and found.dtype == np.float32
    # a gradient exactly on the border of two orientations may fall on either side of it
    assert np.mean(np.abs(found - expected) > 1e-4) < 2e-3
    cosine = (
        np.sum(found * expected, axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    )
    assert cosine.min() > 0.999


def test_hog_of_an_image_of_one_colour_is_zero():
    assert not descriptors.hog(np.full((30, 30, 3), 9, np.uint8), np.float32([[0, 0, 30, 30]])).any()


def test_patches_are_cut_to_the_picture_and_degenerate_boxes_are_black():
    image = np.full((20, 30, 3), 200, np.uint8)
    boxes = np.float32([[-10, -10, 15, 10], [5, 5, 5, 9], [9, 9, 4, 12], [40, 2, 50, 9], [np.nan, 0, 5, 5]])
    found = descriptors.patches(image, boxes)
    assert found.shape == (5, 64, 64, 3)
    assert (found[0] == 200).all() and not found[1:4].any()


@pytest.mark.parametrize("centre", [True, False])
def test_cosine_by_its_definition_and_without_padding(centre):
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(7, 6)) + 3, rng.normal(size=(5, 6)) + 3
    valid = np.arange(7) < 6, np.arange(5) < 4
    mean = np.concatenate([a[:6], b[:4]]).mean(axis=0) if centre else 0
    x, y = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (a - mean, b - mean))
    found = descriptors.cosine(
        jnp.array(a), jnp.array(b), centre=centre, source_valid=valid[0], target_valid=valid[1]
    )
    np.testing.assert_allclose(found[:6, :4], (x @ y.T)[:6, :4], atol=1e-6)
    assert not np.any(found[6]) and not np.any(found[:, 4])


def test_few_boxes_are_not_centred():
    """Of one box each the centred vectors would be opposite, however alike they are."""
    alike = jnp.array([[3.0, 4.0, 5.0]])
    np.testing.assert_allclose(descriptors.cosine(alike, alike * 1.1), [[1]], rtol=1e-6)


def test_flatten_keeps_the_layout_or_its_mean():
    pooled = jnp.arange(24.0).reshape(2, 2, 2, 3)
    np.testing.assert_array_equal(descriptors.flatten(pooled), np.arange(24.0).reshape(2, 12))
    mean = descriptors.flatten(pooled, pool="mean")
    np.testing.assert_array_equal(mean, np.arange(24.0).reshape(2, 4, 3).mean(axis=1))
    with pytest.raises(ValueError, match="expected 'flat' or 'mean'"):
        descriptors.flatten(pooled, pool="max")
