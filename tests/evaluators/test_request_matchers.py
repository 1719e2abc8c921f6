"""The seam to the detectors: OS2D's predictor and `sm_jax.load`'s detector behind `Matcher`."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from sm_jax import api, search
from sm_jax.errors import ConfigError, ImageError
from sm_jax.evaluators import request_matchers
from sm_jax.evaluators.request_matchers import DetectorMatcher, OS2DMatcher
from sm_jax.systems.os2d.predict import Predictor
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
