"""Typed reading of values from a command line."""

import ast
from typing import Any

from sm_jax.errors import ConfigError

_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def parse_value(text: str, default: Any, *, name: str) -> Any:
    """Read `text` as the type of `default`; `ConfigError` naming `name` when it is not of that type.

    Integers may carry underscores, an integer is taken for a float, a sequence is a Python literal whose
    items are of the kind of the default's, and a default of None takes any Python literal, or else text.
    """
    try:
        if isinstance(default, bool):
            return _BOOLEANS[text.lower()]
        if isinstance(default, int):
            return int(text)
        if isinstance(default, float):
            return float(text)
        if isinstance(default, str):
            return text
        if isinstance(default, tuple | list):
            return _sequence(text, default)
    except (KeyError, ValueError, SyntaxError):
        wanted = "true or false" if isinstance(default, bool) else f"a value like {default!r}"
        raise ConfigError(f"{name}: {text!r} is not {wanted}") from None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _sequence(text: str, default: tuple | list) -> tuple | list:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if not all(isinstance(item, str) for item in default):
            raise
        value = tuple(piece.strip() for piece in text.strip("()[]").split(",") if piece.strip())  # val,test
    value = tuple(value) if isinstance(value, tuple | list) else (value,)
    kinds = (str,) if default and isinstance(default[0], str) else (int, float, tuple, list)
    if default and not all(isinstance(item, kinds) and not isinstance(item, bool) for item in value):
        raise ValueError
    if any(isinstance(item, float) for item in default):
        value = tuple(float(item) if isinstance(item, int) else item for item in value)
    elif default and isinstance(default[0], int) and not all(isinstance(item, int) for item in value):
        raise ValueError
    return type(default)(value)
