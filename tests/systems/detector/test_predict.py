"""Detection over pyramids: results do not depend on padding, boxes come back in the image's pixels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax.systems.detector import model, predict
from sm_jax.systems.detector.predict import Parts, Predictor
from tests.systems.detector import tiny


def fixed_parts(classes=1):
    """Finds three boxes at fixed shares of every picture, with scores that grow with the level's width."""
    shares = jnp.asarray([[0.1, 0.1, 0.4, 0.5], [0.12, 0.1, 0.42, 0.5], [0.5, 0.5, 0.9, 0.9], [0, 0, 1, 1]])
    base = jnp.asarray([[0.5, 0.1], [0.4, 0.6], [0.3, 0.2], [0.9, 0.9]])[:, :classes]

    def boxes(variables, image, size):
        del variables, image
        scale = jnp.concatenate([size[:, ::-1], size[:, ::-1]], axis=1).astype(jnp.float32)
        valid = jnp.asarray([True, True, True, False])
        return {
            "boxes": shares[None] * scale[:, None],
            "scores": base[None] + scale[:, :1, None] / 10_000,
            "valid": jnp.broadcast_to(valid[None], (len(size), 4)),
        }

    return Parts(boxes, classes)


def picture(height, width):
    return np.zeros((height, width, 3), np.float32)


def test_boxes_of_all_levels_come_back_in_pixels_of_the_image():
    predictor = Predictor(fixed_parts())
    found = predictor.detect({}, [picture(50, 100), picture(100, 200)], image_size=(200, 300))
    np.testing.assert_allclose(found["boxes"], [[30, 20, 120, 100], [150, 100, 270, 180]], atol=1e-4)
    np.testing.assert_allclose(found["scores"], [0.52, 0.32], atol=1e-6)
    assert found["labels"].dtype == np.int64 and not found["labels"].any()


def test_options():
    predictor = Predictor(fixed_parts(2))
    detect = functools.partial(predictor.detect, {}, [picture(100, 100)], image_size=(100, 100))
    everything = detect()
    assert everything["labels"].tolist() == [1, 0, 0, 1]  # each class for itself
    assert (np.diff(everything["scores"]) <= 0).all()
    assert detect(nms_iou=0.99)["labels"].tolist() == [1, 0, 0, 0, 1, 1]
    assert detect(score_threshold=0.35)["labels"].tolist() == [1, 0]
    assert detect(max_detections=3)["labels"].tolist() == [1, 0, 0]
    assert len(detect(max_detections=0)["boxes"]) == 0
    assert detect(min_side=35.0)["labels"].tolist() == [0, 1]
    assert np.allclose(detect(min_side=35.0)["boxes"], [50, 50, 90, 90])


def test_small_levels_are_passed_over_and_nothing_is_found_in_nothing():
    predictor = Predictor(fixed_parts())
    one = predictor.detect({}, [picture(16, 300), picture(64, 64)], image_size=(64, 64))
    assert len(one["boxes"]) == 2
    none = predictor.detect({}, [picture(16, 300)], image_size=(64, 64))
    assert none["boxes"].shape == (0, 4) and none["labels"].dtype == np.int64


def test_few_programs_serve_many_sizes():
    predictor = Predictor(fixed_parts())
    for height, width in ((30, 50), (60, 64), (33, 17)):
        predictor.detect({}, [picture(height, width), picture(2 * height, 2 * width)], image_size=(60, 60))
    assert predictor.compiles == {"boxes": 1, "detections": 1}


@pytest.mark.parametrize("step", [0, 24])
def test_a_step_must_fit_the_features(step):
    with pytest.raises(ValueError, match="multiple of 16"):
        Predictor(fixed_parts(), step=step)


def test_padding_changes_nothing(monkeypatch):
    tiny.patch(monkeypatch)
    config = tiny.config(classes=2, shared_boxes=False)
    variables = model.init(config, jax.random.key(3))
    rng = np.random.default_rng(0)
    image = rng.normal(size=(64, 96, 3)).astype(np.float32)
    options = {"candidates": 40, "proposals": 12}
    found = [
        Predictor(predict.parts(config, **options), step=step).detect(variables, [image], image_size=(64, 96))
        for step in (16, 128)
    ]
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-3), *found)
    assert len(found[0]["boxes"]) > 4


def test_predict_has_fixed_shapes(monkeypatch):
    tiny.patch(monkeypatch)
    config = tiny.config(classes=3)
    variables = jax.eval_shape(functools.partial(model.init, config), jax.random.key(0))
    images = {
        "image": jax.ShapeDtypeStruct((2, 320, 256, 3), jnp.float32),
        "size": jax.ShapeDtypeStruct((2, 2), jnp.int32),
    }
    found = jax.eval_shape(functools.partial(predict.predict, config), variables, images)
    assert found["boxes"].shape == (2, 100, 4) and found["labels"].shape == found["valid"].shape == (2, 100)
