"""A data set in memory: coloured squares as `tests.systems.os2d.fake` finds them."""

import numpy as np

from sm_jax.errors import ImageError
from tests.systems.os2d.fake import scene

COLOURS = ((255, 40, 40), (40, 40, 255), (40, 255, 40))
SIDE = 60  # what the fake network calls an object


class Squares:
    """`n` images of 128x192, each with one object of the first two of three classes."""

    def __init__(self, n=3, damaged=(), damaged_queries=()):
        self.n, self.damaged, self.damaged_queries = n, set(damaged), set(damaged_queries)
        self.class_names = ["red", "blue", "green"]
        self.num_classes = 3

    def __len__(self):
        return self.n

    def _places(self, index):
        return [(16 * (index % 2), 16), (112, 64)]

    def annotation(self, index):
        boxes = [[x, y, x + SIDE, y + SIDE] for x, y in self._places(index)]
        return {
            "image_id": str(index),
            "size": (128, 192),
            "boxes": np.array(boxes, np.float32),
            "labels": np.array([0, 1], np.int32),
            "difficult": np.zeros(2, bool),
        }

    def image(self, index):
        if index in self.damaged:
            raise ImageError(f"{index}.png: damaged")
        rng = np.random.default_rng(index)
        image = scene(rng, (128, 192), [])
        for colour, (x, y) in zip(COLOURS, self._places(index), strict=False):
            image[y : y + SIDE, x : x + SIDE] = np.asarray(colour) - rng.integers(0, 5, (SIDE, SIDE, 3))
        return image

    def query(self, label):
        if label in self.damaged_queries:
            raise ImageError(f"class {label}.png: damaged")
        return np.full((SIDE, SIDE, 3), COLOURS[label], np.uint8)
