"""Non-maximum suppression: exact greedy with a fixed output size, the full mask, and the published scheme.

Greedy: take boxes by descending score (ties by lower index), drop every later box whose IoU with a kept one
is strictly greater than the threshold. Scores that are not finite, and boxes outside `where`, are never kept.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax

from sm_jax import boxes as box_ops


def nms(boxes, scores, *, iou, size, where=None, block=512):
    """The first `size` boxes of exact greedy suppression: boxes "n 4", scores "n" -> (indices, valid) "size".

    indices (int32) are in descending score, 0 where not valid. Written for one class; for many use `lax.map`
    (working memory is about `block` squared bytes per class) or `vmap`.

    Works on the `block` best candidates at a time (`top_k`): among them, suppression is iterated to its
    fixpoint, which is the greedy answer and needs few rounds. A next block is fetched only while fewer than
    `size` boxes are kept and candidates remain, so the result is exact for any `block`.
    """
    count = scores.shape[0]
    if count == 0 or size == 0:
        return jnp.zeros((size,), jnp.int32), jnp.zeros((size,), bool)
    block = min(block, count)
    earlier = jnp.arange(block)[:, None] < jnp.arange(block)[None, :]

    def unfinished(state):
        remaining, _, _, kept = state
        return (kept < size) & (jnp.max(remaining) > -jnp.inf)

    def step(state):
        remaining, kept_boxes, indices, kept = state
        best, candidates = lax.top_k(remaining, block)
        candidate_boxes = boxes[candidates]
        covered = (box_ops.iou(kept_boxes, candidate_boxes) > iou) & (jnp.arange(size) < kept)[:, None]
        beats = (box_ops.iou(candidate_boxes, candidate_boxes) > iou) & earlier
        alive = _fixpoint(beats, (best > -jnp.inf) & ~jnp.any(covered, axis=0))
        # the r-th survivor goes to place kept + r, everything else out of bounds
        place = jnp.where(alive, kept + jnp.cumsum(alive) - 1, size)
        indices = indices.at[place].set(candidates, mode="drop")
        kept_boxes = kept_boxes.at[place].set(candidate_boxes, mode="drop")
        remaining = remaining.at[candidates].set(-jnp.inf)
        return remaining, kept_boxes, indices, jnp.minimum(kept + jnp.sum(alive), size)

    nothing = jnp.zeros((size, 4), boxes.dtype), jnp.zeros((size,), jnp.int32), jnp.int32(0)
    _, _, indices, kept = lax.while_loop(unfinished, step, (_usable(scores, where), *nothing))
    return indices, jnp.arange(size) < kept


def nms_all(boxes, scores, *, iou, where=None):
    """Exact greedy suppression of everything: boxes "n 4", scores "n" -> keep mask "n".

    The plain definition, one pass per kept box over all others: for evaluation parity, and the oracle of
    `nms`.
    """
    count = scores.shape[0]
    if count == 0:
        return jnp.zeros((0,), bool)
    scores = _usable(scores, where)
    order = jnp.argsort(scores, descending=True, stable=True)
    ranked, rank = boxes[order], jnp.arange(count)

    def unfinished(state):
        return jnp.any(state[0])

    def step(state):
        alive, keep = state
        first = jnp.min(jnp.where(alive, rank, count))
        near = box_ops.iou(lax.dynamic_slice_in_dim(ranked, first, 1), ranked)[0] > iou
        return alive & ~near & (rank != first), keep.at[first].set(True)

    start = scores[order] > -jnp.inf, jnp.zeros((count,), bool)
    _, keep = lax.while_loop(unfinished, step, start)
    return jnp.zeros((count,), bool).at[order].set(keep)


def nms_chunked(boxes, scores, *, iou, chunk=10_000, score_threshold=-np.inf):
    """The published OS2D scheme, for parity with its figures: NumPy in, kept indices out (int64).

    Boxes are suppressed in chunks of `chunk` in input order, each chunk on its own; the survivors (each
    chunk's by descending score) are joined and the pass is repeated until it had one chunk or removed
    nothing. Above `chunk` boxes this differs from greedy suppression and may keep duplicates across chunks.
    Only scores strictly above `score_threshold` take part (NaN never does).
    """
    boxes, scores = np.asarray(boxes, np.float32), np.asarray(scores)
    kept = np.flatnonzero(scores > score_threshold)
    done = len(kept) == 0
    while not done:
        parts = [kept[start : start + chunk] for start in range(0, len(kept), chunk)]
        survivors = np.concatenate([part[_greedy(boxes[part], scores[part], iou)] for part in parts])
        done = len(parts) == 1 or len(survivors) == len(kept)
        kept = survivors
    return kept


def _greedy(boxes, scores, iou):
    """Kept positions of greedy suppression by descending score (stable), in NumPy."""
    order = np.argsort(-scores, kind="stable")
    ranked = np.ascontiguousarray(boxes[order].T)  # rows x1, y1, x2, y2, so that every operand is contiguous
    areas = box_ops.area(boxes[order])
    kept = []
    while len(order):
        kept.append(order[0])
        width = np.minimum(ranked[2, 1:], ranked[2, 0]) - np.maximum(ranked[0, 1:], ranked[0, 0])
        height = np.minimum(ranked[3, 1:], ranked[3, 0]) - np.maximum(ranked[1, 1:], ranked[1, 0])
        common = np.maximum(width, 0) * np.maximum(height, 0)
        union = areas[1:] + areas[0] - common
        near = common / np.where(union > 0, union, 1) > iou
        rest = 1 + np.flatnonzero(~near)
        order, ranked, areas = order[rest], ranked[:, rest], areas[rest]
    return np.array(kept, np.int64)


def _usable(scores, where):
    """Scores as float32, -inf where they are not finite or masked out."""
    usable = jnp.isfinite(scores) if where is None else jnp.isfinite(scores) & where
    return jnp.where(usable, scores.astype(jnp.float32), -jnp.inf)


def _fixpoint(beats, alive):
    """Greedy answer among ranked candidates: beats[j, i] means that j is earlier than i and overlaps it.

    keep = alive and not beaten by a kept one, iterated until nothing changes. The first r ranks are right
    after r rounds, so it ends, and its only fixpoint is the greedy answer.
    """

    def step(state):
        keep, _ = state
        return alive & ~jnp.any(beats & keep[:, None], axis=0), keep

    def changing(state):
        return jnp.any(state[0] != state[1])

    return lax.while_loop(changing, step, step((alive, alive)))[0]
