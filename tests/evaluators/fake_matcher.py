"""A matcher that knows the answers, and a data set in memory whose pictures carry them."""

import numpy as np

from sm_jax.errors import ImageError

SIDE = 40
TILE = 100


class Tiles:
    """Images of 100-pixel tiles in a row; each tile shows one object of 40x40 pixels, or nothing.

    Args:
      rows: for each image, for each tile: an object "LABEL.SHADE", such as "0.7" (shade 0..9), or "".
      names: class names.
      difficult: objects that are difficult, as pairs (image, tile).
      damaged: images that cannot be read.
      prefix: of the image ids.
    """

    def __init__(self, rows, *, names=("cat", "dog"), difficult=(), damaged=(), prefix="", sides=None):
        self.rows, self.class_names, self.num_classes = rows, list(names), len(names)
        self.difficult, self.damaged, self.prefix = set(difficult), set(damaged), prefix
        self.sides, self.reads = sides or {}, []

    def __len__(self):
        return len(self.rows)

    def _objects(self, index):
        return [(tile, *map(int, what.split("."))) for tile, what in enumerate(self.rows[index]) if what]

    def annotation(self, index):
        objects = self._objects(index)
        boxes = [
            [tile * TILE + 30, 30, tile * TILE + 30 + side, 30 + side]
            for tile, *_ in objects
            for side in [self.sides.get((index, tile), SIDE)]
        ]
        return {
            "image_id": f"{self.prefix}{index}",
            "size": (TILE, TILE * len(self.rows[index])),
            "boxes": np.array(boxes, np.float32).reshape(-1, 4),
            "labels": np.array([label for _, label, _ in objects], np.int32),
            "difficult": np.array([(index, tile) in self.difficult for tile, *_ in objects], bool),
        }

    def image(self, index):
        self.reads.append(index)
        if index in self.damaged:
            raise ImageError(f"{self.prefix}{index}.png: damaged")
        image = np.zeros((TILE, TILE * max(1, len(self.rows[index])), 3), np.uint8)
        for tile, label, shade in self._objects(index):
            image[30 : 30 + SIDE, tile * TILE + 30 : tile * TILE + 30 + SIDE] = (label + 1, shade, 200)
        return image


class Scripted:
    """Finds every object: of its own class with score 1 - difference of shades / 10, of another with less.

    `confusion` maps a shade to the score at which a request of that shade finds the other classes; others
    find none. `blind` finds nothing. Requests of the shades in `refused` are not read.
    """

    def __init__(self, *, confusion=(), blind=False, refused=()):
        self.confusion, self.blind, self.refused = dict(confusion), blind, set(refused)
        self.calls = []

    def encode(self, variables, picture):
        label, shade = (int(value) for value in picture[picture.shape[0] // 2, picture.shape[1] // 2, :2])
        if shade in self.refused:
            raise ImageError("a blank request")
        return label - 1, shade

    def search(self, variables, image, encoded):
        self.calls.append(len(encoded))
        tiles = [
            (tile, int(image[50, tile * TILE + 50, 0]) - 1, int(image[50, tile * TILE + 50, 1]))
            for tile in range(image.shape[1] // TILE)
        ]
        return [self._one(request, tiles) for request in encoded]

    def _one(self, request, tiles):
        label, shade = request
        boxes, scores = [], []
        for tile, other, its in tiles:
            score = 1 - abs(shade - its) / 10 if other == label else self.confusion.get(shade, 0)
            if other >= 0 and score > 0 and not self.blind:
                boxes.append([tile * TILE + 30, 30, tile * TILE + 70, 70])
                scores.append(score)
        return {"boxes": np.array(boxes, np.float32).reshape(-1, 4), "scores": np.array(scores, np.float32)}
