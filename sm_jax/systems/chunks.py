"""What predictors of fixed shapes share: chunks padded to powers of two, and programs that are counted."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def counted(compiles: Counter[str], name: str, function: Callable) -> Callable:
    """`function`, to be jitted; each time it is traced `compiles[name]` goes up."""

    def traced(*args):
        compiles[name] += 1  # runs while tracing only
        return function(*args)

    return traced


def padded(array: np.ndarray, chunk: int, axis: int = 0) -> tuple[np.ndarray, int]:
    """`array` with zeros up to the next power of two, at most `chunk`, along `axis`; its length before."""
    axis %= array.ndim
    used = array.shape[axis]
    count = min(chunk, 1 << max(used - 1, 0).bit_length())
    if count == used:
        return array, used  # a copy can cost as much as what is done with it
    widths = [(0, count - used if i == axis else 0) for i in range(array.ndim)]
    return np.pad(array, widths), used


def in_chunks(run: Callable[[np.ndarray], Any], array: np.ndarray, chunk: int) -> Any:
    """`run` over chunks along the first axis (one empty one if there is nothing), joined, without padding."""
    parts = []
    for start in range(0, max(len(array), 1), chunk):
        part, used = padded(array[start : start + chunk], chunk)
        parts.append(jax.tree.map(lambda value, used=used: np.asarray(value)[:used], run(part)))
    return jax.tree.map(lambda *values: np.concatenate(values), *parts)
