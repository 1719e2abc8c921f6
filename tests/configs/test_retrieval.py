"""The retrieval config: the published constants and the arguments."""

import json
import math

import numpy as np
import pytest

from configs import retrieval
from sm_jax import evaluators, systems
from sm_jax.errors import ConfigError
from sm_jax.systems.retrieval.model import ModelConfig
from sm_jax.systems.retrieval.objective import ObjectiveConfig
from sm_jax.training import optim


@pytest.mark.parametrize("arg", [None, "", "runlocal", "full", "untrained", "depth=101,backbone=random"])
def test_every_argument_gives_a_system(arg):
    config = retrieval.get_config(arg)
    assert systems.make(config).trainable("pool/p")
    optim.make_optimizer(config.optim), optim.make_schedule(config.optim, config.steps)
    assert json.loads(config.to_json_best_effort())["system"] == "retrieval"


def test_published_constants():
    config = retrieval.get_config("full")
    assert ObjectiveConfig.create(config.objective) == ObjectiveConfig(margin=0.85)
    assert ModelConfig.create(config.model) == ModelConfig()
    data = config.data
    assert (data.queries, data.pool, data.negatives, data.random_crops) == (2000, 20_000, 5, 10)
    assert (data.positive_iou, data.negative_iou, config.model.image_size) == (0.7, 0.3, 240)
    assert config.batch_size == 5 and config.steps == 100 * 2000 // 5
    rate = optim.make_schedule(config.optim, config.steps)
    for epoch in (0, 1, 99):
        np.testing.assert_allclose(
            rate(np.int32(400 * epoch + 399)), 1e-6 * math.exp(-0.01 * epoch), rtol=1e-5
        )
    assert (config.eval.detector_score, config.eval.detector_iou, config.eval.nms_iou) == (0.1, 0.3, 0.3)


def test_not_trained_is_imagenet_features_and_pooling():
    config = retrieval.get_config("full,untrained")
    assert config.steps == 0 and not config.model.whiten and config.init.backbone == "resnet50-caffe-c4"
    with pytest.raises(ConfigError, match="leave whitening=pca out"):
        retrieval.get_config("untrained,whitening=pca")


def test_two_cores_store_what_does_not_train():
    config = retrieval.get_config()
    assert config.data.cache_trunk and not config.model.train_features and config.data.whitening == "pairs"
    config = retrieval.get_config("backbone=random")  # which would teach nothing
    assert config.model.train_features and not config.data.cache_trunk


def test_a_negative_number_of_steps_is_one_line():
    with pytest.raises(ConfigError, match="steps=-1"):
        retrieval.get_config("steps=-1")


def test_published_data_sets_and_a_detector():
    config = retrieval.get_config("dataset=grozi")
    assert config.steps == 40_000 and config.data.source == "built/grozi" and config.eval.views == "data"
    assert config.checkpoint.best_metric == "val-new-cl/mAP" in evaluators.metric_names(config)
    config = retrieval.get_config("dataset=paste-f,untrained,detector=runs/detector")
    assert config.steps == 0 and config.data.scale == 3500 / 1280 and config.eval.splits == ("test",)
    assert config.checkpoint.best_metric == "test/mAP@0.50" in evaluators.metric_names(config)
    assert retrieval.get_config("dataset=paste-v,untrained").data.scale == 0
    for arg, says in {
        "dataset=dairy": "no training pictures: evaluate a run",
        "dataset=repmet,untrained": "there are grozi",
    }.items():
        with pytest.raises(ConfigError, match=says):
            retrieval.get_config(arg)
