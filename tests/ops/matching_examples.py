"""Recorded pairs and the 3 x 4 example by hand (specification of SCNet, 9.1), in the library's boxes."""

import numpy as np

from sm_jax import boxes as box_lib
from sm_jax.ops import hough
from tests import goldens

RECORDED = goldens.params("matching", "match_*.npz")

SIZE = (100, 100)
SOURCE = np.array([[10, 10, 31, 31], [40, 20, 81, 61], [20, 50, 41, 91]], np.float64)
TARGET = np.array([[17, 15, 40, 38], [47, 25, 92, 70], [59, 59, 70, 90], [9, 69, 31, 91]], np.float64)
SIMILARITY = np.array([[0.9, 0.5, 0.2, 0.6], [0.3, 0.8, 0.7, 0.1], [0.4, 0.2, 0.5, 0.45]], np.float32)
BINS = [[1381, 0, 0, 1319], [715, 1381, 0, 653], [0, 0, 796, 0]]


class Recorded:
    """One golden file: its arrays by name, and boxes, sizes and bins as the library wants them."""

    def __init__(self, path):
        self.data = goldens.load(path)
        self.source, self.target = (
            box_lib.inclusive_to_half_open(self.data[f"in_boxes_{side}"]) for side in "ab"
        )
        self.sizes = tuple(tuple(self.data[f"in_size_{side}"].ravel()) for side in "ab")
        self.similarity = self.data["out_sim"]

    def __getitem__(self, name):
        return self.data[name]

    def bins(self, **options):
        return hough.bins(self.source, self.target, *self.sizes, **options)

    def grid(self, **options):
        return hough.grid(self.sizes[1], **options)

    def gate(self):
        return hough.aspect_gate(self.source, self.target)


def random_boxes(rng, count, size=SIZE):
    """Boxes of whole pixels inside the image, at least 4 pixels wide and high."""
    height, width = size
    low = rng.integers(0, [width - 4, height - 4], (count, 2))
    side = rng.integers(4, np.maximum(np.array([width, height]) - low, 4) + 1)
    return np.concatenate([low, np.minimum(low + side, [width, height])], axis=1).astype(np.float64)


def close(found, expected, *, tolerance=1e-5):
    """Within `tolerance` of the largest expected magnitude."""
    scale = max(float(np.max(np.abs(expected))), 1e-12)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)
