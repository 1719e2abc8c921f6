"""The training loop and its parts: mesh, optimizer, checkpoints, metrics, command line."""

import importlib
from typing import Any

_EXPORTS = {
    "train": "trainer",
    "Parts": "trainer",
    "TrainState": "state",
    "restore_variables": "checkpoint",
    "restore_config": "checkpoint",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    """Import on first use: reading a config file must not load the checkpoint library."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
