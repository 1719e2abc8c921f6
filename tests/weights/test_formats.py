import re

import numpy as np
import pytest

from sm_jax.errors import WeightsError
from sm_jax.weights import formats, mobilenet, structure
from tests.weights import build

BUILDERS = {
    "torchvision": build.resnet,
    "os2d": build.os2d,
    "weakalign": lambda: build.weakalign(50),
    "cirtorch": build.cirtorch,
    "detectron": build.detectron,
    "maskrcnn": build.maskrcnn,
    "transformnet": build.transformnet,
}


@pytest.fixture(scope="module")
def published():
    return {kind: builder() for kind, builder in BUILDERS.items()}


@pytest.mark.parametrize("kind", BUILDERS)
def test_every_format_is_recognised_and_converted_completely(kind, published):
    converted = formats.convert(published[kind])
    assert converted.format == kind
    shapes = {name: array.shape for name, array in converted.tensors.items()}
    assert shapes == converted.architecture.shapes()
    assert all(array.dtype == np.float32 for array in converted.tensors.values())


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize("damage", ["missing", "extra", "misshapen"])
def test_strict_both_ways_in_the_names_of_the_file(kind, damage, published):
    tensors = dict(published[kind])
    victim = next(name for name in sorted(tensors) if name.endswith(("bias", "_gn_b")) and "FPN" not in name)
    victim = {"maskrcnn": "module.backbone.body.layer1.0.bn1.bias"}.get(kind, victim)
    if damage == "missing":
        del tensors[victim]
        lines = [rf"^- {re.escape(victim)} \(\d+,\)$"]
    elif damage == "extra":
        tensors["stowaway"] = np.zeros(3, np.float32)
        lines = [r"^\+ stowaway \(3,\)$"]
    else:
        tensors[victim] = np.zeros((2, 2), np.float32)
        lines = [rf"^- {re.escape(victim)} \(\d+,\)$", rf"^\+ {re.escape(victim)} \(2, 2\)$"]
    with pytest.raises(WeightsError) as error:
        formats.convert(tensors, where="file.pth")
    assert str(error.value).startswith("file.pth does not fit ")
    for line in lines:
        assert re.search(line, str(error.value), re.MULTILINE), str(error.value)
    listed = [line for line in str(error.value).splitlines() if line[:2] in ("- ", "+ ")]
    assert len(listed) == len(lines)


@pytest.mark.parametrize(
    ("depth", "norm", "entries"),
    [(50, "batch_norm", 532), (101, "batch_norm", 1144), (50, "group_norm", 274), (101, "group_norm", 580)],
)
@pytest.mark.parametrize("parameters", [4, 6])
def test_os2d_checkpoints_have_the_documented_entries(depth, norm, entries, parameters):
    tensors = build.os2d(depth, norm, parameters)
    assert len(tensors) == entries
    converted = formats.convert(tensors)
    assert converted.architecture == structure.Architecture(depth, norm, parameters)
    assert all(name.endswith("num_batches_tracked") for name in converted.ignored)
    kernel = converted.tensors["params/backbone/layer2_0/downsample_conv/kernel"]
    expected = tensors["net_feature_maps.layer2.0.downsample.0.weight"]
    np.testing.assert_array_equal(kernel[0, 0].T, expected[..., 0, 0])


@pytest.mark.parametrize(("version", "parameters"), [("V1", 10_166_276), ("V2", 10_169_478)])
def test_trainable_parameter_counts_of_the_specification(version, parameters):
    shapes = structure.Architecture(50, "batch_norm", {"V1": 4, "V2": 6}[version]).shapes()
    params = [shape for name, shape in shapes.items() if name.startswith("params/")]
    assert len(params) == 139
    assert sum(int(np.prod(shape)) for shape in params) == parameters


def test_os2d_copies_of_the_extractor_must_be_equal(published):
    tensors = dict(published["os2d"])
    name = build.DUPLICATE + "layer1.0.bn2.weight"
    tensors[name] = tensors[name] + 1
    with pytest.raises(WeightsError, match="differ in 1 tensors .first: layer1.0.bn2.weight"):
        formats.convert(tensors)
    del tensors[name]
    with pytest.raises(WeightsError, match=f"- {re.escape(name)}"):
        formats.convert(tensors)


def test_non_finite_values_are_refused(published):
    tensors = dict(published["transformnet"])
    tensors["conv.3.bias"] = tensors["conv.3.bias"].copy()
    tensors["conv.3.bias"][3] = np.nan
    with pytest.raises(WeightsError, match="NaN or infinity in 1 tensors, first: conv.3.bias"):
        formats.convert(tensors)


@pytest.mark.parametrize("prefix", ["", "module.", "net.backbone."])
def test_torchvision_with_prefix_and_classifier(prefix, published):
    tensors = {prefix + name: value for name, value in published["torchvision"].items()}
    extra = {f"{prefix}fc.weight", f"{prefix}fc.bias", f"{prefix}layer4.0.conv1.weight"}
    converted = formats.convert(tensors | {name: np.zeros(2, np.float32) for name in extra})
    assert extra <= set(converted.ignored)
    np.testing.assert_array_equal(
        converted.tensors["batch_stats/backbone/bn1/var"], tensors[f"{prefix}bn1.running_var"]
    )


@pytest.mark.parametrize("retrieval", [False, True])
def test_cirtorch_is_only_a_renaming(retrieval, published):
    converted = formats.convert(build.cirtorch(retrieval=retrieval))
    expected = formats.convert(published["torchvision"])
    assert converted.tensors.keys() == expected.tensors.keys()
    for name, value in expected.tensors.items():
        np.testing.assert_array_equal(converted.tensors[name], value)


def test_weakalign_gives_the_affine_net_and_drops_the_other(published):
    converted = formats.convert(published["weakalign"])
    alone = formats.convert(build.weakalign(None))
    expected = formats.convert(published["transformnet"])
    assert alone.architecture == structure.Architecture(None, None, 6)
    for name, value in expected.tensors.items():
        np.testing.assert_array_equal(converted.tensors[name], value)
        np.testing.assert_array_equal(alone.tensors[name], value)
    assert any(name.startswith("FeatureRegression2.") for name in converted.ignored)


@pytest.mark.parametrize("kind", ["detectron", "maskrcnn"])
def test_foreign_input_convention_is_folded_into_conv1(kind, published):
    """A net fed with BGR 0-255 and ours fed with normalised RGB give the same response, up to a constant."""
    converted = formats.convert(published[kind])
    theirs = published["torchvision"]["conv1.weight"] if kind == "maskrcnn" else published[kind]["conv1_w"]
    ours = converted.tensors["params/backbone/conv1/kernel"]
    rng = np.random.default_rng(0)
    first, second = rng.uniform(0, 1, (2, 7, 7, 3))
    std = np.asarray(mobilenet.STD)

    def respond(image):
        return (
            np.einsum("ijc,ocij->o", 255 * image[..., ::-1], theirs),
            np.einsum("ijc,ijco->o", (image - 0.4) / std, ours),
        )

    (theirs_1, ours_1), (theirs_2, ours_2) = respond(first), respond(second)
    np.testing.assert_allclose(ours_2 - ours_1, theirs_2 - theirs_1, rtol=1e-4, atol=1e-3)


def test_maskrcnn_pixel_std_and_order():
    kernel = np.arange(3, dtype=np.float32).reshape(1, 3, 1, 1) + 1
    std = np.asarray(mobilenet.STD)
    folded = formats.fold_input(kernel, pixel_std=(1.0, 2.0, 4.0), to_bgr255=False)
    np.testing.assert_allclose(folded.ravel(), 255 * np.array([1, 1, 0.75]) * std, rtol=1e-6)
    folded = formats.fold_input(kernel, pixel_std=(1.0, 2.0, 4.0), to_bgr255=True)
    np.testing.assert_allclose(folded.ravel(), 255 * np.array([0.75, 1, 1]) * std, rtol=1e-6)


@pytest.mark.parametrize("layout", ["vector", "oihw", "corr_oihw"])
def test_permutations_round_trip(layout):
    shape = {"vector": (5,), "oihw": (4, 3, 2, 5), "corr_oihw": (4, 225, 2, 3)}[layout]
    array = np.random.default_rng(0).standard_normal(shape)
    there = structure.to_ours(array, layout)
    assert there.shape == structure.Entry("", shape, layout).our_shape
    np.testing.assert_array_equal(structure.to_torch(there, layout), array)
    assert layout == "vector" or not np.array_equal(there.reshape(shape), array)


def test_correlation_channels_change_from_column_major_to_row_major():
    """The published first layer on a column-major volume equals the converted one on the row-major volume."""
    rng = np.random.default_rng(0)
    corr = rng.standard_normal((15, 15, 7, 7))  # i (row), j (column), then the 7x7 window
    weight = rng.standard_normal((4, 225, 7, 7))
    published = np.einsum("chw,ochw->o", corr.swapaxes(0, 1).reshape(225, 7, 7), weight)
    row_major = corr.transpose(2, 3, 0, 1).reshape(7, 7, 225)
    ours = np.einsum("hwc,hwco->o", row_major, structure.to_ours(weight, "corr_oihw"))
    np.testing.assert_allclose(ours, published, rtol=1e-10)


@pytest.mark.parametrize("norm", ["batch_norm", "group_norm"])
def test_there_and_back_to_torch_names(norm):
    tensors = build.os2d(50, norm)
    back = formats.to_torch(formats.convert(tensors).tensors)
    for name, value in back.items():
        transform = name.startswith("transform.")
        full = build.TRANSFORM + name.removeprefix("transform.") if transform else build.EXTRACTOR + name
        np.testing.assert_array_equal(value, tensors[full])
    counters = sum(name.endswith("num_batches_tracked") for name in tensors)
    assert 2 * len(back) - 14 == len(tensors) - counters


def test_unknown_names_are_told_with_the_known_formats():
    with pytest.raises(WeightsError, match="belong to no format known here; known: sm_jax, torchvision"):
        formats.convert({"a.b": np.zeros(1)})
    with pytest.raises(WeightsError, match="format 'caffe' is not known"):
        formats.convert({"a.b": np.zeros(1)}, format="caffe")
