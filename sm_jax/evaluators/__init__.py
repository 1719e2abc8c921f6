"""Evaluators: `run(variables)` yields (metric name, value); `make` builds those that a config names."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from sm_jax.errors import ConfigError

Progress = Callable[[Iterable, str], Iterable]


class Evaluator(Protocol):
    """Measures a model on one split."""

    def run(self, variables: Any) -> Iterable[tuple[str, float]]:
        """Yield (metric name, value) for the variables of the model."""


def make(config: Any, system: Any = None, *, progress: Progress | None = None) -> dict[str, Evaluator]:
    """One evaluator per split of `config.eval.splits`.

    Args:
      config: the whole config; read are `system`, `model`, `data` and `eval`.
      system: not needed by OS2D, whose evaluators share features between classes.
      progress: wraps the iteration over images; called with it and a description.

    Raises:
      ConfigError: nothing evaluates this system; DataError: no such data.
    """
    del system
    if config.system != "os2d":
        raise ConfigError(f"config.system: nothing evaluates {config.system!r}")
    from sm_jax.evaluators import os2d

    return os2d.make(config, progress=progress)
