"""Windows: they hold their anchor, boxes stay on their pixels, padding is grey."""

import numpy as np
import pytest

from sm_jax.data import ssm_windows as geometry


def _picture(size, box, value=255):
    image = np.zeros((*size, 3), np.uint8)
    left, top, right, bottom = box
    image[top:bottom, left:right] = value
    return image


@pytest.mark.parametrize("size", [(300, 400), (60, 400), (50, 70), (128, 128)])
@pytest.mark.parametrize("augment", [False, True])
def test_window_holds_the_anchor_and_boxes_stay_on_their_pixels(size, augment):
    rng = np.random.default_rng(0)
    window_size = (128, 160)
    origins = set()
    for _ in range(40):
        left, top = rng.integers(0, size[1] - 30), rng.integers(0, size[0] - 30)
        box = np.array([left, top, left + 30, top + 30], np.float32)
        window = geometry.plan(rng, size, box, image_size=window_size, augment=augment)
        (found,), (share,) = geometry.boxes_in(box[None], size, window, window_size)
        assert share > 0.999 if not augment else share > 0.95
        image = geometry.render(_picture(size, box.astype(int)), window, window_size)
        assert image.shape == (*window_size, 3) and image.dtype == np.uint8
        ys, xs = np.nonzero(image[..., 0] > 190)
        np.testing.assert_allclose([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], found, atol=1.5)
        origins.add((window.origin, window.flip))
    assert len(origins) > 10


def test_no_scaling_and_grey_padding():
    rng = np.random.default_rng(1)
    image = np.random.default_rng(2).integers(0, 120, (40, 50, 3), dtype=np.uint8)
    for _ in range(10):
        window = geometry.plan(rng, (40, 50), None, image_size=(64, 64), flips=False)
        x, y = (-start for start in window.origin)
        cut = geometry.render(image, window, (64, 64))
        np.testing.assert_array_equal(cut[y : y + 40, x : x + 50], image)
        assert (cut == geometry.GREY).all(axis=-1).sum() == 64 * 64 - 40 * 50
    window = geometry.plan(rng, (40, 50), None, image_size=(20, 30), flips=False)
    x, y = window.origin
    np.testing.assert_array_equal(geometry.render(image, window, (20, 30)), image[y : y + 20, x : x + 30])


def test_scale_brings_objects_to_the_models_sizes():
    box = np.array([10, 10, 50, 30], np.float32)
    rng = np.random.default_rng(0)
    window = geometry.plan(rng, (100, 100), box, image_size=(200, 200), scale=1.5, flips=False)
    (found,), _ = geometry.boxes_in(box[None], (100, 100), window, (200, 200))
    np.testing.assert_allclose(found[2:] - found[:2], [60, 30], atol=1e-4)


def test_large_anchor_fills_the_window():
    rng = np.random.default_rng(0)
    box = np.array([20, 10, 280, 190], np.float32)
    for _ in range(20):
        window = geometry.plan(rng, (200, 300), box, image_size=(64, 64))
        (found,), (share,) = geometry.boxes_in(box[None], (200, 300), window, (64, 64))
        np.testing.assert_array_equal(found, [0, 0, 64, 64])
        assert share == pytest.approx(64 * 64 / (260 * 180), rel=1e-4)
    np.testing.assert_allclose(geometry.best_share(box[None], (64, 64), scale=1.0), [share], rtol=1e-4)


def test_visible_share_clip_and_flip():
    window = geometry.Window((100, 100), (50, 0), flip=True)
    boxes = np.array([[40, 10, 80, 30], [0, 0, 40, 40], [60, 20, 70, 50]], np.float32)
    found, share = geometry.boxes_in(boxes, (100, 100), window, (50, 50))
    np.testing.assert_allclose(share, [0.75, 0, 1])
    np.testing.assert_allclose(found[[0, 2]], [[20, 10, 50, 30], [30, 20, 40, 50]])


def test_colour_leaves_the_padding_alone():
    window = geometry.Window((32, 32), (-32, 0), turn=1 / 3, saturation=1.0)
    red = np.full((32, 32, 3), (200, 0, 0), np.uint8)
    cut = geometry.render(red, window, (32, 64))
    assert (cut[:, :32] == geometry.GREY).all()
    np.testing.assert_allclose(cut[0, 40], [0, 200, 0], atol=6)
    grey = geometry.render(red, window._replace(turn=0.0, saturation=0.0), (32, 64))
    assert np.ptp(grey[0, 40].astype(int)) == 0


def test_augmentation_varies_within_its_bounds():
    rng = np.random.default_rng(0)
    found = [geometry.plan(rng, (100, 100), None, image_size=(64, 64), augment=True) for _ in range(200)]
    scales = np.array([window.size[0] / 100 for window in found])
    assert 0.79 < scales.min() < 0.9 and 1.1 < scales.max() < 1.21 and 0.4 < (scales == 1).mean() < 0.8
    assert min(window.origin[0] for window in found) < -20 >= -geometry.SHIFT
    assert max(abs(window.turn) for window in found) <= 30 / 360
    assert min(window.saturation for window in found) >= 0.2


def test_jitter_is_a_share_of_the_sides():
    rng = np.random.default_rng(0)
    box = np.array([100, 100, 200, 120], np.float32)
    moved = np.stack([geometry.jitter(rng, box, 0.1) for _ in range(300)]) - box
    limits = np.abs(moved).max(axis=0)
    assert (limits <= [10, 2, 10, 2]).all() and (limits > [9, 1.8, 9, 1.8]).all()
    np.testing.assert_array_equal(geometry.jitter(rng, box, 0.0), box)
