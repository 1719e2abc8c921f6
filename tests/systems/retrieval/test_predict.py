"""Pictures of any size through few programs; whitening from data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax.data.transforms import resize_plain
from sm_jax.systems.retrieval import model, whitening
from sm_jax.systems.retrieval.predict import Describer
from tests.systems.retrieval.fake import VARIABLES, describe

RNG = np.random.default_rng(0)


def test_descriptors_do_not_depend_on_the_company():
    pictures = [RNG.normal(size=(h, w, 3)).astype(np.float32) for h, w in [(20, 30), (50, 20), (9, 9)] * 3]
    describer = Describer(describe, side=24, scales=(1.0, 0.5), step=16, chunk=2)
    together = describer(VARIABLES, pictures)
    assert together.shape == (9, 3)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)
    for picture, descriptor in zip(pictures, together, strict=True):
        np.testing.assert_allclose(describer(VARIABLES, [picture])[0], descriptor, atol=1e-5)


def test_a_descriptor_is_the_normalised_sum_over_scales():
    picture = RNG.normal(size=(24, 24, 3)).astype(np.float32)
    describer = Describer(describe, side=24, scales=(1.0, 0.5), step=8, chunk=1)
    parts = [
        jax.jit(describe)(VARIABLES, resize_plain(picture, (n, n))[None], jnp.array([[n, n]]))[0]
        for n in (24, 12)
    ]
    total = np.sum(parts, axis=0)
    np.testing.assert_allclose(describer(VARIABLES, [picture])[0], total / np.linalg.norm(total), rtol=1e-4)


def test_without_whitening_scales_are_averaged_as_cells_are():
    picture = RNG.uniform(0.1, 1, size=(24, 24, 3)).astype(np.float32) * [1.0, 0.4, 0.1]
    picture[:3] = [0.1, 1.0, 0.1]
    options = {"side": 24, "scales": (1.0, 0.125), "step": 8, "chunk": 1}
    parts = [
        jax.jit(describe)(VARIABLES, resize_plain(picture, (n, n))[None], jnp.array([[n, n]]))[0]
        for n in (24, 3)
    ]
    found = Describer(describe, power=lambda variables: 3.0, **options)(VARIABLES, [picture])[0]
    total = np.sum(np.power(parts, 3), axis=0) ** (1 / 3)
    np.testing.assert_allclose(found, total / np.linalg.norm(total), rtol=1e-4)
    assert np.abs(found - Describer(describe, **options)(VARIABLES, [picture])[0]).max() > 1e-3
    learned = {"params": {"pool": {"p": np.array([2.5])}}}
    assert model.scale_power(model.ModelConfig(whiten=False), learned) == 2.5
    assert model.scale_power(model.ModelConfig(), learned) == 1


def test_programs_are_few():
    describer = Describer(describe, side=32, scales=(1.0,), step=32, chunk=4)
    for size in [(30, 30), (60, 64), (31, 33), (100, 90)]:
        describer(VARIABLES, [np.ones((*size, 3), np.float32)] * 4)
    before = dict(describer.compiles)
    describer(VARIABLES, [np.ones((77, 77, 3), np.float32)] * 8)
    assert dict(describer.compiles) == before == {"describe": 3}  # for 32x32, 64x32 and 32x64
    with pytest.raises(ValueError, match="chunk=0"):
        Describer(describe, chunk=0)


def test_very_elongated_pictures_fit():
    describer = Describer(describe, side=16, scales=(1.0,), step=16, chunk=1)
    assert np.isfinite(describer(VARIABLES, [np.ones((2, 900, 3), np.float32)])).all()


def test_plain_resize_is_that_of_jax():
    picture = RNG.normal(size=(7, 9, 3)).astype(np.float32)
    for size in ((3, 20), (14, 9)):
        expected = jax.image.resize(picture, (*size, 3), "linear", antialias=False)
        np.testing.assert_allclose(resize_plain(picture, size), expected, atol=1e-6)


# whitening -----------------------------------------------------------------------------------------


def _whitened(x, layer):
    return x @ layer[0].astype(np.float64) + layer[1]


def test_principal_components_have_variance_one():
    x = RNG.normal(size=(500, 6)) @ RNG.normal(size=(6, 6)) + 3
    found = _whitened(x, whitening.pca(x, dim=4, shrinkage=0.0))
    np.testing.assert_allclose(found.T @ found / len(x), np.eye(4), atol=1e-5)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-5)


def test_pairs_whiten_differences_within_classes_and_keep_what_tells_classes_apart():
    labels = np.arange(400) // 2
    centres = np.zeros((200, 5))
    centres[:, 1] = 5 * RNG.normal(size=200)  # classes differ in the second number alone
    noise = RNG.normal(size=(400, 5)) * [3.0, 0.5, 1.0, 2.0, 0.1]
    x = centres[labels] + noise + 7
    first, second = np.arange(0, 400, 2), np.arange(1, 400, 2)
    kernel, bias = whitening.pairs(x, first, second, dim=5, shrinkage=0.0)
    apart = _whitened(x, (kernel, bias))[first] - _whitened(x, (kernel, bias))[second]
    np.testing.assert_allclose(apart.T @ apart / 200, np.eye(5), atol=1e-4)
    strongest = np.abs(kernel[:, 0]) * x.std(axis=0)
    assert strongest.argmax() == 1
    np.testing.assert_allclose(
        whitening.pairs(x, first, second, dim=1, shrinkage=0.0)[0], kernel[:, :1], atol=1e-5
    )


def test_fewer_descriptors_than_channels_are_no_trouble():
    x = RNG.normal(size=(5, 12))
    for kernel, bias in (whitening.pca(x, dim=12), whitening.pairs(x, np.array([0]), np.array([1]), dim=12)):
        assert kernel.shape == (12, 12) and np.isfinite(kernel).all() and np.isfinite(bias).all()
