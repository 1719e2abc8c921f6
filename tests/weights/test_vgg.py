"""The published forms of VGG16, made up by their documented rules, and the real file to conv4_3."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io

from sm_jax import weights
from sm_jax.backbones import vgg as network
from sm_jax.errors import WeightsError
from sm_jax.weights import checkpoints, formats, io, registry, start, vgg
from tests import goldens
from tests.weights import build

AVERAGE = np.float32([123.68, 116.779, 103.939])
FIRST = "params/backbone/conv1_1/"


def full(kind="classifier.0"):
    """Everything that torchvision's file has, small where it is ignored."""
    extra = {
        f"features.{i}.{field}": np.ones(2, np.float32) for i in (24, 26, 28) for field in ("weight", "bias")
    }
    return build.random_entries(vgg.entries()) | extra | {f"{kind}.weight": np.ones((2, 2), np.float32)}


@pytest.mark.parametrize("head", ["classifier.0", "pre_logits.fc1", "head.fc"])
def test_torchvision_and_timm_names(head):
    tensors = full(head)
    for name, shape in (
        ("features.0.weight", (64, 3, 3, 3)),
        ("features.5.weight", (128, 64, 3, 3)),
        ("features.10.bias", (256,)),
        ("features.21.weight", (512, 512, 3, 3)),
    ):
        assert tensors[name].shape == shape
    converted = formats.convert(tensors)
    assert converted.format == "vgg16" and len(converted.tensors) == 20 and len(converted.ignored) == 7
    assert str(converted.architecture) == "vgg16-conv4_3"
    kernel = converted.tensors["params/backbone/conv4_3/kernel"]
    np.testing.assert_array_equal(kernel, tensors["features.21.weight"].transpose(2, 3, 1, 0))
    again = formats.convert(converted.tensors)
    assert again.format == "sm_jax" and again.architecture == converted.architecture
    back = formats.to_torch(converted.tensors)
    assert all(np.array_equal(back[name], tensors[name]) for name in vgg.entries())


def test_names_and_shapes_are_those_of_the_network():
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(network.VGG16().init, jax.random.key(0), image)
    flat = io.flatten({kind: {"backbone": tree} for kind, tree in shapes.items()})
    assert {name: tuple(leaf.shape) for name, leaf in flat.items()} == vgg.VGG().shapes()
    assert vgg.STAGES == network.STAGES


def test_another_depth_is_refused_with_a_list():
    tensors = full()
    tensors["features.16.weight"] = tensors.pop("features.17.weight")  # as in VGG19
    with pytest.raises(WeightsError, match="1 missing, 1 unexpected") as caught:
        formats.convert(tensors)
    assert "- features.17.weight" in str(caught.value) and "+ features.16.weight" in str(caught.value)


def matlab(tmp_path, *, form="weights", average=AVERAGE, nested=False, entries=None, name="net.mat"):
    """A MatConvNet file of made-up numbers, and its tensors under the names of `vgg.matconvnet_entries`."""
    tensors = build.random_entries(entries or vgg.matconvnet_entries())
    cells = []
    for layer in dict.fromkeys(key.split("/")[0] for key in tensors):
        kernel, bias = tensors[f"{layer}/filters"], tensors[f"{layer}/biases"].reshape(1, -1)
        if form == "weights":
            pair = np.empty((1, 2), object)
            pair[0, 0], pair[0, 1] = kernel, bias
            fields = {"weights": pair}
        else:
            fields = {"filters": kernel, "biases": bias}
        cells += [{"type": "conv", "name": layer, **fields}, {"type": "relu", "name": f"relu{layer[4:]}"}]
    layers = np.empty((1, len(cells)), object)
    layers[0] = cells
    content = {"layers": layers}
    if average is not None:
        content["meta"] = {"normalization": {"averageImage": average}}
    scipy.io.savemat(tmp_path / name, {"net": content} if nested else content)
    return tmp_path / name, tensors


@pytest.mark.parametrize(("form", "nested"), [("weights", False), ("weights", True), ("filters", False)])
def test_matconvnet_files(tmp_path, form, nested):
    average = AVERAGE if nested else np.broadcast_to(AVERAGE, (5, 4, 3))
    path, tensors = matlab(tmp_path, form=form, average=average, nested=nested)
    converted, _ = checkpoints.read(path)
    assert converted.format == "vgg16-matconvnet" and len(converted.tensors) == 20
    np.testing.assert_array_equal(
        converted.tensors["params/backbone/conv3_2/kernel"], tensors["conv3_2/filters"]
    )
    # the same picture in both conventions gives the same first convolution, away from the border
    pixels = np.random.default_rng(0).uniform(0, 255, (1, 7, 7, 3))
    normalised = (pixels / 255 - np.array(vgg.MEAN)) / np.array(vgg.STD)
    want = conv(pixels - AVERAGE, tensors["conv1_1/filters"], tensors["conv1_1/biases"])
    got = conv(normalised, converted.tensors[FIRST + "kernel"], converted.tensors[FIRST + "bias"])
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())


def conv(x, kernel, bias):
    kernel = np.asarray(kernel, np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))  # b h w c 3 3
    return np.einsum("bhwcij,ijco->bhwo", windows, kernel) + bias


def test_matconvnet_through_the_converter(tmp_path):
    path, _ = matlab(tmp_path)
    weights.convert_file(path, tmp_path / "out.safetensors", dtype="f16")
    tensors, metadata = io.read_tensors(tmp_path / "out.safetensors")
    assert metadata["architecture"] == "vgg16-conv4_3" and len(tensors) == 20


def test_what_is_wrong_with_a_matlab_file(tmp_path):
    with pytest.raises(WeightsError, match="a.mat: no such file"):
        checkpoints.read(tmp_path / "a.mat")
    (tmp_path / "b.mat").write_bytes(b"nonsense" * 40)
    with pytest.raises(WeightsError, match="b.mat: not a readable MATLAB file"):
        checkpoints.read(tmp_path / "b.mat")
    scipy.io.savemat(tmp_path / "c.mat", {"x": np.ones(3)})
    with pytest.raises(WeightsError, match="c.mat: holds no MatConvNet net"):
        checkpoints.read(tmp_path / "c.mat")
    path, _ = matlab(tmp_path, average=None)
    with pytest.raises(WeightsError, match="has no averageImage"):
        checkpoints.read(path)
    path, _ = matlab(tmp_path, average=np.ones(4, np.float32))
    with pytest.raises(WeightsError, match="neither a colour nor a picture"):
        checkpoints.read(path)
    some = dict(list(vgg.matconvnet_entries().items())[:-2])
    path, _ = matlab(tmp_path, entries=some)
    with pytest.raises(WeightsError, match="2 missing") as caught:
        checkpoints.read(path)
    assert "- conv4_3/filters" in str(caught.value)


def test_advice_names_weights_that_fit():
    abstract = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in vgg.VGG().shapes().items()}
    _, report = start.initialize(io.unflatten(abstract), {})
    assert "config.init.backbone=vgg16-tv" in report[0]


@pytest.fixture(scope="module")
def real():
    known = registry.REGISTRY["vgg16-tv-conv43"]
    places = [goldens.ROOT.parent / "shared" / "weights" / file for file in known.files]
    path = registry.find_local(known) or next((path for path in places if path.is_file()), None)
    if path is None:
        pytest.skip(f"no {known.files[-1]}")
    return path


def test_real_weights_equal_pytorch_on_a_picture(real):
    torch = pytest.importorskip("torch")
    from skimage import data

    foreign, _ = io.read_tensors(real)
    variables = io.unflatten(checkpoints.read(real)[0].tensors)["params"]["backbone"]
    image = data.chelsea()[40:104, 100:164][None].astype(np.float32) / 255
    image = ((image - np.float32(vgg.MEAN)) / np.float32(vgg.STD)).astype(np.float32)
    got = jax.jit(network.VGG16().apply)({"params": variables}, image)["c4"]
    x = torch.from_numpy(image.transpose(0, 3, 1, 2))
    for _, index, _ in vgg.layers():
        if index in (5, 10, 17):
            x = torch.nn.functional.max_pool2d(x, 2)
        weight, bias = (
            torch.from_numpy(foreign[f"features.{index}.{field}"]) for field in ("weight", "bias")
        )
        x = torch.nn.functional.conv2d(x, weight, bias, padding=1).relu()
    want = torch.nn.functional.max_pool2d(x, 2).permute(0, 2, 3, 1).numpy()
    assert want.shape == (1, 4, 4, 512) and want.max() > 1
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * want.max())
