"""Local response normalisation across channels, as in Caffe's GoogLeNet and AlexNet."""

import jax
import jax.numpy as jnp

Array = jax.Array

SIZE, ALPHA, BETA = 5, 1e-4, 0.75
"""Channels in a window, the factor of their mean square, and the exponent."""


@jax.custom_vjp
def lrn(x: Array) -> Array:
    """x / (1 + alpha mean(x^2))^0.75, the mean over a window of 5 channels around each, alpha 1e-4.

    Channels outside count as zero; the divisor is 5 also at the ends. The sums are always float32.

    Args:
      x: "... c", any leading axes.

    Returns:
      The shape and type of `x`. Source: Krizhevsky et al. 2012, sec. 3.3, in the form and with the constants
      of BVLC's GoogLeNet (SSM specification, sec. 1).
    """
    return _forward(x)[0]


def _window_sum(x: Array) -> Array:
    """The sum over `SIZE` channels around each, as shifted sums; on CPU the fastest of the usual forms."""
    channels, half = x.shape[-1], SIZE // 2
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(half, half)])
    return sum(jax.lax.slice_in_dim(padded, k, k + channels, axis=-1) for k in range(SIZE))


def _inverse_root(wide: Array) -> Array:
    """scale^-0.25, of which -0.75 is a cube: `pow` is slow on CPU."""
    return jnp.sqrt(jax.lax.rsqrt(1 + (ALPHA / SIZE) * _window_sum(wide * wide)))


def _forward(x: Array) -> tuple[Array, Array]:
    wide = x.astype(jnp.float32)
    root = _inverse_root(wide)
    return (wide * (root * root * root)).astype(x.dtype), x


def _backward(x: Array, cotangent: Array) -> tuple[Array]:
    """g s^-b - 2 a b / 5 x sum(g x s^(-b - 1)): the derivative of the shifted sums is many times slower."""
    wide, g = x.astype(jnp.float32), cotangent.astype(jnp.float32)
    root = _inverse_root(wide)
    direct = g * (root * root * root)
    # s^-1 = root^4
    shared = _window_sum(direct * wide * (root * root * root * root))
    return ((direct - (2 * ALPHA * BETA / SIZE) * wide * shared).astype(x.dtype),)


lrn.defvjp(_forward, _backward)


def lrn_reference(x: Array) -> Array:
    """The definition, channel by channel: the reference of `lrn`."""
    out = []
    for channel in range(x.shape[-1]):
        window = x[..., max(channel - 2, 0) : channel + 3].astype(jnp.float32)
        scale = 1 + ALPHA / SIZE * jnp.sum(window**2, axis=-1)
        out.append(x[..., channel].astype(jnp.float32) / scale**BETA)
    return jnp.stack(out, axis=-1).astype(x.dtype)
