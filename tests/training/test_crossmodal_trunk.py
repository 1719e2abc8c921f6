"""Features of frozen units on disk: the same training, computed once, safe against whatever stops a run."""

import json
import multiprocessing
import os
import shutil
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import crossmodal
from sm_jax import data, systems
from sm_jax.data.stored import StoredFeatures
from sm_jax.errors import ConfigError, DataError, ImageError, WeightsError
from sm_jax.systems.crossmodal import model
from sm_jax.training import feature_file
from sm_jax.training.feature_file import CHUNK
from sm_jax.training.trunk import make_train_iterator
from sm_jax.training.trunk_crossmodal import Trunk
from sm_jax.weights import initialize
from sm_jax.weights.io import flatten, unflatten

CUT = 2  # units: little to compute, 32x32x16 features of 64x64 pictures


def make_config(folder, **changes):
    config = crossmodal.get_config("runlocal,trainable=last17,batch=2")
    config.model.update(image_size=(64, 64), rpn_width=8, proposal_width=8, dropout=0.0)
    config.data.shapes.update(num_train=2 * CHUNK + 3, image_size=(64, 64), count=(1, 2), size_range=(20, 30))
    config.data.update(cache_dir=str(folder), workers=0)
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return config


def _file(config):
    """The file of features of a config."""
    return Trunk(config).file


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """(config, path of its finished features); nothing may change the file."""
    folder = tmp_path_factory.mktemp("cache")
    config = make_config(folder)
    return config, _file(config).fill(lambda line: None)


def _copy(config, tmp_path):
    """The config with a cache of its own."""
    config = config.copy_and_resolve_references()
    config.data.cache_dir = str(tmp_path)
    return config


def _lines(trunk):
    lines = []
    trunk.fill(lines.append)
    return lines


def test_what_is_stored_is_what_the_frozen_units_give(filled):
    config, path = filled
    rows = np.load(path)
    assert rows.shape == (2 * CHUNK + 3, 32, 32, 16) and rows.dtype == np.float16
    trunk, options = Trunk(config), model.ModelConfig.create(config.model)
    source = data.make_phrase_source(config.data, "train")
    for index in (0, CHUNK, len(rows) - 1):
        mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        image = ((source.image(index) / 255 - mean) / std).astype(np.float32)
        features = model.trunk(options, trunk.variables, image[None])[0]
        np.testing.assert_allclose(rows[index], features, rtol=2e-3, atol=2e-3)
    assert sorted(os.listdir(path.parent)) == [path.with_suffix(".lock").name, path.name]


@pytest.mark.slow
def test_training_on_stored_features_is_training_on_pictures(tmp_path):
    """Loss and gradients of one step, up to the rounding of the features to half precision."""
    config = make_config(tmp_path, model__trainable="last2", batch_size=4, data__shapes__num_train=4)
    plain = config.copy_and_resolve_references()
    plain.data.cache_trunk = False
    iterators = [make_train_iterator(each, say=print) for each in (config, plain)]
    on_features, on_pictures = (next(iterator) for iterator in iterators)
    for iterator in iterators:
        iterator.close()
    assert "image" not in on_features and on_features["trunk"].dtype == np.float16
    shared = set(on_features) - {"trunk"}
    assert shared == set(on_pictures) - {"image"}
    for name in shared:
        np.testing.assert_array_equal(on_features[name], on_pictures[name])

    system = systems.make(config)
    variables = _start(config, system)
    frozen, learned = {}, {}
    for path, leaf in flatten(variables["params"]).items():
        (learned if system.trainable(path) else frozen)[path] = leaf

    def value(learned, batch):
        return system.loss({**variables, "params": unflatten(frozen | learned)}, batch, jax.random.key(1))[0]

    learn = jax.jit(jax.value_and_grad(value))
    (loss, grads), (expected, wanted) = (
        jax.device_get(learn(learned, batch)) for batch in (on_features, on_pictures)
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-3)
    # As a whole: single units may fall on the other side of a ReLU's corner.
    one, other = (np.concatenate([tree[path].ravel() for path in sorted(tree)]) for tree in (grads, wanted))
    assert np.linalg.norm(one - other) <= 0.03 * np.linalg.norm(other)


def _start(config, system):
    """Random variables on the packaged backbone, as a run starts."""
    shapes = jax.eval_shape(lambda: system.init(jax.random.key(0), None))
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda leaf: 0.05 * rng.standard_normal(leaf.shape, np.float32), shapes)
    return jax.tree.map(jnp.asarray, initialize(drawn, config.init)[0])


def test_a_second_run_reads_them(filled):
    config, path = filled
    before = path.stat().st_mtime_ns
    (line,) = _lines(_file(config))
    assert "from an earlier run" in line and str(path) in line and path.stat().st_mtime_ns == before


def test_the_size_and_the_place_are_said_first(filled, tmp_path):
    lines = _lines(_file(_copy(filled[0], tmp_path)))
    assert "19 pictures x 32x32x16 float16 (0.00 GB)" in lines[0] and str(tmp_path) in lines[0]
    assert "mobilenetv2-tv" in lines[0] and lines[-1].startswith("trunk features: done")


@pytest.mark.parametrize(
    "changes",
    [
        {"model__trainable": "last16"},
        {"model__image_size": (96, 64)},
        {"data__shapes__seed": 1},
        {"data__shapes__num_train": 18},
    ],
)
def test_other_features_have_another_file(filled, changes):
    config, path = filled
    other = config.copy_and_resolve_references()
    other.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    assert _file(other).path != path


def test_what_does_not_change_them_does_not_matter(filled):
    config, path = filled
    other = config.copy_and_resolve_references()
    other.update(batch_size=8, seed=5)
    other.data.update(workers=2, max_boxes=7)
    other.data.shapes.update(num_val=1)
    other.model.update(rpn_width=16)
    assert _file(other).path == path


class _Killed(BaseException):
    pass


def _interrupted_after(trunk, chunks):
    """Fill until so many chunks were computed, then stop as a signal does."""
    images = trunk._images

    def some(start, damaged):
        for number, chunk in enumerate(images(start, damaged)):
            if number == chunks:
                raise _Killed
            yield chunk

    trunk._images = some
    with pytest.raises(_Killed):
        trunk.fill(lambda line: None)
    trunk._images = images


def test_an_interrupted_run_goes_on_where_it_was(filled, tmp_path):
    config, path = filled
    trunk = _file(_copy(config, tmp_path))
    _interrupted_after(trunk, 1)
    assert not trunk.path.exists() and trunk.path.with_suffix(".partial").exists()
    lines = _lines(trunk)
    assert lines[0].endswith(f"goes on at {CHUNK}")
    np.testing.assert_array_equal(np.load(trunk.path), np.load(path))
    assert not trunk.path.with_suffix(".partial").exists()


@pytest.mark.parametrize("damage", ["notes", "partial", "nonsense"])
def test_what_is_left_damaged_is_made_anew(filled, tmp_path, damage):
    config, path = filled
    trunk = _file(_copy(config, tmp_path))
    _interrupted_after(trunk, 1)
    if damage == "partial":
        trunk.path.with_suffix(".partial").write_bytes(b"\x93NUMPY")
    else:
        trunk.path.with_suffix(".json").write_text("" if damage == "notes" else '{"done": -3}')
    lines = _lines(trunk)
    assert "goes on" not in lines[0]
    np.testing.assert_array_equal(np.load(trunk.path), np.load(path))


def _fill_and_die(folder):
    trunk = _file(make_config(folder))
    feature_file.SECONDS = 0  # notes after every chunk
    images = trunk._images

    def some(start, damaged):
        for number, chunk in enumerate(images(start, damaged)):
            if number == 2:
                os.kill(os.getpid(), 9)
            yield chunk

    trunk._images = some
    trunk.fill(lambda line: None)


@pytest.mark.slow
def test_kill_9_leaves_nothing_that_could_be_taken_for_finished(filled, tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=_fill_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -9
    trunk = _file(_copy(filled[0], tmp_path))
    assert not trunk.path.exists()
    assert "goes on at" in _lines(trunk)[0]  # the lock of the dead process is gone, too
    # The other process compiles with other options, which round differently.
    np.testing.assert_allclose(np.load(trunk.path), np.load(filled[1]), rtol=1e-2, atol=2e-3)


def test_a_finished_file_that_is_damaged_is_computed_again(filled, tmp_path):
    trunk = _file(_copy(filled[0], tmp_path))
    trunk.path.parent.mkdir(parents=True)
    trunk.path.write_bytes(filled[1].read_bytes()[:5000])
    trunk.fill(lambda line: None)
    np.testing.assert_array_equal(np.load(trunk.path), np.load(filled[1]))


def test_two_at_a_time_compute_once(filled, tmp_path):
    trunks = [_file(_copy(filled[0], tmp_path)) for _ in range(2)]
    lines = [[], []]
    threads = [
        threading.Thread(target=trunk.fill, args=(said.append,))
        for trunk, said in zip(trunks, lines, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(": computes" in line for said in lines for line in said) == 1
    np.testing.assert_array_equal(np.load(trunks[0].path), np.load(filled[1]))


def test_a_full_disk_is_one_line_before_anything_is_written(filled, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1000))
    trunk = _file(_copy(filled[0], tmp_path))
    with pytest.raises(ConfigError, match="19 pictures .* do not fit into .*data.cache_dir") as error:
        trunk.fill(lambda line: None)
    assert "\n" not in str(error.value)
    assert [path.suffix for path in trunk.path.parent.iterdir()] == [".lock"]


def test_a_folder_that_cannot_be_written(filled, tmp_path, monkeypatch):
    trunk = _file(_copy(filled[0], tmp_path))

    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied")

    for name in ("mkdir", "open"):  # the folder, then the lock in it
        with monkeypatch.context() as patch:
            patch.setattr(feature_file.Path, name, refuse)
            with pytest.raises(ConfigError, match="trunk cannot be written .Permission denied") as caught:
                trunk.fill(lambda line: None)
        assert "\n" not in str(caught.value)
    (tmp_path / "trunk").rmdir()
    (tmp_path / "trunk").write_text("x")
    with pytest.raises(ConfigError, match="trunk cannot be written .*data.cache_dir"):
        trunk.fill(lambda line: None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__trainable": "all"}, "nothing of the backbone is frozen"),
        ({"init__backbone": ""}, "random numbers; name real features"),
        ({"data__flips": True}, "cannot be mirrored"),
        ({"data__workers": -1}, "data.workers"),
    ],
)
def test_features_that_mean_nothing_are_refused(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words) as error:
        make_train_iterator(make_config(tmp_path, **changes))
    assert "\n" not in str(error.value)


def test_another_system_is_refused(tmp_path):
    config = make_config(tmp_path)
    config.system = "os2d"
    with pytest.raises(ConfigError, match="data.cache_trunk: is for"):
        make_train_iterator(config)


def test_going_on_with_other_frozen_units_is_refused(filled):
    config, _ = filled
    iterator = make_train_iterator(config)
    variables = _start(config, systems.make(config))
    iterator.check(variables)
    variables["params"]["backbone"]["features_18"]["conv"]["kernel"] *= 2  # trains, so it may differ
    iterator.check(variables)
    variables["batch_stats"]["backbone"]["features_0"]["bn"]["mean"] += 1
    with pytest.raises(WeightsError, match="not what config.init names"):
        iterator.check(variables)


def _photographs(folder, damaged, train=19):
    entries = []
    rng = np.random.default_rng(0)
    for i in range(train + 1):
        name = folder / f"{i:02d}.png"
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).save(name)
        if i in damaged:  # the size can be read, the pixels cannot
            name.write_bytes(name.read_bytes()[:300])
        phrases = [{"text": "a thing", "ids": [0]}]
        split = "train" if i < train else "val"
        entries.append({"image": name.name, "boxes": [[4, 4, 30, 30]], "phrases": phrases, "split": split})
    (folder / "data.json").write_text(json.dumps({"images": entries}))
    return folder / "data.json"


def test_own_pictures_and_a_damaged_one(tmp_path):
    source = _photographs(tmp_path, damaged=[5], train=100)
    config = make_config(tmp_path / "cache", data__source=str(source))
    path = _file(config).fill(lambda line: None)
    rows = StoredFeatures(path)
    assert rows[4].shape == (32, 32, 16) and np.isfinite(rows[4]).all()
    with pytest.raises(ImageError, match="could not be read"):
        rows[5]
    assert np.all(rows[4][25:31] == rows[4][25:26])  # 60x40 fitted into 64x64: padding from row 43 on


def test_as_many_damaged_pictures_are_too_many_as_without_stored_features(tmp_path):
    """One of 19 is more than 1 %."""
    source = str(_photographs(tmp_path, damaged=[5]))
    config = make_config(tmp_path / "cache", data__source=source, batch_size=19)
    with pytest.raises(DataError, match="more than 1 % of the pictures cannot be read .*sm-jax data check"):
        _file(config).fill(lambda line: None)
    config.data.cache_trunk = False
    with pytest.raises(DataError, match="1 of 19 images cannot be read, more than 1%"):
        next(make_train_iterator(config))


def test_a_replaced_picture_means_other_features(tmp_path):
    config = make_config(tmp_path / "cache", data__source=str(_photographs(tmp_path, damaged=[])))
    before = _file(config).path
    assert _file(config).path == before
    Image.new("RGB", (60, 40)).save(tmp_path / "03.png")
    assert _file(config).path != before
