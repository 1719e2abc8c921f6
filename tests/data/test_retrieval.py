"""Tuples for retrieval: which pictures, which pairs, which negatives; batches; what is refused."""

import pickle

import numpy as np
import pytest

from sm_jax import boxes as box_ops
from sm_jax.data import retrieval
from sm_jax.data.pipeline import TrainIterator
from sm_jax.data.retrieval import BACKGROUND, BatchBuilder, BatchOptions, Negatives
from sm_jax.errors import ConfigError, DataError
from tests.data.test_os2d import FakeSource


def _options(**changes):
    small = {"side": 32, "batch_size": 2, "negatives": 3, "queries": 6, "pool": 12, "random_crops": 4}
    return BatchOptions(**small | changes)


def _builder(source=None, **changes):
    return BatchBuilder(FakeSource() if source is None else source, _options(**changes))


def test_the_list_holds_class_pictures_boxes_and_random_crops():
    crops = _builder().crops
    assert (crops.image[:5] == -1).all() and crops.labels[:5].tolist() == [0, 1, 2, 3, 4]
    assert crops.image[5:12].tolist() == list(range(7))  # the difficult box is no request
    assert crops.labels[5:12].tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert crops.picture(0).shape == (24, 32, 3) and crops.picture(0).mean() == 100
    assert crops.picture(6).shape == (32, 32, 3) and crops.picture(6).mean() == 11
    assert crops.canvas(0)[:24].all() and not crops.canvas(0)[24:].any()
    again = _builder().crops
    np.testing.assert_array_equal(crops.boxes, again.boxes)


def test_random_crops_are_inside_and_labelled_by_overlap():
    boxes = np.array([[20, 20, 40, 40], [50, 5, 70, 25]], np.float32)
    rng, kinds = np.random.default_rng(0), set()
    for _ in range(50):
        crops, labels = retrieval.random_crops(rng, (60, 80), boxes, np.array([3, 4]), options=_options())
        assert (crops[:, :2] >= 0).all() and (crops[:, 2:] <= [80.01, 60.01]).all()
        overlap = box_ops.iou(crops, boxes)
        for best, label, which in zip(overlap.max(axis=1), labels, overlap.argmax(axis=1), strict=True):
            assert (best > 0.7 and label == 3 + which) or (best <= 0.3 and label == BACKGROUND)
        kinds |= set(labels.tolist())
    assert kinds == {3, 4, BACKGROUND}
    none, _ = retrieval.random_crops(rng, (60, 80), boxes[:0], np.zeros(0, int), options=_options())
    assert none.shape == (0, 4)


def test_an_epoch_pairs_pictures_of_a_class():
    builder = _builder(pool=1000)
    labels = builder.crops.labels
    seen = [builder.epochs[number] for number in range(3)]
    for epoch in seen:
        assert len(epoch.queries) == 6 and len(set(epoch.queries.tolist())) == 6
        assert (labels[epoch.queries] == labels[epoch.positives]).all() and (labels[epoch.queries] >= 0).all()
        assert (epoch.queries != epoch.positives).all()
        assert sorted(epoch.pool.tolist()) == list(range(len(labels)))
    assert seen[0].queries.tolist() != seen[1].queries.tolist()
    assert len(_builder(pool=5).epochs[0].pool) == 5
    assert _builder(accumulate=2).epochs.size == 4  # whole steps


def test_the_hardest_are_of_different_other_classes():
    scores = np.array([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4]], np.float32)
    labels, rows = np.array([7, 1, 1, BACKGROUND, BACKGROUND, 2]), np.arange(10, 16)
    assert retrieval.hardest(scores, [7], labels, rows, 4).tolist() == [[11, 13, 14, 15]]
    assert retrieval.hardest(scores, [7], labels, rows, 5).tolist() == [
        [11, 13, 14, 15, 12]
    ]  # then the others
    assert retrieval.hardest(scores, [1], labels, rows, 6).tolist() == [[10, 13, 14, 15, -1, -1]]


def test_shapes_and_types():
    builder = _builder()
    batch, skipped = builder.finish(builder[0])
    expected = {
        "image": ((2, 5, 32, 32, 3), "float32"),
        "size": ((2, 5, 2), "int32"),
        "valid": ((2, 5), "bool"),
    }
    assert {name: (value.shape, value.dtype.name) for name, value in batch.items()} == expected
    assert skipped == [] and batch["valid"].all()
    for image, (height, width) in zip(
        batch["image"].reshape(-1, 32, 32, 3), batch["size"].reshape(-1, 2), strict=True
    ):
        assert image[:height, :width].all() and not image[height:].any() and not image[:, width:].any()


def test_batches_take_the_negatives_of_their_epoch():
    builder = _builder()
    assert builder.every == 3
    rows = np.arange(18).reshape(6, 3) % len(builder.crops)
    rows[2, 1] = -1
    mined = builder.with_memory(Negatives(3, 1, rows))
    batch, _ = mined.finish(mined[4])  # tuples 2 and 3 of epoch 1
    assert batch["valid"][0].tolist() == [True, True, True, False, True]
    expected = [builder.crops.canvas(row) for row in rows[3]]
    np.testing.assert_array_equal(batch["image"][1, 2:], expected)
    np.testing.assert_array_equal(mined[0]["image"], builder[0]["image"])  # of another epoch: random ones


def test_every_process_builds_its_rows():
    source = FakeSource()
    whole = BatchBuilder(source, _options())[1]
    halves = [BatchBuilder(source, _options(), process_index=i, process_count=2)[1] for i in range(2)]
    for name in ("image", "size", "valid"):
        np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), whole[name])
    with pytest.raises(ConfigError, match="batch_size=3 does not divide over 2 processes"):
        BatchBuilder(source, _options(batch_size=3), process_count=2)


def test_the_memory_is_part_of_the_position():
    builder = _builder()
    rows = np.ones((6, 3), np.int64)
    first = TrainIterator(builder)
    first.remember(Negatives(0, 0, rows))
    next(first)
    state = first.get_state()
    expected = next(first)
    second = TrainIterator(_builder())
    second.set_state(state)
    np.testing.assert_array_equal(next(second)["image"], expected["image"])
    assert second.memory.rows.tolist() == rows.tolist() and second.memory.step == 0
    for iterator in (first, second):
        iterator.close()
    pickle.dumps(builder)


@pytest.mark.parametrize("memory", [{"rows": 3}, {"step": 0, "epoch": 0, "rows": [[1, 2, 3]]}])
def test_a_memory_of_other_data_is_refused(memory):
    with pytest.raises(DataError, match="negatives"):
        _builder().with_memory(memory)


def test_damaged_pictures_are_left_out_and_named():
    builder = _builder(FakeSource(broken=[0, 1, 2, 3, 4, 5, 6, "query 0"]))
    damaged = np.flatnonzero(builder.crops.image >= 0)[:1]
    batch, skipped = builder.finish(builder.pictures(np.array([[0, 1, int(damaged[0])]])))
    assert batch["valid"].tolist() == [[False, True, False]] and not batch["image"][0, 0].any()
    assert [(kind, name) for kind, name, _ in skipped] == [
        ("class picture", "class 0"),
        ("image", "picture 0"),
    ]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"negatives": 0}, "data.negatives"),
        ({"pool": 0}, "data.pool"),
        ({"queries": 1}, "data.queries"),
        ({"random_crops": -1}, "random_crops"),
        ({"negative_iou": 0.8}, "negative_iou"),
    ],
)
def test_options_that_cannot_be_used_are_one_line(options, line):
    with pytest.raises(ConfigError, match=line):
        _options(**options)


def test_too_little_data_is_one_line():
    with pytest.raises(DataError, match="no pictures"):
        _builder(FakeSource(count=0))
    with pytest.raises(DataError, match="fewer than the 20 of a step"):
        _builder(FakeSource(count=1), batch_size=20, queries=40)
    with pytest.raises(DataError, match="one class"):
        _builder(FakeSource(num_classes=1))
