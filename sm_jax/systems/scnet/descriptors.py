"""Untrained vectors of boxes for NAM, PHM and LOM: HOG, and RoI features of a backbone.

Similarity of such vectors is the cosine after subtracting the mean over all boxes of both pictures, which
stands in for the whitening of the published Proposal Flow (its statistics were not published). Source:
Proposal Flow (CVPR 2016), sec. 5; specification, sec. 5 and 10.
"""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

Array = jax.Array

PATCH, CELL, ORIENTATIONS, BLOCK = 64, 8, 9, 2
"""Of HOG: pixels of a patch's and a cell's side, bins over 180 degrees, cells of a block's side."""
HOG_CHANNELS = (PATCH // CELL - BLOCK + 1) ** 2 * BLOCK**2 * ORIENTATIONS
CLIP, EPSILON = 0.2, 1e-5
CELLS = 3
"""Rows and columns of untrained RoI features: 7 as in the embeddings' input would be 50,176 channels of a box
of ResNet-50, 200 MB for a picture's 1000 boxes."""
FEWEST = 10
"""Boxes of both pictures together from which on their mean says something: of two, the centred vectors always
are opposite."""
TINY = 1e-10
"""Added to squared lengths."""


def patches(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """What lies in boxes, as squares: uint8 "h w 3", "n 4" xyxy pixels -> uint8 "n 64 64 3".

    Bilinear, smoothed when shrinking. Boxes are cut to the picture; one with nothing left is black.
    """
    height, width = image.shape[:2]
    picture = Image.fromarray(image)
    found = np.zeros((len(boxes), PATCH, PATCH, 3), np.uint8)
    cut = np.clip(np.nan_to_num(np.asarray(boxes, np.float64)), 0, [width, height, width, height])
    for row in np.flatnonzero((cut[:, 2:] > cut[:, :2]).all(axis=1)):
        box = tuple(cut[row].tolist())
        found[row] = np.asarray(picture.resize((PATCH, PATCH), Image.Resampling.BILINEAR, box=box))
    return found


def hog(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Histograms of oriented gradients of boxes: uint8 "h w 3", "n 4" xyxy pixels -> f32 "n 1764".

    Of a 64 x 64 patch: 8 x 8 cells, 9 unsigned orientations, blocks of 2 x 2 cells normalised by L2-Hys; of
    the three colours the one with the strongest gradient counts, as in scikit-image's `hog`, which
    `hog_reference` is; all boxes at once here.
    """
    squares = patches(image, boxes)
    return np.concatenate([_hog(part) for part in np.array_split(squares, len(squares) // 64 + 1)])


def hog_reference(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """`hog` by scikit-image, box after box."""
    from skimage import feature

    options = {"pixels_per_cell": (CELL, CELL), "cells_per_block": (BLOCK, BLOCK), "block_norm": "L2-Hys"}
    rows = [
        feature.hog(patch, orientations=ORIENTATIONS, channel_axis=-1, **options)
        for patch in patches(image, boxes)
    ]
    return np.array(rows, np.float32).reshape(len(rows), HOG_CHANNELS)


def _hog(squares: np.ndarray) -> np.ndarray:
    x = squares.astype(np.float32)
    down, right = np.zeros_like(x), np.zeros_like(x)  # the outermost rows and columns have no gradient
    down[:, 1:-1] = x[:, 2:] - x[:, :-2]
    right[:, :, 1:-1] = x[:, :, 2:] - x[:, :, :-2]
    strongest = np.argmax(down**2 + right**2, axis=-1)[..., None]
    down, right = (np.take_along_axis(part, strongest, axis=-1)[..., 0] for part in (down, right))
    strength = np.hypot(down, right)
    angle = np.rad2deg(np.arctan2(down, right)) % 180
    number = np.minimum((angle / (180 / ORIENTATIONS)).astype(np.int8), ORIENTATIONS - 1)
    cells, shape = PATCH // CELL, (len(x), PATCH // CELL, CELL, PATCH // CELL, CELL)
    counts = np.stack(
        [np.where(number == k, strength, 0).reshape(shape).sum(axis=(2, 4)) for k in range(ORIENTATIONS)],
        axis=-1,
    ) / (CELL * CELL)
    steps = cells - BLOCK + 1
    corners = [counts[:, i : i + steps, j : j + steps] for i in range(BLOCK) for j in range(BLOCK)]
    blocks = np.stack(corners, axis=3).reshape(len(x), steps, steps, -1)
    blocks = np.minimum(blocks / _length(blocks), CLIP)
    return (blocks / _length(blocks)).reshape(len(x), HOG_CHANNELS).astype(np.float32)


def _length(blocks: np.ndarray) -> np.ndarray:
    return np.sqrt(np.sum(blocks**2, axis=-1, keepdims=True) + EPSILON**2)


def flatten(pooled: Array, *, pool: str = "flat") -> Array:
    """Pooled features "n i j c" as vectors: all of them side by side ("flat"), or their "mean" over cells."""
    if pool not in ("flat", "mean"):
        raise ValueError(f"pool is {pool!r}, expected 'flat' or 'mean'")
    return jnp.mean(pooled, axis=(1, 2)) if pool == "mean" else pooled.reshape(pooled.shape[0], -1)


def cosine(
    source: Array,
    target: Array,
    *,
    centre: bool = True,
    source_valid: Array | None = None,
    target_valid: Array | None = None,
) -> Array:
    """Cosine of all vectors of two pictures: "n d", "m d" -> f32 "n m"; 0 where a vector has no length.

    Args:
      source, target: vectors of any float type.
      centre: subtract the mean over the real boxes of both first, where there are at least `FEWEST`.
      source_valid, target_valid: bool "n", "m": which boxes are real; the others give 0.
    """
    sides = [source.astype(jnp.float32), target.astype(jnp.float32)]
    valid = [
        jnp.ones(len(side), bool) if where is None else where
        for side, where in zip(sides, (source_valid, target_valid), strict=True)
    ]
    if centre:
        total = sum(jnp.sum(jnp.where(w[:, None], s, 0), axis=0) for s, w in zip(sides, valid, strict=True))
        count = sum(jnp.sum(where) for where in valid)
        mean = jnp.where(count >= FEWEST, total / jnp.maximum(count, 1), 0)
        sides = [side - mean[None] for side in sides]
    sides = [jnp.where(where[:, None], side, 0) for side, where in zip(sides, valid, strict=True)]
    unit = [side / jnp.sqrt(jnp.sum(side * side, axis=1, keepdims=True) + TINY) for side in sides]
    return unit[0] @ unit[1].T
