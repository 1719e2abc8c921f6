"""Caltech-101 and PASCAL-Parts in exactly the published forms, made small."""

import numpy as np
import pytest
import scipy.io

from sm_jax.data.sources import mask_pairs
from sm_jax.errors import DataError
from tests.data.pair_maker import picture

SIZE = (40, 60)


def caltech(root, classes=("beaver", "Faces"), count=3):
    for number, name in enumerate(classes):
        folder = root / "Annotations" / mask_pairs.CALTECH_FOLDERS.get(name, name)
        folder.mkdir(parents=True)
        for index in range(1, count + 1):
            picture(root / "101_ObjectCategories" / name / f"image_{index:04d}.jpg", 10 * number + index)
            contour = np.array([[0.0, 20, 20, 0], [0, 0, 10, 10]])  # x, y from the corner of the box
            box = [6, 16, 11 + index, 31 + index]  # top, bottom, left, right
            scipy.io.savemat(
                folder / f"annotation_{index:04d}.mat", {"obj_contour": contour, "box_coord": [box]}
            )
    return root


def test_caltech_outlines_count_from_the_box(tmp_path):
    picture(
        tmp_path / "101_ObjectCategories" / "BACKGROUND_Google" / "image_0001.jpg", 1
    )  # as it is published
    pairs = mask_pairs.read_caltech(caltech(tmp_path), per_class=2)
    assert [pair.class_name for pair in pairs] == ["Faces", "Faces", "beaver", "beaver"]
    assert mask_pairs.is_caltech(tmp_path) and not mask_pairs.is_parts(tmp_path)
    pair = pairs[2]
    index = int(pair.source.stem[-1])
    mask = pair.source_masks()[mask_pairs.OBJECT]
    rows, columns = np.nonzero(mask)
    assert mask.shape == SIZE and rows.min() == 5 and abs(columns.min() - (10 + index)) <= 1
    assert abs(mask.sum() - 200) < 40


def test_caltech_pairs_are_drawn_alike(tmp_path):
    root = caltech(tmp_path)
    names = [[(p.source, p.target) for p in mask_pairs.read_caltech(root, per_class=4)] for _ in range(2)]
    assert names[0] == names[1] and len(set(names[0])) == 8
    assert names[0] != [(p.source, p.target) for p in mask_pairs.read_caltech(root, per_class=4, seed=1)]


def test_caltech_list_with_outlines(tmp_path):
    caltech(tmp_path)
    rows = [
        "source_image,target_image,class,XA,YA,XB,YB",
        "beaver/image_0001.jpg,101_ObjectCategories/beaver/image_0002.jpg,beaver,"
        "1;11;11;1,1;1;6;6,21;31;31;21,1;1;6;6",
    ]
    (tmp_path / mask_pairs.CALTECH_CSV).write_text("\n".join(rows))
    (pair,) = mask_pairs.read_caltech(tmp_path)
    mask = pair.source_masks()["object"]
    assert mask[:5, :10].all() and not mask[7:].any() and not mask[:, 12:].any()
    assert not pair.target_masks()["object"][:, :19].any()


def test_caltech_in_one_line(tmp_path):
    root = caltech(tmp_path, count=2)
    path = root / "Annotations" / "beaver" / "annotation_0001.mat"
    scipy.io.savemat(path, {"box_coord": [1, 2, 3, 4]})
    pairs = mask_pairs.read_caltech(root)
    pair = next(p for p in pairs if p.class_name == "beaver" and p.source.name == "image_0001.jpg")
    with pytest.raises(DataError, match="annotation_0001.mat: has no 'obj_contour'"):
        pair.source_masks()
    scipy.io.savemat(path, {"box_coord": [1, 2, 3], "obj_contour": np.zeros((2, 4))})
    with pytest.raises(DataError, match="expected .2, k. and .4,."):
        pair.source_masks()
    (root / "101_ObjectCategories" / "beaver" / "image_0002.jpg").unlink()
    with pytest.raises(DataError, match="make no pair"):
        mask_pairs.read_caltech(root)
    (root / mask_pairs.CALTECH_CSV).write_text("source_image,target_image,class\na/b.jpg,a/c.jpg,a\n")
    with pytest.raises(DataError, match="no picture 'a/b.jpg'"):
        mask_pairs.read_caltech(root)


def parts(root, names=("2008_000001", "2008_000002")):
    for number, name in enumerate(names):
        picture(root / "JPEGImages" / f"{name}.jpg", number)
        large, small, head = (np.zeros(SIZE, np.uint8) for _ in range(3))
        large[5:30, 10:40], small[:4, :4], head[5:12, 10 + number : 20 + number] = 1, 1, 1
        part = {"part_name": "head", "mask": head}
        tail = {"part_name": "tail", "mask": np.roll(head, 20, 1)}
        objects = np.empty(3, object)
        objects[0] = {"class": "cow", "mask": small, "parts": part}
        mine = np.empty(2, object)
        mine[0], mine[1] = part, tail
        objects[1] = {"class": "cow", "mask": large, "parts": mine}
        objects[2] = {"class": "person", "mask": large, "parts": np.zeros((0, 0))}
        path = root / "Annotations_Part" / f"{name}.mat"
        path.parent.mkdir(parents=True, exist_ok=True)
        scipy.io.savemat(path, {"anno": {"imname": name, "objects": objects}})
    row = f"{names[0]}.jpg,{names[1]}.jpg,cow,11;20,6;12,12;21,6;12"
    (root / "pairs.csv").write_text(f"source_image,target_image,class,XA,YA,XB,YB\n{row}\n")
    return root


def test_parts_are_those_of_the_largest_object(tmp_path):
    assert mask_pairs.is_parts(parts(tmp_path))
    (pair,) = mask_pairs.read_parts(tmp_path)
    found = pair.source_masks()
    assert set(found) == {"head", "tail"} and found["head"].shape == SIZE and found["head"].sum() == 70
    np.testing.assert_allclose(pair.keypoints_source, [[10.5, 5.5], [19.5, 11.5]])


def test_parts_in_one_line(tmp_path):
    parts(tmp_path)
    text = (tmp_path / "pairs.csv").read_text()
    (tmp_path / "pairs.csv").write_text(text.replace(",cow,", ",person,"))
    (pair,) = mask_pairs.read_parts(tmp_path)
    with pytest.raises(DataError, match="its person has no parts"):
        pair.source_masks()
    (tmp_path / "pairs.csv").write_text(text.replace(",cow,", ",dog,"))
    with pytest.raises(DataError, match="none of the class 'dog'"):
        mask_pairs.read_parts(tmp_path)[0].source_masks()
    (tmp_path / "pairs.csv").write_text(text.replace("000001.jpg", "000009.jpg"))
    with pytest.raises(DataError, match="there is no picture"):
        mask_pairs.read_parts(tmp_path)
    (tmp_path / "pairs.csv").write_text("source_image,target_image,class\n")
    with pytest.raises(DataError, match="lists no pairs"):
        mask_pairs.read_parts(tmp_path)
