"""Episodes: each is searched for its own classes only, and counts as much as any other."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import os2d as config_file
from sm_jax import evaluators
from sm_jax.data.builders import published
from sm_jax.errors import ConfigError, DataError
from sm_jax.evaluators import episodes, os2d
from sm_jax.evaluators.episodes import EpisodeEvaluator
from sm_jax.systems.os2d.predict import Predictor
from tests.data.published import maker
from tests.evaluators.fake_source import Squares
from tests.systems.os2d.fake import PARTS, VARIABLES

PREDICTOR = Predictor(PARTS, step=64, top_k=None)


class _Episodes(Squares):
    """Pictures 0 and 1 are an episode of red and blue, picture 2 one of blue and green (shows none)."""

    def listed(self, index):
        return np.array([[0, 1], [1, 0], [1, 2]][index])

    def annotation(self, index):
        entry = super().annotation(index)
        if index < 2:
            return entry
        return entry | {key: entry[key][1:] for key in ("boxes", "labels", "difficult")}


def _one(source):
    return os2d.DetectionEvaluator(PREDICTOR, source, scales=[1.0], query_size=48, iou_thresholds=(0.3,))


def test_each_episode_is_searched_for_its_own_classes():
    seen = []

    def one(source):
        seen.append((len(source), source.class_names))
        return _one(source)

    evaluator = EpisodeEvaluator(_Episodes(), one)
    metrics = dict(evaluator.run(VARIABLES))
    assert seen == [(2, ["red", "blue"]), (1, ["blue", "green"])]
    assert {len(values) for values in evaluator.measured.values()} == {2}
    joint = evaluator.measured["AP_joint@0.30"]
    assert metrics["AP_joint@0.30"] == pytest.approx(np.mean(joint)) and metrics["recall@0.30"] == 1.0
    alone = dict(_one(episodes._Episode(_Episodes(), np.array([2]), np.array([1, 2]))).run(VARIABLES))
    assert joint[1] == alone["AP_joint@0.30"]
    assert "2 episodes" in evaluator.table() and evaluator.pictures("nowhere", count=3) == []
    document = evaluator.to_dict()
    assert document["values"]["AP_joint@0.30"] == joint and document["episodes"] == 2


def test_some_episodes_are_evenly_spaced():
    assert len(dict(EpisodeEvaluator(_Episodes(), _one, max_episodes=1).run(VARIABLES))) == 4
    with pytest.raises(ConfigError, match="eval.max_images"):
        EpisodeEvaluator(_Episodes(), _one, max_episodes=-1)


def test_what_is_undefined_does_not_count():
    evaluator = EpisodeEvaluator(_Episodes(), _one)
    evaluator.measured = {"mAP@0.50": [float("nan"), 0.5]}
    assert "0.500" in evaluator.table() and evaluator.to_dict()["values"]["mAP@0.50"] == [None, 0.5]
    evaluator.measured = {"mAP@0.50": [float("nan")]}
    assert "nan" in evaluator.table()


def test_pictures_without_episodes_are_refused():
    with pytest.raises(DataError, match="eval.protocol=episodes needs pictures that name the classes"):
        EpisodeEvaluator(Squares(), _one)


def test_the_built_episodes_by_a_config(tmp_path, monkeypatch):
    maker.repmet(tmp_path)
    built = published.build("repmet", tmp_path, tmp_path / "built")
    config = config_file.get_config(f"dataset=repmet,data={built}")
    config.eval.update(scales=(0.5,), iou_thresholds=(0.5,))
    config.model.query_size = 48
    monkeypatch.setattr(episodes, "Predictor", lambda *args, **kwargs: PREDICTOR)
    (evaluator,) = evaluators.make(config).values()
    metrics = {f"test/{name}" for name, _ in evaluator.run(VARIABLES)}
    assert metrics == set(evaluators.metric_names(config)) and config.checkpoint.best_metric in metrics
    assert len(evaluator.measured["AP_joint@0.50"]) == 2


def test_other_systems_have_no_episodes():
    config = ConfigDict({"system": "ssm", "eval": {"protocol": "episodes", "splits": ("test",)}})
    with pytest.raises(ConfigError, match="searched by os2d, not by ssm"):
        evaluators.make(config)
