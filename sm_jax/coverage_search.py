"""From the coverage maps of an image's windows to what is found in the image. NumPy only."""

import numpy as np

from sm_jax import boxes as box_ops
from sm_jax import windows
from sm_jax.detections import RequestDetections
from sm_jax.requests import RequestBank
from sm_jax.systems.ssm import postprocess
from sm_jax.systems.ssm.model import STRIDE

_ANYTHING = float(np.finfo(np.float32).tiny)


class Options:
    """What all images of one call share: which requests mean which label, and how cells become boxes."""

    def __init__(self, bank: RequestBank, threshold: float, max_detections: int, iou: float, method: str):
        self.max_detections, self.iou, self.method = max_detections, iou, method
        limits = [threshold if request.threshold is None else request.threshold for request in bank]
        self.limits = np.maximum(np.array(limits, np.float32), 0)
        rows: dict[str, list[int]] = {}
        for index, request in enumerate(bank):
            rows.setdefault(request.label, []).append(index)
        self.rows = {label: np.array(indices) for label, indices in rows.items()}


class Search:
    """One image while its windows are searched.

    Attributes:
      windows: how many it has.
      done: how many of them were added.
    """

    def __init__(self, layout: windows.Layout, options: Options):
        self.windows, self.done = len(layout.corners), 0
        self._layout, self._options = layout, options
        self._coverage = {label: np.zeros(layout.map_shape, np.float32) for label in options.rows}
        self._found = {label: [_nothing()] for label in options.rows}

    def add(self, corner: tuple[int, int], coverage: np.ndarray, boxes: np.ndarray) -> None:
        """A window's answers: coverage (q, h, w) in 0..1 and boxes (q, h, w, 4) in its pixels."""
        self.done += 1
        inside, placed = self._layout.cells(corner)
        shown = np.zeros(coverage.shape[1:], bool)
        shown[inside] = True  # what the filling may cover is no answer
        coverage = np.where(shown, coverage, 0)
        above = np.where(coverage > self._options.limits[:, None, None], coverage, 0)
        for label, rows in self._options.rows.items():
            here = self._coverage[label][placed]
            np.maximum(here, coverage[rows].max(axis=0)[inside], out=here)
            if above[rows].any():
                self._found[label].append(self._boxes_of(rows, corner, above[rows], boxes[rows]))

    def result(self) -> RequestDetections:
        """What was found in all windows."""
        found = {}
        for label, parts in self._found.items():
            boxes, scores, queries, cut = (np.concatenate(part) for part in zip(*parts, strict=True))
            if self.windows > 1:
                keep = windows.merge(boxes, scores, cut, iou=self._options.iou)
            else:
                keep = np.argsort(-scores, kind="stable")
            keep = keep[: self._options.max_detections]
            found[label] = boxes[keep], scores[keep], queries[keep]
        return RequestDetections.build(self._layout.image, found, self._coverage, self._layout.map_box)

    def _boxes_of(self, rows, corner, coverage, boxes):
        """Boxes of one label (pixels of the image), their scores, requests, and whether the window cut them.

        Requests of a label compete: each cell belongs to the one with the highest coverage.
        """
        winner = coverage.argmax(axis=0)
        best = np.take_along_axis(coverage, winner[None], axis=0)[0]
        boxes = np.take_along_axis(boxes, winner[None, ..., None], axis=0)[0]
        found, scores = postprocess.detect(
            best,
            boxes,
            threshold=_ANYTHING,  # what is below the threshold of its request is 0 already
            iou=self._options.iou,
            method=self._options.method,
        )
        queries = rows[[winner[_best_cell(best, box)] for box in found]] if len(found) else rows[:0]
        cut = self._layout.cut(found, corner)
        placed = self._layout.to_image(found, corner)
        keep = box_ops.nonempty(placed)
        return placed[keep], scores[keep], queries[keep], cut[keep]


def _nothing():
    return np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros(0, bool)


def _best_cell(coverage: np.ndarray, box: np.ndarray) -> tuple[int, int]:
    """(row, column) of the cell with the highest coverage among those that the box touches."""
    size = np.array(coverage.shape[::-1])
    left, top = low = np.clip(np.floor(box[:2] / STRIDE), 0, size - 1).astype(int)
    right, bottom = np.clip(np.ceil(box[2:] / STRIDE), low + 1, size).astype(int)
    part = coverage[top:bottom, left:right]
    row, column = np.unravel_index(part.argmax(), part.shape)
    return top + row, left + column
