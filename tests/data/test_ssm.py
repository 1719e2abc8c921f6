"""SSM batches: pairs are what they say, shapes, rows independent of processes, fixed crops, bad inputs."""

import logging
import pickle

import numpy as np
import pytest
from ml_collections import ConfigDict

from sm_jax import data
from sm_jax.data import pipeline, ssm
from sm_jax.errors import ConfigError, DataError
from tests.data import makers
from tests.data.painted import GROUND, SCENES, Painted, label_of


def _options(**changes):
    defaults = {"batch_size": 6, "image_size": (96, 112), "request_size": (48, 48), "max_boxes": 4}
    return ssm.BatchOptions(**defaults | changes)


def _rows(builder, batches=10):
    """Rows of several batches, before `finish`."""
    for k in range(batches):
        batch = builder[k]
        for row in range(len(batch["positive"])):
            yield {name: value[row] for name, value in batch.items() if name != ssm.SKIPPED}


def _shown(image):
    """(label, image, row) of every object that has a pixel in an uint8 window."""
    codes = np.unique(image.reshape(-1, 3).astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32))
    pixels = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=-1)
    pixels = pixels[(pixels != GROUND).all(axis=1) & (pixels != 127).all(axis=1)]
    return {(label_of(pixel), int(pixel[1]) // 10, int(pixel[2])) for pixel in pixels}


def _centre(request):
    return request[24, 24]


def test_shapes_types_and_range():
    batch, skipped = ssm.finish(ssm.BatchBuilder(Painted(SCENES), _options())[0])
    expected = {
        "image": ((6, 96, 112, 3), "float32"),
        "request": ((6, 48, 48, 3), "float32"),
        "boxes": ((6, 4, 4), "float32"),
        "valid": ((6, 4), "bool"),
        "positive": ((6,), "bool"),
    }
    assert {name: (value.shape, value.dtype.name) for name, value in batch.items()} == expected
    assert skipped == [] and batch["positive"].sum() == 3
    np.testing.assert_array_equal(batch["valid"].any(axis=1), batch["positive"])
    raw = ssm.BatchBuilder(Painted(SCENES), _options())[0]
    np.testing.assert_array_equal(batch["image"], raw["image"][..., ::-1].astype(np.float32) - 127)


def test_positive_pairs():
    builder = ssm.BatchBuilder(Painted(SCENES), _options(flips=False))
    seen = set()
    for row in _rows(builder, 20):
        if not row["positive"]:
            continue
        label = label_of(_centre(row["request"]))
        number, index = int(_centre(row["request"])[1]) // 10, int(_centre(row["request"])[2])
        shown = _shown(row["image"])
        (image,) = {member for _, member, _ in shown}
        seen.add(label)
        assert row["valid"].any() and any(label == other for other, _, _ in shown)
        if label < 2:
            assert number != image  # another image of the class
        else:
            assert number == image == 4  # its only image: the other object
            assert {(2, 4, 1 - index)} <= shown
        for box in row["boxes"][row["valid"]]:
            x, y = ((box[:2] + box[2:]) / 2).astype(int)
            assert label_of(row["image"][y, x]) == label
        area = (row["boxes"][:, 2:] - row["boxes"][:, :2]).prod(axis=1)
        assert (np.diff(area) <= 0).all() and not row["boxes"][~row["valid"]].any()
    assert seen == {0, 1, 2}


def test_negative_pairs_ask_for_what_the_whole_image_lacks():
    builder = ssm.BatchBuilder(Painted(SCENES), _options(positive_share=0.0))
    asked, around = set(), set()
    for row in _rows(builder, 20):
        label = label_of(_centre(row["request"]))
        (image,) = {member for _, member, _ in _shown(row["image"])}
        assert not row["positive"] and not row["valid"].any() and not row["boxes"].any()
        assert label not in [entry[0] for entry in SCENES[image]]  # difficult ones count as shown
        asked.add(label)
        around.add(image)
    assert asked == {0, 1, 2} and around == {0, 1, 2, 3, 4}


def test_partial_lists_bound_the_negatives():
    scenes = [[(0, (10, 10, 60, 60))], [(0, (10, 10, 60, 60))], [(1, (0, 0, 50, 50))], [(1, (0, 0, 50, 50))]]
    scenes += [[(2, (0, 0, 50, 50))]] * 2
    listed = [np.array([0]), np.array([0, 2]), np.array([1]), np.array([1]), None, np.array([], int)]
    builder = ssm.BatchBuilder(Painted(scenes, listed=listed), _options(positive_share=0.0))
    pairs = {
        (next(iter(_shown(row["image"])))[1], label_of(_centre(row["request"]))) for row in _rows(builder, 20)
    }
    assert pairs == {(1, 2), (4, 0), (4, 1)}


def test_classes_take_turns():
    builder = ssm.BatchBuilder(Painted(SCENES), _options(positive_share=1.0))
    labels = [label_of(_centre(row["request"])) for row in _rows(builder, 8)]
    assert np.bincount(labels).tolist() == [16, 16, 16]


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_share_of_positives_is_exact(share):
    builder = ssm.BatchBuilder(Painted(SCENES), _options(batch_size=4, positive_share=share))
    assert np.concatenate([builder[k]["positive"] for k in range(3)]).mean() == share


def test_class_picture_stands_in_where_a_class_has_a_single_object(caplog):
    scenes = [[(0, (10, 10, 60, 60))], [(1, (10, 10, 60, 60)), (2, (80, 80, 100, 100))]]
    with caplog.at_level(logging.WARNING, "sm_jax.data"):
        builder = ssm.BatchBuilder(Painted(scenes), _options(positive_share=1.0))
    assert "1 classes have no object of at least 32 pixels; their class pictures are requested: class 2" in (
        caplog.text
    )
    assert {(label_of(c), int(c[1])) for c in (_centre(row["request"]) for row in _rows(builder))} == {
        (0, 240),
        (1, 240),
        (2, 240),
    }


def test_tiny_requests_are_never_used(caplog):
    scenes = [[(0, (0, 0, 31, 90))], [(0, (0, 0, 20, 20)), (1, (50, 50, 100, 100))], [(1, (0, 0, 60, 60))]]
    with caplog.at_level(logging.WARNING, "sm_jax.data"):
        builder = ssm.BatchBuilder(Painted(scenes, query=(20, 20)), _options())
    assert "left out: class 0" in caplog.text
    assert {label_of(_centre(row["request"])) for row in _rows(builder) if row["positive"]} == {1}


def test_nothing_makes_a_pair():
    tiny = Painted([[(0, (0, 0, 20, 20))], [(1, (0, 0, 20, 20))]], query=(9, 9))
    with pytest.raises(DataError, match=r"no class makes a positive pair.*lower data.min_request"):
        ssm.BatchBuilder(tiny, _options())
    for scenes in ([[], []], [[(0, (0, 0, 50, 50), True)]]):
        with pytest.raises(DataError, match="no box that is not difficult"):
            ssm.BatchBuilder(Painted(scenes), _options())
    with pytest.raises(DataError, match="no pictures"):
        ssm.BatchBuilder(Painted([]), _options())


def test_no_negatives_is_one_clear_line():
    same = [[(0, (0, 0, 50, 50)), (1, (60, 60, 110, 110))]] * 3
    with pytest.raises(ConfigError, match="no negative pairs.*data.positive_share=1"):
        ssm.BatchBuilder(Painted(same, num_classes=2), _options())
    builder = ssm.BatchBuilder(Painted(same, num_classes=2), _options(positive_share=1.0))
    assert builder[0]["positive"].all()


def test_boxes_of_which_less_than_a_quarter_shows_are_dropped():
    pair = [(0, (10, 10, 60, 60)), (0, (64, 12, 114, 62))]
    source = Painted([pair, pair], num_classes=1)
    seen = set()
    for row in _rows(ssm.BatchBuilder(source, _options(image_size=(64, 64), positive_share=1.0))):
        objects = row["image"][(row["image"][..., 0] == 10)]
        shares = np.bincount(objects[:, 2], minlength=2) / 2500
        assert row["valid"].sum() == (shares >= 0.25).sum()
        seen.update(np.digitize(shares, [1e-6, 0.25]).tolist())
    assert seen == {0, 1, 2}  # not in the window, hardly, well visible


def test_large_boxes_come_first_and_what_no_window_shows_is_left_out():
    crowd = [(0, (10 * i, 0, 10 * i + 8 - i, 100)) for i in range(6)]
    source = Painted([crowd, [(0, (0, 0, 60, 60))], [(1, (0, 0, 60, 60))]], size=(100, 100))
    options = _options(image_size=(100, 100), max_boxes=3, positive_share=1.0, flips=False)
    widths = [
        (row["boxes"][:, 2] - row["boxes"][:, 0]).tolist()
        for row in _rows(ssm.BatchBuilder(source, options))
        if row["valid"].sum() == 3
    ]
    assert widths and all(found == [8, 7, 6] for found in widths)
    wide = Painted([[(0, (0, 0, 400, 60))]] * 2 + [[(1, (0, 0, 60, 60))]] * 2, size=(100, 400))
    builder = ssm.BatchBuilder(wide, _options(image_size=(64, 64), positive_share=1.0))
    assert builder.pairs.positive.tolist() == [1]  # a window shows at most 64 of 400 pixels


def test_flips_and_jitter():
    source = Painted(SCENES)
    plain = {
        row["request"].tobytes() for row in _rows(ssm.BatchBuilder(source, _options(request_jitter=0.0)))
    }
    moved = {row["request"].tobytes() for row in _rows(ssm.BatchBuilder(source, _options()))}
    assert len(plain) <= 9 < len(moved)


@pytest.mark.parametrize("changes", [{}, {"augment": True, "scale": 1.3}, {"fixed_crops": True}])
def test_processes_build_their_rows_of_the_same_batch(changes):
    broken = [] if changes.get("fixed_crops") else [1]
    options = _options(**changes)
    whole = ssm.BatchBuilder(Painted(SCENES, broken=broken), options, seed=3)
    parts = [
        ssm.BatchBuilder(Painted(SCENES, broken=broken), options, seed=3, process_index=i, process_count=2)
        for i in range(2)
    ]
    for k in (0, 5):
        expected, rows = whole[k], [pickle.loads(pickle.dumps(part))[k] for part in parts]
        for name in expected:
            if name != ssm.SKIPPED:
                np.testing.assert_array_equal(np.concatenate([row[name] for row in rows]), expected[name])
    other = ssm.BatchBuilder(Painted(SCENES, broken=broken), options, seed=4)[0]
    assert any((other[name] != whole[0][name]).any() for name in whole[0] if name != ssm.SKIPPED)


def test_damaged_pictures_are_replaced_and_named():
    builder = ssm.BatchBuilder(Painted(SCENES, broken=[1]), _options())
    batches = [ssm.finish(builder[k]) for k in range(10)]
    assert {entry for _, skipped in batches for entry in skipped} == {
        ("image", "picture 1", "1.jpg: damaged")
    }
    assert all(batch["valid"].any(axis=1).sum() == 3 for batch, _ in batches)
    assert builder.totals == {"image": 5, "class picture": 3}


def test_nothing_readable_gives_grey_negatives_and_stops_the_iterator():
    source = Painted(SCENES, broken=range(5))
    batch, skipped = ssm.finish(ssm.BatchBuilder(source, _options())[0])
    assert not batch["positive"].any() and not batch["valid"].any() and not batch["image"].any()
    assert len(skipped) == 6 * (1 + ssm.MAX_REPLACEMENTS)
    with pipeline.TrainIterator(ssm.BatchBuilder(source, _options())) as iterator:
        with pytest.raises(DataError, match="images cannot be read"):
            next(iterator)


def test_fixed_crops():
    source = Painted(SCENES)
    options = _options(fixed_crops=True, views=3)
    builder = ssm.BatchBuilder(source, options, seed=1)
    windows, requests = ssm.windows(options, source, seed=1), ssm.request_crops(options, source, seed=1)
    assert source.decoded == 0 and len(windows) == 15
    assert len(requests) == 8 + 1  # and the class picture of the class with a single image
    pairs = set()
    for row in _rows(builder, 20):
        assert row.keys() == {"image_row", "request_row", "boxes", "valid", "positive"}
        image, request = windows.picture(row["image_row"]), requests.picture(row["request_row"])
        np.testing.assert_array_equal(image, builder.pairs.windows.picture(row["image_row"]))
        label = label_of(_centre(request))
        assert row["valid"].any() == row["positive"] == (label in {shown for shown, _, _ in _shown(image)})
        for box in row["boxes"][row["valid"]]:
            x, y = ((box[:2] + box[2:]) / 2).astype(int)
            assert label_of(image[y, x]) == label
        pairs.add((int(row["image_row"]), int(row["request_row"])))
        assert requests.instance(int(row["request_row"])).label == label
    assert len(pairs) > 40 and {window for window, _ in pairs} == set(range(15))
    batch, _ = ssm.finish(builder[0])
    assert batch["image_row"].dtype == batch["request_row"].dtype == np.int32


class Stored:
    """Stored features whose every number is the row's."""

    def __init__(self, count, damaged):
        self._count, self._damaged = count, damaged

    def __len__(self):
        return self._count

    def __getitem__(self, row):
        return np.full((1, 1, 1), row, np.float16)

    def damaged(self):
        return self._damaged


def test_damaged_rows_of_fixed_lists_are_never_drawn():
    options = _options(fixed_crops=True)
    lists = ssm.BatchBuilder(Painted(SCENES), options).pairs
    windows, requests = ([0, 1, 2, 3, 5], [2, 4])
    trunk = ssm.Trunk(Stored(len(lists.windows), windows), Stored(len(lists.crops), requests))
    rows = list(_rows(ssm.BatchBuilder(Painted(SCENES), options, trunk=trunk), 20))
    assert not {int(row["image_trunk"][0, 0, 0]) for row in rows} & set(windows)
    assert not {int(row["request_trunk"][0, 0, 0]) for row in rows} & set(requests)
    # The same pairs as without stored features, where nothing is damaged.
    whole = ssm.Trunk(Stored(len(lists.windows), []), Stored(len(lists.crops), []))
    rows = _rows(ssm.BatchBuilder(Painted(SCENES), options, trunk=whole), 5)
    for row, other in zip(rows, _rows(ssm.BatchBuilder(Painted(SCENES), options), 5), strict=True):
        assert row["image_trunk"][0, 0, 0] == other["image_row"]
        assert row["request_trunk"][0, 0, 0] == other["request_row"]
    with pytest.raises(ConfigError, match="fixed_crops"):
        ssm.BatchBuilder(Painted(SCENES), _options(), trunk=whole)
    with pytest.raises(ConfigError, match="fixed_crops"):
        ssm.windows(_options(), Painted(SCENES))


def test_requests_per_class():
    options = _options(fixed_crops=True, requests_per_class=1)
    builder = ssm.BatchBuilder(Painted(SCENES), options)
    crops = [builder.pairs.crops.instance(row) for row in range(len(builder.pairs.crops))]
    assert [crop.label for crop in crops] == [0, 1, 2, 0, 1, 2]
    assert [crop.index >= 0 for crop in crops] == [True] * 3 + [False] * 3


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 0},
        {"max_boxes": 0},
        {"views": 0},
        {"min_request": 0},
        {"image_size": (8, 512)},
        {"request_size": (128, 8)},
        {"positive_share": 1.5},
        {"min_visible": -0.1},
        {"request_jitter": 0.5},
        {"requests_per_class": -1},
        {"scale": float("nan")},
    ],
)
def test_bad_options_name_the_key(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        _options(**changes)


def test_rows_must_divide_over_processes():
    with pytest.raises(ConfigError, match="batch_size=6 does not divide over 4"):
        ssm.BatchBuilder(Painted(SCENES), _options(), process_count=4)


def test_train_iterator_of_a_config(tmp_path):
    root = makers.coco(tmp_path)
    config = ConfigDict(
        {
            "system": "ssm",
            "seed": 0,
            "batch_size": 2,
            "model": {"image_size": (64, 64), "request_size": (32, 32)},
            "data": {
                "source": str(root),
                "scale": 0.0,
                "object_size": 50.0,
                "workers": 0,
                "max_boxes": 3,
                "min_request": 20.0,
                "positive_share": 1.0,
            },
        }
    )
    with data.make_train_iterator(config) as iterator:
        batch = next(iterator)
    assert batch["image"].shape == (2, 64, 64, 3) and batch["boxes"].shape == (2, 3, 4)
    sides = np.sqrt((batch["boxes"][:, 0, 2:] - batch["boxes"][:, 0, :2]).prod(axis=1))
    assert (np.abs(sides - 50) < 3).all()  # both classes are about 34 stored pixels
