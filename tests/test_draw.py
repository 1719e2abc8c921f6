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


@pytest.mark.parametrize("height", range(150, 420, 6))
def test_the_panel_leaves_out_only_what_has_no_room(height, monkeypatch):
    """Flat queries need little room: all are shown, or else the last line says how many are not."""
    written = []
    real = draw.ImageDraw.ImageDraw.text

    def text(pen, at, words, **options):
        written.append((at[1], words))
        real(pen, at, words, **options)

    monkeypatch.setattr(draw.ImageDraw.ImageDraw, "text", text)
    queries = {f"thing {i}": np.zeros((6, 60, 3), np.uint8) for i in range(6)}
    image = np.full((height, 700, 3), 128, np.uint8)
    draw.detections(image, np.zeros((0, 4)), labels=[], queries=queries)
    names = [y for y, words in written if words.startswith("thing")]
    counts = [y for y, words in written if words.endswith("found")]
    more = [(y, words) for y, words in written if words.startswith("and ")]
    line, pitch = counts[0] - names[0], (names[-1] - names[0]) / max(1, len(names) - 1)
    hidden = 6 - len(names)
    if hidden:
        ((y, words),) = more
        assert words == f"and {hidden} more" and counts[-1] + line <= y
        assert counts[-1] + line + hidden * pitch > height - 12  # all six have no room
        assert counts[-1] + 2 * line + pitch > height - 30  # nor has one more and this line
    else:
        assert not more and counts[-1] + line <= height


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


def test_captions_of_ones_own_replace_label_and_score():
    boxes, options = np.array([[50, 100, 250, 250]], np.float32), {"labels": ["a"], "scores": np.array([0.5])}
    plain, none, own = (
        np.asarray(draw.detections(IMAGE, boxes, **options, captions=captions))
        for captions in (None, [""], ["two\nlines of text"])
    )

    def rows(picture):
        """How many rows above the box have the colour of the caption."""
        return int(
            (np.abs(picture[:95, 60:80].astype(int) - draw.colour_of(0)).sum(axis=-1) < 9).any(1).sum()
        )

    assert rows(none) == 0 < rows(plain) < rows(own)


def test_a_title_stands_above_and_is_cut_to_the_width():
    picture = draw.detections(IMAGE, np.zeros((0, 4)), labels=[])
    short, long = draw.titled(picture, "a phrase"), draw.titled(picture, "a phrase " * 100)
    band = short.height - picture.height
    assert band > 0 and short.size == long.size and short.width == picture.width
    assert np.array_equal(np.asarray(short)[band:], np.asarray(picture))
    ink = [(np.asarray(page)[:band] < 100).any(axis=(0, 2)) for page in (short, long)]
    assert 0 < ink[0].sum() < ink[1].sum() and not ink[1][-5:].any()


def test_heat_lies_where_its_map_does_in_the_colour_of_the_highest_label():
    maps = {"a": np.zeros((2, 4), np.float32), "b": np.zeros((2, 4), np.float32)}
    maps["a"][0, 0], maps["b"][0, 0], maps["b"][1, 3] = 1.0, 0.4, 1.0
    image, box = np.full((100, 200, 3), 200, np.uint8), np.array([20, 10, 180, 90])  # cells of 40 pixels

    def full(index):
        return 200 + draw.HEAT * (np.array(draw.colour_of(index)) - 200)

    picture = draw.heat(image, maps, box).astype(float)
    assert np.abs(picture[29:31, 39:41] - full(0)).max() < 6  # the middle of the first cell
    assert np.abs(picture[69:71, 159:161] - full(1)).max() < 6
    assert np.all(picture[:, 95:105] == 200) and np.all(picture[:30, 105:] == 200)
    second = draw.heat(image, {"b": maps["b"]}, box, names=["a", "b"]).astype(float)
    assert np.abs(second[69:71, 159:161] - full(1)).max() < 6
    assert np.array_equal(draw.heat(image, {}, box), image)


def test_a_map_is_spread_as_interpolation_between_its_cells():
    """Against the plain definition: cell centres at the middle of their squares, 0 one cell outside."""
    rng = np.random.default_rng(0)
    layer, box, size = rng.random((3, 5)).astype(np.float32), (-7.0, 4.0, 43.0, 31.0), (40, 50)
    padded = np.pad(layer, 1)
    y = np.clip((np.arange(size[0]) + 0.5 - box[1]) / 9 + 0.5, 0, 3.999)
    x = np.clip((np.arange(size[1]) + 0.5 - box[0]) / 10 + 0.5, 0, 5.999)
    rows = np.array([np.interp(y, np.arange(5), column) for column in padded.T]).T
    want = np.array([np.interp(x, np.arange(7), row) for row in rows])
    got = draw._spread(layer, box, size)
    inside = np.s_[5:30, 1:42]
    np.testing.assert_allclose(got[inside], want[inside], atol=1e-5)
    assert np.all(got[37:] == 0) and np.all(got[:, 48:] == 0)
