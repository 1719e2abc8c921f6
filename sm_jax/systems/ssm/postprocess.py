"""From coverage and boxes of cells to detections, on the host in NumPy.

Boxes are xyxy in pixels of the image. Source: the script released with SSM, NVIDIA's DetectNet clustering and
OpenCV's `groupRectangles` (specification, sec. 5).
"""

import numpy as np

from sm_jax import boxes as box_ops
from sm_jax.errors import ConfigError
from sm_jax.ops.nms import nms_chunked
from sm_jax.settings import nearest
from sm_jax.systems.ssm.model import STRIDE

THRESHOLD, VOTING_IOU, MERGING_IOU, NMS_IOU = 0.5, 0.4, 0.5, 0.5
MIN_HEIGHT, MAX_BOXES = 22, 50
"""DetectNet keeps boxes of so many pixels at least, and so many of them."""
METHODS = ("default", "released", "grouprect")


def decode(offsets: np.ndarray) -> np.ndarray:
    """Boxes "... h w 4" of offsets "... h w 4": those of each cell plus its corner; not clipped."""
    rows, columns = offsets.shape[-3:-1]
    y, x = np.mgrid[:rows, :columns] * STRIDE
    return offsets + np.stack([x, y, x, y], axis=-1).astype(offsets.dtype)


def vote(
    boxes: np.ndarray, coverage: np.ndarray, *, threshold: float = THRESHOLD, iterations: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The released voting: every cell above the threshold takes the mean of the boxes that agree with it.

    Of such a cell: its own box, and the boxes of all cells above the threshold that lie inside it (box / 16,
    truncated, clamped to the grid, inclusive) and overlap it by more than .4, weighted by their coverage; it
    is met again among them, so it counts twice. The new coverage is the sum of the weights / their number.
    A pass reads only what the one before it left.

    Args:
      boxes: (h, w, 4) of `decode`.
      coverage: (h, w).
      threshold: what coverage must be above.
      iterations: number of passes; the released script runs 1.

    Returns:
      float64 boxes (n, 4), coverage (n,), and the cells (n, 2) as (row, column), column by column, as the
      script walks. (There, cells below the threshold are kept as zero boxes of coverage 1; nothing reads
      them.)
    """
    height, width = coverage.shape
    columns, rows = np.nonzero(np.asarray(coverage).T > threshold)
    boxes = np.asarray(boxes, np.float64)[rows, columns]
    coverage = np.asarray(coverage, np.float64)[rows, columns]
    last = np.array([width, height, width, height]) - 1
    for _ in range(iterations):
        low_x, low_y, high_x, high_y = np.clip(np.trunc(boxes / STRIDE), 0, last).T[:, :, None]
        inside = (low_x <= columns) & (columns <= high_x) & (low_y <= rows) & (rows <= high_y)
        agree = inside & (box_ops.iou(boxes, boxes) > VOTING_IOU)
        weights = agree * coverage + np.diag(coverage)
        total = weights.sum(1)
        boxes = weights @ boxes / np.where(total > 0, total, 1)[:, None]
        coverage = total / (1 + agree.sum(1))
    return boxes, coverage, np.stack([rows, columns], axis=-1)


def merge_released(boxes: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """The released merging of voted boxes, with its habits; for parity.

    Boxes that overlap by at least .5 and differ in all four coordinates are linked. Of a group the script
    looks at one representative (of a union by rank, of equal ranks the later) and only at those linked with
    it that come after it: they give the outer bounds, the *sum* of coverages and the count. A group whose
    representative has none after it, such as a single box, vanishes.

    Args:
      boxes: (n, 4).
      coverage: (n,).

    Returns:
      (m, 6) x1 y1 x2 y2, summed coverage, count; in the order of each group's first box.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    linked = box_ops.iou(boxes, boxes) >= MERGING_IOU
    linked &= (boxes[:, None] != boxes[None]).all(-1)
    parent, rank = list(range(len(boxes))), [0] * len(boxes)

    def root(i):
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, j in np.argwhere(np.triu(linked)).tolist():
        a, b = root(i), root(j)
        if a != b:
            a, b = (b, a) if rank[a] > rank[b] else (a, b)
            parent[a] = b
            rank[b] += rank[a] == rank[b]
    rows = []
    for i in dict.fromkeys(root(i) for i in range(len(boxes))):
        after = i + 1 + np.flatnonzero(linked[i, i + 1 :])
        if len(after):
            bounds = [*boxes[after, :2].min(0), *boxes[after, 2:].max(0)]
            rows.append([*bounds, coverage[after].sum(), len(after)])
    return np.array(rows, np.float64).reshape(-1, 6)


def group_rectangles(
    rectangles: np.ndarray, *, group_threshold: int = 3, eps: float = 0.02
) -> tuple[np.ndarray, np.ndarray]:
    """OpenCV's `groupRectangles`: means of groups of similar rectangles.

    Two are similar where every side differs by at most eps * (the smaller width + the smaller height) / 2;
    groups are the connected components. Groups of no more than `group_threshold` are dropped, and those that
    lie inside (with a margin of eps) of another one, which has more than max(3, their own) members or while
    they have fewer than 3.

    Args:
      rectangles: (n, 4) int, x y width height.
      group_threshold: members that a group must exceed; 0 returns the input, each with weight 1.
      eps: tolerance.

    Returns:
      int (m, 4) rectangles and (m,) numbers of members, in the order of each group's first rectangle.
    """
    rectangles = np.asarray(rectangles, np.int64).reshape(-1, 4)
    if group_threshold <= 0 or not len(rectangles):
        return rectangles, np.ones(len(rectangles), np.int64)
    smaller = np.minimum(rectangles[:, None, 2:], rectangles[None, :, 2:]).sum(-1)
    edges = np.concatenate([rectangles[:, :2], rectangles[:, :2] + rectangles[:, 2:]], axis=-1)
    apart = np.abs(edges[:, None] - edges[None]).max(-1)
    groups = _components(apart <= eps * smaller * 0.5)
    weights = np.bincount(groups)
    sums = np.stack([np.bincount(groups, column) for column in rectangles.T], axis=-1)
    # Single precision, as there.
    means = np.rint(np.float32(sums) * (np.float32(1) / np.float32(weights))[:, None]).astype(np.int64)
    kept = weights > group_threshold
    means, weights = means[kept], weights[kept]
    low, high = means[:, :2], means[:, :2] + means[:, 2:]
    margin = np.rint(means[:, 2:] * eps).astype(np.int64)
    inside = (low[:, None] >= (low - margin)[None]).all(-1) & (high[:, None] <= (high + margin)[None]).all(-1)
    stronger = (weights[None] > np.maximum(3, weights)[:, None]) | (weights < 3)[:, None]
    np.fill_diagonal(inside, False)
    alone = ~(inside & stronger).any(1)
    return means[alone], weights[alone]


def _components(linked: np.ndarray) -> np.ndarray:
    """Number (n,) of the connected component of every node of a symmetric "n n", by first appearance."""
    number = np.full(len(linked), -1)
    count = 0
    for start in range(len(linked)):
        if number[start] >= 0:
            continue
        reached = np.zeros(len(linked), bool)
        front = np.arange(len(linked)) == start
        while front.any():
            reached |= front
            front = linked[front].any(0) & ~reached
        number[reached] = count
        count += 1
    return number


def detect(
    coverage: np.ndarray,
    boxes: np.ndarray,
    *,
    size: tuple[int, int] | None = None,
    threshold: float = THRESHOLD,
    method: str = "default",
    iterations: int = 1,
    iou: float = NMS_IOU,
    group_threshold: int = 3,
    eps: float = 0.02,
) -> tuple[np.ndarray, np.ndarray]:
    """Detections of one request in one image.

    "default": voting, clipping, greedy suppression; the score is the mean coverage of the cells that agree.
    "released": voting, boxes with a coordinate that is not positive dropped, merging; the score is a sum.
    "grouprect" (DetectNet): integer rectangles grouped, at least 22 pixels high, at most 50; the score is the
    logarithm of the number of cells.

    Args:
      coverage: (h, w) of `Predictor.search`.
      boxes: (h, w, 4) pixels.
      size: (height, width) that boxes are clipped to; None: that of all cells.
      threshold: coverage must be above it ("grouprect": at least it).
      method: one of `METHODS`.
      iterations: passes of the voting.
      iou: "default": of two boxes that overlap by more the one of lower score is dropped.
      group_threshold, eps: of `group_rectangles`.

    Returns:
      float32 boxes (n, 4) and scores (n,), descending; n may be 0.

    Raises:
      ConfigError: an unknown `method`.
    """
    if method not in METHODS:
        raise ConfigError(f"method={method!r} is not known{nearest(method, METHODS)}")
    size = size or (coverage.shape[0] * STRIDE, coverage.shape[1] * STRIDE)
    if method == "grouprect":
        found, scores = _grouped(boxes[coverage >= threshold], group_threshold, eps)
    else:
        found, scores, _ = vote(boxes, coverage, threshold=threshold, iterations=iterations)
        if method == "released":
            kept = (found > 0).all(-1)
            rows = merge_released(found[kept], scores[kept])
            found, scores = rows[:, :4], rows[:, 4]
        else:
            found = box_ops.clip(found, size)
            real = box_ops.nonempty(found)
            found, scores = found[real], scores[real]
            kept = nms_chunked(found, scores, iou=iou)
            found, scores = found[kept], scores[kept]
    order = np.argsort(-scores, kind="stable")
    return found[order].astype(np.float32), scores[order].astype(np.float32)


def _grouped(boxes: np.ndarray, group_threshold: int, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and scores of DetectNet's clustering."""
    corners = np.trunc(boxes).astype(np.int64).reshape(-1, 4)
    rectangles = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=-1)
    found, weights = group_rectangles(rectangles, group_threshold=group_threshold, eps=eps)
    tall = found[:, 3] >= MIN_HEIGHT
    found, scores = found[tall], np.log(weights[tall])
    best = np.argsort(-scores, kind="stable")[:MAX_BOXES]
    return box_ops.xywh_to_xyxy(found[best]), scores[best]
