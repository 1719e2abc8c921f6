"""Post-processing of the semantic matcher: ours in NumPy, and its voting as loops, as the released script."""

import functools
from typing import Any

import numpy as np

from benchmarks.measure import Call
from sm_jax import boxes as box_ops
from sm_jax.systems.ssm import postprocess
from sm_jax.systems.ssm.model import STRIDE

OBJECTS = ((40.0, 60.0, 200.0, 220.0), (260.0, 40.0, 460.0, 140.0), (180.0, 260.0, 420.0, 470.0))
SIDE = 512  # that the objects lie in


def make_maps(side: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Coverage (h, w) and boxes (h, w, 4) of three objects that all of their cells know roughly."""
    rng = np.random.default_rng(seed)
    cells = side // STRIDE
    coverage, boxes = rng.uniform(0, 0.4, (cells, cells)), rng.uniform(0, side, (cells, cells, 4))
    for box in np.array(OBJECTS) * (side / SIDE):
        x1, y1, x2, y2 = (box / STRIDE).astype(int)
        inside = np.s_[y1 : y2 + 1, x1 : x2 + 1]
        coverage[inside] = rng.uniform(0.55, 1, coverage[inside].shape)
        boxes[inside] = box + rng.normal(0, 4, boxes[inside].shape)
    return coverage.astype(np.float32), boxes.astype(np.float32)


def vote_by_loops(
    boxes: np.ndarray, coverage: np.ndarray, *, threshold: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """One pass of the released voting, cell by cell: boxes (n, 4) and coverage (n,), column by column."""
    height, width = coverage.shape
    cells, scores = boxes.tolist(), coverage.tolist()
    found, weights = [], []
    for column in range(width):
        for row in range(height):
            if not scores[row][column] > threshold:
                continue
            own, weight, number = cells[row][column], scores[row][column], 1
            total = [value * weight for value in own]
            x1, x2 = (min(max(int(own[k] / STRIDE), 0), width - 1) for k in (0, 2))
            y1, y2 = (min(max(int(own[k] / STRIDE), 0), height - 1) for k in (1, 3))
            for y in range(y1, y2 + 1):
                for x in range(x1, x2 + 1):
                    share = scores[y][x]
                    if share > threshold and _iou(own, cells[y][x]) > postprocess.VOTING_IOU:
                        total = [a + b * share for a, b in zip(total, cells[y][x], strict=True)]
                        weight, number = weight + share, number + 1
            found.append([value / weight for value in total])
            weights.append(weight / number)
    return np.array(found).reshape(-1, 4), np.array(weights)


def _iou(a: list[float], b: list[float]) -> float:
    inner = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    outer = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner
    return inner / outer if outer > 0 else 0.0


def calls(side: int) -> dict[str, tuple[dict[str, Call], dict[str, Any]]]:
    """By the name of a row: its calls, and facts about them."""
    coverage, boxes = make_maps(side)

    def done(function):
        return Call(function, lambda result: result)

    ours, loops = postprocess.vote(boxes, coverage), vote_by_loops(boxes, coverage)
    apart = {name: float(np.abs(ours[i] - loops[i]).max()) for i, name in enumerate(("box_px", "score"))}
    voting = {
        "ours": done(lambda: postprocess.vote(boxes, coverage)),
        "loops": done(lambda: vote_by_loops(boxes, coverage)),
    }
    whole = {
        kind: done(functools.partial(postprocess.detect, coverage, boxes, method=kind))
        for kind in ("default", "released")
    }
    overlaps = box_ops.iou(np.array(OBJECTS) * (side / SIDE), whole["default"]()[0])
    facts = {"locations": len(ours[0])}
    found = {"objects found": int((overlaps > 0.9).any(1).sum()), "detections": overlaps.shape[1]}
    return {
        "voting, one request": (voting, {**facts, "agreement": {"loops": apart}}),
        "post-processing, one request": (whole, {**facts, "agreement": found}),
    }
