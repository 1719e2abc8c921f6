"""Frozen settings from the sections of a config, and the nearest known name to a wrong one."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from sm_jax.errors import ConfigError

Settings = TypeVar("Settings")


def from_section(cls: type[Settings], options: Mapping[str, Any], *, section: str) -> Settings:
    """The dataclass `cls` with the values of a config section; sequences become tuples.

    Raises:
      ConfigError: a key that `cls` does not have; the line names the nearest one.
    """
    names = [field.name for field in dataclasses.fields(cls)]
    for key in options:
        if key not in names:
            raise ConfigError(f"{section}.{key}: unknown key{nearest(key, names)}")
    return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in options.items()})


def nearest(key: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest of `known`, or `; there are a, b, c` when none is near."""
    names = sorted(known)
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(names)}"
