"""ResNet against recorded activations, and its masking, freezing, remat and type options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from sm_jax.backbones import resnet
from sm_jax.backbones.common import convolve, max_pool
from sm_jax.errors import ConfigError
from tests import goldens, gradients, weight_rule


def network(path_or_norm, **options):
    norm = "group_norm" if "groupnorm" in str(path_or_norm) else str(path_or_norm)
    return resnet.ResNet(norm=norm if norm in resnet.NORMS else "frozen_bn", **options)


@functools.cache
def small_variables(norm="frozen_bn", level="c2"):
    model = resnet.ResNet(norm=norm, level=level)
    full = weight_rule.backbone_variables(50, norm, 3)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    keep = {
        kind: {k: v for k, v in full[kind]["backbone"].items() if k in shapes[kind]}
        for kind in full
        if kind in shapes
    }
    return model, keep


@pytest.mark.parametrize("path", goldens.params("os2d", "backbone_*.npz"))
def test_golden_features(path):
    data = goldens.load(path)
    depth = int("".join(c for c in path.stem if c.isdigit()))
    model = network(path, depth=depth)
    variables = weight_rule.backbone_variables(depth, model.norm, int(data["seed"]))
    variables = {k: v["backbone"] for k, v in variables.items() if v}
    for key in sorted(k for k in data if k.endswith("_normalized_nchw")):
        name = key.removesuffix("_normalized_nchw")
        image = data[key].transpose(0, 2, 3, 1)
        # Padded and masked: the recorded picture is a corner of a larger array.
        h, w = image.shape[1:3]
        padded = np.pad(image, ((0, 0), (0, -h % 32 + 16), (0, -w % 32 + 16), (0, 0)))
        levels = jax.jit(model.apply)(variables, padded, jnp.asarray([[h, w]], jnp.int32))
        expected = {"c4": data[f"{name}_features_nchw"]}
        for level, suffix in (("c2", "layer1"), ("c3", "layer2")):
            if f"{name}_{suffix}" in data:
                expected[level] = data[f"{name}_{suffix}"]
        for level, want in expected.items():
            got = np.asarray(levels[level]).transpose(0, 3, 1, 2)
            fh, fw = want.shape[2:]
            np.testing.assert_allclose(
                got[:, :, :fh, :fw], want, atol=2e-4, rtol=0, err_msg=f"{name} {level}"
            )
            assert not got[:, :, fh:].any() and not got[:, :, :, fw:].any()
        if f"{name}_conv1" in data:
            stem = convolve(jnp.asarray(image), variables["params"]["conv1"]["kernel"], stride=2)
            np.testing.assert_allclose(stem.transpose(0, 3, 1, 2), data[f"{name}_conv1"], atol=2e-4, rtol=0)


@functools.cache
def apply_c3(norm):
    """Compiled once per norm and shape."""
    apply = functools.partial(small_variables(norm, "c3")[0].apply, mutable=["batch_stats"])
    return jax.jit(functools.partial(apply, train=norm == "batch_norm"))


@pytest.mark.parametrize("norm", resnet.NORMS)
@pytest.mark.parametrize("size", [(33, 50), (48, 17)])
def test_padded_equals_unpadded(norm, size):
    model, variables = small_variables(norm, "c3")
    h, w = size
    image = np.random.default_rng(0).normal(size=(1, h, w, 3)).astype(np.float32)
    padded = np.pad(image, ((0, 0), (0, 48 - h), (0, 64 - w), (0, 0)))
    plain, padding = (
        apply_c3(norm)(variables, x, s) for x, s in ((image, None), (padded, jnp.asarray([size])))
    )
    for level, stride in (("c2", 4), ("c3", 8)):
        fh, fw = resnet.feature_size(size[0], stride), resnet.feature_size(size[1], stride)
        assert plain[0][level].shape[1:3] == (fh, fw)
        np.testing.assert_allclose(padding[0][level][:, :fh, :fw], plain[0][level], atol=2e-5)
        assert not np.asarray(padding[0][level][:, fh:]).any()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), padding[1], plain[1])


def test_batch_norm_trains_with_batch_statistics_and_torch_updates():
    torch = pytest.importorskip("torch")
    model, variables = small_variables("batch_norm")
    image = np.random.default_rng(1).normal(size=(2, 24, 32, 3)).astype(np.float32)
    apply = functools.partial(model.apply, mutable=["batch_stats"])
    _, updates = jax.jit(functools.partial(apply, train=True))(variables, image)
    kernel = weight_rule.to_torch("conv1.weight", variables["params"]["conv1"]["kernel"])
    with torch.no_grad():
        y = torch.nn.functional.conv2d(
            torch.tensor(image.transpose(0, 3, 1, 2)), torch.tensor(kernel), stride=2, padding=3
        )
        layer = torch.nn.BatchNorm2d(64)
        layer.running_mean.copy_(torch.tensor(variables["batch_stats"]["bn1"]["mean"]))
        layer.running_var.copy_(torch.tensor(variables["batch_stats"]["bn1"]["var"]))
        layer(y)
    got = updates["batch_stats"]["bn1"]
    np.testing.assert_allclose(got["mean"], layer.running_mean.numpy(), atol=1e-6)
    np.testing.assert_allclose(got["var"], layer.running_var.numpy(), atol=1e-5)
    _, none = jax.jit(apply)(variables, image)
    jax.tree.map(np.testing.assert_array_equal, none["batch_stats"], variables["batch_stats"])


def test_max_pool_matches_window_reduction():
    for shape in ((2, 7, 10, 3), (1, 1, 2, 1), (1, 8, 8, 2)):
        x = jnp.abs(jax.random.normal(jax.random.key(0), shape))
        want = jax.lax.reduce_window(
            x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
        )
        np.testing.assert_array_equal(max_pool(x), want)


@pytest.mark.parametrize("frozen", [0, 1, 2, 4])
def test_frozen_units_get_no_gradient_and_remat_changes_nothing(frozen):
    model, variables = small_variables()
    image = jax.random.normal(jax.random.key(0), (1, 16, 16, 3))

    def gradient(**options):
        frozen_model = model.copy(frozen_blocks=frozen, **options)

        def loss(params):
            out = frozen_model.apply({**variables, "params": params}, image)
            return jnp.sum(out["c2"] ** 2)

        return traverse_util.flatten_dict(jax.jit(jax.grad(loss))(variables["params"]), sep="/")

    plain, remat = gradient(), gradient(remat=True)
    for name, value in plain.items():
        assert bool(np.any(value)) != resnet.is_frozen(name, depth=50, frozen_blocks=frozen), name
    gradients.assert_near(remat, plain, rtol=1e-3)


def test_bfloat16_activations_keep_float32_parameters():
    model, variables = small_variables()
    image = jax.random.normal(jax.random.key(0), (1, 32, 32, 3))
    exact = jax.jit(model.apply)(variables, image)["c2"]
    low = jax.jit(model.copy(dtype=jnp.bfloat16).apply)(variables, image)["c2"]
    assert low.dtype == jnp.bfloat16
    assert float(jnp.max(jnp.abs(low.astype(jnp.float32) - exact))) < 0.05 * float(jnp.max(exact))
    shapes = jax.eval_shape(model.copy(dtype=jnp.bfloat16).init, jax.random.key(0), image)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(shapes)} == {"float32"}


@pytest.mark.parametrize("depth", [50, 101])
@pytest.mark.parametrize("norm", resnet.NORMS)
def test_variables_are_those_of_the_published_network(depth, norm):
    model = resnet.ResNet(depth=depth, norm=norm)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 600, 600, 3)))
    want = {}
    for name, shape in weight_rule.backbone_shapes(depth, norm).items():
        shape = tuple(shape[i] for i in (2, 3, 1, 0)) if len(shape) == 4 else shape
        path = weight_rule.backbone_path(name)
        want[(path[0], *path[2:])] = shape
    assert {k: v.shape for k, v in traverse_util.flatten_dict(shapes).items()} == want
    out = jax.eval_shape(model.apply, shapes, jnp.zeros((4, 600, 601, 3)))
    assert {k: v.shape for k, v in out.items()} == {
        "c2": (4, 150, 151, 256),
        "c3": (4, 75, 76, 512),
        "c4": (4, 38, 38, 1024),
    }


def test_feature_size_of_integers_and_arrays():
    for n in (1, 15, 16, 17, 240, 600, 1281):
        assert resnet.feature_size(n) == -(-n // 16)
    np.testing.assert_array_equal(resnet.feature_size(jnp.asarray([[33, 64]]), 8), [[5, 8]])


@pytest.mark.parametrize("option", [{"depth": 34}, {"norm": "layer"}, {"level": "c9"}, {"frozen_blocks": 15}])
def test_wrong_options_say_what_is_possible(option):
    with pytest.raises(ConfigError, match=next(iter(option))):
        jax.eval_shape(resnet.ResNet(**option).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
