"""Batches of CoAE: an image and the picture of a class that it shows, row by row."""

import numpy as np
import pytest

from sm_jax.data import coae, os2d
from sm_jax.errors import ConfigError, DataError
from tests.data.test_os2d import FakeSource, _options


class Source(FakeSource):
    """As its parent, with a box of class 1 that is not difficult in every picture."""

    def annotation(self, index):
        entry = super().annotation(index)
        return entry | {
            "boxes": np.array([[20, 20, 40, 40], [50, 5, 70, 25], [2, 40, 18, 56]], np.float32),
            "labels": np.array([index % self.num_classes, 0, 1], np.int32),
            "difficult": np.array([False, True, False]),
        }


def builder(source=None, seed=0, **options):
    part = {name: options.pop(name) for name in ("process_index", "process_count") if name in options}
    return coae.BatchBuilder(Source() if source is None else source, _options(**options), seed=seed, **part)


def test_rows_are_pairs_of_an_image_and_a_class_that_it_shows():
    made = builder(crop=(96, 128))  # so large that some trial of a crop shows any box
    seen = set()
    for k in range(12):
        raw = made[k]
        assert (raw["query"].max(axis=(1, 2, 3)) == 100 + raw["class_ids"]).all()  # each its picture
        batch, skipped = made.finish(raw)
        assert skipped == [] and batch["query"].shape == (4, 64, 64, 3)
        assert batch["image"].shape == (4, 96, 128, 3)
        for row, index in enumerate(made.picks(k)):
            label = batch["class_ids"][row]
            assert label in (index % 5, 1)
            seen.add(label)
            where = batch["boxes_valid"][row]
            assert where.sum() == 1 + (index % 5 == 1) + (label == 0)  # only boxes of the class,
            assert (batch["labels"][row][where] == 0).any()  # at least one of them in the crop
            assert batch["query_valid"][row]
    assert seen == {0, 1, 2, 3, 4}


def test_a_batch_is_a_function_of_seed_and_number_and_divides_over_processes():
    whole, again, other = builder()[3], builder()[3], builder(seed=1)[3]
    assert all((whole[name] == again[name]).all() for name in whole)
    assert (whole["image"] != other["image"]).any()
    halves = [builder(process_index=index, process_count=2)[3] for index in range(2)]
    for name in ("image", "boxes", "query", "class_ids"):
        np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), whole[name])


def test_damaged_pictures_are_replaced_and_named():
    batch, skipped = os2d.finish(builder(Source(broken=[0, 1, "query 1"]))[0])
    kinds = {kind for kind, _, _ in skipped}
    assert kinds == {"image", "class picture"} and batch["valid"].all()
    assert not batch["query_valid"][batch["class_ids"] == 1].any()


def test_an_image_of_difficult_boxes_only_gets_no_query():
    class Half(Source):
        def annotation(self, index):
            entry = super().annotation(index)
            return entry | {"difficult": np.full(3, index % 2 == 0)}

    made = builder(Half())
    batch = made.finish(made[0])[0]
    odd = np.array(made.picks(0)) % 2 == 1
    np.testing.assert_array_equal(batch["query_valid"], odd)
    assert not batch["boxes_valid"][~odd].any()


def test_nothing_to_ask_for_is_one_line():
    class Difficult(Source):
        def annotation(self, index):
            return super().annotation(index) | {"difficult": np.ones(3, bool)}

    with pytest.raises(DataError, match="no box that is not difficult"):
        builder(Difficult())
    with pytest.raises(DataError, match="no pictures"):
        builder(Source(0))
    with pytest.raises(ConfigError, match="does not divide"):
        builder(process_count=3)
    with pytest.raises(ConfigError, match="data.mining"):
        builder(hard_patches=True, class_batch_size=4)
