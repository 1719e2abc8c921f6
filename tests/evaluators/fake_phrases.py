"""A source of phrases and a predictor in memory: coloured cells, found and named by their mean colour."""

import numpy as np

from sm_jax.data import transforms
from sm_jax.errors import ImageError
from sm_jax.text import Tokenizer

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
CELL = 32  # pixels of the canvas
CANVAS = (128, 128)
TOKENIZER = Tokenizer([*COLOURS, "the", "show", "me", "things"], 8)


class Cells:
    """`n` images of 192x144 whose cells of 48 pixels are coloured; 32 once fitted into 128x128."""

    query_kinds = ("standard", "phrasing", "absent")
    phrases = ("the red things", "show me the green things", "the blue things")
    cell = 48

    def __init__(self, n=3, damaged=(), empty=(), extra=0):
        self.n, self.damaged, self.empty, self.extra = n, set(damaged), set(empty), extra

    def __len__(self):
        return self.n

    def _objects(self, index):
        """(row, column, colour) of each object: two red ones and a green one, never blue."""
        if index in self.empty:
            return []
        return [(0, index % 3, "red"), (2, 1, "red"), (3, 2, "green")]

    def image(self, index):
        if index in self.damaged:
            raise ImageError(f"{index}.png: damaged")
        image = np.zeros((4 * self.cell, 3 * self.cell, 3), np.uint8)
        for row, column, colour in self._objects(index):
            y, x = row * self.cell, column * self.cell
            image[y : y + self.cell, x : x + self.cell] = COLOURS[colour]
        return image

    def annotation(self, index):
        places = [(c * self.cell, r * self.cell) for r, c, _ in self._objects(index)]
        boxes = [[x, y, x + self.cell, y + self.cell] for x, y in places]
        phrases, matches = self.queries(index, "standard")
        return {
            "image_id": str(index),
            "size": (4 * self.cell, 3 * self.cell),
            "boxes": np.array(boxes, np.float32).reshape(-1, 4),
            "phrases": phrases,
            "matches": matches,
            "names": [colour for _, _, colour in self._objects(index)],
        }

    def queries(self, index, kind):
        colours = {"standard": ["red"], "phrasing": ["green"], "absent": ["blue"]}[kind]
        colours += ["green", "red", "blue"][: self.extra] if kind == "standard" else []
        frame = "show me the" if kind == "phrasing" else "the"
        names = [colour for _, _, colour in self._objects(index)]
        matches = [[name == colour for name in names] for colour in colours]
        phrases = [f"{frame} {colour} things" for colour in colours]
        return phrases, np.array(matches, bool).reshape(len(phrases), len(names))


class Predictor:
    """Proposes every cell that is not black; aligned if the phrase has the word of its colour.

    Args:
      confused: colours that are taken for blue ones.
      missed: colours that are not proposed.
      ghosts: also propose the right column of the canvas, where fitted images have nothing but filling.
      wrong: alignment with phrases of another colour.
    """

    def __init__(self, confused=(), missed=(), *, ghosts=False, wrong=0.1):
        self.confused, self.missed, self.calls = set(confused), set(missed), []
        self.ghosts, self.wrong = ghosts, wrong

    def proposals(self, variables, images):
        assert images.dtype == np.float32
        self.calls.append(("proposals", images.shape))
        rows, columns = images.shape[1] // CELL, images.shape[2] // CELL
        pixels = transforms.denormalize(images).reshape(len(images), rows, CELL, columns, CELL, 3)
        colours = pixels.mean(axis=(2, 4)).reshape(len(images), -1, 3)
        y, x = np.indices((rows, columns)).reshape(2, -1) * CELL
        boxes = np.tile(np.stack([x, y, x + CELL, y + CELL], axis=-1), (len(images), 1, 1))
        conf = colours.max(axis=-1) / 255 - 0.01 * np.arange(rows * columns)
        missed = np.isin(colours.argmax(axis=-1), [list(COLOURS).index(name) for name in self.missed])
        return {
            "boxes": boxes.astype(np.float32),
            "conf": conf.astype(np.float32),
            "valid": ((conf > 0.5) & ~missed) | (self.ghosts & (x == images.shape[2] - CELL)),
            "embeddings": colours / 255,
        }

    def texts(self, variables, tokens):
        self.calls.append(("texts", tokens.shape))
        words = [TOKENIZER.encode(colour)[0, 1] for colour in COLOURS]
        return np.array([[word in row for word in words] for row in tokens], np.float32)

    def scores(self, variables, embeddings, texts):
        self.calls.append(("scores", texts.shape))
        seen = embeddings.argmax(axis=-1)
        for name in self.confused:
            seen = np.where(seen == list(COLOURS).index(name), 2, seen)
        return np.where(texts[:, :, None, :].argmax(axis=-1) == seen[:, None], 0.9, self.wrong).astype(
            np.float32
        )
