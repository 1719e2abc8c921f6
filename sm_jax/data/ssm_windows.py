"""Test windows and request crops of the SSM: planned from sizes and boxes alone, then cut from pixels.

A window is a part of the scaled picture, cut without further scaling; what lies beyond the picture is grey.
Source: SSM specification, section 4; the augmentation is that of NVIDIA's DetectNet example.
"""

from typing import NamedTuple

import numpy as np

from sm_jax import boxes as box_ops
from sm_jax.data import images, transforms

GREY = 127  # of padding: what the network subtracts from every channel
SHIFT = 32  # pixels that an augmented window may leave the picture by
SCALES, SCALE_SHARE = (0.8, 1.2), 0.4
HUE, COLOR_SHARE = 30.0, 0.8  # degrees either way; share of windows for hue and for saturation, each
DESATURATION = 0.8  # largest share of the saturation that is taken away


class Window(NamedTuple):
    """Where a test window lies and how it is changed.

    Attributes:
      size: (height, width) that the picture is resized to.
      origin: (x, y) of the window's corner in that picture; may be outside of it.
      flip: mirrored left to right.
      turn: of the hue, share of the circle.
      saturation: factor.
    """

    size: tuple[int, int]
    origin: tuple[int, int]
    flip: bool = False
    turn: float = 0.0
    saturation: float = 1.0


def plan(
    rng: np.random.Generator,
    size: tuple[int, int],
    anchor: np.ndarray | None,
    *,
    image_size: tuple[int, int],
    scale: float = 1.0,
    flips: bool = True,
    augment: bool = False,
) -> Window:
    """A random window of `image_size` (h, w) on a picture of `size` (h, w).

    Its place is uniform among those that hold all of `anchor` (xyxy, stored pixels; a larger box than the
    window then fills it), or among all with None. A picture smaller than the window lies anywhere in it.

    Args:
      scale: window pixels per stored pixel.
      augment: scale by 0.8 to 1.2, leave the picture by up to 32 pixels, turn the hue by up to 30 degrees,
        desaturate.
    """
    grown = augment and rng.random() < SCALE_SHARE
    scale *= rng.uniform(*SCALES) if grown else 1.0
    height, width = (max(round(side * scale), 1) for side in size)
    box = None if anchor is None else np.asarray(anchor, np.float64) * _factor(size, (height, width))
    shift = SHIFT if augment else 0
    origin = tuple(
        _start(rng, length, window, shift, None if box is None else box[[axis, axis + 2]])
        for axis, (length, window) in enumerate(((width, image_size[1]), (height, image_size[0])))
    )
    flip = bool(rng.random() < 0.5 and flips)
    turn, saturation = 0.0, 1.0
    if augment:
        turn = float(rng.uniform(-HUE, HUE) / 360) if rng.random() < COLOR_SHARE else 0.0
        saturation = float(1 - rng.uniform(0, DESATURATION)) if rng.random() < COLOR_SHARE else 1.0
    return Window((height, width), origin, flip, turn, saturation)


def boxes_in(
    boxes: np.ndarray, size: tuple[int, int], window: Window, image_size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (f32 (n, 4), a picture of `size`) in pixels of the window, clipped, and their visible shares."""
    scaled = boxes * _factor(size, window.size) - np.tile(np.array(window.origin, np.float32), 2)
    share = box_ops.coverage(scaled, np.array([0, 0, image_size[1], image_size[0]], np.float32))
    clipped = box_ops.clip(scaled, image_size)
    if window.flip:
        clipped[:, [0, 2]] = image_size[1] - clipped[:, [2, 0]]
    return clipped.astype(np.float32), share


def render(image: np.ndarray, window: Window, image_size: tuple[int, int]) -> np.ndarray:
    """The window as uint8 (h, w, 3) of a uint8 picture."""
    image = images.resize(image, window.size)
    (left, top), (height, width) = window.origin, image_size
    part = image[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)]
    canvas = np.full((height, width, 3), GREY, np.uint8)
    if part.size:
        part = transforms.recolor(part, turn=window.turn, saturation=window.saturation)
        y, x = max(-top, 0), max(-left, 0)
        canvas[y : y + part.shape[0], x : x + part.shape[1]] = part
    return canvas[:, ::-1] if window.flip else canvas


def best_share(boxes: np.ndarray, image_size: tuple[int, int], *, scale: float) -> np.ndarray:
    """The largest share of each box (f32 (n, 4), stored pixels) that a window can show, f32 (n,)."""
    sides = np.maximum((boxes[:, 2:] - boxes[:, :2]) * scale, 1e-6)
    return np.minimum(np.array(image_size[::-1], np.float32) / sides, 1.0).prod(axis=1)


def jitter(rng: np.random.Generator, box: np.ndarray, share: float) -> np.ndarray:
    """`box` (4,) with every edge moved by up to `share` of its side, either way; f32 (4,)."""
    sides = np.tile(box[2:] - box[:2], 2)
    return (box + rng.uniform(-share, share, 4) * sides).astype(np.float32)


def _factor(size: tuple[int, int], scaled: tuple[int, int]) -> np.ndarray:
    return np.array([scaled[1] / size[1], scaled[0] / size[0]] * 2, np.float32)


def _start(rng: np.random.Generator, length: int, window: int, shift: int, inside: np.ndarray | None) -> int:
    """Where a window starts on an axis of a picture of `length`, so that it holds the interval `inside`."""
    low, high = min(0, length - window) - shift, max(0, length - window) + shift
    if inside is not None:
        first, last = sorted((inside[1] - window, inside[0]))  # held as a whole, or filling the window
        first, last = int(np.ceil(first)), int(np.floor(last))
        low = min(max(low, min(first, last)), high)
        high = max(min(high, last), low)
    return int(rng.integers(low, high + 1))
