"""The loop of a run: save, evaluate, reload, mine, step, report. A resumed run passes each boundary alike."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sm_jax.errors import SmJaxError
from sm_jax.training import optim, rundir, sharding
from sm_jax.training.checkpoint import Checkpoints
from sm_jax.training.metrics import Metrics
from sm_jax.training.signals import Interrupted, Stop
from sm_jax.training.state import TrainState
from sm_jax.training.stream import Stream

AHEAD = 2  # steps handed to the device before the values of an older one are read
PROFILED = (3, 8)  # the steps of this process that a trace covers


class NonFiniteError(SmJaxError):
    """A loss, gradient or update that is not finite; the state before it was kept."""


@dataclass
class Loop:
    """What the loop holds; `state` is replaced by every step (its buffers are donated).

    Attributes:
      config, folder: the run's.
      stream: micro-batches.
      take_step: see `step.make_step`.
      make_evaluators: called at the first evaluation.
      miner: see `trainer.Parts`; None without.
      like: shapes, types and shardings of `state`.
      state, step: where the run starts, then where it is.
      flags: sharding of one integer per device, with which the processes agree to stop.
      checkpoints, metrics, stop: open, closed by the caller.
    """

    config: Any
    folder: Path
    stream: Stream
    take_step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    make_evaluators: Callable[[], dict[str, Any]]
    miner: Any
    like: TrainState
    state: TrainState
    step: int
    flags: jax.NamedSharding
    checkpoints: Checkpoints
    metrics: Metrics
    stop: Stop
    _pending: deque = field(default_factory=deque)
    _agreed: bool = False
    _tracing: bool = False

    def run(self) -> TrainState:
        """Steps until the end or a signal; returns the last state."""
        first, drops = self.step, optim.drops(self.config.optim)
        while True:
            stopped = self._stopped()
            if stopped or self._evaluation_due() or self._due(self.config.checkpoint.every):
                self._save()
            if self._evaluation_due() and not stopped:
                stopped = self._evaluate()
            if stopped or self.step >= self.config.steps:
                break
            if self.step in drops:
                self._reload_best()
            if self._mining_due() and not self._mine():
                continue  # a signal: saves this step, and leaves
            self._trace(self.step - first)
            batches = self._next_batches()
            if batches is not None:
                self._one_step(batches, compiling=self.step == first)
        self._trace(PROFILED[1])
        self._finish(stopped)
        return self.state

    @cached_property
    def evaluators(self) -> dict[str, Any]:
        """Made at the first evaluation: a run that never evaluates needs no evaluation data."""
        return self.make_evaluators()

    def _next_batches(self) -> list[dict[str, jax.Array]] | None:
        """The batches of the next step; None when a signal to every process ended the data workers too."""
        try:
            return self.stream.next()
        except Exception:
            if self.stop.requested and jax.process_count() == 1:
                return None
            raise

    def _one_step(self, batches: list[dict[str, jax.Array]], *, compiling: bool) -> None:
        began = time.perf_counter()
        if compiling:
            self.metrics.say("compiles the training step (a minute or two on a CPU, kept for the next run)")
        mine = np.full(self.flags.mesh.local_mesh.size, bool(self.stop.requested), np.int32)
        stop = jax.make_array_from_process_local_data(self.flags, mine)
        self.state, values = self.take_step(self.state, batches, stop)
        self.step += 1
        self._pending.append((self.step, values))
        if compiling:
            jax.block_until_ready(values)
            self.metrics.say(f"first step after {time.perf_counter() - began:.1f} s")
            self.metrics.start_clock(self.step)
        self._drain(AHEAD)

    def _drain(self, left: int = 0) -> None:
        """Read the values of all but the newest `left` steps; raises at the first that was not finite."""
        while len(self._pending) > left:
            step, values = self._pending.popleft()
            values = {name: value.item() for name, value in jax.device_get(values).items()}
            failed, stop = values.pop("failed"), values.pop("stop")
            if failed >= 0:
                raise NonFiniteError(self._failure(step, values))
            self._agreed |= bool(stop)
            self.metrics.add(step, values)

    def _failure(self, step: int, values: dict[str, float]) -> str:
        wrong = [name for name in ("loss", "grad_norm") if not math.isfinite(values[name])]
        what = (
            " and ".join(f"{name} is {values[name]}" for name in wrong) or "the updated model is not finite"
        )
        last = self.checkpoints.latest()
        kept = (
            f"the last good checkpoint is {self.checkpoints.path(last)}" if last is not None else "none saved"
        )
        return f"step {step}: {what}; stopped, {kept}; try a lower optim.lr or optim.clip_norm"

    def _due(self, every: int) -> bool:
        return self.step in (0, self.config.steps) or bool(every and self.step % every == 0)

    def _evaluation_due(self) -> bool:
        every = self.config.get("eval_every", 0)
        if not every or self.step in self.checkpoints.evaluations or not self._due(every):
            return False
        return (self.step > 0 or self.config.get("eval_first", True)) and bool(self.evaluators)

    def _save(self) -> None:
        self._drain()
        meta = {"step": self.step, "config": rundir.to_dict(self.config), "versions": rundir.versions()}
        with self.metrics.pause():
            self.checkpoints.save(self.step, self.state, data=self.stream.state(), meta=meta)

    def _mining_due(self) -> bool:
        """After saving, so that a run that ends while mining has this step; it mines again when resumed."""
        if self.miner is None or self.step % self.miner.every:
            return False
        return self.stream.memory is None or self.stream.memory.step != self.step

    def _mine(self) -> bool:
        """Give the training data a new memory; False when a signal broke it off."""
        self._drain()
        variables = sharding.to_local(self.state.variables, self.flags.mesh)
        try:
            with self.metrics.pause(), self._breakable():
                memory = self.miner.run(variables, step=self.step, say=self.metrics.say)
        except Interrupted:
            return False
        self.stream.remember(memory)
        return True

    @contextmanager
    def _breakable(self) -> Iterator[None]:
        """A signal raises `Interrupted` here; of several processes the others would wait for this one."""
        with ExitStack() as stack:
            if jax.process_count() == 1:
                stack.enter_context(self.stop.interruptible())
            yield

    def _evaluate(self) -> bool:
        """Evaluate and record; True when a signal broke it off (a resumed run then evaluates this step)."""
        self.metrics.say(f"step {self.step}/{self.config.steps}  evaluates {', '.join(self.evaluators)}")
        variables = sharding.to_local(self.state.averaged, self.flags.mesh)
        results = {}
        try:
            with self.metrics.pause(), self._breakable():
                for name, evaluator in self.evaluators.items():
                    for metric, value in evaluator.run(variables):
                        results[f"{name}/{metric}"] = value
        except Interrupted:
            return True
        results = _same_everywhere({k: float(v) for k, v in results.items() if np.ndim(v) == 0})
        self.checkpoints.record(self.step, results)
        self.metrics.write(self.step, results)
        shown = "  ".join(f"{name} {value:.3f}" for name, value in results.items() if self._headline(name))
        self.metrics.say(f"step {self.step}/{self.config.steps}  {shown}")
        if self.step == self.config.steps:
            self._draw()
        return self._stopped()

    def _headline(self, name: str) -> bool:
        """Whether `EVALUATOR/METRIC` is worth a person's look; an evaluator with many metrics says which."""
        evaluator, metric = name.split("/", 1)
        wanted = getattr(self.evaluators.get(evaluator), "headline", None)
        return wanted is None or metric.rsplit("/", 1)[-1] in wanted

    def _draw(self) -> None:
        """Pictures of what the last evaluation found, by the evaluators that make some."""
        count = self.config.get("eval", {}).get("pictures", 0)
        for name, evaluator in self.evaluators.items() if jax.process_index() == 0 and count else ():
            if hasattr(evaluator, "pictures"):
                written = evaluator.pictures(self.folder / "pictures" / name, count=count)
                where = self.folder / "pictures" / name
                self.metrics.say(f"pictures of detections ({len(written)}): {where}")

    def _reload_best(self) -> None:
        """At a drop of the rate go on from the best model and its optimizer state (published OS2D code)."""
        best = self.checkpoints.best()
        if best is None or best == self.step:
            return
        self._drain()
        self.checkpoints.wait()
        step = self.state.step
        self.state = self.checkpoints.restore(best, self.like)._replace(step=step)
        self.metrics.say(f"the learning rate drops: goes on from the best checkpoint, step {best}")

    def _stopped(self) -> bool:
        return self._agreed if jax.process_count() > 1 else bool(self.stop.requested)

    def _trace(self, done: int) -> None:
        if self.config.get("profile", False) and done == PROFILED[0]:
            self._drain()
            jax.profiler.start_trace(str(self.folder / "profile"))
            self._tracing = True
        elif self._tracing and done >= PROFILED[1]:
            self._drain()
            jax.profiler.stop_trace()
            self._tracing = False
            self.metrics.say(f"trace of a few steps: {self.folder / 'profile'} (xprof or Perfetto shows it)")

    def _finish(self, stopped: bool) -> None:
        self.checkpoints.wait()
        if stopped:
            why = self.stop.requested or "a signal to another process"
            self.metrics.say(
                f"stopped by {why} at step {self.step}; with this workdir the same command goes on"
            )
        self.metrics.say(f"checkpoint: {self.checkpoints.path(self.checkpoints.latest())}")
        best = self.checkpoints.best()
        if best is not None:
            value = self.checkpoints.evaluations[best][self.checkpoints.metric]
            self.metrics.say(f"best: {self.checkpoints.path(best)} ({self.checkpoints.metric} {value:.3f})")
        for metric in filter(self._headline, _metrics_of(self.checkpoints.evaluations)):
            values = self.checkpoints.evaluations
            ends = (f"{values[step][metric]:.3f} at step {step}" for step in (min(values), max(values)))
            self.metrics.say(f"{metric}: {', '.join(ends)}")
        self.metrics.say(f"evaluate it: python evaluate.py --workdir={self.folder}")


def _metrics_of(evaluations: dict[int, dict[str, float]]) -> list[str]:
    """The metrics that the first and the last of several evaluations both have."""
    if len(evaluations) < 2:
        return []
    first, last = evaluations[min(evaluations)], evaluations[max(evaluations)]
    return [name for name in first if name in last]


def _same_everywhere(results: dict[str, float]) -> dict[str, float]:
    """The first process's results on every process: all must take the same checkpoint for the best."""
    if jax.process_count() == 1:
        return results
    from jax.experimental import multihost_utils

    values = multihost_utils.broadcast_one_to_all(np.asarray(list(results.values()), np.float32))
    return dict(zip(results, map(float, values), strict=True))
