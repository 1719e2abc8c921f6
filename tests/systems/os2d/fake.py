"""A matcher in place of the network: matches the mean colour of 16-pixel cells, in microseconds."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sm_jax import boxes as box_ops
from sm_jax.systems.os2d.predict import BOX, STRIDE, Parts


class Output(NamedTuple):
    scores: jax.Array
    offsets: jax.Array
    corners: jax.Array


def _weight(variables):
    return variables["params"]["backbone"]["weight"]


def _extract(variables, image, size):
    """Mean colour of each cell over its valid pixels, scaled by a weight."""
    inside = (jnp.arange(image.shape[1])[None, :, None] < size[:, 0, None, None]) & (
        jnp.arange(image.shape[2])[None, None, :] < size[:, 1, None, None]
    )
    pixels = jnp.concatenate([image * inside[..., None], inside[..., None].astype(image.dtype)], axis=-1)
    b, h, w, c = pixels.shape
    cells = pixels.reshape(b, h // STRIDE, STRIDE, w // STRIDE, STRIDE, c).sum(axis=(2, 4))
    mean = cells[..., :3] / jnp.maximum(cells[..., 3:], 1.0)
    return mean * _weight(variables), -(-size // STRIDE)


def _encode(variables, requests):
    features, size = _extract(variables, requests["image"], requests["size"])
    rows, columns = features.shape[1:3]
    inside = (jnp.arange(rows)[None, :, None] < size[:, 0, None, None]) & (
        jnp.arange(columns)[None, None, :] < size[:, 1, None, None]
    )
    mean = jnp.sum(features * inside[..., None], axis=(1, 2)) / jnp.sum(inside, axis=(1, 2))[:, None]
    return {"template": jnp.broadcast_to(mean[:, None, None], (mean.shape[0], 2, 2, 3))}


def _head(variables, features, features_size, template):
    """Score 1 / (1 + colour distance); boxes a quarter of the template box, shifted by the colour."""
    del features_size
    wanted = template.mean(axis=(1, 2))
    distance = jnp.abs(features[:, None] - wanted[None, :, None, None]).sum(axis=-1)
    scores = 1.0 / (1.0 + distance) + 0.0 * _weight(variables)
    b, c, h, w = scores.shape
    anchors = jnp.asarray(box_ops.anchor_grid((h, w), stride=STRIDE, box_size=(BOX, BOX))).reshape(
        1, 1, h, w, 4
    )
    shift = jnp.tanh(features[:, None, :, :, 0]) * jnp.ones((1, c, 1, 1))
    size = jnp.full_like(shift, 5 * np.log(0.25))
    offsets = jnp.stack([shift, -shift, size, size], axis=-1)
    boxes = box_ops.decode(offsets, anchors)
    corners = jnp.stack(
        [boxes[..., [0, 1]], boxes[..., [2, 1]], boxes[..., [0, 3]], boxes[..., [2, 3]]], axis=-2
    )
    return Output(scores, offsets, corners)


PARTS = Parts(_encode, _extract, _head)
VARIABLES = {"params": {"backbone": {"weight": jnp.ones(())}}}


def scene(rng, size, places, colour=(255, 40, 40), side=48):
    """A noisy grey picture with noisy squares of about `colour` at the (x, y) `places`, without ties."""
    image = rng.integers(90, 130, (*size, 3)).astype(np.uint8)
    for x, y in places:
        image[y : y + side, x : x + side] = np.asarray(colour) - rng.integers(0, 4, 3)
    return np.clip(image + rng.integers(-10, 10, image.shape), 0, 255).astype(np.uint8)
