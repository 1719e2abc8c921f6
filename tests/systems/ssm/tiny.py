"""A matcher on features instead of pictures, its variables in NumPy, and batches for it."""

import functools

import jax
import numpy as np

from sm_jax.systems.ssm import model

SMALL = {"trainable": "head", "image_size": (64, 96), "request_size": (16, 24), "dropout": 0.0}
"""4 x 6 cells; the features are the trunk."""


def config(**options):
    return model.ModelConfig.create(SMALL | options)


@functools.cache
def shapes(config):
    return jax.eval_shape(functools.partial(model.init, config), jax.random.key(0))


def variables(config, seed=0, branches=True):
    """Random variables in NumPy that keep activations of the order of 1; without branches the head only."""
    rng = np.random.default_rng(seed)

    def fill(leaf):
        fan_in = max(1, int(np.prod(leaf.shape[:-1])))
        scale = 0.1 if len(leaf.shape) == 1 else np.sqrt(1 / fan_in)
        return np.float32(scale * rng.standard_normal(leaf.shape))

    tree = shapes(config)["params"]
    return {"params": {part: jax.tree.map(fill, tree[part]) for part in tree if branches or part == "head"}}


def features(*shape, seed=0):
    """Non-negative ones, as after a ReLU."""
    return np.maximum(np.random.default_rng(seed).standard_normal((*shape, 1024)), 0).astype(np.float32)


def make_batch(images=2, boxes=3, seed=0, **options):
    """Boxes in 64 x 96 pixels, features as trunks, all pairs positive."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(-8, 60, (images, boxes, 2)) * [1.2, 0.7]
    corners = np.concatenate([low, low + rng.uniform(20, 50, (images, boxes, 2))], axis=-1)
    batch = {
        "image_trunk": features(images, 4, 6, seed=seed),
        "request_trunk": features(images, 4, 6, seed=seed + 1),
        "boxes": corners.astype(np.float32),
        "valid": np.ones((images, boxes), bool),
        "positive": np.ones(images, bool),
    }
    return batch | options
