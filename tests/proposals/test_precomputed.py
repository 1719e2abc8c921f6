"""Stored boxes: both conventions, order and number kept, and one line for each thing wrong with a file."""

import numpy as np
import pytest
from PIL import Image

from sm_jax.errors import ConfigError, DataError
from sm_jax.proposals import propose
from tests.proposals.pictures import blocks


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(blocks()).save(tmp_path / "a.png")  # 80 x 60
    return tmp_path / "a.png"


def stored(picture, boxes, n=4, **options):
    np.save(picture.with_suffix(".npy"), np.asarray(boxes))
    return propose(picture, n, method="precomputed", **options)


def test_boxes_come_as_they_are(picture):
    boxes = [[5.5, 6, 20, 30], [0, 0, 80, 60], [1, 2, 3, 4]]
    got = stored(picture, boxes)
    assert got.count == 3 and got.boxes[:3].tolist() == boxes and not got.boxes[3].any()
    assert stored(picture, boxes, 2).boxes.tolist() == boxes[:2]


def test_matlab_boxes_start_at_one_with_both_corners_inside(picture):
    got = stored(picture, np.array([[1, 1, 80, 60], [3, 3, 3, 3]], np.uint16), convention="matlab")
    assert got.boxes[:2].tolist() == [[0, 0, 80, 60], [2, 2, 3, 3]]


def test_another_folder(picture, tmp_path):
    (tmp_path / "boxes").mkdir()
    np.save(tmp_path / "boxes" / "a.npy", np.array([[1, 2, 3, 4]]))
    got = propose(picture, 2, method="precomputed", folder=tmp_path / "boxes")
    assert got.boxes[0].tolist() == [1, 2, 3, 4]


def test_boxes_are_clipped(picture):
    assert stored(picture, [[-3, 50, 90, 70]]).boxes[0].tolist() == [0, 50, 80, 60]


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        (np.zeros((3, 5)), r"expected boxes of shape \(k, 4\), found \(3, 5\)"),
        (np.zeros(4), r"found \(4,\)"),
        ([["a"] * 4], "expected numbers"),
        ([[1, 2, 3, 4], [1, np.nan, 3, 4]], "box 1 holds NaN"),
        ([[1, 2, np.inf, 4]], "box 0 holds NaN or infinity"),
        ([[1, 2, 3, 4], [9, 2, 3, 4]], "box 1 is inverted or empty"),
        ([[1, 2, 1, 4]], "box 0 is inverted or empty"),
        ([[100, 2, 120, 4]], "box 0 lies outside the picture of 80x60"),
    ],
)
def test_unusable_boxes(picture, boxes, words):
    with pytest.raises(DataError, match=words) as caught:
        stored(picture, boxes)
    assert "a.npy" in str(caught.value) and "\n" not in str(caught.value)


def test_unusable_files(picture):
    with pytest.raises(DataError, match=r"a.npy: no such file"):
        propose(picture, 3, method="precomputed")
    picture.with_suffix(".npy").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"not a readable .npy"):
        propose(picture, 3, method="precomputed")
    np.save(picture.with_suffix(".npy"), np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(DataError, match=r"not a readable .npy"):
        propose(picture, 3, method="precomputed")
    with pytest.raises(ConfigError, match="needs the path"):
        propose(blocks(), 3, method="precomputed")
    with pytest.raises(ConfigError, match="half_open, matlab"):
        propose(picture, 3, method="precomputed", convention="coco")


def test_no_boxes_means_the_whole_picture(picture):
    got = stored(picture, np.zeros((0, 4)))
    assert got.count == 1 and got.boxes[0].tolist() == [0, 0, 80, 60]
