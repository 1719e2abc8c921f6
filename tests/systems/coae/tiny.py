"""CoAE with 12 channels on a trunk of mean colours, which initialises and compiles in seconds."""

import contextlib
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sm_jax.backbones.common import valid_cells
from sm_jax.systems.coae import model

CHANNELS = 12
CONFIG = model.ModelConfig(
    query_size=48,
    attention_width=6,
    excitation_ratio=4,
    anchor_scales=(2.0, 4.0),
    rpn_width=8,
    head="light",
    bins=3,
    head_width=8,
    candidates=64,
    proposals=12,
)


class Trunk(nn.Module):
    """Mean colour of each cell of 16 pixels over its valid part, to `CHANNELS` non-negative channels."""

    @nn.compact
    def __call__(self, image, size=None):
        size = jnp.array([image.shape[1:3]] * image.shape[0]) if size is None else size
        inside = valid_cells(size, image.shape[1:3]).astype(jnp.float32)
        b, h, w, c = image.shape
        shape = (b, -(-h // 16), 16, -(-w // 16), 16)
        grow = ((0, 0), (0, shape[1] * 16 - h), (0, shape[3] * 16 - w), (0, 0))
        total, count = (
            jnp.pad(x, grow).reshape(*shape, -1).sum(axis=(2, 4)) for x in (image * inside, inside)
        )
        features = nn.relu(nn.Dense(CHANNELS, name="layer1_0")(total / jnp.maximum(count, 1)))
        return {"c4": jnp.where(count > 0, features, 0)}


@contextlib.contextmanager
def network():
    """Within it, `model` builds the tiny network."""
    with mock.patch.multiple(model, CHANNELS=CHANNELS, backbone=lambda config: Trunk()):
        yield


def variables(seed: int = 0):
    """Random ones in which no layer is 0, so that every part of the network takes part in the result."""
    rng = np.random.default_rng(seed)
    with network():
        shapes = jax.eval_shape(lambda: model.init(CONFIG, jax.random.key(0)))
    made = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, leaf.shape[0] ** -0.5, leaf.shape), jnp.float32), shapes
    )
    codes = made["params"]["rpn"]["codes"]  # small, so that proposals stay near their anchors
    made["params"]["rpn"]["codes"] = jax.tree.map(lambda leaf: 0.02 * leaf, codes)
    return made
