import argparse

import numpy as np
import pytest

from sm_jax.errors import run_main
from sm_jax.weights import cli
from sm_jax.weights.io import read_tensors, write_tensors
from tests.weights import build


@pytest.fixture
def command(monkeypatch, capsys):
    monkeypatch.delenv("SM_JAX_WEIGHTS", raising=False)

    def run(*words):
        parser = argparse.ArgumentParser()
        cli.add_parser(parser.add_subparsers())
        args = parser.parse_args(["weights", *map(str, words)])
        code = run_main(lambda: args.run(args))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_list_names_everything_and_other_files(command, tmp_path, monkeypatch):
    write_tensors(tmp_path / "mine.safetensors", {"a": np.zeros(1, np.float32)}, {})
    monkeypatch.setenv("SM_JAX_WEIGHTS", str(tmp_path))
    code, out, err = command("list")
    assert code == 0 and not err
    for word in (
        "resnet50-caffe-c4",
        "comes with sm_jax",
        "resnet101-tv",
        "BSD-3-Clause",
        "mine.safetensors",
    ):
        assert word in out


def test_show_prints_facts_tensors_and_card(command):
    code, out, _ = command("show", "resnet50-caffe-c4", "--tensors")
    assert code == 0
    for word in ("f9ff76422ac44d40", "MIT", "resnet50-c4, in torchvision names", "258, 8,573,931 numbers"):
        assert word in out
    assert "layer3.5.conv3.weight" in out and "Good to know" in out


def test_show_of_other_files_still_works(command, tmp_path):
    write_tensors(tmp_path / "mine.safetensors", {"a": np.zeros(1, np.float32)}, {"by": "me"})
    code, out, _ = command("show", tmp_path / "mine.safetensors")
    assert code == 0 and "no network of sm_jax" in out and "[by]" in out


def test_convert_then_verify(command, tmp_path):
    write_tensors(tmp_path / "in.safetensors", build.transformnet(4), {})
    out_path = tmp_path / "out.safetensors"
    code, out, err = command("convert", tmp_path / "in.safetensors", out_path, "--dtype", "f16")
    assert code == 0 and not err
    assert "TransformNet 4 parameters, in transformnet names" in out and "not used: 2 tensors" in out
    assert read_tensors(out_path)[1]["source_format"] == "transformnet"
    code, _, err = command("convert", tmp_path / "in.safetensors", out_path)
    assert code == 2 and "exists; give another name, or --force" in err
    assert command("convert", tmp_path / "in.safetensors", out_path, "--force")[0] == 0
    code, out, _ = command("verify", out_path)
    assert code == 0 and "no hash on record" in out


def test_options_of_a_format(command, tmp_path):
    """A detector trained on RGB pixels divided by a deviation: its first convolution is rescaled alone."""
    tensors = {
        f"backbone.body.{'' if name.startswith('layer') else 'stem.'}{name}": value
        for name, value in build.resnet(50).items()
    }
    write_tensors(tmp_path / "in.safetensors", tensors, {})
    options = ["--pixel-std", "10", "20", "40", "--rgb255"]
    assert command("convert", tmp_path / "in.safetensors", tmp_path / "a.safetensors", *options)[0] == 0
    assert command("convert", tmp_path / "in.safetensors", tmp_path / "b.safetensors")[0] == 0
    name = "params/backbone/conv1/kernel"
    one, other = (read_tensors(tmp_path / f"{file}.safetensors")[0][name] for file in "ab")
    stem = tensors["backbone.body.stem.conv1.weight"].transpose(2, 3, 1, 0)
    std = np.float32([0.229, 0.224, 0.225])[:, None]
    np.testing.assert_allclose(one, stem * (255 / np.float32([10, 20, 40]))[:, None] * std, rtol=1e-5)
    np.testing.assert_allclose(other, stem[:, :, ::-1] * 255 * std, rtol=1e-5)
    write_tensors(tmp_path / "net.safetensors", build.transformnet(4), {})
    code, _, err = command("convert", tmp_path / "net.safetensors", tmp_path / "c.safetensors", "--rgb255")
    assert code == 2 and "transformnet names, for which there is no option to_bgr255" in err


def test_verify_of_the_packaged_files(command):
    code, out, _ = command("verify")
    assert code == 0 and "as registered" in out and "resnet50-c4, 215 tensors" in out


def test_verify_reports_damage(command, tmp_path):
    tensors = build.transformnet(4)
    del tensors["linear.bias"]
    write_tensors(tmp_path / "in.safetensors", tensors, {})
    code, _, err = command("verify", tmp_path / "in.safetensors")
    assert code == 2 and err.startswith("error: ") and "- linear.bias" in err
    code, out, _ = command("verify", tmp_path / "in.safetensors", "resnet50-caffe-c4")
    assert code == 1 and "FAILED" in out and "as registered" in out
    code, _, err = command("verify", "elephant")
    assert code == 2 and err.count("\n") == 1


def test_show_of_no_name_is_one_line(command):
    code, out, err = command("show", "")
    assert code == 2 and not out and err.startswith("error: give a name") and err.count("\n") == 1
