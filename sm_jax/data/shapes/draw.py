"""Filled shapes without anti-aliasing, and where they go: integer squares that overlap at most so much."""

import functools

import numpy as np

MAX_TRIES, MAX_RESTARTS = 200, 100
FEW = 16  # tries that mostly suffice


@functools.cache
def mask(shape: str, side: int) -> np.ndarray:
    """bool (side, side): the pixels of a shape in its square drawing box.

    A circle and a square touch all four sides; a triangle is equilateral, apex up, centred vertically, and
    touches left and right (its last row is full).
    """
    at = np.arange(side) + 0.5 - side / 2
    if shape == "square":
        inside = np.ones((side, side), bool)
    elif shape == "circle":
        inside = at[:, None] ** 2 + at[None, :] ** 2 <= (side / 2) ** 2
    else:
        top, bottom = extent(shape, side)
        half = (np.arange(side) - top + 1) / (bottom - top) * (side / 2)
        rows = (np.arange(side) >= top) & (np.arange(side) < bottom)
        inside = (np.abs(at)[None, :] <= half[:, None]) & rows[:, None]
    inside.flags.writeable = False
    return inside


def extent(shape: str, side: int) -> tuple[int, int]:
    """(first row, row after the last) that a shape covers in its drawing box of `side` rows."""
    if shape != "triangle":
        return 0, side
    height = round(side * 3**0.5 / 2)
    top = (side - height) // 2
    return top, top + height


def place(
    rng: np.random.Generator, sides: np.ndarray, size: tuple[int, int], *, max_iou: float
) -> np.ndarray | None:
    """Squares of the given sides, fully inside an image of `size` (height, width), i64 (n, 4) xyxy.

    Every square takes the first of at most `MAX_TRIES` uniform places at which its IoU with those before it
    is at most `max_iou`; if one finds none, all are placed anew. None after `MAX_RESTARTS` of that.
    """
    span = np.stack([size[1] - sides + 1, size[0] - sides + 1], axis=-1)[:, None, :]
    for _ in range(MAX_RESTARTS):
        tries = (rng.random((len(sides), MAX_TRIES, 2)) * span).astype(np.int64)
        placed: list[tuple[int, int, int, int]] = []
        for side, own in zip(sides.tolist(), tries, strict=True):
            corner = _first_free(placed, side, own[:FEW], max_iou)
            corner = corner or _first_free(placed, side, own[FEW:], max_iou)
            if corner is None:
                break
            placed.append(corner)
        if len(placed) == len(sides):
            return np.array(placed, np.int64)
    return None


def _first_free(placed, side, tries, max_iou) -> tuple[int, int, int, int] | None:
    for x, y in tries.tolist():  # so few that plain integers beat arrays
        for left, top, right, bottom in placed:
            width = min(x + side, right) - max(x, left)
            height = min(y + side, bottom) - max(y, top)
            if width > 0 and height > 0:
                common = width * height
                if common > max_iou * (side * side + (right - left) ** 2 - common):
                    break
        else:
            return x, y, x + side, y + side
    return None
