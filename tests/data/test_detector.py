"""Batches of the detector: fixed shapes, exact geometry, rows that do not depend on the processes."""

import numpy as np
import pytest

from sm_jax.data import detector, transforms
from sm_jax.errors import ConfigError, DataError
from tests.data.test_os2d import FakeSource


def _options(**changes):
    return detector.BatchOptions(
        **{"scale": 2.0, "batch_size": 4, "crop": (48, 64), "max_boxes": 5} | changes
    )


def _batch(k=0, source=None, options=None, **process):
    builder = detector.BatchBuilder(source or FakeSource(), options or _options(), **process)
    return builder.finish(builder[k])


def test_shapes_and_types():
    batch, skipped = _batch()
    expected = {
        "image": ((4, 48, 64, 3), "float32"),
        "boxes": ((4, 5, 4), "float32"),
        "labels": ((4, 5), "int32"),
        "difficult": ((4, 5), "bool"),
        "boxes_valid": ((4, 5), "bool"),
        "valid": ((4,), "bool"),
    }
    assert {name: (value.shape, value.dtype.name) for name, value in batch.items()} == expected
    assert not skipped and batch["valid"].all()


def test_boxes_lie_inside_and_cut_ones_are_difficult():
    seen = set()
    for k in range(8):
        batch, _ = _batch(k)
        for row in range(4):
            real = batch["boxes_valid"][row]
            boxes = batch["boxes"][row]
            assert (boxes[real] >= 0).all() and (boxes[real] <= [64, 48, 64, 48]).all()
            assert (boxes[real][:, 2:] > boxes[real][:, :2]).all() and not boxes[~real].any()
            seen.add((int(real.sum()), int(batch["difficult"][row].sum())))
    assert {(1, 0), (1, 1), (2, 1)} & seen and len(seen) > 1


class Spot(FakeSource):
    """A white object on the left of a black picture, and a difficult one beside it."""

    def image(self, index):
        image = np.zeros((*self._size, 3), np.uint8)
        image[20:40, 20:40] = 255
        return image


@pytest.mark.parametrize("flips", [False, True])
def test_boxes_follow_the_picture(flips):
    mirrored = set()
    for k in range(6):
        batch, _ = _batch(k, Spot(), _options(flips=flips))
        for image, boxes, hard in zip(batch["image"], batch["boxes"], batch["difficult"], strict=True):
            if hard[0]:
                continue
            bright = transforms.denormalize(image)[..., 0] > 127
            rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
            found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            np.testing.assert_allclose(boxes[0], found, atol=1.5)
            mirrored.add(bool(boxes[0, 0] > boxes[1, 0]) if boxes[1].any() else None)
    assert (True in mirrored) == flips and False in mirrored


def test_a_picture_smaller_than_the_crop_is_padded_or_enlarged():
    sides = {}
    for pad in (False, True):
        options = _options(scale=0.5, scale_jitter=1.0, aspect_jitter=1.0, pad_crops=pad)
        batch, _ = _batch(0, Spot(), options)
        easy = batch["boxes"][batch["boxes_valid"] & ~batch["difficult"]]
        sides[pad] = easy[:, 2:] - easy[:, :2]
    np.testing.assert_allclose(sides[True], 20 * 0.5)
    assert sides[False].min() > 12


def test_rows_do_not_depend_on_processes_or_order():
    whole, _ = _batch(3)
    parts = [_batch(3, process_index=index, process_count=2)[0] for index in range(2)]
    for name, value in whole.items():
        np.testing.assert_array_equal(value, np.concatenate([part[name] for part in parts]))
    assert (_batch(3, seed=1)[0]["image"] != whole["image"]).any()


def test_too_many_boxes_lose_the_difficult_ones_first():
    for k in range(4):
        wide, narrow = _batch(k)[0], _batch(k, options=_options(max_boxes=1))[0]
        for row in range(4):
            easy = wide["boxes"][row][wide["boxes_valid"][row] & ~wide["difficult"][row]]
            if len(easy):
                np.testing.assert_array_equal(narrow["boxes"][row][0], easy[0])


def test_damaged_pictures_are_replaced_and_named():
    batch, skipped = _batch(source=FakeSource(broken=range(6)))
    assert batch["valid"].any() and {kind for kind, _, _ in skipped} == {"image"}
    batch, _ = _batch(source=FakeSource(broken=range(7)))
    assert not batch["valid"].any() and not batch["image"].any() and not batch["boxes_valid"].any()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"crop": (16, 64)}, "data.crop"),
        ({"scale_jitter": 0}, "data.scale_jitter"),
        ({"min_coverage": 1.5}, "data.min_coverage"),
        ({"scale": float("nan")}, "data.scale"),
    ],
)
def test_options_that_cannot_be_are_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        _options(**options)


def test_no_pictures_and_rows_that_do_not_divide():
    with pytest.raises(DataError, match="no pictures"):
        detector.BatchBuilder(FakeSource(count=0), _options())
    with pytest.raises(ConfigError, match="does not divide"):
        detector.BatchBuilder(FakeSource(), _options(), process_count=3)
