"""Checkpoints of a run: orbax Composite items `model`, `ema`, `opt`, `data`, `meta`, written asynchronously.

A checkpoint is saved before it is evaluated, so results live beside the checkpoints in `evaluations.json`: an
evaluation that was interrupted runs again on resume, and a step is never saved twice.
"""

import gc
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import traverse_util
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers

from sm_jax.errors import ConfigError, WeightsError
from sm_jax.training import rundir
from sm_jax.training.state import TrainState, from_flat, to_flat

FOLDER = "checkpoints"
_ARRAYS = ("model", "ema", "opt")


class Checkpoints:
    """The checkpoints in `folder`; a context manager, or call `close` (it waits for pending writes).

    Args:
      folder: the run's folder, absolute.
      keep: how many of the last are kept.
      keep_best: how many of the best are kept beside them.
      metric: name of the result that decides what is best.
      mode: "max" or "min".
      read_only: nothing is written or cleaned up (a training run may be writing there).
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int = 2,
        keep_best: int = 1,
        metric: str = "",
        mode: str = "max",
        read_only: bool = False,
    ):
        if keep < 1 or keep_best < 0 or mode not in ("max", "min"):
            raise ConfigError(
                f"checkpoint.keep={keep}, keep_best={keep_best}, mode={mode!r}: keep is at least 1, "
                "keep_best at least 0, mode is 'max' or 'min'"
            )
        self.folder, self.metric = folder, metric
        self._keep, self._keep_best, self._sign = keep, keep_best, 1.0 if mode == "max" else -1.0
        self._evaluations_file = folder / "evaluations.json"
        saved = rundir.read_json(self._evaluations_file, {})
        self.evaluations: dict[int, dict[str, float]] = {int(step): values for step, values in saved.items()}
        handlers = {name: ocp.StandardCheckpointHandler() for name in _ARRAYS}
        handlers |= {name: ocp.JsonCheckpointHandler() for name in ("data", "meta")}
        writing = {
            "save_decision_policy": checkpoint_managers.FixedIntervalPolicy(1),
            "preservation_policy": _Preserve(self.kept),
            "cleanup_tmp_directories": True,  # what a killed run left half written
        }
        reading = {"create": False}  # orbax's own read_only logs a warning
        self._manager = ocp.CheckpointManager(
            folder / FOLDER,
            item_names=tuple(handlers),
            item_handlers=handlers,
            options=ocp.CheckpointManagerOptions(**(reading if read_only else writing)),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for pending writes and let go of the folder."""
        self._manager.close()

    def wait(self) -> None:
        """Return when every checkpoint is on disk."""
        self._manager.wait_until_finished()

    def steps(self) -> list[int]:
        """The steps saved, ascending."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """The newest step saved, None without any."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The saved step of the best metric (the earliest of equals), None when none was evaluated."""
        return next(iter(self._ranked(self.steps())), None)

    def path(self, step: int) -> Path:
        """The folder of one checkpoint."""
        return self.folder / FOLDER / str(step)

    def kept(self, steps: Sequence[int]) -> set[int]:
        """Which of `steps` are kept: the last `keep` and the best `keep_best`."""
        return {*sorted(steps)[-self._keep :], *self._ranked(steps)[: self._keep_best]}

    def forget_after(self, step: int) -> None:
        """Drop the results of steps that a run continued from `step` takes again."""
        self.evaluations = {at: values for at, values in self.evaluations.items() if at <= step}
        self._write_evaluations()

    def record(self, step: int, values: dict[str, float]) -> None:
        """Keep the results of the evaluation at `step`; they decide what is best."""
        if self._keep_best and self.metric not in values:
            raise ConfigError(
                f"checkpoint.best_metric={self.metric!r} is not among the results ({', '.join(values)}); "
                "name one of them, or set checkpoint.keep_best=0"
            )
        self.evaluations[step] = values
        self._write_evaluations()

    def save(self, step: int, state: TrainState, *, data: Any, meta: dict[str, Any]) -> bool:
        """Start writing one checkpoint; False when this step is there already."""
        if step in self.steps():
            return False
        items = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
        return self._manager.save(
            step, args=ocp.args.Composite(**items, data=ocp.args.JsonSave(data), meta=ocp.args.JsonSave(meta))
        )

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of `step` with the structure, types and shardings of `like` (`ShapeDtypeStruct`s).

        Raises:
          WeightsError: the checkpoint does not have these arrays (all differences named), or cannot be read.
        """
        wanted = _items(like)
        self.check_structure(step, wanted)
        args = {name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()}
        found = {name: to_flat(tree) for name, tree in self._restore(step, args).items()}
        flat = {f"opt_state/{path}": value for path, value in to_flat(like.opt_state).items()}
        rest = {path: found["opt"][path] for path in [*flat, *(f"scale/{key}" for key in like.scale)]}
        return like._replace(
            step=found["opt"]["step"],
            failed=found["opt"]["failed"],
            params=from_flat(_below(found["model"], "params"), like.params),
            collections={k: from_flat(_below(found["model"], k), v) for k, v in like.collections.items()},
            ema=from_flat(found["ema"], like.ema) if like.ema else {},
            opt_state=from_flat(_below(rest, "opt_state"), like.opt_state),
            scale=_below(rest, "scale"),
        )

    def restore_json(self, step: int) -> tuple[Any, dict[str, Any]]:
        """`(data iterator state, meta)` of one checkpoint."""
        found = self._restore(step, {"data": ocp.args.JsonRestore(), "meta": ocp.args.JsonRestore()})
        return found["data"], found["meta"]

    def restore_item(self, step: int, name: str) -> Any:
        """One item of arrays, whole, on this process's first device; None where the checkpoint lacks it."""
        if not (self.path(step) / name).is_dir():
            return None
        place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        flat = {
            tuple(path.split("/")): jax.ShapeDtypeStruct(info.shape, info.dtype, sharding=place)
            for path, info in self._saved_structure(step, name).items()
        }
        tree = traverse_util.unflatten_dict(flat)
        return self._restore(step, {name: ocp.args.StandardRestore(tree)})[name]

    def check_structure(self, step: int, wanted: dict[str, Any]) -> None:
        """Raise `WeightsError` with a `-`/`+` list where the arrays of a checkpoint differ from `wanted`."""
        lines = []
        for name in _ARRAYS:
            old = {k: tuple(v.shape) for k, v in self._saved_structure(step, name).items()}
            new = {k: tuple(v.shape) for k, v in to_flat(wanted.get(name, {})).items()}
            for key in sorted({*old, *new}):
                if old.get(key) != new.get(key):
                    lines += [f"- {name}/{key} {old[key]}"] if key in old else []
                    lines += [f"+ {name}/{key} {new[key]}"] if key in new else []
        if lines:
            shown = lines[:40] + ([f"... and {len(lines) - 40} more"] if len(lines) > 40 else [])
            raise WeightsError(
                f"checkpoint {self.path(step)} does not fit the config; use another --workdir "
                "(- only there, + only in the config):\n  " + "\n  ".join(shown)
            )

    def _saved_structure(self, step: int, name: str) -> dict[str, Any]:
        self.wait()
        if not (self.path(step) / name).is_dir():
            return {}
        found = self._read(step, lambda: self._manager.item_metadata(step)[name])
        return traverse_util.flatten_dict(found.tree, sep="/") if found is not None else {}

    def _restore(self, step: int, args: dict[str, Any]) -> Any:
        self.wait()
        return self._read(step, lambda: self._manager.restore(step, args=ocp.args.Composite(**args)))

    def _read(self, step: int, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except (ValueError, OSError, KeyError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
        _drop_silently()
        raise WeightsError(
            f"checkpoint {self.path(step)} cannot be read ({reason}); remove that folder to continue from "
            "the one before"
        )

    def _ranked(self, steps: Sequence[int]) -> list[int]:
        values = {step: self.evaluations.get(step, {}).get(self.metric) for step in steps}
        valid = [step for step, value in values.items() if value is not None and not math.isnan(value)]
        return sorted(valid, key=lambda step: (-self._sign * values[step], step))

    def _write_evaluations(self) -> None:
        if jax.process_index() == 0:
            rundir.write_json(self._evaluations_file, {str(k): v for k, v in self.evaluations.items()})


def restore_variables(
    workdir: str | os.PathLike, step: int | str | None = None, *, ema: bool | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the model of a run.

    Args:
      workdir: the run's folder.
      step: a step, "best", "last", or None: best where a run was evaluated, else last.
      ema: the moving average of the parameters (True), the parameters (False), or None: the average where
        there is one.

    Returns:
      `(variables, meta)`: arrays on the first device; meta holds `config`, `step`, `versions`, and `metrics`
      (the results of the evaluation at that step, {} without).

    Raises:
      WeightsError: there is no such checkpoint, or no average in it.
    """
    folder = Path(workdir).expanduser().absolute()
    if not (folder / FOLDER).is_dir():
        raise WeightsError(f"{folder} holds no checkpoints; give the --workdir of a training run")
    checkpoint = rundir.read_json(folder / "config.json", {}).get("checkpoint", {})
    metric, mode = checkpoint.get("best_metric", ""), checkpoint.get("mode", "max")
    with Checkpoints(folder, metric=metric, mode=mode, read_only=True) as checkpoints:
        chosen = _choose(checkpoints, step)
        _, meta = checkpoints.restore_json(chosen)
        variables = checkpoints.restore_item(chosen, "model")
        average = None if ema is False else checkpoints.restore_item(chosen, "ema")
        if ema and average is None:
            raise WeightsError(
                f"checkpoint {checkpoints.path(chosen)} has no moving average (optim.ema was 0)"
            )
        if average is not None:
            variables["params"] = average
        return variables, meta | {"metrics": checkpoints.evaluations.get(chosen, {})}


def restore_config(workdir: str | os.PathLike) -> ConfigDict:
    """The effective config of a run, from its `config.json`; sequences are tuples, as in config files."""
    folder = Path(workdir).expanduser().absolute()
    saved = rundir.read_json(folder / "config.json", None)
    if saved is None:
        raise ConfigError(f"{folder} holds no config.json; give the --workdir of a training run")
    return ConfigDict(rundir.tuples(saved))


def _choose(checkpoints: Checkpoints, step: int | str | None) -> int:
    steps = checkpoints.steps()
    choices = {"best": checkpoints.best(), "last": checkpoints.latest()}
    chosen = choices.get(step, step) if step is not None else choices["best"]
    chosen = choices["last"] if chosen is None and step is None else chosen
    if chosen not in steps:
        there = ", ".join(map(str, steps)) or "none"
        raise WeightsError(f"{checkpoints.folder} has no checkpoint {step!r}; steps there: {there}")
    return chosen


def _drop_silently() -> None:
    """Collect what a failed read left: it would print a page of `Exception ignored` from its coroutines."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        gc.collect()
    finally:
        sys.unraisablehook = hook


class _Preserve:
    def __init__(self, kept: Any):
        self._kept = kept

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        kept = self._kept([info.step for info in checkpoints])
        return [info.step in kept for info in checkpoints]


def _items(state: TrainState) -> dict[str, Any]:
    opt = {f"opt_state/{path}": value for path, value in to_flat(state.opt_state).items()}
    opt |= {f"scale/{key}": value for key, value in state.scale.items()}
    opt |= {"step": state.step, "failed": state.failed}
    items = {"model": _nested(to_flat(state.variables)), "opt": _nested(opt)}
    return items | ({"ema": _nested(to_flat(state.ema))} if state.ema else {})


def _nested(flat: dict[str, Any]) -> Any:
    return traverse_util.unflatten_dict(flat, sep="/")


def _below(flat: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {k.removeprefix(f"{prefix}/"): v for k, v in flat.items() if k.startswith(f"{prefix}/")}
