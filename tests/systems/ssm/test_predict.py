"""Inference of fixed shapes: chunks change nothing, requests are letterboxed, bad pictures are one line."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from sm_jax import systems
from sm_jax.data.transforms import bgr_minus_mean
from sm_jax.errors import DataError
from sm_jax.systems.ssm import model, predict
from sm_jax.systems.ssm.predict import Predictor
from tests.systems.ssm import tiny


@pytest.fixture(autouse=True)
def _small_branches(monkeypatch):
    """Stand-ins for the two networks: random mixtures of the mean colours of each cell."""
    mixtures = jnp.asarray(np.random.default_rng(9).standard_normal((3, 1024)), jnp.float32)

    def cells(x, stride):
        b, h, w, _ = x.shape
        mean = x.reshape(b, h // stride, stride, w // stride, stride, 3).mean(axis=(2, 4))
        return jax.nn.relu(mean * stride / 64 @ mixtures)

    def features(config, variables, inputs, of):
        return cells(inputs[of], 16 if of == "image" else 4)

    monkeypatch.setattr(model, "_features", features)


def pictures(count, size, seed=0):
    return bgr_minus_mean(np.random.default_rng(seed).integers(0, 256, (count, *size, 3), np.uint8))


def options(fusion, relu=False):
    config = tiny.config(fusion=fusion, head_relu=relu)
    return config, tiny.variables(config, branches=False)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("fusion", model.FUSIONS)
def test_chunks_change_nothing(fusion, relu):
    config, variables = options(fusion, relu)
    images, requests = pictures(3, (64, 96)), pictures(5, (16, 24), seed=1)
    got = []
    for chunk, request_chunk in ((1, 8), (2, 2)):
        predictor = Predictor(config, chunk=chunk, request_chunk=request_chunk)
        features = predictor.features(variables, images)
        encoded = predictor.encode(variables, requests)
        assert isinstance(features, np.ndarray) and features.shape == (3, 4, 6, 1024)
        assert encoded.shape == ((5, 4, 6, 1024) if config.aligned else (5, 1024))
        coverage, boxes = predictor.search(variables, features, encoded)
        assert coverage.shape == (3, 5, 4, 6) and boxes.shape == (3, 5, 4, 6, 4)
        got.append((coverage, boxes))
        counts = dict(predictor.compiles)
        kept = predictor.keep(encoded)
        assert all(isinstance(chunk, jax.Array) for chunk in kept.chunks) and sum(kept.counts) == 5
        for again, first in zip(predictor.search(variables, features, kept), (coverage, boxes), strict=True):
            np.testing.assert_array_equal(again, first)
        assert dict(predictor.compiles) == counts
        assert counts.get("collapse", 0) == (0 if relu else 1)
    np.testing.assert_allclose(got[0][0], got[1][0], atol=1e-5)
    np.testing.assert_allclose(got[0][1], got[1][1], atol=1e-4)
    for i, q in ((0, 0), (2, 4), (1, 3)):
        out = model.head(config, variables, features[i : i + 1], encoded[q : q + 1])
        coverage, boxes = predict.decode(out)
        np.testing.assert_allclose(got[0][0][i, q], coverage[0], atol=1e-4)
        np.testing.assert_allclose(got[0][1][i, q], boxes[0], atol=1e-3)
    assert np.std(got[0][0]) > 1e-3


def test_programs_are_bounded():
    config, variables = options("product_gap")
    predictor = Predictor(config, chunk=4, request_chunk=4)
    for count in range(1, 9):
        features = predictor.features(variables, pictures(count, (32, 32)))
        encoded = predictor.encode(variables, pictures(count, (16, 24)))
        predictor.search(variables, features, encoded)
    assert predictor.compiles["features"] == predictor.compiles["requests"] == 3
    assert predictor.compiles["search"] <= 9 and predictor.compiles["collapse"] == 1


def test_boxes_are_those_of_the_cells():
    config, variables = options("product_aligned")
    variables["params"]["head"] = jax.tree.map(np.zeros_like, variables["params"]["head"])
    variables["params"]["head"]["boxes"]["bias"][:] = [1, 2, 30, 40]
    predictor = Predictor(config)
    coverage, boxes = predictor.search(variables, tiny.features(1, 4, 6), tiny.features(2, 4, 6))
    np.testing.assert_allclose(coverage, 0.5)
    np.testing.assert_allclose(boxes[0, 1, 3, 2], [33, 50, 62, 88])


def test_other_variables_are_collapsed_again():
    config, variables = options("product_gap")
    predictor, features, request = Predictor(config), tiny.features(1, 4, 6), tiny.features(1)
    first, _ = predictor.search(variables, features, request)
    second, _ = predictor.search(tiny.variables(config, seed=1, branches=False), features, request)
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_array_equal(predictor.search(variables, features, request)[0], first)


def test_nothing_to_search_gives_empty_arrays():
    config, variables = options("product_gap")
    predictor = Predictor(config)
    encoded = predictor.encode(variables, [])
    assert encoded.shape == (0, 1024)
    for requests in (encoded, predictor.keep(encoded)):
        coverage, boxes = predictor.search(variables, tiny.features(2, 4, 6), requests)
        assert coverage.shape == (2, 0, 4, 6) and boxes.shape == (2, 0, 4, 6, 4)
    assert predictor.features(variables, np.zeros((0, 32, 32, 3), np.float32)).shape == (0, 2, 2, 1024)


def test_requests_are_letterboxed_with_the_grey_that_is_zero():
    picture = np.random.default_rng(0).integers(0, 256, (20, 40, 3), np.uint8)
    got = predict.prepare_request(picture, (128, 128))
    assert got.shape == (128, 128, 3) and got.dtype == np.float32
    rows = np.flatnonzero((got != 0).any((1, 2)))
    assert rows[0] == 32 and rows[-1] == 95 and (got[40] != 0).any(-1).all()
    tall = predict.prepare_request(np.ascontiguousarray(picture.transpose(1, 0, 2)), (128, 64))
    columns = np.flatnonzero((tall != 0).any((0, 2)))
    assert columns[0] == 0 and columns[-1] == 63  # fits exactly
    same = predict.prepare_request(picture, (20, 40))
    np.testing.assert_array_equal(same, picture[..., ::-1].astype(np.float32) - 127)
    config, variables = options("product_aligned")
    encoded = Predictor(config).encode(variables, [picture, picture[:10]])
    want = Predictor(config).encode(variables, np.stack([predict.prepare_request(picture, (16, 24))]))
    np.testing.assert_allclose(encoded[:1], want, atol=1e-6)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.full((40, 40, 3), 200, np.uint8), "request 2 of 2: is blank"),
        (
            np.random.default_rng(0).integers(0, 256, (7, 40, 3), np.uint8),
            "request 2 of 2: 40 x 7 pixels are",
        ),
        (np.zeros((40, 0, 3), np.uint8), "request 2 of 2: 0 x 40 pixels"),
    ],
)
def test_requests_that_say_nothing_are_refused(picture, message):
    config, variables = options("product_gap")
    good = np.random.default_rng(1).integers(0, 256, (30, 30, 3), np.uint8)
    with pytest.raises(DataError, match=message) as error:
        Predictor(config).encode(variables, [good, picture])
    assert "\n" not in str(error.value)


def test_images_smaller_than_a_cell_are_refused():
    config, variables = options("product_gap")
    with pytest.raises(DataError, match="image: 32 x 15 pixels are less than one cell of the map"):
        Predictor(config).features(variables, np.zeros((1, 15, 32, 3), np.float32))


def test_chunks_are_powers_of_two():
    with pytest.raises(ValueError, match="request_chunk must be a power of two, is 6"):
        Predictor(tiny.config(), request_chunk=6)


def test_the_system_is_made_from_its_config():
    sections = {"system": "ssm", "model": tiny.SMALL, "objective": {"rect_obj_norm": True}}
    system = systems.make(ml_collections.ConfigDict(sections))
    assert set(jax.eval_shape(system.init, jax.random.key(0), None)) == {"params"}
    assert system.trainable("head/conv1/kernel") and not system.trainable("image_branch/conv1/kernel")
    variables = tiny.variables(tiny.config(), branches=False)
    encoded = system.encode(variables, {"request": pictures(2, (16, 24))})
    out = jax.jit(system.predict)(variables, {"image": pictures(3, (64, 96))}, encoded)
    assert {name: value.shape for name, value in out.items()} == {
        "coverage": (3, 2, 4, 6),
        "boxes": (3, 2, 4, 6, 4),
    }
    batch = {"image": pictures(2, (64, 96)), "request": pictures(2, (16, 24))}
    batch |= {name: value for name, value in tiny.make_batch().items() if "trunk" not in name}
    value, _ = jax.jit(functools.partial(system.loss, variables))(batch, jax.random.key(0))
    assert np.isfinite(value)
