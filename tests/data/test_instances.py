"""Instances as requests: from annotations alone, minimum side, exact cuts, class pictures, empty data."""

import pickle

import numpy as np

from sm_jax.data import instances, sources
from tests.data import makers
from tests.data.painted import SCENES, Painted


def _requests(found, label):
    return [found[row] for row in found.rows_by_class(found.request)[label]]


def test_every_usable_instance_and_no_picture_decoded():
    source = Painted(SCENES)
    found = instances.find(source)
    assert source.decoded == 0
    assert len(found) == 10 and found.starts.tolist() == [0, 2, 4, 5, 8, 10]
    first, *others = _requests(found, 0)
    assert first[:3] == (0, 0, 0) and first.box.tolist() == [10, 10, 60, 60]
    assert first.image_id == "picture 0"
    assert [(other.index, other.box_index) for other in others] == [
        (0, 1),
        (1, 0),
        (2, 0),
    ]  # not the difficult one
    assert [(other.index, other.box_index) for other in _requests(found, 1)] == [
        (1, 1),
        (3, 0),
    ]  # not the 15 px one
    np.testing.assert_array_equal(found.rows(3), [5, 6, 7])
    by_class = found.rows_by_class(found.request)
    assert [rows.tolist() for rows in by_class] == [[0, 1, 2, 4], [3, 5], [8, 9]]


def test_minimum_side_is_of_both_sides():
    source = Painted([[(0, (0, 0, 31, 100)), (0, (40, 0, 140, 32)), (0, (0, 100, 31, 120))]])
    assert [request.box_index for request in _requests(instances.find(source), 0)] == [1]
    assert [request.box_index for request in _requests(instances.find(source, min_side=31), 0)] == [0, 1]


def test_cut_is_the_pixels_of_the_box():
    source = Painted(SCENES)
    found = instances.find(source)
    for row in range(len(found)):
        entry = found[row]
        picture = instances.cut(source.image(entry.index), entry.box)
        left, top, right, bottom = (int(edge) for edge in entry.box)
        assert picture.shape == (bottom - top, right - left, 3) and picture.dtype == np.uint8
        assert (picture == (10 + 20 * entry.label, 10 * entry.index, entry.box_index)).all()
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    np.testing.assert_array_equal(instances.cut(image, np.array([0.5, 1.2, 2.1, 2.0])), image[1:2, 0:3])
    np.testing.assert_array_equal(instances.cut(image, np.array([9.0, 9.0, 12.0, 12.0])), image[3:, 3:])


def test_which_class_pictures_serve():
    source = Painted([[(0, (0, 0, 20, 20)), (1, (0, 50, 60, 110), True)]], num_classes=3, broken=["query 1"])
    assert not instances.find(source).request.any()
    assert [instances.picture_serves(source, label) for label in range(3)] == [True, False, True]
    assert not instances.picture_serves(Painted(source.scenes, query=(31, 200)), 0)


def test_no_boxes_at_all():
    found = instances.find(Painted([[], []]))
    assert len(found) == 0 and _requests(found, 1) == [] and found.rows(1).tolist() == []


def test_real_source_pickles_and_crops(tmp_path):
    source = sources.open_source(makers.voc(tmp_path, 4), split="all")
    found = pickle.loads(pickle.dumps(instances.find(source, min_side=20)))
    x1, y1, x2, y2 = makers.BOXES["dog"]
    requests = _requests(found, 1)
    assert [request.image_id for request in requests] == ["1", "2", "3"]  # difficult on picture 0
    picture = instances.cut(source.image(requests[1].index), requests[1].box)
    np.testing.assert_array_equal(picture, makers.picture(2)[y1:y2, x1:x2])
