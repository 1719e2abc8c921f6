"""The pass over the training images, and its place in a run: resumed, broken off, switched on."""

import json
import os
import signal

import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax import data
from sm_jax.data.patches import HardPatches
from sm_jax.systems.base import System
from sm_jax.training import mining, train
from sm_jax.training.checkpoint import Checkpoints
from tests.data import makers
from tests.systems.os2d import fake
from tests.training import checks, toy


def make_config(root, **overrides):
    """The toy's config with OS2D data: 5 pictures of 80 x 100, crops of 48 x 64."""
    config = toy.make_config(steps=6, batch_size=2, optim__lr=0.5, **overrides)
    with config.unlocked():
        config.system = "os2d"
        config.data = {
            "source": str(root),
            "class_batch_size": 2,
            "crop": (48, 64),
            "scale_jitter": 0.7,
            "aspect_jitter": 0.9,
            "min_coverage": 0.7,
            "cut_coverage": 0.3,
            "object_size": 40,
            "scale": 6.0,
            "max_boxes": 4,
            "flips": False,
            "color": False,
            "query_crops": False,
            "mining": {"enabled": True, "every": 3, "patches": 2, "random_classes": 1},
            "workers": 0,
            "cache_dir": "",
        }
        config.model = {"query_size": 32}
        config.objective = {"remap": False, "negative_margin": 0.2, "positive_iou": 0.4}
        config.eval = {"scales": (0.8, 1.2)}
        config.mesh = {"data": 1, "fsdp": 1}
    return config


def make_data(folder):
    return makers.voc(folder, 6, sets={"train": [0, 1, 2, 3, 4], "val": [5]})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


_miners = {}


def make_miner(config):
    """One miner, so one compilation, for each data set."""
    if config.data.source not in _miners:
        _miners[config.data.source] = mining.PatchMiner(config, model_parts=fake.PARTS)
    return _miners[config.data.source]


def make_system(config):
    """The fake's one weight, and a loss that depends on the crops."""
    del config

    def loss(variables, batch, key):
        del key
        weight = variables["params"]["backbone"]["weight"]
        return jnp.mean(jnp.square(weight * batch["image"] - 0.5)), ({}, {})

    return System(
        lambda key, batch: fake.VARIABLES, loss, lambda v, r: r, lambda v, i, e: {}, lambda path: True
    )


def make_parts(**changes):
    return toy.make_parts()._replace(
        make_system=make_system,
        make_train_iterator=data.make_train_iterator,
        initialize=lambda variables, init: (variables, []),
        make_miner=make_miner,
        **changes,
    )


def same(one, other):
    return one.step == other.step and all(
        getattr(one, name).tobytes() == getattr(other, name).tobytes()
        for name in ("labels", "crops", "losses")
    )


# the pass -----------------------------------------------------------------------------------------


def test_every_image_is_mined_and_progress_is_said(root):
    said, miner = [], make_miner(make_config(root))
    found = miner.run(fake.VARIABLES, step=3, say=said.append)
    assert found.step == 3 and found.labels.shape == (5, 3, 2)
    assert (found.labels[:, 0] >= 0).any(axis=1).all() and (found.labels[:, 2] >= 0).any()
    # Losses fall with the place, and crops are 48 x 64 level pixels at scales of 4.8 to 7.2.
    assert (np.diff(np.where(found.labels >= 0, found.losses, -1), axis=-1) <= 0).all()
    sides = (found.crops[..., 2:] - found.crops[..., :2])[found.labels >= 0]
    assert (sides >= [64 / 7.3 - 1, 48 / 7.3 - 1]).all() and (sides <= [64 / 4.7 + 1, 48 / 4.7 + 1]).all()
    assert said[0] == "step 3: mines hard patches in 5 images at 2 scales with 1 random classes"
    assert said[-1].startswith("hard patches: 10 neg, ")
    # Levels of 384 x 480 to 576 x 720 pixels fit a few padded shapes.
    assert miner.compiles["losses"] == miner.compiles["extract"] <= 4


def test_what_is_drawn_depends_on_the_step_and_the_weights_alone(root):
    miner = make_miner(make_config(root))
    runs = [
        miner.run(variables, step=step, say=lambda line: None)
        for variables, step in (
            (fake.VARIABLES, 0),
            (fake.VARIABLES, 0),
            (fake.VARIABLES, 3),
            ({"params": {"backbone": {"weight": jnp.float32(0.5)}}}, 0),
        )
    ]
    assert same(runs[0], runs[1])
    assert runs[0].crops.tobytes() != runs[2].crops.tobytes()
    assert runs[0].losses.tobytes() != runs[3].losses.tobytes()


def test_parts_of_several_processes_join(root):
    miner = make_miner(make_config(root))
    whole = miner.run(fake.VARIABLES, step=0, say=lambda line: None)
    parts = [miner.run(fake.VARIABLES, step=0, say=lambda line: None, part=(i, 2)) for i in range(2)]
    for name in ("labels", "crops", "losses"):
        joined = mining.join(np.stack([getattr(part, name) for part in parts]))
        np.testing.assert_array_equal(joined, getattr(whole, name))
    assert same(mining.exchange(whole), whole)  # with the one process of this test


def test_damaged_pictures_are_named_and_left_out(tmp_path):
    root = make_data(tmp_path)
    (root / "JPEGImages" / "3.png").write_bytes(b"")
    (root / "classes").mkdir()
    (root / "classes" / "dog.png").write_bytes(b"no picture")
    said = []
    found = make_miner(make_config(root)).run(fake.VARIABLES, step=0, say=said.append)
    lines = [line for line in said if line.startswith("not mined")]
    assert sum("3.png: the file is empty" in line for line in lines) == 1
    assert sum("class picture of dog" in line for line in lines) == 1 and len(lines) == 2
    assert (found.labels[3] == -1).all() and set(found.labels.ravel().tolist()) == {-1, 0}


def test_only_os2d_with_mining_has_a_miner(root):
    config = make_config(root)
    config.data.mining.enabled = False
    assert mining.make_miner(config) is None
    assert mining.make_miner(toy.make_config()) is None


# in a run -----------------------------------------------------------------------------------------


def state_of(folder, step):
    """(iterator state, memory) in a checkpoint."""
    with Checkpoints(folder, read_only=True) as checkpoints:
        state = json.loads(checkpoints.restore_json(step)[0]["bytes"])
    return state, HardPatches.from_json(state["memory"])


def test_straight_and_resumed_runs_agree_in_every_bit(root, tmp_path, capsys):
    straight = train(make_config(root, checkpoint__every=2), tmp_path / "a", parts=make_parts())
    assert capsys.readouterr().out.count("mines hard patches") == 2  # at 0 and 3, not at the end
    state, memory = state_of(tmp_path / "a", 6)
    assert memory.step == 3 and state["next_batch"] == 6
    for stop, again in ((3, 1), (4, 0)):  # at mining, which is done again, and after it
        folder = tmp_path / f"b{stop}"
        config = make_config(root, checkpoint__every=2)
        config.steps = stop
        train(config, folder, parts=make_parts())
        capsys.readouterr()
        resumed = train(make_config(root, checkpoint__every=2), folder, parts=make_parts())
        checks.assert_same_bits(resumed, straight)
        assert state_of(folder, 6)[0] == state
        assert capsys.readouterr().out.count("mines hard patches") == again


def test_a_signal_while_mining_saves_and_leaves(root, tmp_path, capsys):
    straight = train(make_config(root, checkpoint__every=0), tmp_path / "a", parts=make_parts())

    class Signalled:
        every = 3

        def run(self, variables, *, step, say):
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
                raise AssertionError("mining goes on after a signal")
            return make_miner(make_config(root)).run(variables, step=step, say=say)

    parts = make_parts()._replace(make_miner=lambda config: Signalled())
    left = train(make_config(root, checkpoint__every=0), tmp_path / "b", parts=parts)
    assert int(left.step) == 3 and "stopped by SIGTERM at step 3" in capsys.readouterr().out
    assert state_of(tmp_path / "b", 3)[1].step == 0  # that of the pass before
    resumed = train(make_config(root, checkpoint__every=0), tmp_path / "b", parts=make_parts())
    checks.assert_same_bits(resumed, straight)


def test_accumulated_batches_take_the_new_memory_at_once(root, tmp_path):
    """Micro-batch 0 was read ahead, for its shapes, before anything was mined."""
    images = []

    class Recording:
        def __init__(self, config):
            self._inner = data.make_train_iterator(config)

        def __getattr__(self, name):
            return getattr(self._inner, name)

        def __next__(self):
            batch = next(self._inner)
            images.append((self._inner.memory is not None, batch["image"]))
            return batch

    parts = make_parts()._replace(make_train_iterator=Recording)
    config = make_config(root, optim__accumulate=2)
    config.steps = 1
    train(config, tmp_path, parts=parts)
    assert [mined for mined, _ in images] == [False, True, True]
    assert not np.array_equal(images[0][1], images[1][1])
