"""A small SCNet: the whole trunk of VGG16, but few cells and short embeddings."""

import functools

import jax
import numpy as np

from sm_jax.systems.scnet import model

SIZE = (64, 96)
OPTIONS = {"image_size": SIZE, "embed": 8}


def config(**options) -> model.ModelConfig:
    return model.ModelConfig.create(OPTIONS | options)


@functools.cache
def _variables(backbone: str, input_norm: str):
    return model.init(config(backbone=backbone, input_norm=input_norm), jax.random.key(0))


def variables(variant: str = "AG+", backbone: str = "vgg16", input_norm: str = "imagenet"):
    """As `model.init` makes them: those of "A" and "AG" are those of "AG+" without the second embedding."""
    made = _variables(backbone, input_norm)
    parts = {name: part for name, part in made["params"].items() if variant == "AG+" or name != "fc_geometry"}
    return made | {"params": parts}


def boxes(rng: np.random.Generator, n: int, size=SIZE) -> np.ndarray:
    """`(n, 4)` float32 integer boxes inside a picture of `size`, at least 3 pixels wide and high."""
    height, width = size
    low = rng.integers(0, (width - 4, height - 4), (n, 2))
    high = low + rng.integers(3, 40, (n, 2))
    return np.concatenate([low, np.minimum(high, (width, height))], axis=1).astype(np.float32)
