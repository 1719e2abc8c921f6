"""Gradients through networks with ReLUs, compared so that the processor does not matter."""

import jax
import numpy as np


def assert_near(actual, expected, *, rtol=2e-3, atol=1e-5):
    """Every leaf as a whole: the root mean square of the difference against that of what is expected.

    A value at the bend of a ReLU falls to either side of it, on every processor and in every order of a sum
    others, which moves single elements of a gradient by far more than all the rest.

    Args:
      actual, expected: trees of the same structure and shapes.
      rtol: relative to the root mean square of the leaf.
      atol: relative to the largest element of all leaves.
    """
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    leaves = [(path, np.asarray(leaf, np.float64)) for path, leaf in jax.tree.leaves_with_path(expected)]
    floor = atol * max(float(np.abs(leaf).max()) for _, leaf in leaves)
    for found, (path, wanted) in zip(jax.tree.leaves(actual), leaves, strict=True):
        assert found.shape == wanted.shape
        error = np.sqrt(np.mean((np.asarray(found, np.float64) - wanted) ** 2))
        limit = rtol * np.sqrt(np.mean(wanted**2)) + floor
        assert error <= limit, f"{jax.tree_util.keystr(path)}: {error:.3g} > {limit:.3g}"
