"""Which matches of two sets of boxes agree in offset: a grid over translation and scale, and its bins.

A match of a source box with a target box says where the source image would lie in the target: its
bottom-right corner, moved with the match, lands at (x, y), and areas change by the factor 2 ** s. Matches
that agree in the three share a bin (SCNet, ICCV 2017, sec. 3.2; Proposal Flow, CVPR 2016, sec. 3.1).

Bins depend on the boxes alone. They are computed here once, on the host in float64 NumPy: integer boxes
hit edges exactly, and float32 would put 1 in 1,000 to 10,000 matches in another bin than the original. Boxes
are the library's (half-open xyxy pixels); the originals' 1-based inclusive corners are made inside
(`boxes.half_open_to_inclusive`), so that a half size is (width - 1) / 2. Boxes are divided by their size: a
box that is not wider and higher than 1 pixel, mirrored or not finite has no valid match, like padding.
"""

from typing import NamedTuple

import numpy as np

from sm_jax import boxes as box_lib

_KINDS = {"scnet": (0.2, 40), "phm": (1.0, 20)}  # share of the cells of Proposal Flow per axis, scales
_MAX_CELLS, _MIN_CELL = 8000, 5.0  # of Proposal Flow: cells over x and y, pixels per cell
_MAX_SCALE = 4.0  # log2 of the area ratio
_MAX_ASPECT_CHANGE = 2.0


class Grid(NamedTuple):
    """Bins over the three numbers of a match.

    Attributes:
      scales, columns, rows: number of bins over s, x and y.
      width, height: extent in x and y (twice the target image); edges run from 1 to it.
    """

    scales: int
    columns: int
    rows: int
    width: float
    height: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the bins in memory; bin b (from 1) is element b - 1 of it."""
        return self.scales, self.columns, self.rows

    @property
    def size(self) -> int:
        """Number of bins."""
        return self.scales * self.columns * self.rows

    def edges(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Edges over x, y and s, float64, as start + k * (end - start) / n in this order of evaluation."""
        return (
            _edges(1.0, self.width, self.columns),
            _edges(1.0, self.height, self.rows),
            _edges(-_MAX_SCALE, _MAX_SCALE, self.scales),
        )


def grid(target_size: tuple[float, float], *, kind: str = "scnet") -> Grid:
    """The grid for a target image of (height, width) pixels: "scnet" (18 x 18 x 40 at 224 x 224) or "phm".

    Every axis has at least one bin, also for an image of a few pixels.
    """
    if kind not in _KINDS:
        raise ValueError(f"kind is {kind!r}, expected one of {sorted(_KINDS)}")
    share, scales = _KINDS[kind]
    height, width = (2.0 * float(side) for side in target_size)
    if not min(height, width) > 0:
        raise ValueError(f"target_size is {tuple(target_size)}, expected positive numbers")
    cell = max(np.sqrt(width * height / _MAX_CELLS), _MIN_CELL)
    columns, rows = (max(int(np.floor(share * side / cell + 0.5)), 1) for side in (width, height))
    return Grid(scales, columns, rows, width, height)


def bins(
    source_boxes: np.ndarray,
    target_boxes: np.ndarray,
    source_size: tuple[float, float],
    target_size: tuple[float, float],
    *,
    kind: str = "scnet",
    swap_reference: bool = False,
) -> np.ndarray:
    """The bin of every match.

    Args:
      source_boxes: "n 4" xyxy pixels of the source image.
      target_boxes: "m 4" xyxy pixels of the target image.
      source_size, target_size: (height, width) in pixels.
      kind: the grid, see `grid`.
      swap_reference: the point that is moved is (height, width) instead of (width, height), as in the
        published Proposal Flow code; the same for square images.

    Returns:
      int32 "n m": bin from 1 to `grid(target_size, kind=kind).size`, ordered by scale, column, row; 0 for a
      match that is invalid: outside the grid, the aspect ratio changes by a factor of 2 or more, or a box has
      no size.
    """
    cells = grid(target_size, kind=kind)
    valid = aspect_gate(source_boxes, target_boxes)
    values = _offsets(source_boxes, target_boxes, source_size, swap_reference, valid)
    # largest k with edge k <= value, so that a value on an edge goes up
    column, row, scale = (
        np.searchsorted(edges, value, side="right")
        for edges, value in zip(cells.edges(), values, strict=True)
    )
    inside = np.ones(column.shape, bool)
    for index, count in ((column, cells.columns), (row, cells.rows), (scale, cells.scales)):
        inside &= (index >= 1) & (index <= count)
    linear = row + ((column - 1) + (scale - 1) * cells.columns) * cells.rows
    table = np.zeros(valid.shape, np.int32)
    table[valid] = np.where(inside, linear, 0)
    return table


def spread(table: np.ndarray, cells: Grid, *, step: int = 32) -> tuple[np.ndarray, Grid]:
    """The same bins numbered in a grid whose columns and rows are rounded up to a multiple of `step`.

    Nothing lies in the cells that are added, so that votes, smoothed or not, stay what they are, and one
    compiled function serves images of many sizes.

    Args:
      table: int32 "n m" of `bins`.
      cells: its grid.
      step: a positive number.

    Returns:
      int32 "n m", and a grid of which only the numbers of bins are to be used (its extent is 0).
    """
    columns, rows = (-(-count // step) * step for count in (cells.columns, cells.rows))
    scale, column, row = np.unravel_index(np.maximum(table - 1, 0), cells.shape)
    wide = Grid(cells.scales, columns, rows, 0.0, 0.0)
    linear = np.ravel_multi_index((scale, column, row), wide.shape) + 1
    return np.where(table > 0, linear, 0).astype(np.int32), wide


def edge_margin(
    source_boxes: np.ndarray,
    target_boxes: np.ndarray,
    source_size: tuple[float, float],
    target_size: tuple[float, float],
    *,
    kind: str = "scnet",
    swap_reference: bool = False,
) -> np.ndarray:
    """How safe each bin is from rounding: distance of a match to the nearest edge, in bin widths.

    Arguments as of `bins`. Returns float64 "n m": the least over x, y and s; infinite without a size.
    """
    cells = grid(target_size, kind=kind)
    sized = _has_size(source_boxes)[:, None] & _has_size(target_boxes)[None, :]
    values = _offsets(source_boxes, target_boxes, source_size, swap_reference, sized)
    margin = np.full(sized.shape, np.inf)
    distances = []
    for edges, value in zip(cells.edges(), values, strict=True):
        step = edges[1] - edges[0]
        nearest = np.clip(np.rint((value - edges[0]) / step), 0, len(edges) - 1).astype(int)
        distances.append(np.abs(value - edges[nearest]) / step)
    margin[sized] = np.min(distances, axis=0)
    return margin


def aspect_gate(source_boxes: np.ndarray, target_boxes: np.ndarray) -> np.ndarray:
    """Bool "n m": width / height changes by less than a factor of 2; False where a box has no size."""
    source, target = _inclusive(source_boxes), _inclusive(target_boxes)
    with np.errstate(divide="ignore", invalid="ignore"):
        aspects = [(b[:, 2] - b[:, 0]) / (b[:, 3] - b[:, 1]) for b in (source, target)]
        change = aspects[1][None, :] / aspects[0][:, None]
    sized = _has_size(source_boxes)[:, None] & _has_size(target_boxes)[None, :]
    return sized & (change > 1 / _MAX_ASPECT_CHANGE) & (change < _MAX_ASPECT_CHANGE)


def _offsets(source_boxes, target_boxes, source_size, swap_reference, where):
    """(x, y, s) of the matches marked by `where`, each a float64 vector."""
    height, width = source_size
    reference = (height, width) if swap_reference else (width, height)
    i, j = np.nonzero(where)
    (cx_i, cy_i, hw_i, hh_i), (cx_j, cy_j, hw_j, hh_j) = _frames(source_boxes), _frames(target_boxes)
    with np.errstate(divide="ignore", invalid="ignore"):
        u, v = (reference[0] - cx_i) / hw_i, (reference[1] - cy_i) / hh_i
    x = hw_j[j] * u[i] + cx_j[j]
    y = hh_j[j] * v[i] + cy_j[j]
    return x, y, np.log2((hw_j * hh_j)[j] / (hw_i * hh_i)[i])


def _frames(boxes):
    """Centre x, centre y, half width, half height of the inclusive corners."""
    x1, y1, x2, y2 = _inclusive(boxes).T
    return (x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) / 2, (y2 - y1) / 2


def _has_size(boxes):
    x1, y1, x2, y2 = _inclusive(boxes).T
    with np.errstate(invalid="ignore"):
        return np.isfinite(x1 + x2 + y1 + y2) & (x2 > x1) & (y2 > y1)


def _inclusive(boxes):
    return box_lib.half_open_to_inclusive(np.asarray(boxes, np.float64).reshape(-1, 4))


def _edges(start, end, count):
    return start + np.arange(count + 1) * (end - start) / count
