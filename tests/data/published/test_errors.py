"""Every missing or odd published file is one line that says what, where, and how to get it."""

import numpy as np
import pytest

from sm_jax.data import published
from sm_jax.data.builders import published as build_published
from sm_jax.errors import DataError
from tests.data import makers
from tests.data.published import maker

ROW = maker.row


def _refused(name, folder, *, splits=(), build=False) -> str:
    with pytest.raises(DataError) as error:
        if build:
            build_published.build(name, folder, folder.parent / "built", splits=splits)
        else:
            published.open_sources(name, folder, splits=splits)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", published.DATASETS)
def test_nothing_there_says_what_to_get(tmp_path, name):
    dataset = published.find(name)
    line = _refused(name, tmp_path)
    assert line.startswith(f"{tmp_path / dataset.folder}: not there; ") and dataset.get in line
    assert "no such folder" in _refused(name, tmp_path / "none")


@pytest.mark.parametrize("part", ["classes/grozi.csv", "classes/images", "src/3264"])
def test_a_missing_part_of_grozi(tmp_path, part):
    home = maker.grozi(tmp_path)
    (home / part).rename(home / "elsewhere")
    assert f"{home / part}: not there; unpack grozi.zip" in _refused("grozi", tmp_path)


def _table(home, rows, columns=(*maker.COLUMNS, "split")):
    maker.write(home / "classes" / "grozi.csv", rows, columns)


def test_odd_tables(tmp_path):
    home = maker.grozi(tmp_path)
    rows = maker.grozi_rows()
    _table(home, rows, maker.COLUMNS)
    assert "columns split are missing" in _refused("grozi", tmp_path)
    _table(home, rows, [column for column in (*maker.COLUMNS, "split") if column != "difficult"])
    assert "columns difficult are missing" in _refused("grozi", tmp_path)
    _table(home, [*rows, ROW(0, 10, split="test")])
    assert "column split must hold train, val-new-cl, val-old-cl, and differs in test" in _refused(
        "grozi", tmp_path
    )
    _table(home, rows[:3])
    assert "differs in val-new-cl, val-old-cl" in _refused("grozi", tmp_path)
    _table(home, [*rows, ROW(0, 10, split="train") | {"lx": "left"}])
    assert "line 9 is not usable (could not convert string to float" in _refused("grozi", tmp_path)
    _table(home, [*rows, ROW(99, 10, split="train")])
    assert "picture '99.jpg' was not found in" in _refused("grozi", tmp_path)
    _table(home, [*rows, ROW(0, 77, split="train")])
    assert "class picture of class 77 was not found in" in _refused("grozi", tmp_path)
    _table(home, [])
    assert "holds no usable row" in _refused("grozi", tmp_path)


def test_damaged_pictures_stop_a_build(tmp_path):
    home = maker.retail(tmp_path / "data", "dairy", [ROW(0, 1)], folder="original")
    path = home / "src" / "original" / "0.jpg"
    path.write_bytes(path.read_bytes()[:400])
    assert f"{path}: " in _refused("dairy", tmp_path / "data", build=True)
    makers.save(path)
    picture = home / "classes" / "images" / "1.jpg"
    picture.write_bytes(b"")
    assert f"{picture}: the file is empty" in _refused("dairy", tmp_path / "data", build=True)


@pytest.mark.parametrize("part", ["INSTRE-S1", "gnd_instre.mat"])
def test_a_missing_part_of_instre(tmp_path, part):
    home = maker.instre(tmp_path)
    (home / part).rename(home / "elsewhere")
    assert f"{home / part}: not there; put gnd_instre.mat" in _refused("instre-s1", tmp_path)


def test_odd_instre_lists(tmp_path):
    home = tmp_path / "instre"
    (home / "INSTRE-S1").mkdir(parents=True)
    mat = home / "gnd_instre.mat"
    mat.write_bytes(b"no matlab")
    assert f"{mat}: not a readable MATLAB file" in _refused("instre-s1", tmp_path)
    names = [f"INSTRE-S1/{i:02d}a_x/1.jpg" for i in range(10)]
    maker.instre_mat(home, names, names, [[1]] * 10, keys=("qimlist", "pictures", "gnd"))
    assert "holds no imlist" in _refused("instre-s1", tmp_path)
    maker.instre_mat(home, names[:9], names, [[1]] * 10)
    assert "9 queries, but 10 entries of gnd" in _refused("instre-s1", tmp_path)
    maker.instre_mat(home, ["../x.jpg", *names[1:]], names, [[1]] * 10)
    assert "'../x.jpg' is not a path SUBSET/FOLDER/PICTURE" in _refused("instre-s1", tmp_path)
    maker.instre_mat(home, names, names, [[1], [11], *[[1]] * 8])
    assert "entry 2 of gnd counts beyond the 10 pictures" in _refused("instre-s1", tmp_path)
    maker.instre_mat(home, names, names, [[1]] * 10, box="left")
    assert "entry 1 of gnd is not positives and a box" in _refused("instre-s1", tmp_path)
    maker.instre_mat(home, [name.replace("S1", "S2") for name in names], names, [[1]] * 10)
    assert "holds no query of INSTRE-S1" in _refused("instre-s1", tmp_path)


def test_odd_instre_pictures_and_boxes(tmp_path):
    home = maker.instre(tmp_path)
    first = home / "INSTRE-S1" / "00a_thing" / "002.jpg"
    pair = home / "INSTRE-M" / "01_pair" / "001.txt"
    text = first.with_suffix(".txt")
    for content, message in (
        ("10 12 40\n", f"{text}: a line is not four numbers"),
        ("a b c d\n", f"{text}: a line is not four numbers"),
        ("\n", f"{text}: holds no box"),
    ):
        text.write_text(content)
        assert message in _refused("instre-s1", tmp_path)
    text.unlink()
    assert f"{text}: cannot be read" in _refused("instre-s1", tmp_path)
    text.write_text("10 12 40 28\n")
    pair.write_text("10 12 40 28\n")
    assert "a picture of INSTRE-M has two boxes, not 1" in _refused("instre-s1", tmp_path)
    pair.write_text("10 12 40 28\n60 30 20 10\n")
    first.unlink()
    assert f"{first}: gnd_instre.mat names it, but it is not there" in _refused("instre-s1", tmp_path)


def test_odd_instre_queries(tmp_path):
    home = maker.instre(tmp_path, queries=10)
    names = [f"INSTRE-S1/{i:02d}{'ab'[i % 2]}_thing/001.jpg" for i in range(10)]
    listed = [name.replace("001", "002") for name in names] + ["INSTRE-M/01_pair/001.jpg"]
    places = [[i + 1] for i in range(10)]
    maker.instre_mat(home, names, listed, places, box=(50, 12, 50, 40))
    assert "query INSTRE-S1/00a_thing/001.jpg: its box [50.0, 12.0, 50.0, 40.0] is empty" in _refused(
        "instre-s1", tmp_path
    )
    maker.instre_mat(home, names, listed, places, box=(50, 12, 60))
    assert "its box is not four numbers" in _refused("instre-s1", tmp_path)
    makers.save(home / "INSTRE-S2" / "00a_x" / "1.jpg")
    maker.instre_mat(home, names, ["INSTRE-S2/00a_x/1.jpg", *listed[1:]], places)
    (home / "INSTRE-S2" / "00a_x" / "1.txt").write_text("1 1 9 9\n")
    assert "cannot be a positive of INSTRE-S1/00a_thing/001.jpg" in _refused("instre-s1", tmp_path)
    makers.save(home / "INSTRE-S1" / "00x_thing" / "001.jpg")
    maker.instre_mat(home, ["INSTRE-S1/00x_thing/001.jpg", *names[1:]], listed, [[11], *places[1:]])
    assert "is neither a nor b" in _refused("instre-s1", tmp_path)


@pytest.mark.parametrize(
    ("part", "splits"),
    [
        ("ILSVRC/Data/CLS-LOC", ["test"]),
        ("ILSVRC/Annotations/CLS-LOC/val", ["val-2"]),
        ("ILSVRC/Annotations/CLS-LOC/train", ["train"]),
        ("repmet_test_classes.txt", ["train"]),
        ("RepMet_CVPR2019_data/data/Imagenet_LOC/voc_inloc_roidb.pkl", ["test"]),
        ("RepMet_CVPR2019_data/data/Imagenet_LOC/episodes/epi_inloc_in_domain_1_5_10_500.pkl", ["test"]),
    ],
)
def test_a_missing_part_of_repmet(tmp_path, part, splits):
    home = maker.repmet(tmp_path)
    (home / part).rename(home / "elsewhere")
    assert f"{home / part}: not there; put ILSVRC2012" in _refused("repmet", tmp_path, splits=splits)


class _Runs:
    def __reduce__(self):
        return print, ("ran",)


def test_odd_episodes(tmp_path, capsys):
    home = maker.repmet(tmp_path)
    data = home / "RepMet_CVPR2019_data" / "data" / "Imagenet_LOC"
    path = data / "episodes" / "epi_inloc_in_domain_1_5_10_500.pkl"
    good = maker.episode("ab", (3, 5))
    other = good["train_boxes"][0]
    for stored, message in (
        ([_Runs()], "the pickle holds __builtin__.print"),
        ({"a": 1}, "is not a list of episodes"),
        ([good, {"epi_cats": [1]}], "episode 1 is not readable (KeyError: 'train_boxes')"),
        ([good | {"epi_cats": [3]}], "class 5 is not one of epi_cats"),
        ([good | {"train_boxes": [other[:3]]}], "episode 0 is not readable (ValueError"),
        ([good | {"train_boxes": [[*other[:3], np.array([5, 5, 5, 9])]]}], "class 3: its box [5.0, 5.0"),
        (
            [good | {"train_boxes": [[*other[:2], f"{maker.AUTHORS}../../x.JPEG", other[3]]]}],
            "no path below ILSVRC: ",
        ),
        ([good | {"query_images": [maker.path_of("z")]}], "has no entry for"),
        ([good | {"train_boxes": [[*other[:2], maker.path_of("z"), other[3]]]}], "no such picture file"),
    ):
        maker.dump(path, stored)
        assert message in _refused("repmet", tmp_path)
    assert "ran" not in capsys.readouterr().out


def test_odd_roidb(tmp_path):
    home = maker.repmet(tmp_path)
    path = home / "RepMet_CVPR2019_data" / "data" / "Imagenet_LOC" / "voc_inloc_roidb.pkl"
    good = maker.roi("b")
    for entry, message in (
        (good | {"flipped": True}, "is flipped"),
        ({key: value for key, value in good.items() if key != "boxes"}, "is not readable ('boxes')"),
        (good | {"gt_classes": np.array([3])}, "has 3 boxes, 1 classes"),
        ({"width": 3}, "an entry of 'roidb' has no 'image'"),
    ):
        maker.dump(path, {"roidb": [maker.roi("a"), entry]})
        assert message in _refused("repmet", tmp_path)
    maker.dump(path, [1])
    assert "has no list 'roidb'" in _refused("repmet", tmp_path)
    maker.dump(path, {"roidb": [maker.roi("a"), good | {"width": 101}]})
    assert "the annotation says 101x80 pixels, the picture has 100x80" in _refused(
        "repmet", tmp_path, build=True
    )


def test_odd_annotations(tmp_path):
    home = maker.repmet(tmp_path)
    annotations = home / "ILSVRC" / "Annotations" / "CLS-LOC"
    assert "holds 8 boxes, fewer than 9" in _refused("repmet", tmp_path, splits=["val-9"])
    path = annotations / "val" / "ILSVRC2012_val_00000000.xml"
    good = path.read_text()
    for content, message in (
        ("<annotation>", "not valid XML"),
        (good.replace("<width>100</width>", ""), "does not say its picture and size"),
        (
            good.replace(f"<filename>{path.stem}</filename>", "<filename>../x</filename>"),
            "does not say its picture",
        ),
        (good.replace("<name>n09000001</name>", "<name>cat</name>"), "an object has no synset or no box"),
        (good.replace("<xmin>11</xmin>", ""), "an object has no synset or no box"),
    ):
        path.write_text(content)
        assert message in _refused("repmet", tmp_path, splits=["val-2"])
    path.write_text(good)
    (home / "ILSVRC" / "Data" / "CLS-LOC" / "val" / f"{path.stem}.JPEG").unlink()
    assert "is annotated, but not there" in _refused("repmet", tmp_path, splits=["val-8"])
    (home / "repmet_test_classes.txt").write_text("n00000001\n")
    assert "must hold the 214 synsets" in _refused("repmet", tmp_path, splits=["train"])
    (home / "repmet_test_classes.txt").write_text("".join(f"n{i + 9000000:08d}\n" for i in range(1, 215)))
    for folder in (annotations / "train").glob("n00*"):
        folder.rename(home / "gone")
    assert "holds no box outside the test classes" in _refused("repmet", tmp_path, splits=["train"])
