"""The seam to the detectors: OS2D's predictor and `sm_jax.load`'s detector behind `Matcher`."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from sm_jax import api, search
from sm_jax.errors import ConfigError, ImageError
from sm_jax.evaluators import request_matchers
from sm_jax.evaluators.request_matchers import DetectorMatcher, OS2DMatcher, SSMMatcher
from sm_jax.evaluators.request_ranking import rank_requests
from sm_jax.systems.os2d.predict import Predictor
from tests import fake_requests
from tests.evaluators.fake_source import COLOURS, Squares
from tests.systems.os2d.fake import PARTS, VARIABLES

PREDICTOR = Predictor(PARTS, step=64)
SOURCE = Squares()


def _os2d(**options):
    return OS2DMatcher(PREDICTOR, scales=[1.0], query_size=48, max_detections=5, **options)


def _detector():
    return DetectorMatcher(api.Detector(PARTS, VARIABLES, query_size=48, step=64), scales=[1.0])


@pytest.mark.parametrize("matcher", [_os2d(), _detector()], ids=["predictor", "detector"])
def test_each_request_finds_its_own_object_whatever_else_is_searched(matcher):
    image, entry = SOURCE.image(0), SOURCE.annotation(0)
    encoded = [matcher.encode(VARIABLES, SOURCE.query(label)) for label in (0, 1, 2)]
    together = matcher.search(VARIABLES, image, encoded)
    assert len(together) == 3 and matcher.search(VARIABLES, image, []) == []
    for label, found in enumerate(together):
        (alone,) = matcher.search(VARIABLES, image, [encoded[label]])
        for key in ("boxes", "scores"):
            np.testing.assert_array_equal(found[key], alone[key])
            assert found[key].dtype == np.float32 and len(found[key]) <= 100
        assert np.isfinite(found["scores"]).all()
    for label, box in enumerate(entry["boxes"]):
        found = together[label]
        x1, y1, x2, y2 = found["boxes"][np.argmax(found["scores"])]
        assert box[0] <= (x1 + x2) / 2 <= box[2] and box[1] <= (y1 + y2) / 2 <= box[3]


def test_os2d_is_the_predictor_request_by_request():
    image, options = SOURCE.image(1), {"max_detections": 5, "iou": 0.2}
    pictures = [np.full((40, 60, 3), colour, np.uint8) for colour in COLOURS[:2]]
    matcher = _os2d(augmentation="rotation90", iou=0.2)
    found = matcher.search(VARIABLES, image, [matcher.encode(VARIABLES, p) for p in pictures])
    for picture, mine in zip(pictures, found, strict=True):
        expected = PREDICTOR.detect(
            VARIABLES,
            search.levels(image, [1.0]),
            search.encode_views(PREDICTOR, VARIABLES, picture, views="rotation90", side=48),
            class_ids=[0] * 4,
            image_size=image.shape[:2],
            **options,
        )
        assert len(mine["scores"]) == 5
        for key in ("boxes", "scores"):
            np.testing.assert_array_equal(mine[key], expected[key])


def test_a_model_with_undeformed_templates_hears_the_shape_of_every_view(monkeypatch):
    matcher, heard = _os2d(augmentation="rotation90"), {}

    def fake(*args, **options):
        heard.update(options)
        return {"boxes": np.zeros((0, 4)), "scores": np.zeros(0), "labels": np.zeros(0)}

    wide = matcher.encode(VARIABLES, np.full((40, 60, 3), 9, np.uint8))
    tall = matcher.encode(VARIABLES, np.full((60, 40, 3), 9, np.uint8))
    monkeypatch.setattr(PREDICTOR, "detect", fake)
    matcher.search(VARIABLES, SOURCE.image(0), [wide, tall])
    assert heard["shapes"] == [(40, 60), (60, 40)] * 2 + [(60, 40), (40, 60)] * 2
    assert heard["class_ids"] == [0] * 4 + [1] * 4


def test_what_cannot_be_searched_is_one_line():
    with pytest.raises(ConfigError, match="scales: "):
        OS2DMatcher(PREDICTOR, scales=[])
    with pytest.raises(ConfigError, match="no class view called 'spin'"):
        _os2d(augmentation="spin")
    matcher = OS2DMatcher(PREDICTOR, scales=[1000.0], query_size=48)
    with pytest.raises(ImageError, match="image: scale 1000 makes it 192000x128000, too large"):
        matcher.search(VARIABLES, SOURCE.image(0), [matcher.encode(VARIABLES, SOURCE.query(0))])


def test_os2d_reads_the_options_of_its_own_evaluation():
    from configs.os2d import get_config

    config = get_config()
    config.data.scale = 0.5
    config.eval.update(scales=(1.0, 2.0), max_detections=7, views="horflip")
    matcher = request_matchers.make(config)
    assert isinstance(matcher, OS2DMatcher)
    assert matcher._scales == (0.5, 1.0) and matcher._options["max_detections"] == 7
    with pytest.raises(ConfigError, match="'scnet' does not read; it is for os2d"):
        request_matchers.make(ConfigDict({"system": "scnet"}))


# ssm --------------------------------------------------------------------------------------------------


def _ssm(detector=None, **options):
    return SSMMatcher((detector or fake_requests.make())._predictor, **options)


def _grainy(seed):
    """A scene with weak cells: coloured squares that do not end where cells do."""
    rng = np.random.default_rng(seed)
    image = fake_requests.scene()
    for colour in ("red", "green"):
        x, y = rng.integers(0, 130, 2)
        image[y : y + 50, x : x + 40] = fake_requests.COLOURS[colour]
    image[::2] -= (image[::2] > 0) * np.uint8(9)  # nothing is blank
    return image


class Graded(fake_requests.Network):
    """Covers cells by degrees, down to 0.02: those of the filling too. No two boxes are alike."""

    def search(self, variables, features, requests):
        coverage, boxes = super().search(variables, features, requests)
        near = np.abs(features[:, None] - requests.mean(axis=(1, 2))[None, :, None, None]).max(axis=-1)
        boxes += np.linspace(0, 0.5, 64).reshape(8, 8, 1) * np.float32([1, -1, 0.5, 2])
        return np.clip(1 - near / 260, 0.02, coverage.max()).astype(np.float32), boxes


@pytest.fixture
def graded():
    detector = fake_requests.make()
    detector._predictor = Graded(detector._predictor.config)
    return detector


def test_ssm_finds_members_in_pixels_of_the_image():
    matcher, image = _ssm(threshold=0.5), fake_requests.scene()
    encoded = [matcher.encode(None, fake_requests.query(colour)) for colour in ("red", "blue")]
    red, blue = matcher.search(None, image, encoded)
    assert sorted(red["boxes"].tolist()) == [[64, 0, 128, 64], [64, 128, 128, 192]]
    assert red["scores"].tolist() == pytest.approx([fake_requests.COVERED] * 2)
    assert blue["boxes"].shape == (0, 4) and matcher.search(None, image, []) == []


@pytest.mark.parametrize("method", ["default", "released", "grouprect"])
def test_ssm_is_its_detector_with_cells(graded, method):
    """The evaluation, `rank_requests` and `detect` find the same: nothing in the filling, the same scores."""
    matcher = _ssm(graded, method=method)
    wrapped = DetectorMatcher(graded, postprocess=method)
    pictures = [fake_requests.query(colour) for colour in ("red", "green")]
    image = _grainy(0)
    found = matcher.search(None, image, [matcher.encode(None, picture) for picture in pictures])
    same = wrapped.search(None, image, [wrapped.encode(None, picture) for picture in pictures])
    for picture, mine, its in zip(pictures, found, same, strict=True):
        (direct,) = graded.detect(image, picture, threshold=-np.inf, cells=0.05, postprocess=method)
        assert len(mine["scores"]) and (method != "default" or mine["scores"].min() < 0.5)
        for key in ("boxes", "scores"):
            np.testing.assert_array_equal(mine[key], getattr(direct, key))
            np.testing.assert_array_equal(mine[key], its[key])
    (cut,) = graded.detect(image, pictures[0])
    assert cut.scores.tolist() != found[0]["scores"].tolist()  # there, weak cells do not vote


def test_ssm_ranks_alike_behind_both_seams(graded):
    class Scenes(Squares):
        def image(self, index):
            return _grainy(index)

        def annotation(self, index):
            return super().annotation(index) | {
                "boxes": np.float32([[64, 0, 128, 64], [64, 128, 128, 192]]),
                "labels": np.zeros(2, np.int32),
                "difficult": np.zeros(2, bool),
            }

    ranked = [rank_requests(matcher, None, Scenes()) for matcher in (_ssm(graded), DetectorMatcher(graded))]
    first, second = ([(one.ap, one.threshold, one.point) for one in some["red"]] for some in ranked)
    assert first == second and len(first) == 6 and first[0][0] > 0


@pytest.mark.parametrize("make", [_ssm, lambda: DetectorMatcher(fake_requests.make())])
def test_ssm_refuses_pictures_in_one_line(make):
    matcher = make()
    request = matcher.encode(None, fake_requests.query("red"))
    with pytest.raises(ImageError, match="blank"):
        matcher.encode(None, np.full((40, 40, 3), 9, np.uint8))
    for size, line in (((15, 200), "less than one cell"), ((16, 200), "200x16 is too thin")):
        with pytest.raises(ImageError, match=line):
            matcher.search(None, np.zeros((*size, 3), np.uint8), [request])


@pytest.mark.parametrize(
    "options,line",
    [
        ({"threshold": 1.5}, r"eval.threshold: must be within \[0, 1\], not 1.5"),
        ({"iou": float("nan")}, r"eval.nms_iou: must be within \[0, 1\], not nan"),
        ({"max_detections": 0}, "eval.max_detections: must be 1 or more, not 0"),
        ({"method": "best"}, "eval.postprocess: 'best' is none of default, released, grouprect"),
    ],
)
def test_options_of_ssm_that_cannot_be_used_are_one_line(options, line):
    with pytest.raises(ConfigError, match=line):
        _ssm(**options)


def test_ssm_reads_the_options_of_its_own_evaluation():
    from configs.ssm import get_config

    config = get_config()
    config.eval.update(threshold=0.1, nms_iou=0.3, postprocess="grouprect", max_detections=7)
    options = request_matchers.make(config)._options
    assert (options["cells"], options["iou"]) == (0.1, 0.3) and options["threshold"] == -np.inf
    assert (options["method"], options["max_detections"]) == ("grouprect", 7)


def test_requests_that_many_images_are_searched_for_are_copied_once(graded, monkeypatch):
    monkeypatch.setattr(request_matchers, "COPIED", 2)
    matcher, image = _ssm(graded), _grainy(0)
    encoded = [matcher.encode(None, fake_requests.query(c)) for c in ("red", "green", "blue", "red")]
    calls = graded._predictor.calls
    calls.clear()
    few = matcher.search(None, image, encoded[:1])
    all_four = [matcher.search(None, image, encoded) for _ in range(3)][-1]
    three = matcher.search(None, image, encoded[1:])
    assert [count for kind, count in calls if kind == "keep"] == [1, 4]
    for mine, same in zip([*few, *three], [all_four[0], *all_four[1:]], strict=True):
        np.testing.assert_array_equal(mine["boxes"], same["boxes"])
        np.testing.assert_array_equal(mine["scores"], same["scores"])
    assert calls[-2:] == [("search", (1, 2)), ("search", (1, 1))]
    wrapped = DetectorMatcher(graded)
    banks = [wrapped.encode(None, fake_requests.query(c)) for c in ("red", "green")]
    calls.clear()
    for _ in range(3):
        wrapped.search(None, image, banks)
    assert [count for kind, count in calls if kind == "keep"] == [2]
