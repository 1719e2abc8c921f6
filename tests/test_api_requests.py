"""`load("ssm").detect(images, queries)` with a fake network: what is given, found, and refused."""

import io
import json

import numpy as np
import pytest
from PIL import Image

import sm_jax
from sm_jax.errors import ConfigError, DataError, WeightsError
from sm_jax.request_detector import THRESHOLD, RequestDetector
from sm_jax.requests import RequestBank
from tests.fake_requests import COLOURS, COVERED, make, query, scene

RED, GREEN, BLUE = (query(name) for name in COLOURS)
RED_BOXES = [[64, 0, 128, 64], [64, 128, 128, 192]]


@pytest.fixture
def detector():
    return make()


@pytest.fixture(scope="module")
def image():
    """256x192, fitted at half its size: red at (0, 1) and (2, 1), green at (3, 2) in squares of 64."""
    return scene()


def _sorted(found):
    return sorted(found.boxes.tolist())


def test_members_are_found_in_pixels_of_the_image(detector, image):
    (found,) = detector.detect(image, {"red": RED, "blue": BLUE})
    assert _sorted(found) == RED_BOXES and found.labels == ["red"] * 2
    assert found.queries.tolist() == [0, 0] and found.image_size == (256, 192) and len(found) == 2
    np.testing.assert_allclose(found.scores, COVERED, rtol=1e-6)
    assert found.best_scores == {"red": pytest.approx(COVERED), "blue": pytest.approx(0.1)}


def test_coverage_is_a_map_that_says_where_it_lies(detector, image):
    (found,) = detector.detect(image, {"red": RED, "green": GREEN})
    assert list(found.coverage) == ["red", "green"]
    np.testing.assert_allclose(found.coverage_box, [0, 0, 192, 256])  # cells of 32 pixels of the image
    want = np.full((8, 6), 0.1, np.float32)
    want[0:2, 2:4] = want[4:6, 2:4] = COVERED
    np.testing.assert_allclose(found.coverage["red"], want)
    assert found.coverage["green"].dtype == np.float32 and found.coverage["green"][7, 5] > 0.8


def test_the_filling_around_an_image_is_never_found(detector):
    grey = np.full((40, 40, 3), 127, np.uint8)
    grey[::2] += 5
    image = np.full((128, 64, 3), 255, np.uint8)  # filled with grey on both sides
    (found,) = detector.detect(image, grey, threshold=0.2)
    assert not len(found) and found.best_scores["query"] < 0.2
    assert found.coverage["query"].shape == (8, 4)


def test_requests_of_a_label_share_their_cells(detector, image):
    """Per cell the highest coverage counts; the detection names the request behind it."""
    (found,) = detector.detect(image, {"thing": [BLUE, GREEN, RED], "red": RED})
    things = [i for i, label in enumerate(found.labels) if label == "thing"]
    assert sorted(found.queries[things].tolist()) == [1, 2, 2]
    assert sorted(found.boxes[things].tolist()) == sorted([*RED_BOXES, [128, 192, 192, 256]])
    assert (found.coverage["thing"] > 0.8).sum() == 12 and (found.coverage["red"] > 0.8).sum() == 8


def test_a_request_keeps_its_own_threshold(detector, image):
    bank = detector.encode({"a": RED}, threshold=0.95) + detector.encode({"a": GREEN, "b": RED})
    (found,) = detector.detect(image, bank)
    assert sorted(found.labels) == ["a", "b", "b"] and 0 not in found.queries
    assert found.best_scores["a"] == pytest.approx(COVERED)  # whatever the threshold
    loose = detector.encode({"a": BLUE}, threshold=0.05)
    assert len(detector.detect(image, loose)[0]) and not len(detector.detect(image, BLUE)[0])


@pytest.mark.parametrize("fusion,shape", [("product_aligned", (1, 8, 8, 3)), ("product_gap", (1, 1, 1, 3))])
def test_a_bank_is_encoded_once_saved_and_searched_often(fusion, shape, image, tmp_path):
    detector = make(fusion=fusion)
    bank = detector.encode({"red": [RED, RED], "green": GREEN})
    assert [request.template.shape for request in bank] == [shape] * 3
    assert all(request.template.dtype == np.float32 for request in bank)
    bank.save(tmp_path / "bank.safetensors")
    loaded = RequestBank.load(tmp_path / "bank.safetensors")
    before = [kind for kind, _ in detector._predictor.calls].count("encode")
    ours, theirs = (detector.detect([image, image], each) for each in (bank, loaded))
    assert [kind for kind, _ in detector._predictor.calls].count("encode") == before
    assert len(ours[1]) == 3
    np.testing.assert_array_equal(ours[0].boxes, theirs[1].boxes)


def test_banks_of_other_weights_or_another_fusion_are_refused(detector, image):
    bank = detector.encode(RED)
    for other in (make(variables={"params": {"a": np.ones(1)}}), make(fusion="product_gap")):
        with pytest.raises(WeightsError, match="other weights, .*encode its pictures again"):
            other.detect(image, bank)
    with pytest.raises(ConfigError, match="belong to encode"):
        detector.detect(image, bank, labels="x")


def test_thresholds_and_limits(detector, image):
    def count(**options):
        return len(detector.detect(image, {"red": RED, "green": GREEN}, **options)[0])

    assert count() == 3 and count(threshold=0.95) == 0 and count(max_detections=1) == 2
    assert count(threshold=-np.inf, max_detections=10**6) > 20  # every cell answers
    assert count(threshold=0.0, iou=1.0) >= count(threshold=0.0, iou=0.3) > 3
    assert RequestDetector.threshold == THRESHOLD == 0.5


def test_results_go_through_json(detector, image):
    (found,) = detector.detect(image, {"red": RED})
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["size"] == {"height": 256, "width": 192} and "coverage" not in document
    assert set(document["detections"][0]) == {"label", "score", "box", "query"}
    maps = json.loads(json.dumps(found.to_dict(coverage=True), allow_nan=False))["coverage"]
    assert maps["box"] == [0, 0, 192, 256] and np.shape(maps["maps"]["red"]) == (8, 6)


def test_an_overlay_is_shaded_by_coverage(detector, image):
    bank = detector.encode({"green": GREEN, "red": RED})
    (found,) = detector.detect(image, bank)
    heat, plain = (np.asarray(found.draw(image, heat=heat)).astype(int) for heat in (True, False))
    assert heat.shape == plain.shape
    zoom = heat.shape[1] / 192
    middle = tuple(int(zoom * at) for at in (160, 96))  # inside the second red square
    assert np.abs(heat[middle] - plain[middle]).sum() > 60
    assert found.draw(image, queries=bank).width > found.draw(image).width


def test_nothing_found_is_an_empty_result(detector, image):
    (found,) = detector.detect(image, {"blue": BLUE})
    assert len(found) == 0 and found.boxes.shape == (0, 4) and found.queries.shape == (0,)
    assert found.to_dict()["detections"] == [] and found.draw(image).size


def test_a_bank_goes_to_the_device_once(image):
    detector = make()
    bank = detector.encode([query("red"), query("green")])
    for _ in range(3):
        detector.detect(image, bank)
    detector.detect(image, detector.encode(query("blue")))
    assert [call for call in detector._predictor.calls if call[0] == "keep"] == [("keep", 2), ("keep", 1)]


def test_batches_change_nothing_but_the_number_of_calls(image):
    images = [image, image[:, ::-1], np.zeros((40, 300, 3), np.uint8), image[:100], image]
    one, many = make(batch=1), make(batch=4)
    for tiles in (False, True):
        want, got = (
            each.detect(images, [RED, GREEN], labels=["r", "g"], tiles=tiles) for each in (one, many)
        )
        assert len(want) == len(got) == 5
        for a, b in zip(want, got, strict=True):
            np.testing.assert_array_equal(a.boxes, b.boxes)
            np.testing.assert_array_equal(a.coverage["r"], b.coverage["r"])
            assert a.labels == b.labels and a.image_size == b.image_size
    assert ("features", 4) in many._predictor.calls and ("features", 4) not in one._predictor.calls


def test_generators_are_taken_as_lists_are(detector, image):
    got = detector.detect((i for i in (image, image)), (q for q in (RED, GREEN)), labels=iter("ab"))
    assert [len(one) for one in got] == [3, 3] and list(got[0].coverage) == ["a", "b"]


def test_progress_counts_windows(detector, image):
    seen = []
    detector.detect(image, RED, tiles=True, progress=lambda *step: seen.append(step))
    assert seen == [("windows", done, 6) for done in range(1, 7)]


# tiles ------------------------------------------------------------------------------------------------


def test_tiles_find_what_is_too_small_for_the_whole_image(detector):
    """16-pixel squares, which fitting the image would shrink to two pixels."""
    image = scene((1000, 700), 16, [(3, 4, "red"), (40, 43, "red")])
    want = [[64, 48, 80, 64], [688, 640, 700, 656]]  # the second one cut to the image
    assert not len(detector.detect(image, RED)[0])
    (found,) = detector.detect(image, RED, tiles=True)
    assert _sorted(found) == want and found.coverage["query"].shape == (63, 44)
    np.testing.assert_allclose(found.coverage_box, [0, 0, 704, 1008])
    assert (found.coverage["query"] > 0.5).sum() == 2


def test_an_object_that_windows_cut_is_found_once_and_whole(detector):
    image = np.zeros((128, 320, 3), np.uint8)
    image[32:80, 96:160] = COLOURS["red"]  # over the edge at 128; whole in the window at 64
    (found,) = detector.detect(image, RED, tiles=True)
    assert found.boxes.tolist() == [[96, 32, 160, 80]]


def test_an_image_smaller_than_a_window_is_not_enlarged_in_tiles(detector):
    image = scene((64, 48), 16, [(1, 1, "red")])
    (found,) = detector.detect(image, RED, tiles=True)
    assert found.boxes.tolist() == [[16, 16, 32, 32]] and found.coverage["query"].shape == (4, 3)


# refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "queries,line",
    [
        ([], "no query: give at least one picture"),
        ({}, "no query: give at least one picture"),
        ({"a": []}, "no query: give at least one picture"),
        (
            {"cup": np.full((50, 50, 3), 77, np.uint8)},
            "query 'cup': is blank \\(one colour all over:",
        ),
        ({"cup": RED[:7]}, "query 'cup': 40 x 7 pixels are too few to look for"),
        (RED[:8, :3], "3 x 8 pixels are too few"),
        (np.zeros((10, 301, 3), np.uint8), "301x10 is too thin for a query"),
        (np.zeros((0, 5, 3), np.uint8), "has no pixels"),
        (b"no picture", "not a picture in a supported format"),
        ("nowhere.jpg", "nowhere.jpg: no such picture file"),
        ([RED, b""], "the file is empty"),
    ],
)
def test_bad_queries_are_one_line(detector, image, queries, line):
    with pytest.raises((ConfigError, DataError), match=line) as caught:
        detector.detect(image, queries)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [(8, 8), (8, 240), (9, 30)])
def test_the_smallest_queries_are_taken(detector, size):
    assert len(detector.encode(query("red", size))) == 1


@pytest.mark.parametrize(
    "picture,options,line",
    [
        (
            np.zeros((15, 200, 3), np.uint8),
            {},
            "200 x 15 pixels are less than one cell of the map",
        ),
        (np.zeros((1, 1, 3), np.uint8), {"tiles": True}, "1 x 1 pixels are less than one cell"),
        (
            np.zeros((16, 200, 3), np.uint8),
            {},
            "200x16 is too thin to be searched as a whole; search it in tiles",
        ),
        (np.zeros((0, 4, 3), np.uint8), {}, "has no pixels"),
        (b"junk", {}, "not a picture in a supported format"),
        ("missing.png", {}, "missing.png: no such picture file"),
        (np.full((40, 40), np.nan), {}, "must lie in \\[0, 1\\]"),
    ],
)
def test_bad_images_are_one_line(detector, picture, options, line):
    with pytest.raises(DataError, match=line) as caught:
        detector.detect(picture, RED, **options)
    assert "\n" not in str(caught.value)


def test_a_thin_image_is_searched_in_tiles(detector):
    assert detector.detect(np.zeros((16, 400, 3), np.uint8), RED, tiles=True)[0].image_size == (16, 400)


@pytest.mark.parametrize(
    "options,line",
    [
        ({"threshold": float("nan")}, "threshold a number"),
        ({"cells": float("nan")}, "cells: must be a number"),
        ({"max_detections": 0}, "max_detections must be 1 or more"),
        ({"iou": 1.5}, "iou within 0..1"),
        ({"postprocess": "best"}, "postprocess: 'best' is none of default, released, grouprect"),
        ({"labels": ["a", "b"]}, "labels: 2 for 1 queries"),
    ],
)
def test_bad_options_are_one_line(detector, image, options, line):
    with pytest.raises(ConfigError, match=line) as caught:
        detector.detect(image, RED, **options)
    assert "\n" not in str(caught.value)


def test_more_that_is_refused(detector):
    with pytest.raises(ConfigError, match="threshold: must be a number"):
        detector.encode(RED, threshold=float("nan"))
    with pytest.raises(ConfigError, match="batch: must be a power of two, not 3"):
        make(batch=3)
    with pytest.raises(ConfigError, match="keys are the labels"):
        detector.encode({"a": RED}, labels="b")
    with pytest.raises(ConfigError, match="no query"):
        detector.detect(RED, RequestBank([], fingerprint=detector.fingerprint))


def test_pictures_of_every_kind_are_taken(detector, image, tmp_path):
    rgb = Image.fromarray(image)
    buffer = io.BytesIO()
    rgb.save(buffer, "PNG")
    rgb.save(tmp_path / "a.png")
    rgb.convert("RGBA").save(tmp_path / "b.png")
    for same in (
        rgb,
        buffer.getvalue(),
        tmp_path / "a.png",
        str(tmp_path / "b.png"),
        image / np.float32(255),
    ):
        assert _sorted(detector.detect(same, RED)[0]) == RED_BOXES
    Image.fromarray(RED).save(tmp_path / "cup.png")
    (request,) = detector.encode(tmp_path / "cup.png")
    assert (request.label, request.source, request.size) == ("cup", str(tmp_path / "cup.png"), (40, 40))
    assert sm_jax.RequestDetector is RequestDetector
