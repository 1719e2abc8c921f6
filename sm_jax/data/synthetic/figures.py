"""Generated pairs with key-points: a figure of a class drawn twice, in other proportions, colours and places.

For trying things out without a data set, and as an example of the JSON form (`sources.pair_files`). Figures
are made of polygons and discs; key-points are corners and centres. NumPy and Pillow only.
"""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from sm_jax import platform
from sm_jax.data import order
from sm_jax.errors import ConfigError

VERSION = 1  # of how figures are drawn; another one draws all anew
SPLITS = ("train", "val", "test")
SIZES = ((150, 200), (200, 150), (180, 180))  # (height, width)
FINE = 3  # drawn so many times larger, then shrunk
NOISE = 12.0
DISC = 24  # corners of a disc


class Part(NamedTuple):
    """A filled polygon of a figure: corners in the unit square, and a colour (RGB) that varies little."""

    corners: tuple[tuple[float, float], ...]
    colour: tuple[int, int, int]


def _disc(x: float, y: float, radius: float) -> tuple[tuple[float, float], ...]:
    angles = 2 * np.pi * np.arange(DISC) / DISC
    return tuple(zip(x + radius * np.cos(angles), y + radius * np.sin(angles), strict=True))


def _box(x1: float, y1: float, x2: float, y2: float) -> tuple[tuple[float, float], ...]:
    return (x1, y1), (x2, y1), (x2, y2), (x1, y2)


FIGURES: dict[str, tuple[tuple[Part, ...], tuple[tuple[float, float], ...]]] = {
    "house": (
        (
            Part(_box(0.15, 0.45, 0.85, 1.0), (214, 190, 140)),
            Part(((0.05, 0.45), (0.5, 0.02), (0.95, 0.45)), (170, 60, 50)),
            Part(_box(0.58, 0.62, 0.75, 1.0), (90, 60, 40)),
            Part(_box(0.24, 0.58, 0.46, 0.78), (120, 180, 220)),
        ),
        ((0.05, 0.45), (0.5, 0.02), (0.95, 0.45), (0.15, 1.0), (0.85, 1.0), (0.24, 0.58), (0.58, 0.62)),
    ),
    "boat": (
        (
            Part(((0.02, 0.72), (0.98, 0.72), (0.8, 0.98), (0.2, 0.98)), (60, 80, 150)),
            Part(_box(0.46, 0.05, 0.5, 0.72), (110, 80, 50)),
            Part(((0.52, 0.1), (0.9, 0.66), (0.52, 0.66)), (235, 230, 210)),
            Part(((0.44, 0.2), (0.44, 0.66), (0.14, 0.66)), (210, 120, 90)),
        ),
        ((0.02, 0.72), (0.98, 0.72), (0.8, 0.98), (0.2, 0.98), (0.48, 0.05), (0.9, 0.66), (0.14, 0.66)),
    ),
    "car": (
        (
            Part(((0.0, 0.55), (0.15, 0.5), (0.85, 0.5), (1.0, 0.6), (1.0, 0.8), (0.0, 0.8)), (190, 50, 60)),
            Part(((0.22, 0.5), (0.34, 0.22), (0.68, 0.22), (0.8, 0.5)), (150, 190, 210)),
            Part(_disc(0.24, 0.8, 0.13), (40, 40, 45)),
            Part(_disc(0.76, 0.8, 0.13), (40, 40, 45)),
        ),
        (
            (0.0, 0.55),
            (1.0, 0.6),
            (0.34, 0.22),
            (0.68, 0.22),
            (0.24, 0.8),
            (0.76, 0.8),
            (0.22, 0.5),
            (0.8, 0.5),
        ),
    ),
    "lamp": (
        (
            Part(((0.32, 0.05), (0.68, 0.05), (0.9, 0.45), (0.1, 0.45)), (230, 190, 80)),
            Part(_box(0.46, 0.45, 0.54, 0.88), (90, 90, 95)),
            Part(_box(0.22, 0.88, 0.78, 0.98), (70, 60, 60)),
            Part(_disc(0.5, 0.5, 0.07), (250, 245, 220)),
        ),
        ((0.32, 0.05), (0.68, 0.05), (0.9, 0.45), (0.1, 0.45), (0.22, 0.98), (0.78, 0.98), (0.5, 0.5)),
    ),
}
"""Class -> its parts from back to front, and its key-points, all in the unit square."""


def draw(name: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A figure: uint8 (h, w, 3), and its key-points float64 (k, 2) in pixels with edges on integers."""
    height, width = SIZES[rng.integers(len(SIZES))]
    side = min(height, width) * rng.uniform(0.55, 0.8)
    turn, aspect, shear = rng.uniform(-0.15, 0.15), rng.uniform(0.8, 1.25), rng.uniform(-0.12, 0.12)
    linear = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    linear = linear @ np.array([[np.sqrt(aspect), shear], [0, 1 / np.sqrt(aspect)]]) * side
    bend = rng.uniform(-0.15, 0.15, 2)
    middle = np.array([width, height]) * rng.uniform(0.46, 0.54, 2)

    def place(xy) -> np.ndarray:
        xy = np.asarray(xy, np.float64) - 0.5
        return (xy + bend * xy[..., ::-1] ** 2) @ linear.T + middle

    parts, keypoints = FIGURES[name]
    low, high = (rng.integers(60, 200, 3) for _ in range(2))
    ramp = np.linspace(0, 1, height * FINE)[:, None, None]
    ground = np.broadcast_to(low * (1 - ramp) + high * ramp, (height * FINE, width * FINE, 3))
    canvas = Image.fromarray(np.ascontiguousarray(ground.astype(np.uint8)))
    pen = ImageDraw.Draw(canvas)
    for part in parts:
        colour = np.clip(np.array(part.colour) + rng.integers(-25, 26, 3), 0, 255)
        pen.polygon([tuple(xy) for xy in (place(part.corners) * FINE).tolist()], fill=tuple(colour.tolist()))
    pixels = np.asarray(canvas.resize((width, height), Image.Resampling.BOX), np.float64)
    pixels = pixels + rng.normal(0, NOISE, pixels.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8), place(keypoints)


def make(
    folder: str = "", *, num_train: int = 120, num_val: int = 24, num_test: int = 60, seed: int = 0
) -> Path:
    """Draws the pairs where they are not there yet; returns the path of their JSON.

    Pair i of a split is of class i modulo 4; every picture is drawn for one pair alone.

    Args:
      folder: where to, default `figures` in the user's cache folder.
      num_train, num_val, num_test: pairs of each split.
      seed: of everything.

    Raises:
      ConfigError: a number below 1.
    """
    counts = dict(zip(SPLITS, (num_train, num_val, num_test), strict=True))
    for split, count in counts.items():
        if count < 1:
            raise ConfigError(f"data.figures.num_{split}: must be at least 1, not {count}")
    root = Path(folder).expanduser() if folder else platform.cache_folder() / "figures"
    key = hashlib.sha256(json.dumps([VERSION, counts, seed]).encode()).hexdigest()[:12]
    path = root / key / "pairs.json"
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, (split, count) in enumerate(counts.items()):
        for index in range(count):
            name = tuple(FIGURES)[index % len(FIGURES)]
            entry = {"class": name, "split": split}
            for end, side in enumerate(("source", "target")):
                pixels, keypoints = draw(name, order.rng(seed, number, index, end))
                entry[side] = f"{split}_{index:04d}_{side}.png"
                Image.fromarray(pixels).save(path.parent / entry[side])
                entry[f"keypoints_{side}"] = np.round(keypoints, 2).tolist()
            entries.append(entry)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"pairs": entries}))
    partial.replace(path)
    return path
