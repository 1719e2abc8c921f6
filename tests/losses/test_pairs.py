"""The contrastive loss of pairs against a plain loop, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np

from sm_jax.losses.pairs import contrastive


def _unit(rng, *shape):
    x = rng.normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def _reference(first, second, positive, margin):
    out = []
    for a, b, same in zip(first.astype(np.float64), second.astype(np.float64), positive, strict=True):
        d = np.sqrt(np.sum((a - b + 1e-6) ** 2))
        out.append(0.5 * d**2 if same else 0.5 * max(0.0, margin - d) ** 2)
    return np.array(out)


def test_values_and_gradients_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    first = _unit(rng, 8, 4)
    second = _unit(rng, 8, 4)
    second[:4] = first[:4] + 0.1 * second[:4]  # some within the margin
    positive = np.arange(8) % 2 == 0
    losses, distances = contrastive(first, second, positive, margin=0.85)
    np.testing.assert_allclose(losses, _reference(first, second, positive, 0.85), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(distances, np.linalg.norm(first - second, axis=-1), rtol=1e-4)
    assert losses[1] > 0 and losses[7] == 0  # inside and outside of the margin

    grad = jax.grad(lambda x: jnp.sum(contrastive(x, second, positive, margin=0.85)[0]))(first)
    direction, step = rng.normal(size=first.shape), 1e-6
    up = _reference(first + step * direction, second, positive, 0.85).sum()
    down = _reference(first - step * direction, second, positive, 0.85).sum()
    np.testing.assert_allclose(np.sum(grad * direction), (up - down) / (2 * step), rtol=1e-3)


def test_the_same_descriptor_twice_has_a_finite_gradient():
    x = jnp.full((1, 4), 0.5)
    for positive in (True, False):
        value, grad = jax.value_and_grad(
            lambda a, same=positive: jnp.sum(contrastive(a, x + 1e-6, jnp.array([same]))[0])
        )(x)
        assert np.isfinite(value) and np.all(np.isfinite(grad))


def test_where_hides_pairs():
    x = jnp.eye(3)
    losses, _ = contrastive(x, x[::-1], jnp.ones(3, bool), where=jnp.array([True, False, True]))
    assert losses[1] == 0 and losses[0] > 0.9
