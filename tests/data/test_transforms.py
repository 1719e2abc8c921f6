"""Augmentation: geometry is exact, the published crop rule holds, every choice follows the generator."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sm_jax import boxes as box_ops
from sm_jax.data import images, transforms
from tests import goldens


def _noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_normalize():
    image = _noise(5, 7)
    expected = (image / np.float32(255) - np.float32(transforms.MEAN)) / np.float32(transforms.STD)
    np.testing.assert_allclose(transforms.normalize(image), expected, rtol=1e-6)
    assert transforms.normalize(image).dtype == np.float32
    np.testing.assert_array_equal(transforms.denormalize(transforms.normalize(image)), image)


@pytest.mark.parametrize("path", goldens.params("os2d", "backbone_*.npz"))
def test_golden_normalisation(path):
    arrays = goldens.load(path)
    names = [name for name in arrays if name.endswith("_uint8_hwc_rgb")]
    assert names
    for name in names:
        expected = arrays[name.replace("_uint8_hwc_rgb", "_normalized_nchw")]
        expected = expected.reshape(expected.shape[-3:]).transpose(1, 2, 0)
        np.testing.assert_allclose(transforms.normalize(arrays[name]), expected, atol=1e-6)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 2**32),
    st.tuples(st.integers(1, 900), st.integers(1, 900)),
    st.floats(0.1, 8),
    st.integers(0, 4),
)
def test_random_crop_lies_inside_and_covers(seed, size, scale, count):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.9, (count, 2)) * (size[1], size[0])
    boxes = np.concatenate([low, low + rng.uniform(1, 60, (count, 2))], axis=1).astype(np.float32)
    crop = transforms.random_crop(rng, size, boxes, scale=scale, crop=(96, 128))
    left, top, right, bottom = crop
    assert 0 <= left < right <= size[1] and 0 <= top < bottom <= size[0]
    fallback = np.array([0, 0, min(max(int(128 / scale), 1), size[1]), min(max(int(96 / scale), 1), size[0])])
    if count and not np.array_equal(crop, fallback):
        assert (box_ops.coverage(boxes, crop) >= 0.7).any()


def test_random_crop_scale_and_aspect_ranges():
    crops = np.stack(
        [
            transforms.random_crop(np.random.default_rng(i), (4000, 4000), np.zeros((0, 4)), scale=0.5)
            for i in range(300)
        ]
    )
    width, height = crops[:, 2] - crops[:, 0], crops[:, 3] - crops[:, 1]
    assert 600 / (0.5 / 0.7) - 1 <= width.min() < 900 and 1600 < width.max() <= 600 / (0.5 * 0.7)
    assert 0.895 < (width / height).min() < 0.92 and 1.09 < (width / height).max() < 1.115
    assert len(np.unique(crops[:, 0])) > 250


def test_crops_that_may_reach_beyond_the_image_keep_scale_and_aspect():
    none, options = np.zeros((0, 4)), {"scale": 1.0, "crop": (300, 400)}
    draw = functools.partial(transforms.random_crop, size=(300, 400), boxes=none, **options)
    beyond = np.stack([draw(np.random.default_rng(i), inside=False) for i in range(200)])
    within = np.stack([draw(np.random.default_rng(i)) for i in range(200)])
    width, height = (beyond[:, 2:] - beyond[:, :2]).T
    assert 275 < width.min() < 300 and 550 < width.max() <= 400 / 0.7  # scales 0.7 to 1 / 0.7
    assert abs(np.log(width / height / (4 / 3))).max() < -np.log(0.9) + 0.01
    assert (beyond[width >= 400, 0] == 0).all() and (beyond[height >= 300, 1] == 0).all()
    assert within[:, 2].max() == 400 and within[:, 3].max() == 300
    inner = (width < 400) & (height < 300)
    np.testing.assert_array_equal(beyond[inner], within[inner])
    far = np.array([[9000, 9000, 9900, 9900]], np.float32)
    crop = transforms.random_crop(np.random.default_rng(0), (300, 400), far, inside=False, scale=0.5)
    np.testing.assert_array_equal(crop, [0, 0, 1200, 1200])


def test_random_crop_falls_back_to_top_left():
    far = np.array([[3000, 3000, 30000, 30000]], np.float32)  # can never be covered
    crop = transforms.random_crop(np.random.default_rng(0), (4000, 4000), far, scale=0.5)
    np.testing.assert_array_equal(crop, [0, 0, 1200, 1200])


def test_apply_crop_moves_boxes_with_pixels():
    image = np.zeros((40, 60, 3), np.uint8)
    image[10:20, 30:50] = 255
    boxes = np.array([[30, 10, 50, 20]], np.float32)
    cut, moved = transforms.apply_crop(image, boxes, np.array([20, 5, 60, 25]), (40, 80), "nearest")
    np.testing.assert_array_equal(moved, [[20, 10, 60, 30]])
    ys, xs = np.nonzero(cut[..., 0])
    assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (20, 10, 60, 30)
    assert transforms.apply_crop(image, boxes, np.array([40, 0, 60, 40]), (40, 20))[1][0, 0] == -10


def test_crop_labels():
    labels, difficult = transforms.crop_labels(
        np.array([4, 5, 6, 7]), np.array([False, False, False, True]), np.array([0.29, 0.3, 0.7, 0.1])
    )
    np.testing.assert_array_equal(labels, [transforms.CUT_OFF, 5, 6, transforms.CUT_OFF])
    np.testing.assert_array_equal(difficult, [False, True, False, True])


@given(st.booleans(), st.booleans())
def test_flip_twice_is_identity_and_boxes_follow(horizontal, vertical):
    image, boxes = _noise(6, 9), np.array([[1, 2, 4, 5]], np.float32)
    options = {"horizontal": horizontal, "vertical": vertical}
    once, moved = transforms.flip(image, boxes, **options)
    x1, y1, x2, y2 = moved[0].astype(int)
    patch = once[y1:y2, x1:x2][:: -1 if vertical else 1, :: -1 if horizontal else 1]
    np.testing.assert_array_equal(patch, image[2:5, 1:4])
    twice, back = transforms.flip(once, moved, **options)
    np.testing.assert_array_equal(twice, image)
    np.testing.assert_array_equal(back, boxes)


def test_distort_color_is_reproducible_and_changes_something():
    image = _noise(8, 8)
    results = [transforms.distort_color(np.random.default_rng(seed), image) for seed in range(20)]
    again = [transforms.distort_color(np.random.default_rng(seed), image) for seed in range(20)]
    np.testing.assert_array_equal(results, again)
    assert all(result.shape == image.shape and result.dtype == np.uint8 for result in results)
    assert len({result.tobytes() for result in results}) > 10
    grey = np.full((4, 4, 3), 100, np.uint8)  # only brightness can change a flat grey
    assert (
        np.ptp(np.stack([transforms.distort_color(np.random.default_rng(i), grey) for i in range(20)])) <= 30
    )


@given(st.integers(0, 2**32), st.tuples(st.integers(1, 80), st.integers(1, 80)))
def test_random_query_crop(seed, size):
    image = _noise(*size)
    cut = transforms.random_query_crop(np.random.default_rng(seed), image)
    assert cut.shape[0] == size[0] or cut.shape[1] == size[1]  # the largest of its aspect
    assert cut.shape[0] >= int(size[0] * 0.9) and cut.shape[1] >= int(size[1] * 0.9)


@given(st.tuples(st.integers(1, 2000), st.integers(1, 2000)))
def test_fit_query_stays_on_canvas(size):
    height, width = transforms.fit_query(size, (320, 288))
    assert 1 <= height <= 320 and 1 <= width <= 288
    plain = images.fit_to_area(size)
    if plain[0] <= 320 and plain[1] <= 288:
        assert (height, width) == plain


def test_random_filter_draws_all():
    rng = np.random.default_rng(0)
    assert {transforms.random_filter(rng) for _ in range(100)} == set(images.FILTERS)


def test_bytes_of_caffe_are_bgr_minus_a_mean():
    image = np.uint8([[[10, 20, 255], [127, 127, 127]]])
    got = transforms.bgr_minus_mean(image)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, [[[128, -107, -117], [0, 0, 0]]])
    got = transforms.bgr_minus_mean(image, (104.0, 117.0, 123.0))
    np.testing.assert_array_equal(got[0, 0], [151, -97, -113])


@given(st.integers(1, 2000), st.integers(1, 2000), st.sampled_from([(64, 64), (512, 512), (96, 160)]))
def test_fit(height, width, target):
    """One side fills the target, the aspect stays up to rounding, and the factors are exact."""
    size, scale = transforms.fit((height, width), target)
    assert (size[0] == target[0] or size[1] == target[1]) and size[0] <= target[0] and size[1] <= target[1]
    np.testing.assert_allclose(scale, [size[1] / width, size[0] / height], rtol=1e-6)
    if min(size) > 20:
        assert scale[0] == pytest.approx(scale[1], rel=0.05)


@given(st.tuples(st.integers(1, 90), st.integers(1, 90)), st.tuples(st.integers(1, 70), st.integers(1, 70)))
def test_centred_letterbox(size, target):
    image = np.full((*size, 3), 200, np.uint8)
    canvas, scale, offset = transforms.letterbox_centred(image, target)
    assert canvas.shape == (*target, 3) and canvas.dtype == np.uint8
    rows, columns = np.nonzero(canvas[..., 0] == 200)
    corners = np.float32([[0, 0], size[::-1]]) * scale + offset
    np.testing.assert_allclose(corners, [[columns[0], rows[0]], [columns.max() + 1, rows[-1] + 1]], atol=1e-3)
    assert (canvas[canvas[..., 0] != 200] == 127).all()
    assert np.unique(rows).size == target[0] or np.unique(columns).size == target[1]
    for used, length in ((rows, target[0]), (columns, target[1])):
        assert abs(used.min() - (length - 1 - used.max())) <= 1  # centred
