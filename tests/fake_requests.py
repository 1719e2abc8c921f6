"""A single-shot matcher in place of the network: compares mean colours, boxes runs of covered cells."""

from collections import Counter

import numpy as np

from sm_jax.request_detector import RequestDetector
from sm_jax.systems.ssm.model import STRIDE, ModelConfig

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
WINDOW, REQUEST = (128, 128), (32, 32)
COVERED = 0.9


class Network:
    """What `Predictor` promises, without a network. A cell is covered (0.9) if it has the request's colour,
    0.1 otherwise; its box is the run of covered cells in its row and column.
    """

    def __init__(self, config):
        self.config, self.calls, self.compiles = config, [], Counter()

    def features(self, variables, images):
        assert images.dtype == np.float32 and images.shape[1:3] == self.config.image_size
        self.calls.append(("features", len(images)))
        b, h, w, _ = images.shape
        cells = images.reshape(b, h // STRIDE, STRIDE, w // STRIDE, STRIDE, 3)
        return cells.mean(axis=(2, 4)) + 127

    def encode(self, variables, pictures):
        assert pictures.dtype == np.float32 and pictures.shape[1:3] == self.config.request_size
        self.calls.append(("encode", len(pictures)))
        middle = pictures[:, 12:20, 12:20].mean(axis=(1, 2)) + 127
        if not self.config.aligned:
            return middle
        return np.tile(middle[:, None, None], (1, *self.config.request_cells, 1))

    def keep(self, requests):
        self.calls.append(("keep", len(requests)))
        return requests

    def search(self, variables, features, requests):
        self.calls.append(("search", (len(features), len(requests))))
        wanted = requests.mean(axis=(1, 2)) if self.config.aligned else requests
        alike = np.abs(features[:, None] - wanted[None, :, None, None]).max(axis=-1) < 60
        coverage = np.where(alike, COVERED, 0.1).astype(np.float32)
        left, right = _run(alike, 3), alike.shape[3] - _run(alike[..., ::-1], 3)[..., ::-1]
        top, bottom = _run(alike, 2), alike.shape[2] - _run(alike[:, :, ::-1], 2)[:, :, ::-1]
        return coverage, STRIDE * np.stack([left, top, right, bottom], axis=-1).astype(np.float32)


def _run(alike, axis):
    """Where along `axis` the run of true values that each one belongs to begins; for a false one, itself."""
    begins = np.indices(alike.shape)[axis]
    begins = np.where(alike & (np.roll(alike, 1, axis) & (begins > 0)), -1, begins)
    return np.maximum.accumulate(begins, axis=axis)


def make(*, fusion="product_aligned", variables=None, **options):
    """A detector for windows of 128 and requests of 32 pixels whose network is the fake one."""
    config = ModelConfig(fusion=fusion, image_size=WINDOW, request_size=REQUEST)
    detector = RequestDetector(config, variables or {"params": {}}, **options)
    detector._predictor = Network(config)
    return detector


def query(colour, size=(40, 40)):
    """A picture of the colour, not quite plain."""
    picture = np.full((*size, 3), COLOURS[colour], np.uint8)
    picture[::2] -= (picture[::2] > 0) * np.uint8(9)
    return picture


def scene(size=(256, 192), cell=64, places=((0, 1, "red"), (2, 1, "red"), (3, 2, "green"))):
    """Black, with coloured squares of `cell` pixels at (row, column)."""
    image = np.zeros((*size, 3), np.uint8)
    for row, column, colour in places:
        image[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] = COLOURS[colour]
    return image
