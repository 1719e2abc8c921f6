"""Stored features of SCNet's frozen trunk, and an AG+ that starts from a trained A."""

import jax
import numpy as np
import pytest
from PIL import Image

import sm_jax
from configs import scnet as configs
from sm_jax import training
from sm_jax.data import make_training_pairs, scnet
from sm_jax.data.images import read_image
from sm_jax.data.synthetic import figures
from sm_jax.data.transforms import MEAN, STD
from sm_jax.errors import ConfigError, DataError, WeightsError
from sm_jax.systems.scnet import model
from sm_jax.training import trunk, trunk_scnet
from sm_jax.weights import start


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def config(cache, monkeypatch):
    monkeypatch.setenv("SM_JAX_CACHE", str(cache))
    found = configs.get_config("runlocal,variant=A,flips,steps=2")
    found.data.figures.update(num_train=2, num_val=1, num_test=1)
    found.data.update(proposals=30, proposal_method="grid")
    found.update(eval_every=0)
    found.checkpoint.update(every=0, keep_best=0, best_metric="")
    return found


def _fresh(config):
    """Variables of a model, every one 0.5: random ones would take long to make."""
    net = model.ModelConfig.create(config.model)
    shapes = jax.eval_shape(lambda: model.init(net, jax.random.key(0)))
    return jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, leaf.dtype), shapes)


def test_batches_hold_the_features_of_their_pictures(config):
    lines = []
    iterator = trunk.make_train_iterator(config, say=lines.append)
    batch = next(iterator)
    iterator.close()
    assert "8 pictures x 14x14x1024 float16" in lines[0]  # 4 and their mirror images
    again = []
    trunk.make_train_iterator(config, say=again.append).close()
    assert "from an earlier run" in again[0]

    net = model.ModelConfig.create(config.model)
    shapes = jax.eval_shape(lambda: model.init_backbone(net, jax.random.key(0)))
    variables, _ = start.initialize(shapes, config.init)
    pictures = make_training_pairs(config).pictures
    row = scnet.network_input(pictures, 0)
    features = np.asarray(jax.jit(lambda v, x: model.features(net, v, x))(variables, row[None])[0])
    stored = np.load(next(trunk.file_path(config, "", "").parent.glob("scnet-resnet50-*.npy")), mmap_mode="r")
    np.testing.assert_allclose(stored[0], features, atol=2e-2, rtol=2e-3)
    assert not np.array_equal(stored[0], stored[4])
    assert any(np.array_equal(batch["source_features"][0], stored[i]) for i in range(8))


def test_statistics_of_the_training_pictures_are_part_of_the_trunk(config):
    plain = trunk_scnet.Trunk(config)
    config.model.input_norm = "dataset_pixel"
    own = trunk_scnet.Trunk(config)
    source = make_training_pairs(config)
    ends = [end for number in range(len(source.pairs)) for end in source.ends(number)]
    images = np.stack([source.pictures[end] for end in ends]).astype(np.float64)
    images = np.concatenate([images, images[:, :, ::-1]])  # flips
    found = own.variables["batch_stats"]["input"]
    np.testing.assert_allclose(found["mean"], images.mean(axis=0), atol=1e-3)
    np.testing.assert_allclose(found["std"], images.std(axis=0), atol=1e-2)
    assert own.weights_hash != plain.weights_hash and own.file.path != plain.file.path

    fresh = _fresh(config)
    scale = 255 * np.ones((*config.model.image_size, 1), np.float32)
    fresh["batch_stats"]["input"] = {"mean": scale * np.float32(MEAN), "std": scale * np.float32(STD)}
    fresh["params"]["backbone"] = own.variables["params"]["backbone"]
    fresh["batch_stats"]["backbone"] = own.variables["batch_stats"]["backbone"]
    assert own.hash_of(fresh) != own.weights_hash  # ImageNet's, with which a model is initialised
    complete = own.complete(fresh)
    assert own.hash_of(complete) == own.weights_hash
    assert set(complete["batch_stats"]) == {"backbone", "input"}
    with config.unlocked():
        config.data.flips = False
    once = trunk_scnet.Trunk(config).variables["batch_stats"]["input"]["mean"]
    np.testing.assert_allclose(once, images[: len(ends)].mean(axis=0), atol=1e-3)


@pytest.mark.slow
def test_a_run_keeps_the_statistics_of_its_pictures(config, tmp_path):
    config.model.input_norm, config.batch_size = "dataset_pixel", 8
    source = make_training_pairs(config)
    state = training.train(config, tmp_path / "run")
    expected = scnet.pixel_statistics(source)
    for name, values in state.variables["batch_stats"]["input"].items():
        np.testing.assert_array_equal(np.asarray(values), expected[name])
    found = sm_jax.load("scnet", weights=str(tmp_path / "run"), proposals=20, proposal_method="grid")
    statistics = found._predictor._variables["batch_stats"]["input"]
    np.testing.assert_array_equal(np.asarray(statistics["mean"]), expected["mean"])


def test_features_are_made_anew_when_any_picture_changes(config, tmp_path):
    """Also one of many, of which only a sample is read to tell data sets apart."""
    config.data.source = str(figures.make(str(tmp_path), num_train=12, num_val=1, num_test=1))
    before = trunk_scnet.Trunk(config).file.path
    pictures = make_training_pairs(config).pictures
    assert len(pictures) > trunk.FINGERPRINTED
    Image.fromarray(read_image(pictures.paths[2])[::-1]).save(pictures.paths[2])  # not of the sample
    config.data.proposal_seed = 1  # another section, so that the pairs are read again in this process
    assert trunk_scnet.Trunk(config).file.path != before


def test_another_frame_is_refused(config):
    config.model.image_size = (112, 112)
    with pytest.raises(ConfigError, match="model.image_size: training pictures have 224 x 224"):
        trunk_scnet.Trunk(config)


def test_what_cannot_be_evaluated_is_refused_before_anything_is_computed(config, tmp_path, monkeypatch):
    monkeypatch.setattr(trunk, "make_train_iterator", lambda config: pytest.fail("too late"))
    config.update(eval_every=1)
    config.eval.splits = ("train",)
    with pytest.raises(DataError, match="2 pairs of the test are also trained on"):
        training.train(config, tmp_path / "run")
    config.eval.update(splits=("val",), alphas=(0.1, 0.1))
    with pytest.raises(ConfigError, match="eval.alphas: give each once"):
        training.train(config, tmp_path / "run")


def test_what_cannot_be_trained_is_refused_before_the_data_is_opened(config, monkeypatch):
    monkeypatch.setattr("sm_jax.data.make_train_iterator", lambda *_, **__: pytest.fail("too late"))
    for section, values, line in (
        ("model", {"trainable": "all"}, "model.trainable=all: .* leave it at heads"),
        ("data", {"cache_trunk": False}, "data.cache_trunk=False: SCNet trains on stored features"),
        ("model", {"image_size": (112, 112)}, "model.image_size"),
    ):
        other = config.copy_and_resolve_references()
        other[section].update(values)
        with pytest.raises(ConfigError, match=line):
            trunk.make_train_iterator(other)


def test_no_message_advises_what_scnet_refuses(config, tmp_path):
    found = trunk_scnet.Trunk(config)
    (tmp_path / "file").write_text("")
    found.file.path = tmp_path / "file" / "x.npy"
    with pytest.raises(ConfigError, match="cannot be written .* name a folder with data.cache_dir$"):
        found.fill(print)
    found.file.path = tmp_path / "x.npy"
    found.file._of_pictures = lambda images: np.full((len(images), *found.file.shape[1:]), np.inf, np.float16)
    with pytest.raises(ConfigError, match="do not fit float16; take other weights$"):
        found.fill(print)


def test_a_trunk_that_is_random_is_refused(config):
    config.init.backbone = ""
    with pytest.raises(ConfigError, match="init.backbone=resnet50-caffe-c4$"):
        trunk.make_train_iterator(config)


def test_a_random_appearance_embedding_is_not_frozen(config):
    config.model.variant = "AG+"
    with pytest.raises(
        ConfigError, match=r"would be random; start from a trained A \(configs/scnet.py:start="
    ):
        trunk.make_train_iterator(config)
    config.model.agplus_schedule = "joint"
    trunk_scnet.Trunk(config)


def test_other_weights_than_the_stored_features_are_refused(config):
    iterator = trunk.make_train_iterator(config, say=lambda line: None)
    with pytest.raises(WeightsError, match="the file has changed since; use another --workdir"):
        iterator.check(_fresh(config))
    iterator.close()


@pytest.mark.slow
def test_ag_plus_starts_from_a_and_trains_its_geometry_alone(config, tmp_path):
    config.batch_size = 8  # as many devices as the tests have
    first = training.train(config, tmp_path / "a").variables["params"]
    with config.unlocked():
        config.model.variant = "AG+"
        config.init.update(model=str(tmp_path / "a"), backbone="")
    second = training.train(config, tmp_path / "agp").variables["params"]
    np.testing.assert_array_equal(first["fc"]["kernel"], second["fc"]["kernel"])
    assert not np.array_equal(second["fc"]["kernel"], second["fc_geometry"]["kernel"])
    moved = np.abs(np.asarray(second["fc_geometry"]["kernel"]) - np.asarray(first["fc"]["kernel"])).max()
    assert 0 < moved < 0.01
