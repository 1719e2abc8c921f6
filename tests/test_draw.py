"""Pictures of detections: right colours at right places, and no input that breaks them."""

import numpy as np
import pytest

from sm_jax import draw

IMAGE = np.full((300, 700, 3), 128, np.uint8)


def test_boxes_are_drawn_in_the_colour_of_their_label():
    boxes = np.array([[50, 50, 150, 150], [300, 100, 400, 200]], np.float32)
    picture = np.asarray(draw.detections(IMAGE, boxes, labels=["a", "b"], scores=np.array([0.9, 0.8])), int)
    assert picture.shape == IMAGE.shape
    for box, index in zip(boxes.astype(int), (0, 1), strict=True):
        line = picture[(box[1] + box[3]) // 2, box[0] : box[0] + 2]
        assert np.abs(line - np.array(draw.colour_of(index))).sum(axis=-1).min() < 60
    untouched = picture[280:, 600:]
    assert np.all(untouched == 128)


def test_a_panel_shows_the_queries():
    query = np.zeros((50, 20, 3), np.uint8)
    plain = draw.detections(IMAGE, np.zeros((0, 4)), labels=[])
    panel = draw.detections(IMAGE, np.zeros((0, 4)), labels=[], queries={"thing": query})
    assert panel.height == plain.height and panel.width > plain.width
    assert (np.asarray(panel)[:, :100].sum(axis=-1) == 0).sum() > 200  # the black query


@pytest.mark.parametrize("size", [(1, 1), (20, 3000), (2000, 30)])
@pytest.mark.parametrize("queries", [0, 1, 40])
def test_odd_sizes_and_boxes_do_not_break_it(size, queries):
    boxes = np.array([[-50, -50, 1e5, 1e5], [5, 5, 2, 2], [0, 0, 0, 0]], np.float32)
    corners = np.tile(np.array([[-5, -5], [1e4, 3], [4, 4], [0, 1e4]], np.float32), (3, 1, 1))
    names = {f"a rather long name of a thing {i}": np.zeros((3 + i, 9, 3), np.uint8) for i in range(queries)}
    label = next(iter(names), "x")
    picture = draw.detections(
        np.zeros((*size, 3), np.uint8),
        boxes,
        labels=[label] * 3,
        scores=np.array([0.5, 0.6, 0.7]),
        corners=corners,
        queries=names or None,
        truth=boxes,
    )
    assert picture.mode == "RGB"
