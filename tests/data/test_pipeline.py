"""The training iterator: workers change nothing, its state resumes bitwise, corrupt pictures are counted."""

import logging
import subprocess
import sys

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest
from ml_collections import ConfigDict

from sm_jax import data
from sm_jax.data import pipeline
from sm_jax.data.patches import HardPatches
from sm_jax.errors import ConfigError, DataError
from tests.data import makers


def _config(path, **changes):
    section = {
        "source": str(path),
        "class_batch_size": 3,
        "crop": (48, 64),
        "scale_jitter": 0.7,
        "aspect_jitter": 0.9,
        "min_coverage": 0.7,
        "cut_coverage": 0.3,
        "object_size": 40,
        "max_boxes": 4,
        "flips": True,
        "color": True,
        "query_crops": True,
        "workers": 0,
        "cache_dir": "",
        "shelves": {},
    }
    return ConfigDict(
        {"system": "os2d", "seed": 5, "batch_size": 2, "model": {"query_size": 32}, "data": section | changes}
    )


def _equal(first, second):
    assert first.keys() == second.keys() and list(first) == list(second)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def _take(config, count):
    with data.make_train_iterator(config) as iterator:
        return [next(iterator) for _ in range(count)]


def test_batches_and_nothing_written(tmp_path):
    root = makers.voc(tmp_path, 6)
    before = makers.fingerprint(root)
    batches = _take(_config(root), 3)
    assert batches[0]["image"].shape == (2, 48, 64, 3) and batches[0]["query"].shape == (3, 64, 64, 3)
    assert makers.fingerprint(root) == before


def test_workers_change_nothing(tmp_path):
    root = makers.voc(tmp_path, 6)
    for first, second in zip(_take(_config(root), 5), _take(_config(root, workers=2), 5), strict=True):
        _equal(first, second)


def test_state_resumes_bitwise(tmp_path):
    config = _config(makers.voc(tmp_path, 6))
    expected = _take(config, 6)
    with data.make_train_iterator(config) as iterator:
        for _ in range(2):
            next(iterator)
        state = iterator.get_state()
        next(iterator)
        iterator.set_state(state)
        _equal(next(iterator), expected[2])
    with data.make_train_iterator(config) as iterator:
        next(iterator)
        iterator.set_state(state)
        assert iterator.get_state() == state
        for batch in expected[2:]:
            _equal(next(iterator), batch)
    for bad in (b"", b"{}", {"step": 1}, b'{"next_batch": null}'):
        with pytest.raises(DataError, match="not the state"):
            iterator.set_state(bad)


def test_grain_checkpoint(tmp_path):
    config = _config(makers.voc(tmp_path / "data", 6))
    expected = _take(config, 4)
    with ocp.CheckpointManager((tmp_path / "run").absolute()) as manager:
        with data.make_train_iterator(config) as iterator:
            next(iterator), next(iterator)
            manager.save(2, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(iterator)))
            manager.wait_until_finished()
        with data.make_train_iterator(config) as iterator:
            manager.restore(2, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(iterator)))
            _equal(next(iterator), expected[2])


def _mined(root, **changes):
    """A config with mining, and a memory of it: one crop for every image."""
    config = _config(root, mining={"enabled": True}, **changes)
    memory = HardPatches.empty(len(data.make_source(config.data, "train")), 1, step=1)
    memory.labels[:], memory.crops[:] = 1, [0, 0, 30, 20]
    return config, memory


def test_boxes_as_class_pictures(tmp_path):
    root = makers.voc(tmp_path, 6)
    plain, extra = _take(_config(root), 4), _take(_config(root, mine_extra_class_images=True), 4)
    for one, other in zip(plain, extra, strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
    assert any(
        not np.array_equal(one["query"], other["query"]) for one, other in zip(plain, extra, strict=True)
    )


def test_memory_is_part_of_the_state(tmp_path):
    config, memory = _mined(makers.voc(tmp_path, 6))
    plain = _take(config, 4)
    with data.make_train_iterator(config) as iterator:
        _equal(next(iterator), plain[0])
        before = iterator.get_state()
        iterator.remember(memory)
        state = iterator.get_state()
        mined = [next(iterator) for _ in range(2)]
        iterator.set_state(before)
        assert iterator.memory is None and before == b'{"next_batch": 1}'
        _equal(next(iterator), plain[1])
    assert not np.array_equal(mined[0]["image"], plain[1]["image"])
    with data.make_train_iterator(config) as iterator:
        iterator.set_state(state)
        assert iterator.get_state() == state and iterator.memory.step == 1
        for batch in mined:
            _equal(next(iterator), batch)
    with data.make_train_iterator(_config(config.data.source)) as iterator:
        iterator.set_state(state)  # mining was switched off: random crops again
        _equal(next(iterator), plain[1])


def test_a_new_memory_reaches_the_workers(tmp_path):
    config, memory = _mined(makers.voc(tmp_path, 6))
    with data.make_train_iterator(config) as iterator:
        next(iterator)
        iterator.remember(memory)
        expected = next(iterator)
    config.data.workers = 1
    with data.make_train_iterator(config) as iterator:
        next(iterator)
        iterator.remember(memory)
        _equal(next(iterator), expected)


def test_close_and_go_on(tmp_path):
    config = _config(makers.voc(tmp_path, 6))
    expected = _take(config, 3)
    iterator = data.make_train_iterator(config)
    for batch in expected:
        _equal(next(iterator), batch)
        iterator.close()
        iterator.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_few_corrupt_pictures_are_skipped_counted_and_named(tmp_path, caplog, workers):
    root = makers.voc(tmp_path, 130)
    (root / "JPEGImages" / "7.png").write_bytes((root / "JPEGImages" / "7.png").read_bytes()[:200])
    config = _config(root, workers=workers)
    with caplog.at_level(logging.WARNING, "sm_jax.data"), data.make_train_iterator(config) as iterator:
        for _ in range(60):
            batch = next(iterator)
            assert batch["valid"].all()
        skipped = iterator.skipped
    assert [entry[:2] for entry in skipped] == [("image", "7")] and "7.png" in skipped[0][2]
    assert caplog.text.count("skipped image 7") == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_more_than_one_percent_stops_the_run(tmp_path, workers):
    root = makers.voc(tmp_path, 20)
    (root / "JPEGImages" / "7.png").write_bytes(b"")
    with data.make_train_iterator(_config(root, workers=workers)) as iterator:
        with pytest.raises(
            DataError, match=r"1 of 16 images cannot be read.*7.png: the file is empty"
        ) as error:
            for _ in range(20):
                next(iterator)
    assert "\n" not in str(error.value)


def test_corrupt_class_pictures_stop_too(tmp_path):
    root = makers.voc(tmp_path, 10)
    (root / "classes").mkdir()
    (root / "classes" / "dog.png").write_bytes(b"no picture")
    with data.make_train_iterator(_config(root)) as iterator:
        with pytest.raises(DataError, match=r"1 of 2 class pictures.*dog.png"):
            for _ in range(5):
                next(iterator)


def test_folder_per_class_trains(tmp_path):
    root = makers.class_folders(tmp_path)
    first, second = _take(_config(root), 2), _take(_config(root), 2)
    for one, other in zip(first, second, strict=True):
        _equal(one, other)
    assert any(batch["boxes_valid"].any() for batch in first)


def test_corrupt_picture_in_a_folder_per_class(tmp_path):
    root = makers.class_folders(tmp_path, count=50)
    (root / "pear" / "3.png").write_bytes(b"")
    truncated = (root / "plum" / "4.png").read_bytes()
    (root / "plum" / "4.png").write_bytes(truncated[: len(truncated) // 2])
    with data.make_train_iterator(_config(root, batch_size=4)) as iterator:
        with pytest.raises(DataError, match=r"2 of 120 images cannot be read"):
            for _ in range(100):
                next(iterator)
    # A damaged picture spoils every scene it would be in, and still counts once.
    names = sorted(reason.split(":")[0][-10:] for _, _, reason in iterator.skipped)
    assert names == ["pear/3.png", "plum/4.png"]


def test_config_errors(tmp_path):
    root = makers.voc(tmp_path, 3)
    for config, words in (
        (_config(root, mining=True), "data.mining=True: is a section now"),
        (_config(root, mining={"enabled": True}, class_batch_size=1), "class_batch_size=1: hard-patch"),
        (_config(root, workers=-1), "workers"),
        (_config(root / "nowhere"), "neither 'shelves' nor an existing"),
        (_config(""), "data.source"),
        (_config(root, crop=(4, 4)), "crop"),
        (_config(root, scale=-1.0), "data.scale"),
        (_config(root, scale=float("nan")), "data.scale"),
        (_config(root, object_size=0), "data.object_size"),
    ):
        with pytest.raises(ConfigError, match=words):
            data.make_train_iterator(config)
    config = _config(root)
    config.system = "nothing"
    with pytest.raises(ConfigError, match="nothing"):
        data.make_train_iterator(config)


def test_scale_is_that_of_the_training_split(tmp_path):
    config = _config(makers.voc(tmp_path, 10))
    train = data.make_source(config.data, "train")
    assert data.image_scale(config.data) == data.measure(train, object_size=40).scale
    config.data.scale = 0.5
    assert data.image_scale(config.data) == 0.5
    config.data.scale = -0.5
    with pytest.raises(ConfigError, match="data.scale: must be positive"):
        data.image_scale(config.data)
    config.data.scale = 0.5
    with data.make_train_iterator(config) as iterator:
        assert iterator._builder.options.scale == 0.5


def test_process_part():
    assert pipeline.process_part() == (0, 1)


def test_data_needs_no_jax():
    code = (
        "import sys, sm_jax.data, sm_jax.data.transforms, sm_jax.data.os2d, sm_jax.data.check;"
        "assert 'jax' not in sys.modules and 'grain' not in sys.modules, 'jax was imported'"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
