"""The mean colour of a picture in place of its descriptor, in microseconds."""

import jax.numpy as jnp


def describe(variables, image, size):
    """Mean of each channel over the valid pixels, L2-normalised: "b 3"."""
    rows = jnp.arange(image.shape[1])[None, :, None] < size[:, :1, None]
    columns = jnp.arange(image.shape[2])[None, None, :] < size[:, 1:, None]
    inside = (rows & columns)[..., None]
    total = jnp.sum(image * inside, axis=(1, 2)) * variables["factor"]
    return total / jnp.maximum(jnp.linalg.norm(total, axis=-1, keepdims=True), 1e-6)


VARIABLES = {"factor": jnp.ones(())}
