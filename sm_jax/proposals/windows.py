"""Proposals that do not look at the picture: at random places, or on regular grids.

Each function gives candidates for a `size` = (height, width): xyxy half-open boxes with integer coordinates
inside the picture. Source: SCNet specification, sec. 6 (constants of the published Proposal Flow code).
"""

import math

import numpy as np

ROUNDS = 4  # candidates per box asked for, of the random methods
CENTRES = ((0.031, 0.974), (0.065, 0.9347))  # of uniform boxes, x then y, as shares of the picture
ROOT_AREAS = (math.sqrt(0.00096), math.sqrt(0.98233))  # of uniform boxes, as shares of the picture's
LOG_ASPECTS = (math.log2(0.190476), math.log2(4.66667))  # width over height
# of normally distributed boxes: log2(width / height), root of the area share, centre x, centre y
MEAN = (-0.2205, 0.3297, 0.5036, 0.5370)
COVARIANCE = (
    (0.855, 0.0532, -0.0028, 0.0087),
    (0.0532, 0.0596, -0.0002, 0.0040),
    (-0.0028, -0.0002, 0.0551, -0.0006),
    (0.0087, 0.0040, -0.0006, 0.0324),
)
WINDOW = 64  # pixels, of the sliding window
SCALES = tuple(0.15 * (0.8 / 0.15) ** (i / 4) for i in range(5))  # of the grid: root of the area share
ASPECTS = (0.5, 1.0, 2.0)  # of the grid, width over height
MARGIN = 0.01  # the grid keeps this share away from the border, as the border filter asks


def uniform(size: tuple[int, int], n: int, *, rng: np.random.Generator) -> np.ndarray:
    """`4 n` boxes whose centre, root of the area and logarithm of the aspect are uniform."""
    count = ROUNDS * n
    x, y = (rng.uniform(*ends, count) for ends in CENTRES)
    return _boxes(size, rng.uniform(*LOG_ASPECTS, count), rng.uniform(*ROOT_AREAS, count), x, y)


def gaussian(size: tuple[int, int], n: int, *, rng: np.random.Generator) -> np.ndarray:
    """`4 n` boxes with the means and covariances of objects; draws without a positive area are dropped."""
    return _boxes(size, *rng.multivariate_normal(MEAN, COVARIANCE, ROUNDS * n).T)


def sliding(size: tuple[int, int], n: int, *, window: int = WINDOW) -> np.ndarray:
    """About `3 n` square windows on a regular grid; a side of the picture below `window` shortens it."""
    height, width = size
    w, h = min(window, width), min(window, height)
    stride = math.sqrt(max((width - w) * (height - h), 1) / (3 * n))
    if width == w or height == h:
        stride = max(width - w, height - h, 1) / (3 * n)
    return _on_grid((0, 0, width, height), w, h, stride, stride)


def grid(size: tuple[int, int], n: int) -> np.ndarray:
    """Boxes of 5 scales and 3 aspects, at strides in proportion to their sides.

    The stride is the largest that gives at least `n` boxes (a small picture has fewer). They fill the picture
    but for its margin of 1 %.
    """
    height, width = size
    area = (
        *(math.floor(MARGIN * length) for length in (width, height)),
        *(max(math.ceil((1 - MARGIN) * length) - 1, 1) for length in (width, height)),
    )
    low, high = 1 / 512, 1.0
    fewest = _multiscale(size, area, high)
    if len(fewest) >= n:
        return fewest
    for _ in range(12):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if len(_multiscale(size, area, middle)) >= n else (low, middle)
    return _multiscale(size, area, low)


def _multiscale(size, area, share: float) -> np.ndarray:
    height, width = size
    found = []
    for scale in SCALES:
        side = scale * math.sqrt(height * width)
        for aspect in ASPECTS:
            w, h = side * math.sqrt(aspect), side / math.sqrt(aspect)
            w, h = min(max(round(w), 1), area[2] - area[0]), min(max(round(h), 1), area[3] - area[1])
            found.append(_on_grid(area, w, h, max(share * w, 1), max(share * h, 1)))
    return np.unique(np.concatenate(found), axis=0)


def _on_grid(area, w: int, h: int, stride_x: float, stride_y: float) -> np.ndarray:
    """Windows of `w` x `h` evenly spread over `area` (xyxy), at most about the strides apart."""
    left, top, right, bottom = area
    xs = np.unique(np.rint(np.linspace(left, right - w, 1 + math.ceil((right - w - left) / stride_x))))
    ys = np.unique(np.rint(np.linspace(top, bottom - h, 1 + math.ceil((bottom - h - top) / stride_y))))
    x, y = (part.ravel() for part in np.meshgrid(xs, ys))
    return np.stack([x, y, x + w, y + h], 1).astype(np.int32)


def _boxes(size, log_aspect, root_area, x, y) -> np.ndarray:
    """Rounded boxes clipped to the picture; those with nothing left are dropped."""
    height, width = size
    side = root_area * math.sqrt(height * width)
    w, h = side * 2 ** (log_aspect / 2), side * 2 ** (-log_aspect / 2)
    corners = np.stack([x * width - w / 2, y * height - h / 2, x * width + w / 2, y * height + h / 2], 1)
    corners = np.rint(np.clip(corners, 0, [width, height, width, height])).astype(np.int32)
    return corners[(root_area > 0) & (corners[:, 2:] > corners[:, :2]).all(1)]
