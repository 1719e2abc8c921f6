"""Images through a model of fixed size: where windows and cells lie, and that every pixel is seen."""

import numpy as np
import pytest

from sm_jax import windows
from sm_jax.data import transforms

WINDOW = (128, 128)


def test_a_fitted_image_is_centred_on_grey_with_its_aspect_kept():
    """The released pair: 321 rows of 512, filled with 95 above and 96 below."""
    image = np.full((642, 1024, 3), 200, np.uint8)
    layout = windows.fitted(image.shape[:2], (512, 512))
    (corner,) = layout.corners
    picture = layout.picture(layout.resized(image), corner)
    assert layout.scaled == (321, 512) and corner == (0, -95)
    assert np.all(picture[:95] == 127) and np.all(picture[95:416] == 200) and np.all(picture[416:] == 127)
    (rows, columns), placed = layout.cells(corner)
    assert (rows, columns) == (slice(5, 26), slice(0, 32)) and placed == (slice(0, 21), slice(0, 32))
    assert layout.map_shape == (21, 32)
    np.testing.assert_allclose(layout.map_box, [0, -30, 1024, 642], atol=0.01)


def test_boxes_go_back_to_pixels_of_the_image():
    layout = windows.fitted((200, 100), WINDOW)  # 128 x 64, 32 to the left
    boxes = np.float32([[32, 0, 96, 128], [0, 64, 64, 256]])
    np.testing.assert_allclose(
        layout.to_image(boxes, layout.corners[0]), [[0, 0, 100, 200], [0, 100, 50, 200]]
    )
    layout = windows.tiled((200, 300), WINDOW)
    np.testing.assert_allclose(
        layout.to_image(np.float32([[1, 2, 3, 4]]), layout.corners[1]), [[65, 2, 67, 4]]
    )


@pytest.mark.parametrize("size", [(16, 16), (17, 400), (128, 128), (129, 127), (300, 200), (512, 500)])
@pytest.mark.parametrize("lay", [windows.fitted, windows.tiled])
def test_every_pixel_is_seen_and_every_cell_of_the_map_has_its_place(size, lay):
    y, x = np.indices(size)
    image = np.stack([y // 2, x // 2, np.full(size, 255)], axis=-1).astype(np.uint8)
    layout = lay(size, WINDOW)
    resized = layout.resized(image)
    seen, filled = np.zeros(layout.scaled, bool), np.zeros(layout.map_shape, int)
    for corner in layout.corners:
        picture = layout.picture(resized, corner)
        assert picture.shape == (*WINDOW, 3)
        shown = picture[..., 2] == 255
        rows, columns = np.nonzero(shown)
        assert np.array_equal(picture[rows, columns], resized[rows + corner[1], columns + corner[0]])
        seen[rows + corner[1], columns + corner[0]] = True
        cells, placed = layout.cells(corner)
        want = shown.reshape(8, 16, 8, 16).any(axis=(1, 3))
        got = np.zeros((8, 8), bool)
        got[cells] = True
        np.testing.assert_array_equal(got, want)
        filled[placed] += 1
        # a cell and its place on the map are the same pixels of the image
        inside = np.float32([16 * cells[1].start, 16 * cells[0].start])
        step = (layout.map_box[2:] - layout.map_box[:2]) / layout.map_shape[::-1]
        begin = layout.map_box[:2] + step * [placed[1].start, placed[0].start]
        scale = np.array(layout.scaled[::-1]) / size[::-1]
        np.testing.assert_allclose((inside + corner) / scale, begin, atol=1e-3)
    assert seen.all() and filled.min() == 1


def test_neighbouring_windows_share_half():
    layout = windows.tiled((128, 300), WINDOW)
    assert [x for x, _ in layout.corners] == [0, 64, 128, 176]  # the last one ends with the grid
    assert windows.tiled((40, 40), WINDOW).corners == [(-32, -32)]


def test_boxes_at_an_inner_edge_are_cut():
    layout = windows.tiled((128, 300), WINDOW)
    boxes = np.float32([[0, 0, 128, 128], [20, 0, 100, 128], [0, 5, 50, 50], [60, 5, 125, 50]])
    assert layout.cut(boxes, layout.corners[0]).tolist() == [True, False, False, True]
    assert layout.cut(boxes, layout.corners[1]).tolist() == [True, False, True, True]
    assert layout.cut(boxes, layout.corners[3]).tolist() == [True, False, True, False]
    whole = windows.fitted((500, 300), WINDOW)
    assert not whole.cut(boxes, whole.corners[0]).any()


def test_a_whole_object_wins_over_its_parts_of_other_windows():
    boxes = np.float32(
        [[0, 0, 60, 60], [0, 0, 30, 60], [200, 0, 260, 60], [202, 0, 262, 60], [100, 0, 120, 60]]
    )
    scores = np.float32([0.6, 0.9, 0.7, 0.8, 0.95])
    cut = np.array([False, True, False, False, True])
    assert windows.merge(boxes, scores, cut, iou=0.5).tolist() == [4, 3, 0]
    assert windows.merge(boxes, scores, np.zeros(5, bool), iou=0.5).tolist() == [4, 1, 3, 0]
    assert windows.merge(boxes[:0], scores[:0], cut[:0], iou=0.5).tolist() == []


@pytest.mark.parametrize("size", [(30, 50), (321, 200), (7, 9), (400, 31)])
def test_images_are_fitted_as_the_requests_of_the_matcher_are(size):
    image = np.random.default_rng(0).integers(0, 255, (*size, 3)).astype(np.uint8)
    layout = windows.fitted(size, WINDOW)
    canvas, _, _ = transforms.letterbox_centred(image, WINDOW, fill=windows.FILLING)
    np.testing.assert_array_equal(layout.picture(layout.resized(image), layout.corners[0]), canvas)
