"""The matchers. `make(config)` returns the pure functions of the one that `config.system` names."""

import importlib

from sm_jax.errors import ConfigError
from sm_jax.systems.base import System

NAMES = ("os2d", "crossmodal", "ssm", "scnet", "detector", "retrieval", "coae")

__all__ = ["NAMES", "System", "make"]


def make(config) -> System:
    """Build the `System` named by `config.system` from its sections (`config.model`, `config.objective`)."""
    if config.system not in NAMES:
        raise ConfigError(f"config.system: no system called {config.system!r}; there are: {', '.join(NAMES)}")
    return importlib.import_module(f"sm_jax.systems.{config.system}").make(config)
