"""Caffe's GoogLeNet made up by its documented names, the packaged one, and two branches from one file."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax import weights
from sm_jax.backbones import googlenet as network
from sm_jax.errors import ConfigError, WeightsError
from sm_jax.weights import checkpoints, formats, googlenet, io, registry
from tests.weights import build

LISTED = {
    "conv1_7x7_s2/weight": (64, 3, 7, 7),
    "conv2_3x3_reduce/bias": (64,),
    "inception_3a/5x5/weight": (32, 16, 5, 5),
    "inception_4e/pool_proj/weight": (128, 528, 1, 1),
    "inception_5b/3x3_reduce/weight": (192, 832, 1, 1),
    "loss3_classifier/weight": (10, 1024),
}


def made_up(classes=10):
    return build.random_entries(googlenet.entries(classes))


def two_branches():
    """Shapes of a model with two GoogLeNets and a head."""
    tree = jax.eval_shape(network.GoogLeNet().init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    head = {"coverage": {"bias": jax.ShapeDtypeStruct((1,), jnp.float32)}}
    return {"params": {"image_branch": tree, "request_branch": tree, "head": head}}


def test_files_are_recognised_and_converted_completely():
    tensors = made_up()
    assert len(tensors) == 116
    for name, shape in LISTED.items():
        assert tensors[name].shape == shape
    extra = {"loss1_fc/weight": np.zeros((4, 4), np.float32), "loss2_conv/bias": np.zeros(4, np.float32)}
    converted = formats.convert(tensors | extra)
    assert converted.format == "caffe-googlenet" and converted.ignored == tuple(extra)
    assert str(converted.architecture) == "googlenet + classifier of 10 classes"
    assert {n: a.shape for n, a in converted.tensors.items()} == converted.architecture.shapes()
    again = formats.convert(converted.tensors)
    assert again.format == "sm_jax" and again.architecture == converted.architecture
    kernel = converted.tensors["params/backbone/inception_3a/five/kernel"]
    assert kernel[1, 3, 5, 7] == tensors["inception_3a/5x5/weight"][7, 5, 1, 3]
    kernel = converted.tensors["params/backbone/conv1/kernel"]
    np.testing.assert_array_equal(kernel[2, 4, :, 9], tensors["conv1_7x7_s2/weight"][9, :, 2, 4])  # stays BGR
    back = formats.to_torch(converted.tensors)
    assert back.keys() == tensors.keys()
    for name, value in back.items():
        np.testing.assert_array_equal(value, tensors[name])


def test_names_and_shapes_are_those_of_the_network():
    shapes = io.flatten(two_branches())
    shapes = {name: tuple(leaf.shape) for name, leaf in shapes.items()}
    found = googlenet.recognise(shapes)
    assert str(found) == "googlenet + image_branch + request_branch + head" and found.depth is None
    assert found.shapes() == {name: shape for name, shape in shapes.items() if "/head/" not in name}
    head = jax.eval_shape(network.Classifier().init, jax.random.key(0), jnp.zeros((1, 1, 1, 1024)))
    for name, leaf in head["params"].items():
        assert googlenet.GoogLeNet(1000).shapes()[f"params/classifier/{name}"] == leaf.shape
    widths = {stage: tuple(w) for stage, w in network.MODULES.items()}
    assert widths == googlenet.MODULES


@pytest.mark.parametrize("damage", ["missing", "extra", "misshapen"])
def test_strict_both_ways_in_the_names_of_the_file(damage):
    tensors, victim = made_up(), "inception_4e/pool_proj/weight"
    if damage == "missing":
        del tensors[victim]
    else:
        tensors["stowaway" if damage == "extra" else victim] = np.zeros((2, 2))
    lines = {
        "missing": [f"- {victim} ("],
        "extra": ["+ stowaway (2, 2)"],
        "misshapen": [f"- {victim} (128", f"+ {victim} (2, 2)"],
    }[damage]
    with pytest.raises(WeightsError) as error:
        formats.convert(tensors, where="file.safetensors")
    assert "googlenet + classifier of 10 classes in caffe-googlenet names" in str(error.value)
    for line in lines:
        assert re.search("^" + re.escape(line), str(error.value), re.MULTILINE), str(error.value)


def test_one_backbone_starts_both_branches(tmp_path):
    source, target = tmp_path / "caffe.safetensors", tmp_path / "mine.safetensors"
    tensors = made_up()
    io.write_tensors(source, tensors, {})
    checkpoints.convert_file(source, target)
    assert io.read_tensors(target)[1]["input"].startswith("BGR 0..255")
    for path in (source, target):
        loaded, report = weights.initialize(two_branches(), {"backbone": str(path)})
        for part in ("image_branch", "request_branch"):
            kernel = loaded["params"][part]["conv1"]["kernel"]
            np.testing.assert_array_equal(
                kernel[..., 0].transpose(2, 0, 1), tensors["conv1_7x7_s2/weight"][0]
            )
        assert isinstance(loaded["params"]["head"]["coverage"]["bias"], jax.ShapeDtypeStruct)
        assert [line.split(":")[0] for line in report] == ["image_branch", "request_branch", "head"]
        assert "114 tensors from" in report[0] and "the other 2 tensors of the file are not used" in report[1]


def test_a_branch_of_its_own_and_a_whole_model_win_over_the_backbone(tmp_path):
    shapes = io.flatten(two_branches())
    rng = np.random.default_rng(0)
    values = {name: rng.random(leaf.shape, np.float32) for name, leaf in shapes.items()}
    other = formats.convert(made_up()).tensors
    weights.save_variables(tmp_path / "whole.safetensors", io.unflatten(values))
    weights.save_variables(tmp_path / "other.safetensors", io.unflatten(other))
    whole, path = str(tmp_path / "whole.safetensors"), str(tmp_path / "other.safetensors")

    def bias(tree, part):
        return tree["params"][part]["conv1"]["bias"]

    want, mine = other["params/backbone/conv1/bias"], values["params/image_branch/conv1/bias"]
    loaded, report = weights.initialize(two_branches(), {"model": whole, "request_branch": path})
    np.testing.assert_array_equal(bias(loaded, "request_branch"), want)
    np.testing.assert_array_equal(bias(loaded, "image_branch"), mine)
    loaded, report = weights.initialize(two_branches(), {"model": whole, "backbone": path})
    np.testing.assert_array_equal(bias(loaded, "image_branch"), mine)
    assert "is not used" in report[1] and len(report) == 2
    loaded, _ = weights.initialize(two_branches(), {"backbone": path, "image_branch": whole})
    np.testing.assert_array_equal(bias(loaded, "request_branch"), want)
    np.testing.assert_array_equal(bias(loaded, "image_branch"), mine)


def test_without_weights_the_report_says_random_and_names_them():
    _, report = weights.initialize(two_branches(), {"backbone": "", "model": ""})
    assert len(report) == 3
    for part, line in zip(("image_branch", "request_branch"), report, strict=False):
        assert line.startswith(f"{part}: RANDOM start") and "config.init.backbone=googlenet-bvlc" in line
    with pytest.raises(ConfigError, match="init.transform"):
        weights.initialize(two_branches(), {"transform": "x"})
    head = {"params": {"head": two_branches()["params"]["head"]}}
    with pytest.raises(ConfigError, match="no such part"):
        weights.initialize(head, {"backbone": "googlenet-bvlc"})


def test_packaged_file_is_the_registered_one_and_small():
    path = registry.resolve("googlenet-bvlc")
    known, text = registry.REGISTRY["googlenet-bvlc"], registry.card(path)
    for fact in (known.sha256, "unrestricted use", "5,973,552", "104 117 123", "0.07 %"):
        assert fact in text
    assert path.parent == registry.PACKAGED and path.stat().st_size < 12.5e6
    converted, _ = checkpoints.read(path)
    assert converted.architecture == googlenet.GoogLeNet() and not converted.ignored
    assert "BGR" in known.input


def test_what_cannot_be_downloaded_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("SM_JAX_WEIGHTS", str(tmp_path))
    with pytest.raises(
        WeightsError, match="googlenet-bvlc-f32: not on this machine; put .*caffemodel.* set SM"
    ):
        registry.resolve("googlenet-bvlc-f32")
