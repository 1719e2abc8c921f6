import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import P
from ml_collections import ConfigDict

from sm_jax.errors import ConfigError
from sm_jax.training import optim, sharding, state


def _mesh(data, fsdp):
    return sharding.make_mesh(ConfigDict({"data": data, "fsdp": fsdp}))


@pytest.mark.parametrize(
    ("data", "fsdp", "shape"),
    [(-1, 1, (8, 1)), (2, 4, (2, 4)), (-1, 4, (2, 4)), (4, -1, (4, 2)), (1, 1, (1, 1))],
)
def test_mesh(data, fsdp, shape):
    assert tuple(_mesh(data, fsdp).shape.values()) == shape


@pytest.mark.parametrize(
    ("data", "fsdp", "words"),
    [(-1, -1, "one of them"), (0, 1, "at least 1"), (16, 1, "there are 8"), (-1, 3, "divide")],
)
def test_impossible_meshes_are_one_clear_line(data, fsdp, words):
    with pytest.raises(ConfigError, match=words):
        _mesh(data, fsdp)


def test_infer_splits_large_arrays_and_what_has_their_shape():
    mesh = _mesh(2, 4)
    params = {
        "a": {"kernel": jnp.zeros((3, 3, 8, 16)), "bias": jnp.zeros(16)},
        "odd": jnp.zeros((9, 9)),
        "n": 0.0,
    }
    params = jax.tree.map(jnp.asarray, params)
    optimizer = optim.make_optimizer(ConfigDict({"name": "sgd"}))
    shapes = jax.eval_shape(
        lambda p: state.create({"params": p}, optimizer, lambda path: True, ema=True, loss_scale=None), params
    )
    found = {k: v.spec for k, v in state.to_flat(sharding.infer(shapes, mesh, min_size=32)).items()}
    kernels = [spec for path, spec in found.items() if path.endswith("a/kernel")]
    assert kernels == [P(None, None, None, "fsdp")] * 3  # params, momentum, average
    assert all(spec == P() for path, spec in found.items() if not path.endswith("a/kernel"))
    ruled = sharding.infer(params, mesh, [("bias", P("fsdp")), ("kernel|bias", P())], min_size=32)
    assert ruled["a"]["bias"].spec == P("fsdp") and ruled["a"]["kernel"].spec == P()


def test_batch_lies_over_all_axes_and_the_rest_is_replicated():
    mesh = _mesh(2, 4)
    batch = {"image": np.zeros((8, 2)), "query": np.zeros((15, 2)), "scalar": np.zeros(())}
    placed = sharding.put(batch, sharding.batch_sharding(batch, mesh))
    assert placed["image"].sharding.spec == P(("data", "fsdp"))
    assert placed["query"].is_fully_replicated and placed["scalar"].is_fully_replicated


def test_a_batch_that_does_not_divide_names_one_that_does():
    with pytest.raises(ConfigError, match="batch_size=12 does not divide over 8 devices; use batch_size=16"):
        sharding.check_batch_size(_mesh(8, 1), 12)


def test_to_local_gathers_split_arrays():
    mesh = _mesh(2, 4)
    array = jax.device_put(np.arange(8.0), jax.NamedSharding(mesh, P("fsdp")))
    (local,) = sharding.to_local([array], mesh)
    assert local.devices() == {jax.devices()[0]}
    np.testing.assert_array_equal(local, np.arange(8.0))


def test_distributed_without_a_cluster_is_one_clear_line(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "many")
    with pytest.raises(ConfigError, match="JAX_NUM_PROCESSES"):
        sharding.start_distributed(ConfigDict({"distributed": True}))
