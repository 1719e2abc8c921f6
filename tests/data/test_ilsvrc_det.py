"""ILSVRC-DET: the published layout, partial annotations, 0-based inclusive boxes, the unseen synsets."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sm_jax.data import builders, check, sources, ssm
from sm_jax.data.sources import ilsvrc_det
from sm_jax.errors import DataError
from tests.data import makers

ACCORDION, AIRPLANE, ANT = "n02672831", "n02691156", "n02219486"
MAP = [(ACCORDION, 1, "accordion"), (AIRPLANE, 2, "airplane"), (ANT, 3, "ant"), ("n02764044", 4, "sea axe")]
SIZE = (60, 80)


def _xml(name, objects):
    entries = "".join(
        f"<object><name>{wnid}</name><bndbox><xmin>{box[0]}</xmin><xmax>{box[2]}</xmax>"
        f"<ymin>{box[1]}</ymin><ymax>{box[3]}</ymax></bndbox></object>"
        for wnid, box in objects
    )
    return (
        f"<annotation><folder>x</folder><filename>{name}</filename><size><width>{SIZE[1]}</width>"
        f"<height>{SIZE[0]}</height></size>{entries}</annotation>"
    )


def _add(root, name, objects, seed=0):
    """A picture Data/DET/<name>.JPEG and its annotation."""
    picture = root / "Data" / "DET" / f"{name}.JPEG"
    picture.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(makers.picture(seed, SIZE)).save(picture)
    path = root / "Annotations" / "DET" / f"{name}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_xml(name.split("/")[-1], objects))


def _lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def root(tmp_path):
    """Two images of 2013 per class 1 and 2, two of 2014, three of val, two of an unseen synset."""
    root = tmp_path / "data" / "ILSVRC"
    box, other = (4, 5, 43, 44), (40, 10, 79, 59)
    for i, (wnid, name) in enumerate(
        [(ACCORDION, "a1"), (ACCORDION, "a2"), (AIRPLANE, "b1"), (AIRPLANE, "b2")]
    ):
        _add(root, f"train/ILSVRC2013_train/{wnid}/{wnid}_{name}", [(wnid, box)], seed=i)
    _add(root, "train/ILSVRC2014_train_0000/ILSVRC2014_train_00000001", [(ACCORDION, box), (ANT, other)], 10)
    _add(root, "train/ILSVRC2014_train_0000/ILSVRC2014_train_00000002", [(ANT, box)], 11)
    _add(root, "val/ILSVRC2012_val_00000001", [(ACCORDION, box)], 20)
    _add(root, "val/ILSVRC2012_val_00000002", [(ANT, box), (AIRPLANE, other)], 21)
    _add(root, "val/ILSVRC2012_val_00000003", [], 22)
    lists = root / "ImageSets" / "DET"
    images = [
        f"ILSVRC2013_train/{w}/{w}_{n}"
        for w, n in ((ACCORDION, "a1"), (ACCORDION, "a2"), (AIRPLANE, "b1"), (AIRPLANE, "b2"))
    ]
    _lines(lists / "train_1.txt", [f"{images[0]} 1", f"{images[1]} 1", f"{images[2]} 0"])
    _lines(lists / "train_2.txt", [f"{images[2]} 1", f"{images[3]} 1", f"{images[0]} -1"])
    _lines(lists / "val.txt", [f"ILSVRC2012_val_0000000{i} {i}" for i in (1, 2, 3)])
    _lines(root / "ILSVRC2014_devkit" / "data" / "map_det.txt", [f"{w} {k} {n}" for w, k, n in MAP])
    return root


def test_parts_classes_and_boxes(root):
    before = makers.fingerprint(root)
    collection = sources.open_collection(root.parent)  # the folder above will do
    assert collection.format == "ILSVRC-DET" and collection.problems == [] and collection.notes == []
    assert {split: len(records) for split, records in collection.splits.items()} == {
        "train": 6,
        "train-2013": 4,
        "train-2014": 2,
        "val": 3,
    }
    assert collection.class_names == ["accordion", "airplane", "ant", "sea axe"]
    val = sources.open_source(root, split="val")
    assert val.class_names == ["accordion", "airplane", "ant"]
    note = val.annotation(1)
    assert note["image_id"] == "ILSVRC2012_val_00000002"
    assert [val.class_names[label] for label in note["labels"]] == ["ant", "airplane"]
    np.testing.assert_array_equal(note["boxes"], [[4, 5, 44, 45], [40, 10, 80, 60]])
    assert len(val.annotation(2)["labels"]) == 0 and val.image(2).shape == (*SIZE, 3)
    assert makers.fingerprint(root) == before


def test_partial_annotations(root):
    source = sources.open_source(root, split="train")
    listed = {source.annotation(i)["image_id"].split("_")[-1]: source.listed(i) for i in range(len(source))}
    assert listed["a1"].tolist() == [0, 1]  # lists call it positive of 1 and negative of 2
    assert listed["a2"].tolist() == [0, 1, 2]  # no list calls it negative or partial
    assert listed["b1"].tolist() == [1, 2]  # partial of 1
    assert listed["00000001"] is None  # 2014 is complete
    builder = ssm.BatchBuilder(
        source,
        ssm.BatchOptions(image_size=(64, 64), request_size=(32, 32), batch_size=2, positive_share=0),
    )
    absent = {source.annotation(i)["image_id"].split("_")[-1]: builder.pairs.absent(i) for i in range(6)}
    assert {name: labels.tolist() for name, labels in absent.items()} == {
        "a1": [1],
        "a2": [1, 2],
        "b1": [2],
        "b2": [0, 2],
        "00000001": [1],
        "00000002": [0, 1],
    }


def test_without_lists_the_2013_images_make_no_negatives(root):
    for path in (root / "ImageSets" / "DET").glob("train_*.txt"):
        path.unlink()
    collection = sources.open_collection(root)
    assert any("none of them makes a negative pair" in note for note in collection.notes)
    assert [record.listed.tolist() for record in collection.splits["train-2013"]] == [[0], [0], [1], [1]]


def test_the_test_images_have_no_labels(root):
    with pytest.raises(DataError, match="labels of the test images are not published") as caught:
        sources.open_source(root, split="test")
    assert "\n" not in str(caught.value)


def test_classes_from_the_lists_alone(root, monkeypatch):
    (root / "ILSVRC2014_devkit" / "data" / "map_det.txt").unlink()
    assert sources.open_collection(root).class_names == sorted([ACCORDION, AIRPLANE, ANT])
    with pytest.raises(DataError, match="neither map_det.txt nor all of"):
        ilsvrc_det.seen_synsets(root)
    monkeypatch.setattr(ilsvrc_det, "NUM_CLASSES", 2)
    assert ilsvrc_det.seen_synsets(root) == [ACCORDION, AIRPLANE]


def test_seen_and_unseen(root):
    assert ilsvrc_det.seen_synsets(root) == [wnid for wnid, _, _ in MAP]
    for i in range(3):
        _add(root, f"unseen/n07742313/n07742313_{i}", [("n07742313", (2, 2, 40, 41))], 30 + i)
    ilsvrc_det.write_list(root / "unseen.txt", ["n07742313"])
    assert ilsvrc_det.read_list(root / "unseen.txt") == ["n07742313"]
    unseen = sources.open_source(root, split="unseen", classes="unseen")
    assert unseen.class_names == ["n07742313"] and len(unseen) == 3 and unseen.query(0).shape == (40, 39, 3)
    seen = sources.open_source(root, split="val", classes="seen")
    assert seen.class_names == ["accordion", "airplane", "ant"]
    (root / "unseen.txt").unlink()
    assert sources.open_source(root, split="unseen", classes="unseen").class_names == ["n07742313"]


def test_problems_are_named(root):
    _add(root, "val/ILSVRC2012_val_00000001", [("n00000007", (1, 1, 9, 9)), (ANT, (1, 1, 30, 30))])
    (root / "Data" / "DET" / "val" / "ILSVRC2012_val_00000002.JPEG").unlink()
    (root / "Annotations" / "DET" / "val" / "ILSVRC2012_val_00000003.xml").write_text("<annotation>")
    problems = "\n".join(sources.open_collection(root).problems)
    assert "object 1 is n00000007, which is none of the classes" in problems
    assert "ILSVRC2012_val_00000002.xml: its picture was not found" in problems
    assert "ILSVRC2012_val_00000003.xml: not valid XML" in problems
    assert "val.txt: 2 ids have no annotation" in problems
    _lines(root / "ImageSets" / "DET" / "train_1.txt", ["a 7"])
    with pytest.raises(DataError, match="the flag of a is '7', not -1, 0 or 1"):
        sources.open_collection(root)


def test_check_recognises_it(root):
    report = check.check(root)
    assert report.format == "ILSVRC-DET" and report.exit_code == 0
    assert report.pictures == {"train": 6, "val": 3, "train-2013": 4, "train-2014": 2}
    done = subprocess.run(
        [sys.executable, "-m", "sm_jax.cli", "data", "check", str(root)], capture_output=True, text=True
    )
    assert done.returncode == 0 and "ILSVRC-DET" in done.stdout and "no problems found" in done.stdout


def test_builds(root, tmp_path):
    folder = builders.build(root, tmp_path / "built")
    original, copy = sources.open_source(root), sources.open_source(folder)
    place = {original.annotation(i)["image_id"]: i for i in range(len(original))}
    assert copy.class_names == original.class_names and len(copy) == 6
    for i in range(6):
        other = place[copy.annotation(i)["image_id"]]
        np.testing.assert_array_equal(copy.annotation(i)["labels"], original.annotation(other)["labels"])
        np.testing.assert_array_equal(copy.image(i), original.image(other))
        expected, found = original.listed(other), copy.listed(i)
        assert (found is None) == (expected is None)
        assert found is None or found.tolist() == expected.tolist()
    assert sources.open_source(folder, split="val", classes="seen").num_classes == 3


def _boxed(tmp_path, counts):
    for wnid, count in counts.items():
        (tmp_path / "Annotation" / wnid).mkdir(parents=True)
        for i in range(count):
            (tmp_path / "Annotation" / wnid / f"{wnid}_{i}.xml").touch()
    return tmp_path / "Annotation"


def test_unseen_synsets(tmp_path):
    # animal (1) > dog (2, seen) > puppy (3); animal > cat (4); thing (5) is apart; 6 has too few pictures.
    names = {k: f"n0000000{k}" for k in range(1, 9)}
    folder = _boxed(tmp_path, {names[k]: 2 if k == 6 else 3 for k in names})
    (folder / "readme.txt").touch()
    tree = tmp_path / "wordnet.is_a.txt"
    _lines(tree, [f"{names[a]} {names[b]}" for a, b in ((1, 2), (2, 3), (1, 4), (5, 7), (5, 8))])
    rule = {"is_a": tree, "min_images": 3}
    expected = [names[k] for k in (4, 5, 7, 8)]
    assert ilsvrc_det.unseen_synsets(folder, [names[2]], count=4, **rule) == expected
    chosen = [ilsvrc_det.unseen_synsets(folder, [names[2]], count=2, seed=seed, **rule) for seed in range(9)]
    assert all(pair == sorted(pair) and set(pair) < set(expected) for pair in chosen)
    assert len({tuple(pair) for pair in chosen}) > 2
    assert chosen[0] == ilsvrc_det.unseen_synsets(folder, [names[2]], count=2, **rule)
    without = ilsvrc_det.unseen_synsets(folder, [names[2]], count=6, min_images=3)
    assert without == [names[k] for k in (1, 3, 4, 5, 7, 8)]


def test_unseen_synsets_refusals(tmp_path):
    folder = _boxed(tmp_path, {"n1": 3, "n2": 3})
    with pytest.raises(DataError, match="2 synsets with at least 3 boxed images are left, fewer than 90"):
        ilsvrc_det.unseen_synsets(folder, [], min_images=3)
    with pytest.raises(DataError, match="no such folder"):
        ilsvrc_det.unseen_synsets(tmp_path / "none", [])
    _lines(tmp_path / "is_a.txt", ["n1 n2 n3"])
    with pytest.raises(DataError, match="expected lines of two wnids"):
        ilsvrc_det.unseen_synsets(folder, ["n1"], is_a=tmp_path / "is_a.txt", count=1)
