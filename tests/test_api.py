"""`load(...).detect(...)` with a fake network: what people give, what they get, and what is refused."""

import io
import json

import jax
import numpy as np
import pytest
from PIL import Image

import sm_jax
from sm_jax import api
from sm_jax.errors import ConfigError, ImageError, WeightsError
from sm_jax.systems.os2d import model
from sm_jax.systems.os2d.predict import parts
from tests.systems.os2d.fake import PARTS, VARIABLES, scene

RED, BLUE = (255, 40, 40), (40, 40, 255)
SCALES = [1.0]


@pytest.fixture(scope="module")
def detector():
    return api.Detector(PARTS, VARIABLES, query_size=48, step=64)


@pytest.fixture(scope="module")
def coarse():
    """One program for levels up to 512 pixels: automatic scales make many."""
    return api.Detector(PARTS, VARIABLES, query_size=48, step=512)


@pytest.fixture(scope="module")
def image():
    picture = scene(np.random.default_rng(0), (160, 224), [(16, 16), (144, 80)])
    picture[80:128, 32:80] = BLUE
    return picture


def _query(colour, size=(40, 40)):
    return np.full((*size, 3), colour, np.uint8)


def _centres(found):
    return (found.boxes[:, :2] + found.boxes[:, 2:]) / 2


def test_objects_are_found_with_everything_a_detection_has(detector, image):
    (found,) = detector.detect(
        image, {"red": _query(RED), "blue": _query(BLUE)}, scales=SCALES, threshold=0.7
    )
    n = len(found)
    assert n and {"red", "blue"} == set(found.labels)
    assert np.all(np.diff(found.scores) <= 0) and np.all(found.scores > 0.7)
    blue = [i for i in range(n) if found.labels[i] == "blue"]
    assert np.abs(_centres(found)[blue] - [56, 104]).max() < 36
    assert found.boxes.shape == (n, 4) and found.corners.shape == (n, 4, 2)
    assert found.transforms.shape == (n, 2, 3) and found.anchors.shape == (n, 4)
    assert found.image_size == image.shape[:2]
    np.testing.assert_allclose(found.angles, 0, atol=1e-3)
    np.testing.assert_allclose(found.scales, 1.5, rtol=1e-3)  # the fake finds 60 pixels, the query has 40
    assert not found.mirrored.any()
    # corners go clockwise from the query's top left, and are the image of its corners
    query_corners = np.array([[0, 0, 1], [40, 0, 1], [40, 40, 1], [0, 40, 1]], float)
    mapped = np.einsum("nij,kj->nki", found.transforms, query_corners)
    np.testing.assert_allclose(found.corners, mapped, atol=1e-3)
    assert np.all(found.corners[:, 0] < found.corners[:, 2])


def test_results_go_through_json(detector, image):
    (found,) = detector.detect(image, _query(RED), scales=SCALES)
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["size"] == {"height": 160, "width": 224}
    first = document["detections"][0]
    keys = {"label", "score", "box", "angle", "scale", "mirrored", "corners", "transform", "anchor", "query"}
    assert set(first) == keys and first["label"] == "query"
    np.testing.assert_allclose(first["box"], found.boxes[0], atol=0.01)


def test_pictures_of_every_kind_give_the_same(detector, image, tmp_path):
    picture = Image.fromarray(image)
    picture.save(tmp_path / "a.png")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    kinds = [image, picture, tmp_path / "a.png", str(tmp_path / "a.png"), buffer.getvalue()]
    results = detector.detect(kinds, _query(RED), scales=SCALES)
    assert len(results) == len(kinds)
    for found in results[1:]:
        np.testing.assert_array_equal(found.boxes, results[0].boxes)


def test_an_exif_rotated_image_is_searched_upright(detector, image, tmp_path):
    turned = Image.fromarray(np.rot90(image, -1).copy())
    exif = turned.getexif()
    exif[0x0112] = 8  # stored turned; to be shown turned by 90 degrees counter-clockwise
    turned.save(tmp_path / "a.png", exif=exif)
    want, got = detector.detect([image, tmp_path / "a.png"], _query(RED), scales=SCALES)
    assert got.image_size == want.image_size
    np.testing.assert_array_equal(got.boxes, want.boxes)


def test_queries_of_one_label_compete(detector, image):
    several = detector.detect(image, {"red": [_query(RED), _query((250, 45, 40))]}, scales=SCALES)[0]
    apart = detector.detect(image, {"red": _query(RED), "red too": _query((250, 45, 40))}, scales=SCALES)[0]
    assert len(several) < len(apart)
    assert set(several.queries.tolist()) <= {0, 1} and set(several.labels) == {"red"}
    merged = detector.detect(image, [_query(RED), _query((250, 45, 40))], labels="red", scales=SCALES)[0]
    np.testing.assert_array_equal(merged.boxes, several.boxes)


def test_labels_come_from_file_names_or_from_the_caller(detector, image, tmp_path):
    for name in ("cup", "jar"):
        Image.fromarray(_query(RED)).save(tmp_path / f"{name}.png")
    paths = [tmp_path / "cup.png", tmp_path / "jar.png"]
    assert detector.encode(paths).labels == ["cup", "jar"]
    assert detector.encode(paths, labels=["a", "b"]).labels == ["a", "b"]
    assert detector.encode({"x": paths}).labels == ["x"]
    assert detector.encode(paths[0]).requests[0].source == str(paths[0])


def test_a_bank_is_encoded_once_and_searched_often(detector, image, tmp_path):
    bank = detector.encode({"red": _query(RED)}, threshold=0.9)
    bank.save(tmp_path / "bank.safetensors")
    loaded = sm_jax.RequestBank.load(tmp_path / "bank.safetensors")
    before = detector.compiles["encode"]
    ours, theirs = (detector.detect(image, b, scales=SCALES, threshold=0.0)[0] for b in (bank, loaded))
    assert detector.compiles["encode"] == before
    np.testing.assert_array_equal(ours.boxes, theirs.boxes)
    assert np.all(ours.scores > 0.9)  # the request's own threshold wins


def test_rotations_and_mirror_images_are_views(detector):
    bank = detector.encode({"red": _query(RED, (20, 40))}, rotations=True, mirrored=True)
    assert bank.requests[0].template.shape[0] == 8 and bank.requests[0].views == "horflip_rotation90"
    assert detector.encode(_query(RED), mirrored=True).requests[0].views == "horflip"
    assert detector.encode(_query(RED), rotations=True).requests[0].views == "rotation90"


def test_a_turned_object_reports_its_angle(detector, image):
    """The fake sees only colours, so every view matches alike; the reported angle is that of the view."""
    found = detector.detect(image, _query(RED, (30, 40)), rotations=True, mirrored=True, scales=SCALES)[0]
    assert set(np.round(found.angles).astype(int).tolist()) <= {0, 90, 180, -90}


def test_automatic_scales_find_objects_of_the_querys_size(coarse):
    image = scene(np.random.default_rng(1), (120, 150), [(40, 30)])
    found = coarse.detect(image, _query(RED, (60, 60)), threshold=0.7)[0]
    assert len(found) and found.image_size == (120, 150)


def test_a_query_larger_than_the_image_is_searched_at_the_images_size(coarse):
    image = scene(np.random.default_rng(2), (64, 64), [(8, 8)])
    assert len(coarse.detect(image, _query(RED, (900, 700)), threshold=0.7)[0])


def test_nothing_found_is_an_empty_result_that_can_be_drawn(detector, image):
    bank = detector.encode({"red": _query(RED)})
    (found,) = detector.detect(image, bank, scales=SCALES, threshold=1.0)
    assert len(found) == 0 and found.to_dict()["detections"] == []
    assert found.draw(image, queries=bank).width > image.shape[1]


def test_max_detections_and_competition_between_labels(detector, image):
    queries = {"red": _query(RED), "blue": _query(BLUE)}
    few = detector.detect(image, queries, scales=SCALES, max_detections=2, threshold=0.0)[0]
    assert len(few) == 4
    joint = detector.detect(
        image, queries, scales=SCALES, max_detections=3, threshold=0.0, across_labels=True
    )[0]
    assert len(joint) == 3


@pytest.mark.parametrize(
    "queries,options,line",
    [
        ([], {}, "no query: give at least one picture"),
        ({}, {}, "no query: give at least one picture"),
        ({"a": []}, {}, "no query: give at least one picture"),
        (np.zeros((0, 5, 3), np.uint8), {}, "has no pixels"),
        (np.zeros((5, 5, 7), np.uint8), {}, "expected an array"),
        (np.zeros((3, 200, 3), np.uint8), {}, "200x3 is too thin for a query"),
        (b"", {}, "the file is empty"),
        (b"no picture", {}, "not a picture in a supported format"),
        ("nowhere.jpg", {}, "nowhere.jpg: no such picture file"),
        ([_query(RED)], {"labels": ["a", "b"]}, "2 for 1 queries"),
        ({"a": _query(RED)}, {"labels": ["a"]}, "the queries are a dict"),
        (_query(RED), {"scales": []}, "must be positive numbers"),
        (_query(RED), {"scales": [1, -1]}, "must be positive numbers"),
        (_query(RED), {"scales": [float("nan")]}, "must be positive numbers"),
        (_query(RED), {"scales": "big"}, "must be positive numbers"),
        (_query(RED), {"scales": [[1, 2]]}, "must be positive numbers"),
        (_query(RED), {"scales": [1e9]}, "too large; use smaller scales"),
        (_query(RED), {"scales": [0.01]}, "too small; use larger scales"),
        (_query(RED), {"threshold": float("nan")}, "threshold a number"),
        (_query(RED), {"max_detections": 0}, "max_detections must be 1 or more"),
        (_query(RED), {"iou": 2}, "iou within 0..1"),
    ],
)
def test_bad_queries_and_options_are_one_line(detector, image, queries, options, line):
    with pytest.raises((ConfigError, ImageError), match=line) as caught:
        detector.detect(image, queries, **options)
    assert "\n" not in str(caught.value)


def test_a_threshold_of_a_bank_is_a_number(detector):
    with pytest.raises(ConfigError, match="threshold: must be a number"):
        detector.encode(_query(RED), threshold=float("nan"))


@pytest.mark.parametrize(
    "bad", [np.zeros((0, 0, 3), np.uint8), b"junk", "missing.png", np.full((4, 4), np.nan)]
)
def test_bad_images_are_one_line(detector, bad):
    with pytest.raises(ImageError):
        detector.detect(bad, _query(RED))


def test_hard_pictures_are_handled(detector, image, tmp_path):
    rgb = Image.fromarray(image)
    pictures = {
        "grey.png": rgb.convert("L"),
        "cmyk.jpg": rgb.convert("CMYK"),
        "alpha.png": rgb.convert("RGBA"),
        "deep.png": Image.fromarray(image[..., 0].astype(np.uint16) * 257),
        "tiny.png": rgb.resize((1, 1)),
    }
    for name, picture in pictures.items():
        picture.save(tmp_path / name)
        assert (
            len(detector.detect(tmp_path / name, _query(RED), scales=[40.0 if name == "tiny.png" else 1.0]))
            == 1
        )


def test_a_bank_of_other_weights_is_refused(detector, image):
    other = api.Detector(PARTS, {"params": {"backbone": {"weight": np.float32(2)}}}, query_size=48)
    with pytest.raises(WeightsError, match="other weights"):
        other.detect(image, detector.encode(_query(RED)))
    bank = detector.encode(_query(RED))
    with pytest.raises(ConfigError, match="belong to encode"):
        detector.detect(image, bank, rotations=True)


@pytest.mark.parametrize(
    "options,error,line",
    [
        ({"name": "os3d"}, ConfigError, "no system called 'os3d'; there are: os2d, crossmodal, ssm"),
        ({"weights": "resnet51"}, WeightsError, "no weights called 'resnet51'"),
        ({"weights": ""}, WeightsError, "give a name"),
        ({"model": {"head_type": "float16"}}, ConfigError, "did you mean 'head_dtype'"),
    ],
)
def test_load_refuses_what_is_not_there(options, error, line):
    with pytest.raises(error, match=line) as caught:
        api.load(**options)
    assert "\n" not in str(caught.value)


def test_generators_are_taken_as_lists_are(detector, image):
    want = detector.detect([image, image], [_query(RED), _query(BLUE)], labels=["a", "b"], scales=SCALES)
    got = detector.detect(
        (picture for picture in (image, image)),
        (_query(colour) for colour in (RED, BLUE)),
        labels=(name for name in "ab"),
        scales=(scale for scale in SCALES),
    )
    assert len(got) == 2 and len(got[0])
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_array_equal(ours.boxes, theirs.boxes)
        assert ours.labels == theirs.labels
    assert detector.encode(iter([_query(RED)]), labels="x").labels == ["x"]
    assert len(detector.encode({"x": (_query(RED) for _ in range(3))})) == 3
    with pytest.raises(ConfigError, match="no query"):
        detector.detect(image, iter(()))


def test_the_best_score_of_every_label_is_told(detector, image):
    queries = {"red": _query(RED), "green": _query((0, 255, 0))}
    (found,) = detector.detect(image, queries, scales=SCALES, threshold=0.0)
    (nothing,) = detector.detect(image, queries, scales=SCALES, threshold=1.0)
    assert not len(nothing) and nothing.best_scores == found.best_scores
    for label in queries:
        best = max(score for score, name in zip(found.scores, found.labels, strict=True) if name == label)
        assert found.best_scores[label] == pytest.approx(best)
    assert nothing.to_dict()["best_scores"] == {k: round(v, 5) for k, v in found.best_scores.items()}


def test_notes_say_calmly_what_is_searched_with(monkeypatch):
    """No words of training, no counts of tensors."""
    report = ["backbone: 215 tensors from x, 43 unused tensors ignored", "transform: untrained start (...)"]
    variables = {"params": {"transform": {"linear": {"kernel": np.zeros(3)}}, "backbone": {}}}
    monkeypatch.setattr(api.pretrained, "restore", lambda *_: (model.ModelConfig(), variables, report))
    assert api.load().notes == [
        "weights: resnet50-caffe-c4: packaged ImageNet features; templates are not deformed"
    ]
    assert api.load(weights="x.safetensors").notes == ["weights: x.safetensors: templates are not deformed"]
    variables["params"]["transform"]["linear"]["kernel"] = np.ones(3)
    assert api.load(transform="t.safetensors").notes == [
        "weights: resnet50-caffe-c4, transformation network: t.safetensors"
    ]
    report[0] = "model: 229 tensors from the run in runs/a, step 5"
    assert api.load(weights="runs/a").notes == report[:1]


def test_load_refuses_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(sm_jax.SmJaxError, match="training run") as caught:
        api.load(weights=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_packaged_features_find_a_pasted_picture_wherever_it_is():
    detector = sm_jax.load("os2d", step=64)
    assert any("resnet50-caffe-c4" in note for note in detector.notes)
    rng = np.random.default_rng(0)
    tiles = Image.fromarray(rng.integers(0, 255, (12, 9, 3)).astype(np.uint8))
    thing = np.asarray(tiles.resize((90, 120), Image.Resampling.NEAREST))
    image = np.asarray(
        Image.fromarray(rng.integers(0, 255, (5, 6, 3)).astype(np.uint8)).resize((480, 400))
    ).copy()
    image[40:160, 60:150] = thing
    image[220:340, 330:420] = thing
    (found,) = detector.detect(image, {"thing": thing}, threshold=0.7)
    for box in ([60, 40, 150, 160], [330, 220, 420, 340]):
        assert np.abs(found.boxes[:2] - box).max(axis=1).min() < 12
    assert found.scores[1] > 0.8 and np.all(found.scores[2:] < found.scores[1] - 0.05)
    # The same from pure functions, with the deformable head, at the one scale that fits.
    config = model.ModelConfig()
    exact = api.Detector(parts(config), detector._variables, step=64)
    scale = 240 / np.sqrt(90 * 120)
    (square,) = exact.detect(image, {"thing": thing}, scales=[scale], threshold=0.5)
    assert len(square) and jax.tree.all(jax.tree.map(np.all, np.isfinite(square.boxes)))
