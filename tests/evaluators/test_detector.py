"""The detector's evaluation, with predictors that give known boxes."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import detector as config_file
from sm_jax.data.builders import published
from sm_jax.errors import ConfigError, DataError
from sm_jax.evaluators import detector, metric_names
from sm_jax.systems.detector.predict import Parts, Predictor
from tests.data.published import maker
from tests.evaluators.fake_source import Squares


class Oracle(Predictor):
    """Answers with the annotation of the images in turn, shifted, and a wrong box after it."""

    def __init__(self, source, *, labels=False, shift=0.0):
        super().__init__(Parts(lambda *arguments: {}, source.num_classes if labels else 1))
        self._entries = [source.annotation(i) for i in range(len(source)) if i not in source.damaged]
        self._labels, self._shift, self._turn = labels, shift, 0

    def detect(self, variables, levels, *, image_size, **options):
        entry = self._entries[self._turn % len(self._entries)]
        self._turn += 1
        labels = entry["labels"] if self._labels else np.zeros_like(entry["labels"])
        return {
            "boxes": np.concatenate([entry["boxes"] + self._shift, np.float32([[0, 0, 9, 9]])]),
            "scores": np.float32([0.9, 0.8, 0.2]),
            "labels": np.append(labels, 0),
        }


def _evaluator(source, predictor=None, **options):
    return detector.DetectorEvaluator(predictor or Oracle(source), source, scales=(1.0,), **options)


def test_any_object_is_one_class():
    evaluator = _evaluator(Squares(3), iou_thresholds=(0.5, 0.75))
    found = dict(evaluator.run({}))
    assert found == {"AP@0.50": 1.0, "recall@0.50": 1.0, "AP@0.75": 1.0, "recall@0.75": 1.0}
    assert evaluator.class_names == ["object"] and "object" in evaluator.table()
    assert json.loads(json.dumps(evaluator.to_dict()))["images"] == 3


def test_a_box_of_several_classes_is_one_object():
    class Double(Squares):
        def annotation(self, index):
            entry = super().annotation(index)
            return entry | {
                "boxes": np.concatenate([entry["boxes"], entry["boxes"]]),
                "labels": np.concatenate([entry["labels"], 1 - entry["labels"]]),
                "difficult": np.array([True, True, False, True]),
            }

    evaluator = _evaluator(Double(2), Oracle(Squares(2)))
    assert dict(evaluator.run({})) == {"AP@0.50": 1.0, "recall@0.50": 1.0}
    order = np.lexsort(Squares(2).annotation(0)["boxes"].T[::-1])
    truth = evaluator.ground_truth[0]
    np.testing.assert_array_equal(truth["boxes"], Squares(2).annotation(0)["boxes"][order])
    assert truth["difficult"][order].tolist() == [False, True]


def test_a_detector_of_any_object_needs_no_training_pictures(tmp_path):
    maker.retail(tmp_path / "data", "dairy", [maker.row(0, 1)], folder="original")
    published.build("dairy", tmp_path / "data", tmp_path / "built")
    config = config_file.get_config(f"data={tmp_path / 'built' / 'dairy'}")
    config.eval.splits = ("test",)
    assert list(detector.make(config)) == ["test"]


def test_a_shift_costs_at_the_higher_threshold_only():
    source = Squares(2)
    found = dict(_evaluator(source, Oracle(source, shift=8.0), iou_thresholds=(0.5, 0.75)).run({}))
    assert found["AP@0.50"] == 1.0 and found["AP@0.75"] == found["recall@0.75"] == 0.0


def test_classes_are_matched_by_name_and_others_left_out():
    source = Squares(2)
    swapped = Squares(2)
    swapped.class_names = ["blue", "new", "red"]  # label 0 of the split is the detector's class 1
    predictor = Oracle(source, labels=True)
    right = _evaluator(source, predictor, class_names=source.class_names)
    assert dict(right.run({}))["mAP@0.50"] == 1.0
    other = _evaluator(swapped, Oracle(source, labels=True), class_names=source.class_names)
    found = dict(other.run({}))
    assert found["mAP@0.50"] == 0.0  # the squares that are "blue" here were found as "red"
    assert [truth["labels"].tolist() for truth in other.ground_truth] == [[1], [1]]
    with pytest.raises(DataError, match="no class of the split"):
        _evaluator(swapped, class_names=["green"])


def test_names_of_the_results_are_known_before():
    for classes in (0, 3):
        config = ConfigDict({"system": "detector", "model": {"classes": classes}})
        config.eval = {"splits": ("val",), "iou_thresholds": (0.5,)}
        source = Squares(2)
        names = source.class_names if classes else None
        evaluator = _evaluator(source, Oracle(source, labels=bool(classes)), class_names=names)
        assert metric_names(config) == [f"val/{name}" for name, _ in evaluator.run({})]


def test_damaged_pictures_are_named_and_pictures_drawn(tmp_path):
    source = Squares(3, damaged=[1])
    evaluator = _evaluator(source)
    assert dict(evaluator.run({}))["AP@0.50"] == 1.0
    assert evaluator.indices == [0, 2] and "1.png" in evaluator.skipped[0]
    assert len(evaluator.pictures(tmp_path / "drawn", count=5)) == 2
    with pytest.raises(DataError, match="damaged"):
        list(_evaluator(Squares(2, damaged=[0, 1])).run({}))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_images": -1}, "eval.max_images"),
        ({"iou_thresholds": (0.0,)}, "eval.iou_thresholds"),
        ({"points": "12"}, "eval.points"),
        ({"joint": "no"}, "eval.joint"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        _evaluator(Squares(1), **options)


def test_nothing_to_evaluate():
    with pytest.raises(DataError, match="no pictures"):
        _evaluator(Squares(0))
