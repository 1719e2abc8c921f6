"""Two pictures side by side with the regions and points that were matched, for a report."""

import math

import numpy as np
from PIL import Image, ImageDraw

from sm_jax import boxes as box_lib
from sm_jax.draw import PAPER, colour_of

HEIGHT = 480  # of the pictures, in pixels
GAP = 16
APART = 0.3  # IoU up to which two source regions count as different places


def distinct(boxes: np.ndarray, count: int) -> np.ndarray:
    """Indices of the first `count` boxes of which none overlaps an earlier one by an IoU above `APART`."""
    kept: list[int] = []
    for index in range(len(boxes)):
        if len(kept) == count:
            break
        if not kept or box_lib.iou(boxes[index : index + 1], boxes[kept]).max() <= APART:
            kept.append(index)
    return np.array(kept, int)


def matches(
    source: np.ndarray,
    target: np.ndarray,
    source_boxes: np.ndarray,
    target_boxes: np.ndarray,
    *,
    source_points: np.ndarray | None = None,
    target_points: np.ndarray | None = None,
) -> Image.Image:
    """The pictures side by side; a match has one colour in both, and a line from centre to centre.

    Args:
      source, target: uint8 RGB (h, w, 3); scaled to one height.
      source_boxes, target_boxes: (k, 4) xyxy pixels, row by row a match.
      source_points, target_points: (p, 2) xy pixels, row by row the same point; a target that is NaN was not
        found: its source is a ring.
    """
    zooms = [HEIGHT / picture.shape[0] for picture in (source, target)]
    pictures = [
        Image.fromarray(picture).resize(
            (max(1, round(picture.shape[1] * zoom)), HEIGHT), Image.Resampling.BICUBIC
        )
        for picture, zoom in zip((source, target), zooms, strict=True)
    ]
    offset = pictures[0].width + GAP
    page = Image.new("RGB", (offset + pictures[1].width, HEIGHT), PAPER)
    page.paste(pictures[0], (0, 0))
    page.paste(pictures[1], (offset, 0))
    pen = ImageDraw.Draw(page)
    left = np.asarray(source_boxes, np.float64).reshape(-1, 4) * zooms[0]
    right = np.asarray(target_boxes, np.float64).reshape(-1, 4) * zooms[1] + [offset, 0, offset, 0]
    for index in range(len(left) - 1, -1, -1):  # the best comes last, on top
        colour = colour_of(index)
        for box in (left[index], right[index]):
            pen.rectangle(box.tolist(), outline=colour, width=3)
        pen.line([_centre(left[index]), _centre(right[index])], fill=colour, width=1)
    if source_points is not None and target_points is not None:
        for index, (start, end) in enumerate(
            zip(source_points * zooms[0], target_points * zooms[1], strict=True)
        ):
            if not np.isfinite(start).all():
                continue
            found = bool(np.isfinite(end).all())
            _dot(pen, start, colour_of(index), filled=found)
            if found:
                end = end + [offset, 0]
                _dot(pen, end, colour_of(index), filled=True)
                pen.line([tuple(start), tuple(end)], fill=colour_of(index), width=2)
    return page


def _centre(box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _dot(pen, at, colour, *, filled: bool, radius: int = 6):
    x, y = (float(np.clip(value, -math.pow(2, 14), math.pow(2, 14))) for value in at)
    pen.ellipse(
        [x - radius, y - radius, x + radius, y + radius], fill=colour if filled else None, outline=PAPER
    )
    pen.ellipse(
        [x - radius, y - radius, x + radius, y + radius], outline=PAPER if filled else colour, width=2
    )
