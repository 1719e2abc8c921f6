"""Puts a run together: mesh, data, shapes, shardings, start, loop. It knows a system only by `System`."""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sm_jax.errors import ConfigError
from sm_jax.platform import describe_devices
from sm_jax.settings import nearest
from sm_jax.systems.base import System
from sm_jax.training import optim, rundir, sharding
from sm_jax.training.checkpoint import Checkpoints
from sm_jax.training.loop import Loop
from sm_jax.training.metrics import Metrics
from sm_jax.training.signals import Stop
from sm_jax.training.state import TrainState, create
from sm_jax.training.step import make_step
from sm_jax.training.stream import Stream


class Parts(NamedTuple):
    """What the trainer puts together; the default comes from the config.

    Attributes:
      make_system: `config -> System`.
      make_train_iterator: `config -> iterator` of batches with `get_state` and `set_state` (see `Stream`).
      initialize: `(variables, config.init) -> (variables, report lines)`: pretrained weights on fresh ones.
      make_evaluators: `(config, system) -> {name: evaluator}`; `evaluator.run(variables)` yields pairs
        (metric name, value).
      metric_names: `config -> names` of the results that evaluation will give, as far as they are known
        before it; None where they are not.
      check_evaluation: raises for a config what its evaluation would refuse, as far as that is known before.
      make_miner: `config -> miner` that looks through the training data now and then, or None: every
        `miner.every` steps `miner.run(variables, step=, say=)` gives the iterator's new memory, which has a
        `step` (see `mining` and `Stream.remember`).
    """

    make_system: Callable[[Any], System]
    make_train_iterator: Callable[[Any], Any]
    initialize: Callable[[Any, Any], tuple[Any, list[str]]]
    make_evaluators: Callable[[Any, System], dict[str, Any]]
    metric_names: Callable[[Any], Sequence[str] | None] = lambda config: None
    check_evaluation: Callable[[Any], None] = lambda config: None
    make_miner: Callable[[Any], Any] = lambda config: None


def default_parts() -> Parts:
    """The parts that a config names, from `sm_jax.systems`, `.data`, `.weights` and `.evaluators`."""
    from sm_jax import evaluators, systems, weights
    from sm_jax.training import mining, trunk

    return Parts(
        make_system=systems.make,
        make_train_iterator=trunk.make_train_iterator,
        initialize=weights.initialize,
        make_evaluators=evaluators.make,
        metric_names=evaluators.metric_names,
        check_evaluation=evaluators.check,
        make_miner=mining.make_miner,
    )


def train(config: Any, workdir: str | os.PathLike, *, parts: Parts | None = None) -> TrainState:
    """Train, or continue a run, in `workdir`.

    Args:
      config: see `configs/os2d.py`. `steps` counts optimizer steps; each takes `optim.accumulate` batches of
        `batch_size` images. `profile=True` writes a trace of a few steps to `workdir/profile`.
      workdir: the run's folder. If it holds a checkpoint, the run continues from the newest one, bit for bit.
      parts: other parts than the ones that the config names.

    Returns:
      The state at the end, or at the step boundary where a signal stopped the run (which saves there).

    Raises:
      ConfigError: a config that cannot run, here or in this workdir.
      NonFiniteError: a loss, gradient or update was not finite; the checkpoints are from before.
      Interrupted: a signal came before there was anything to save.
    """
    parts = parts or default_parts()
    if config.steps < 0:
        raise ConfigError(f"steps={config.steps}: must not be negative")
    folder = rundir.prepare(workdir)
    sharding.start_distributed(config)
    devices = describe_devices()
    with ExitStack() as stack:
        stop = stack.enter_context(Stop())
        mesh = sharding.make_mesh(config.mesh)
        checkpoints = stack.enter_context(_open_checkpoints(config, folder))
        _check_best_metric(config, parts)
        if config.get("eval_every", 0):  # the first evaluation may be hours away
            parts.check_evaluation(config)
        latest, position, notes = _find_run(config, folder, checkpoints)
        # Bad sections are refused here rather than after data and weights are loaded.
        system, optimizer = parts.make_system(config), optim.make_optimizer(config.optim)
        optim.make_schedule(config.optim, config.steps)
        stream = stack.enter_context(_open_stream(config, mesh, parts, position, stop))
        metrics = stack.enter_context(_open_metrics(config, folder, latest))
        for line in (f"devices: {devices}, mesh {dict(mesh.shape)}", *notes):
            metrics.say(line)

        init_key, step_key = jax.random.split(jax.random.key(config.seed))
        new_variables, new_state = _makers(config, system, optimizer, stream.shapes())
        shapes = jax.eval_shape(lambda key: new_state(new_variables(key)), init_key)
        min_size = config.mesh.get("min_size", sharding.MIN_SIZE)
        shardings = sharding.infer(shapes, mesh, min_size=min_size)
        like = jax.tree.map(_placed, shapes, shardings)

        # Which start wins: 1. the newest checkpoint in the workdir; 2. the weights that `config.init` names,
        # on top of 3. random ones.
        if latest is not None:
            metrics.say(f"continues from {checkpoints.path(latest)}")
            state = checkpoints.restore(latest, like)
        else:
            fresh = jax.device_get(jax.jit(new_variables)(init_key))
            variables, lines = parts.initialize(fresh, config.init)
            for line in lines:
                metrics.say(line)
            variables = stream.complete(variables)
            state = jax.jit(new_state, out_shardings=shardings)(variables)
        stream.check(state.variables)
        miner = parts.make_miner(config)

        if jax.process_index() == 0:  # only now: a run that could not start leaves no config behind
            rundir.write_json(folder / "config.json", rundir.to_dict(config))
        flags = jax.NamedSharding(mesh, jax.P(sharding.AXES))
        loop = Loop(
            config=config,
            folder=folder,
            stream=stream,
            take_step=make_step(
                system, optimizer, config, np.asarray(jax.random.key_data(step_key)), shardings, flags
            ),
            make_evaluators=lambda: parts.make_evaluators(config, system),
            miner=miner,
            like=like,
            state=state,
            step=latest or 0,
            flags=flags,
            checkpoints=checkpoints,
            metrics=metrics,
            stop=stop,
        )
        return loop.run()


def _open_checkpoints(config: Any, folder: Path) -> Checkpoints:
    section = config.checkpoint
    if optim.drops(config.optim) and config.get("eval_every", 0) and not section.get("keep_best", 1):
        raise ConfigError(
            "optim.reload_best_at_drop=True needs the best checkpoint, but checkpoint.keep_best=0; "
            "set keep_best=1 or reload_best_at_drop=False"
        )
    return Checkpoints(
        folder,
        keep=section.keep,
        keep_best=section.get("keep_best", 1),
        metric=section.get("best_metric", ""),
        mode=section.get("mode", "max"),
    )


def _check_best_metric(config: Any, parts: Parts) -> None:
    """Refuse a name that no evaluation gives before the first one, which may be hours away."""
    section, name = config.checkpoint, config.checkpoint.get("best_metric", "")
    if not config.get("eval_every", 0) or not section.get("keep_best", 1):
        return
    known = parts.metric_names(config)
    if known is not None and name not in known:
        raise ConfigError(
            f"checkpoint.best_metric={name!r} is not among the results{nearest(name, known)}; or set "
            "checkpoint.keep_best=0"
        )


def _find_run(config: Any, folder: Path, checkpoints: Checkpoints) -> tuple[int | None, Any, list[str]]:
    """The newest checkpoint here, its data iterator state, and what the config changes."""
    latest, data, notes = checkpoints.latest(), None, []
    if latest is not None:
        data, meta = checkpoints.restore_json(latest)
        changes = rundir.check_same_run(meta["config"], config, folder)
        notes = [f"changed since step {latest}: {line}" for line in changes]
    checkpoints.forget_after(-1 if latest is None else latest)
    return latest, data, notes


def _open_stream(config: Any, mesh: jax.sharding.Mesh, parts: Parts, position: Any, stop: Stop) -> Stream:
    sharding.check_batch_size(mesh, config.batch_size)  # before anything that takes time
    accumulate = int(config.optim.get("accumulate", 1))
    if accumulate < 1:
        raise ConfigError(f"optim.accumulate={accumulate} must be at least 1")
    with stop.interruptible():  # features that are computed first can take minutes
        iterator = parts.make_train_iterator(config)
    stream = Stream(iterator, mesh, accumulate=accumulate)
    if position is not None:
        stream.restore(position)
    return stream


def _open_metrics(config: Any, folder: Path, latest: int | None) -> Metrics:
    first = jax.process_index() == 0
    return Metrics(folder, start=latest or 0, steps=config.steps, every=config.log_every, active=first)


def _makers(config: Any, system: System, optimizer: Any, batch: Any) -> tuple[Callable, Callable]:
    """`key -> variables` and `variables -> TrainState`, both traceable."""

    def new_variables(key: jax.Array) -> Any:
        return system.init(key, {name: jnp.zeros(spec.shape, spec.dtype) for name, spec in batch.items()})

    new_state = partial(
        create,
        optimizer=optimizer,
        trainable=system.trainable,
        ema=bool(config.optim.get("ema", 0.0)),
        loss_scale=optim.initial_loss_scale(config),
    )
    return new_variables, new_state


def _placed(shape: jax.ShapeDtypeStruct, where: jax.NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where)
