"""Pooling of boxes against the definitions, written as loops."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from sm_jax import boxes as box_lib
from sm_jax.ops.roi import repeat_border, roi_align, roi_max, roi_max_matconvnet

relaxed = settings(deadline=None, max_examples=25)


def bilinear(features, y, x):
    """The value at an index position: 0 far outside, the border cell's just outside."""
    height, width, _ = features.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return np.zeros(features.shape[2])
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    below, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = y - top, x - left
    return (
        (1 - down) * (1 - across) * features[top, left]
        + (1 - down) * across * features[top, right]
        + down * (1 - across) * features[below, left]
        + down * across * features[below, right]
    )


def align_by_loops(features, boxes, stride, output_size, samples):
    features = features.astype(np.float64)
    result = np.zeros((len(boxes), *output_size, features.shape[2]))
    for n, box in enumerate(boxes.astype(np.float64)):
        x1, y1, x2, y2 = box / stride - 0.5
        tall, wide = (y2 - y1) / output_size[0], (x2 - x1) / output_size[1]
        for i, j in np.ndindex(*output_size):
            for p, q in np.ndindex(samples, samples):
                y = y1 + (i + (p + 0.5) / samples) * tall
                x = x1 + (j + (q + 0.5) / samples) * wide
                result[n, i, j] += bilinear(features, y, x) / samples**2
    return result


def max_by_loops(features, boxes, stride, output_size):
    def away(value):
        return int(math.copysign(math.floor(abs(value) + 0.5), value))

    height, width, _ = features.shape
    result = np.zeros((len(boxes), *output_size, features.shape[2]), features.dtype)
    for n, box in enumerate(boxes):
        x1, y1, x2, y2 = (away(float(value) / stride) for value in box)
        tall, wide = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
        for i, j in np.ndindex(*output_size):
            top = min(max(y1 + math.floor(i * tall / output_size[0]), 0), height)
            bottom = min(max(y1 + math.ceil((i + 1) * tall / output_size[0]), 0), height)
            left = min(max(x1 + math.floor(j * wide / output_size[1]), 0), width)
            right = min(max(x1 + math.ceil((j + 1) * wide / output_size[1]), 0), width)
            if bottom > top and right > left:
                result[n, i, j] = features[top:bottom, left:right].max(axis=(0, 1))
    return result


def example(seed, *, cells=(6, 7), channels=3, count=6, stride=8):
    """Features and boxes, many of which reach beyond the map or lie outside it."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(*cells, channels)).astype(np.float32)
    corner = rng.uniform(-30, stride * max(cells) + 10, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, 60, (count, 2))], axis=1)
    return features, boxes.astype(np.float32)


@functools.partial(jax.jit, static_argnames=("stride", "output_size", "samples"))
def aligned(features, boxes, stride, output_size, samples):
    return roi_align(features, boxes, stride=stride, output_size=output_size, samples=samples)


@functools.partial(jax.jit, static_argnames=("stride", "output_size"))
def largest(features, boxes, stride, output_size):
    return roi_max(features, boxes, stride=stride, output_size=output_size)


@relaxed
@given(st.integers(0, 10**6), st.sampled_from([((2, 2), 2), ((3, 1), 1), ((2, 5), 3)]))
def test_align_is_the_mean_of_bilinear_samples(seed, form):
    output_size, samples = form
    features, boxes = example(seed)
    found = aligned(features, boxes, 8, output_size, samples)
    expected = align_by_loops(features, boxes, 8, output_size, samples)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@relaxed
@given(st.integers(0, 10**6), st.sampled_from([(2, 2), (3, 1), (7, 7)]))
def test_max_is_that_of_the_rounded_cells(seed, output_size):
    features, boxes = example(seed)
    expected = max_by_loops(features, boxes, 8, output_size)
    np.testing.assert_array_equal(largest(features, boxes, 8, output_size), expected)


def test_a_box_of_whole_cells_reads_their_values():
    features, _ = example(0)
    found = aligned(features, np.float32([[16, 8, 32, 24]]), 8, (2, 2), 1)
    np.testing.assert_allclose(found[0], features[1:3, 2:4], atol=1e-6)


def test_a_linear_map_is_read_exactly():
    """Of the map of its own coordinates, every bin holds the coordinates of its centre."""
    rows, columns = np.meshgrid(np.arange(9.0), np.arange(9.0), indexing="ij")
    features = np.stack([columns + 0.5, rows + 0.5], axis=-1).astype(np.float32) * 32
    box = np.float32([[61.0, 90.0, 181.0, 150.0]])
    found = aligned(features, box, 32, (2, 2), 2)
    np.testing.assert_allclose(found[0, :, :, 0], [[91, 151], [91, 151]], rtol=1e-5)
    np.testing.assert_allclose(found[0, :, :, 1], [[105, 105], [135, 135]], rtol=1e-5)


def test_beyond_the_border():
    features = np.ones((4, 4, 1), np.float32)
    boxes = np.float32([[-8, 0, 0, 32], [-40, -40, -20, -20], [32, 32, 40, 40], [-4.1, -4.1, -4.1, -4.1]])
    found = aligned(features, boxes, 8, (1, 1), 2)[:, 0, 0, 0]
    # the samples of the first lie at -1.25 (0) and -0.75 (border cell); of the last all are just outside
    np.testing.assert_allclose(found, [0.5, 0, 0.25, 0], atol=1e-6)


def test_max_of_the_published_examples():
    """Spec of SCNet, 9.4; inclusive, 1-based corners become the library's."""
    features = np.arange(1, 197, dtype=np.float32).reshape(14, 14, 1)
    corners = np.float32([[33, 17, 160, 128], [100, 100, 110, 108], [1, 1, 224, 224]])
    boxes = box_lib.inclusive_to_half_open(corners)
    found = jax.jit(roi_max_matconvnet)(features, boxes)[..., 0]
    np.testing.assert_array_equal(found[0, 0], [32, 33, 34, 36, 37, 38, 39])
    np.testing.assert_array_equal(found[0, -1], [116, 117, 118, 120, 121, 122, 123])
    np.testing.assert_array_equal(found[0, :, 0], [32, 46, 60, 74, 88, 102, 116])
    np.testing.assert_array_equal(found[1, 0], [91, 91, 91, 92, 92, 92, 92])
    np.testing.assert_array_equal(found[1, -1], [105, 105, 105, 106, 106, 106, 106])
    np.testing.assert_array_equal(found[2, 0], [31, 33, 35, 37, 39, 41, 42])
    np.testing.assert_array_equal(found[2, -1], [185, 187, 189, 191, 193, 195, 196])


pooled_matconvnet = jax.jit(roi_max_matconvnet, static_argnames=("stride", "output_size"))


@relaxed
@given(st.integers(0, 10**6), st.sampled_from([((6, 7), (2, 2)), ((1, 9), (3, 1)), ((6, 7), (7, 7))]))
def test_matconvnet_is_max_of_the_last_pixels(seed, form):
    cells, output_size = form
    features, boxes = example(seed, cells=cells)
    found = pooled_matconvnet(features, boxes, stride=8, output_size=output_size)
    expected = max_by_loops(features, boxes - np.float32([0, 0, 1, 1]), 8, output_size)
    np.testing.assert_array_equal(found, expected)


def test_a_mirrored_box_is_one_cell_wide():
    features, _ = example(0)
    found = pooled_matconvnet(features, np.float32([[40, 8, 16, 24]]), stride=8, output_size=(1, 1))
    np.testing.assert_array_equal(found[0, 0, 0], features[1:4, 5].max(axis=0))


@pytest.mark.parametrize("pool", [roi_align, roi_max, roi_max_matconvnet])
def test_gradients(pool):
    features, boxes = example(2, channels=2, count=5)
    # distinct values far apart: a finite difference never changes which cell is the largest
    features = np.random.default_rng(0).permutation(features.size).reshape(features.shape).astype(np.float32)
    pool = jax.jit(functools.partial(pool, stride=8, output_size=(2, 2)))
    check_grads(lambda f: pool(f, boxes), (features,), order=1, modes=["rev"], eps=0.1)
    to_boxes = jax.grad(lambda b: jnp.sum(pool(features, b) ** 2))(boxes)
    np.testing.assert_array_equal(to_boxes, 0)


@pytest.mark.parametrize("pool", [roi_align, roi_max, roi_max_matconvnet])
def test_images_by_vmap_and_no_boxes(pool):
    pairs = [example(seed) for seed in range(3)]
    features, boxes = (np.stack([pair[i] for pair in pairs]) for i in range(2))
    pool = jax.jit(functools.partial(pool, stride=8, output_size=(2, 2)))
    together = jax.vmap(pool)(features, boxes)
    for image, pair in enumerate(pairs):
        np.testing.assert_allclose(together[image], pool(*pair), atol=1e-6)
    none = pool(features[0], boxes[0, :0])
    assert none.shape == (0, 2, 2, 3)


@pytest.mark.parametrize("pool", [roi_align, roi_max, roi_max_matconvnet])
def test_boxes_that_are_not_finite_are_zero_and_harmless(pool):
    features, boxes = example(4)
    boxes[1], boxes[2, 2], boxes[3, 1] = np.nan, np.inf, -np.inf
    pool = jax.jit(functools.partial(pool, stride=8, output_size=(2, 2)))
    found, grad = pool(features, boxes), jax.grad(lambda f: jnp.sum(jnp.square(pool(f, boxes))))(features)
    np.testing.assert_array_equal(found[1:4], 0)
    assert np.isfinite(found).all() and np.isfinite(grad).all()


@pytest.mark.parametrize("pool", [roi_align, roi_max, roi_max_matconvnet])
def test_shapes_and_type_at_real_size(pool):
    features = jax.ShapeDtypeStruct((32, 16, 16, 1280), jnp.bfloat16)
    boxes = jax.ShapeDtypeStruct((32, 100, 4), jnp.float32)
    out = jax.eval_shape(jax.vmap(functools.partial(pool, stride=32, output_size=(2, 2))), features, boxes)
    assert out.shape == (32, 100, 2, 2, 1280) and out.dtype == jnp.bfloat16


def test_with_a_repeated_border_padding_changes_nothing():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(3, 4, 2)).astype(np.float32)
    padded = np.pad(features, ((0, 2), (0, 3), (0, 0)), constant_values=9.0)
    boxes = np.array([[0, 0, 64, 48], [40, 20, 63, 47]], np.float32)
    alone, also = (
        roi_align(one, boxes, stride=16)
        for one in (jnp.asarray(features), repeat_border(jnp.asarray(padded), jnp.array([3, 4])))
    )
    np.testing.assert_allclose(also, alone, atol=1e-5)
    assert np.abs(roi_align(jnp.asarray(padded), boxes, stride=16) - alone).max() > 0.1
