"""The config of SSM: what its arguments do, and what they refuse."""

import pytest

from configs import ssm
from sm_jax import data, systems
from sm_jax.data import ssm as batches
from sm_jax.errors import ConfigError
from sm_jax.systems.ssm.model import ModelConfig
from sm_jax.systems.ssm.objective import ObjectiveConfig


@pytest.mark.parametrize(
    "arg",
    [
        None,
        "full",
        "runlocal",
        "fusion=product_gap",
        "full,fusion=concat_gap,loss=ssm",
        "trainable=head,steps=7",
    ],
)
def test_every_form_is_a_system(arg):
    config = ssm.get_config(arg)
    assert systems.make(config).loss is not None
    assert config.checkpoint.best_metric.startswith("val/") and "val" in config.eval.splits
    options = batches.batch_options(config, 1.0)
    assert options.image_size == tuple(config.model.image_size)
    assert options.fixed_crops == config.data.cache_trunk
    assert not options.flips  # the shelves have writing on them


def test_full_is_the_published_network():
    config = ssm.get_config("full")
    model, objective = ModelConfig.create(config.model), ObjectiveConfig.create(config.objective)
    assert (model.fusion, model.head_relu, model.trainable) == ("product_aligned", False, "all")
    assert (model.image_size, model.request_size) == ((512, 512), (128, 128))
    assert objective == ObjectiveConfig()
    assert config.optim.bias_lr == 2 and not config.optim.bias_decay
    assert not config.data.cache_trunk


def test_random_branches_train_as_a_whole():
    config = ssm.get_config("backbone=random")
    assert config.model.trainable == "all" and not config.data.cache_trunk and not config.data.fixed_crops
    assert config.init.backbone == ""
    with pytest.raises(ConfigError, match="trainable=5a: .*random"):
        ssm.get_config("backbone=random,trainable=5a")


def test_detectnet():
    config = ssm.get_config("loss=detectnet")
    assert ObjectiveConfig.create(config.objective).loss == "detectnet"


def test_pictures_as_they_are():
    config = ssm.get_config("full,size=0")
    assert data.image_scale(config.data) == 1.0
    assert ssm.get_config("size=99").data.object_size == 99 and ssm.get_config("size=99").data.scale == 0


def test_own_data_choose_no_checkpoint_by_groups_that_may_not_be_there():
    config = ssm.get_config("data=somewhere,train=train:seen")
    assert config.data.train_split == "train:seen"
    assert config.checkpoint.keep_best == 0


@pytest.mark.parametrize("arg", ["steps=-1", "batch=-2", "fusion=sum", "loss=l2", "trainable=6a", "size=-3"])
def test_what_cannot_be_is_refused(arg):
    with pytest.raises(ConfigError) as error:
        systems.make(ssm.get_config(arg))
    assert "\n" not in str(error.value)
