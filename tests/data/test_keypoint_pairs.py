"""Key-point pairs: the published forms and a person's own, splits, overlap, and one line for each fault."""

import json
import logging

import numpy as np
import pytest
import scipy.io

from sm_jax import matlab
from sm_jax.data.scnet_pairs import common
from sm_jax.data.sources import keypoint_pairs, pf_pascal
from sm_jax.data.sources.keypoint_pairs import check_overlap, open_pairs, protocol_id
from sm_jax.data.sources.pair_records import class_splits, points
from sm_jax.errors import ConfigError, DataError, ImageError
from tests.data import pair_maker
from tests.data.pair_maker import NAN

HEADER = "source_image,target_image,class,XA,YA,XB,YB"


def fails(words, call, *args, kind=DataError, **options):
    with pytest.raises(kind, match=words) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)


# PF-WILLOW ----------------------------------------------------------------------------------------


def test_willow_gives_all_ordered_pairs_in_our_coordinates(tmp_path):
    found = open_pairs(pair_maker.willow(tmp_path))
    assert len(found) == 2 * 3 * 2 and found.class_names == ("car(S)", "duck(S)")
    assert {pair.split for pair in found} == {"test"} and not found.notes
    first = found[0]
    assert (first.source.name, first.target.name) == ("p_0.png", "p_1.png")
    assert first.keypoints_source.shape == (10, 2) and first.keypoints_source.dtype == np.float64
    # (1, 2) counted from 1 is the centre of the pixel in column 0, row 1
    assert first.keypoints_source[0].tolist() == [0.5, 1.5] and first.keypoints_target[0].tolist() == [
        1.5,
        1.5,
    ]
    assert first.keypoints_source[1].tolist() == [3.5, 13.5] and first.visible.all()
    source, target = first.read()
    assert source.shape == (40, 60, 3) and not np.array_equal(source, target)


def test_willow_faults(tmp_path):
    root = pair_maker.willow(tmp_path)
    path = root / "car(S)" / "p_1.mat"
    scipy.io.savemat(path, {"points": np.ones((2, 10))})
    fails(r"p_1.mat: has no 'pts_coord', only points", open_pairs, root)
    scipy.io.savemat(path, {"pts_coord": np.ones((2, 9))})
    fails(r"shape \(2, 9\), expected \(2, 10\)", open_pairs, root)
    scipy.io.savemat(path, {"pts_coord": np.where(np.arange(20).reshape(2, 10) == 3, NAN, 5.0)})
    fails("p_1.mat: key-point 3 is NaN", open_pairs, root)
    path.write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    fails("p_1.mat: not a readable MATLAB file", open_pairs, root)
    path.unlink()
    fails("p_1.mat: no such file", open_pairs, root)


def test_a_category_is_left_out_whole(tmp_path):
    found = open_pairs(pair_maker.willow(tmp_path, ("car(G)", "car(S)", "duck(S)")))
    train, test = found.leave_out("car")
    assert train.class_names == ("duck(S)",) and test.class_names == ("car(G)", "car(S)")
    fails("no split 'train' of pairs; there are test; leave_out=CATEGORY trains on all", found.split, "train")
    fails("no pairs of the category 'cars'; did you mean 'car'", found.leave_out, "cars")
    fails("only category", train.leave_out, "duck")


# PF-PASCAL ----------------------------------------------------------------------------------------


def test_pascal_from_its_table(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "sm_jax.data"):
        found = open_pairs(pair_maker.pascal(tmp_path))
    assert [pair.class_name for pair in found] == ["bird"] + ["bus"] * 4  # the order of VOC's classes
    assert [pair.split for pair in found] == ["train", "train", "train", "train", "val"]
    pair = found[1]
    assert pair.source == tmp_path / "JPEGImages" / "2008_000000.jpg"
    assert pair.keypoints_source[:2].tolist() == [[0.5, 0.5], [10.0, 10.5]]
    assert np.isnan(pair.keypoints_source[2]).all() and pair.keypoints_target[2].tolist() == [29.5, 20.5]
    assert pair.visible.tolist() == [True, True, False]
    assert found[0].keypoints_target.tolist() == [[4.5, 5.5]]
    assert len(found.split("train")) == 4 and len(open_pairs(tmp_path, split="val")) == 1
    fails("no split 'test' of pairs; there are train, val$", found.split, "test")


def write_lists(root, folder):
    folder.mkdir(exist_ok=True)
    prefix = "PF-dataset-PASCAL/JPEGImages/"
    a, b, c = (f"{prefix}2008_00000{i}.jpg" for i in range(3))
    rows = [f"{a},{b},6,0", f"{a},{b},6,1", f"{b},{a},6,0", f"{b},{a},6,1"]
    (folder / "train_pairs.csv").write_text("\n".join(["source_image,target_image,class,flip", *rows]))
    (folder / "val_pairs.csv").write_text(f"source_image,target_image,class,flip\n{b},{c},6,0\n")
    (folder / "test_pairs.csv").write_text(f"{HEADER}\n{a},{c},6,10;20,5;6.25,11;21.5,7;8\n")


def test_pascal_from_lists(tmp_path):
    root, lists = pair_maker.pascal(tmp_path / "data"), tmp_path / "lists"
    write_lists(root, lists)
    found = open_pairs(root, lists=lists)
    assert [pair.split for pair in found] == ["train", "train", "val", "test"]
    assert found.notes == ("train_pairs.csv: 2 rows of mirrored pairs are left out",)
    assert found[0].source == found[1].target == root / "JPEGImages" / "2008_000000.jpg"
    assert found[0].keypoints_source[1].tolist() == [10.0, 10.5]  # of the annotation
    assert found[3].keypoints_source.tolist() == [[9.5, 4.5], [19.5, 5.75]]  # of the list
    assert found[3].keypoints_target.tolist() == [[10.5, 6.5], [21.0, 7.5]]
    (root / pf_pascal.TABLE).unlink()
    write_lists(root, root)
    assert protocol_id(open_pairs(root)) == protocol_id(found)


def test_lists_with_points_need_no_pictures_to_be_read(tmp_path):
    write_lists(None, tmp_path / "lists")
    for split in ("train", "val"):
        (tmp_path / "lists" / f"{split}_pairs.csv").unlink()
    found = pf_pascal.read(tmp_path, lists=tmp_path / "lists", check_pictures=False)
    assert len(found) == 1 and len(found.notes) == 2
    fails("2008_000000.jpg: no such picture", pf_pascal.read, tmp_path, lists=tmp_path / "lists")


def test_pairs_without_a_common_point_are_left_out_and_noted(tmp_path):
    root = pair_maker.pascal(tmp_path)
    pair_maker.annotation(root, "bus", "2008_000002", [[NAN, NAN], [NAN, NAN], [NAN, NAN]])
    found = open_pairs(root)
    assert len(found) == 3 and found.notes[0].startswith("2 pairs left out: no key-point is visible")


def test_pascal_faults(tmp_path):
    root = pair_maker.pascal(tmp_path)
    (root / "JPEGImages" / "2008_000003.jpg").unlink()
    fails("2008_000003.jpg: no such picture", open_pairs, root)
    pair_maker.picture(root / "JPEGImages" / "2008_000003.jpg")
    path = root / "Annotations" / "bus" / "2008_000002.mat"
    scipy.io.savemat(path, {"bbox": np.ones(4)})
    fails("2008_000002.mat: has no 'kps'", open_pairs, root)
    scipy.io.savemat(path, {"kps": np.array([[1, NAN], [2, 3], [4, 5]])})
    fails(r"2008_000002.mat: key-point 0 is \[1.0, nan\]", open_pairs, root)
    scipy.io.savemat(path, {"kps": np.array([[2.0, 3.0], [4.0, 5.0]])})
    fails(
        r"2008_000001.jpg -> 2008_000002.jpg \(bus\): 3 key-points in the source, 2 in the", open_pairs, root
    )
    path.unlink()
    fails("2008_000002.mat: no such file", open_pairs, root)
    scipy.io.savemat(root / pf_pascal.TABLE, {"PascalVOC": {"pairs": 1}})
    fails("no field PascalVOC.pair", open_pairs, root)
    cells = np.empty((1, 3), object)
    cells[0] = [np.zeros((0, 2))] * 3
    scipy.io.savemat(root / pf_pascal.TABLE, {"PascalVOC": {"pair": cells}})
    fails("has 3 classes, expected 20", open_pairs, root)


def test_list_faults(tmp_path):
    root = pair_maker.pascal(tmp_path)
    for text, words in (
        ("source_image,class\na,1\n", "columns target_image are missing"),
        (f"{HEADER}\na,b,21,1,1,1,1\n", "line 2: class '21' is neither 1 to 20"),
        (f"{HEADER}\na,b,1,1;2,1,1,1\n", "line 2: unlike numbers of coordinates"),
        (f"{HEADER}\na,b,1,1;x,1;1,1;1,1;1\n", "line 2: XA is not a list of numbers"),
        (f"{HEADER}\na\n", "line 2: has more or fewer values"),
        (f"{HEADER}\na,b, ,1,1,1,1\n", "line 2: class is empty"),
    ):
        (root / "test_pairs.csv").write_text(text)
        fails(words, open_pairs, root)


# own files ----------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path):
    for index, name in enumerate(("a.png", "images/b.png")):
        pair_maker.picture(tmp_path / name, index)  # 60 x 40
    return tmp_path


def test_own_csv_and_json_say_the_same(own):
    (own / "pairs.csv").write_text(
        f"{HEADER},split\na.png,b.png,mug,10;20.5;-1,30;40;-1,12;22;50,31;39;20,\na.png,images/b.png,cup,nan;1,nan;1,3;3,3;3,val\n"
    )
    pairs = [
        {
            "source": "a.png",
            "target": "b.png",
            "class": "mug",
            "keypoints_source": [[10, 30], [20.5, 40], None],
            "keypoints_target": [[12, 31], [22, 39], [50, 20]],
        },
        {
            "source": "a.png",
            "target": "images/b.png",
            "class": "cup",
            "split": "val",
            "keypoints_source": [[-1, -1], [1, 1]],
            "keypoints_target": [[3, 3], [3, 3]],
        },
    ]
    (own / "pairs.json").write_text(json.dumps({"pairs": pairs}))
    table, document = open_pairs(own / "pairs.csv"), open_pairs(own / "pairs.json")
    assert len(table) == len(document) == 2
    for one, other in zip(table, document, strict=True):
        assert (one.source, one.target, one.class_name, one.split) == (
            other.source,
            other.target,
            other.class_name,
            other.split,
        )
        np.testing.assert_array_equal(one.keypoints_source, other.keypoints_source)
        np.testing.assert_array_equal(one.keypoints_target, other.keypoints_target)
    assert table[0].keypoints_source[1].tolist() == [20.5, 40.0]  # as written: pixel edges on integers
    assert table[0].visible.tolist() == [True, True, False] and table[1].visible.tolist() == [False, True]
    assert [pair.split for pair in table] == ["train", "val"]
    shifted = open_pairs(own / "pairs.csv", convention="matlab")
    assert shifted[0].keypoints_source[1].tolist() == [20.0, 39.5]
    assert np.isnan(shifted[0].keypoints_source[2]).all()


def test_own_csv_faults(own):
    def read(row, header=HEADER, **options):
        (own / "pairs.csv").write_text(f"{header}\n{row}\n")
        return open_pairs(own / "pairs.csv", **options)

    fails("line 2: picture 'c.png' was not found", read, "a.png,c.png,x,1,1,1,1")
    fails(
        r"line 2: a.png: key-point 0 \(70, 1\) lies outside the picture of 60x40",
        read,
        "a.png,b.png,x,70,1,1,1",
    )
    fails(r"line 2: key-point 0 is \[nan, 1.0\]", read, "a.png,b.png,x,nan,1,1,1")
    fails(r"line 2: key-point 1 is \[inf, 1.0\]", read, "a.png,b.png,x,2;inf,1;1,1;1,1;1")
    fails(r"unlike numbers of coordinates \(XA 1, YA 1, XB 2, YB 2\)", read, "a.png,b.png,x,1,1,1;2,1;2")
    row = "a.png,b.png,x,1,1,1,1,val"
    fails("column 'splt' is unknown; did you mean 'split'", read, row, f"{HEADER},splt")
    fails("no pair with a key-point that is visible", read, "a.png,b.png,x,-1,-1,1,1")
    fails("columns XA, YA, XB, YB are missing", read, "a.png,b.png,x", "source_image,target_image,class")
    fails("no such", open_pairs, own / "nothing.csv")
    good = "a.png,b.png,x,1,1,1,1"
    fails("'pixels' is not one of edges, matlab", read, good, convention="pixels", kind=ConfigError)
    fails("lists='l' goes with", read, good, lists="l", kind=ConfigError)
    (own / "a.png").write_bytes(b"x")
    fails("a.png: not a picture", read, good, kind=ImageError)


def test_own_json_faults(own):
    pair = {"source": "a.png", "target": "b.png", "keypoints_source": [[1, 1]], "keypoints_target": [[1, 1]]}

    def read(document):
        (own / "pairs.json").write_text(json.dumps(document))
        return open_pairs(own / "pairs.json")

    assert len(read([pair])) == 1 and read({"pairs": [pair]})[0].class_name == ""
    fails("the list 'pairs' is missing", read, {"images": []})
    fails(r"pairs\[0\]: is no object", read, [3])
    fails(r"pairs\[0\]: 'target' is missing", read, [{"source": "a.png"}])
    fails(r"pairs\[0\]: source, target, class and split are texts", read, [pair | {"class": 3}])
    fails("keypoints_source: the key-points are not numbers", read, [pair | {"keypoints_source": [["x", 1]]}])
    fails(r"found \(1, 3\)", read, [pair | {"keypoints_source": [[1, 2, 3]]}])
    fails("not numbers", read, [pair | {"keypoints_source": [[1, 2], [3]]}])
    fails(r"pairs\[1\]: key 'splt' is unknown; did you mean 'split'", read, [pair, pair | {"splt": "val"}])


@pytest.mark.parametrize("convention, shift", [("edges", 0), ("matlab", 0.5)])
def test_an_own_point_either_counts_or_is_refused(own, convention, shift):
    """What `points.present` takes for absent, without a mark, would silently teach and measure nothing."""

    def read(x, y):
        pair = {"source": "a.png", "target": "b.png", "keypoints_target": [[9, 9], [8, 8]]}
        xy = [[x + shift, y + shift], [5, 5]]
        (own / "pairs.json").write_text(json.dumps([pair | {"keypoints_source": xy}]))
        return open_pairs(own / "pairs.json", convention=convention)

    for x, y in ((-0.4, 30), (60.9, 40.9)):
        (pair,) = read(x, y)
        assert pair.visible.all() and len(common(pair.keypoints_source, pair.keypoints_target)[0]) == 2
    for x, y in ((-0.5, 30), (-0.9, 30), (-1, 30), (20, -1), (61.1, 3)):
        fails(r"key-point 0 .* lies outside the picture of 60x40; an invisible one is null", read, x, y)


def test_published_points_that_count_nowhere_are_not_visible(tmp_path):
    root = pair_maker.pascal(tmp_path)
    pair_maker.annotation(root, "bus", "2008_000001", [[0.0, 5.0], [10.5, 12.0], [30.0, 21.0]])
    pair = open_pairs(root)[2]
    assert pair.visible.tolist() == [False, True, True]
    assert len(common(pair.keypoints_source, pair.keypoints_target)[0]) == 2


def test_what_is_not_recognised(tmp_path):
    fails("no such file or folder", open_pairs, tmp_path / "x")
    fails("no key-point pairs recognised", open_pairs, tmp_path)
    (tmp_path / "a.txt").write_text("x")
    fails("no key-point pairs recognised", open_pairs, tmp_path / "a.txt")
    pair_maker.willow(tmp_path)
    fails("published data has its own", open_pairs, tmp_path, convention="matlab", kind=ConfigError)


# lists of pairs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, (0, 0, 0)),
        (1, (1, 0, 0)),
        (2, (2, 0, 0)),
        (13, (7, 3, 3)),
        (53, (29, 12, 12)),
        (133, (72, 31, 30)),
    ],
)
def test_splits_of_a_class(count, expected):
    splits = class_splits(count)
    assert tuple(splits.count(name) for name in ("train", "val", "test")) == expected
    assert splits == sorted(splits, key=["train", "val", "test"].index)  # in file order


def test_minus_one_is_padding_only_as_a_whole():
    got = points([[-1, -1], [-1, 5]], convention="matlab", where="x")
    assert np.isnan(got[0]).all() and got[1].tolist() == [-1.5, 4.5]


def test_protocol_id_is_of_the_pairs_not_of_their_order_or_folder(tmp_path):
    one = open_pairs(pair_maker.willow(tmp_path / "a"))
    two = open_pairs(pair_maker.willow(tmp_path / "b"))
    assert protocol_id(one) == protocol_id(reversed(two)) and len(protocol_id(one)) == 12
    assert protocol_id(one) != protocol_id(one[1:])


def test_overlap_is_refused_unless_forced(tmp_path):
    found = open_pairs(pair_maker.willow(tmp_path))
    car, duck = found[:6], found[6:]
    assert check_overlap(car, duck) == check_overlap(car, duck, by="images") == []
    back = [pair for pair in car if pair.source.name > pair.target.name]
    there = [pair for pair in car if pair.source.name < pair.target.name]
    fails(r"3 pairs of the test are also trained on, such as p_\d.png", check_overlap, there, back)
    (line,) = check_overlap(there, back, force=True)
    assert line.startswith("3 pairs")
    assert check_overlap(there[:1], there[1:]) == []
    fails("2 images of the test", check_overlap, there[:1], there[1:], by="images")
    # the same picture under another name
    content = (tmp_path / "car(S)" / "p_0.png").read_bytes()
    (tmp_path / "duck(S)" / "p_2.png").write_bytes(content)
    fails("1 image of the test is also", check_overlap, car, duck, by="images")
    fails("by='files'", check_overlap, car, duck, by="files", kind=ConfigError)


def test_matlab_files_that_are_not_read(tmp_path):
    fails("a.mat: no such file", matlab.load, tmp_path / "a.mat")
    scipy.io.savemat(tmp_path / "b.mat", {"x": np.ones(1000)})
    fails("larger than 0 MiB", matlab.load, tmp_path / "b.mat", max_bytes=100)
    # version 7.3 is HDF5 behind a MATLAB header
    head = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    (tmp_path / "c.mat").write_bytes(head + bytes(600))
    fails("MATLAB 7.3 is not read", matlab.load, tmp_path / "c.mat")
    assert keypoint_pairs.__all__
