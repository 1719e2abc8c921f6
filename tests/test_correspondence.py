"""`load("scnet")`: regions, flow and points of a pair of pictures, on HOG or a small random network."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

import sm_jax
from sm_jax import correspondence
from sm_jax.errors import ConfigError, DataError, ImageError, WeightsError
from sm_jax.systems.scnet import model, predict
from sm_jax.weights import export, io
from tests.systems.scnet import tiny


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SM_JAX_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def matcher():
    predictor = predict.Predictor(model.ModelConfig(), features="hog", buckets=(64,))
    return correspondence.Matcher(predictor, proposals=60, proposal_method="grid")


def scene(size=(90, 120), at=(30, 20)):
    """A picture of coloured shapes on grey, the same ones at another place for another `at` (x, y)."""
    image = np.full((*size, 3), 120, np.uint8)
    x, y = at
    image[y : y + 40, x : x + 50] = (200, 40, 40)
    image[y + 8 : y + 20, x + 6 : x + 18] = (20, 220, 60)
    image[y + 22 : y + 34, x + 28 : x + 44] = (30, 60, 230)
    return image


def test_a_picture_is_found_in_itself_and_a_part_moves_with_its_region(matcher):
    boxes = [[20, 10, 90, 70], [28, 18, 60, 50]]
    found = matcher.match(scene(), scene(at=(45, 30)), [(40, 30), (85, 69), (3, 3)],
                          source_boxes=boxes, target_boxes=np.add(boxes, [15, 10, 15, 10]))  # fmt: skip
    assert found.method == "lom" and len(found) == 2
    np.testing.assert_allclose(found.target_boxes - found.source_boxes, [[15, 10, 15, 10]] * 2)
    assert (np.diff(found.confidence) <= 0).all() and found.confidence.min() > 0
    np.testing.assert_allclose(found.target_points, [(55, 40), (100, 79), (np.nan, np.nan)])
    np.testing.assert_array_equal(found.point_valid, [True, True, False])
    np.testing.assert_allclose(found.flow[found.valid], np.tile([15, 10], (70 * 60, 1)), atol=1e-5)
    assert np.isnan(found.flow[~found.valid]).all() and found.flow.dtype == np.float32
    assert found.point_confidence[2] == 0 and (found.flow_confidence[found.valid] > 0).all()


def test_results_are_pixels_of_large_pictures(matcher):
    """Pictures above the side that is worked with give the same, each by its own scale."""
    big, large = (1080, 1440), (720, 960)
    source, target = (
        np.asarray(Image.fromarray(scene(at=at)).resize(size[::-1]))
        for at, size in (((30, 20), big), ((45, 30), large))
    )
    boxes = np.array([[20, 10, 90, 70], [28, 18, 60, 50]])
    moved = boxes + [15, 10, 15, 10]
    found = matcher.match(source, target, (480, 360), source_boxes=12 * boxes, target_boxes=8 * moved)
    assert found.flow.shape == (*big, 2) and found.source_size == big and found.target_size == large
    np.testing.assert_allclose(
        found.target_boxes / 8 - found.source_boxes / 12, [[15, 10, 15, 10]] * 2, atol=1e-4
    )
    np.testing.assert_allclose(found.target_points, [(440, 320)], atol=3)  # a pixel of the shrunk picture
    np.testing.assert_allclose(found.flow[360, 480], (-40, -40), atol=3)
    assert not found.valid[20, 20] and found.warp().size == big[::-1]


def test_pictures_of_different_sizes(matcher):
    found = matcher.match(scene(), scene((200, 140), (60, 120)), method="nam")
    assert found.flow.shape == (90, 120, 2) and found.target_size == (200, 140)
    assert found.target_boxes.shape == found.source_boxes.shape and len(found) > 0
    assert (found.target_boxes >= 0).all() and (found.target_boxes <= [140, 200, 140, 200]).all()
    x, y = (found.flow[found.valid] + np.argwhere(found.valid)[:, ::-1] + 0.5).T
    assert x.min() >= 0 and x.max() <= 140 and y.min() >= 0 and y.max() <= 200


def test_warp_brings_the_target_onto_the_source(matcher):
    box = [[28, 18, 82, 62]]
    found = matcher.match(
        scene(), scene(at=(45, 30)), source_boxes=box, target_boxes=np.add(box, [15, 12] * 2)
    )
    warped = np.asarray(found.warp())
    assert found.valid.sum() == 54 * 44
    wanted = np.roll(scene(at=(45, 30)), (-12, -15), (0, 1))
    np.testing.assert_array_equal(warped[found.valid], wanted[found.valid])
    assert (warped[~found.valid] == correspondence.MISSING).all()


def test_smooth_fills_every_pixel(matcher):
    box = [[28, 18, 82, 62]]
    found = matcher.match(
        scene(),
        scene(at=(45, 30)),
        [(3, 3)],
        source_boxes=box,
        target_boxes=np.add(box, [15, 10] * 2),
        smooth=True,
    )
    assert found.valid.all() and np.isfinite(found.flow).all()
    np.testing.assert_allclose(found.flow[40, 50], (15, 10), atol=0.5)
    assert found.point_valid.all() and np.isfinite(found.target_points).all()


def test_to_dict_is_json_without_nan(matcher):
    found = matcher.match(scene(), scene(), [(40, 30), (500, 500)])
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["source_size"] == {"height": 90, "width": 120} and 0 < document["covered"] <= 1
    assert len(document["regions"]) == len(found) and len(document["regions"][0]["source"]) == 4
    inside, outside = document["points"]
    assert inside["valid"] and len(inside["target"]) == 2 and inside["confidence"] > 0
    assert outside == {"source": [500, 500], "target": None, "confidence": 0, "valid": False}


def test_draw_shows_both_pictures_and_different_places(matcher):
    found = matcher.match(scene(), scene((60, 60), (5, 5)), [(40, 30), (-9, 5)])
    page = found.draw(count=3)
    assert page.height == 480 and page.width == 640 + 16 + 480
    plain = found.draw(count=0)
    assert np.any(np.asarray(page) != np.asarray(plain))


@pytest.mark.parametrize("size", [(1, 1), (2, 30), (9, 9)])
def test_tiny_pictures_have_a_result(matcher, size):
    tiny_picture = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    for pair in ((tiny_picture, scene()), (scene(), tiny_picture)):
        found = matcher.match(*pair, [(0.5, 0.5)])
        assert found.flow.shape[:2] == pair[0].shape[:2] and len(found.target_points) == 1
        found.warp(), found.draw(), json.dumps(found.to_dict(), allow_nan=False)


def test_grey_pictures_match_nothing(matcher):
    grey = np.full((60, 80), 90, np.uint8)
    for smooth in (False, True):
        found = matcher.match(grey, grey, [(10, 10)], smooth=smooth)
        assert len(found) == 0 and not found.valid.any() and not found.point_valid.any()
        assert (np.asarray(found.warp()) == correspondence.MISSING).all()
        assert found.draw().height == 480


def test_degenerate_boxes_match_nothing(matcher):
    found = matcher.match(scene(), scene(), source_boxes=[[5, 5, 5, 40]], target_boxes=[[9, 9, 60, 60]])
    assert len(found) == 0 and not found.valid.any()


@pytest.mark.parametrize(
    ("options", "error", "line"),
    [
        ({"points": [(1, 2, 3)]}, DataError, "points: give pairs of finite numbers x, y"),
        ({"points": ["a,b"]}, DataError, "points: give pairs"),
        ({"points": [(1, np.nan)]}, DataError, "points: give pairs"),
        ({"method": "best"}, ConfigError, "method: 'best' is none of nam"),
        ({"method": "ag+"}, ConfigError, "needs weights of an AG"),
        ({"source_boxes": []}, DataError, "source_boxes: give at least one box"),
        ({"target_boxes": [[1, 2, 3]]}, DataError, "target_boxes: give at least one box, as rows of x1 y1"),
        ({"target_boxes": [[1, 2, 3, np.inf]]}, DataError, "target_boxes: some are not finite"),
        ({"target": "nowhere.png"}, ImageError, "nowhere.png: no such picture file"),
        ({"source": b"no picture"}, ImageError, "source: not a picture"),
    ],
)
def test_bad_input_is_one_line(matcher, options, error, line):
    with pytest.raises(error, match=line) as caught:
        matcher.match(**{"source": scene(), "target": scene()} | options)
    assert "\n" not in str(caught.value)


def test_no_points_is_an_empty_result(matcher):
    for points in (None, [], np.zeros((0, 2))):
        assert matcher.match(scene(), scene(), points).target_points.shape == (0, 2)


def test_load_of_untrained_features(tmp_path):
    hog = sm_jax.load("scnet", features="hog", proposals=20, method="phm")
    assert hog.method == "phm" and hog.proposals == 20 and hog.notes == ["features: hog"]
    config = tiny.config()
    path = tmp_path / "vgg.safetensors"
    trunk = jax.device_get(tiny.variables()["params"]["backbone"])
    io.save_variables(path, {"params": {"backbone": trunk}})
    small = sm_jax.load("scnet", weights=path, proposals=12, proposal_method="uniform",
                        model={"image_size": config.image_size})  # fmt: skip
    found = small.match(scene(), scene(at=(40, 30)))
    assert "features: vgg16, not trained for matching" in small.notes[0] and found.method == "lom"
    assert dict(small.compiles) == {"describe": 1, "lom": 1}
    assert found.flow.shape == (90, 120, 2)


def test_load_of_the_packaged_weights():
    assert sm_jax.load("scnet").notes[0].startswith("features: resnet50, not trained")
    (line,) = sm_jax.load("scnet", features="googlenet-4e").notes
    assert "googlenet" in line and "RANDOM" not in line


@pytest.mark.parametrize(
    ("options", "error", "line"),
    [
        ({"features": "resnet"}, ConfigError, "features: unknown 'resnet'; did you mean 'resnet50'"),
        ({"features": "hog", "weights": "resnet50-caffe-c4"}, ConfigError, "'hog': takes no weights"),
        ({"features": "hog", "pool": "x"}, ConfigError, "pool: 'x' is none of flat, mean"),
        (
            {"features": "hog", "pool": "mean"},
            ConfigError,
            "untrained features of a backbone, not for features=",
        ),
        ({"features": "vgg16", "weights": "resnet50-caffe-c4"}, WeightsError, "does not fit the backbone"),
        ({"weights": "mobilenetv2-tv"}, WeightsError, "scnet takes VGG16, ResNet or GoogLeNet"),
        ({"weights": "crossmodal-shapes"}, WeightsError, "is for the system crossmodal, not for scnet"),
        ({"weights": "nothing-here"}, WeightsError, "no weights called 'nothing-here'"),
        ({"features": "hog", "method": "best"}, ConfigError, "method: 'best' is none of"),
        ({"features": "hog", "proposals": 0}, ConfigError, "proposals: 0 is not a whole number from 1 up"),
        ({"features": "hog", "model": {"embedd": 3}}, ConfigError, "did you mean 'embed'"),
        ({"features": "hog", "transform": "x"}, ConfigError, "transform: scnet has no transformation"),
    ],
)
def test_load_refuses_what_does_not_fit(options, error, line):
    with pytest.raises(error, match=line):
        sm_jax.load("scnet", **options)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Files of small random models by variant, each with its config."""
    folder, files = tmp_path_factory.mktemp("models"), {}
    for variant in ("AG", "AG+"):
        config = {
            "system": "scnet",
            "model": dataclasses.asdict(tiny.config(variant=variant)),
            "objective": {},
        }
        files[variant] = folder / f"{variant.removesuffix('+')}{len(variant)}.safetensors"
        io.save_variables(
            files[variant], jax.device_get(tiny.variables(variant)), {export.CONFIG: json.dumps(config)}
        )
    return files


def test_a_trained_model_has_its_own_features_and_method(exported):
    found = sm_jax.load("scnet", weights=exported["AG+"], proposals=12, proposal_method="uniform")
    assert found.method == "ag+" and found.notes[0].startswith("model: ")
    result = found.match(scene(), scene(at=(40, 30)), [(40, 30)])
    assert result.method == "ag+" and len(result) > 0 and result.valid.any()
    other = found.match(scene(), scene(at=(40, 30)), method="lom")
    assert dict(found.compiles) == {"describe": 1, "ag+": 1, "lom": 1} and other.method == "lom"


def test_trained_models_refuse_what_they_cannot_do(exported):
    with pytest.raises(ConfigError, match="is a trained model, which has its own features"):
        sm_jax.load("scnet", weights=exported["AG"], features="hog")
    with pytest.raises(ConfigError, match="pool='mean': is for untrained features .* the trained model"):
        sm_jax.load("scnet", weights=exported["AG"], pool="mean")
    with pytest.raises(ConfigError, match="'ag\\+' needs weights of an AG"):
        sm_jax.load("scnet", weights=exported["AG"], method="ag+")
    with pytest.raises(WeightsError, match="is for the system scnet, not for os2d"):
        sm_jax.load("os2d", weights=exported["AG"])
