"""CoAE through the evaluator of OS2D: every class in every image, or only those that the image shows."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import coae
from sm_jax import evaluators
from sm_jax.errors import ConfigError
from sm_jax.evaluators.os2d import DetectionEvaluator
from sm_jax.systems.coae.predict import Predictor
from tests.data import makers
from tests.evaluators.fake_source import Squares
from tests.systems.coae import tiny


class Partly(Squares):
    """Image 0 shows class 0 only, so that finding class 1 there is a mistake."""

    def annotation(self, index):
        entry = super().annotation(index)
        if index:
            return entry
        return entry | {name: entry[name][:1] for name in ("boxes", "labels", "difficult")}


@pytest.fixture(scope="module")
def predictor():
    with tiny.network():
        yield Predictor(tiny.CONFIG, step=64, block=2)


def test_all_classes_or_those_annotated_in_the_image(predictor):
    variables = tiny.variables()

    def run(classes):
        evaluator = DetectionEvaluator(
            predictor, Partly(2), scales=[1.0], query_size=48, classes=classes, max_detections=5
        )
        return dict(evaluator.run(variables)), evaluator.detections

    every, found = run("all")
    annotated, fewer = run("annotated")
    assert set(every) == {"mAP@0.50", "mAPw@0.50", "recall@0.50", "AP_joint@0.50"}
    assert [set(one["labels"]) for one in found] == [{0, 1}, {0, 1}]
    assert [set(one["labels"]) for one in fewer] == [{0}, {0, 1}]
    assert all((one["labels"] == label).sum() <= 5 for one in found for label in (0, 1))
    mine = found[0]["labels"] == 0
    np.testing.assert_array_equal(found[0]["boxes"][mine], fewer[0]["boxes"])
    assert annotated["mAP@0.50"] >= every["mAP@0.50"]


def test_unknown_classes_are_refused(predictor):
    with pytest.raises(ConfigError, match="eval.classes: 'some' is none of all, annotated"):
        DetectionEvaluator(predictor, Squares(), scales=[1.0], classes="some")


def test_evaluators_of_a_config(tmp_path):
    makers.os2d_csv(tmp_path)
    config = ConfigDict(coae.get_config(f"annotated,data={tmp_path}"))
    config.data.scale = 1.0
    config.eval.splits = ("train",)
    config.eval.max_images, config.eval.views = 1, "horflip"
    names = [name for name in config.model if hasattr(tiny.CONFIG, name)]
    config.model.update({name: getattr(tiny.CONFIG, name) for name in names})
    with tiny.network():
        evaluator = evaluators.make(config)["train"]
        metrics = dict(evaluator.run(tiny.variables()))
        pictures = [(7, np.zeros((48, 48, 3), np.uint8))]
        assert evaluator.encode(tiny.variables(), pictures)[1] == [7, 7]  # as it is, and mirrored
    assert {f"train/{name}" for name in metrics} == set(evaluators.metric_names(config))
    shown = set(evaluator.ground_truth[0]["labels"])
    assert set(evaluator.detections[0]["labels"]) <= shown
