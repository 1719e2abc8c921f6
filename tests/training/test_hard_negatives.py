"""Negatives chosen by the model in a run, stored features, whitening from data; a cheap network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import retrieval as retrieval_config
from sm_jax import data
from sm_jax.data.retrieval import BatchBuilder, BatchOptions
from sm_jax.data.stored import StoredFeatures
from sm_jax.errors import ConfigError
from sm_jax.systems.retrieval import model, whitening
from sm_jax.training import hard_negatives, mining, trunk_retrieval
from sm_jax.training.stream import Stream
from sm_jax.training.trunk import make_train_iterator
from sm_jax.weights.io import save_variables
from tests.data.test_os2d import FakeSource

CONFIG = model.ModelConfig(whiten=False, image_size=32, p=2.0)
CHANNELS = 6  # in place of 1024


class Colours(FakeSource):
    """Classes 0 and 1 look alike, and so do 2 and 3; all 4 and the background differ."""

    TONES = ((200, 10, 10), (190, 20, 10), (10, 200, 10), (10, 190, 20), (10, 10, 200))

    def image(self, index):
        image = super().image(index) * 0 + 60
        entry = self.annotation(index)
        for (left, top, right, bottom), label in zip(
            entry["boxes"].astype(int), entry["labels"], strict=True
        ):
            image[top:bottom, left:right] = self.TONES[label]
        return image

    def query(self, label):
        return np.full((30, 40, 3), self.TONES[label], np.uint8)


def _extract(config, variables, image, size):
    """Features: the first three are the colours of each cell, brought above 0."""
    del config, size
    cells = image.reshape(image.shape[0], image.shape[1] // 16, 16, image.shape[2] // 16, 16, 3).mean(
        axis=(2, 4)
    )
    gain = jnp.reshape(variables["params"]["backbone"]["gain"], ())
    shifted = jnp.maximum(cells * gain + 3, 0) * (jnp.abs(cells) > 0)
    return jnp.pad(shifted, ((0, 0), (0, 0), (0, 0), (0, CHANNELS - 3)))


@pytest.fixture(autouse=True)
def _cheap(monkeypatch):
    monkeypatch.setattr(model, "extract", _extract)
    monkeypatch.setattr(model, "FEATURES", CHANNELS)


VARIABLES = {"params": {"backbone": {"gain": jnp.ones(())}, "pool": {"p": jnp.full((1,), 2.0)}}}


@functools.cache
def _builder():
    options = BatchOptions(side=32, batch_size=2, negatives=2, queries=8, pool=100, random_crops=2)
    return BatchBuilder(Colours(count=10), options)


def _miner():
    config = retrieval_config.get_config("runlocal,untrained")
    config.model.image_size = 32
    return hard_negatives.NegativeMiner(config, _builder)


def test_what_looks_alike_is_taken_as_negative():
    builder, said = _builder(), []
    memory = _miner().run(VARIABLES, step=4, say=said.append)
    assert (memory.step, memory.epoch, memory.rows.shape) == (4, 1, (8, 2)) and _miner().every == 4
    labels = builder.crops.labels
    twin = {0: 1, 1: 0, 2: 3, 3: 2}
    for query, negatives in zip(builder.epochs[1].queries, memory.rows, strict=True):
        assert labels[query] not in labels[negatives]
        if labels[query] in twin:
            assert labels[negatives[0]] == twin[labels[query]]
    assert len(said) == 1 and said[0].startswith("epoch 1: hard negatives of 8 queries among ")


def test_descriptors_are_those_of_single_pictures():
    builder, rows = _builder(), np.array([3, 0, 7])
    found, valid = hard_negatives.describe(CONFIG, VARIABLES, builder, rows)
    assert found.shape == (3, CHANNELS) and valid.all()
    for row, descriptor in zip(rows, found, strict=True):
        size = builder.crops.sizes[row][None]
        features = _extract(CONFIG, VARIABLES, builder.crops.canvas(row)[None], size)
        expected = jax.jit(model.pool)(VARIABLES, features, jnp.asarray(size))[0]
        np.testing.assert_allclose(descriptor, expected, atol=1e-5)


def test_damaged_pictures_are_no_negatives():
    options = BatchOptions(side=32, batch_size=2, negatives=2, queries=4, pool=100, random_crops=0)
    builder = BatchBuilder(Colours(count=10, broken=[1, 6]), options)
    miner = hard_negatives.NegativeMiner(retrieval_config.get_config("untrained"), lambda: builder)
    memory = miner.run(VARIABLES, step=0, say=lambda line: None)
    assert not np.isin(builder.crops.image[memory.rows], [1, 6]).any()


def test_a_stream_drops_the_batch_that_was_read_before_mining():
    from sm_jax.data.pipeline import TrainIterator
    from sm_jax.training import sharding

    mesh = sharding.make_mesh({"data": 1, "fsdp": 1})
    with Stream(TrainIterator(_builder()), mesh) as stream:
        assert stream.shapes()["image"].shape == (2, 4, 32, 32, 3) and stream.memory is None
        memory = _miner().run(VARIABLES, step=0, say=lambda line: None)
        stream.remember(memory)
        (batch,) = stream.next()
        expected = _builder().with_memory(memory)
        np.testing.assert_array_equal(batch["image"], expected.finish(expected[0])[0]["image"])


# stored features and whitening ---------------------------------------------------------------------


@pytest.fixture
def config(tmp_path, monkeypatch):
    config = retrieval_config.get_config("runlocal")
    config.model.update(image_size=32, train_features=False, frozen_blocks=0)
    config.data.update(queries=4, pool=100, cache_dir=str(tmp_path), cache_trunk=True, workers=0)
    config.init.backbone = str(tmp_path / "backbone.safetensors")
    variables = {"params": {"backbone": {"gain": np.ones((1,), np.float32)}}}
    save_variables(config.init.backbone, variables, {}, dtype="f32")
    head = {"pool": {"p": jnp.full((1,), 2.0)}}
    whiten = {"kernel": jnp.zeros((CHANNELS, CHANNELS)), "bias": jnp.zeros(CHANNELS)}
    fresh = {"params": {"backbone": {"gain": jnp.ones((1,))}} | head | {"whiten": whiten}}
    monkeypatch.setattr(model, "init", lambda config, key: fresh)
    monkeypatch.setattr(data, "make_source", lambda section, split: Colours(count=10))
    return config


def _fresh():
    return jax.device_get(model.init(None, None))


def test_batches_of_stored_features_are_those_of_their_pictures(config):
    said = []
    iterator = make_train_iterator(config, say=said.append)
    stored = next(iterator)
    plain_config = config.copy_and_resolve_references()
    plain_config.data.cache_trunk = False
    plain = make_train_iterator(plain_config)
    pictures = next(plain)
    assert stored["image_trunk"].dtype == np.float16
    np.testing.assert_array_equal(stored["size"], pictures["size"])
    flat = pictures["image"].reshape(-1, 32, 32, 3)
    expected = _extract(None, _fresh(), flat, None).reshape(stored["image_trunk"].shape)
    np.testing.assert_allclose(stored["image_trunk"], expected, rtol=2e-3, atol=1e-3)
    miner = mining.make_miner(config)
    memory = miner.run(_fresh(), step=0, say=said.append)
    iterator.remember(memory)
    assert iterator.memory is memory and miner._builder._trunk is not None
    iterator.check(_fresh())
    for each in (iterator, plain):
        each.close()


@pytest.mark.parametrize("how", ["pca", "pairs"])
def test_a_new_run_starts_from_the_whitening_of_its_pictures(config, how, capsys):
    config.data.whitening = how
    iterator = make_train_iterator(config, say=lambda line: None)
    variables = iterator.complete(_fresh())
    iterator.close()
    builder = data.make_retrieval_builder(config)
    rows = np.flatnonzero(builder.crops.labels >= 0)
    settings = model.ModelConfig.create(config.model)
    pooled, _ = hard_negatives.describe(settings, _fresh(), builder, rows, whiten=False)
    kernel, bias = variables["params"]["whiten"]["kernel"], variables["params"]["whiten"]["bias"]
    spread = (pooled @ kernel + bias).std(axis=0)
    if how == "pca":
        np.testing.assert_allclose(spread[0], 1, rtol=0.1)
        np.testing.assert_allclose(pooled @ kernel, pooled @ whitening.pca(pooled, dim=CHANNELS)[0], atol=0.2)
    else:  # what tells classes apart varies most
        assert spread[0] > 2 and np.all(spread[0] >= spread[1:])
    assert f"whiten: starts from the {how} of {len(rows)} training pictures" in capsys.readouterr().out


def test_loaded_whitening_is_not_replaced(config):
    config.data.whitening = "pca"
    config.init.whiten = "some.safetensors"
    variables = _fresh()
    assert trunk_retrieval.whitened(config, variables, None) is variables
    config.data.whitening, config.init.whiten = "zca", ""
    with pytest.raises(ConfigError, match="data.whitening: 'zca' is none of random, pca, pairs"):
        trunk_retrieval.whitened(config, variables, None)


def test_features_that_change_are_not_stored(config):
    config.model.train_features = True
    with pytest.raises(ConfigError, match="the backbone trains"):
        make_train_iterator(config)


def test_the_valid_part_of_a_canvas_is_what_is_not_zero(monkeypatch):
    seen = {}

    def extract(config, variables, image, size):
        return jnp.broadcast_to(size[:, None, None, :].astype(jnp.float32), (len(size), 1, 1, 2))

    monkeypatch.setattr(model, "extract", extract)
    canvases = np.stack([_builder().crops.canvas(row) for row in (0, 6)])
    found = trunk_retrieval._features(model.ModelConfig(p=2.5), seen, canvases)
    np.testing.assert_array_equal(found[:, 0, 0], _builder().crops.sizes[[0, 6]])


def test_features_of_another_list_have_another_file(config):
    first = trunk_retrieval.Trunk(config)
    config.data.random_crops = 0
    second = trunk_retrieval.Trunk(config)
    assert first.file.path != second.file.path and first.weights_hash == second.weights_hash
    config.data.update(negatives=1, queries=2)  # which pictures are together in a tuple does not matter
    assert trunk_retrieval.Trunk(config).file.path == second.file.path
    assert isinstance(second.fill(lambda line: None), StoredFeatures)
