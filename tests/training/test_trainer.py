import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax.errors import ConfigError, DataError, WeightsError
from sm_jax.training import metrics, optim, restore_variables, sharding, train
from sm_jax.training.checkpoint import Checkpoints
from sm_jax.training.loop import NonFiniteError
from sm_jax.training.signals import Interrupted
from sm_jax.training.state import create
from sm_jax.training.step import make_step
from tests.training import checks, toy


def _train(folder, *, parts=None, **changes):
    return train(toy.make_config(**changes), folder, parts=parts or toy.make_parts())


def test_a_run_leaves_what_it_promises(tmp_path, capsys):
    state = _train(tmp_path, eval_every=4)
    assert int(state.step) == 8 and int(state.failed) == -1
    output = capsys.readouterr().out
    first = output.splitlines()[:2]
    assert first[0].startswith("devices: 8 x cpu") and "random weights" in first[1]
    assert f"checkpoint: {tmp_path / 'checkpoints' / '8'}" in output
    assert f"evaluate.py --workdir={tmp_path}" in output.splitlines()[-1]
    assert json.loads((tmp_path / "config.json").read_text())["optim"]["lr"] == 0.1
    lines = metrics.read(tmp_path)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 9))
    assert [line["step"] for line in lines if "val/score" in line] == [0, 4, 8]
    assert list((tmp_path / "tensorboard").iterdir())
    variables, meta = restore_variables(tmp_path, "last")
    checks.assert_same_bits(variables, state.averaged)
    assert meta["config"]["system"] == "toy" and meta["versions"]["jax"] == jax.__version__


def test_the_end_says_what_training_changed_and_draws_it(tmp_path, capsys):
    class Drawing(toy.Evaluator):
        def pictures(self, folder, *, count):
            folder.mkdir(parents=True)
            (folder / "0.png").touch()
            return [folder / "0.png"]

    parts = toy.make_parts()._replace(make_evaluators=lambda config, system: {"val": Drawing()})
    _train(tmp_path, parts=parts, eval_every=4, eval={"pictures": 3})
    values = {line["step"]: line["val/score"] for line in metrics.read(tmp_path) if "val/score" in line}
    output = capsys.readouterr().out
    assert f"val/score: {values[0]:.3f} at step 0, {values[8]:.3f} at step 8" in output
    assert f"pictures of detections (1): {tmp_path / 'pictures' / 'val'}" in output
    assert (tmp_path / "pictures" / "val" / "0.png").exists()


def test_learning_happens_and_frozen_parameters_stay(tmp_path):
    state = _train(tmp_path, steps=60, log_every=20, optim__ema=0.0)
    losses = [line["loss"] for line in metrics.read(tmp_path) if "loss" in line]
    assert losses[-1] < losses[0]
    np.testing.assert_array_equal(state.params["frozen"]["kernel"], np.eye(4))
    assert np.any(state.collections["batch_stats"]["bn"]["mean"])
    np.testing.assert_array_equal(state.collections["batch_stats"]["bn"]["var"], np.ones(4))


def test_resume_in_one_process_is_bitwise(tmp_path):
    straight = _train(tmp_path / "a", eval_every=4)
    _train(tmp_path / "b", eval_every=4, steps=4)
    resumed = _train(tmp_path / "b", eval_every=4)
    checks.assert_same_bits(resumed, straight)
    assert [x for x in metrics.read(tmp_path / "a") if "loss" in x][-1]["loss"] == (
        [x for x in metrics.read(tmp_path / "b") if "loss" in x][-1]["loss"]
    )


def test_another_data_order_would_be_seen(tmp_path):
    one, other = _train(tmp_path / "a", steps=2), _train(tmp_path / "b", steps=2, seed=1)
    with pytest.raises(AssertionError):
        checks.assert_same_bits(one, other)


def test_accumulated_micro_batches_are_their_mean(tmp_path):
    def no_noise(config):
        system = toy.make_system(config)
        return system._replace(loss=lambda v, b, key: system.loss(v, b, jax.random.key(0)))

    class Halves:
        def __init__(self, config):
            self._inner, self._left = toy.make_train_iterator(config), []

        def __next__(self):
            if not self._left:
                batch = next(self._inner)
                self._left = [{k: v[:4] for k, v in batch.items()}, {k: v[4:] for k, v in batch.items()}]
            return self._left.pop(0)

        def get_state(self):
            assert not self._left
            return self._inner.get_state()

    def mean_of_halves(config):
        inner = no_noise(config)

        def loss(variables, batch, key):
            values = [
                inner.loss(variables, {k: v[half] for k, v in batch.items()}, key)
                for half in (slice(4), slice(4, 8))
            ]
            mean = jax.tree.map(lambda *parts: sum(parts) / 2, *(value for value, _ in values))
            old = variables["batch_stats"]["bn"]["mean"]
            means = [aux[1]["batch_stats"]["bn"]["mean"] - 0.9 * old for _, aux in values]
            new = 0.9 * (0.9 * old + means[0]) + means[1]
            return mean, ({}, {"batch_stats": {"bn": {"mean": new}}})

        return inner._replace(loss=loss)

    whole = _train(tmp_path / "a", steps=3, parts=toy.make_parts(make_system=mean_of_halves))
    halves = toy.make_parts(make_system=no_noise, make_train_iterator=Halves)
    parts = _train(tmp_path / "b", steps=3, optim__accumulate=2, parts=halves)
    checks.assert_close(parts, whole, rtol=1e-5, atol=1e-6)


def test_a_metric_is_the_mean_over_the_micro_batches_that_define_it(tmp_path):
    def partly(config):
        inner = toy.make_system(config)

        def loss(variables, batch, key):
            value, (_, updates) = inner.loss(variables, batch, key)
            first = jnp.sum(batch["label"])
            odd = jnp.where(first % 2 == 1, first.astype(jnp.float32), jnp.nan)
            return value, ({"odd": odd, "never": jnp.nan * first, "sum": first * 1.0}, updates)

        return inner._replace(loss=loss)

    _train(tmp_path, steps=4, optim__accumulate=3, parts=toy.make_parts(make_system=partly))
    iterator = toy.make_train_iterator(toy.make_config())
    for line in metrics.read(tmp_path):
        sums = [int(np.sum(next(iterator)["label"])) for _ in range(3)]
        odd = [value for value in sums if value % 2]
        assert line["never"] is None and line["sum"] == pytest.approx(np.mean(sums))
        assert line["odd"] == (pytest.approx(np.mean(odd)) if odd else None)


def test_moving_average(tmp_path):
    state = _train(tmp_path, steps=1, optim__ema=0.75)
    start = restore_variables(tmp_path, 0, ema=False)[0]["params"]
    expected = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, start, state.params)
    checks.assert_close(state.ema, expected, rtol=1e-6, atol=1e-7)


def test_the_average_of_what_stays_is_exactly_it(tmp_path):
    """Frozen features must not wander by rounding, step after step."""
    state = _train(tmp_path, steps=20, optim__ema=0.999, optim__lr=0.0)
    checks.assert_same_bits(state.ema, state.params)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"data__poison": 5}, "loss is nan and grad_norm is nan"), ({"data__scale": 1e30}, "grad_norm is")],
)
def test_a_value_that_is_not_finite_stops_and_keeps_the_last_good_state(tmp_path, changes, words):
    poisoned = changes.get("data__poison", 0)
    with pytest.raises(NonFiniteError, match=words) as caught:
        _train(tmp_path, checkpoint__every=2, **changes)
    assert "\n" not in str(caught.value) and f"step {poisoned + 1}" in str(caught.value)
    with Checkpoints(tmp_path) as checkpoints:
        last = checkpoints.latest()
    assert last == (poisoned // 2) * 2
    variables, _ = restore_variables(tmp_path, "last")
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(variables))
    assert str(tmp_path / "checkpoints" / str(last)) in str(caught.value)


def test_nothing_changes_after_the_bad_step():
    """Steps already handed to the device behind a bad one must not touch the state."""
    config = toy.make_config()
    system, optimizer = toy.make_system(config), optim.make_optimizer(config.optim)
    mesh = sharding.make_mesh(config.mesh)
    batches = [next(toy.make_train_iterator(toy.make_config(seed=seed))) for seed in range(4)]
    batches[2]["image"] = batches[2]["image"] * np.nan
    variables = system.init(jax.random.key(0), batches[0])
    state = create(variables, optimizer, system.trainable, ema=True, loss_scale=None)
    shardings = sharding.infer(state, mesh)
    key = np.asarray(jax.random.key_data(jax.random.key(1)))
    step = make_step(system, optimizer, config, key, shardings, jax.NamedSharding(mesh, jax.P(sharding.AXES)))
    kept = []
    for batch in batches:
        state, values = step(state, [jax.device_put(batch)], jnp.zeros(1, jnp.int32))
        kept.append(checks.host(state))
    assert int(values["failed"]) == 2
    for path, value in kept[1].items():
        after = kept[3][path]
        assert (after == 2) if path == "failed" else (after.tobytes() == value.tobytes()), path


def test_float16_gradients_are_scaled(tmp_path):
    """Gradients below the float16 range vanish without a loss scale, and survive with one."""
    shrink = {"model__dtype": "float16", "optim__clip_norm": 0.0, "optim__weight_decay": 0.0, "steps": 2}

    def tiny(config):
        system = toy.make_system(config)

        def loss(variables, batch, key):
            kernel = variables["params"]["body"]["conv"]["kernel"].astype(jnp.float16)
            return jnp.sum(kernel).astype(jnp.float32) * 1e-8, ({}, {})

        return system._replace(loss=loss)

    parts = toy.make_parts(make_system=tiny)
    norms = {}
    for scale in (0, 4096, "dynamic"):
        config = toy.make_config(**shrink)
        config.optim.loss_scale = scale
        train(config, tmp_path / str(scale), parts=parts)
        norms[scale] = [line["grad_norm"] for line in metrics.read(tmp_path / str(scale))][0]
    assert norms[0] == 0
    np.testing.assert_allclose([norms[4096], norms["dynamic"]], 1e-8 * np.sqrt(108), rtol=1e-2)


def test_float16_overflow_halves_the_scale_and_goes_on(tmp_path):
    def steep(config):
        system = toy.make_system(config)

        def loss(variables, batch, key):
            kernel = variables["params"]["body"]["conv"]["kernel"].astype(jnp.float16)
            return jnp.sum(kernel).astype(jnp.float32) * 10, ({}, {})

        return system._replace(loss=loss)

    state = _train(tmp_path, model__dtype="float16", optim__lr=1e-3, parts=toy.make_parts(make_system=steep))
    assert int(state.step) == 8 and float(state.scale["value"]) == 2.0**12
    lines = [line for line in metrics.read(tmp_path) if "loss_scale" in line]
    assert [line["loss_scale"] for line in lines][:4] == [2.0**15, 2.0**14, 2.0**13, 2.0**12]
    assert lines[0]["grad_norm"] is None  # infinite, in valid JSON


def test_the_best_is_reloaded_when_the_rate_drops(tmp_path, capsys):
    """A constant gradient of 1 makes the run a sum: two steps, two undone, four at the lower rate."""

    def slope(config):
        def loss(variables, batch, key):
            return jnp.sum(variables["params"]["head"]["kernel"]), ({}, {})

        return toy.make_system(config)._replace(loss=loss)

    scores = iter([0.1, 0.9, 0.2, 0.3, 0.4])  # of steps 0, 2, 4, 6, 8
    parts = toy.make_parts(make_system=slope, hook=lambda variables: next(scores))
    changes = {"eval_every": 2, "optim__milestones": (4,), "optim__reload_best_at_drop": True}
    plain = {"optim__weight_decay": 0.0, "optim__clip_norm": 0.0, "optim__ema": 0.0, "checkpoint__keep": 9}
    state = _train(tmp_path, parts=parts, **changes, **plain)
    assert "goes on from the best checkpoint, step 2" in capsys.readouterr().out
    rates = [line["lr"] for line in metrics.read(tmp_path) if "lr" in line]
    np.testing.assert_allclose(rates, [0.1] * 4 + [0.01] * 4, rtol=1e-6)

    speeds = [1.0]  # the momentum buffer after each step, which goes on from that of step 2
    for _ in range(5):
        speeds.append(0.9 * speeds[-1] + 1)
    moved = 0.1 * sum(speeds[:2]) + 0.01 * sum(speeds[2:])
    start = restore_variables(tmp_path, 0)[0]["params"]["head"]["kernel"]
    np.testing.assert_allclose(start - state.params["head"]["kernel"], np.full((4, 8), moved), rtol=1e-5)
    assert int(state.step) == 8


def test_reload_then_resume_is_bitwise(tmp_path):
    def hook(variables):
        return -float(jnp.sum(jnp.square(variables["params"]["head"]["kernel"])))

    changes = {"eval_every": 2, "optim__milestones": (4,), "optim__reload_best_at_drop": True}
    parts = toy.make_parts(hook=hook)
    straight = _train(tmp_path / "a", parts=parts, **changes)
    _train(tmp_path / "b", parts=parts, steps=4, **changes)
    checks.assert_same_bits(_train(tmp_path / "b", parts=parts, **changes), straight)


def test_reload_needs_the_best_checkpoint(tmp_path):
    with pytest.raises(ConfigError, match="keep_best=1"):
        _train(tmp_path, eval_every=2, optim__reload_best_at_drop=True, checkpoint__keep_best=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"model__width": 5},
        {"init__shift": 1.0},
        {"system": "other"},
        {"optim__ema": 0.0},
        {"data__leave_out": "car"},
    ],
)
def test_a_workdir_of_another_config_names_the_keys(tmp_path, changes):
    _train(tmp_path, steps=1)
    with pytest.raises(ConfigError, match=next(iter(changes)).replace("__", ".") + ": .* -> ") as caught:
        _train(tmp_path, **changes)
    assert "\n" not in str(caught.value) and "--workdir" in str(caught.value)


def test_other_changes_are_taken_over_and_told(tmp_path, capsys):
    _train(tmp_path, steps=1)
    capsys.readouterr()
    state = _train(tmp_path, steps=2, optim__lr=0.05, model__remat=True)
    assert int(state.step) == 2
    output = capsys.readouterr().out
    assert "optim.lr: 0.1 -> 0.05" in output and "continues from" in output
    assert json.loads((tmp_path / "config.json").read_text())["optim"]["lr"] == 0.05


def test_a_wrong_name_for_the_best_is_found_before_the_first_step(tmp_path, capsys):
    parts = toy.make_parts(metric_names=lambda config: ["val/score"])
    with pytest.raises(ConfigError, match="'val/scor' is not among .*did you mean 'val/score'"):
        _train(tmp_path, parts=parts, eval_every=4, eval_first=False, checkpoint__best_metric="val/scor")
    assert "compiles" not in capsys.readouterr().out and not (tmp_path / "config.json").exists()
    for changes in ({"eval_every": 0}, {"eval_every": 1, "checkpoint__keep_best": 0}):
        _train(tmp_path, parts=parts, steps=0, eval_first=False, checkpoint__best_metric="other", **changes)


def test_a_signal_before_the_first_step(tmp_path):
    """Features that are computed first can take minutes, in which nobody should have to wait."""

    def make(config):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal must end it")

    with pytest.raises(Interrupted):
        _train(tmp_path, parts=toy.make_parts(make_train_iterator=make))
    assert int(_train(tmp_path, steps=1).step) == 1


def test_data_may_refuse_the_model(tmp_path):
    class Choosy:
        def __init__(self, config):
            inner = toy.make_train_iterator(config)
            self.get_state, self.set_state, self.__next = inner.get_state, inner.set_state, inner.__next__

        def __next__(self):
            return self.__next()

        def check(self, variables):
            assert set(variables) == {"params", "batch_stats"}
            raise WeightsError("made for another model")

    with pytest.raises(WeightsError, match="another model"):
        _train(tmp_path, parts=toy.make_parts(make_train_iterator=Choosy))


def test_a_workdir_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot be made"):
        _train(tmp_path / "file")


def test_an_interrupted_evaluation_is_made_up_for(tmp_path, capsys):
    calls = []

    def hook(variables):
        calls.append(len(calls))
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("the signal must end the evaluation")
        return 0.5

    handler = signal.getsignal(signal.SIGTERM)
    state = _train(tmp_path, eval_every=4, parts=toy.make_parts(hook=hook))
    assert int(state.step) == 4 and "stopped by SIGTERM at step 4" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is handler
    _train(tmp_path, eval_every=4, parts=toy.make_parts(hook=hook))
    assert [line["step"] for line in metrics.read(tmp_path) if "val/score" in line] == [0, 4, 8]


def test_a_signal_that_ends_the_data_workers_too_still_saves(tmp_path):
    """A process group gets Ctrl-C as a whole: the workers die while the run waits for their next batch."""

    class Dying:
        def __init__(self, config):
            self._inner, self._calls = toy.make_train_iterator(config), 0
            self.get_state, self.set_state = self._inner.get_state, self._inner.set_state

        def __next__(self):
            self._calls += 1
            if self._calls == 6:  # the second micro-batch of step 3
                os.kill(os.getpid(), signal.SIGINT)
                raise RuntimeError("worker process was terminated")
            return next(self._inner)

    changes = {"optim__accumulate": 2, "steps": 4}
    state = _train(tmp_path / "a", parts=toy.make_parts(make_train_iterator=Dying), **changes)
    assert int(state.step) == 2
    checks.assert_same_bits(_train(tmp_path / "a", **changes), _train(tmp_path / "b", **changes))


def test_data_that_ends_is_one_clear_line(tmp_path):
    class Short:
        def __init__(self, config):
            self._batches = [next(toy.make_train_iterator(config))] * 2

        def __next__(self):
            if not self._batches:
                raise StopIteration
            return self._batches.pop()

        def get_state(self):
            return b"left %d" % len(self._batches)

    with pytest.raises(DataError, match="ended before the last step"):
        _train(tmp_path, parts=toy.make_parts(make_train_iterator=Short))


def test_a_batch_that_does_not_divide_fails_before_the_data_is_made(tmp_path):
    with pytest.raises(ConfigError, match="batch_size=12"):
        _train(tmp_path, batch_size=12, mesh__data=8, parts=toy.make_parts(make_train_iterator=None))


def test_a_negative_number_of_steps_is_no_finished_run(tmp_path):
    with pytest.raises(ConfigError, match="steps=-3: must not be negative"):
        _train(tmp_path / "run", steps=-3)
    assert not (tmp_path / "run").exists()


def test_profile_writes_a_trace(tmp_path):
    config = toy.make_config(steps=6)
    config.profile = True
    train(config, tmp_path, parts=toy.make_parts())
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
