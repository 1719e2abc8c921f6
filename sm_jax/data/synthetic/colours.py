"""Which colour words a person would, would perhaps, and would not use for a product front.

A pixel is surely of a colour inside narrow bounds of hue, saturation and value, and possibly of it inside
wide ones. A front is "red" if at least `CLEAR` of it is surely red; if `POSSIBLE` of it might be red,
opinions differ, and no phrase should depend on it.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

CLEAR, POSSIBLE = 0.4, 0.2
VERSION = 1  # of the bounds below; stored results of another one are not used

# Hue in degrees (from, to; through 0 where from > to), saturation and value from 0 to 1.
_ANY = (0, 360)
_SURE = {
    "red": [((348, 8), (0.6, 1), (0.45, 1))],
    "orange": [((18, 38), (0.6, 1), (0.75, 1))],
    "yellow": [((45, 64), (0.45, 1), (0.7, 1))],
    "green": [((80, 166), (0.35, 1), (0.3, 1))],
    "blue": [((198, 246), (0.4, 1), (0.3, 1))],
    "purple": [((256, 300), (0.3, 1), (0.35, 1))],
    "pink": [((322, 348), (0.25, 0.75), (0.7, 1)), ((340, 8), (0.2, 0.5), (0.75, 1))],
    "brown": [((12, 36), (0.35, 1), (0.2, 0.55))],
    "white": [(_ANY, (0, 0.12), (0.85, 1))],
    "black": [(_ANY, (0, 1), (0, 0.2))],
}
_PERHAPS = {
    "red": [((335, 18), (0.4, 1), (0.25, 1))],
    "orange": [((8, 46), (0.4, 1), (0.5, 1))],
    "yellow": [((36, 72), (0.25, 1), (0.45, 1))],
    "green": [((62, 182), (0.15, 1), (0.2, 1))],
    "blue": [((172, 262), (0.2, 1), (0.2, 1))],
    "purple": [((242, 335), (0.15, 1), (0.25, 1))],
    "pink": [((300, 20), (0.12, 0.8), (0.5, 1))],
    "brown": [((0, 50), (0.2, 1), (0.15, 0.75))],
    "white": [(_ANY, (0, 0.25), (0.7, 1))],
    "black": [(_ANY, (0, 1), (0, 0.38))],
}
COLOURS = tuple(_SURE)


class Colours(NamedTuple):
    """Words that fit (`clear`), and words over which people would differ (`unclear`)."""

    clear: frozenset[str]
    unclear: frozenset[str]


def name(picture: np.ndarray) -> Colours:
    """The colours of a uint8 RGB or RGBA picture `(h, w, 3 or 4)`; transparent pixels do not count."""
    shown = picture[..., 3] > 127 if picture.shape[-1] == 4 else np.ones(picture.shape[:2], bool)
    pixels = np.ascontiguousarray(picture[..., :3][shown])[None]
    hsv = np.asarray(Image.fromarray(pixels).convert("HSV"), np.float32)[0] / 255
    shares = {word: (_share(hsv, _SURE[word]), _share(hsv, _PERHAPS[word])) for word in COLOURS}
    clear = frozenset(word for word, (sure, _) in shares.items() if sure >= CLEAR)
    perhaps = frozenset(word for word, (_, perhaps) in shares.items() if perhaps >= POSSIBLE)
    return Colours(clear, perhaps - clear)


def _share(hsv: np.ndarray, bounds: list) -> float:
    """Share of the pixels (n, 3) that lie inside one of the bounds."""
    inside = np.zeros(len(hsv), bool)
    for (start, end), saturation, value in bounds:
        hue = (hsv[:, 0] * 360 - start) % 360 <= (end - start) % 360 if end - start != 360 else True
        inside |= hue & _within(hsv[:, 1], saturation) & _within(hsv[:, 2], value)
    return float(inside.mean()) if len(hsv) else 0.0


def _within(values: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    return (values >= bounds[0]) & (values <= bounds[1])
