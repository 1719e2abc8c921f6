"""What keeps XLA for CPU from repeating elementwise work in each of its consumers."""

import jax


@jax.custom_vjp
def compute_once(x: jax.Array) -> jax.Array:
    """`x`, finite, of any shape: unchanged, but stored before it is used twice.

    XLA for CPU repeats cheap elementwise work in each of its consumers. Of a chain of residual blocks every
    sum then reads the results of all blocks before it, and all of them stay in memory: a fifth more time and
    two thirds more memory for the features. What ends in a division is not repeated, so here is one by 1.
    Elsewhere this is the identity.
    """
    return jax.lax.platform_dependent(x, cpu=lambda x: x / (1 + 0 * x), default=lambda x: x)


compute_once.defvjp(lambda x: (compute_once(x), None), lambda _, cotangent: (cotangent,))


@jax.custom_vjp
def gradient_once(x: jax.Array) -> jax.Array:
    """`x` unchanged; its gradient is stored before it is used twice, as `compute_once` stores a value."""
    return x


gradient_once.defvjp(lambda x: (x, None), lambda _, cotangent: (compute_once(cotangent),))
