"""A trained detector as a function: it searches at the scale at which it was trained."""

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from sm_jax import pretrained
from sm_jax.errors import ConfigError, ImageError
from sm_jax.evaluators import proposing
from sm_jax.systems.detector.predict import Parts


@pytest.fixture
def trained(monkeypatch):
    """A detector of objects of 120 pixels that finds one box, whose score tells the width of the level."""

    def boxes(variables, image, size):
        del variables
        whole = jnp.concatenate([jnp.zeros((1, 2)), size[:, ::-1]], axis=1)
        score = size[:, None, 1:] / 1000.0
        return {"boxes": whole[:, None], "scores": score, "valid": jnp.ones((1, 1), bool)}

    config = ConfigDict({"model": {}, "data": {"object_size": 120}})
    config.eval = {"candidates": 10, "proposals": 5}

    def load(weights, *, system):
        assert (weights, system) == ("run", "detector")
        return pretrained.Trained(config, {}, [])

    monkeypatch.setattr(pretrained, "trained", load)
    monkeypatch.setattr(proposing, "parts", lambda model, **options: Parts(boxes, 1))


def test_levels_are_those_of_its_own_objects(trained):
    image = np.zeros((100, 200, 3), np.uint8)
    for object_size, width in ((240, 200), (120, 400)):
        propose = proposing.detector("run", scales=(2.0,), object_size=object_size)
        boxes, scores = propose(image)
        np.testing.assert_allclose(boxes, [[0, 0, 200, 100]], atol=1e-4)
        np.testing.assert_allclose(scores, [width / 1000], atol=1e-6)
    assert len(proposing.detector("run", scales=(2.0,), score_threshold=0.5)(image)[1]) == 0


def test_what_cannot_be_is_refused(trained):
    with pytest.raises(ConfigError, match="scales"):
        proposing.detector("run", scales=(0.0,))
    with pytest.raises(ImageError, match="too large"):
        proposing.detector("run", scales=(100.0,))(np.zeros((400, 400, 3), np.uint8))
