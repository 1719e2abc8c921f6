"""One device, eight, and FSDP give the same run; a checkpoint moves between them."""

import jax
import numpy as np
import pytest

from sm_jax.training import metrics, restore_variables, train
from tests.training import checks, toy

CLOSE = {"rtol": 2e-5, "atol": 2e-6}
BASE = {"model__conv": True, "model__width": 8, "steps": 4, "checkpoint__every": 2}


def _losses(folder):
    return [line["loss"] for line in metrics.read(folder) if "loss" in line]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return folder, train(toy.make_config(**BASE), folder, parts=toy.make_parts())


@pytest.mark.parametrize("mesh", [{"data": 8, "fsdp": 1}, {"data": 2, "fsdp": 4}])
def test_eight_devices_are_one_device(tmp_path, one, mesh):
    config = toy.make_config(**BASE, mesh__data=mesh["data"], mesh__fsdp=mesh["fsdp"])
    state = train(config, tmp_path, parts=toy.make_parts())
    kernel = state.params["body"]["conv"]["kernel"]
    assert len(kernel.sharding.device_set) == 8
    assert kernel.is_fully_replicated == (mesh["fsdp"] == 1)
    momentum = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == kernel.shape]
    assert momentum[0].sharding == kernel.sharding
    np.testing.assert_allclose(_losses(tmp_path), _losses(one[0]), rtol=1e-5)
    checks.assert_close(state, one[1], **CLOSE)


@pytest.mark.parametrize(("before", "after"), [((2, 4), (1, 1)), ((1, 1), (2, 4)), ((8, 1), (1, 2))])
def test_a_run_continues_on_another_number_of_devices(tmp_path, one, before, after):
    for (data, fsdp), steps in ((before, 2), (after, 4)):
        config = toy.make_config(**BASE | {"steps": steps}, mesh__data=data, mesh__fsdp=fsdp)
        state = train(config, tmp_path, parts=toy.make_parts())
    assert len(state.params["body"]["conv"]["kernel"].sharding.device_set) == after[0] * after[1]
    checks.assert_close(state, one[1], **CLOSE)
    variables, _ = restore_variables(tmp_path)
    assert all(leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(variables))
    checks.assert_close(variables, one[1].averaged, **CLOSE)


def test_evaluators_get_whole_arrays_on_one_device(tmp_path):
    seen = []

    def hook(variables):
        seen.extend(leaf.devices() for leaf in jax.tree.leaves(variables))
        return 0.0

    config = toy.make_config(steps=0, eval_every=1, mesh__data=2, mesh__fsdp=4)
    train(config, tmp_path, parts=toy.make_parts(hook=hook))
    assert seen and all(devices == {jax.devices()[0]} for devices in seen)
