"""What the arguments of configs/detector.py set; the numbers are those of the OS2D specification, sec. 16."""

import pytest

from configs import detector
from sm_jax import data, evaluators, systems
from sm_jax.errors import ConfigError
from sm_jax.systems.detector.model import ModelConfig
from sm_jax.systems.detector.objective import ObjectiveConfig


@pytest.mark.parametrize("arg", [None, "full", "runlocal", "kind=classes", "full,kind=classes", "depth=101"])
def test_every_config_fits_the_system(arg):
    config = detector.get_config(arg)
    ModelConfig.create(config.model)
    ObjectiveConfig.create(config.objective)
    systems.make(config)
    assert config.checkpoint.best_metric in evaluators.metric_names(config)


def test_published_schedule():
    config = detector.get_config("full")
    assert config.steps == 720_000 and config.optim.milestones == (480_000, 640_000)
    assert (config.batch_size, config.optim.lr, config.optim.weight_decay) == (2, 0.0025, 1e-4)
    assert config.model.train_features and config.data.object_size == 240
    assert config.eval.nms_iou == 0.3 and config.eval.score_threshold == float("-inf")


def test_a_class_detector_has_the_classes_of_the_training_split():
    config = detector.get_config("kind=classes")
    assert config.model.classes == data.make_source(config.data, "train").num_classes == 40
    seen = data.make_source(config.data, "seen")
    assert seen.class_names == data.make_source(config.data, "train").class_names
    config.model.classes = 41
    for use in (data.make_train_iterator, evaluators.make):
        with pytest.raises(ConfigError, match="model.classes: is 41"):
            use(config)


@pytest.mark.parametrize("arg", ["kind=both", "steps=-1", "knd=classes", "depth=34"])
def test_wrong_arguments_are_refused(arg):
    with pytest.raises(ConfigError):
        systems.make(detector.get_config(arg))


def test_published_data_sets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where nothing is built
    config = detector.get_config("dataset=grozi")
    assert config.steps == 720_000 and config.data.source == "built/grozi" and config.data.object_size == 240
    assert config.eval.splits == ("val-all",) and config.checkpoint.best_metric == "val-all/AP@0.50"
    config = detector.get_config("dataset=grozi,kind=classes")
    assert config.model.classes == 878 and config.checkpoint.best_metric == "val-old-cl/mAP@0.50"
    assert config.checkpoint.best_metric in evaluators.metric_names(config)
    config = detector.get_config("dataset=instre-s1,depth=101,backbone=resnet101-caffe,data=there")
    assert config.eval.splits == ("val",) and config.data.source == "there"
    for arg, says in {
        "dataset=dairy": "no training pictures: evaluate a run",
        "dataset=repmet": "there are grozi, instre-s1, instre-s2",
        "dataset=instre-s1,kind=classes": "shows the classes of its training",
    }.items():
        with pytest.raises(ConfigError, match=says):
            detector.get_config(arg)
