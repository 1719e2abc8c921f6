"""Hough voting: every match gathers the weight of all matches that agree with it in offset.

Bins come from the host (`bins`); voting runs on the device as one scatter and one gather, O(n m). One pair;
`vmap` over pairs. Source: SCNet (ICCV 2017), sec. 3.2; specification sec. 2.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sm_jax.ops.offset_bins import Grid, aspect_gate, bins, edge_margin, grid, spread

__all__ = ["Grid", "aspect_gate", "bins", "edge_margin", "grid", "spread", "vote", "vote_reference"]

Array = jax.Array


def vote(weights: Array, bins: Array, size: int, *, vote_grad: str = "exact") -> Array:
    """Sum of the weights of all matches in the same bin.

    Args:
      weights: "n m".
      bins: int32 "n m" of `bins`; 0 = invalid, which neither gives nor gets a vote (so is padding).
      size: number of bins, static; any number above the largest bin will do, so that one compiled function
        can serve several grids.
      vote_grad: "exact", or "released" for the gradient of the published code, for parity only: of the
        upstream gradients of a bin it sums those of matches with a positive weight, and it leaves out the
        lowest bin with such a match unless an invalid match has a positive weight and an upstream gradient.
        It differs from the exact one by a factor of order 1.

    Returns:
      "n m", type of the weights; 0 at invalid matches.
    """
    if vote_grad not in ("exact", "released"):
        raise ValueError(f"vote_grad is {vote_grad!r}, expected 'exact' or 'released'")
    return (_vote if vote_grad == "exact" else _vote_released)(weights, bins, size)


def vote_reference(weights: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """`vote` in float64 NumPy, by its definition."""
    weights, bins = np.asarray(weights, np.float64), np.asarray(bins)
    votes = np.zeros_like(weights)
    for number in np.unique(bins[bins > 0]):
        votes[bins == number] = weights[bins == number].sum()
    return votes


def _vote(weights: Array, bins: Array, size: int) -> Array:
    valid = bins > 0
    weights = jnp.where(valid, weights, 0)
    total = jax.ops.segment_sum(weights.reshape(-1), bins.reshape(-1), size + 1)
    return jnp.where(valid, total[bins], 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _vote_released(weights: Array, bins: Array, size: int) -> Array:
    return _vote(weights, bins, size)


def _released_forward(weights, bins, size):
    return _vote(weights, bins, size), (weights > 0, bins)


def _released_backward(size, saved, upstream):
    positive, bins = saved
    upstream = jnp.where(positive, upstream, 0)
    touched = upstream != 0
    first = jnp.min(jnp.where(touched, bins, size + 1))  # 0 as soon as an invalid match is touched
    grad = _vote(upstream, jnp.where(bins == first, 0, bins), size)
    return grad, None


_vote_released.defvjp(_released_forward, _released_backward)
