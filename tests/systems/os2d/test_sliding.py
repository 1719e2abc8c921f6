"""The window of the query's own shape against a plain convolution; padding and buckets change nothing."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from configs import os2d as published
from sm_jax import api, points, systems
from sm_jax.data import transforms
from sm_jax.data.images import fit_to_area
from sm_jax.errors import ConfigError, ImageError, WeightsError
from sm_jax.evaluators.os2d import DetectionEvaluator
from sm_jax.ops.correlation import l2_normalize
from sm_jax.systems.os2d import model, sliding
from sm_jax.systems.os2d.predict import Predictor, parts, predict_level
from tests.evaluators.fake_source import Squares
from tests.systems.os2d import fake

CONFIG = model.ModelConfig(window="target", query_size=64)
CELLS = sliding.capacity(CONFIG.query_size)
HEAD = jax.jit(sliding.head)
DEPTH = 5


@pytest.fixture(autouse=True)
def colours(monkeypatch):
    """The mean colour of cells instead of the features of a network."""
    fake_model = types.SimpleNamespace(**vars(model))
    fake_model.extract = lambda config, variables, image, size: fake._extract(variables, image, size)
    monkeypatch.setattr(sliding, "model", fake_model)
    monkeypatch.setattr(model, "extract", fake_model.extract)


def _template(rng, cells):
    """Normalised cells of a map (rows, columns), and the same as a template."""
    cells = rng.normal(size=(*cells, DEPTH)).astype(np.float32)
    cells /= np.linalg.norm(cells, axis=-1, keepdims=True)
    flat = cells.reshape(-1, DEPTH)
    return cells, np.pad(flat, ((0, CELLS - len(flat)), (0, 0)))


def _convolved(features, cells):
    """What the scores are: features (h, w, d) convolved with cells (i, j, d), over the number of cells."""
    normalised = l2_normalize(jnp.asarray(features), epsilon=1e-5)
    padding = [(side // 2, side - 1 - side // 2) for side in cells.shape[:2]]
    total = jax.lax.conv_general_dilated(
        normalised[None], cells[..., None], (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return total[0, ..., 0] / (cells.shape[0] * cells.shape[1])


def test_scores_are_a_convolution_with_the_class_map_in_value_and_gradient():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1, 9, 11, DEPTH)).astype(np.float32)
    shapes = [(4, 4), (1, 1), (13, 2), (3, 20)]
    maps, templates = zip(*(_template(rng, shape) for shape in shapes), strict=True)
    weight = rng.normal(size=(1, len(shapes), 9, 11)).astype(np.float32)
    sizes = jnp.asarray(shapes) * 16.0

    def fast(features):
        return HEAD(features, None, jnp.asarray(templates), sizes).scores

    def slow(features):
        return jnp.stack([_convolved(features[0], cells) for cells in maps])[None]

    np.testing.assert_allclose(fast(features), slow(features), atol=1e-5)
    got, want = (jax.grad(lambda f, g=g: jnp.sum(g(f) * weight))(jnp.asarray(features)) for g in (fast, slow))
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_the_box_is_the_class_picture_where_its_first_cell_lies():
    sizes = np.array([[60, 100], [96, 32], [17, 16]], np.float32)  # 4x7, 6x2 and 2x1 cells
    out = HEAD(jnp.zeros((1, 6, 8, DEPTH)), None, jnp.zeros((3, CELLS, DEPTH)), sizes)
    for c, (rows, columns) in enumerate([(4, 7), (6, 2), (2, 1)]):
        for y, x in [(0, 0), (5, 7), (2, 3)]:
            left, top = 16 * (x - columns // 2), 16 * (y - rows // 2)
            assert (left, top) == (points.window_to_pixels(x, columns), points.window_to_pixels(y, rows))
            box = [left, top, left + sizes[c, 1], top + sizes[c, 0]]
            np.testing.assert_allclose(out.boxes[0, c, y, x], box, atol=1e-3)
            np.testing.assert_allclose(out.corners[0, c, y, x, [0, 3]].reshape(-1), box, atol=1e-3)


def test_padding_of_image_and_template_changes_nothing():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(1, 6, 7, DEPTH)).astype(np.float32)
    _, template = _template(rng, (3, 5))
    sizes = jnp.array([[40.0, 70.0]])
    alone = HEAD(features, None, template[None, :15], sizes)
    padded = np.full((1, 9, 12, DEPTH), 7.0, np.float32)  # what lies outside is hidden
    padded[:, :6, :7] = features
    got = HEAD(padded, jnp.array([[6, 7]]), template[None], sizes)
    np.testing.assert_allclose(got.scores[..., :6, :7], alone.scores, atol=1e-6)
    np.testing.assert_allclose(got.boxes[..., :6, :7, :], alone.boxes, atol=1e-3)
    assert not got.scores[..., 6:, :].any() and not got.scores[..., 7:].any()


@given(st.integers(1, 4000), st.integers(1, 4000), st.sampled_from([64, 240]))
def test_a_template_holds_every_picture_that_is_not_extremely_long(height, width, query_size):
    if max(height, width) <= 24 * min(height, width):
        (size,) = sliding.encoded_sizes([(height, width)], query_size=query_size)
        assert tuple(size) == fit_to_area((height, width), query_size)


def _noise(rng, size):
    """A picture whose 16-pixel cells have colours of their own."""
    cells = rng.integers(0, 256, (-(-size[0] // 16), -(-size[1] // 16), 3)).astype(np.uint8)
    return np.repeat(np.repeat(cells, 16, axis=0), 16, axis=1)[: size[0], : size[1]]


@functools.cache
def _predictor():
    return Predictor(parts(CONFIG), step=64, chunk=2)


def _encode(picture):
    return _predictor().encode(fake.VARIABLES, transforms.normalize(picture))


def test_cut_out_queries_are_found_where_they_were_with_the_same_programs():
    rng = np.random.default_rng(2)
    image = _noise(rng, (128, 176))
    sizes, places = [(64, 64), (32, 128), (128, 32)], [(32, 48), (0, 16), (0, 144)]
    assert all(fit_to_area(size, CONFIG.query_size) == size for size in sizes)
    queries = [image[y : y + h, x : x + w] for (y, x), (h, w) in zip(places, sizes, strict=True)]
    found = _predictor().detect(
        fake.VARIABLES,
        [transforms.normalize(image)],
        np.stack([_encode(query) for query in queries]),
        class_ids=[0, 1, 2],
        image_size=image.shape[:2],
        shapes=sizes,
        max_detections=1,
    )
    np.testing.assert_allclose(found["scores"], 1.0, atol=1e-3)
    want = [[x, y, x + w, y + h] for (y, x), (h, w) in zip(places, sizes, strict=True)]
    np.testing.assert_allclose(found["boxes"], want, atol=1e-2)
    before = dict(_predictor().compiles)
    assert before["head"] == 2  # chunks of 2 and 1
    for size in [(57, 70), (40, 100), (120, 33), (62, 65)]:
        template = _encode(_noise(rng, fit_to_area(size, CONFIG.query_size)))
        options = {"class_ids": [0], "image_size": image.shape[:2], "shapes": [size]}
        _predictor().detect(fake.VARIABLES, [transforms.normalize(image)], template[None], **options)
    assert dict(_predictor().compiles) == before


def test_a_query_that_is_too_long_is_one_line():
    with pytest.raises(ImageError, match="class picture of 4000x10 pixels is too long and thin") as error:
        sliding.encoded_sizes([(50, 60), (10, 4000)], query_size=64)
    assert "\n" not in str(error.value)


def test_the_system_predicts_what_the_predictor_does_and_the_evaluator_takes_it():
    rng = np.random.default_rng(3)
    image, query = _noise(rng, (64, 128)), _noise(rng, (32, 128))
    system = systems.make(ConfigDict({"system": "os2d", "model": CONFIG.__dict__, "objective": {}}))
    request = {"image": transforms.normalize(query)[None], "size": jnp.array([[32, 128]])}
    encoded = jax.jit(system.encode)(fake.VARIABLES, request)
    level = {"image": transforms.normalize(image)[None], "size": jnp.array([[64, 128]])}
    answer = jax.jit(functools.partial(predict_level, CONFIG))(fake.VARIABLES, level, encoded)
    template = _encode(query)
    np.testing.assert_allclose(encoded["template"][0], template, atol=1e-5)
    best = _predictor().detect(
        fake.VARIABLES,
        [level["image"][0]],
        template[None],
        class_ids=[0],
        image_size=(64, 128),
        shapes=[(32, 128)],
    )["best"]
    np.testing.assert_allclose(answer["scores"].max(), best[0], atol=1e-5)
    evaluator = DetectionEvaluator(
        _predictor(), Squares(), scales=[1.0], query_size=64, iou_thresholds=(0.5,)
    )
    assert dict(evaluator.run(fake.VARIABLES))["recall@0.50"] == 1.0


def test_a_detector_takes_banks_of_its_own_templates_only():
    image = _noise(np.random.default_rng(4), (64, 128))
    window = api.Detector(parts(CONFIG), fake.VARIABLES, query_size=64, window="target", step=64)
    bank = window.encode({"strip": image[16:48]})
    (found,) = window.detect(image, bank, scales=1.0, threshold=0.9, max_detections=1)
    np.testing.assert_allclose(found.boxes, [[0, 16, 128, 48]], atol=1e-2)
    other = api.Detector(parts(model.ModelConfig(window="square")), fake.VARIABLES, window="square")
    with pytest.raises(WeightsError, match="encode its pictures again"):
        other.detect(image, bank)


@pytest.mark.parametrize("window", ["square", "target"])
def test_a_sliding_window_has_no_transformation_network_and_does_not_train(window):
    config = published.get_config(f"recipe=sliding-{'ar' if window == 'target' else window}")
    assert config.model.window == window and config.steps == 0
    system = systems.make(config)
    assert set(jax.eval_shape(system.init, jax.random.key(0), None)["params"]) == {"backbone"}
    with pytest.raises(ConfigError, match="does not train"):
        system.loss({}, {}, None)
    with pytest.raises(ConfigError, match="model.window: 'round' is none of '', square, target"):
        model.ModelConfig(window="round")
