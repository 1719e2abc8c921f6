"""The table of baselines with a fake network on a data set in memory: one frame for all rows, each kept."""

import json

import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from benchmarks import baselines
from configs import os2d
from sm_jax import data as data_lib
from sm_jax import evaluators, pretrained
from sm_jax.errors import ConfigError
from sm_jax.evaluators.os2d import DetectionEvaluator
from sm_jax.systems.os2d.predict import Predictor
from tests.evaluators.fake_source import Squares
from tests.systems.os2d.fake import PARTS, VARIABLES

PREDICTOR = Predictor(PARTS, step=64, top_k=None)
SOURCE = "configs/os2d.py:recipe=sliding-square"


@pytest.fixture
def seen(monkeypatch):
    """The configs that were evaluated; a fake network in the place of every system."""
    configs = []

    def make(config, progress=None):
        configs.append(config)
        options = {"scales": config.eval.scales, "iou_thresholds": config.eval.iou_thresholds}
        options |= {"max_images": config.eval.max_images, "query_size": 48, "progress": progress}
        return {config.eval.splits[0]: DetectionEvaluator(PREDICTOR, Squares(), **options)}

    monkeypatch.setattr(evaluators, "make", make)
    monkeypatch.setattr(data_lib, "make_source", lambda data, split: Squares())
    monkeypatch.setattr(pretrained, "begin", lambda config: (VARIABLES, ["fake weights"]))
    return configs


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["baselines.py", *arguments])
    return baselines.main()


def test_rows_are_measured_once_in_one_frame_and_shown(seen, tmp_path, monkeypatch, capsys):
    out = tmp_path / "rows.json"
    common = [f"--out={out}", "--scenes=3", "--scales=1"]
    assert run(monkeypatch, *common, f"square={SOURCE};eval.views=horflip") == 0
    (key, row), *_ = json.loads(out.read_text()).items()
    assert key.startswith(f"square={SOURCE};eval.views=horflip | shelves test, 3 scenes, scales 1")
    assert row["images"] == 3 and row["classes"] == 2 and row["parameters"] == 1
    assert row["metrics"]["mAP@0.75"] <= row["metrics"]["mAP@0.50"] and row["metrics"]["recall@0.50"] > 0
    assert 0 < row["seconds"] < 10 and row["budget"] == "none" and not row["own"]
    (config,) = seen
    assert config.eval.splits == ("test",) and config.eval.scales == (1.0,) and config.eval.views == "horflip"
    assert config.eval.iou_thresholds == (0.5, 0.75) and config.data.shelves.num_test == 3
    capsys.readouterr()
    assert run(monkeypatch, *common, f"square={SOURCE};eval.views=horflip", f"other={SOURCE}") == 0
    assert len(seen) == 2 and list(json.loads(out.read_text()))[0] == key
    text = capsys.readouterr().out
    assert "2 classes in 3 images" in text and text.count("square") == 2
    assert run(monkeypatch, *common, "--scales=2", f"square={SOURCE};eval.views=horflip") == 0
    assert len(seen) == 3  # another frame is another row


def test_what_has_no_mean_average_precision_is_refused_before_it_is_measured(seen, monkeypatch):
    monkeypatch.setattr(evaluators, "metric_names", lambda config: ["test/AP@0.50", "test/recall@0.50"])
    frame = baselines.make_frame("shelves", "test", [1.0])
    with pytest.raises(ConfigError, match="any object: this is not evaluated by mean average precision"):
        baselines.measure(f"any object={SOURCE}", frame)
    assert not seen


def test_a_setting_of_a_row_wins_and_is_told(seen):
    frame = baselines.make_frame("shelves", "test", [1.0])
    row = baselines.measure(f"two levels={SOURCE};eval.scales=(1.0, 2.0)", frame)
    assert seen[0].eval.scales == (1.0, 2.0) and row["own"] == ["scales"]


def test_what_the_system_does_not_have_is_told():
    frame = baselines.make_frame("shelves", "test:seen", [0.5, 1], classes=40, max_images=2)
    assert frame.key == "shelves test:seen, 32 scenes, 40 classes, 2 images, scales 0.5 1"
    config = os2d.get_config()
    del config.eval.scales
    assert baselines.force(config, frame) == ["scales"]
    assert config.eval.max_images == 2 and config.data.shelves.num_classes == 40
    with pytest.raises(ConfigError, match="no evaluation with average precision"):
        baselines.force(ConfigDict({"system": "ssm", "data": {}, "eval": {}}), frame)


def test_training_is_told_from_the_run(tmp_path):
    rates = [{"step": 5, "steps_per_second": 2.0}, {"step": 10, "steps_per_second": 2.0}, {"step": 10}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rates))
    config = ConfigDict({"steps": 1200, "batch_size": 3})
    assert baselines.training(tmp_path, config, 1200) == "1200 x 3, 10 min"
    assert baselines.training(tmp_path / "none", config, 800) == "1200 x 3, best at 800"
    assert baselines.training(tmp_path, ConfigDict({"steps": 0}), 0) == "none"


def test_parameters_are_counted():
    assert (
        baselines.count({"params": {"a": {"b": jnp.zeros((2, 3))}}, "batch_stats": {"c": jnp.zeros(9)}}) == 6
    )


@pytest.mark.parametrize("row", ["", "name", "=runs/v1", "name=", "name=runs/v1;eval.views"])
def test_rows_that_say_nothing_are_one_line(row):
    with pytest.raises(ConfigError, match="expected NAME=RUN") as error:
        baselines.parse_row(row)
    assert "\n" not in str(error.value)


def test_a_frame_without_scenes_is_one_line():
    with pytest.raises(ConfigError, match="--scenes must be 1 or more"):
        baselines.make_frame("shelves", "test", [1.0], scenes=0)
