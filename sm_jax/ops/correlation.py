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


def sum_shifted(corr, shifts):
    """Sum of maps, each read at its own shift: corr "k h w", shifts "k 2" int (dx, dy) -> "h w".

    `out[y, x] = sum_k corr[k, y + dy_k, x + dx_k]`, zero outside the maps. With the correlation of every cell
    of a template and the cells' places as shifts it is the zero-padded convolution with the template, but the
    shifts are data: one program serves templates of any shape. Written for one template; `vmap` for more.
    """
    maps, height, width = corr.shape
    x = jnp.arange(width)[None] + shifts[:, :1]
    y = jnp.arange(height)[None] + shifts[:, 1:]
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
    index = jnp.clip(y, 0, height - 1)[:, :, None] * width + jnp.clip(x, 0, width - 1)[:, None, :]
    flat = corr.reshape(maps, height * width)
    read = jnp.take_along_axis(flat, index.reshape(maps, -1), axis=1).reshape(corr.shape)
    return jnp.sum(jnp.where(inside, read, 0.0), axis=0)
