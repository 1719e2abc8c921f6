"""Resampling: recorded maps, and the fast pooled score against the readable one in value and gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sm_jax.errors import ConfigError
from sm_jax.ops import resample
from tests import goldens

relaxed = settings(deadline=None, max_examples=25)  # the first example may compile
COUNT, HEIGHT, WIDTH = 2, 5, 6


# recorded numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", goldens.params("os2d", "head_*_v[12].npz"))
@pytest.mark.parametrize("implementation", ["gather", "einsum"])
def test_golden_resampled_correlation(path, implementation):
    data = goldens.load(path)
    if "corr_resampled" not in data:
        pytest.skip("no resampled correlation recorded for this case")
    common = goldens.load(goldens.companion(path, path.stem.rsplit("_", 1)[0] + "_common.npz"))
    shape = data["corr_resampled"].shape
    n, c, height, width, template = shape[:5]
    corr = common["corr"].reshape(n * c, template, template, height, width)
    corr = jnp.asarray(corr.transpose(0, 3, 4, 2, 1))  # recorded channels are column-major
    transform = jnp.asarray(data["theta"]).reshape(n * c, height, width, 2, 3)

    def warp(corr, transform):
        grid = resample.sampling_grid(transform, template=template)
        return resample.resample_correlation(corr, grid, implementation=implementation)

    warped = jax.jit(lambda *pair: jax.lax.map(lambda p: warp(*p), pair))(corr, transform)
    np.testing.assert_allclose(warped.reshape(shape), data["corr_resampled"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("path", goldens.params("os2d", "head_*_v[12].npz"))
def test_golden_scores(path):
    data = goldens.load(path)
    common = goldens.load(goldens.companion(path, path.stem.rsplit("_", 1)[0] + "_common.npz"))
    image, query = common["image_features_norm"], common["class_features_norm"]
    n, c, (height, width) = len(image), len(query), image.shape[-2:]
    corr = jnp.asarray(np.einsum("cdij,bdhw->bcijhw", query, image, optimize=True))
    transform = jnp.asarray(data["theta"]).reshape(n, c, height, width, 2, 3)
    fast, detached = jax.jit(resample.pooled_scores)(corr.reshape(n, c, -1, height, width), transform)
    np.testing.assert_allclose(fast[:, :, None], data["scores"], rtol=0, atol=2e-6)
    np.testing.assert_array_equal(fast, detached)
    slow = jax.jit(resample.pooled_scores_reference)(jnp.transpose(corr[0, 0], (2, 3, 0, 1)), transform[0, 0])
    np.testing.assert_allclose(slow, data["scores"][0, 0, 0], rtol=0, atol=2e-6)


@pytest.mark.parametrize("path", goldens.params("os2d", "head_*_common.npz"))
def test_golden_pool_mask(path):
    mask = goldens.load(path)["class_pool_mask"]
    template, border = mask.shape[-1], resample.BORDER
    inner = np.zeros(mask.shape, np.float32)
    inner[..., border:-border, border:-border] = 1 / (template - 2 * border) ** 2
    np.testing.assert_allclose(mask, inner, rtol=0, atol=1e-7)


# fast == reference --------------------------------------------------------------------------------


def make_case(seed, *, spread=0.3, shape=(COUNT, HEIGHT, WIDTH), channels=225):
    """A random correlation "n k h w" and transforms around the identity "n h w 2 3"."""
    rng = np.random.default_rng(seed)
    n, height, width = shape
    corr = rng.standard_normal((n, channels, height, width)).astype(np.float32)
    transform = np.eye(2, 3) + spread * rng.standard_normal((n, height, width, 2, 3))
    return jnp.asarray(corr), jnp.asarray(transform, jnp.float32)


@jax.jit
def reference(corr, transform, sizes=None):
    """`pooled_scores_reference` over the first axis of the fast layout."""
    n, _, height, width = corr.shape
    corr = corr[:, :225].reshape(n, 15, 15, height, width)
    corr = jnp.transpose(corr, (0, 3, 4, 1, 2))
    sizes = jnp.broadcast_to(jnp.array([[height, width]]), (n, 2)) if sizes is None else sizes
    return jax.vmap(lambda c, t, s: resample.pooled_scores_reference(c, t, size=s))(corr, transform, sizes)


@jax.jit
def fast(corr, transform, sizes=None):
    return resample.pooled_scores(corr, transform, size=sizes)


def off_the_kinks(transform, sizes, margin=1e-3):
    """Cells none of whose samples lies on an integer, where the derivative jumps: "n h w" bool."""
    grid = np.asarray(jax.vmap(resample.sampling_grid)(transform), np.float64)[:, :, :, 2:-2, 2:-2]
    near = np.abs(grid - np.round(grid)) < margin
    last = np.asarray(sizes)[:, None, None, None, None, ::-1] - 1
    return ~(near & (grid > -margin) & (grid < last + margin)).any(axis=(3, 4, 5))


@functools.partial(jax.jit, static_argnums=0)
def both_gradients(f, corr, transform, sizes, weights):
    """Gradients of sum(w0 score + w1 detached score) of the fast pair, or of its two readable halves."""

    def total(corr, transform):
        if f is fast:
            scores, detached = f(corr, transform, sizes)
        else:
            scores = f(corr, transform, sizes)
            detached = f(corr, jax.lax.stop_gradient(transform), sizes)
        return (weights[0] * scores).sum() + (weights[1] * detached).sum()

    return jax.grad(total, argnums=(0, 1))(corr, transform)


def check(corr, transform, sizes, atol=2e-6):
    """Value, both gradients and finiteness of the fast pair against the reference."""
    scores, detached = fast(corr, transform, sizes)
    expected = reference(corr, transform, sizes)
    assert scores.dtype == detached.dtype == jnp.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=atol)
    np.testing.assert_array_equal(scores, detached)
    weights = jnp.asarray(np.random.default_rng(1).standard_normal((2, *scores.shape)), jnp.float32)
    kept = jnp.asarray(off_the_kinks(transform, sizes), jnp.float32)
    found = both_gradients(fast, corr, transform, sizes, weights * kept[None])
    wanted = both_gradients(reference, corr, transform, sizes, weights * kept[None])
    for a, b in zip(found, wanted, strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * max(1.0, float(jnp.abs(b).max())))
    return float(kept.mean())


@relaxed
@given(st.integers(0, 10**6), st.floats(0, 3), st.tuples(st.integers(1, HEIGHT), st.integers(1, WIDTH)))
def test_fast_equals_reference(seed, spread, size):
    corr, transform = make_case(seed, spread=spread)
    check(corr, transform, jnp.array([size, (HEIGHT, WIDTH)]))


def test_most_cells_are_compared_in_the_gradient_test():
    corr, transform = make_case(3, spread=0.1)
    assert check(corr, transform, jnp.array([[HEIGHT, WIDTH]] * COUNT)) > 0.5


WILD = {
    "zero": np.zeros((2, 3)),
    "far away": [[1, 0, 500], [0, 1, -500]],
    "huge": [[1e6, 3.1e5, 0.3], [-2.3e5, 1.1e6, 0.1]],
    "very huge": [[1e15, 1e15, 1e15], [-1e15, 1e15, 1e15]],
    "mirrored": [[-1.13, 0, 0.01], [0, 0.97, 0.02]],
    "line": [[0.9, 0, 0.013], [0, 0, 0.017]],
}


@pytest.mark.parametrize("name", WILD)
def test_wild_transforms(name):
    corr, _ = make_case(0)
    transform = jnp.broadcast_to(jnp.array(WILD[name], jnp.float32), (COUNT, HEIGHT, WIDTH, 2, 3))
    check(corr, transform, jnp.array([[HEIGHT, WIDTH], [3, 4]]))


def test_non_finite_transforms_stay_in_their_cell():
    corr, transform = make_case(0)
    bad = transform.at[0, 1, 2, 0, 0].set(jnp.nan).at[1, 0, 0].set(jnp.inf)
    scores = np.asarray(fast(corr, bad)[0])
    expected = np.asarray(fast(corr, transform)[0])
    kept = np.ones(scores.shape, bool)
    kept[0, 1, 2] = kept[1, 0, 0] = False
    np.testing.assert_array_equal(scores[kept], expected[kept])
    assert np.isnan(scores[0, 1, 2])


@pytest.mark.parametrize("shape", [(2, 1, 6), (2, 5, 1)])
def test_maps_of_one_row_or_column(shape):
    corr, transform = make_case(5, shape=shape)
    check(corr, transform, jnp.broadcast_to(jnp.array([shape[1:]]), (shape[0], 2)))


def test_padding_is_absent():
    corr, transform = make_case(7)
    valid = (3, 4)
    inner = corr[:, :, :3, :4], transform[:, :3, :4]
    alone = fast(*inner)[0]
    # whatever lies in the padding, the valid part does not move
    spoiled = jnp.full_like(corr, jnp.nan).at[:, :, :3, :4].set(inner[0])
    masked = jnp.where(jnp.isnan(spoiled), 1e3, spoiled)
    padded = jax.jit(lambda c, t: resample.pooled_scores(c, t, size=valid))(masked, transform)[0]
    np.testing.assert_allclose(padded[:, :3, :4], alone, rtol=0, atol=1e-6)
    slow = reference(masked, transform, jnp.array([valid, valid]))
    np.testing.assert_allclose(slow[:, :3, :4], alone, rtol=0, atol=2e-6)


def test_leading_axes_padding_channels_and_vmap_give_the_same():
    corr, transform = make_case(11, shape=(6, 4, 5), channels=232)
    sizes = jnp.array([[4, 5], [3, 5]])
    corr, transform = corr.reshape(2, 3, *corr.shape[1:]), transform.reshape(2, 3, *transform.shape[1:])
    weight = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))

    def direct(corr, transform):
        scores = resample.pooled_scores(corr, transform, size=sizes[:, None])[0]
        return (weight * scores).sum(), scores

    def mapped(corr, transform):
        one = jax.vmap(lambda c, t, s: resample.pooled_scores(c, t, size=s)[0], in_axes=(0, 0, None))
        scores = jax.vmap(one)(corr, transform, sizes)
        return (weight * scores).sum(), scores

    flat = corr.reshape(6, *corr.shape[2:]), transform.reshape(6, *transform.shape[2:])
    expected = reference(*flat, jnp.repeat(sizes, 3, axis=0)).reshape(2, 3, 4, 5)
    answers = []
    for f in (direct, mapped):
        gradients, scores = jax.jit(jax.grad(f, argnums=(0, 1), has_aux=True))(corr, transform)
        np.testing.assert_allclose(scores, expected, rtol=0, atol=2e-6)
        answers.append(gradients)
    for a, b in zip(*answers, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert not np.asarray(answers[0][0][:, :, 225:]).any()


def test_runs_sharded_over_classes():
    corr, transform = make_case(13, shape=(8, 3, 4))
    mesh = jax.make_mesh((8,), ("cls",), axis_types=(jax.sharding.AxisType.Auto,))

    def gradients(corr, transform):
        return jax.grad(lambda c, t: (resample.pooled_scores(c, t)[0] ** 2).sum(), argnums=(0, 1))(
            corr, transform
        )

    spec = jax.P("cls")
    sharded = jax.shard_map(gradients, mesh=mesh, in_specs=(spec, spec), out_specs=(spec, spec))
    for a, b in zip(jax.jit(sharded)(corr, transform), jax.jit(gradients)(corr, transform), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_correlation_is_accumulated_in_float32(dtype):
    corr, transform = make_case(2)
    corr = corr.astype(dtype)
    scores = fast(corr, transform)[0]
    assert scores.dtype == jnp.float32
    np.testing.assert_allclose(scores, reference(corr.astype(jnp.float32), transform), rtol=0, atol=2e-6)
    gradient = jax.jit(jax.grad(lambda c: fast(c, transform)[0].sum()))(corr)
    assert gradient.dtype == dtype
    wide = jax.jit(jax.grad(lambda c: fast(c, transform)[0].sum()))(corr.astype(jnp.float32))
    # one rounding at the end, not one per addition
    np.testing.assert_allclose(
        gradient.astype(jnp.float32), wide, rtol=2 * float(jnp.finfo(dtype).eps), atol=1e-6
    )


def test_temporary_memory_does_not_grow_with_the_template():
    corr, transform = make_case(0, shape=(2, 12, 16))
    plane = 4 * 2 * 12 * 16
    program = fast.lower(corr, transform).compile()
    assert program.memory_analysis().temp_size_in_bytes < 60 * plane  # a grid would take 2 * 225 of them


def test_wrong_shapes_are_named():
    corr, transform = make_case(0)
    with pytest.raises(ValueError, match="does not fit"):
        resample.pooled_scores(corr, transform[:, :-1])
    with pytest.raises(ValueError, match="224 channels"):
        resample.pooled_scores(corr[:, :224], transform)
    huge = [jax.ShapeDtypeStruct(s, jnp.float16) for s in ((100, 225, 400, 400), (100, 400, 400, 2, 3))]
    with pytest.raises(ValueError, match="fewer classes"):
        jax.eval_shape(resample.pooled_scores, *huge)
    with pytest.raises(ConfigError, match="magic"):
        resample.resample_correlation(
            jnp.ones((2, 2, 3, 3)), jnp.ones((2, 2, 3, 3, 2)), implementation="magic"
        )


# class-feature resize -----------------------------------------------------------------------------


@relaxed
@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 100))
def test_resize_matches_numpy_interpolation(height, width, seed):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((height, width, 2)).astype(np.float32)
    frame = np.full((7, 7, 2), np.inf, np.float32)
    frame[:height, :width] = features
    found = padded_resize(frame, np.array([height, width]))
    y, x = (np.linspace(0, m - 1, n) for m, n in ((height, 5), (width, 4)))
    down = np.stack(
        [
            np.stack([np.interp(y, np.arange(height), f[:, i]) for i in range(width)], 1)
            for f in np.moveaxis(features, -1, 0)
        ],
        -1,
    )
    both = np.stack(
        [np.stack([np.interp(x, np.arange(width), r) for r in f], 0) for f in np.moveaxis(down, -1, 0)], -1
    )
    np.testing.assert_allclose(found, both, rtol=0, atol=1e-5)


@jax.jit
def padded_resize(frame, size):
    return resample.resize_align_corners(frame, out=(5, 4), size=size)


def test_resize_keeps_the_dtype_and_handles_one_output():
    features = jnp.ones((3, 4, 2), jnp.float16)
    assert resample.resize_align_corners(features).dtype == jnp.float16
    assert jax.eval_shape(resample.resize_align_corners, features).shape == (15, 15, 2)
    first = resample.resize_align_corners(jnp.arange(6.0).reshape(2, 3, 1), out=(1, 1))
    np.testing.assert_array_equal(first, [[[0.0]]])
