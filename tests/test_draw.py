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


@pytest.mark.parametrize("count", [1, 3, 5, 12])
def test_the_panel_leaves_out_only_what_has_no_room(count, monkeypatch):
    """Flat queries need little room: all are shown, or else the last line says how many are not."""
    written = []
    real = draw.ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        draw.ImageDraw.ImageDraw,
        "text",
        lambda pen, at, text, **o: written.append((at, text)) or real(pen, at, text, **o),
    )
    queries = {f"thing {i}": np.zeros((6, 60, 3), np.uint8) for i in range(count)}
    draw.detections(IMAGE, np.zeros((0, 4)), labels=[], queries=queries)
    names = [text for _, text in written if text.startswith("thing")]
    more = [text for _, text in written if text.startswith("and ")]
    lowest = max(at[1] for at, text in written if "found" in text)
    assert lowest < IMAGE.shape[0] - 10
    if len(names) < count:
        assert more == [f"and {count - len(names)} more"]
        room = (IMAGE.shape[0] - lowest) / (lowest / len(names))
        assert room < 1.6  # not another entry and this line
    else:
        assert not more
    assert count > 5 or len(names) == count


def test_the_panel_shows_phrases_in_their_colours():
    phrases = dict.fromkeys(["the red circles", "where are all of the rather long descriptions " * 3])
    panel = np.asarray(draw.detections(IMAGE, np.zeros((0, 4)), labels=[], queries=phrases), int)[:, :-700]
    for index in range(2):
        assert (np.abs(panel - np.array(draw.colour_of(index))).sum(axis=-1) == 0).sum() > 60


def test_a_word_of_any_length_is_cut_at_once():
    names = dict.fromkeys(["a" * 1_000_000])
    draw.detections(IMAGE, np.zeros((0, 4)), labels=[], queries=names)


def test_equal_boxes_lie_inside_one_another():
    """Two phrases that mean one object: both colours and both captions are seen."""
    boxes = np.tile(np.array([[200, 100, 400, 250]], np.float32), (2, 1))
    for labels in (["a", "b"], ["b", "a"]):
        picture = draw.detections(IMAGE, boxes, labels=labels, scores=np.array([0.9, 0.8]))
        pixels = np.asarray(picture, int)
        for index in range(2):
            near = np.abs(pixels - np.array(draw.colour_of(index))).sum(axis=-1) < 30
            assert near[90:260, 190:410].sum() > 500  # the frame
            assert near[:130].sum() - near[130:160].sum() > 100  # the caption
