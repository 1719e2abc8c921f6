"""Scores of all matches of two sets of regions: SCNet's and those of Proposal Flow (NAM, PHM, LOM).

Every function takes the similarities of one pair, "n m" (row: a region of the source image, column: one of
the target), and returns scores of the same shape; `vmap` over pairs. `where` (bool "n m") marks the real
matches when the sets are padded: the others score 0 and count for nothing. Bins and gates come from the host
(`sm_jax.ops.hough`). What has no support scores 0: in NAM, PHM and LOM a match that fails the gate or lies in
no bin; everywhere all matches when none is similar, and `best_matches` then gives confidence 0. The same in
float64 NumPy, by the definitions: `matching_reference`.

Sources: SCNet (ICCV 2017), sec. 3; Proposal Flow (CVPR 2016), sec. 3; factors and constants of the published
code.
"""

import jax
import jax.numpy as jnp
import numpy as np

from sm_jax import boxes as box_lib
from sm_jax.ops.hough import Grid, vote

Array = jax.Array

SMOOTHING = np.exp(-0.5 * (np.arange(-2, 3) / (5 / 2 / 2.354)) ** 2)
SMOOTHING /= SMOOTHING.sum()
"""PHM's Gaussian along one axis of the bins; its product over the three axes sums to 1."""

LOM_ITERATIONS = 20
LOM_DISTANCE, LOM_SCALE = 0.05, 0.3  # per pixel, per unit of area ratio


def scnet_scores(
    similarity: Array,
    bins: Array | None = None,
    *,
    size: int | None = None,
    geometry: Array | None = None,
    outer_relu: bool = True,
    vote_threshold: float = 0.4,
    vote_bias: float = 0.01,
    vote_grad: str = "exact",
    where: Array | None = None,
) -> Array:
    """SCNet's score of every match: A without `bins`, AG with them, AG+ with `geometry` too.

    f (V(max(g - vote_threshold, 0)) + vote_bias) with f = max(similarity, 0), g = max(geometry, 0), or f in
    AG, and V the sum over the bin; A is f alone. The defaults of threshold and bias are those of the
    published code; 0 and 0 are the paper. The published AG does not rectify the similarity outside the vote:
    `outer_relu=False`.

    Args:
      similarity: "n m", cosine of the (appearance) embeddings.
      bins: int32 "n m" of `hough.bins`.
      size: number of bins or more, static; needed with `bins`.
      geometry: "n m", cosine of the geometry embeddings.
      vote_grad: see `hough.vote`.
      where: bool "n m".
    """
    if (bins is None) != (size is None) or (bins is None and geometry is not None):
        raise ValueError("bins and size go together, and geometry needs both")
    similarity = _real(similarity, where)
    score = jax.nn.relu(similarity) if outer_relu else similarity
    if bins is None:
        return score
    inner = similarity if geometry is None else _real(geometry, where)
    weights = jax.nn.relu(jax.nn.relu(inner) - vote_threshold)
    return score * (vote(weights, bins, size, vote_grad=vote_grad) + vote_bias)


def nam(similarity: Array, gate: Array, *, where: Array | None = None) -> Array:
    """Naive appearance matching: max(similarity, 0) where the aspect ratio hardly changes.

    gate: bool "n m" of `hough.aspect_gate`.
    """
    return jnp.where(gate, jax.nn.relu(_real(similarity, where)), 0)


def phm(similarity: Array, bins: Array, grid: Grid, *, where: Array | None = None) -> Array:
    """Probabilistic Hough matching: max(similarity, 0) times the smoothed votes of the match's bin.

    A source region votes in a bin once, with its best match there; the votes are smoothed with a 5 x 5 x 5
    Gaussian (nothing lies outside the grid).

    Args:
      similarity: "n m".
      bins: int32 "n m" of `hough.bins(..., kind="phm")`.
      grid: `hough.grid(target_size, kind="phm")`, static: a new grid compiles anew.
      where: bool "n m".
    """
    similarity = jax.nn.relu(_real(similarity, where))
    # by bin, the largest first: the first of a run is the region's vote
    ordered, negated = jax.lax.sort((bins, -similarity), dimension=1, num_keys=2)
    first = jnp.concatenate([jnp.ones_like(bins[:, :1], bool), ordered[:, 1:] != ordered[:, :-1]], axis=1)
    votes = jnp.where(first, -negated, 0)
    total = jax.ops.segment_sum(votes.reshape(-1), ordered.reshape(-1), grid.size + 1)[1:]
    smooth = total.reshape(grid.shape)
    for axis in range(3):
        smooth = _smooth(smooth, axis)
    return similarity * jnp.where(bins > 0, smooth.reshape(-1)[jnp.maximum(bins - 1, 0)], 0)


def lom(
    scores: Array,
    source_boxes: Array,
    target_boxes: Array,
    *,
    inplace: bool = False,
    where: Array | None = None,
) -> Array:
    """Local offset matching: `scores` (of `nam`) times the agreement with the neighbours' best matches.

    Neighbours of a region are the source regions that overlap it, itself included. Their best matches have
    offsets (centres' difference in pixels, ratio of areas); a match counts by how close its offset is to
    the robust centre of those, and by the share that the neighbours' best scores have of all rows'.

    The published 20 steps towards the robust centre magnify rounding in some rows, where it stops near one
    neighbour's offset and leaves it again: there float32 differs from float64, and float64 from itself in
    another order of summation. Up to 2 % of the largest score on the recorded pairs, best matches hardly
    ever; `matching_reference.lom` has the published code's order and agrees to 1e-6.

    Args:
      scores: "n m", not negative.
      source_boxes: "n 4" xyxy pixels.
      target_boxes: "m 4" xyxy pixels.
      inplace: update row after row, later rows reading the updated ones, as the published code does;
        otherwise every row reads `scores`, as in the paper. Rows' best matches mostly agree, values do not.
      where: bool "n m".
    """
    scores = _real(scores, where)
    if not scores.size:
        return scores
    source, source_area = _frames(source_boxes)
    target, target_area = _frames(target_boxes)
    some = target_area > 0
    neighbours = box_lib.intersection(source_boxes, source_boxes) > 0
    if where is not None:
        real = jnp.any(where, axis=1)
        neighbours &= real[:, None] & real[None, :]

    def offsets(index):
        """Offsets of the matches of source region `index` with all target regions: "m 3"."""
        ratio = jnp.where(some, source_area[index] / jnp.where(some, target_area, 1), 0)
        return jnp.concatenate([source[index][None, :] - target, ratio[:, None]], axis=1)

    def best(index, row):
        column = jnp.argmax(row)
        return offsets(index)[column], row[column]

    def update(index, row, best_offsets, best_scores):
        near = neighbours[index]
        away = jnp.abs(offsets(index) - _robust_centre(best_offsets, near)[None, :])
        distance = jnp.sqrt(away[:, 0] ** 2 + away[:, 1] ** 2)
        total = jnp.sum(best_scores)
        share = jnp.sum(jnp.where(near, best_scores, 0)) / jnp.where(total > 0, total, 1)
        return row * jnp.exp(-LOM_DISTANCE * distance - LOM_SCALE * away[:, 2]) * share

    index = jnp.arange(scores.shape[0])
    best_offsets, best_scores = jax.vmap(best)(index, scores)
    if not inplace:

        def row(at):
            return update(*at, best_offsets, best_scores)

        # all rows at once would stream 20 times over "n n 3"
        return jax.lax.map(row, (index, scores), batch_size=128)

    def step(carry, index):
        best_offsets, best_scores = carry
        row = update(index, scores[index], best_offsets, best_scores)
        offset, score = best(index, row)
        return (best_offsets.at[index].set(offset), best_scores.at[index].set(score)), row

    return jax.lax.scan(step, (best_offsets, best_scores), index)[1]


def best_matches(scores: Array, *, where: Array | None = None) -> tuple[Array, Array]:
    """The target region of every source region: (int32 "n" index, "n" confidence = its score).

    Ties go to the first. A row without a real match has index 0 and confidence 0.
    """
    if where is None:
        where = jnp.ones(scores.shape, bool)
    masked = jnp.where(where, scores, -jnp.inf)
    index = jnp.argmax(masked, axis=1).astype(jnp.int32)
    return index, jnp.where(jnp.any(where, axis=1), jnp.max(masked, axis=1), 0)


def _real(similarity: Array, where: Array | None) -> Array:
    return similarity if where is None else jnp.where(where, similarity, 0)


def _smooth(votes: Array, axis: int) -> Array:
    count = votes.shape[axis]
    padded = jnp.pad(votes, [(2, 2) if i == axis else (0, 0) for i in range(votes.ndim)])
    shifted = (jax.lax.slice_in_dim(padded, k, k + count, axis=axis) for k in range(5))
    return sum(float(weight) * part for weight, part in zip(SMOOTHING, shifted, strict=True))


def _frames(boxes: Array) -> tuple[Array, Array]:
    """Centres "n 2" and areas of half sizes "n" of the inclusive corners (0 for boxes without a size)."""
    boxes = box_lib.half_open_to_inclusive(boxes)
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    area = jnp.where(jnp.all(half > 0, axis=1), half[:, 0] * half[:, 1], 0)
    return (boxes[:, :2] + boxes[:, 2:]) / 2, area


def _robust_centre(offsets: Array, near: Array) -> Array:
    """Geometric-median-like centre of the offsets "n 3" marked by `near`, reweighted in each coordinate."""
    epsilon = jnp.finfo(offsets.dtype).eps

    def reweight(_, centre):
        weights = jnp.where(near[:, None], 1 / (jnp.abs(offsets - centre[None, :]) + epsilon), 0)
        total = jnp.sum(weights, axis=0)
        return jnp.sum(weights * offsets, axis=0) / jnp.where(total > 0, total, 1)

    return jax.lax.fori_loop(0, LOM_ITERATIONS, reweight, jnp.ones(3, offsets.dtype))
