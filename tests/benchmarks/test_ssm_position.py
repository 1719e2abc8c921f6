"""The position-dependence test of SSM runs, and what it rests on: which fusion knows places."""

import jax
import numpy as np
import pytest

from benchmarks.ssm_position import measure
from sm_jax.systems.ssm import model


@pytest.mark.parametrize(("fusion", "depends"), [("gap", False), ("aligned", True)])
@pytest.mark.parametrize("how", ["product", "concat"])
def test_only_the_aligned_fusions_depend_on_the_place(how, fusion, depends):
    """Features moved by ten cells (160 pixels): is the answer what it was, moved by ten cells?"""
    config = model.ModelConfig(fusion=f"{how}_{fusion}")
    rng = np.random.default_rng(0)
    features = rng.uniform(size=(32, 32, 1024)).astype(np.float32)
    request = rng.uniform(size=(1, 1024) if fusion == "gap" else (1, 32, 32, 1024)).astype(np.float32)
    channels = 2048 if how == "concat" else 1024
    linear = {
        "kernel": rng.standard_normal((channels, 5)).astype(np.float32),
        "bias": np.zeros(5, np.float32),
    }
    search = jax.jit(lambda features: model.head_many(config, linear, features, request)["logits"][0])
    before, after = search(features), search(np.roll(features, 10, axis=1))
    apart = np.abs(np.roll(before, 10, axis=1) - after).max()
    assert (apart > 1) == depends and (apart < 1e-3) != depends


def test_the_measurement():
    config = model.ModelConfig(fusion="product_gap", image_size=(128, 128), request_size=(32, 32))
    variables = model.init(config, jax.random.key(0))
    pictures = [np.random.default_rng(0).integers(0, 255, (40, 30, 3), np.uint8)]
    found = measure(config, variables, pictures, threshold=0.0)
    assert all(0 < value < 1 for value in found.coverage) and 0 < found.difference < 1
    assert found.both <= min(found.found)
