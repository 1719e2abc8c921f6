"""A detector of a few channels on features of the trunk, and batches for it."""

import functools

import jax
import numpy as np

from sm_jax.systems.crossmodal import model

WORDS = ("blue", "circle", "red", "square")
SMALL = {
    "vocabulary": WORDS,
    "rpn_width": 8,
    "proposal_width": 8,
    "proposal_hidden": 9,
    "embed": 6,
    "text_width": 8,
    "text_ffn": 12,
    "align_hidden": 7,
    "dropout": 0.0,  # random numbers are a third of what there is to compile
    "trainable": "last1",  # the trunk has 320 channels
}


def config(**options):
    return model.ModelConfig.create(SMALL | options)


@functools.cache
def _shapes(config):
    return jax.eval_shape(functools.partial(model.init, config), jax.random.key(0))


def variables(config, seed=0, backbone=True):
    """Random variables in NumPy, in a fraction of the time of `model.init`."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        if path.endswith(("scale", "var")):
            return (1 + 0.1 * rng.random(leaf.shape)).astype(np.float32)
        fan_in = max(1, int(np.prod(leaf.shape[:-1])))
        std = 0.1 if len(leaf.shape) < 2 else np.sqrt(2 / fan_in)
        return (std * rng.standard_normal(leaf.shape)).astype(np.float32)

    shapes = _shapes(config)
    if not backbone:
        shapes = {"params": {name: tree for name, tree in shapes["params"].items() if name != "backbone"}}
    return jax.tree_util.tree_map_with_path(fill, shapes)


def make_batch(images=2, boxes=3, cells=(3, 4), channels=320, tokens=5, seed=0):
    """Boxes of 48 to 80 pixels, some cut by the border, and features of a trunk."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(0, 1, (images, boxes, 2)) * [32 * cells[1], 32 * cells[0]]
    side = rng.uniform(48, 80, (images, boxes, 1))
    words = rng.integers(2, 3 + len(WORDS), (images, tokens)).astype(np.int32)
    words[:, 0], words[:, -1] = 1, 0
    return {
        "trunk": rng.random((images, *cells, channels)).astype(np.float16),
        "boxes": np.concatenate([centre - side / 2, centre + side / 2], axis=-1).astype(np.float32),
        "boxes_valid": np.ones((images, boxes), bool),
        "aligned": rng.random((images, boxes)) < 0.5,
        "tokens": words,
        "valid": np.ones(images, bool),
    }
