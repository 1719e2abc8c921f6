"""Masks and parts through flows that are known, on small data of the published forms."""

import json
from dataclasses import replace

import numpy as np
import pytest

from sm_jax.data.sources import mask_pairs
from sm_jax.errors import DataError
from sm_jax.evaluators.correspondence import Matches
from sm_jax.evaluators.mask_transfer import MaskEvaluator
from tests.data.test_mask_pairs import SIZE, caltech, parts


def moved_by(x):
    """The whole picture, moved."""

    def start(variables):
        del variables
        box = np.array([[0, 0, SIZE[1], SIZE[0]]], np.float32)
        return lambda pair: Matches(box, box + np.array([[x, 0, x, 0]]), np.ones(1))

    return start


def run(method, pairs, **options):
    evaluator = MaskEvaluator(method, pairs, smooth=False, **options)
    return evaluator, dict(evaluator.run(None))


def test_the_true_shift_carries_the_mask(tmp_path):
    pairs = mask_pairs.read_caltech(caltech(tmp_path, classes=("beaver",), count=2))
    pair = next(p for p in pairs if p.source.stem.endswith("1"))
    _, right = run(moved_by(1), [pair])  # the second object lies one pixel further
    assert right["IoU"] == 1.0 and right["LT-ACC"] == 1.0
    _, wrong = run(moved_by(15), [pair])
    assert wrong["IoU"] < 0.5 and wrong["LOC-ERR"] > right["LOC-ERR"]


def test_means_over_pairs_and_classes_and_the_report(tmp_path):
    pairs = mask_pairs.read_caltech(caltech(tmp_path, count=2))
    evaluator, values = run(moved_by(0), pairs, name="still")
    text = evaluator.table()
    assert evaluator.protocol in text and "LOC-ERR: mean" in text and "still" in text
    document = evaluator.to_dict()
    assert set(document["metrics_by_name"]["IoU"]["by_class"]) == {"beaver", "Faces"}
    json.dumps(document, allow_nan=False)
    assert set(values) == {"LT-ACC", "IoU", "LOC-ERR"}


def test_parts_and_key_points(tmp_path):
    pairs = mask_pairs.read_parts(parts(tmp_path))
    _, values = run(moved_by(1), pairs)
    assert values["part_IoU"] == 1.0 and values["PCK@0.05"] == 1.0
    _, values = run(moved_by(8), pairs)
    assert values["part_IoU"] < 0.5 and values["PCK@0.05"] == 0.0


def test_smoothing_fills_what_no_match_covers(tmp_path):
    pairs = mask_pairs.read_caltech(caltech(tmp_path, classes=("beaver",), count=2))

    def part(variables):
        del variables
        box = np.array([[5, 0, 50, 40]], np.float32)
        return lambda pair: Matches(box, box, np.ones(1))

    smooth = MaskEvaluator(part, pairs[:1])
    assert dict(smooth.run(None))["IoU"] > 0.8 and smooth.protocol.endswith("smoothed")


def test_a_mask_of_another_size_is_one_line(tmp_path):
    (pair,) = mask_pairs.read_parts(parts(tmp_path))
    wrong = replace(pair, source_masks=lambda: {"head": np.zeros((3, 3), bool)})
    with pytest.raises(DataError, match="its mask is .3, 3., the picture .40, 60."):
        run(moved_by(0), [wrong])
    with pytest.raises(DataError, match="no pairs"):
        MaskEvaluator(moved_by(0), [])
