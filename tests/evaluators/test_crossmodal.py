"""The evaluator of phrases on a source and with a predictor in memory; its table, document and pictures."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from sm_jax import data, draw, evaluators
from sm_jax.errors import ConfigError, DataError
from sm_jax.evaluators import report, session
from sm_jax.evaluators.crossmodal import CrossModalEvaluator
from sm_jax.systems.crossmodal import predict
from tests.evaluators.fake_phrases import CANVAS, TOKENIZER, Cells, Predictor


def _evaluator(source=None, predictor=None, **options):
    options = {"batch_size": 2, "max_phrases": 2, **options}
    return CrossModalEvaluator(
        Predictor() if predictor is None else predictor,
        Cells() if source is None else source,
        encoder=TOKENIZER,
        image_size=CANVAS,
        **options,
    )


def test_a_perfect_model_gets_everything_right():
    metrics = dict(_evaluator().run({}))
    share = {
        name: value for name, value in metrics.items() if "absent" not in name and "majority" not in name
    }
    assert len(share) == 3 + 2 * 7 and set(share.values()) == {1.0}
    assert metrics["absent/false_alarms"] == metrics["absent/boxes"] == 0.0
    assert metrics["majority"] == pytest.approx(2 / 3)  # two of three objects are red: "aligned"
    assert metrics["phrasing/majority"] == pytest.approx(2 / 3)  # one of three is green: "not aligned"
    assert list(metrics)[:4] == ["precision", "recall", "iou", "aligned_precision"]


def test_wrong_alignment_shows_where_it_should():
    evaluator = _evaluator(predictor=Predictor(confused=["green"]))
    metrics = dict(evaluator.run({}))
    assert metrics["precision"] == metrics["recall"] == metrics["aligned_recall_gt"] == 1.0
    assert metrics["phrasing/aligned_recall_gt"] == metrics["phrasing/align_positive_recall"] == 0.0
    assert metrics["phrasing/align_accuracy"] == pytest.approx(2 / 3)
    assert math.isnan(metrics["phrasing/aligned_precision"])
    assert metrics["absent/false_alarms"] == 1.0 and metrics["absent/boxes"] == 1.0  # green for blue
    assert metrics["AP@0.50"] == 1.0 > metrics["phrasing/AP@0.50"]


def test_missed_objects_show_in_one_recall_only():
    evaluator = _evaluator(predictor=Predictor(missed=["green"]))
    metrics = dict(evaluator.run({}))
    assert metrics["recall"] == pytest.approx(2 / 3) and metrics["precision"] == 1.0
    assert metrics["aligned_recall_gt"] == metrics["align_accuracy"] == 1.0
    assert metrics["phrasing/aligned_recall_gt"] == 0.0
    assert math.isnan(metrics["phrasing/aligned_recall_matched"])
    assert evaluator.summaries["phrasing"]["aligned_recall_matched"].units == 0


def test_boxes_come_back_in_pixels_of_the_stored_image():
    evaluator = _evaluator(Cells(n=1))
    dict(evaluator.run({}))
    (scene,) = evaluator.scenes
    np.testing.assert_allclose(scene.boxes, Cells(n=1).annotation(0)["boxes"], atol=1e-4)
    assert np.all(np.diff(scene.conf) <= 0)


def test_proposals_about_the_filling_do_not_count():
    metrics = dict(_evaluator(predictor=Predictor(ghosts=True)).run({}))
    assert metrics["precision"] == metrics["iou"] == 1.0


def test_average_precision_ranks_by_conf_times_align():
    """Wrong colours are aligned better than right ones, but less confident."""
    metrics = dict(_evaluator(Cells(n=1), Predictor(wrong=0.91), kinds=("standard",)).run({}))
    assert metrics["AP@0.50"] == 1.0 and metrics["align_accuracy"] == pytest.approx(2 / 3)


def test_batches_and_phrases_have_fixed_shapes_and_their_sizes_change_nothing():
    source, results = Cells(n=5, extra=3), []
    for batch_size, max_phrases in ((2, 2), (5, 8), (1, 1)):
        predictor = Predictor(confused=["green"])
        evaluator = _evaluator(source, predictor, batch_size=batch_size, max_phrases=max_phrases)
        results.append(report.numbers(dict(evaluator.run({}))))
        shapes = {
            name: {shape for kind, shape in predictor.calls if kind == name} for name, _ in predictor.calls
        }
        assert shapes["proposals"] == {(batch_size, *CANVAS, 3)}
        assert shapes["texts"] == {(64, 8)} and shapes["scores"] == {(batch_size, max_phrases, 3)}
        calls = [kind for kind, _ in predictor.calls]
        assert calls.count("proposals") == -(-5 // batch_size) and calls.count("texts") == 1
        assert calls.count("scores") == -(-5 // batch_size) * -(-6 // max_phrases)  # six phrases an image
    assert results[0] == results[1] == results[2]


def test_running_again_gives_the_same():
    evaluator = _evaluator()
    assert dict(evaluator.run({})) == dict(evaluator.run({}))


def test_phrases_that_mean_nothing_are_counted_apart_whatever_their_kind():
    evaluator = _evaluator(Cells(n=2, extra=3), kinds=("standard",))  # "blue" is among the standard ones
    metrics = dict(evaluator.run({}))
    assert {name.split("/")[0] for name in metrics if "/" in name} == {"absent"}
    assert evaluator.summaries["absent"]["false_alarms"].units == 2
    assert evaluator.summaries["standard"]["align_accuracy"].units == 6


def test_images_without_objects_and_without_proposals():
    evaluator = _evaluator(Cells(n=3, empty=[1]))
    metrics = dict(evaluator.run({}))
    assert metrics["precision"] == metrics["recall"] == 1.0
    assert evaluator.summaries["standard"]["recall"].units == 2
    assert evaluator.summaries["absent"]["boxes"].units == 5  # three, and two phrases about the empty image
    nothing = _evaluator(Cells(n=2, empty=[0, 1]), kinds=("standard",))
    metrics = dict(nothing.run({}))
    assert math.isnan(metrics["precision"]) and metrics["absent/false_alarms"] == 0.0
    assert "0 image" not in nothing.table() and json.dumps(nothing.to_dict(), allow_nan=False)


def test_a_source_without_any_phrase_still_measures_proposals():
    class Silent(Cells):
        query_kinds = ("standard",)

        def queries(self, index, kind):
            return [], np.zeros((0, len(self._objects(index))), bool)

    predictor = Predictor()
    evaluator = _evaluator(Silent(), predictor)
    assert dict(evaluator.run({})) == {"precision": 1.0, "recall": 1.0, "iou": 1.0}
    assert {kind for kind, _ in predictor.calls} == {"proposals"}
    assert "phrases: none" in evaluator.table()


def test_max_images_are_evenly_spaced():
    evaluator = _evaluator(Cells(n=9), max_images=3)
    dict(evaluator.run({}))
    assert evaluator.indices == [0, 4, 8]


def test_damaged_pictures_are_named_and_many_stop_the_evaluation():
    evaluator = _evaluator(Cells(n=4, damaged=[1]))
    assert dict(evaluator.run({}))["recall"] == 1.0
    assert dict(evaluator.run({}))["recall"] == 1.0
    assert evaluator.indices == [0, 2, 3] and evaluator.skipped == ["1.png: damaged"]
    assert "left out: 1.png: damaged" in evaluator.table()
    with pytest.raises(DataError, match="more than 1 % of the images .*0.png: damaged"):
        dict(_evaluator(Cells(n=3, damaged=[0, 1])).run({}))
    with pytest.raises(DataError, match="no picture can be read .*0.png: damaged"):
        dict(_evaluator(Cells(n=1, damaged=[0])).run({}))


@pytest.mark.parametrize(
    "options,line",
    [
        ({"kinds": ("standard", "pears")}, "eval.kinds"),
        ({"kinds": ()}, "eval.kinds"),
        ({"batch_size": 0}, "eval.batch_size"),
        ({"max_phrases": 0}, "eval.max_phrases"),
        ({"max_images": -1}, "eval.max_images"),
        ({"iou_thresholds": ()}, "eval.iou_thresholds"),
        ({"iou_thresholds": (0.0,)}, "eval.iou_thresholds"),
        ({"iou": 1.0}, "eval.match_iou"),
        ({"align_threshold": -0.1}, "eval.align_threshold"),
        ({"score_threshold": math.nan}, "eval.score_threshold"),
    ],
)
def test_options_that_cannot_be_used_are_one_line(options, line):
    with pytest.raises(ConfigError, match=line) as caught:
        _evaluator(**options)
    assert "\n" not in str(caught.value)


def test_nothing_to_evaluate_is_one_line():
    with pytest.raises(DataError, match="no pictures"):
        _evaluator(Cells(n=0))


def test_words_that_the_model_does_not_know_are_named():
    class Foreign(Cells):
        def queries(self, index, kind):
            phrases, matches = super().queries(index, kind)
            return [phrase.replace("the ", "each ") for phrase in phrases], matches

    evaluator = _evaluator(Foreign())
    dict(evaluator.run({}))
    assert evaluator.unknown == ["each"] and "does not know: each" in evaluator.table()


def test_the_table_has_every_metric_and_its_definition():
    evaluator = _evaluator(predictor=Predictor(confused=["green"]))
    metrics = dict(evaluator.run({}))
    table = evaluator.table()
    assert table.startswith("3 images, phrases: 3 standard, 3 phrasing, 3 absent\n")
    lines = {line.split()[0]: line.split()[1:] for line in table.splitlines()[2:]}
    assert lines["align_accuracy"][0] == f"{metrics['align_accuracy']:.3f}"
    assert lines["align_accuracy"][1] == "3"
    assert lines["align_accuracy"][3] == f"{metrics['phrasing/align_accuracy']:.3f}" == "0.667"
    assert lines["absent/false_alarms"] == ["1.000", "3"] and "majority" in lines
    for name in ("precision:", "aligned_recall_matched:", "majority:", "AP@:", "false_alarms:"):
        assert name in lines
    assert "paper" not in table.splitlines()[1] and "nan" in table


def test_the_paper_stands_beside_when_the_scenes_are_like_its_own():
    evaluator = _evaluator(paper=True)
    dict(evaluator.run({}))
    head, *rows = evaluator.table().splitlines()[1:]
    assert head.split() == ["mean", "of", "micro", "paper", "phrasing"]
    rows = {row.split()[0]: row for row in rows}
    at = head.index("paper") + len("paper")
    for name, value in report.PAPER.items():
        assert rows[name][:at].endswith(f"{value:.3f}")
    assert not rows["aligned_recall_gt"][:at].strip().endswith(("0.966", "0.862"))
    assert evaluator.to_dict()["paper"]["align_accuracy"] == 0.996


def test_the_document_is_valid_json_with_null_for_what_is_undefined():
    evaluator = _evaluator(predictor=Predictor(confused=["green"]))
    dict(evaluator.run({}))
    document = json.loads(json.dumps(evaluator.to_dict(), allow_nan=False))
    assert document["kinds"]["phrasing"]["aligned_precision"] == {
        "mean": None,
        "micro": None,
        "units": 0,
        "total": 0.0,
    }
    assert document["kinds"]["standard"]["recall"]["total"] == 9 and document["images"] == 3
    assert document["kinds"]["standard"]["AP@0.50"] == 1.0 and "paper" not in document


def test_pictures_show_what_is_aligned_under_the_phrase(tmp_path, monkeypatch):
    seen = []
    real = draw.detections

    def spy(image, boxes, **options):
        seen.append((boxes, options))
        return real(image, boxes, **options)

    monkeypatch.setattr(draw, "detections", spy)
    evaluator = _evaluator(Cells(n=5, damaged=[2]))
    dict(evaluator.run({}))
    paths = evaluator.pictures(tmp_path / "pictures", count=2)
    assert [path.name for path in paths] == ["0000.png", "0004.png"]
    boxes, options = seen[0]
    assert len(boxes) == len(options["truth"]) == 2  # the red ones of three
    assert options["captions"][0] == "0.99 x 0.90\n= 0.89"
    with Image.open(paths[0]) as picture:
        assert picture.height > picture.width * 4 / 3  # the phrase stands above
    assert evaluator.pictures(tmp_path, count=0) == []


def test_progress_wraps_the_batches():
    seen = []
    dict(_evaluator(progress=lambda items, name: seen.append((name, len(items))) or items).run({}))
    assert seen == [("images", 2)]


def _config(**options):
    sections = {
        "system": "crossmodal",
        "model": {"vocabulary": TOKENIZER.vocabulary, "text_length": 8, "image_size": CANVAS},
        "data": {"source": "shapes"},
        "init": {"backbone": "", "model": "mine"},
        "eval": {"splits": ("val", "test"), "min_conf": 0.25, "max_proposals": 7, **options},
    }
    return ConfigDict(sections)


@pytest.fixture
def fakes(monkeypatch):
    """The predictor and the source in memory in place of those that a config names."""
    made = []

    def make_predictor(model, rules):
        made.append((model, rules))
        return Predictor()

    monkeypatch.setattr(predict, "Predictor", make_predictor)
    monkeypatch.setattr(data, "make_phrase_source", lambda section, split: Cells(n=2 + (split == "val")))
    return made


def test_the_config_says_what_is_evaluated_and_one_predictor_serves_all_splits(fakes):
    found = evaluators.make(_config(max_images=2, iou_thresholds=(0.5, 0.75)))
    assert list(found) == ["val", "test"] and all(evaluator.paper for evaluator in found.values())
    ((model, rules),) = fakes
    assert (model.image_size, rules.min_conf, rules.size) == (CANVAS, 0.25, 7)
    results = {f"{split}/{name}" for split, evaluator in found.items() for name, _ in evaluator.run({})}
    assert found["val"].indices == [0, 2]
    names = evaluators.metric_names(_config(iou_thresholds=(0.5, 0.75)))
    assert results <= set(names) and set(names) - results == {name for name in names if "/pairs/" in name}


def test_a_section_that_cannot_be_used_is_one_line(fakes):
    with pytest.raises(ConfigError, match="eval.splits"):
        evaluators.make(_config(splits=()))
    with pytest.raises(ConfigError, match="eval.batch_size"):
        evaluators.make(_config(batch_size=0))
    with pytest.raises(ConfigError, match="min_conf"):
        evaluators.make(_config(min_conf=2.0))


def test_evaluate_from_its_command_line_to_its_files(fakes, tmp_path, monkeypatch, capsys):
    import evaluate

    monkeypatch.setattr(evaluate.platform, "setup", lambda: None)
    monkeypatch.setattr(session.pretrained, "begin", lambda config: ({}, ["everything: made up"]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session.commandline, "load_config", lambda spec: _config(pictures=1))
    assert evaluate.main(["--config=mine.py", "--split=test", "--out=results"]) == 0
    printed = capsys.readouterr().out
    assert "everything: made up" in printed and "the start of a run (model mine) on shapes" in printed
    assert "test: 2 images, phrases: 2 standard" in printed and "aligned_recall_matched:" in printed
    document = json.loads(Path("results/results.json").read_text())
    (split,) = document["splits"]
    assert split == "test" and document["splits"][split]["metrics"]["align_accuracy"] == 1.0
    assert document["splits"][split]["kinds"]["standard"]["align_accuracy"]["micro"] == 1.0
    assert [path.name for path in Path("results/test").iterdir()] == ["0000.png"]


@pytest.mark.slow
def test_a_real_model_of_generated_scenes(tmp_path, monkeypatch, capsys):
    """Packaged features, the real predictor: everything is measured with one program of each kind."""
    import evaluate

    config = Path(evaluate.__file__).parent / "configs" / "crossmodal.py"
    made = []
    real = predict.Predictor
    monkeypatch.setattr(predict, "Predictor", lambda *args: made.append(real(*args)) or made[-1])
    monkeypatch.setattr(evaluate.platform, "setup", lambda: None)
    monkeypatch.chdir(tmp_path)
    words = [f"--config={config}:runlocal", "--config.eval.min_conf=0.1", "--config.eval.pictures=0"]
    assert evaluate.main(words) == 0
    metrics = json.loads(Path("runs/evaluation/results.json").read_text())["splits"]["val"]["metrics"]
    assert 0 < metrics["recall"] <= 1 and 0 < metrics["iou"] <= 1 and "absent/false_alarms" in metrics
    assert dict(made[0].compiles) == {"proposals": 1, "texts": 1, "scores": 1}
