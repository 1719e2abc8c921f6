import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sm_jax.training import optim, state
from tests.training import checks, toy

TREE = {"a": {"kernel": 1, "bias": 2}, "b": {"c": {"kernel": 3}}}


@given(st.sets(st.sampled_from(["a/kernel", "a/bias", "b/c/kernel"])))
def test_partition_and_merge_are_inverse(trainable):
    learned, rest = state.partition(TREE, trainable.__contains__)
    assert set(learned) == trainable
    assert state.merge(learned, rest) == TREE


def test_updates_replace_only_what_they_name():
    old = {"batch_stats": {"x": {"mean": 1, "var": 2}, "y": {"mean": 3}}}
    new = state.update_collections(old, {"batch_stats": {"x": {"mean": 9}}})
    assert new == {"batch_stats": {"x": {"mean": 9, "var": 2}, "y": {"mean": 3}}}
    assert old["batch_stats"]["x"]["mean"] == 1
    with pytest.raises(KeyError, match="batchstats"):
        state.update_collections(old, {"batchstats": {}})


def test_flat_and_back_for_an_optimizer_state():
    config = toy.make_config()
    variables = toy.make_system(config).init(jax.random.key(0), {"image": jnp.zeros((1, 4, 4, 3))})
    tree = state.create(
        variables, optim.make_optimizer(config.optim), lambda path: True, ema=True, loss_scale=8.0
    )
    checks.assert_same_bits(state.from_flat(state.to_flat(tree), tree), tree)


def test_averaged_is_the_parameters_without_an_average():
    config = toy.make_config()
    variables = toy.make_system(config).init(jax.random.key(0), {"image": jnp.zeros((1, 4, 4, 3))})
    tree = state.create(
        variables, optim.make_optimizer(config.optim), lambda path: True, ema=False, loss_scale=None
    )
    assert tree.averaged["params"] is tree.params
