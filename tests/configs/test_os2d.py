"""The os2d config: models and experiments of the paper as arguments."""

import json

import pytest

from configs import os2d
from sm_jax import systems
from sm_jax.errors import ConfigError
from sm_jax.systems.os2d.model import ModelConfig
from sm_jax.systems.os2d.objective import ObjectiveConfig
from sm_jax.training import commandline

V1 = {"simplified": True, "inverse": False, "freeze_bn_transform": False}
V2 = {"simplified": False, "inverse": True, "freeze_bn_transform": True}


def _has(section, values):
    assert {key: section[key] for key in values} == values


@pytest.mark.parametrize("arg", [None, "", "runlocal", "full", "full,recipe=v2", "depth=101,backbone=random"])
def test_every_argument_gives_a_system(arg):
    config = os2d.get_config(arg)
    assert systems.make(config).trainable("transform/linear/kernel")
    assert json.loads(config.to_json_best_effort())["system"] == "os2d"


def test_published_constants():
    config = os2d.get_config("full")
    assert ObjectiveConfig.create(config.objective) == ObjectiveConfig()
    assert ModelConfig.create(config.model) == ModelConfig()
    assert (config.steps, config.batch_size, config.data.class_batch_size) == (200_000, 4, 15)
    assert config.optim.lr == 1e-4 and config.optim.milestones == (100_000, 150_000)
    assert config.eval.scales == (0.5, 0.625, 0.8, 1.0, 1.2, 1.4, 1.6)


def test_the_papers_three_models():
    _has(os2d.get_config("full").model, V1)
    trained = os2d.get_config("full,recipe=v2,transform=weakalign.pth")
    _has(trained.model, V2)
    assert trained.objective.loc_weight == 0.0 and trained.init.transform == "weakalign.pth"
    assert trained.steps == 200_000
    for budget in ("", "full,", "runlocal,"):
        start = os2d.get_config(f"{budget}recipe=v2-init,transform=weakalign.pth")
        _has(start.model, V2)
        assert start.steps == 0


@pytest.mark.parametrize(
    ("arg", "backbone"),
    [
        (None, "resnet50-caffe-c4"),
        ("depth=101", "resnet101-tv"),
        ("depth=101,backbone=a.safetensors", "a.safetensors"),
        ("backbone=random", ""),
    ],
)
def test_backbone_weights_fit_the_depth(arg, backbone):
    assert os2d.get_config(arg).init.backbone == backbone


def test_class_weights_can_be_set_from_the_command_line():
    config = os2d.get_config()
    commandline.override(config, "objective.class_weights", "(1, 0.5)")
    assert ObjectiveConfig.create(config.objective).class_weights == (1, 0.5)


TABLE = {  # column: model, objective, localisation weight, remapping, mining
    0: (V1, "contrastive", 0.2, False, False),
    1: (V1, "RLL", 0.2, False, False),
    2: (V1, "RLL", 0.2, True, False),
    3: (V1, "RLL", 0.2, True, True),
    4: (V2 | {"freeze_bn_transform": False}, "RLL", 0.2, True, False),
    5: ({"simplified": False, "inverse": False, "freeze_bn_transform": False}, "RLL", 0.2, True, True),
    6: (V2, "RLL", 0.2, True, False),
    7: (V2, "RLL", 0.0, True, False),
    8: (V2, "RLL", 0.0, True, True),
    9: (V2, "contrastive", 0.0, False, False),
    10: (V2, "contrastive", 0.0, True, False),
    11: (V2, "RLL", 0.0, False, False),
}


@pytest.mark.parametrize("column", TABLE)
def test_every_column_of_table_1(column):
    model, objective, loc_weight, remap, mining = TABLE[column]
    config = os2d.get_config(f"table1={column}")
    _has(config.model, model)
    margin = 1.0 if objective == "contrastive" else 0.6
    _has(
        config.objective,
        {
            "class_objective": objective,
            "positive_margin": margin,
            "loc_weight": loc_weight,
            "remap": remap,
        },
    )
    assert config.data.mining.enabled == mining and config.steps == 200_000


@pytest.mark.parametrize(
    "arg", ["table1=12", "table1=-2", "table1=0,recipe=v2", "recipe=v3", "stepz=3", "steps=-3"]
)
def test_wrong_arguments_are_one_line(arg):
    with pytest.raises(ConfigError) as error:
        os2d.get_config(arg)
    assert "\n" not in str(error.value)
