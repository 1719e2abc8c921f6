"""Class pictures against crops, with descriptors of mean colours; the choice between the two evaluations."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from configs import retrieval as retrieval_config
from sm_jax import evaluators
from sm_jax.errors import ConfigError, DataError
from sm_jax.evaluators import report, retrieval
from sm_jax.evaluators.retrieval import RetrievalEvaluator, average_precision
from sm_jax.systems.retrieval.predict import Describer
from tests.evaluators.fake_source import Squares
from tests.systems.retrieval.fake import VARIABLES, describe

DESCRIBER = Describer(describe, side=16, scales=(1.0,), step=16, chunk=4)


def _evaluator(source=None, **options):
    return RetrievalEvaluator(DESCRIBER, Squares() if source is None else source, query_size=16, **options)


def test_crops_and_class_pictures_find_each_other():
    evaluator = _evaluator()
    assert dict(evaluator.run(VARIABLES)) == {"mAP": 1.0, "recall@1": 1.0}
    assert set(evaluator.ap) == {0, 1} and evaluator.scores.shape == (6, 2)  # no box, no class picture
    assert evaluator.table().startswith("6 crops, 2 class pictures\n")


def test_what_is_confused_is_counted():
    class Swapped(Squares):
        def query(self, label):
            return super().query(1 - label)

    metrics = dict(_evaluator(Swapped()).run(VARIABLES))
    assert metrics["recall@1"] == 0.0
    assert metrics["mAP"] == pytest.approx(np.mean([1 / 4, 2 / 5, 3 / 6]))  # the right three come last


def test_average_precision_is_the_mean_over_right_items():
    scores, right = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False])
    assert average_precision(scores, right) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(-scores, right) == pytest.approx((1 / 2 + 2 / 4) / 2)


def test_some_images_and_large_boxes_only():
    assert len(set(_evaluator(Squares(n=9), max_images=3)._rows.tolist())) == 6
    with pytest.raises(DataError, match="no picture of the split has a box"):
        _evaluator(min_side=100)


def test_damaged_pictures_are_named_and_many_stop_the_evaluation():
    evaluator = _evaluator(Squares(n=3, damaged=[1], damaged_queries=[1]))
    assert dict(evaluator.run(VARIABLES)) == {"mAP": 1.0, "recall@1": 1.0}
    assert evaluator.skipped == ["class 1.png: damaged", "1.png: damaged"] and len(evaluator.scores) == 2
    with pytest.raises(DataError, match="more than 1 %"):
        dict(_evaluator(Squares(n=3, damaged=[0, 1])).run(VARIABLES))
    with pytest.raises(DataError, match="no pictures"):
        _evaluator(Squares(n=0))
    with pytest.raises(ConfigError, match="eval.max_images"):
        _evaluator(max_images=-1)


def test_report_and_pictures(tmp_path):
    evaluator = _evaluator(Squares(n=1))
    dict(evaluator.run(VARIABLES))
    report.write(tmp_path / "results.json", evaluator.to_dict())
    assert json.loads((tmp_path / "results.json").read_text())["classes"][0] == {"name": "red", "AP": 1.0}
    written = evaluator.pictures(tmp_path / "pictures", count=5)
    assert len(written) == 2
    with Image.open(written[0]) as sheet:
        assert sheet.size == (3 * retrieval.TILE, retrieval.TILE)  # the class picture and both crops


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [("query_size", 0, "eval.query_size"), ("descriptor_scales", (), "scales: ")],
)
def test_options_that_cannot_be_used_are_one_line(key, value, line):
    config = retrieval_config.get_config("runlocal")
    config.eval[key] = value
    with pytest.raises(ConfigError, match=line):
        evaluators.make(config)


def test_the_config_chooses_the_evaluation(monkeypatch):
    config = retrieval_config.get_config("runlocal")
    monkeypatch.setattr("sm_jax.data.make_source", lambda data, split: Squares())
    monkeypatch.setattr("sm_jax.data.image_scale", lambda data: 2.0)
    (alone,) = evaluators.make(config).values()
    assert isinstance(alone, RetrievalEvaluator)
    assert evaluators.metric_names(config) == ["val/mAP", "val/recall@1"]
    seen = SimpleNamespace()

    def detector(run, **options):
        seen.run, seen.options = run, options
        return lambda image: (np.zeros((0, 4)), np.zeros(0))

    monkeypatch.setattr("sm_jax.evaluators.proposing.detector", detector)
    config.eval.detector = "runs/detector"
    config.eval.scales = (0.5, 1.0)
    (both,) = evaluators.make(config).values()
    assert type(both).__name__ == "DetectAndRetrieve"
    assert seen.run == "runs/detector" and seen.options["scales"] == [1.0, 2.0]
    assert seen.options["score_threshold"] == 0.1 and seen.options["nms_iou"] == 0.3
    assert "val/mAP@0.50" in evaluators.metric_names(config)
