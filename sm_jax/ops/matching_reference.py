"""The scores of `sm_jax.ops.matching` in float64 NumPy, by their definitions: slow, readable, no padding.

Arguments as there. For evaluation parity, and the oracle of the tests.
"""

import numpy as np

from sm_jax import boxes as box_lib
from sm_jax.ops.hough import vote_reference
from sm_jax.ops.matching import LOM_DISTANCE, LOM_ITERATIONS, LOM_SCALE, SMOOTHING


def scnet_scores(
    similarity, bins=None, *, geometry=None, outer_relu=True, vote_threshold=0.4, vote_bias=0.01
):
    """SCNet-A, -AG and -AG+."""
    similarity = np.asarray(similarity, np.float64)
    score = np.maximum(similarity, 0) if outer_relu else similarity
    if bins is None:
        return score
    inner = similarity if geometry is None else np.asarray(geometry, np.float64)
    return score * (vote_reference(np.maximum(np.maximum(inner, 0) - vote_threshold, 0), bins) + vote_bias)


def nam(similarity, gate):
    """Naive appearance matching."""
    return np.where(gate, np.maximum(np.asarray(similarity, np.float64), 0), 0)


def phm(similarity, bins, grid):
    """Probabilistic Hough matching."""
    similarity = np.maximum(np.asarray(similarity, np.float64), 0)
    votes = np.zeros(grid.size + 1)
    for row, numbers in zip(similarity, bins, strict=True):
        best = np.zeros(grid.size + 1)
        np.maximum.at(best, numbers, row)
        votes += best
    padded = np.pad(votes[1:].reshape(grid.shape), 2)
    smooth = np.zeros(grid.shape)
    scales, columns, rows = grid.shape
    for i, j, k in np.ndindex(5, 5, 5):
        weight = SMOOTHING[i] * SMOOTHING[j] * SMOOTHING[k]
        smooth += weight * padded[i : i + scales, j : j + columns, k : k + rows]
    return similarity * np.concatenate([[0], smooth.reshape(-1)])[bins]


def lom(scores, source_boxes, target_boxes, *, inplace=False):
    """Local offset matching."""
    read = np.array(scores, np.float64)
    written = read if inplace else read.copy()
    if not read.size:
        return written
    source_boxes, target_boxes = np.asarray(source_boxes, np.float64), np.asarray(target_boxes, np.float64)
    (source, source_area), (target, target_area) = _frames(source_boxes), _frames(target_boxes)
    ratio = np.zeros(read.shape)
    np.divide(source_area[:, None], target_area[None, :], out=ratio, where=target_area[None, :] > 0)
    shift = source[:, None, :] - target[None, :, :]
    offsets = np.concatenate([shift, ratio[..., None]], axis=2)
    near = box_lib.intersection(source_boxes, source_boxes) > 0
    for i in range(len(read)):
        neighbours = np.flatnonzero(near[i])
        best = read.max(axis=1)
        if not best.sum() > 0:
            written[i] = 0
            continue
        chosen = offsets[neighbours, read[neighbours].argmax(axis=1)]
        centre = np.ones(3)
        for _ in range(LOM_ITERATIONS if len(neighbours) else 0):
            away = np.abs(chosen - centre) + np.finfo(np.float64).eps
            centre = (chosen / away).sum(axis=0) / (1 / away).sum(axis=0)
        away = np.abs(offsets[i] - centre)
        closeness = np.exp(-LOM_DISTANCE * np.hypot(away[:, 0], away[:, 1]) - LOM_SCALE * away[:, 2])
        written[i] = read[i] * closeness * (best[neighbours].sum() / best.sum())
    return written


def _frames(boxes):
    boxes = box_lib.half_open_to_inclusive(boxes)
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    area = np.where(np.all(half > 0, axis=1), half[:, 0] * half[:, 1], 0)
    return (boxes[:, :2] + boxes[:, 2:]) / 2, area
