"""The methods by name: from a picture to a fixed number of boxes, before any caching."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from sm_jax.data.images import resize
from sm_jax.errors import ConfigError
from sm_jax.proposals import opencv, precomputed, prim, windows
from sm_jax.settings import nearest

MARGIN = 0.01


def _prim(image, n, rng, *, draws: int = prim.DRAWS, side: int = 512):
    """Randomised Prim, `draws * n` groups; a picture with a longer side above `side` is shrunk to it."""
    for name, value in (("draws", draws), ("side", side)):
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"proposals: {name}={value!r} is not a whole number from 1 up")
    size = image.shape[:2]
    small = [max(round(length * min(side / max(size), 1)), 1) for length in size]
    boxes = prim.boxes(resize(image, tuple(small), "box"), draws * n, rng=rng)
    ratio = np.array([size[1] / small[1], size[0] / small[0]] * 2)
    return np.rint(boxes * ratio)


def _uniform(image, n, rng):
    return windows.uniform(image.shape[:2], n, rng=rng)


def _gaussian(image, n, rng):
    return windows.gaussian(image.shape[:2], n, rng=rng)


def _sliding(image, n, rng, *, window: int = windows.WINDOW):
    if not isinstance(window, int) or window < 1:
        raise ConfigError(f"proposals: window={window!r} is not a whole number from 1 up")
    return windows.sliding(image.shape[:2], n, window=window)


def _grid(image, n, rng):
    return windows.grid(image.shape[:2], n)


def _selective_search(image, n, rng, *, mode: str = "quality"):
    return opencv.selective_search(image, mode=mode)


def _edge_boxes(image, n, rng, *, min_score: float = opencv.MIN_SCORE):
    if not isinstance(min_score, (int, float)) or not 0 <= min_score < 1:
        raise ConfigError(f"proposals: min_score={min_score!r} is not a number in [0, 1)")
    return opencv.edge_boxes(image, n, min_score=min_score)


METHODS: dict[str, Callable] = {
    "prim": _prim,
    "selective_search": _selective_search,
    "edge_boxes": _edge_boxes,
    "uniform": _uniform,
    "gaussian": _gaussian,
    "sliding": _sliding,
    "grid": _grid,
    "precomputed": precomputed.read,
}
RANKED = ("edge_boxes",)  # the best first: the first n are taken instead of any n


def check_options(method: str, options: dict[str, Any]) -> None:
    """Raise `ConfigError` for an unknown method, or an option that it does not have."""
    if method not in METHODS:
        raise ConfigError(f"proposals: unknown method {method!r}{nearest(method, METHODS)}")
    parameters = inspect.signature(METHODS[method]).parameters.values()
    known = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            hint = nearest(name, known) if known else "; it has none"
            raise ConfigError(f"proposals: the method {method!r} has no option {name!r}{hint}")


def border_filter(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Which boxes stay clear of the picture's border by 1 %, or reach it on all four sides.

    Args:
      boxes: `(k, 4)` xyxy, half-open; compared as pixels counted from 1, as published.
      size: (height, width).

    Returns:
      `(k,)` bool. Source: SCNet specification, sec. 4 step 1.
    """
    height, width = size
    low = boxes[:, :2] + 1 > MARGIN * np.array([width, height])
    high = boxes[:, 2:] < (1 - MARGIN) * np.array([width, height])
    # of a picture under 100 pixels the first pixel is clear of the border by the published rule
    whole = (boxes[:, :2] <= MARGIN * np.array([width, height])).all(1) & ~high.any(1)
    return (low & high).all(1) | whole


def compute(
    image: np.ndarray, n: int, *, method: str, rng: np.random.Generator, fill: bool, options: dict[str, Any]
) -> np.ndarray:
    """Between 1 and `n` distinct boxes that pass the border filter; float32 `(k, 4)`.

    `n` of them at random, of a ranked method the best. The whole picture, where a method finds nothing;
    with `fill` the rest comes from the grid.
    """
    size = image.shape[:2]
    found = np.asarray(METHODS[method](image, n, rng, **options), np.float32).reshape(-1, 4)
    boxes = _choose(found, size, n, None if method in RANKED else rng)
    if fill and len(boxes) < n:
        more = _choose(np.asarray(windows.grid(size, 2 * n), np.float32), size, 2 * n, rng)
        boxes = _distinct(np.concatenate([boxes, more]))[:n]
    if not len(boxes):
        boxes = _whole(size)
    return boxes


def read_precomputed(image: Any, size: tuple[int, int], n: int, options: dict[str, Any]) -> np.ndarray:
    """The first `n` stored boxes, with neither filter nor draw; the whole picture where there are none."""
    boxes = precomputed.read(image, size, **options)[:n]
    return boxes if len(boxes) else _whole(size)


def _whole(size: tuple[int, int]) -> np.ndarray:
    return np.array([[0, 0, size[1], size[0]]], np.float32)


def _choose(boxes: np.ndarray, size: tuple[int, int], n: int, rng: np.random.Generator | None) -> np.ndarray:
    boxes = _distinct(boxes)
    boxes = boxes[border_filter(boxes, size)]
    if rng is not None and len(boxes):
        boxes = boxes[rng.permutation(len(boxes))]
    return boxes[:n]


def _distinct(boxes: np.ndarray) -> np.ndarray:
    """Each box once, in the order of their first appearance."""
    _, first = np.unique(boxes, axis=0, return_index=True)
    return boxes[np.sort(first)]
