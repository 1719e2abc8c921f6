"""A person's own phrases: what is read, how it is divided, and one clear line for all that is wrong."""

import json
import logging

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from sm_jax import data
from sm_jax.data.sources import phrase_json
from sm_jax.errors import ConfigError, DataError, ImageError
from tests.data import makers, phrase_maker
from tests.data.phrase_maker import BOXES, document, entry


def _problem(tmp_path, *phrases, **changes):
    """The message about a file of one picture with these phrases or other changed fields."""
    fields = entry(0, **changes) | ({"phrases": list(phrases)} if phrases else {})
    with pytest.raises(DataError) as caught:
        phrase_json.open_source(document(tmp_path, [fields]))
    message = str(caught.value)
    assert "\n" not in message and str(tmp_path) in message
    return message


def test_annotation_queries_and_pictures(tmp_path):
    path = document(tmp_path, [*(entry(i, split="train") for i in range(3)), entry(3, split="val")])
    before = makers.fingerprint(tmp_path)
    source = phrase_json.open_source(path)
    assert len(source) == 3 and source.query_kinds == ("standard", "absent") and source.most_boxes == 3
    note = source.annotation(1)
    assert note["image_id"] == "photos/1" and note["size"] == (80, 100)
    np.testing.assert_array_equal(note["boxes"], np.array(BOXES, np.float32))
    assert note["names"] == ["cat", "dog", "cat"]
    assert note["phrases"] == ["the cats", "find the dog", "show me a horse"]
    assert note["matches"].tolist() == [[True, False, True], [False, True, False], [False] * 3]
    phrases, matches = source.queries(1)
    assert phrases == ["the cats", "find the dog"] and matches.tolist() == note["matches"][:2].tolist()
    assert source.queries(1, "absent")[0] == ["show me a horse"]
    np.testing.assert_array_equal(source.image(1), makers.picture(1))
    assert source.vocabulary == ("a", "cats", "dog", "find", "horse", "me", "show", "the")
    assert source.phrases == ("the cats", "find the dog", "show me a horse")
    with pytest.raises(ConfigError, match="no query kind 'pairs'"):
        source.queries(0, "pairs")
    assert makers.fingerprint(tmp_path) == before


def test_a_bare_list_is_read_and_words_are_the_training_phrases(tmp_path):
    entries = [entry(0, split="train"), entry(1, split="test", phrases=[{"text": "two zebras", "ids": [0]}])]
    path = document(tmp_path, entries)
    path.write_text(json.dumps(json.loads(path.read_text())["images"]))
    section = ConfigDict({"source": str(path)})
    assert len(data.make_phrase_source(section, "val")) == 1  # "val" falls back on the data set's "test"
    assert data.make_phrase_source(section, "val").vocabulary == ("two", "zebras")
    config = ConfigDict({"model": {"vocabulary": (), "text_length": 5}, "data": section.to_dict()})
    encoder = data.make_encoder(config)
    assert "zebras" not in encoder.vocabulary and "horse" in encoder.vocabulary and encoder.length == 5
    config.model.vocabulary = ("zebras",)
    assert data.make_encoder(config).vocabulary == ("zebras",)


def test_one_in_five_is_held_out_where_there_are_no_splits(tmp_path, caplog):
    path = document(tmp_path, [entry(i) for i in range(10)])
    with caplog.at_level(logging.WARNING, "sm_jax.data"):
        train, val = (phrase_json.open_source(path, split=split) for split in ("train", "val"))
    assert (len(train), len(val)) == (8, 2) and "2 of 10 are held out" in caplog.text
    ids = {source.annotation(i)["image_id"] for source in (train, val) for i in range(len(source))}
    assert len(ids) == 10


def test_pictures_without_a_split_are_training_ones(tmp_path):
    path = document(tmp_path, [entry(0), entry(1), entry(2, split="val")])
    assert len(phrase_json.open_source(path)) == 2
    with pytest.raises(DataError, match="no split 'night', only train, val"):
        phrase_json.open_source(path, split="night")


def test_phrases_without_ids(tmp_path):
    assert "images[0] (photos/0.png): phrases[0]: 'a cat' has no list 'ids'" in _problem(
        tmp_path, {"text": "a cat"}
    )
    assert "no list 'ids'" in _problem(tmp_path, {"text": "a cat", "ids": 1})


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        ([3], "there is no box 3; they count from 0 to 2"),
        ([0, -1], "there is no box -1"),
        ([10**30], "there is no box 1000"),
        (["0"], "ids must be whole numbers, not '0'"),
        ([1.0], "ids must be whole numbers"),
        ([True], "ids must be whole numbers"),
        ([None], "ids must be whole numbers"),
    ],
)
def test_ids_out_of_range(tmp_path, ids, says):
    message = _problem(tmp_path, {"text": "a cat", "ids": ids})
    assert f"phrases[0]: 'a cat': {says}" in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the text is empty"),
        (" \n", "the text is empty"),
        ("?!", "no word in the text '?!'"),
        (7, "no 'text'"),
    ],
)
def test_empty_text(tmp_path, text, says):
    assert f"phrases[0]: {says}" in _problem(tmp_path, {"text": text, "ids": [0]}).replace("there is ", "")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image": "photo/0.png"}, "(photo/0.png): the picture was not found"),
        ({"image": "x\0y"}, "the picture was not found"),
        ({"image": "a" * 5000 + "/b.png"}, "the picture was not found"),
        ({"image": 3}, "no file name under 'image'"),
        ({"image": ""}, "no file name under 'image'"),
        ({"boxes": None}, "the list 'boxes' is missing"),
        ({"phrases": "cats"}, "the list 'phrases' is missing"),
        ({"phrases": ["the cats"]}, "phrases[0]: there is no 'text'"),
        ({"names": ["cat"]}, "'names' must be one text for each of the 3 boxes"),
        ({"split": 1}, "'split' must be a text"),
        ({"boxes": [[10, 10, 5, 20], *BOXES[1:]]}, "box 0 must be [x1, y1, x2, y2] with x1 < x2"),
        ({"boxes": [[1, 2, 3], *BOXES[1:]]}, "not [1, 2, 3]"),
        ({"boxes": [["a", 0, 1, 1], *BOXES[1:]]}, "box 0 must be"),
        ({"boxes": [[0, 0, 1e400, 1], *BOXES[1:]]}, "box 0 must be"),
        ({"boxes": [[0, 0, 10**400, 1], *BOXES[1:]]}, "box 0 must be"),
    ],
)
def test_wrong_fields(tmp_path, changes, says):
    assert says in _problem(tmp_path, **changes)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not valid JSON"),
        (b'{"images": [', "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"7", "the list 'images' is missing"),
        (b'{"pictures": []}', "the list 'images' is missing"),
        (b'{"images": []}', "none of its pictures (0) can be used"),
        (b'{"images": [4]}', "no file name under 'image'"),
        (b'{"images": [], "annotations": [], "categories": []}', "a COCO file has no phrases"),
    ],
)
def test_damaged_json(tmp_path, content, says):
    path = tmp_path / "own.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match="own.json") as caught:
        phrase_json.open_source(path)
    assert says in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_no_such_file_and_not_a_json(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        phrase_json.open_source(tmp_path / "x.json")
    for source in (tmp_path, "shape", tmp_path / "x.csv"):
        with pytest.raises(ConfigError, match="neither a JSON file with phrases, nor 'shapes' or 'shelves'"):
            data.make_phrase_source(ConfigDict({"source": str(source)}), "train")
    with pytest.raises(ConfigError, match="data.source"):
        data.make_phrase_source(ConfigDict({"source": ""}), "train")


def test_few_problems_are_left_out_and_named(tmp_path, caplog):
    entries = [*(entry(i, split="train") for i in range(60)), entry(60, split="val")]
    entries[7]["phrases"][1] = {"text": "find the dog", "ids": [9]}
    entries[9] = entries[9] | {"phrases": []}
    path = document(tmp_path, entries)
    with caplog.at_level(logging.WARNING, "sm_jax.data"):
        source = phrase_json.open_source(path)
    assert len(source) == 59 and source.annotation(7)["phrases"] == ["the cats", "show me a horse"]
    assert "images[7] (photos/7.png): phrases[1]" in caplog.text
    assert "1 picture without a usable phrase left out" in caplog.text


def test_a_phrase_that_means_an_unusable_box_is_left_out(tmp_path):
    changed = entry(0, boxes=[BOXES[0], [5, 5, 5, 9], BOXES[2]])
    collection = phrase_json.read(document(tmp_path, [changed]))
    record = collection.splits[""][0]
    assert record.phrases == ("the cats", "show me a horse")
    assert record.matches.tolist() == [[True, True], [False, False]] and record.names == ("cat", "cat")
    assert len(collection.problems) == 2


def test_boxes_are_cut_at_the_border_and_those_outside_dropped(tmp_path):
    changed = entry(0, boxes=[[-5, -5, 50, 40], [200, 30, 210, 70], [90, 70, 120, 95]], split="train")
    others = [entry(i, split="train" if i < 60 else "val") for i in range(1, 61)]
    path = document(tmp_path, [changed, *others])
    note = phrase_json.open_source(path).annotation(0)
    assert note["boxes"].tolist() == [[0, 0, 50, 40], [90, 70, 100, 80]] and note["names"] == ["cat", "cat"]
    assert note["matches"].tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize("outside", [[200, 30, 210, 70], [-20, 30, 0, 70], [99.5, 10, 130, 70]])
def test_a_phrase_about_a_box_outside_its_picture_does_not_mean_nothing(tmp_path, outside):
    path = document(tmp_path, [entry(0, boxes=[BOXES[0], outside, BOXES[2]])])
    collection = phrase_json.read(path)
    (record,) = collection.splits[""]
    assert record.phrases == ("the cats", "show me a horse") and record.matches.any(axis=1).tolist() == [1, 0]
    (problem,) = collection.problems
    assert "phrases[1]: 'find the dog': it means box 1, which lies outside the picture (100x80 pix" in problem
    with pytest.raises(DataError, match="lies outside the picture"):  # 1 of 3 is more than 1 %
        phrase_json.open_source(path)


def test_damaged_pictures_are_named_when_they_are_read(tmp_path):
    path = document(tmp_path, [entry(0, split="train")])
    (tmp_path / "photos" / "0.png").write_bytes(b"not a picture")
    source = phrase_json.open_source(path)
    assert source.annotation(0)["matches"].shape == (3, 0)
    with pytest.raises(ImageError, match="0.png"):
        source.image(0)


def test_a_phrase_of_too_many_words_is_left_out_and_named(tmp_path):
    fits, long = ({"text": "word " * count, "ids": [0]} for count in (128, 129))
    message = _problem(tmp_path, fits, long)
    assert (
        "images[0] (photos/0.png): phrases[1]: 'word word" in message and "129 words, at most 128" in message
    )
    assert len(message) < 500
    (records,) = phrase_json.read(tmp_path / "pets.json").splits.values()
    assert [len(phrase.split()) for phrase in records[0].phrases] == [128]


def test_headers_are_read_once_unless_the_picture_changes(tmp_path, monkeypatch):
    path = document(tmp_path, [entry(i) for i in range(3)])
    phrase_json.read(path)
    read, original = [], phrase_json.images.image_size

    def image_size(picture, **options):
        read.append(picture.name)
        return original(picture, **options)

    monkeypatch.setattr(phrase_json.images, "image_size", image_size)
    assert not phrase_json.read(path).problems and not read
    Image.new("RGB", (40, 30)).save(tmp_path / "photos/1.png")
    problems = phrase_json.read(path).problems
    assert read == ["1.png"] and "lies outside the picture (40x30 pixels)" in problems[0]


def test_recognised(tmp_path):
    assert phrase_json.recognised(document(tmp_path, [entry(0)]))
    coco = tmp_path / "coco.json"
    coco.write_text(json.dumps(makers.coco_document()))
    assert not phrase_json.recognised(coco)
    assert not phrase_json.recognised(tmp_path) and not phrase_json.recognised(tmp_path / "none.json")
    assert phrase_maker.BOXES is BOXES
