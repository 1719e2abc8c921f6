"""Plane geometry of the generated scenes: homographies, quads, clipping. NumPy, xy pixel-edge coordinates."""

import numpy as np
from PIL import Image

UNIT = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])  # corners in the order tl, tr, br, bl


def homography(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The (3, 3) homography that takes the 4 points `source` (4, 2) to `target` (4, 2)."""
    rows = []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
    solved = np.linalg.solve(np.array(rows, np.float64), np.asarray(target, np.float64).ravel())
    return np.append(solved, 1.0).reshape(3, 3)


def project(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply a homography to points (n, 2) -> (n, 2)."""
    mapped = np.asarray(points, np.float64) @ matrix[:, :2].T + matrix[:, 2]
    return mapped[:, :2] / mapped[:, 2:]


def rotation(degrees: float, center: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """Rotation about `center` (x, y); positive turns the x axis towards the y axis (clockwise on screen)."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    x, y = center
    return np.array([[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y], [0, 0, 1.0]])


def rect(x1: float, y1: float, x2: float, y2: float) -> np.ndarray:
    """The corners (4, 2) of an axis-aligned rectangle, in the order tl, tr, br, bl."""
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], np.float64)


def area(polygon: np.ndarray) -> float:
    """Area of a simple polygon (n, 2)."""
    if len(polygon) < 3:
        return 0.0
    x, y = polygon[:, 0], polygon[:, 1]
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def clip(polygon: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The part (m, 2) of a convex polygon (n, 2) inside a frame of `size` (height, width); m may be 0."""
    for axis, limit, sign in ((0, 0.0, 1), (0, float(size[1]), -1), (1, 0.0, 1), (1, float(size[0]), -1)):
        kept: list[np.ndarray] = []
        for k in range(len(polygon)):
            a, b = polygon[k - 1], polygon[k]
            da, db = sign * (a[axis] - limit), sign * (b[axis] - limit)
            if (da < 0) != (db < 0):
                kept.append(a + (b - a) * (da / (da - db)))
            if db >= 0:
                kept.append(b)
        polygon = np.array(kept).reshape(-1, 2)
    return np.clip(polygon, 0.0, (float(size[1]), float(size[0])))  # rounding may leave it outside by an ulp


def bounds(polygon: np.ndarray) -> np.ndarray:
    """Axis-aligned bounds xyxy (4,) of points (n, 2)."""
    return np.concatenate([polygon.min(axis=0), polygon.max(axis=0)])


def warp(
    picture: Image.Image, quad: np.ndarray, size: tuple[int, int], *, border: tuple[float, float] = (0, 0)
) -> tuple[Image.Image, tuple[int, int]] | None:
    """`picture` warped onto `quad` (4, 2) of a frame of `size`: (patch, its xy corner), or None if outside.

    The picture less `border` (x, y) pixels on each side lands on the quad; a transparent border makes soft
    edges. The patch covers only the frame's part of the quad's bounds and one pixel around it.
    """
    x1, y1, x2, y2 = bounds(quad)
    left, top = max(0, int(np.floor(x1)) - 1), max(0, int(np.floor(y1)) - 1)
    right, bottom = min(size[1], int(np.ceil(x2)) + 1), min(size[0], int(np.ceil(y2)) + 1)
    if right <= left or bottom <= top:
        return None
    source = rect(*border, picture.width - border[0], picture.height - border[1])
    back = homography(quad - (left, top), source)
    data = tuple(back.ravel()[:8])
    patch = picture.transform(
        (right - left, bottom - top), Image.Transform.PERSPECTIVE, data, Image.Resampling.BICUBIC
    )
    return patch, (left, top)
