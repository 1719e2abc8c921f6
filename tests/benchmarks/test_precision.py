"""The precision table measures what it says: float16 is closer than bfloat16, and its inputs fit."""

import argparse

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import precision
from sm_jax.systems.os2d import model


def test_float16_head_is_closer_than_bfloat16():
    options = argparse.Namespace(model="v2", backbone="", transform="", scenes=0, classes=2)
    rows = precision.run(options)["planted"]
    exact, coarse = rows["head float16"], rows["head bfloat16"]
    assert 0 < exact["score_max"] < 3e-4 and 0 < exact["box_max_px"] < 0.1
    assert 3 * exact["score_max"] < coarse["score_max"] < 3e-3
    assert 3 * exact["box_max_px"] < coarse["box_max_px"] < 1.0
    assert exact["same_best"] == 1.0


def test_planted_templates_are_found():
    rng = np.random.default_rng(0)
    features, template = precision.planted(rng, 2, cells=(20, 24), copies=1)
    config = model.ModelConfig()
    variables = precision.material.variables(config, rng, backbone="", transform="", spread=0.0)
    variables["params"]["transform"]["linear"]["bias"] = np.asarray([1.0, 0.0, 1.0, 0.0], np.float32)
    scores = model.head(config, variables, features, None, template)[0].scores
    assert scores.max() > 0.7 and jnp.quantile(scores, 0.5) < 0.5


@pytest.mark.slow
def test_scenes_have_one_picture_per_class():
    ((image, requests),) = precision.scenes(1, 3)
    assert image.shape == (1, 480, 640, 3) and image.dtype == np.float32
    assert requests["image"].shape == (3, precision.QUERY_SIDE, precision.QUERY_SIDE, 3)
    for picture, (height, width) in zip(requests["image"], requests["size"], strict=True):
        assert (
            not picture[height:].any()
            and not picture[:, width:].any()
            and picture[height - 1, width - 1].any()
        )
