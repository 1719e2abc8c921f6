"""Small pictures with structure, made from a seed."""

import numpy as np


def blocks(seed=0, size=(60, 80)):
    """Coloured rectangles with a little noise; uint8 `(h, w, 3)`."""
    rng = np.random.default_rng(seed)
    image = np.full((*size, 3), 90, np.int64)
    for _ in range(8):
        y, x = rng.integers(0, size[0] - 12), rng.integers(0, size[1] - 12)
        h, w = rng.integers(10, 30, 2)
        image[y : y + h, x : x + w] = rng.integers(0, 255, 3)
    return np.clip(image + rng.integers(-6, 7, image.shape), 0, 255).astype(np.uint8)
