"""Transforms: the recorded edge cases, the closed forms, and the guard of singular matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sm_jax import boxes
from sm_jax.errors import ConfigError
from sm_jax.ops import affine, resample
from tests import goldens

relaxed = settings(deadline=None, max_examples=60)  # the first example may compile
edge = pytest.mark.parametrize("path", goldens.params("os2d", "affine_edge_cases*.npz"))
heads = pytest.mark.parametrize("path", goldens.params("os2d", "head_*_v[12].npz"))
VERSIONS = {"v1": False, "v2": True}
number = st.floats(-1e4, 1e4, width=32)


def cases(data):
    """Names before `_params`, each with whether the transform is inverted."""
    names = [key.removesuffix("_params") for key in data if key.endswith("_params")]
    assert names
    return [(name, VERSIONS[name[:2]]) for name in names]


def close(actual, expected, tolerance, where=None):
    """Compare relative to max(1, |value|), as the recording asks."""
    bound = np.maximum(1, np.abs(expected)) * tolerance
    wrong = ~(np.abs(np.asarray(actual) - expected) <= bound)
    if where is not None:
        wrong &= where.reshape(-1, *(1,) * (wrong.ndim - 1))
    assert not wrong.any(), np.argwhere(wrong)[:5]


# recorded numbers ---------------------------------------------------------------------------------


@edge
@pytest.mark.parametrize("fallback", ["batch", "element"])
def test_golden_edge_cases(path, fallback):
    data = goldens.load(path)
    for name, inverse in cases(data):
        params = np.moveaxis(data[f"{name}_params"][0], 0, -1)
        size = params.shape[:2]
        p = params.reshape(-1, params.shape[-1])
        singular = np.zeros(len(p), bool)
        if p.shape[-1] == 6:
            singular = np.abs(p[:, 0] * p[:, 4] - p[:, 1] * p[:, 3]) < 1e-9
        # the published code nudges all matrices beside a singular one, by 1e-5
        tolerance = 2e-5 if fallback == "batch" or not singular.any() else 1e-3
        transform = affine.params_to_transform(jnp.asarray(params), inverse=inverse, fallback=fallback)
        found = {
            "theta": transform.reshape(-1, 2, 3),
            "grid_local": affine.local_grid(transform).reshape(len(p), 15, 15, 2),
            "boxes_minmax": affine.bounding_box(transform).reshape(-1, 4),
        }
        found["boxes_after_min_size"] = boxes.ensure_min_size(found["boxes_minmax"])
        found["loc"] = boxes.encode(found["boxes_minmax"], boxes.anchor_grid(size))
        for key, value in found.items():
            expected = data[f"{name}_{key}"].reshape(value.shape)
            close(value, expected, tolerance, where=~singular)
            # a box of 1e7 px has no float32 centre worth comparing
            kept = slice(2, None) if key == "loc" else slice(None)
            close(value[..., kept], expected[..., kept], 1e-2, where=singular)


@heads
def test_golden_head_transforms(path):
    data = goldens.load(path)
    inverse = VERSIONS[path.stem.split("_")[2][:2]]
    n, c, height, width = data["boxes_minmax_image"].shape[:4]
    params = jnp.moveaxis(jnp.asarray(data["transform_params"]), 1, -1)
    transform = affine.params_to_transform(params, inverse=inverse)
    np.testing.assert_allclose(transform.reshape(-1, 2, 3), data["theta"], rtol=0, atol=1e-5)
    lead = (n, c, height, width)
    box = affine.bounding_box(transform).reshape(*lead, 4)
    np.testing.assert_allclose(box, data["boxes_minmax_image"], rtol=0, atol=1e-3)
    codes = boxes.encode(box.reshape(n, c, -1, 4), boxes.anchor_grid((height, width))[None, None])
    loc = jnp.moveaxis(codes.reshape(*lead, 4), -1, 2)
    np.testing.assert_allclose(loc, data["loc"], rtol=0, atol=2e-5)
    decoded = boxes.decode(codes, boxes.anchor_grid((height, width))[None, None])
    np.testing.assert_allclose(decoded, data["boxes_decoded"], rtol=0, atol=1e-3)
    corners = affine.corners(transform).reshape(*lead, 8)
    np.testing.assert_allclose(jnp.moveaxis(corners, -1, 2), data["corners"], rtol=0, atol=1e-3)


@pytest.mark.parametrize("path", goldens.params("os2d", "head_*_grids.npz"))
def test_golden_grids(path):
    data = goldens.load(path)
    outputs = goldens.load(goldens.companion(path, path.name.replace("_grids", "")))
    shape = data["grid_local"].shape
    transform = jnp.asarray(outputs["theta"]).reshape(-1, *shape[2:4], 2, 3)
    local = affine.local_grid(transform).reshape(shape)
    np.testing.assert_allclose(local, data["grid_local"], rtol=0, atol=1e-5)
    index = jax.vmap(resample.sampling_grid)(transform).reshape(shape)
    last = np.float32([shape[3] - 1, shape[2] - 1])
    unit = np.clip(np.asarray(index) / last * 2 - 1, -1, 1)
    np.testing.assert_allclose(unit, data["grid_unit_clamped"], rtol=0, atol=1e-5)


# closed forms -------------------------------------------------------------------------------------

transforms = arrays.arrays(np.float32, (2, 3, 2, 3), elements=st.floats(-5, 5, width=32))


@relaxed
@given(transforms)
def test_box_and_corners_are_those_of_the_grid(transform):
    transform = jnp.asarray(transform)
    cells = np.asarray(affine.cell_grid((2, 3)))[:, :, None, None, :]
    grid = np.asarray(affine.local_grid(transform)) * 120 + 16 * (cells + 0.5)
    low, high = grid.min(axis=(2, 3)), grid.max(axis=(2, 3))
    box = affine.bounding_box(transform)
    np.testing.assert_allclose(box, np.concatenate([low, high], -1), rtol=1e-5, atol=1e-3)
    expected = np.stack([grid[:, :, i, j] for i in (0, 14) for j in (0, 14)], axis=2)
    np.testing.assert_allclose(affine.corners(transform), expected, rtol=1e-5, atol=1e-3)


def test_identity_is_the_anchor():
    identity = jnp.broadcast_to(jnp.eye(2, 3), (3, 4, 2, 3))
    anchors = boxes.anchor_grid((3, 4)).reshape(3, 4, 4)
    np.testing.assert_array_equal(affine.bounding_box(identity), anchors)
    np.testing.assert_array_equal(affine.corners(identity)[:, :, 0], anchors[..., :2])
    np.testing.assert_array_equal(affine.corners(identity)[:, :, 1], anchors[..., [2, 1]])


def test_parameter_order():
    four = affine.params_to_transform(jnp.arange(1.0, 5), inverse=False)
    np.testing.assert_array_equal(four, [[1, 0, 2], [0, 3, 4]])
    six = affine.params_to_transform(jnp.arange(1.0, 7), inverse=False)
    np.testing.assert_array_equal(six, [[1, 2, 3], [4, 5, 6]])
    with pytest.raises(ConfigError, match="5"):
        affine.params_to_transform(jnp.ones(5), inverse=False)
    with pytest.raises(ConfigError, match="some"):
        affine.inverse_transform(jnp.eye(2, 3), fallback="some")


# inverse ------------------------------------------------------------------------------------------


@relaxed
@given(arrays.arrays(np.float32, (5, 2, 3), elements=st.floats(-3, 3, width=32)))
def test_inverse_matches_the_general_solver(transform):
    full = np.concatenate([transform, np.broadcast_to(np.float32([[[0, 0, 1]]]), (5, 1, 3))], axis=1)
    regular = np.abs(np.linalg.det(full.astype(np.float64))) > 0.05
    expected = np.linalg.inv(full[regular].astype(np.float64))[:, :2]
    found = np.asarray(affine.inverse_transform(jnp.asarray(transform)))[regular]
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)


def test_inverse_gradient_matches_the_general_solver():
    key = jax.random.key(0)
    transform = jnp.eye(2, 3)[None] + 0.3 * jax.random.normal(key, (50, 2, 3))
    weight = jax.random.normal(jax.random.key(1), (50, 2, 3))

    def general(t):
        last = jnp.broadcast_to(jnp.array([[[0.0, 0.0, 1.0]]]), (50, 1, 3))
        return (jnp.linalg.inv(jnp.concatenate([t, last], axis=1))[:, :2] * weight).sum()

    expected = jax.grad(general)(transform)
    found = jax.grad(lambda t: (affine.inverse_transform(t) * weight).sum())(transform)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)


SINGULAR = {
    "zero": [[0, 0, 1], [0, 0, 2]],
    "rank one": [[0.5, 0.25, 0.1], [1, 0.5, 0.2]],
    "rank one, rounded": [[0.3, 0.6, 0], [0.1, 0.2, 0]],
    "other eigenvalue is the nudge's opposite": [[-1e-5, 0, 0], [0, 0, 0]],
    "twice the nudge's opposite": [[-1e-5, 0, 3], [0, -1e-5, 3]],
    "nilpotent": [[0, 1, 0], [0, 0, 0]],
    "tiny": [[1e-30, 0, 0], [0, 1e-30, 0]],
    "huge": [[1e12, 1e12, 5], [1e12, 1e12, 5]],
}


@pytest.mark.parametrize("name", SINGULAR)
@pytest.mark.parametrize("fallback", ["element", "batch"])
def test_singular_matrices_stay_finite_in_value_gradient_and_downstream(name, fallback):
    one = jnp.array(SINGULAR[name], jnp.float32)
    transform = jnp.broadcast_to(one, (4, 5, 2, 3))
    corr = jax.random.uniform(jax.random.key(0), (225, 4, 5))

    def downstream(t):
        inverse = affine.inverse_transform(t, fallback=fallback)
        codes = boxes.encode(affine.bounding_box(inverse).reshape(-1, 4), boxes.anchor_grid((4, 5)))
        return resample.pooled_scores(corr, inverse)[0].sum() + jnp.minimum(jnp.abs(codes), 1.0).sum()

    assert np.isfinite(affine.inverse_transform(transform, fallback=fallback)).all()
    value, gradient = jax.jit(jax.value_and_grad(downstream))(transform)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    # a float32 gradient norm must not overflow either
    assert np.isfinite(jnp.sum(gradient * gradient))


@jax.jit
def transform_and_gradient(params):
    transform, pull = jax.vjp(lambda p: affine.params_to_transform(p, inverse=True), params)
    return transform, pull(jnp.ones_like(transform))[0]


@relaxed
@given(arrays.arrays(np.float32, (4, 6), elements=number))
def test_any_parameters_give_finite_transforms_and_gradients(params):
    transform, gradient = transform_and_gradient(jnp.asarray(params))
    assert np.isfinite(transform).all() and np.isfinite(gradient).all()


def test_a_singular_neighbour_changes_nothing_unless_asked():
    regular = jnp.array([[1.2, 0.1, 0.3], [0.2, 0.9, -0.1]])
    batch = jnp.stack([regular, jnp.zeros((2, 3))])
    alone = affine.inverse_transform(regular)
    np.testing.assert_array_equal(affine.inverse_transform(batch)[0], alone)
    nudged = affine.inverse_transform(batch, fallback="batch")[0]
    assert (nudged != alone).any()
    np.testing.assert_allclose(nudged, alone, atol=1e-4)


def test_half_precision_parameters_give_float32():
    transform = affine.params_to_transform(jnp.ones((2, 6), jnp.float16), inverse=True)
    assert transform.dtype == jnp.float32
