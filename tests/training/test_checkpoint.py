import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax.errors import ConfigError, WeightsError
from sm_jax.training import optim, restore_config, restore_variables, rundir
from sm_jax.training.checkpoint import Checkpoints
from sm_jax.training.state import create
from tests.training import checks, toy


def _state(config=None, seed=0, **changes):
    config = config or toy.make_config(**changes)
    variables = toy.make_system(config).init(jax.random.key(seed), {"image": jnp.zeros((1, 4, 4, 3))})
    return create(
        variables,
        optim.make_optimizer(config.optim),
        lambda path: not path.startswith("frozen"),
        ema=bool(config.optim.ema),
        loss_scale=optim.initial_loss_scale(config),
    )


def _like(state):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state)


def _save(checkpoints, step, state, **meta):
    return checkpoints.save(step, state, data={"next": step}, meta={"step": step, **meta})


@pytest.mark.parametrize(
    "changes", [{}, {"optim__ema": 0.0}, {"model__dtype": "float16"}, {"optim__name": "adam"}]
)
def test_a_state_comes_back_bit_for_bit(tmp_path, changes):
    state = _state(**changes)._replace(step=jnp.int32(7))
    with Checkpoints(tmp_path) as checkpoints:
        assert _save(checkpoints, 7, state, note=["x"])
        assert not _save(checkpoints, 7, state)
    with Checkpoints(tmp_path) as checkpoints:  # as another process would
        restored = checkpoints.restore(7, _like(state))
        assert checkpoints.restore_json(7) == ({"next": 7}, {"step": 7, "note": ["x"]})
    checks.assert_same_bits(restored, state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)


def test_the_state_may_be_donated_while_it_is_written(tmp_path):
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + jnp.ones((), x.dtype), s), donate_argnums=0)
    state = _state()
    first = checks.host(state)
    with Checkpoints(tmp_path) as checkpoints:
        _save(checkpoints, 0, state)
        for _ in range(3):
            state = step(state)
        restored = checks.host(checkpoints.restore(0, _like(state)))
    assert all(first[path].tobytes() == restored[path].tobytes() for path in first)


@pytest.mark.parametrize(("mode", "best", "kept"), [("max", 2, [2, 4, 5]), ("min", 1, [1, 4, 5])])
def test_the_last_and_the_best_are_kept(tmp_path, mode, best, kept):
    values = {0: 0.5, 1: 0.1, 2: 0.9, 3: 0.9, 4: float("nan"), 5: 0.3}
    state = _state()
    with Checkpoints(tmp_path, keep=2, keep_best=1, metric="val/score", mode=mode) as checkpoints:
        for step, value in values.items():
            _save(checkpoints, step, state)
            checkpoints.record(step, {"val/score": value})
        checkpoints.wait()
        assert checkpoints.best() == best
        assert checkpoints.steps() == kept
    with Checkpoints(tmp_path, metric="val/score", mode=mode) as checkpoints:
        assert checkpoints.steps() == kept and checkpoints.best() == best
        checkpoints.forget_after(3)
        assert 5 not in checkpoints.evaluations and 2 in checkpoints.evaluations


def test_an_unknown_best_metric_names_the_results(tmp_path):
    with Checkpoints(tmp_path, metric="val/scores") as checkpoints:
        with pytest.raises(ConfigError, match="'val/scores' is not among the results .val/score"):
            checkpoints.record(0, {"val/score": 1.0})


def test_another_structure_is_a_list_of_differences(tmp_path):
    state = _state()
    with Checkpoints(tmp_path) as checkpoints:
        _save(checkpoints, 0, state)
        other = _state(model__width=5, optim__ema=0.0)
        with pytest.raises(WeightsError) as caught:
            checkpoints.restore(0, _like(other))
    text = str(caught.value)
    assert "- model/params/body/conv/kernel (3, 3, 3, 4)" in text
    assert "+ model/params/body/conv/kernel (3, 3, 3, 5)" in text
    assert "- ema/body/bn/scale (4,)" in text and "+ ema/body/bn/scale" not in text


def test_a_damaged_checkpoint_is_one_clear_line(tmp_path):
    state = _state()
    with Checkpoints(tmp_path) as checkpoints:
        _save(checkpoints, 0, state)
        checkpoints.wait()
        for file in (checkpoints.path(0) / "opt").rglob("*"):
            if file.is_file() and file.parent.name == "d":
                file.write_bytes(b"")
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(WeightsError, match="remove that folder") as caught,
    ):
        checkpoints.restore(0, _like(state))
    assert "\n" not in str(caught.value)


def test_restore_variables_by_step_best_last_and_average(tmp_path):
    config = toy.make_config()
    rundir.write_json(tmp_path / "config.json", rundir.to_dict(config))
    states = {step: _state(config, seed=step) for step in (1, 2)}
    with Checkpoints(tmp_path, metric="val/score") as checkpoints:
        for step, state in states.items():
            _save(checkpoints, step, state._replace(ema=jax.tree.map(jnp.zeros_like, state.ema)))
            checkpoints.record(step, {"val/score": -step})
    for step, chosen in ((None, 1), ("best", 1), ("last", 2), (2, 2)):
        variables, meta = restore_variables(tmp_path, step, ema=False)
        checks.assert_same_bits(variables, states[chosen].variables)
        assert meta["step"] == chosen and meta["metrics"] == {"val/score": -chosen}
    variables, _ = restore_variables(tmp_path)
    assert not np.any(variables["params"]["body"]["conv"]["kernel"])
    checks.assert_same_bits(variables["batch_stats"], states[1].collections["batch_stats"])
    assert restore_config(tmp_path).optim.milestones == (1000,)


def test_restore_variables_says_what_is_missing(tmp_path):
    with pytest.raises(WeightsError, match="holds no checkpoints"):
        restore_variables(tmp_path)
    with pytest.raises(ConfigError, match=r"no config\.json"):
        restore_config(tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        _save(checkpoints, 3, _state(optim__ema=0.0))
    with pytest.raises(WeightsError, match="no checkpoint 4; steps there: 3"):
        restore_variables(tmp_path, 4)
    with pytest.raises(WeightsError, match="no checkpoint 'best'"):
        restore_variables(tmp_path, "best")
    with pytest.raises(WeightsError, match="no moving average"):
        restore_variables(tmp_path, ema=True)
    assert restore_variables(tmp_path)[1]["step"] == 3
