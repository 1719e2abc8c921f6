"""The CoAE config: published constants, budgets, arguments."""

import json

import pytest

from configs import coae
from sm_jax import evaluators, systems
from sm_jax.errors import ConfigError
from sm_jax.systems.coae.model import ModelConfig
from sm_jax.systems.coae.objective import ObjectiveConfig


@pytest.mark.parametrize("arg", [None, "", "runlocal", "full", "full,annotated", "depth=101,backbone=random"])
def test_every_argument_gives_a_system(arg):
    config = coae.get_config(arg)
    assert systems.make(config).trainable("rpn/conv/kernel")
    assert json.loads(config.to_json_best_effort())["system"] == "coae"
    assert config.checkpoint.best_metric in evaluators.metric_names(config)


def test_published_constants():
    config = coae.get_config("full")
    assert ObjectiveConfig.create(config.objective) == ObjectiveConfig()
    assert ModelConfig.create(config.model) == ModelConfig(frozen_blocks=4)
    assert config.model.query_size == 192 and config.model.anchor_scales == (4, 8, 16, 32)
    assert (config.steps, config.batch_size, config.optim.lr) == (298_000, 4, 0.01)
    assert config.optim.milestones == (149_000, 223_500) and config.optim.reload_best_at_drop
    assert config.eval.max_detections == 100 and config.eval.scales == (1.0,)
    assert config.data.crop == (900, 1200) and config.data.scale_jitter == 1 / 1.6 and not config.data.flips


def test_arguments():
    config = coae.get_config("full,steps=100,size=96,depth=101,annotated")
    assert config.optim.milestones == (50, 75) and config.data.object_size == 96
    assert config.init.backbone == "resnet101-tv" and config.eval.classes == "annotated"
    assert coae.get_config().eval.classes == "all"
    assert coae.get_config("backbone=random").init.backbone == ""


@pytest.mark.parametrize("arg", ["steps=-3", "size=-1", "stepz=3"])
def test_wrong_arguments_are_one_line(arg):
    with pytest.raises(ConfigError) as error:
        coae.get_config(arg)
    assert "\n" not in str(error.value)


def test_published_data_sets():
    config = coae.get_config("dataset=grozi,depth=101,annotated")
    assert config.steps == 298_000 and config.data.crop == (900, 1200) and config.data.object_size == 225
    assert config.data.source == "built/grozi" and config.eval.views == "data"
    assert config.checkpoint.best_metric == "val-new-cl/mAP@0.50" in evaluators.metric_names(config)
    config = coae.get_config("dataset=instre-s1")
    assert config.steps == 294_375 and config.optim.milestones == (147_187, 220_781)
    assert config.data.crop == (492, 656)  # a shorter side of 900 * 700 / 1280 pixels
    with pytest.raises(ConfigError, match="no training pictures: evaluate a run"):
        coae.get_config("dataset=paste-f")
