"""Comparisons of states, bit for bit or to a tolerance."""

import jax
import numpy as np

from sm_jax.training.state import to_flat


def host(state):
    """Every array of a state by path, on the host."""
    return {path: np.asarray(jax.device_get(value)) for path, value in to_flat(state).items()}


def assert_same_bits(one, other):
    one, other = host(one), host(other)
    assert one.keys() == other.keys()
    different = [path for path in one if one[path].tobytes() != other[path].tobytes()]
    assert not different


def assert_close(one, other, **tolerances):
    one, other = host(one), host(other)
    assert one.keys() == other.keys()
    for path, value in one.items():
        np.testing.assert_allclose(value, other[path], err_msg=path, **tolerances)
