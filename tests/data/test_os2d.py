"""Batches: fixed shapes, the published class batch, exact geometry, rows independent of processes."""

import numpy as np
import pytest

from sm_jax.data import os2d, sources, transforms
from sm_jax.data.measure import measure, query_canvas
from sm_jax.data.patches import HardPatches
from sm_jax.errors import ConfigError, DataError, ImageError
from tests.data import makers


class FakeSource:
    """Picture i (value 10 + i) shows class i % num_classes in a box, and class 0 in a difficult one."""

    def __init__(self, count=7, num_classes=5, broken=(), size=(60, 80)):
        self.num_classes, self._count, self._broken, self._size = num_classes, count, set(broken), size
        self.class_names = [f"class {label}" for label in range(num_classes)]

    def __len__(self):
        return self._count

    def annotation(self, index):
        return {
            "image_id": f"picture {index}",
            "size": self._size,
            "boxes": np.array([[20, 20, 40, 40], [50, 5, 70, 25]], np.float32),
            "labels": np.array([index % self.num_classes, 0], np.int32),
            "difficult": np.array([False, True]),
        }

    def image(self, index):
        if index in self._broken:
            raise ImageError(f"{index}.jpg: damaged")
        return np.full((*self._size, 3), 10 + index, np.uint8)

    def query(self, label):
        if f"query {label}" in self._broken:
            raise ImageError(f"class {label}.jpg: damaged")
        return np.full((30, 40 + label, 3), 100 + label, np.uint8)


def _options(**changes):
    defaults = {"scale": 2.0, "canvas": (64, 64), "batch_size": 4, "class_batch_size": 3, "crop": (48, 64)}
    return os2d.BatchOptions(**defaults | {"query_side": 32, "max_boxes": 5} | changes)


def test_shapes_types_and_padding():
    batch, skipped = os2d.finish(os2d.BatchBuilder(FakeSource(), _options())[0])
    expected = {
        "image": ((4, 48, 64, 3), "float32"),
        "size": ((4, 2), "int32"),
        "boxes": ((4, 5, 4), "float32"),
        "labels": ((4, 5), "int32"),
        "difficult": ((4, 5), "bool"),
        "boxes_valid": ((4, 5), "bool"),
        "query": ((3, 64, 64, 3), "float32"),
        "query_size": ((3, 2), "int32"),
        "query_valid": ((3,), "bool"),
        "class_ids": ((3,), "int32"),
        "valid": ((4,), "bool"),
    }
    assert {name: (value.shape, value.dtype.name) for name, value in batch.items()} == expected
    assert skipped == [] and batch["valid"].all()
    np.testing.assert_array_equal(batch["boxes_valid"], [[True, True, False, False, False]] * 4)
    assert (batch["labels"][~batch["boxes_valid"]] == -1).all() and not batch["boxes"][:, 2:].any()
    for query, (height, width), valid in zip(
        batch["query"], batch["query_size"], batch["query_valid"], strict=True
    ):
        assert query[:height, :width].all() == valid
        assert not query[height:].any() and not query[:, width:].any()


def test_every_epoch_shows_every_image_once():
    builder = os2d.BatchBuilder(FakeSource(7), _options())
    picks = np.array([builder.picks(k) for k in range(7)]).reshape(4, 7)
    np.testing.assert_array_equal(np.sort(picks, axis=1), [range(7)] * 4)
    assert len({tuple(epoch) for epoch in picks}) > 1
    other = os2d.BatchBuilder(FakeSource(7), _options(), seed=1)
    assert [other.picks(k) for k in range(7)] != [builder.picks(k) for k in range(7)]


def test_class_batch_is_the_classes_of_the_images():
    builder = os2d.BatchBuilder(FakeSource(7, 7), _options(class_batch_size=6))
    batch = builder[3]
    shown = sorted({0} | set(builder.picks(3)))
    np.testing.assert_array_equal(batch["class_ids"], shown + [-1] * (6 - len(shown)))
    np.testing.assert_array_equal(batch["query_valid"], batch["class_ids"] >= 0)
    small = os2d.BatchBuilder(FakeSource(7, 7), _options(class_batch_size=2))
    kept = [tuple(small[k]["class_ids"]) for k in range(10)]
    assert all(list(pair) == sorted(pair) for pair in kept) and len(set(kept)) > 3
    assert any(0 not in pair for pair in kept)  # cut at random, not by order


def test_labels_point_at_the_right_query():
    source = FakeSource(40, 11)
    builder = os2d.BatchBuilder(source, _options(class_batch_size=4))
    seen = set()
    for k in range(12):
        batch = builder[k]
        picks = builder.picks(k)
        for row, index in enumerate(picks):
            for box, label, valid in zip(
                batch["boxes"][row], batch["labels"][row], batch["boxes_valid"][row], strict=True
            ):
                seen.add(min(int(label), 0))
                if valid and label >= 0:
                    assert batch["class_ids"][label] in source.annotation(index)["labels"]
                    assert batch["query"][label, 0, 0, 0] == 100 + batch["class_ids"][label]
                    assert box[2] > box[0]
        assert (batch["image"][:, 0, 0, 0] == [10 + index for index in picks]).all()
    assert seen == {0, -1, -2}  # found, class not in the batch, cut off by the crop


def test_boxes_stay_on_their_pixels():
    class Marked(FakeSource):
        def image(self, index):
            image = np.zeros((60, 80, 3), np.uint8)
            image[20:40, 20:40] = 255
            return image

        def annotation(self, index):
            entry = super().annotation(index)
            return entry | {key: entry[key][:1] for key in ("boxes", "labels", "difficult")}

    for flips in (False, True):
        builder = os2d.BatchBuilder(Marked(), _options(flips=flips, crop=(96, 96), batch_size=1))
        for k in range(8):
            batch = builder[k]
            if not batch["boxes_valid"][0, 0]:
                continue
            x1, y1, x2, y2 = np.clip(batch["boxes"][0, 0], 0, 96)
            ys, xs = np.nonzero(batch["image"][0, ..., 0] > 127)
            np.testing.assert_allclose(
                [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], [x1, y1, x2, y2], atol=1.5
            )


def test_flips_are_shared_by_the_whole_batch():
    class Halves(FakeSource):
        def image(self, index):
            image = np.zeros((600, 800, 3), np.uint8)
            image[:, :400, 0] = 255
            image[:300, :, 1] = 255
            return image

        def annotation(self, index):
            return super().annotation(index) | {"boxes": np.array([[350, 250, 450, 350]] * 2, np.float32)}

        def query(self, label):
            return self.image(0)

    builder = os2d.BatchBuilder(Halves(), _options(flips=True, scale=0.1, crop=(64, 64)))
    seen = set()
    for k in range(30):
        batch = builder[k]
        rows = (
            list(batch["image"])
            + [
                query[:height, :width]
                for query, (height, width) in zip(batch["query"], batch["query_size"], strict=True)
            ][: int(batch["query_valid"].sum())]
        )
        left = {bool(row[:, 0, 0].mean() > row[:, -1, 0].mean()) for row in rows}
        top = {bool(row[0, :, 1].mean() > row[-1, :, 1].mean()) for row in rows}
        assert len(left) == len(top) == 1
        seen.add((left.pop(), top.pop()))
    assert len(seen) == 4


@pytest.mark.parametrize("changes", [{}, {"flips": True, "color": True, "query_crops": True}])
def test_processes_build_their_rows_of_the_same_batch(changes):
    options = _options(class_batch_size=4, **changes)
    whole = os2d.BatchBuilder(FakeSource(9, broken=[3]), options)
    parts = [
        os2d.BatchBuilder(FakeSource(9, broken=[3]), options, process_index=i, process_count=2)
        for i in range(2)
    ]
    for k in (0, 5):
        expected = whole[k]
        rows = [part[k] for part in parts]
        for name in expected:
            if name != os2d.SKIPPED:
                np.testing.assert_array_equal(np.concatenate([row[name] for row in rows]), expected[name])


def test_rebuilding_is_bitwise():
    options = _options(flips=True, color=True, query_crops=True)
    first, second = (os2d.BatchBuilder(FakeSource(), options, seed=3)[17] for _ in range(2))
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_corrupt_images_are_replaced_and_named():
    builder = os2d.BatchBuilder(FakeSource(6, broken=[2]), _options())
    batches = [os2d.finish(builder[k]) for k in range(6)]
    names = {entry for _, skipped in batches for entry in skipped}
    assert names == {("image", "picture 2", "2.jpg: damaged")}
    assert all(batch["valid"].all() for batch, _ in batches)
    assert not any((builder[k]["image"] == 12).any() for k in range(6))


def test_nothing_readable_gives_an_invalid_row():
    batch, skipped = os2d.finish(os2d.BatchBuilder(FakeSource(3, broken=range(3)), _options())[0])
    assert not batch["valid"].any() and not batch["boxes_valid"].any() and not batch["image"].any()
    assert len(skipped) == 4 * (1 + os2d.MAX_REPLACEMENTS)


def test_corrupt_class_picture_is_an_invalid_query():
    batch, skipped = os2d.finish(os2d.BatchBuilder(FakeSource(broken=["query 0"]), _options())[0])
    row = int(np.flatnonzero(batch["class_ids"] == 0)[0])
    assert not batch["query_valid"][row] and not batch["query"][row].any()
    assert batch["query_size"][row].min() > 0
    assert skipped == [("class picture", "class 0", "class 0.jpg: damaged")]


def test_too_many_boxes_keep_those_that_count():
    class Crowded(FakeSource):
        def annotation(self, index):
            entry = super().annotation(index)
            boxes = np.array([[500, 500, 510, 510]] * 9 + [[10, 10, 70, 50]], np.float32)
            labels = np.array([1] * 9 + [2], np.int32)
            return entry | {"boxes": boxes, "labels": labels, "difficult": np.zeros(10, bool)}

    options = _options(max_boxes=2, scale=0.5, crop=(64, 64))
    batch = os2d.BatchBuilder(Crowded(), options)[0]
    assert (batch["class_ids"] == [1, 2, -1]).all()
    assert (batch["labels"] == 1).any(axis=1).all()


def test_images_without_boxes():
    class Empty(FakeSource):
        def annotation(self, index):
            nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool)
            entry = dict(zip(("boxes", "labels", "difficult"), nothing, strict=True))
            return super().annotation(index) | entry

    batch, _ = os2d.finish(os2d.BatchBuilder(Empty(), _options())[0])
    assert batch["valid"].all() and not batch["boxes_valid"].any() and not batch["query_valid"].any()
    with pytest.raises(DataError, match="cannot be measured"):
        measure(Empty())


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 0},
        {"class_batch_size": 0},
        {"crop": (8, 600)},
        {"scale_jitter": 0.0},
        {"aspect_jitter": 1.5},
        {"cut_coverage": 0.9},
        {"scale": float("nan")},
        {"max_boxes": 0},
    ],
)
def test_bad_options_name_the_key(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        _options(**changes)


def test_rows_must_divide_over_processes():
    with pytest.raises(ConfigError, match="class_batch_size=3 does not divide over 2"):
        os2d.BatchBuilder(FakeSource(), _options(), process_count=2)
    with pytest.raises(DataError, match="no pictures"):
        os2d.BatchBuilder(FakeSource(0), _options())


def test_measure(tmp_path):
    source = sources.open_source(makers.voc(tmp_path, 5), split="all")
    found = measure(source, object_size=240)
    sizes = [np.sqrt(40 * 28)] * 5 + [np.sqrt(30 * 40)] * 4  # picture 0's dog is difficult
    assert found.object_size == pytest.approx(np.median(sizes), rel=1e-6)
    assert found.scale == pytest.approx(240 / np.median(sizes), rel=1e-6) and found.num_boxes == 9


def test_query_canvas():
    class Shapes(FakeSource):
        def __init__(self, *shapes, broken=()):
            super().__init__(num_classes=len(shapes), broken=broken)
            self.shapes = shapes

        def query_size(self, label):
            if label in self._broken:
                raise ImageError("damaged")
            return self.shapes[label]

    assert query_canvas(Shapes((100, 100), (90, 110))) == (256, 288)
    assert query_canvas(Shapes((100, 300))) == (160, 416)
    assert query_canvas(Shapes((10, 1000), (1000, 10))) == (480, 480)
    assert query_canvas(Shapes((10, 1000), (100, 100), broken=[0])) == (256, 256)
    assert query_canvas(FakeSource(), side=32) == (32, 64)
    for shape in ((10, 1000), (77, 99), (1000, 3)):
        canvas = query_canvas(Shapes(shape))
        fitted = transforms.fit_query(shape, canvas)
        assert fitted[0] <= canvas[0] and fitted[1] <= canvas[1]


# hard patches -------------------------------------------------------------------------------------


def _memory(count=7, **items):
    """Image i has a "neg" of class 3 and a "pos" of class 4 at (2 i, 0); `items` replaces those of one."""
    memory = HardPatches.empty(count, 2)
    for index in range(count):
        for role, label in items.get(f"image{index}", {0: 3, 1: 4}).items():
            memory.labels[index, role, 0] = label
            memory.crops[index, role, 0] = [2 * index, 0, 2 * index + 24, 32]
    return memory


def _mined(memory, source=None, **changes):
    defaults = {"batch_size": 3, "class_batch_size": 4, "hard_patches": True}
    return os2d.BatchBuilder(source or FakeSource(), _options(**defaults | changes)).with_memory(memory)


def test_the_first_half_takes_negatives_the_rest_positives():
    builder = _mined(_memory())
    for k in range(5):
        patches = builder.patches(k, builder.picks(k))
        assert [patch.role for patch in patches] == ["neg", "pos", "pos"]  # floor(3 / 2) negatives
        assert {3, 4} <= set(builder[k]["class_ids"].tolist())
    only_neg = _mined(_memory(**{f"image{i}": {0: 1} for i in range(7)}))
    assert [patch.role for patch in only_neg.patches(0, only_neg.picks(0))] == ["neg"] * 3
    only_loc = _mined(_memory(**{f"image{i}": {2: 1} for i in range(7)}))
    assert [patch.role for patch in only_loc.patches(0, only_loc.picks(0))] == ["pos_loc"] * 3


def test_a_patch_replaces_the_random_crop():
    class Ramp(FakeSource):
        def image(self, index):
            return np.broadcast_to(np.arange(80, dtype=np.uint8)[None, :, None], (60, 80, 3)).copy()

    builder = _mined(_memory(), Ramp(), crop=(32, 24))
    batch = builder[2]
    for row, index in enumerate(builder.picks(2)):
        expected = np.arange(2 * index, 2 * index + 24, dtype=np.uint8)
        np.testing.assert_array_equal(batch["image"][row, 5, :, 0], expected)
        box = Ramp().annotation(index)["boxes"][0] - np.float32([2 * index, 0, 2 * index, 0])
        assert box.tolist() in batch["boxes"][row].tolist()


def test_what_lies_beyond_the_image_is_black():
    memory = _memory()
    memory.crops[...] = [50, 40, 98, 104]  # 48 x 64 of which 30 x 20 are inside
    batch = _mined(memory, crop=(64, 48))[0]
    assert batch["image"][:, :20, :30].all()
    assert not batch["image"][:, 20:].any() and not batch["image"][:, :, 30:].any()


def test_images_without_patches_take_random_crops():
    plain = os2d.BatchBuilder(FakeSource(), _options(batch_size=3, class_batch_size=4))
    for memory in (None, HardPatches.empty(7, 2)):
        mined = _mined(memory)
        for k in range(3):
            for name, value in plain[k].items():
                np.testing.assert_array_equal(mined[k][name], value)


def test_forced_classes_take_places_of_the_class_batch():
    builder = os2d.BatchBuilder(FakeSource(7, 9), _options(class_batch_size=3))
    rng = np.random.default_rng(0)
    assert builder.class_batch([1, 2], rng, [8, 7, 8]).tolist() == [7, 8, -1]  # 3 items: no place left
    found = {tuple(builder.class_batch([1, 2], rng, [8])) for _ in range(30)}
    assert found == {(0, 1, 8), (0, 2, 8), (1, 2, 8)}
    assert builder.class_batch([1], rng, [1]).tolist() in ([0, 1, -1], [1, -1, -1])


def test_a_replaced_image_drops_the_patch():
    batches = [_mined(_memory(6), FakeSource(6, broken=[2]))[k] for k in range(4)]
    assert all(batch["valid"].all() for batch in batches)


def test_processes_choose_the_same_patches():
    options = _options(class_batch_size=4, hard_patches=True)
    whole = os2d.BatchBuilder(FakeSource(), options).with_memory(_memory())
    parts = [
        os2d.BatchBuilder(FakeSource(), options, process_index=i, process_count=2).with_memory(_memory())
        for i in range(2)
    ]
    for name, value in whole[3].items():
        if name != os2d.SKIPPED:
            rows = np.concatenate([part[3][name] for part in parts])
            np.testing.assert_array_equal(rows, value)


def test_memory_must_fit():
    with pytest.raises(DataError, match="of 5 training pictures, the split has 7"):
        _mined(_memory(5))
    assert os2d.BatchBuilder(FakeSource(), _options()).with_memory(_memory()).memory is None
    assert _mined(_memory().json)[1]["image"].tobytes() == _mined(_memory())[1]["image"].tobytes()
    with pytest.raises(
        ConfigError, match="class_batch_size=3: hard-patch mining needs at least batch_size=4"
    ):
        _options(hard_patches=True)


# class pictures cut from the training images ------------------------------------------------------


def test_extra_class_pictures_are_the_boxes_that_are_not_difficult():
    """Class 1 is in the images 1 and 4 of 6, whose pixels are 11 and 14; its own picture is 101."""
    source = FakeSource(6, 3)
    builder = os2d.BatchBuilder(source, _options(extra_query_pictures=True, canvas=(32, 32)))
    seen = {}
    for k in range(80):
        batch = builder[k]
        for row, label in enumerate(batch["class_ids"]):
            if label >= 0:
                seen.setdefault(int(label), []).append(int(batch["query"][row, 0, 0, 0]))
    assert {label: set(values) for label, values in seen.items()} == {
        0: {100, 10, 13},
        1: {101, 11, 14},
        2: {102, 12, 15},
    }
    counts = np.unique(seen[1], return_counts=True)[1] / len(seen[1])
    assert (counts > 0.15).all()  # uniform over the three, by far fewer than 80 draws would allow else


def test_an_extra_class_picture_that_cannot_be_read_gives_way_to_the_given_one():
    source = FakeSource(6, 3, broken=[1, 4])
    builder = os2d.BatchBuilder(source, _options(extra_query_pictures=True, canvas=(32, 32)))
    for k in range(10):
        batch = builder[k]
        for row, label in enumerate(batch["class_ids"]):
            assert label != 1 or batch["query"][row, 0, 0, 0] == 101


def test_the_canvas_holds_the_boxes_too():
    class Wide(FakeSource):
        def annotation(self, index):
            boxes = np.array([[0, 10, 80, 20], [0, 0, 4, 60]], np.float32)  # the second is difficult
            return super().annotation(index) | {"boxes": boxes}

    assert query_canvas(Wide(), side=64) == (64, 96)
    assert query_canvas(Wide(), side=64, boxes=True) == (64, 192)
