"""Arguments of a config file: `--config=configs/os2d.py:runlocal,steps=100`."""

from typing import Any

from ml_collections import ConfigDict

from sm_jax.errors import ConfigError
from sm_jax.settings import nearest
from sm_jax.training.values import parse_value


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
    """Read `arg` as typed values; every config knows `runlocal`, even if it is not among `defaults`.

    Args:
      arg: comma-separated `key=value` pairs; a bare `key` switches a boolean on. A comma inside (), [] or {}
        does not separate. None or "" gives the defaults.
      **defaults: the keys that are known; the type of each default is the type of the value. A default of
        None takes any Python literal, or else text.

    Returns:
      A `ConfigDict` with the value of every key.

    Raises:
      ConfigError: an unknown key (with the nearest one), a key given twice, or a value of another type.
    """
    values = {"runlocal": False, **defaults}
    given = set()
    for part in _split(arg or ""):
        key, equals, text = (piece.strip() for piece in part.partition("="))
        name = f"config argument {key!r}"
        if key not in values:
            raise ConfigError(f"{name} is not known{nearest(key, values)}")
        if key in given:
            raise ConfigError(f"{name} is given twice")
        given.add(key)
        default = values[key]
        if not equals and not isinstance(default, bool):
            raise ConfigError(f"{name} needs a value: {key}=...")
        values[key] = parse_value(text if equals else "true", default, name=name)
    return ConfigDict(values)


def _split(arg: str) -> list[str]:
    parts, depth = [""], 0
    for letter in arg:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part.strip()]
