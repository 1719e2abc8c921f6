import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax import weights
from sm_jax.errors import WeightsError
from sm_jax.weights import io, structure
from tests.weights import build

NAME = "resnet50-caffe-c4"


def abstract(depth=50, norm="batch_norm", parameters=4, dtype=jnp.float32):
    shapes = structure.Architecture(depth, norm, parameters).shapes()
    return io.unflatten({name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes.items()})


def init(backbone="", transform="", model=""):
    return {"backbone": backbone, "transform": transform, "model": model}


def flat(variables):
    return io.flatten(variables)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A full OS2D file (4 parameters), a TransformNet file and a full one of 6 parameters, in our naming."""
    folder = tmp_path_factory.mktemp("weights")
    for name, tensors in (
        ("full4", build.os2d(parameters=4)),
        ("full6", build.os2d(parameters=6)),
        ("transform4", build.transformnet(4, seed=9)),
    ):
        converted = weights.convert(tensors)
        io.save_variables(folder / f"{name}.safetensors", io.unflatten(converted.tensors))
    return folder


def test_packaged_backbone_fills_exactly_the_backbone():
    variables, report = weights.initialize(abstract(), init(backbone=NAME))
    assert jax.tree.structure(variables) == jax.tree.structure(abstract())
    leaves = flat(variables)
    assert all(isinstance(leaf, np.ndarray) for name, leaf in leaves.items() if "/backbone/" in name)
    assert all(
        isinstance(leaf, jax.ShapeDtypeStruct) for name, leaf in leaves.items() if "/transform/" in name
    )
    assert len(report) == 2
    assert (
        report[0].startswith(f"backbone: 215 tensors from {NAME} (resnet50_caffe")
        and "43 unused" in report[0]
    )
    assert report[1].startswith("transform: untrained start") and "config.init.transform" in report[1]


def test_random_start_says_so_and_how_to_get_real_weights():
    start = abstract()
    variables, report = weights.initialize(start, init())
    assert flat(variables) == flat(start)
    assert "RANDOM" in report[0] and "config.init.backbone=resnet50-caffe-c4" in report[0]
    _, report = weights.initialize(abstract(depth=101), init())
    assert "config.init.backbone=resnet101-tv" in report[0]


def test_model_gives_everything_and_wins_over_backbone(files):
    path = str(files / "full4.safetensors")
    variables, report = weights.initialize(abstract(), init(backbone=NAME, model=path))
    expected = io.load_variables(path)
    assert flat(variables).keys() == flat(expected).keys()
    for name, value in flat(expected).items():
        np.testing.assert_array_equal(flat(variables)[name], value)
    assert (
        report[0].startswith("model: 229 tensors from ") and "is not used" in report[1] and len(report) == 2
    )


def test_transform_overrides_the_model(files):
    asked = init(model=str(files / "full4.safetensors"), transform=str(files / "transform4.safetensors"))
    variables, report = weights.initialize(abstract(), asked)
    expected = flat(io.load_variables(files / "transform4.safetensors"))
    model = flat(io.load_variables(files / "full4.safetensors"))
    for name, value in flat(variables).items():
        np.testing.assert_array_equal(value, expected[name] if "/transform/" in name else model[name])
    assert [line.split(":")[0] for line in report] == ["model", "transform"]


def test_parts_of_a_full_file_can_be_taken(files):
    path = str(files / "full6.safetensors")
    variables, report = weights.initialize(abstract(parameters=4), init(backbone=path))
    assert isinstance(flat(variables)["params/backbone/conv1/kernel"], np.ndarray)
    assert "the other 14 tensors of the file are not used" in report[0]
    with pytest.raises(WeightsError) as error:
        weights.initialize(abstract(parameters=4), init(transform=path))
    text = str(error.value)
    assert "- params/transform/linear/kernel (5, 5, 64, 4)" in text
    assert "+ params/transform/linear/kernel (5, 5, 64, 6)" in text


def test_wrong_parts_and_files_are_refused(files, tmp_path):
    with pytest.raises(WeightsError, match="config.init.backbone: .* holds no backbone weights"):
        weights.initialize(abstract(), init(backbone=str(files / "transform4.safetensors")))
    with pytest.raises(WeightsError, match="does not fit this model"):
        weights.initialize(abstract(), init(model=str(files / "transform4.safetensors")))
    with pytest.raises(WeightsError, match="does not fit the backbone of this model"):
        weights.initialize(abstract(depth=101), init(backbone=NAME))
    with pytest.raises(WeightsError, match=r"\+ batch_stats/backbone/bn1/mean"):
        weights.initialize(abstract(norm="group_norm"), init(backbone=NAME))
    (tmp_path / "net.pth").write_bytes(b"")
    with pytest.raises(WeightsError, match="weights convert"):
        weights.initialize(abstract(), init(model=str(tmp_path / "net.pth")))


def test_dtypes_and_devices_of_concrete_variables_are_kept(files):
    leaves = {
        name: leaf for name, leaf in flat(abstract(dtype=jnp.bfloat16)).items() if "/transform/" in name
    }
    device = jax.devices()[3]
    start = {name: jax.device_put(jnp.zeros(leaf.shape, leaf.dtype), device) for name, leaf in leaves.items()}
    variables, _ = weights.initialize(
        io.unflatten(start), init(transform=str(files / "transform4.safetensors"))
    )
    for leaf in flat(variables).values():
        assert leaf.dtype == jnp.bfloat16 and leaf.devices() == {device}


def test_a_run_folder_gives_the_model(tmp_path, monkeypatch):
    training = pytest.importorskip("sm_jax.training")
    full = io.unflatten(weights.convert(build.os2d(parameters=4)).tensors)
    monkeypatch.setattr(training, "restore_variables", lambda folder: (full, {"step": 7}), raising=False)
    variables, report = weights.initialize(abstract(), init(model=str(tmp_path)))
    assert report == [f"model: 229 tensors from the run in {tmp_path}, step 7"]
    np.testing.assert_array_equal(
        flat(variables)["params/transform/linear/bias"], full["params"]["transform"]["linear"]["bias"]
    )


def test_config_dict_and_plain_objects_are_understood():
    ml_collections = pytest.importorskip("ml_collections")
    import types

    small = {name: leaf for name, leaf in flat(abstract()).items() if "/transform/" in name}
    for asked in (ml_collections.ConfigDict(init()), types.SimpleNamespace(transform=""), {}):
        _, report = weights.initialize(io.unflatten(small), asked)
        assert len(report) == 1


def test_a_trained_scnet_a_starts_an_ag_plus(tmp_path):
    """Its one embedding becomes both; a file with both is taken as it is, and one with neither refused."""
    part = {"kernel": np.arange(6.0, dtype=np.float32).reshape(3, 2), "bias": np.ones(2, np.float32)}
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), part)
    wanted = {"params": {"fc": shapes, "fc_geometry": shapes}}
    path = tmp_path / "a.safetensors"
    io.save_variables(path, {"params": {"fc": part}})
    variables, lines = weights.initialize(wanted, {"model": str(path)})
    for name in ("fc", "fc_geometry"):
        np.testing.assert_array_equal(variables["params"][name]["kernel"], part["kernel"])
    assert any("fc_geometry: starts as a copy of fc" in line for line in lines)
    other = jax.tree.map(lambda x: 2 * x, part)
    io.save_variables(tmp_path / "both.safetensors", {"params": {"fc": part, "fc_geometry": other}})
    variables, lines = weights.initialize(wanted, {"model": str(tmp_path / "both.safetensors")})
    np.testing.assert_array_equal(variables["params"]["fc_geometry"]["kernel"], other["kernel"])
    assert not any("copy" in line for line in lines)
    io.save_variables(tmp_path / "geometry.safetensors", {"params": {"fc_geometry": part}})
    with pytest.raises(WeightsError):
        weights.initialize(wanted, {"model": str(tmp_path / "geometry.safetensors")})
