"""Each format is recognised and read exactly; splits, class pictures and bad annotations as documented."""

import json
import logging
import pickle

import numpy as np
import pytest
from PIL import Image

from sm_jax.data import sources
from sm_jax.data.sources import files, splits
from sm_jax.errors import DataError, ImageError
from tests.data import makers

CAT, DOG = (np.array(makers.BOXES[name], np.float32) for name in ("cat", "dog"))


def _check(source, index=0):
    entry = source.annotation(index)
    assert entry["size"] == makers.SIZE and source.image(index).shape == (*makers.SIZE, 3)
    assert entry["boxes"].dtype == np.float32 and entry["labels"].dtype == np.int32
    order = np.argsort(entry["boxes"][:, 0])
    np.testing.assert_allclose(entry["boxes"][order], [CAT, DOG], atol=1e-3)
    return [source.class_names[label] for label in entry["labels"][order]], entry["difficult"][order]


def test_voc(tmp_path):
    root = makers.voc(tmp_path / "d", 6, sets={"train": [0, 1, 2], "val": [3, 4], "test": [5]})
    before = makers.fingerprint(root)
    train, val, test = (sources.open_source(root, split=split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (3, 2, 1)
    names, difficult = _check(train)
    assert names == ["cat", "dog"] and difficult.tolist() == [False, True]
    assert val.annotation(0)["image_id"] == "3"
    # Cropped from the training split: picture 0's dog is difficult, so picture 1 gives the dog.
    np.testing.assert_array_equal(val.query(0), makers.picture(0)[12:40, 10:50])
    np.testing.assert_array_equal(val.query(1), makers.picture(1)[30:70, 60:90])
    assert val.query_size(1) == (40, 30)
    assert makers.fingerprint(root) == before


def test_voc_trainval_and_flat_and_nested(tmp_path, caplog):
    root = makers.voc(tmp_path / "VOCdevkit" / "VOC2007", 4, sets={"trainval": [0, 1, 2], "test": [3]})
    with caplog.at_level(logging.WARNING, "sm_jax.data"):
        assert len(sources.open_source(tmp_path / "VOCdevkit", split="val")) == 1
    assert "split 'val' is the data set's 'test'" in caplog.text
    assert len(sources.open_source(root, split="train")) == 3
    flat = tmp_path / "flat"
    for i in range(3):
        makers.save(flat / f"{i}.png", i)
        (flat / f"{i}.xml").write_text(makers.voc_xml("wrong.jpg", [("cat", makers.BOXES["cat"], False)]))
    assert len(sources.open_source(flat, split="train")) == 2
    makers.voc(tmp_path / "VOCdevkit" / "VOC2012", 1)
    with pytest.raises(DataError, match="several VOC"):
        sources.open_source(tmp_path / "VOCdevkit")


def test_coco(tmp_path):
    root = makers.coco(tmp_path / "d")
    train, val = (sources.open_source(root, split=split) for split in ("train", "val"))
    assert train.class_names == ["cat", "dog"]  # by ascending category id
    assert _check(train)[0] == ["cat", "dog"]
    assert val.annotation(0)["image_id"] == "4"
    np.testing.assert_array_equal(val.image(0), makers.picture(4))
    single = sources.open_source(root / "annotations" / "instances_val2017.json", split="all")
    assert len(single) == 4


def test_coco_in_split_folders_with_equal_names(tmp_path):
    for split, seed in (("train", 0), ("valid", 1)):
        makers.save(tmp_path / split / "0.png", seed)
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(makers.coco_document(1)))
    for split, seed in (("train", 0), ("val", 1)):
        np.testing.assert_array_equal(
            sources.open_source(tmp_path, split=split).image(0), makers.picture(seed)
        )


def test_os2d_csv(tmp_path):
    root = makers.os2d_csv(tmp_path / "d")
    train = sources.open_source(root, split="train")
    assert train.class_names == ["10", "20"]
    names, difficult = _check(train, 1)
    assert names == ["10", "20"] and difficult.tolist() == [False, True]
    np.testing.assert_array_equal(train.query(1), makers.picture(20, (30, 40)))
    new = sources.open_source(root / "classes" / "demo.csv", split="val-new-cl")
    assert len(new) == 2 and new.class_names == ["10"]  # all validation pictures, the subset's classes
    assert [len(new.annotation(i)["labels"]) for i in range(2)] == [0, 1]
    both = sources.open_source(root, split="val")
    assert [len(both.annotation(i)["labels"]) for i in range(2)] == [2, 1]


def test_folder_per_class(tmp_path):
    root = makers.class_folders(tmp_path / "d")
    before = makers.fingerprint(root)
    train, val = (sources.open_source(root, split=split) for split in ("train", "val"))
    assert len(train) + len(val) == 15 and train.class_names == ["apple", "pear", "plum"]
    for source in (train, val):
        for i in range(len(source)):
            entry, image = source.annotation(i), source.image(i)
            assert image.shape[:2] == entry["size"] and 3 <= len(entry["boxes"]) <= 9
            assert (entry["boxes"] >= 0).all() and (entry["boxes"] <= image.shape[0]).all()
            np.testing.assert_array_equal(image, source.image(i))
    assert makers.fingerprint(root) == before


def test_given_class_pictures_win(tmp_path):
    root = makers.voc(tmp_path, 3)
    makers.save(root / "classes" / "dog.png", 99, (20, 25))
    source = sources.open_source(root, split="train")
    np.testing.assert_array_equal(source.query(1), makers.picture(99, (20, 25)))
    assert source.query(0).shape != (20, 25, 3)


def test_sources_pickle(tmp_path):
    voc = sources.open_source(makers.voc(tmp_path / "a"))
    composed = sources.open_source(makers.class_folders(tmp_path / "b"))
    for source in (voc, composed):
        source.query(0)
        copy = pickle.loads(pickle.dumps(source))
        np.testing.assert_array_equal(copy.image(1), source.image(1))
        np.testing.assert_array_equal(copy.query(0), source.query(0))


def test_splits_made_by_image(tmp_path, caplog):
    root = makers.voc(tmp_path, 10)
    with caplog.at_level(logging.WARNING, "sm_jax.data"):
        train, val = (sources.open_source(root, split=split) for split in ("train", "val"))
    assert "2 of 10 are held out" in caplog.text
    ids = [{s.annotation(i)["image_id"] for i in range(len(s))} for s in (train, val)]
    assert len(ids[0]) == 8 and len(ids[1]) == 2 and not ids[0] & ids[1]
    makers.save(root / "JPEGImages" / "x.png", 5)
    (root / "Annotations" / "x.xml").write_text(
        makers.voc_xml("x.png", [("cat", makers.BOXES["cat"], False)])
    )
    later = sources.open_source(root, split="val")
    kept = ids[1] & {later.annotation(i)["image_id"] for i in range(len(later))}
    assert len(kept) >= 1


def test_choice_of_class_picture():
    def record(name, boxes, difficult=None):
        count = len(boxes)
        hard = np.zeros(count, bool) if difficult is None else np.array(difficult)
        arrays = np.array(boxes, float).reshape(-1, 4), np.zeros(count, np.int32), hard
        return sources.Record(name, name, (100, 100), *arrays)

    usual = [[10, 10, 30, 30], [40, 10, 65, 35], [10, 50, 32, 70]]
    outliers = [[0, 0, 60, 60], [40, 40, 99, 60], [20, 20, 80, 80]]  # border, aspect, difficult
    records = [record("a", usual), record("b", outliers, [False, False, True])]
    assert splits.crop_class_pictures(records, [0])[0] == sources.ClassPicture(
        "a", (40, 10, 65, 35), (100, 100)
    )
    only_bad = splits.crop_class_pictures([record("c", outliers[2:], [True])], [0])
    assert only_bad[0].box == (20, 20, 80, 80)
    assert splits.crop_class_pictures([record("d", [[5, 5, 5, 9]])], [0]) == {}


def test_class_without_training_box_is_left_out(tmp_path, caplog):
    root = makers.voc(tmp_path, 3, sets={"train": [0, 1], "val": [2]})
    shown = [("cat", makers.BOXES["cat"], False), ("emu", makers.BOXES["dog"], False)]
    (root / "Annotations" / "2.xml").write_text(makers.voc_xml("2.png", shown))
    with caplog.at_level(logging.WARNING, "sm_jax.data"):
        val = sources.open_source(root, split="val")
    assert val.class_names == ["cat"] and "emu" in caplog.text
    assert len(val.annotation(0)["boxes"]) == 1


def test_unusable_boxes_are_dropped(tmp_path):
    nan = float("nan")
    bad = [(nan, 1, 5, 5), (50, 50, 40, 60), (20, 20, 20, 40), (200, 200, 300, 300), (-9, -9, 0, 0)]
    objects = [("cat", makers.BOXES["cat"], False), *(("cat", box, False) for box in bad)]
    objects.append(("cat", (90, 70, 150, 90), False))
    source = sources.open_source(makers.voc(tmp_path, 3, objects=objects), split="train")
    np.testing.assert_array_equal(source.annotation(0)["boxes"], [CAT, [90, 70, 100, 80]])


def test_exif_follows_the_annotation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = makers.picture(0)
    for name, size in (("stored", makers.SIZE), ("turned", makers.SIZE[::-1])):
        root = tmp_path / name
        root.mkdir()
        Image.fromarray(pixels).save(root / "a.png", exif=exif)
        (root / "a.xml").write_text(makers.voc_xml("a.png", [("cat", (1, 1, 40, 40), False)], size))
        source = sources.open_source(root)
        assert source.image(0).shape[:2] == size == source.annotation(0)["size"]


def test_wrong_size_in_annotation_is_an_image_error(tmp_path):
    root = makers.voc(tmp_path, 1)
    (root / "Annotations" / "0.xml").write_text(
        makers.voc_xml("0.png", [("cat", (1, 1, 9, 9), False)], (50, 60))
    )
    with pytest.raises(ImageError, match=r"annotation says 60x50 pixels, the picture has 100x80"):
        sources.open_source(root).image(0)


@pytest.mark.parametrize(
    "text",
    [
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><annotation>&x;</annotation>',
        '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>',
        "<annotation><object>",
        "",
        "\0\1\2",
        '<?xml version="1.0" encoding="nonsense"?><annotation/>',
    ],
)
def test_bad_xml_is_one_line(tmp_path, text):
    path = tmp_path / "a.xml"
    path.write_text(text)
    with pytest.raises(DataError, match="a.xml") as error:
        files.read_xml(path)
    assert "\n" not in str(error.value)


def test_many_bad_annotations_stop(tmp_path):
    root = makers.voc(tmp_path, 4)
    (root / "Annotations" / "1.xml").write_text("<annotation><object>")
    with pytest.raises(DataError, match=r"annotation entries that cannot be used: 1, the first: .*1.xml"):
        sources.open_source(root)


def test_few_bad_annotations_are_named(tmp_path, caplog):
    root = makers.voc(tmp_path, 120)
    (root / "Annotations" / "1.xml").write_text(makers.voc_xml("gone.png", []))
    (root / "JPEGImages" / "1.png").unlink()
    with caplog.at_level(logging.WARNING, "sm_jax.data"):
        assert len(sources.open_source(root, split="all")) == 119
    assert "'gone.png' was not found" in caplog.text.replace("picture gone.png", "picture 'gone.png'")


def test_coco_problems(tmp_path):
    document = makers.coco_document(2)
    document["annotations"] += [
        {"id": 90, "image_id": 77, "category_id": 3, "bbox": [0, 0, 5, 5]},
        {"id": 91, "image_id": 0, "category_id": 99, "bbox": [0, 0, 5, 5]},
        {"id": 92, "image_id": 0, "category_id": 3},
        "nonsense",
        {"id": 94, "image_id": [], "category_id": {}, "bbox": []},
        {"id": 93, "image_id": 0, "category_id": 3, "bbox": [1, 2, "x"]},
        {"id": 95, "image_id": 0, "category_id": 3, "bbox": [10**400, 2, 3, 4]},
        {"id": 96, "image_id": 0, "category_id": 3, "bbox": "1234"},
    ]
    document["images"] += [{"id": 5}, {"id": 6, "file_name": "../../gone.png"}]
    for i in range(2):
        makers.save(tmp_path / f"{i}.png", i)
    (tmp_path / "a.json").write_text(json.dumps(document))
    collection = sources.open_collection(tmp_path)
    assert len(collection.problems) == 7
    assert len(splits.make_source(collection, "all")[0].annotation(0)["boxes"]) == 2


@pytest.mark.parametrize("missing", ["images", "annotations", "categories"])
def test_not_quite_coco(tmp_path, missing):
    document = makers.coco_document(1)
    del document[missing]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match=missing):
        sources.open_source(path)


@pytest.mark.parametrize("text", ["{", "[]", '{"images": [' + "[" * 10000, ""])
def test_bad_json(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match="a.json"):
        sources.open_source(path)


def test_csv_problems(tmp_path):
    root = makers.os2d_csv(tmp_path, ("train",) * 3)
    path = root / "classes" / "demo.csv"
    lines = path.read_text().splitlines()
    path.write_text(
        "\n".join([*lines, lines[1].replace("0.1", "ten"), lines[1].replace("0.png", "../0.png"), "7"])
    )
    assert len(sources.open_collection(root).problems) == 3
    path.write_text("imageid,classid\n1,2\n")
    with pytest.raises(DataError, match=r"columns by, lx, rx, ty are missing"):
        sources.open_source(path)
    path.write_text(lines[0] + "\n")
    with pytest.raises(DataError, match="no usable row"):
        sources.open_source(path)
    path.write_text("\n".join(line.replace(".png", ".none") for line in lines))
    with pytest.raises(DataError, match="not found"):
        sources.open_source(path)


def test_csv_oddities(tmp_path):
    root = makers.os2d_csv(tmp_path, ("train",) * 3)
    path = root / "classes" / "demo.csv"
    header, *rows = path.read_text().splitlines()
    names = header.split(",")
    order = sorted(range(len(names)), key=lambda i: names[i] == "imageid")  # the picture's id comes last
    lines = [",".join(line.split(",")[i] for i in order) for line in (header, *rows)]
    path.write_text("\n".join([*lines, "1"]))
    assert len(sources.open_collection(root).problems) == 1  # a short row has no id
    path.write_text("\n".join([header.replace(",", ", "), *rows]))
    assert not sources.open_collection(root).problems
    path.write_text("\n".join([header, *rows, rows[0].replace(".png", "x" * 400 + ".png", 1)]))
    assert "too long" in sources.open_collection(root).problems[0]
    path.write_text("x" * 200_000 + "\n" + header)
    with pytest.raises(DataError, match="not valid CSV"):
        sources.open_source(path)


def test_nothing_fits(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        sources.open_source(tmp_path / "none")
    with pytest.raises(DataError, match=r"holds nothing.*Pascal VOC"):
        sources.open_source(tmp_path)
    makers.save(tmp_path / "images" / "a.png")
    with pytest.raises(DataError, match=r"holds images.*COCO"):
        sources.open_source(tmp_path)
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match="not a data set"):
        sources.open_source(tmp_path / "a.txt")
    root = makers.voc(tmp_path / "voc", 2, sets={"train": [0], "val": [1]})
    with pytest.raises(DataError, match=r"no split 'mini', only train, val"):
        sources.open_source(root, split="mini")


def test_no_boxes_at_all(tmp_path):
    for i in range(3):
        makers.save(tmp_path / f"{i}.png", i)
        (tmp_path / f"{i}.xml").write_text(makers.voc_xml(f"{i}.png", []))
    with pytest.raises(DataError, match="no class with a usable box"):
        sources.open_source(tmp_path)
