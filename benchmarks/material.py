"""Weights and pictures for measurements, made from a seed; NumPy and jax only."""

from typing import Any

import jax
import numpy as np
from PIL import Image

from sm_jax import weights
from sm_jax.data.transforms import normalize
from sm_jax.systems.os2d import model
from sm_jax.systems.os2d.transformnet import IDENTITY


def variables(
    config: model.ModelConfig, rng: np.random.Generator, *, backbone: str, transform: str, spread=0.01
) -> Any:
    """Variables of `config` in NumPy.

    `backbone` and `transform` are registry names or paths, "" draws random ones. A random TransformNet gives
    transformations around the identity; `spread` is the standard deviation of its last kernel.
    """
    shapes = jax.eval_shape(lambda key: model.init(config, key), jax.random.key(0))
    drawn = jax.tree.map_with_path(lambda path, leaf: random_leaf(rng, path[-1].key, leaf.shape), shapes)
    linear = drawn["params"]["transform"]["linear"]
    linear["kernel"] = rng.normal(0, spread, linear["kernel"].shape).astype(np.float32)
    linear["bias"] += np.asarray(IDENTITY[linear["bias"].shape[0]], np.float32)
    return weights.initialize(drawn, {"backbone": backbone, "transform": transform, "model": ""})[0]


def random_leaf(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A start for one tensor: what the model's own init would draw, without compiling it."""
    if name == "kernel":
        return rng.normal(0, (2 / np.prod(shape[:2] + shape[3:])) ** 0.5, shape).astype(np.float32)
    if name in ("scale", "var"):
        return np.ones(shape, np.float32)
    return rng.normal(0, 0.05, shape).astype(np.float32)


def make_picture(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Random structure at two scales, uint8 (h, w, 3)."""
    layers = []
    for step in (4, 32):
        coarse = rng.integers(0, 256, (size[0] // step + 2, size[1] // step + 2, 3), dtype=np.uint8)
        layers.append(np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)))
    return (sum(layer.astype(np.uint16) for layer in layers) // 2).astype(np.uint8)


def cut_out(rng: np.random.Generator, picture: np.ndarray, side: int) -> np.ndarray:
    """A random square of the picture, at most half of it, as a normalised class picture (side, side, 3)."""
    extent = max(1, min(*picture.shape[:2], 2 * side) // 2)
    top, left = (int(rng.integers(0, length - extent + 1)) for length in picture.shape[:2])
    part = Image.fromarray(picture[top : top + extent, left : left + extent])
    return normalize(np.asarray(part.resize((side, side), Image.Resampling.BILINEAR)))
