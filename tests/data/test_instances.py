"""Instances as requests: from annotations alone, minimum side, exact crops, class pictures, empty data."""

import pickle

import numpy as np
import pytest

from sm_jax.data import instances, sources
from sm_jax.errors import ImageError
from tests.data import makers
from tests.data.painted import SCENES, Painted, label_of


def test_every_usable_instance_and_no_picture_decoded():
    source = Painted(SCENES)
    found = instances.find(source)
    assert source.decoded == 0
    assert len(found) == 10 and found.starts.tolist() == [0, 2, 4, 5, 8, 10]
    first, *others = found.requests(0)
    assert first[:3] == (0, 0, 0) and first.box.tolist() == [10, 10, 60, 60]
    assert first.image_id == "picture 0"
    assert [(other.index, other.box_index) for other in others] == [
        (0, 1),
        (1, 0),
        (2, 0),
    ]  # not the difficult one
    assert [(other.index, other.box_index) for other in found.requests(1)] == [
        (1, 1),
        (3, 0),
    ]  # not the 15 px one
    np.testing.assert_array_equal(found.rows(3), [5, 6, 7])
    by_class = found.rows_by_class(found.request)
    assert [rows.tolist() for rows in by_class] == [[0, 1, 2, 4], [3, 5], [8, 9]]


def test_minimum_side_is_of_both_sides():
    source = Painted([[(0, (0, 0, 31, 100)), (0, (40, 0, 140, 32)), (0, (0, 100, 31, 120))]])
    assert [request.box_index for request in instances.find(source).requests(0)] == [1]
    assert [request.box_index for request in instances.find(source, min_side=31).requests(0)] == [0, 1]


def test_crop_is_the_pixels_of_the_box():
    source = Painted(SCENES)
    for label in range(3):
        for request in instances.find(source).requests(label):
            picture = instances.crop(source, request)
            left, top, right, bottom = (int(edge) for edge in request.box)
            assert picture.shape == (bottom - top, right - left, 3) and picture.dtype == np.uint8
            assert (picture == (10 + 20 * label, 10 * request.index, request.box_index)).all()
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    np.testing.assert_array_equal(instances.cut(image, np.array([0.5, 1.2, 2.1, 2.0])), image[1:2, 0:3])
    np.testing.assert_array_equal(instances.cut(image, np.array([9.0, 9.0, 12.0, 12.0])), image[3:, 3:])


def test_class_without_requests():
    source = Painted([[(0, (0, 0, 20, 20)), (1, (0, 50, 60, 110), True)]], num_classes=3)
    found = instances.find(source)
    assert found.requests(0) == found.requests(1) == found.requests(2) == []
    (request,) = instances.class_requests(source, found, 0)
    assert request.index == instances.CLASS_PICTURE and request.box.tolist() == [0, 0, 50, 40]
    assert label_of(instances.crop(source, request)[0, 0]) == 0
    tiny = Painted(source.scenes, query=(31, 200))
    assert instances.class_requests(tiny, found, 0) == []
    broken = Painted(source.scenes, broken=["query 1"])
    assert instances.class_requests(broken, found, 1) == []


def test_no_boxes_at_all():
    found = instances.find(Painted([[], []]))
    assert len(found) == 0 and found.requests(1) == [] and found.rows(1).tolist() == []


def test_real_source_pickles_and_crops(tmp_path):
    source = sources.open_source(makers.voc(tmp_path, 4), split="all")
    found = pickle.loads(pickle.dumps(instances.find(source, min_side=20)))
    x1, y1, x2, y2 = makers.BOXES["dog"]
    requests = found.requests(1)
    assert [request.image_id for request in requests] == ["1", "2", "3"]  # difficult on picture 0
    np.testing.assert_array_equal(instances.crop(source, requests[1]), makers.picture(2)[y1:y2, x1:x2])


def test_damaged_picture():
    source = Painted(SCENES, broken=[2])
    with pytest.raises(ImageError, match="2.jpg: damaged"):
        instances.crop(source, instances.find(source).requests(0)[-1])
