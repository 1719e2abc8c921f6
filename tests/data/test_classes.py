"""Seen and unseen classes: lists beside COCO, VOC, folders and built data; every bad list is one line."""

import json
import logging
import pickle

import numpy as np
import pytest
from ml_collections import ConfigDict

from sm_jax import data
from sm_jax.data import builders, check, sources
from sm_jax.data.sources import classes
from sm_jax.errors import ConfigError, DataError
from tests.data import makers
from tests.data.painted import SCENES, Painted, label_of


def _lists(root, seen=None, unseen=None):
    for name, names in (("seen", seen), ("unseen", unseen)):
        if names is not None:
            (root / f"{name}.txt").write_text("".join(f"{line}\n" for line in names))
    return root


def test_of_classes_drops_boxes_and_relabels():
    source = Painted(SCENES, listed=[None, np.array([0, 1]), np.array([2, 0]), None, None])
    some = pickle.loads(pickle.dumps(sources.of_classes(source, ["class 2", "class 1"])))
    assert some.class_names == ["class 1", "class 2"] and some.num_classes == 2 and len(some) == 5
    notes = [some.annotation(index) for index in range(5)]
    assert [note["labels"].tolist() for note in notes] == [[], [0], [], [0, 0], [1, 1]]
    for index, note in enumerate(notes):
        assert note["labels"].dtype == np.int32 and note["difficult"].shape == note["labels"].shape
        image = some.image(index)
        for box, label in zip(note["boxes"].astype(int), note["labels"], strict=True):
            assert label_of(image[box[1], box[0]]) == label + 1
    assert label_of(some.query(1)[0, 0]) == 2 and some.query_size(0) == (40, 50)
    assert some.listed(0) is None
    assert [some.listed(index).tolist() for index in (1, 2)] == [[0], [1]]


def test_images_left_without_any():
    source = Painted([*SCENES, []])
    some = sources.of_classes(source, ["class 1"], keep_empty=False)
    assert [some.annotation(index)["image_id"] for index in range(len(some))] == [
        "picture 1",
        "picture 3",
        "picture 5",  # never had a box: a picture of nothing stays
    ]
    with pytest.raises(DataError, match="no picture shows one of the 1 chosen classes"):
        sources.of_classes(Painted(SCENES[:1]), ["class 1"], keep_empty=False)
    with pytest.raises(DataError, match="the split is empty"):
        sources.of_classes(source, [])
    with pytest.raises(DataError, match="1 names are no class of the source: cat"):
        sources.of_classes(source, ["cat"])


@pytest.mark.parametrize("form", ["voc", "coco"])
def test_halves_of_a_data_set(tmp_path, form):
    if form == "voc":
        root = makers.voc(tmp_path / "d", 6, sets={"train": [0, 1, 2], "val": [3, 4, 5]})
    else:
        root = makers.coco(tmp_path / "d", 3)
    _lists(root, seen=["# trained on", "", "cat"], unseen=["dog"])
    for half, name in (("seen", "cat"), ("unseen", "dog")):
        source = sources.open_source(root, split="val", classes=half)
        assert source.class_names == [name] and len(source) == 3
        x1, y1, x2, y2 = makers.BOXES[name]
        for index in range(3):
            note = source.annotation(index)
            np.testing.assert_allclose(note["boxes"], [[x1, y1, x2, y2]])
    assert sources.open_source(root, split="val").class_names == ["cat", "dog"]
    with pytest.raises(ConfigError, match="all, seen, unseen"):
        sources.open_source(root, classes="new")


def test_one_file_is_enough(tmp_path):
    root = _lists(makers.voc(tmp_path), unseen=["dog"])
    assert sources.open_source(root, classes="seen").class_names == ["cat"]


def test_training_leaves_out_pictures_of_unseen_classes_alone(tmp_path):
    root = makers.voc(tmp_path, 4, sets={"train": [0, 1], "val": [2, 3]})
    for number in (1, 3):
        text = makers.voc_xml(f"{number}.png", [("dog", makers.BOXES["dog"], False)])
        (root / "Annotations" / f"{number}.xml").write_text(text)
    _lists(root, seen=["cat"])
    assert len(sources.open_source(root, split="train", classes="seen")) == 1
    assert len(sources.open_source(root, split="val", classes="seen")) == 2  # as a place for false alarms


def test_unseen_classes_need_no_training_box(tmp_path):
    root = makers.voc(tmp_path, 4, sets={"train": [0, 1], "val": [2, 3]})
    for number in (0, 1):
        text = makers.voc_xml(f"{number}.png", [("cat", makers.BOXES["cat"], False)])
        (root / "Annotations" / f"{number}.xml").write_text(text)
    _lists(root, seen=["cat"])
    source = sources.open_source(root, split="val", classes="unseen")
    assert source.class_names == ["dog"]
    np.testing.assert_array_equal(source.query(0), makers.picture(2)[30:70, 60:90])
    with pytest.raises(DataError, match="split 'train': none of its 1 classes is chosen"):
        sources.open_source(root, split="train", classes="unseen")


@pytest.mark.parametrize(
    ("seen", "unseen", "message"),
    [
        (None, None, "neither seen.txt nor unseen.txt"),
        ([], ["dog"], "no seen classes, seen.txt is empty"),
        (["cat", "dog"], None, "no unseen classes, all classes are seen"),
        (["cat", "kitten"], ["dog"], r"seen.txt: 1 names are no class of the data set: kitten"),
        (["cat", "dog"], ["dog"], "1 classes are in seen.txt and in unseen.txt: dog"),
    ],
)
def test_bad_lists_are_one_clear_line(tmp_path, seen, unseen, message):
    root = _lists(makers.voc(tmp_path), seen, unseen)
    with pytest.raises(DataError, match=message) as caught:
        for half in ("seen", "unseen"):
            sources.open_source(root, classes=half)
    assert "\n" not in str(caught.value)


def test_check_names_bad_lists(tmp_path):
    root = _lists(makers.voc(tmp_path), seen=["cat", "kitten"])
    (finding,) = check.check(root).problems
    assert finding.kind == "seen and unseen" and "seen.txt: 1 names are no class" in finding.detail
    _lists(root, seen=["cat"])
    assert check.check(root).exit_code == 0


def test_list_that_is_not_text(tmp_path):
    root = makers.voc(tmp_path)
    (root / "seen.txt").write_bytes(b"\xff\xfe\x00c")
    with pytest.raises(DataError, match="not a text file"):
        sources.open_source(root, classes="seen")


def test_folder_per_class_and_single_json(tmp_path):
    root = _lists(makers.class_folders(tmp_path / "f"), seen=["apple", "pear"])
    source = sources.open_source(root, split="val", classes="unseen")
    assert source.class_names == ["plum"]
    assert set(source.annotation(0)["labels"].tolist()) == {0} and source.image(0).ndim == 3
    document = makers.coco_document(4)
    for i in range(4):
        makers.save(tmp_path / "c" / f"{i}.png", i)
    (tmp_path / "c" / "all.json").write_text(json.dumps(document))
    _lists(tmp_path / "c", unseen=["cat"])
    assert sources.open_source(tmp_path / "c" / "all.json", classes="seen").class_names == ["dog"]


def test_built_data_keeps_the_halves(tmp_path, caplog):
    root = _lists(makers.voc(tmp_path / "d", 4, sets={"train": [0, 1], "val": [2, 3]}), seen=["cat"])
    with caplog.at_level(logging.ERROR):
        folder = builders.build(root, tmp_path / "built")
    source = sources.open_source(folder, split="val", classes="unseen")
    assert source.class_names == ["dog"] and len(source) == 2


def test_make_source_takes_the_half_behind_the_split(tmp_path):
    root = _lists(makers.voc(tmp_path, 4, sets={"train": [0, 1], "val": [2, 3]}), seen=["cat"])
    section = ConfigDict({"source": str(root)})
    assert data.make_source(section, "val:unseen").class_names == ["dog"]
    assert data.make_source(section, "train:seen").class_names == ["cat"]
    assert data.make_source(section, "val").class_names == ["cat", "dog"]


def test_shelves_are_divided_as_they_are(tmp_path):
    shelves = {"num_train": 4, "num_val": 2, "num_seen": 3, "image_size": (64, 64), "object_size": (20, 30)}
    section = ConfigDict({"source": "shelves", "cache_dir": str(tmp_path), "shelves": shelves})
    train, seen, unseen = (data.make_source(section, split) for split in ("train:seen", "val:seen", "val"))
    assert (len(train), len(seen), len(unseen)) == (4, 3, 2)
    assert train.class_names == seen.class_names
    assert {train.split, seen.split, data.make_source(section, "seen").split} == {"train", "seen"}
    assert data.make_source(section, "test:unseen").split == "test"
    with pytest.raises(ConfigError, match="the classes of 'train' are seen"):
        data.make_source(section, "train:unseen")
    with pytest.raises(ConfigError, match="only train, val, test and seen"):
        data.make_source(section, "dev")


def test_class_list_keeps_the_order_of_the_data_set(tmp_path):
    _lists(tmp_path, seen=["c", "a"])
    assert classes.class_list(tmp_path, ["a", "b", "c"], "seen") == ["a", "c"]
    assert classes.class_list(tmp_path / "none", ["a", "b"], "unseen", default=["a"]) == ["b"]
