"""Evaluators: `run(variables)` yields (metric name, value); `make` builds those that a config names."""

import importlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from sm_jax.errors import ConfigError

OWN = {
    "os2d": "os2d",
    "crossmodal": "crossmodal",
    "scnet": "scnet",
    "ssm": "requests",
    "detector": "detector",
    "retrieval": "retrieval",
    "coae": "coae",
}
"""The module that evaluates a system where `eval.protocol` asks for nothing else."""
PROTOCOLS = ("default", "requests", "episodes")
Progress = Callable[[Iterable, str], Iterable]


class Evaluator(Protocol):
    """Measures a model on one split.

    One with many metrics may have `headline`, the last parts of the names of those that training prints.
    """

    def run(self, variables: Any) -> Iterable[tuple[str, float]]:
        """Yield (metric name, value) for the variables of the model."""

    def table(self) -> str:
        """What was measured, for a screen."""

    def to_dict(self) -> dict[str, Any]:
        """What was measured, as plain values for JSON."""

    def pictures(self, folder: Path, *, count: int) -> list[Path]:
        """Draw what was found in up to `count` images; returns the files."""


def make(config: Any, system: Any = None, *, progress: Progress | None = None) -> dict[str, Evaluator]:
    """One evaluator per split of `config.eval.splits`.

    Args:
      config: the whole config; read are `system`, `model`, `data` and `eval`. With `eval.protocol`
        "requests" pictures of objects are the requests (see `evaluators.requests`), with "episodes" each
        picture is searched for the classes of its episode (see `evaluators.episodes`); "default", or none,
        is the system's own evaluation.
      system: not needed: evaluators make a predictor of their own, which shares what images have in common.
      progress: wraps the iteration over images; called with it and a description.

    Raises:
      ConfigError: nothing evaluates this system so; DataError: no such data.
    """
    del system
    module = _of(config)
    if not config.eval.splits:
        raise ConfigError("eval.splits: name a split, or set eval_every=0 for no evaluation")
    return module.make(config, progress=progress)


def metric_names(config: Any) -> list[str]:
    """Names that the results of evaluation can have in a run, `SPLIT/METRIC`, known before it."""
    return _of(config).metric_names(config)


def check(config: Any) -> None:
    """Refuse before training what the evaluation of a run would refuse; raises ConfigError, DataError."""
    module = _of(config)
    if hasattr(module, "check"):
        module.check(config)


def _of(config: Any) -> Any:
    protocol = config.get("eval", {}).get("protocol", "default")
    if protocol not in PROTOCOLS:
        raise ConfigError(f"eval.protocol: {protocol!r} is none of {', '.join(PROTOCOLS)}")
    if protocol != "default":
        return importlib.import_module(f"sm_jax.evaluators.{protocol}")
    if config.system not in OWN:
        raise ConfigError(f"config.system: nothing evaluates {config.system!r}")
    return importlib.import_module(f"sm_jax.evaluators.{OWN[config.system]}")
