"""The evaluator on a data set in memory, with a fake network; the report; the choice of what to evaluate."""

import json
import os

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from sm_jax import draw, evaluators
from sm_jax.errors import ConfigError, DataError, ImageError
from sm_jax.evaluators import report, session
from sm_jax.evaluators.os2d import DetectionEvaluator
from sm_jax.systems.os2d.predict import Predictor
from tests.evaluators.fake_source import Squares
from tests.systems.os2d.fake import PARTS, VARIABLES

PREDICTOR = Predictor(PARTS, step=64, top_k=None)


def _evaluator(source=None, **options):
    options = {"scales": [1.0], "query_size": 48, "iou_thresholds": (0.3, 0.75), **options}
    return DetectionEvaluator(PREDICTOR, Squares() if source is None else source, **options)


def test_objects_are_found_and_scored():
    evaluator = _evaluator()
    metrics = dict(evaluator.run(VARIABLES))
    names = {f"{name}@{t}" for name in ("mAP", "mAPw", "recall", "AP_joint") for t in ("0.30", "0.75")}
    assert set(metrics) == names
    assert metrics["recall@0.30"] == 1.0 and metrics["mAP@0.30"] > metrics["mAP@0.75"]
    assert set(evaluator.results[0.3].ap) == {0, 1}  # only annotated classes are searched
    assert len(evaluator.detections) == 3


def test_running_again_gives_the_same_and_makes_no_program():
    evaluator = _evaluator()
    first = dict(evaluator.run(VARIABLES))
    before = dict(PREDICTOR.compiles)
    assert dict(evaluator.run(VARIABLES)) == first and dict(PREDICTOR.compiles) == before


def test_max_images_are_evenly_spaced():
    assert _evaluator(Squares(n=9), max_images=3).indices == [0, 4, 8]
    assert _evaluator(Squares(n=2), max_images=5).indices == [0, 1]


def test_views_are_searched_too():
    plain = dict(_evaluator(max_images=1).run(VARIABLES))
    turned = dict(_evaluator(max_images=1, augmentation="rotation90").run(VARIABLES))
    assert turned["recall@0.30"] == plain["recall@0.30"] == 1.0
    with pytest.raises(ConfigError, match="no class view called 'spin'"):
        _evaluator(augmentation="spin")


def test_damaged_pictures_are_named_and_many_stop_the_evaluation():
    evaluator = _evaluator(Squares(n=3, damaged=[1]))
    metrics = dict(evaluator.run(VARIABLES))
    assert metrics["recall@0.30"] == 1.0 and evaluator.skipped == ["1.png: damaged"]
    assert evaluator.indices == [0, 2] and "left out: 1.png: damaged" in evaluator.table()
    with pytest.raises(DataError, match="more than 1 % .*0.png: damaged"):
        dict(_evaluator(Squares(n=3, damaged=[0, 1])).run(VARIABLES))


def test_damaged_images_and_class_pictures_are_counted_apart():
    evaluator = _evaluator(Squares(n=3, damaged=[1], damaged_queries=[1]))
    assert dict(evaluator.run(VARIABLES))["recall@0.30"] == 0.5
    assert evaluator.skipped == ["class 1.png: damaged", "1.png: damaged"]


def test_a_class_without_picture_is_not_found():
    metrics = dict(_evaluator(Squares(damaged_queries=[1])).run(VARIABLES))
    assert metrics["recall@0.30"] == 0.5


def test_nothing_to_evaluate_is_one_line():
    with pytest.raises(DataError, match="no pictures"):
        _evaluator(Squares(n=0))
    with pytest.raises(DataError, match="no picture can be read .*0.png: damaged"):
        dict(_evaluator(Squares(n=1, damaged=[0])).run(VARIABLES))


@pytest.mark.parametrize(
    "options,line",
    [
        ({"max_images": -1}, "eval.max_images"),
        ({"iou_thresholds": ()}, "eval.iou_thresholds"),
        ({"iou_thresholds": (0.5, 2.0)}, "eval.iou_thresholds"),
        ({"scales": ()}, "scales: "),
        ({"scales": (1.0, 0.0)}, "scales: "),
        ({"scales": (float("nan"),)}, "scales: "),
    ],
)
def test_options_that_cannot_be_used_are_one_line(options, line):
    with pytest.raises(ConfigError, match=line):
        _evaluator(**options)


def test_a_scale_that_would_fill_the_memory_stops_the_evaluation():
    with pytest.raises(ImageError, match="image 0: scale 1000 makes it 192000x128000, too large"):
        dict(_evaluator(scales=[1000.0]).run(VARIABLES))


def test_progress_wraps_images_and_classes():
    seen = []
    dict(_evaluator(progress=lambda items, name: seen.append(name) or items).run(VARIABLES))
    assert seen == ["classes", "images"]


def test_report_and_pictures(tmp_path):
    evaluator = _evaluator(Squares(n=1))
    metrics = dict(evaluator.run(VARIABLES))
    table = evaluator.table()
    assert table.startswith("1 image\n") and "red" in table and "blue" in table
    assert f" {metrics['mAP@0.30']:.3f} " in table
    report.write(tmp_path / "results.json", {"val": evaluator.to_dict()})
    document = json.loads((tmp_path / "results.json").read_text())["val"]
    assert {row["name"]: row["boxes"] for row in document["iou"]["0.30"]["classes"]} == {"red": 1, "blue": 1}
    assert os.listdir(tmp_path) == ["results.json"]
    (path,) = evaluator.pictures(tmp_path / "pictures", count=3)
    with Image.open(path) as picture:
        assert picture.width > picture.height


def test_pictures_show_every_detection_above_the_score_of_the_best_f1(tmp_path, monkeypatch):
    """Also wrong ones, more than there are objects of a class, and those of classes that are not there."""
    evaluator = _evaluator(Squares(n=1))
    dict(evaluator.run(VARIABLES))
    evaluator.results[0.3] = evaluator.results[0.3]._replace(best_score=0.5)
    evaluator.detections = [
        {
            "boxes": np.tile(np.float32([[5, 5, 20, 20]]), (6, 1)),
            "scores": np.float32([0.6, 0.9, 0.25, 0.7, 0.5, 0.8]),
            "labels": np.int64([0, 2, 0, 0, 0, 1]),
        }
    ]
    drawn = {}

    def fake(image, boxes, **options):
        drawn.update(options)
        return Image.fromarray(image)

    monkeypatch.setattr(draw, "detections", fake)
    evaluator.pictures(tmp_path, count=1)
    assert drawn["labels"] == ["green", "blue", "red", "red", "red"] and 0.25 not in drawn["scores"]
    assert len(drawn["truth"]) == 2 and list(drawn["queries"]) == ["red", "blue"]  # no picture of green
    evaluator.pictures(tmp_path, count=1, per_image=2)
    assert drawn["labels"] == ["green", "blue"]


def test_undefined_numbers_are_null():
    evaluator = _evaluator(Squares(n=1))
    dict(evaluator.run(VARIABLES))
    evaluator.results[0.3] = evaluator.results[0.3]._replace(map=float("nan"))
    assert evaluator.to_dict()["iou"]["0.30"]["mAP"] is None


def test_a_split_with_difficult_boxes_only_gives_valid_json(tmp_path, monkeypatch):
    import evaluate

    class Hidden(Squares):
        def annotation(self, index):
            return super().annotation(index) | {"difficult": np.ones(2, bool)}

    monkeypatch.setattr(evaluators, "make", lambda *_, **__: {"val": _evaluator(Hidden(n=1))})
    monkeypatch.setattr(session.pretrained, "begin", lambda *_: (VARIABLES, []))
    monkeypatch.setattr(evaluate.platform, "setup", lambda: None)
    monkeypatch.chdir(tmp_path)
    assert evaluate.main(["--data=mine", "--out=results"]) == 0

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    document = json.loads((tmp_path / "results" / "results.json").read_text(), parse_constant=refuse)
    assert document["splits"]["val"]["metrics"]["mAP@0.30"] is None
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--out: file cannot be made"):
        evaluate.main(["--data=mine", "--out=file"])


def test_nothing_is_written_into_the_data_set(tmp_path, monkeypatch):
    import evaluate

    monkeypatch.setattr(session.pretrained, "begin", lambda *_: (VARIABLES, []))
    monkeypatch.setattr(evaluate.platform, "setup", lambda: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for words in (["--data=."], ["--data=mine", "--out=mine/results"]):
        with pytest.raises(ConfigError, match="where nothing is ever written"):
            evaluate.main(words)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


def test_other_systems_are_refused():
    with pytest.raises(ConfigError, match="nothing evaluates 'nothing'"):
        evaluators.make(ConfigDict({"system": "nothing"}))


def test_the_newest_run_with_a_checkpoint_is_chosen(tmp_path):
    assert session.newest_run(tmp_path) == ""
    for age, (name, step) in enumerate([("old", "3"), ("new", "5"), ("unfinished", "")]):
        (tmp_path / name / "checkpoints" / step).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
        os.utime(tmp_path / name / "checkpoints", (1000 + age, 1000 + age))
    (tmp_path / "evaluation").mkdir()
    assert session.newest_run(tmp_path) == str(tmp_path / "new")


def test_evaluate_without_a_run_reports_the_start(tmp_path, monkeypatch, capsys):
    """`evaluate.py` from its command line to its files, with a fake model and fake data."""
    import evaluate

    def fake_make(config, progress=None):
        assert config.data.source == "mine" and config.eval.splits == ("test",) and config.eval.pictures == 1
        return {split: _evaluator(Squares(n=1)) for split in config.eval.splits}

    monkeypatch.setattr(evaluators, "make", fake_make)
    monkeypatch.setattr(session.pretrained, "begin", lambda *_: (VARIABLES, ["backbone: fake"]))
    monkeypatch.setattr(evaluate.platform, "setup", lambda: None)
    monkeypatch.chdir(tmp_path)
    assert evaluate.main(["--data=mine", "--split=test", "--config.eval.pictures=1"]) == 0
    out = capsys.readouterr().out
    assert "backbone: fake" in out and "test: 1 image" in out
    document = json.loads((tmp_path / "runs" / "evaluation" / "results.json").read_text())
    assert (
        document["splits"]["test"]["metrics"]["recall@0.30"] == 1.0
        and "resnet50-caffe-c4" in document["model"]
    )
    assert (tmp_path / "runs" / "evaluation" / "test" / "0000.png").is_file()


@pytest.mark.parametrize(
    "words,line",
    [
        (["--workdir=nowhere"], "nowhere"),
        (["--workdir=x", "--config=configs/os2d.py"], "not both"),
        (["--step=3"], "--step needs --workdir"),
        (["--config.eval.scale=1"], "config.eval.scale is not known"),
        (["--wrokdir=x"], "option --wrokdir is not known"),
    ],
)
def test_evaluate_refuses_what_does_not_fit(words, line, tmp_path, monkeypatch):
    import evaluate

    monkeypatch.setattr(evaluate.platform, "setup", lambda: None)
    if not any("--config=" in word for word in words):
        monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=line) as caught:
        evaluate.main(words)
    assert "\n" not in str(caught.value)


def test_the_fake_objects_are_where_the_annotation_says():
    source = Squares()
    image, entry = source.image(0), source.annotation(0)
    x1, y1, x2, y2 = entry["boxes"][1].astype(int)
    assert np.all(image[y1:y2, x1:x2, 2] > 200)
