"""The 4-D correlation: every position of one feature map against every position of another."""

import jax.numpy as jnp


def correlate(image, query, *, dtype=None):
    """Dot product of every pair of positions: image "h w c", query "i j c" -> "h w i j".

    Both are expected L2-normalised by the caller. Half-precision inputs are accumulated in float32; the
    result has `dtype`, by default that of the inputs. Written for one pair; `vmap` for batches. Source: OS2D
    (ECCV 2020), sec. 3.1.
    """
    product = jnp.einsum("hwc,ijc->hwij", image, query, preferred_element_type=jnp.float32)
    return product.astype(dtype or jnp.result_type(image, query))


def l2_normalize(features, *, epsilon):
    """Divide by the L2 norm over the last axis plus `epsilon`, computed in float32; same shape and dtype.

    OS2D uses 1e-5 for image and class features and 1e-6 for the correlation. A zero vector stays zero; its
    gradient is that of a division by `epsilon`, never NaN.
    """
    wide = features.astype(jnp.float32)
    square = jnp.sum(wide * wide, axis=-1, keepdims=True)
    some = square > 0
    norm = jnp.where(some, jnp.sqrt(jnp.where(some, square, 1.0)), 0.0)
    return (wide / (norm + epsilon)).astype(features.dtype)
