import argparse
import sys

import numpy as np
import pytest

from sm_jax.errors import WeightsError
from sm_jax.weights import checkpoints, formats
from sm_jax.weights.io import load_variables, read_tensors, write_tensors
from tests.weights import build


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def as_torch(torch, tensors):
    return {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}


def test_official_checkpoint_file_to_safetensors(tmp_path, torch):
    net = build.os2d(parameters=4)
    data = {
        "net": as_torch(torch, net),
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]},
        "criterion_value": np.float64(0.9),
        "criterion_dataset": "grozi",
    }
    torch.save(data, tmp_path / "best.pth")
    converted = checkpoints.convert_file(tmp_path / "best.pth", tmp_path / "best.safetensors")
    assert converted.format == "os2d" and converted.architecture.parameters == 4
    again, metadata = checkpoints.read(tmp_path / "best.safetensors")
    assert again.format == "sm_jax" and again.architecture == converted.architecture
    assert metadata["source_format"] == "os2d" and metadata["source_file"] == "best.pth"
    for name, value in converted.tensors.items():
        np.testing.assert_array_equal(again.tensors[name], value)
    assert load_variables(tmp_path / "best.safetensors").keys() == {"params", "batch_stats"}


def test_weakalign_file_with_options_and_old_container(tmp_path, torch):
    data = {"state_dict": as_torch(torch, build.weakalign(None)), "args": argparse.Namespace(lr=1e-3)}
    path = tmp_path / "weakalign.pth.tar"
    torch.save(data, path, _use_new_zipfile_serialization=False)
    assert formats.convert(checkpoints.read_foreign(path)).format == "weakalign"


def test_half_precision_torch_tensors_and_the_state_dict_itself(tmp_path, torch):
    tensors = {
        name: value.half() for name, value in as_torch(torch, build.transformnet()).items() if value.ndim
    }
    torch.save(tensors, tmp_path / "t.pth")
    converted = checkpoints.convert_file(tmp_path / "t.pth", tmp_path / "t.safetensors", dtype="f16")
    again, _ = checkpoints.read(tmp_path / "t.safetensors")
    for name, value in converted.tensors.items():
        assert again.tensors[name].dtype == np.float32
        np.testing.assert_array_equal(again.tensors[name], value)


class Harmful:
    def __reduce__(self):
        return (print, ("code ran",))


def test_code_in_a_checkpoint_is_never_run(tmp_path, torch, capsys):
    torch.save({"net": Harmful()}, tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match="holds objects other than tensors") as error:
        checkpoints.read_foreign(tmp_path / "bad.pth")
    assert "\n" not in str(error.value)
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"hi\n", b"not a checkpoint", b"PK\x03\x04 half an archive"])
def test_damaged_torch_files_are_one_clear_line(tmp_path, torch, content):
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=r"bad\.pth: .*damaged( one \([A-Za-z]|,)") as error:
        checkpoints.read_foreign(tmp_path / "bad.pth")
    assert "\n" not in str(error.value)


def test_other_content_is_named(tmp_path, torch):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="holds a list, not a dict of tensors"):
        checkpoints.read_foreign(tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "dict.pth")
    with pytest.raises(WeightsError, match="'epoch' is a int, not a tensor"):
        checkpoints.read_foreign(tmp_path / "dict.pth")


def test_without_torch_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "a.pth").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"needs torch; pip install 'sm_jax\[convert\]'"):
        checkpoints.read_foreign(tmp_path / "a.pth")


def test_npz_is_read_and_pickles_never(tmp_path):
    np.savez(tmp_path / "t.npz", **build.transformnet(4))
    converted = checkpoints.convert_file(tmp_path / "t.npz", tmp_path / "t.safetensors")
    assert converted.architecture.parameters == 4
    (tmp_path / "r.pkl").write_bytes(b"")
    np.savez(tmp_path / "object.npz", a=np.array([None]))
    (tmp_path / "broken.npz").write_bytes(b"PK")
    for name, message in (
        ("r.pkl", "pickles run code"),
        ("object.npz", "readable .npz file of plain arrays"),
        ("broken.npz", "readable .npz file"),
        ("", "a folder; give the name"),
    ):
        with pytest.raises(WeightsError, match=message) as error:
            checkpoints.read_foreign(tmp_path / name)
        assert "allow_pickle" not in str(error.value)
    with pytest.raises(WeightsError, match="no such file"):
        checkpoints.read_foreign(tmp_path / "absent.npz")


def test_run_time_reading_refuses_torch_files_with_the_command(tmp_path):
    with pytest.raises(WeightsError, match=r"'sm-jax weights convert .*v2.pth v2.safetensors'"):
        checkpoints.read(tmp_path / "v2.pth")


def test_published_safetensors_are_converted_while_reading(tmp_path):
    tensors = build.resnet(50)
    write_tensors(tmp_path / "tv.safetensors", tensors, {})
    converted, _ = checkpoints.read(tmp_path / "tv.safetensors")
    assert converted.format == "torchvision" and len(read_tensors(tmp_path / "tv.safetensors")[0]) == 258
