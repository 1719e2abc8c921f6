"""Attention, excitation and the ranking loss against their plain definitions, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax.losses.margin_ranking import margin_ranking
from sm_jax.systems.coae import parts, reference


def close(got, wanted, tolerance=1e-5):
    """Compare trees as whole tensors."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert np.linalg.norm(a - b) <= tolerance * (1e-3 + np.linalg.norm(b))


@pytest.mark.parametrize("kind", parts.KINDS)
def test_attention(kind):
    rng = np.random.default_rng(0)
    queries, keys, values = (rng.normal(size=shape).astype(np.float32) for shape in ((4, 3), (5, 3), (5, 2)))
    where = np.array([True, False, True, True, False])
    weights = jnp.asarray(rng.normal(size=(4, 2)).astype(np.float32))

    def fast(*arrays):
        return jnp.sum(parts.attend(*arrays, kind=kind, where=jnp.asarray(where)) * weights)

    def slow(*arrays):
        return jnp.sum(reference.attend(*arrays, kind=kind, where=where) * weights)

    gradients = [jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2))) for f in (fast, slow)]
    got, wanted = (run(queries, keys, values) for run in gradients)
    close(got, wanted)
    assert not np.asarray(got[1][2])[~where].any()


def test_attention_without_mask_and_of_another_kind():
    keys = jnp.eye(2)
    np.testing.assert_allclose(parts.attend(keys * 0, keys, jnp.array([[1.0], [3.0]])), [[2], [2]], rtol=1e-6)
    with pytest.raises(ValueError, match="softmax, dot"):
        parts.attend(keys, keys, keys, kind="linear")


def test_a_block_adds_nothing_before_training():
    cells = jax.random.normal(jax.random.key(0), (3, 8))
    block = parts.NonLocal(8, 4)
    variables = jax.jit(block.init)(jax.random.key(1), cells, cells)
    added = jax.jit(jax.value_and_grad(lambda v: jnp.sum(block.apply(v, cells, cells) * cells)))
    value, gradient = added(variables)
    assert value == 0
    assert np.asarray(gradient["params"]["out"]["kernel"]).any()


def test_excitation():
    net, query = parts.Excitation(8, 4), jax.random.normal(jax.random.key(0), (2, 3, 8))
    variables = jax.jit(net.init)(jax.random.key(1), query[0, 0])

    def fast(variables, query):
        return jnp.sum(net.apply(variables, jnp.mean(query, axis=(0, 1))) * jnp.arange(8.0))

    def slow(variables, query):
        layers = [variables["params"][name] for name in ("squeeze", "excite")]
        return jnp.sum(reference.excite(query, *((x["kernel"], x["bias"]) for x in layers)) * jnp.arange(8.0))

    close(*(jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(variables, query) for f in (fast, slow)))
    assert ((net.apply(variables, query[0, 0]) > 0) & (net.apply(variables, query[0, 0]) < 1)).all()


def test_ranking_loss():
    rng = np.random.default_rng(3)
    scores, labels = rng.uniform(size=7).astype(np.float32), rng.integers(0, 2, 7)
    where = np.array([True, True, False, True, True, True, False])
    margins = {"positive_margin": 0.7, "negative_margin": 0.3}
    fast = jax.jit(jax.value_and_grad(lambda s: margin_ranking(s, labels, where=where, **margins)))
    slow = jax.jit(jax.value_and_grad(lambda s: reference.margin_ranking(s, labels, where=where, **margins)))
    got = fast(scores)
    close(got, slow(scores))
    assert not np.asarray(got[1])[~where].any()
    close(fast(np.where(where, scores, np.nan)), got)


@pytest.mark.parametrize(
    "scores,labels,value",
    [
        ([0.9, 0.1], [1, 0], 0.0),  # right, and far apart
        ([0.5, 0.5], [1, 0], 0.2 + 0.7),  # both off by .2; the pair by all of m+
        ([0.2, 0.9], [1, 1], 0.25 + 0.4),  # one off by .5; the pair .4 further apart than m-
        ([0.4], [0], 0.1),  # no pair
    ],
)
def test_ranking_loss_by_hand(scores, labels, value):
    got = jax.jit(margin_ranking)(jnp.array(scores), jnp.array(labels))
    np.testing.assert_allclose(got, value, atol=1e-6)


def test_ranking_loss_of_nothing_and_of_equals():
    nothing = jax.jit(margin_ranking)(jnp.array([0.5]), jnp.array([1]), where=jnp.array([False]))
    assert nothing == 0
    equal = jax.jit(jax.grad(margin_ranking))(jnp.array([0.9, 0.9]), jnp.array([1, 0]))
    np.testing.assert_allclose(equal, [0.0, 0.5])  # the second is above m-; the pair has no direction
    with pytest.raises(ValueError, match=r"expected both as \(k,\)"):
        margin_ranking(jnp.zeros((2, 2)), jnp.zeros((2, 2)))
