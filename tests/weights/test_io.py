import numpy as np
import pytest
from safetensors.numpy import save_file

from sm_jax.errors import WeightsError
from sm_jax.weights import io


@pytest.fixture
def variables():
    rng = np.random.default_rng(0)
    return {
        "params": {"backbone": {"conv1": {"kernel": rng.standard_normal((2, 2, 3, 4), dtype=np.float32)}}},
        "batch_stats": {"backbone": {"bn1": {"var": np.full(4, 1e6, np.float32)}}},
    }


def test_flatten_round_trip(variables):
    flat = io.flatten(variables)
    assert sorted(flat) == ["batch_stats/backbone/bn1/var", "params/backbone/conv1/kernel"]
    assert io.flatten(io.unflatten(flat)).keys() == flat.keys()


@pytest.mark.parametrize(("dtype", "tolerance"), [("f32", 0), ("f16", 1e-3)])
def test_variables_round_trip(tmp_path, variables, dtype, tolerance):
    path = tmp_path / "new" / "v.safetensors"
    io.save_variables(path, variables, {"note": "hello"}, dtype=dtype)
    loaded = io.flatten(io.load_variables(path))
    for name, value in io.flatten(variables).items():
        assert loaded[name].dtype == np.float32
        np.testing.assert_allclose(loaded[name], value, rtol=tolerance)
    assert loaded["batch_stats/backbone/bn1/var"][0] == 1e6  # beyond the range of half precision
    assert io.read_tensors(path)[1]["note"] == "hello"
    assert [file.name for file in path.parent.iterdir()] == ["v.safetensors"]


def test_saving_refuses_what_it_cannot_keep(tmp_path, variables):
    with pytest.raises(WeightsError, match="written as .safetensors"):
        io.save_variables(tmp_path / "v.npz", variables)
    with pytest.raises(WeightsError, match="dtype 'f64'"):
        io.save_variables(tmp_path / "v.safetensors", variables, dtype="f64")
    variables["params"]["backbone"]["conv1"]["kernel"][0] = 1e6
    with pytest.raises(WeightsError, match="does not fit half precision"):
        io.save_variables(tmp_path / "v.safetensors", variables, dtype="f16")
    variables["params"]["backbone"]["conv1"]["kernel"][0] = np.inf
    with pytest.raises(WeightsError, match="NaN or infinity"):
        io.save_variables(tmp_path / "v.safetensors", variables)
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="cannot be written"):
        io.write_tensors(tmp_path / "file" / "v.safetensors", {"a": np.zeros(1)}, {})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_precisions_are_read_as_float32(tmp_path, dtype):
    import ml_dtypes

    values = np.array([0.5, -2.0], np.dtype(getattr(ml_dtypes, dtype, dtype)))
    save_file({"a": values, "n": np.array([3], np.int64)}, tmp_path / "v.safetensors")
    tensors, _ = io.read_tensors(tmp_path / "v.safetensors")
    assert tensors["a"].dtype == np.float32 and tensors["n"].dtype == np.int64
    np.testing.assert_array_equal(tensors["a"], [0.5, -2.0])


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_truncated_files_are_one_clear_line(tmp_path, keep):
    path = tmp_path / "v.safetensors"
    save_file({"a": np.zeros(100, np.float32)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match="not a readable safetensors file, or a damaged one") as error:
        io.read_tensors(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_absent_foreign_empty_and_non_finite_files(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        io.read_tensors(tmp_path / "absent.safetensors")
    with pytest.raises(WeightsError, match="a folder; give"):
        io.read_tensors(tmp_path)
    (tmp_path / "text.safetensors").write_text("a picture of a cat, certainly no weights")
    with pytest.raises(WeightsError, match="not a readable"):
        io.read_tensors(tmp_path / "text.safetensors")
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(WeightsError, match="holds no tensors"):
        io.read_tensors(tmp_path / "empty.safetensors")
    save_file({"a": np.array([1, np.nan], np.float16)}, tmp_path / "nan.safetensors")
    with pytest.raises(WeightsError, match="NaN or infinity in 1 tensors, first: a"):
        io.read_tensors(tmp_path / "nan.safetensors")
    save_file({"conv1.weight": np.zeros(1, np.float32)}, tmp_path / "foreign.safetensors")
    with pytest.raises(WeightsError, match="not in the naming of sm_jax"):
        io.load_variables(tmp_path / "foreign.safetensors")


def test_shape_comparison_lists_minus_and_plus():
    with pytest.raises(WeightsError) as error:
        io.check_shapes({"b": (2,), "c": (1,)}, {"a": (3,), "b": (2, 2)}, where="f", what="net")
    assert str(error.value).splitlines() == [
        "f does not fit net: 1 missing, 1 unexpected, 1 of another shape (- expected, + found)",
        "- a (3,)",
        "- b (2, 2)",
        "+ b (2,)",
        "+ c (1,)",
    ]
    io.check_shapes({"b": (2,)}, {"b": (2,)}, where="f", what="net")


def test_long_lists_are_cut():
    expected = {f"t{i:04d}": (1,) for i in range(100)}
    with pytest.raises(WeightsError) as error:
        io.check_shapes({}, expected, where="f", what="net")
    lines = str(error.value).splitlines()
    assert len(lines) == io.SHOWN + 2 and lines[-1] == f"- ... and {100 - io.SHOWN} more"
