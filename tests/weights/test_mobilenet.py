"""The three published forms of MobileNetV2, made up by their documented rules, and the registered ones."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax import weights
from sm_jax.backbones import mobilenet as network
from sm_jax.errors import WeightsError
from sm_jax.weights import checkpoints, formats, io, mobilenet, registry, structure
from tests.weights import build

LISTED = {
    "mobilenetv2": {
        "features.0.0.weight": (32, 3, 3, 3),
        "features.1.conv.0.0.weight": (32, 1, 3, 3),
        "features.1.conv.1.weight": (16, 32, 1, 1),
        "features.1.conv.2.running_var": (16,),
        "features.2.conv.0.0.weight": (96, 16, 1, 1),
        "features.2.conv.3.bias": (24,),
        "features.17.conv.1.0.weight": (960, 1, 3, 3),
        "features.17.conv.2.weight": (320, 960, 1, 1),
        "features.18.0.weight": (1280, 320, 1, 1),
        "classifier.1.weight": (10, 1280),
    },
    "mobilenetv2-timm": {
        "conv_stem.weight": (32, 3, 3, 3),
        "bn1.running_mean": (32,),
        "blocks.0.0.conv_dw.weight": (32, 1, 3, 3),
        "blocks.0.0.conv_pw.weight": (16, 32, 1, 1),
        "blocks.0.0.bn2.weight": (16,),
        "blocks.1.0.conv_pw.weight": (96, 16, 1, 1),
        "blocks.1.1.conv_pwl.weight": (24, 144, 1, 1),
        "blocks.3.3.conv_dw.weight": (384, 1, 3, 3),
        "blocks.6.0.bn3.bias": (320,),
        "conv_head.weight": (1280, 320, 1, 1),
        "bn2.running_var": (1280,),
        "classifier.weight": (10, 1280),
    },
    "mobilenetv2-tf": {
        "Conv/weight": (32, 3, 3, 3),
        "expanded_conv/depthwise/weight": (1, 3, 3, 32),
        "expanded_conv/project/bias": (16,),
        "expanded_conv_1/expand/weight": (96, 1, 1, 16),
        "expanded_conv_16/project/weight": (320, 1, 1, 960),
        "Conv_1/bias": (1280,),
        "Logits/weight": (10, 1, 1, 1280),
    },
}
ENTRIES = {
    "mobilenetv2": mobilenet.entries,
    "mobilenetv2-timm": mobilenet.timm_entries,
    "mobilenetv2-tf": mobilenet.tensorflow_entries,
}


def made_up(kind, classes=10):
    return build.random_entries(ENTRIES[kind](classes))


@pytest.mark.parametrize("kind", ENTRIES)
def test_forms_are_recognised_and_converted_completely(kind):
    tensors = made_up(kind)
    for name, shape in LISTED[kind].items():
        assert tensors[name].shape == shape
    counters = [name for name in tensors if name.endswith("num_batches_tracked")]
    assert len(tensors) == (106 if kind == "mobilenetv2-tf" else 52 * 5 + 52 + 2)
    converted = formats.convert(tensors)
    assert converted.format == kind and sorted(converted.ignored) == sorted(counters)
    assert str(converted.architecture) == "mobilenetv2 + classifier of 10 classes"
    shapes = {name: array.shape for name, array in converted.tensors.items()}
    assert shapes == converted.architecture.shapes()
    again = formats.convert(converted.tensors)
    assert again.format == "sm_jax" and again.architecture == converted.architecture
    without = {name: value for name, value in tensors.items() if not re.match("(?i)classifier|logits", name)}
    assert str(formats.convert(without).architecture) == "mobilenetv2"


def test_names_and_shapes_are_those_of_the_network():
    net = network.MobileNetV2()
    variables = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    flat = io.flatten({kind: {"backbone": tree} for kind, tree in variables.items()})
    assert {name: tuple(leaf.shape) for name, leaf in flat.items()} == mobilenet.MobileNet().shapes()
    expected = mobilenet.MobileNet(1000).shapes()
    head = jax.eval_shape(network.Classifier().init, jax.random.key(0), jnp.zeros((1, 1, 1, 1280)))
    for name, leaf in head["params"].items():
        assert expected[f"params/classifier/{name}"] == leaf.shape


@pytest.mark.parametrize("kind", ENTRIES)
@pytest.mark.parametrize("damage", ["missing", "extra", "misshapen"])
def test_strict_both_ways_in_the_names_of_the_file(kind, damage):
    tensors = made_up(kind)
    victim = list(LISTED[kind])[3]
    lines = {
        "missing": [rf"^- {re.escape(victim)} \("],
        "extra": [r"^\+ stowaway \(3,\)$"],
        "misshapen": [rf"^- {re.escape(victim)} \(", rf"^\+ {re.escape(victim)} \(2, 2\)$"],
    }[damage]
    if damage == "missing":
        del tensors[victim]
    else:
        tensors["stowaway" if damage == "extra" else victim] = np.zeros(3 if damage == "extra" else (2, 2))
    with pytest.raises(WeightsError) as error:
        formats.convert(tensors, where="file.safetensors")
    assert f"mobilenetv2 + classifier of 10 classes in {kind} names" in str(error.value)
    listed = [line for line in str(error.value).splitlines() if line[:2] in ("- ", "+ ")]
    assert len(listed) == len(lines)
    for line in lines:
        assert re.search(line, str(error.value), re.MULTILINE), str(error.value)


def test_timm_is_only_a_renaming():
    timm = made_up("mobilenetv2-timm")
    torch = dict(zip(mobilenet.entries(10), (timm[name] for name in mobilenet.timm_entries(10)), strict=True))
    got, want = formats.convert(timm).tensors, formats.convert(torch).tensors
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])
    kernel = got["params/backbone/features_1/project/kernel"]
    np.testing.assert_array_equal(kernel[0, 0].T, timm["blocks.0.0.conv_pw.weight"][:, :, 0, 0])
    kernel = got["params/backbone/features_2/depthwise/kernel"]
    np.testing.assert_array_equal(kernel[:, :, 0, 5], timm["blocks.1.0.conv_dw.weight"][5, 0])
    mean = got["batch_stats/backbone/features_2/depthwise_bn/mean"]
    np.testing.assert_array_equal(mean, timm["blocks.1.0.bn2.running_mean"])


def test_there_and_back_to_torchvision_names():
    tensors = made_up("mobilenetv2")
    back = formats.to_torch(formats.convert(tensors).tensors)
    assert len(back) == 52 * 5 + 2
    for name, value in back.items():
        np.testing.assert_array_equal(value, tensors[name])


@pytest.mark.parametrize("layout", ["ohwi", "1hwc", "oi", "o11i"])
def test_permutations_round_trip(layout):
    shape = {"ohwi": (4, 3, 5, 2), "1hwc": (1, 3, 5, 4), "oi": (4, 3), "o11i": (4, 1, 1, 3)}[layout]
    array = np.random.default_rng(0).standard_normal(shape)
    there = structure.to_ours(array, layout)
    assert there.shape == structure.Entry("", shape, layout).our_shape
    np.testing.assert_array_equal(structure.to_torch(there, layout), array)
    index, there_index = {
        "ohwi": ((1, 2, 4, 0), (2, 4, 0, 1)),
        "1hwc": ((0, 2, 4, 3), (2, 4, 0, 3)),
        "oi": ((1, 2), (2, 1)),
        "o11i": ((1, 0, 0, 2), (2, 1)),
    }[layout]
    assert there[there_index] == array[index]


def test_folded_tensorflow_net_gives_the_same_on_normalised_pictures():
    """The first two units of a made-up file, against TensorFlow's padding and input written out."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    tensors = {name: 5 * value for name, value in made_up("mobilenetv2-tf").items()}
    picture = np.random.default_rng(0).uniform(0, 1, (1, 7, 10, 3)).astype(np.float32)

    def layer(x, name, pads, stride=1, groups=1):
        kernel = torch.tensor(tensors[f"{name}/weight"])
        kernel = kernel.permute(3, 0, 1, 2) if groups > 1 else kernel.permute(0, 3, 1, 2)
        x = functional.pad(x, pads)
        return functional.conv2d(x, kernel, torch.tensor(tensors[f"{name}/bias"]), stride, groups=groups)

    x = torch.tensor(2 * picture - 1).permute(0, 3, 1, 2)
    x = functional.relu6(layer(x, "Conv", (0, 1, 1, 1), 2))  # width 10 is padded only on the right
    y = functional.relu6(layer(x, "expanded_conv/depthwise", (1, 1, 1, 1), groups=32))
    want = layer(y, "expanded_conv/project", (0, 0, 0, 0)).permute(0, 2, 3, 1).numpy()

    tree = io.unflatten(formats.convert(tensors).tensors)
    image = (picture - np.float32(mobilenet.MEAN)) / np.float32(mobilenet.STD)
    backbone = {kind: part["backbone"] for kind, part in tree.items()}
    got = network.MobileNetV2(padding="tf_same").apply(backbone, image, stop=2)["last"]
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


def test_a_whole_system_around_it_is_named_with_its_parts():
    tensors = formats.convert(made_up("mobilenetv2", None)).tensors
    tensors["params/rpn/conv/kernel"] = np.zeros((3, 3, 1280, 4), np.float32)
    architecture = formats.convert(tensors).architecture
    assert architecture.parts == ("rpn",) and str(architecture) == "mobilenetv2 + rpn"
    del tensors["params/backbone/features_4/project_bn/bias"]
    with pytest.raises(WeightsError, match="- params/backbone/features_4/project_bn/bias"):
        formats.convert(tensors)


def test_a_converted_file_serves_as_a_start(tmp_path):
    source, target = tmp_path / "model.safetensors", tmp_path / "mine.safetensors"
    tensors = made_up("mobilenetv2-timm")
    io.write_tensors(source, tensors, {})
    written = checkpoints.convert_file(source, target, dtype="f16")
    assert written.format == "mobilenetv2-timm"
    assert io.read_tensors(target)[1]["architecture"] == "mobilenetv2 + classifier of 10 classes"
    net = network.MobileNetV2()
    variables = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    start = {kind: {"backbone": tree} for kind, tree in variables.items()}
    for path, exact in ((source, 0), (target, 1e-3)):
        loaded, report = weights.initialize(start, {"backbone": str(path)})
        assert report[0].startswith("backbone: 260 tensors from ")
        assert report[0].endswith("the other 2 tensors of the file are not used")
        stem = loaded["params"]["backbone"]["features_0"]["conv"]["kernel"]
        np.testing.assert_allclose(stem[1, 2, 0], tensors["conv_stem.weight"][:, 0, 1, 2], rtol=exact)


def test_packaged_file_is_the_registered_one_and_small():
    path = registry.resolve("mobilenetv2-tv")
    text = registry.card(path)
    known = registry.REGISTRY["mobilenetv2-tv"]
    for fact in (known.sha256, "BSD-3-Clause", "2,223,872", "0.485 0.456 0.406"):
        assert fact in text
    assert path.parent == registry.PACKAGED and path.stat().st_size < 5e6
    converted, _ = checkpoints.read(path)
    assert converted.architecture == mobilenet.MobileNet() and not converted.ignored


@pytest.mark.parametrize("name", ["mobilenetv2-tv-head", "mobilenetv2-tf"])
def test_what_cannot_be_downloaded_says_how_to_get_it(name, monkeypatch, tmp_path):
    monkeypatch.setenv("SM_JAX_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsError) as error:
        registry.resolve(name)
    text = str(error.value)
    assert "\n" not in text and registry.REGISTRY[name].files[0] in text and "SM_JAX_WEIGHTS" in text
    io.write_tensors(tmp_path / f"{name}.safetensors", {"a": np.zeros(1, np.float32)}, {})
    assert registry.resolve(name) == tmp_path / f"{name}.safetensors"
