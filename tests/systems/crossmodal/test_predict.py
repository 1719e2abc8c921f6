"""Fixed-shape inference: chunks change nothing but the number of programs. The backbone is a stand-in."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from sm_jax.errors import ConfigError
from sm_jax.systems import crossmodal
from sm_jax.systems.crossmodal import model
from sm_jax.systems.crossmodal.predict import Predictor, ProposalOptions, predict, propose
from tests.systems.crossmodal import tiny

TOKENS = np.int32([[1, 3, 5, 0], [1, 4, 0, 0], [1, 6, 2, 0]])


def small_features(config, variables, inputs):
    """Stands in for `model.features`: mean colours of 32x32 pixels, the rest of the channels zero."""
    b, h, w, _ = inputs["image"].shape
    cells = inputs["image"].reshape(b, h // 32, 32, w // 32, 32, 3).mean(axis=(2, 4))
    return jnp.pad(cells, ((0, 0), (0, 0), (0, 0), (0, 1280 - 3)))


@pytest.fixture(autouse=True)
def _small_backbone(monkeypatch):
    monkeypatch.setattr(model, "features", small_features)


@pytest.fixture(scope="module")
def config():
    return tiny.config()


@pytest.fixture(scope="module")
def variables(config):
    """An objectness of 4 * (red of the cell) - 2, and boxes exactly the anchors."""
    made = tiny.variables(config, backbone=False)
    rpn = jax.tree.map(np.zeros_like, made["params"]["rpn"])
    rpn["conv"]["kernel"][1, 1, 0, 0] = 1
    rpn["objectness"]["kernel"][0, 0], rpn["objectness"]["bias"][0] = 4, -2
    return {"params": made["params"] | {"rpn": rpn}}


def scenes(places, size=(128, 160), seed=0):
    """Pictures whose cells (row, column, red) are red on a noisy dark ground."""
    images = 0.1 * np.random.default_rng(seed).random((len(places), *size, 3)).astype(np.float32)
    for image, cells in zip(images, places, strict=True):
        for row, column, red in cells:
            image[32 * row : 32 * row + 32, 32 * column : 32 * column + 32, 0] = red
    return images


PLACES = [[(0, 0, 0.9), (2, 2, 1.0)], [], [(3, 4, 0.8), (3, 3, 0.7)], [(1, 1, 0.6)], [(0, 4, 2.0)]]


def assert_same(actual, expected):
    assert set(actual) == set(expected)
    for name in actual:
        np.testing.assert_allclose(actual[name], expected[name], atol=2e-5, err_msg=name)


def test_proposals_are_decoded_clipped_suppressed_and_sorted(config, variables):
    def run(**options):
        rules = ProposalOptions(**options)
        return jax.jit(lambda image: propose(config, variables, {"image": image}, rules))(scenes(PLACES))

    found = run()
    assert found["boxes"].shape == (5, 100, 4) and found["embeddings"].shape == (5, 100, 6)
    assert found["valid"].sum(axis=1).tolist() == [2, 0, 2, 1, 1]
    np.testing.assert_allclose(found["boxes"][0, :2], [[48, 48, 112, 112], [0, 0, 48, 48]], atol=1e-3)
    np.testing.assert_allclose(found["boxes"][2, 0], [112, 80, 160, 128], atol=1e-3)
    np.testing.assert_allclose(found["conf"][0, :2], jax.nn.sigmoid(np.float32([2.0, 1.6])), atol=1e-5)
    length = np.linalg.norm(found["embeddings"], axis=-1)
    np.testing.assert_allclose(length, found["valid"], atol=1e-5)
    # The two in the third picture, cut by its border, overlap by 0.4.
    found = run(iou=0.3, size=7)
    assert found["boxes"].shape == (5, 7, 4)
    assert found["valid"].sum(axis=1).tolist() == [2, 0, 1, 1, 1]
    assert run(min_conf=0.85, min_side=50)["valid"].sum(axis=1).tolist() == [1, 0, 0, 0, 0]


def test_scores_are_products_and_pictures_have_their_own_phrases(config, variables):
    sections = {"model": tiny.SMALL, "objective": {}}
    system = crossmodal.make(ml_collections.ConfigDict(sections))
    images = {"image": scenes(PLACES)}
    encoded = system.encode(variables, {"tokens": TOKENS})
    assert encoded["text"].shape == (3, 6)
    shared = jax.jit(system.predict)(variables, images, encoded)
    assert shared["align"].shape == shared["scores"].shape == (5, 3, 100)
    np.testing.assert_allclose(shared["scores"], shared["conf"][:, None] * shared["align"], atol=1e-6)
    inside = np.broadcast_to(shared["valid"][:, None], shared["align"].shape)
    assert ((np.asarray(shared["align"]) > 0) == inside).all()
    logits = model.align_logits(config, variables, shared["embeddings"][0, :2], encoded["text"])
    np.testing.assert_allclose(shared["align"][0, :, :2], jax.nn.sigmoid(logits), atol=1e-5)
    own = jnp.stack([jnp.roll(encoded["text"], i, axis=0) for i in range(5)])
    each = jax.jit(system.predict)(variables, images, {"text": own})
    for i in range(5):
        want = np.roll(np.asarray(shared["align"][i]), i, axis=0)
        np.testing.assert_allclose(each["align"][i], want, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 8])  # 8: the five pictures are padded
def test_chunks_change_nothing(config, variables, chunk):
    images = scenes(PLACES)
    one, other = (Predictor(config, chunk=c, text_chunk=t) for c, t in ((chunk, 2), (2, 8)))
    found = one.proposals(variables, images)
    assert_same(found, other.proposals(variables, images))
    texts = one.texts(variables, TOKENS)
    np.testing.assert_allclose(texts, other.texts(variables, TOKENS), atol=1e-5)
    got = one.scores(variables, found["embeddings"], texts)
    assert got.shape == (5, 3, 100)
    np.testing.assert_allclose(got, other.scores(variables, found["embeddings"], texts), atol=1e-5)
    own = np.stack([np.roll(texts, i, axis=0) for i in range(5)])
    each = one.scores(variables, found["embeddings"], own)
    for i in range(5):
        np.testing.assert_allclose(each[i], np.roll(got[i], i, axis=0), atol=1e-5)
    direct = jax.jit(lambda image, text: predict(config, variables, {"image": image}, {"text": text}))(
        images, texts
    )
    np.testing.assert_allclose(np.where(found["valid"][:, None], got, 0), direct["align"], atol=1e-5)


def test_number_of_programs_is_bounded(config, variables):
    predictor = Predictor(config, chunk=4, text_chunk=8)
    rng = np.random.default_rng(3)
    for _ in range(12):
        images = scenes([[(0, 0, 1.0)]] * int(rng.integers(1, 10)))
        found = predictor.proposals(variables, images)
        texts = predictor.texts(variables, np.tile(TOKENS, (4, 1))[: rng.integers(1, 13)])
        predictor.scores(variables, found["embeddings"], texts)
    assert predictor.compiles["proposals"] <= 3 and predictor.compiles["texts"] <= 4
    assert predictor.compiles["scores"] <= 12
    seen = []
    for _ in range(2):
        found = predictor.proposals(variables, scenes(PLACES[:4]))
        predictor.scores(variables, found["embeddings"], predictor.texts(variables, np.tile(TOKENS, (4, 1))))
        seen.append(dict(predictor.compiles))
    assert seen[0] == seen[1]


def test_no_images_no_phrases_no_proposals(config, variables):
    predictor = Predictor(config)
    none = predictor.proposals(variables, np.zeros((0, 64, 64, 3), np.float32))
    assert none["boxes"].shape == (0, 100, 4) and none["embeddings"].shape == (0, 100, 6)
    texts = predictor.texts(variables, np.zeros((0, 4), np.int32))
    assert texts.shape == (0, 6)
    found = predictor.proposals(variables, scenes([[]]))
    assert not found["valid"].any() and not found["boxes"].any() and not found["embeddings"].any()
    assert predictor.scores(variables, found["embeddings"], texts).shape == (1, 0, 100)
    aligned = predictor.scores(variables, found["embeddings"], predictor.texts(variables, TOKENS))
    assert np.isfinite(aligned).all()


def test_a_network_gone_wrong_proposes_nothing(config, variables):
    images = scenes(PLACES)
    images[0] = np.nan
    found = Predictor(config).proposals(variables, images)
    assert not found["valid"][0].any() and found["valid"][2].any()
    assert all(np.isfinite(value).all() for value in found.values())


@pytest.mark.parametrize("options", [{"chunk": 3}, {"text_chunk": 0}, {"chunk": -2}])
def test_bad_chunks(config, options):
    with pytest.raises(ValueError, match="power of two"):
        Predictor(config, **options)


@pytest.mark.parametrize("options", [{"min_conf": 1.5}, {"iou": -0.1}, {"size": 0}])
def test_bad_proposal_options(options):
    with pytest.raises(ConfigError, match="proposals"):
        ProposalOptions(**options)
