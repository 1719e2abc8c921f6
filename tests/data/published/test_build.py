"""Each published data set is built from tiny files of its form, and read back as it will be used."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from sm_jax import cli, data
from sm_jax.data import builders, images, published, sources
from sm_jax.data.builders import published as build_published
from sm_jax.errors import ConfigError, DataError
from tests.data import makers
from tests.data.published import maker


def _entries(source) -> dict:
    found = [source.annotation(index) for index in range(len(source))]
    return {entry["image_id"]: entry for entry in found}


def _shown(source, image_id: str) -> set[str]:
    return {source.class_names[label] for label in _entries(source)[image_id]["labels"]}


@pytest.fixture(scope="module")
def grozi(tmp_path_factory):
    home = maker.grozi(tmp_path_factory.mktemp("data"))
    before = makers.fingerprint(home)
    built = build_published.build("grozi", home.parent, tmp_path_factory.mktemp("built"))
    assert makers.fingerprint(home) == before
    return home, built


def test_grozi_searches_all_validation_pictures_for_the_classes_of_a_split(grozi):
    opened = {split: sources.open_source(grozi[1], split=split) for split in published.find("grozi").splits}
    assert {split: len(source) for split, source in opened.items()} == {
        "train": 3,
        "train-mini": 2,
        "val-old-cl": 3,
        "val-new-cl": 3,
        "val-all": 3,
    }
    assert {split: source.class_names for split, source in opened.items()} == {
        "train": ["10"],
        "train-mini": ["10"],
        "val-old-cl": ["10"],
        "val-new-cl": ["20", "30"],
        "val-all": ["10", "20", "30"],
    }
    assert _shown(opened["val-new-cl"], "7") == set() and _shown(opened["val-all"], "9") == {"10", "20"}
    assert _entries(opened["train"])["1"]["difficult"].tolist() == [True]


def test_pictures_get_their_nominal_size_and_boxes_follow(grozi):
    source = sources.open_source(grozi[1], split="train")
    entry, size = source.annotation(0), images.fit_to_area(makers.SIZE, 3264)
    assert entry["size"] == size
    expected = np.array(maker.BOX) * np.array([size[1], size[0]] * 2)
    np.testing.assert_allclose(entry["boxes"][0], expected, rtol=1e-5)
    assert source.query_size(0) == (24, 20)  # class pictures stay as they are


def test_a_picture_of_the_nominal_size_stays_as_it_is(tmp_path):
    home = maker.retail(tmp_path, "paste", [maker.row(0, 1)], folder="original")
    makers.save(home / "src" / "original" / "0.jpg", 3, (30, 1280))
    built = build_published.build("paste-v", tmp_path, tmp_path / "built")
    source = sources.open_source(built, split="test")
    stored = images.read_image(home / "src" / "original" / "0.jpg")
    np.testing.assert_array_equal(source.image(0), stored)


def test_scale_and_views_come_with_the_data(grozi, tmp_path):
    section = ConfigDict({"source": str(grozi[1]), "scale": 0.0, "object_size": 240})
    assert data.image_scale(section) == 1280 / 3264
    section.object_size = 225
    assert data.image_scale(section) == pytest.approx(1200 / 3264)
    section.scale = 0.5
    assert data.image_scale(section) == 0.5
    assert data.class_views(section, "data") == "" and data.class_views(section, "horflip") == "horflip"
    maker.retail(tmp_path, "paste", [maker.row(0, 1, difficult=1)], folder="original")
    built = build_published.build("paste-f", tmp_path, tmp_path / "built")
    section = ConfigDict({"source": str(built), "scale": 0.0, "object_size": 240})
    assert data.image_scale(section) == 2000 / 1280 and data.class_views(section, "data") == "rotation90"
    assert data.class_views(ConfigDict({"source": "shelves"}), "data") == ""


@pytest.mark.parametrize(
    ("name", "folder", "difficult"),
    [
        ("dairy", "dairy", [False, True]),
        ("paste-v", "paste", [False, True]),
        ("paste-f", "paste", [False, False]),
    ],
)
def test_dairy_and_paste(tmp_path, name, folder, difficult):
    rows = [maker.row(0, 1), maker.row(0, 2, difficult=1), maker.row(1, 1)]
    maker.retail(tmp_path, folder, rows, folder="original")
    built = build_published.build(name, tmp_path / folder, tmp_path / "built")  # the folder itself serves too
    source = sources.open_source(built, split="test")
    assert source.class_names == ["1", "2"] and len(source) == 2
    assert _entries(source)["0"]["difficult"].tolist() == difficult


def test_exif_turns_neither_pictures_nor_boxes(tmp_path):
    home = maker.retail(tmp_path, "paste", [maker.row(0, 1)], folder="original")
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in (home / "src" / "original" / "0.jpg", home / "classes" / "images" / "1.jpg"):
        Image.open(path).save(path, exif=exif, quality=95)
    ((source, _),) = published.open_sources("paste-v", tmp_path).values()
    built = sources.open_source(build_published.build("paste-v", tmp_path, tmp_path / "built"), split="test")
    assert source.annotation(0)["size"] == source.image(0).shape[:2] == makers.SIZE
    assert built.query_size(0) == source.query(0).shape[:2] == (24, 20)
    height, width = built.annotation(0)["size"]
    assert height < width  # as stored


def test_instre(tmp_path):
    maker.instre(tmp_path)
    built = build_published.build("instre-s1", tmp_path, tmp_path / "built")
    opened = {split: sources.open_source(built, split=split) for split in ("train", "val", "test")}
    names = [f"{i + 1:05d}_INSTRE-S1_{i:02d}{'ab'[i % 2]}_thing_001" for i in range(20)]
    assert opened["train"].class_names == names[:15]
    assert opened["val"].class_names == names[15:16] and opened["test"].class_names == names[16:]
    entries = _entries(opened["train"])
    scale = images.fit_to_area(makers.SIZE, 1000)[1] / makers.SIZE[1]
    np.testing.assert_allclose(
        entries["INSTRE-S1/00a_thing/002.jpg"]["boxes"], scale * np.array([[10, 12, 50, 40]]), rtol=2e-3
    )
    # the second object of a picture of INSTRE-M, for the query is of a folder with b
    (box,), (label,) = (entries["INSTRE-M/01_pair/001.jpg"][key] for key in ("boxes", "labels"))
    assert opened["train"].class_names[label] == names[1]
    np.testing.assert_allclose(box, scale * np.array([60, 30, 80, 40]), rtol=2e-3)
    assert opened["train"].query_size(0) == (28, 40)
    assert data.class_views(ConfigDict({"source": str(built)}), "data") == "rotation90"


def test_instre_s2(tmp_path):
    home = maker.instre(tmp_path, queries=4, subset="INSTRE-S2")
    maker.instre_mat(
        home,
        [f"INSTRE-S2/{i:02d}{'ab'[i % 2]}_thing/001.jpg" for i in range(4)],
        [f"INSTRE-S2/{i:02d}{'ab'[i % 2]}_thing/002.jpg" for i in range(4)],
        [[1], [2], [3], [4]],
    )
    ((source, _),) = published.open_sources("instre-s2", tmp_path, splits=["test"]).values()
    assert len(source) == 1 and source.class_names == ["00003_INSTRE-S2_03b_thing_001"]
    with pytest.raises(DataError, match="4 queries of INSTRE-S2 are too few for 'val'"):
        published.open_sources("instre-s2", tmp_path, splits=["val"])


def test_repmet(tmp_path):
    home = maker.repmet(tmp_path)
    built = build_published.build("repmet", home, tmp_path / "built", splits=["test", "train", "val-4"])
    test = sources.open_source(built, split="test")
    assert test.class_names == ["000 3 thing 3", "000 5 thing 5", "001 5 thing 5", "001 3 thing 3"]
    assert len(test) == 3 and _shown(test, "001 n00000001_b") == {"001 5 thing 5", "001 3 thing 3"}
    listed = {test.annotation(index)["image_id"]: test.listed(index).tolist() for index in range(3)}
    assert listed == {"000 n00000001_a": [0, 1], "000 n00000001_b": [0, 1], "001 n00000001_b": [2, 3]}
    assert test.query_size(0) == (28, 23) and test.query_size(1) == (28, 25)  # the first training box
    entry = _entries(test)["000 n00000001_a"]
    assert len(entry["boxes"]) == 2  # class 8 is not of the episode
    train = sources.open_source(built, split="train")
    assert train.class_names == ["n09000001", "n09000002"] and len(train) == 2
    val = sources.open_source(built, split="val-4")  # every second of 8 boxes
    assert sum(len(val.annotation(index)["boxes"]) for index in range(len(val))) == 4
    assert val.class_names == ["n09000001"] and len(val) == 4
    about = json.loads((builders.find(built) / "published.json").read_text())
    assert about == {
        "name": "repmet",
        "nominal": 1000,
        "eval_scale": 250,
        "views": "horflip",
        "protocol": "episodes",
    }


def test_the_command(tmp_path, capsys, monkeypatch):
    maker.retail(tmp_path / "data", "dairy", [maker.row(0, 1)], folder="original")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", "build", "dairy"]) == 0
    assert f"built: {tmp_path / 'built' / 'dairy'}" in capsys.readouterr().out
    assert len(data.make_source(ConfigDict({"source": "built/dairy"}), "test")) == 1
    assert cli.main(["data", "build", "dairy"]) == 2
    assert "is built already" in capsys.readouterr().err
    assert cli.main(["data", "build", "dary"]) == 2
    assert "did you mean 'dairy'" in capsys.readouterr().err.lower()
    with pytest.raises(DataError, match="the one it was built from"):
        sources.open_collection("built/dairy")


def test_counts_that_differ_from_the_published_are_said(tmp_path, caplog):
    maker.retail(tmp_path, "dairy", [maker.row(0, 1)], folder="original")
    build_published.build("dairy", tmp_path, tmp_path / "built")
    assert "dairy test: 1 pictures, 1 boxes, 1 classes; the authors' log has 12, 786, 166" in caplog.text


def test_a_damaged_published_json(tmp_path):
    maker.retail(tmp_path, "dairy", [maker.row(0, 1)], folder="original")
    built = build_published.build("dairy", tmp_path, tmp_path / "built")
    (builders.find(built) / "published.json").write_text("{}")
    with pytest.raises(DataError, match="published.json: not readable"):
        sources.open_source(built, split="test")


def test_refusals_of_arguments(tmp_path):
    maker.grozi(tmp_path)
    for manual_dir in (tmp_path, tmp_path / "grozi"):
        with pytest.raises(ConfigError, match="nothing is ever written"):
            build_published.build("grozi", manual_dir, tmp_path / "grozi" / "built")
    with pytest.raises(ConfigError, match="no split 'test', only train, train-mini, val-old-cl"):
        build_published.build("grozi", tmp_path, tmp_path / "built", splits=["test"])
    maker.repmet(tmp_path)
    with pytest.raises(ConfigError, match="such as val-5000"):
        build_published.build("repmet", tmp_path, tmp_path / "built", splits=["val-many"])
