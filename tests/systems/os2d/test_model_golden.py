"""The head against recorded numbers of the published code: every intermediate, every gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax import boxes as box_ops
from sm_jax.ops import affine
from sm_jax.ops.correlation import l2_normalize
from sm_jax.systems.os2d import head as head_lib
from sm_jax.systems.os2d import model
from tests import goldens, weight_rule


def head_files(suffix):
    """Parameters for the files `head_<case>_v<N><suffix>.npz`."""
    return [p for p in goldens.params("os2d", f"head_*_v[0-9]{suffix}.npz")]


@functools.cache
def case(path):
    """The recorded outputs, inputs and weights that belong to a head file."""
    _, name, version = path.stem.removesuffix("_grads").removesuffix("_grids").split("_")
    common = goldens.load(goldens.companion(path, f"head_{name}_common.npz"))
    arrays = goldens.load(goldens.companion(path, f"transformnet_{version}.npz"))
    config = model.ModelConfig(
        simplified=len(arrays["linear.bias"]) == 4, inverse=version == "v2", freeze_bn_transform=True
    )
    return config, goldens.load(path), common, weight_rule.transform_variables(arrays)


def classes_of(common):
    count = len([key for key in common if key.startswith("class_features_") and key[-1].isdigit()])
    return [common[f"class_features_{k}"] for k in range(count)]


def pad_classes(maps):
    """Maps (c, h, w) of different sizes -> features (r, h, w, c) zero padded, and sizes (r, 2)."""
    sizes = [m.shape[1:] for m in maps]
    h, w = np.max(sizes, axis=0)
    padded = [np.pad(m.transpose(1, 2, 0), ((0, h - m.shape[1]), (0, w - m.shape[2]), (0, 0))) for m in maps]
    return np.stack(padded), np.asarray(sizes, np.int32)


def column_major(corr):
    """Channels i*15+j on axis 1 -> the recorded order j*15+i."""
    n, _, *rest = corr.shape
    return np.asarray(corr).reshape(n, 15, 15, *rest).swapaxes(1, 2).reshape(n, 225, *rest)


def nchw(x):
    return np.asarray(x).transpose(0, 3, 1, 2)


def run(config, variables, features, template):
    """The head with its intermediates, compiled once."""

    def both(variables, features, template):
        corr = head_lib.correlation(features, template)
        rows = head_lib.network_input(corr)
        net = model.transform_net(config)
        parts = {kind: tree["transform"] for kind, tree in variables.items()}
        parameters, sown = net.apply(parts, rows, mutable=["intermediates"])
        output, _ = model.head(config, variables, features, None, template)
        return corr, rows, sown["intermediates"], parameters, output

    return jax.jit(both)(variables, features, template)


@pytest.mark.parametrize("path", goldens.params("os2d", "head_*_common.npz"))
def test_golden_class_features(path):
    data = goldens.load(path)
    maps = classes_of(data)
    features, sizes = pad_classes(maps)
    template = model.encode_features(model.ModelConfig(), jnp.asarray(features), jnp.asarray(sizes))
    np.testing.assert_allclose(nchw(template), data["class_features_norm"], atol=1e-6, rtol=0)
    normalized = l2_normalize(jnp.moveaxis(jnp.asarray(data["image_features"]), 1, -1), epsilon=1e-5)
    np.testing.assert_allclose(nchw(normalized), data["image_features_norm"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("path", head_files(""))
def test_golden_head(path):
    config, data, common, variables = case(path)
    features = jnp.moveaxis(jnp.asarray(common["image_features"]), 1, -1)
    images, height, width, _ = features.shape
    template = model.encode_features(config, *map(jnp.asarray, pad_classes(classes_of(common))))
    classes = template.shape[0]
    corr, rows, acts, parameters, output = run(config, variables, features, template)

    def check(got, want, tolerance, name):
        np.testing.assert_allclose(np.asarray(got), want, atol=tolerance, rtol=0, err_msg=name)

    corr = np.asarray(corr).reshape(images * classes, -1, height, width)
    for name, got, tolerance in (("corr", corr, 1e-5), ("corr_norm", nchw(rows), 1e-6)):
        if name in common:
            check(column_major(got), common[name], tolerance, name)
    for name in ("tn_act1", "tn_act2"):
        if name in data:
            check(nchw(acts[name.removeprefix("tn_")][0]), data[name], 1e-4, name)
    check(nchw(parameters), data["transform_params"], 1e-5, "transform_params")
    check(np.reshape(output.transform, (-1, 2, 3)), data["theta"], 1e-5, "theta")
    check(output.scores, data["scores"][:, :, 0], 2e-6, "scores")
    check(output.scores_detached, output.scores, 0, "scores_detached")
    check(output.boxes, data["boxes_minmax_image"], 1e-3, "boxes")
    check(output.offsets, np.moveaxis(data["loc"], 2, -1), 2e-5, "loc")
    corners = np.moveaxis(np.reshape(output.corners, (images, classes, height, width, 8)), -1, 2)
    check(corners, data["corners"], 1e-3, "corners")
    anchors = box_ops.anchor_grid((height, width))
    decoded = box_ops.decode(output.offsets.reshape(images, classes, -1, 4), jnp.asarray(anchors)[None, None])
    check(decoded, data["boxes_decoded"], 1e-3, "boxes_decoded")


@pytest.mark.parametrize("path", head_files("_grids"))
def test_golden_local_grid(path):
    _, data, common, _ = case(path)
    outputs = goldens.load(goldens.companion(path, path.name.replace("_grids", "")))
    shape = (*data["grid_local"].shape[:4], 2, 3)
    grid = affine.local_grid(jnp.asarray(outputs["theta"]).reshape(shape))
    np.testing.assert_allclose(grid, data["grid_local"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("path", head_files("_grads"))
def test_golden_gradients(path):
    config, data, common, variables = case(path)
    features = jnp.moveaxis(jnp.asarray(common["image_features"]), 1, -1)
    maps = classes_of(common)
    class_features, sizes = map(jnp.asarray, pad_classes(maps))
    upstream = {
        key: jnp.asarray(data[f"upstream_{key}"]) for key in ("scores", "loc", "scores_transform_detached")
    }

    def loss(params, features, class_features):
        template = model.encode_features(config, class_features, sizes)
        output, updates = model.head(
            config, {**variables, "params": params}, features, None, template, train=True
        )
        assert not updates
        return (
            jnp.sum(output.scores * upstream["scores"][:, :, 0])
            + jnp.sum(output.scores_detached * upstream["scores_transform_detached"][:, :, 0])
            + jnp.sum(output.offsets * jnp.moveaxis(upstream["loc"], 2, -1))
        )

    grads = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(variables["params"], features, class_features)

    def check(got, want, name):
        np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max(), rtol=0, err_msg=name)

    check(nchw(grads[1]), data["grad_image_features"], "image_features")
    for k, one in enumerate(maps):
        got = np.asarray(grads[2][k])[: one.shape[1], : one.shape[2]].transpose(2, 0, 1)
        check(got, data[f"grad_class_features_{k}"], f"class_features_{k}")
    checked = 0
    for name in weight_rule.transform_shapes(4 if config.simplified else 6):
        path_here = weight_rule.transform_path(name)
        if path_here[0] == "batch_stats":
            continue
        got = weight_rule.to_torch(name, np.asarray(weight_rule.lookup(grads[0], path_here[1:])))
        if f"grad_{name}" in data:
            check(got, data[f"grad_{name}"], name)
            checked += 1
        if f"grad_{name}_norm" in data:
            norm = np.linalg.norm(got.astype(np.float64))
            np.testing.assert_allclose(norm, data[f"grad_{name}_norm"][0], rtol=1e-4)
            part = next(key for key in data if key.startswith(f"grad_{name}_slice_out"))
            first, last = (int(n) for n in part.rsplit("_slice_out", 1)[1].split("_to_"))
            check(got[first : last + 1], data[part], part)
            checked += 1
    assert checked >= 9
