"""The os2d config: models and experiments of the paper as arguments."""

import json
import re

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


@pytest.mark.parametrize("column", TABLE)
def test_table_1_is_about_grozi_and_starts_v2_aligned(column):
    config = os2d.get_config(f"table1={column}")
    assert (config.data.source, config.eval.splits, config.model.depth) == (
        "built/grozi",
        ("val-new-cl",),
        50,
    )
    assert config.checkpoint.best_metric == "val-new-cl/mAP@0.50" and config.eval.views == "data"
    assert config.init.backbone == "resnet50-caffe-c4"
    assert config.init.transform == ("weakalign" if column >= 6 else "")
    own = os2d.get_config(f"table1={column},data=PATH,backbone=a,transform=b")
    assert (own.data.source, own.eval.splits, own.init.backbone) == ("PATH", ("val",), "a")
    assert own.init.transform == ("b" if column >= 6 else "")


@pytest.mark.parametrize("row", os2d.BACKBONES)
def test_every_row_of_table_2(row):
    depth, weights = os2d.BACKBONES[row]
    for recipe, transform in (("v1", ""), ("v2-init", "weakalign"), ("v2", "weakalign")):
        config = os2d.get_config(f"table2={row},recipe={recipe}")
        assert config.model.depth == depth == int(row.split("-")[0][1:])
        assert config.model.norm == ("group_norm" if row.endswith("gn") else "frozen_bn")
        assert config.init.backbone == ("" if weights == "random" else weights)
        assert config.init.transform == transform
        _has(config.model, V1 if recipe == "v1" else V2)
        assert config.steps == (0 if recipe == "v2-init" else 200_000)
        assert not config.data.mining.enabled and config.data.source == "built/grozi"


@pytest.mark.parametrize(
    ("model", "depth", "backbone", "mining"),
    [
        ("v1-train", 101, "resnet101-gl18", False),
        ("v2-init", 50, "resnet50-caffe-c4", False),
        ("v2-train", 50, "resnet50-caffe-c4", True),
        ("sliding-square", 101, "resnet101-gl18", False),
        ("sliding-ar", 101, "resnet101-gl18", False),
    ],
)
def test_every_model_of_table_3(model, depth, backbone, mining):
    config = os2d.get_config(f"table3={model}")
    assert (config.model.depth, config.init.backbone, config.data.mining.enabled) == (depth, backbone, mining)
    _has(config.model, V2 if model.startswith("v2") else V1)
    assert config.model.window == {"sliding-square": "square", "sliding-ar": "target"}.get(model, "")
    assert config.steps == (200_000 if model.endswith("train") else 0)
    if not model.endswith("train"):
        elsewhere = os2d.get_config(f"table3={model},dataset=paste-f,data=PATH")
        assert elsewhere.data.source == "PATH" and elsewhere.eval.splits == ("test",)


@pytest.mark.parametrize("dataset", ["instre-s1", "instre-s2"])
@pytest.mark.parametrize("depth", [50, 101])
@pytest.mark.parametrize("model", os2d.MODELS)
def test_every_model_of_table_4(model, depth, dataset):
    config = os2d.get_config(f"table4={model},depth={depth},dataset={dataset}")
    assert config.model.depth == depth and not config.data.mining.enabled
    assert config.init.backbone == {50: "resnet50-caffe-c4", 101: "resnet101-caffe"}[depth]
    assert config.data.source == f"built/{dataset}" and config.eval.splits == ("val",)
    assert config.data.mine_extra_class_images and config.eval_every == config.checkpoint.every == 5000


def test_released_models_are_evaluated_not_trained():
    config = os2d.get_config("table3=v2-train,weights=os2d_v2-train.pth,single_scale")
    assert config.init.to_dict() == {"model": "os2d_v2-train.pth", "backbone": "", "transform": ""}
    assert config.steps == 0 and config.eval.scales == (1.0,) and config.model.depth == 50
    config = os2d.get_config("table3=v1-train,weights=os2d_v1-train.pth,dataset=dairy")
    assert config.model.depth == 101 and config.eval.scales == os2d.PYRAMID


def test_episodes():
    config = os2d.get_config("dataset=repmet,recipe=v2-init,transform=weakalign")
    assert (config.eval.protocol, config.eval.views, config.steps) == ("episodes", "data", 0)
    assert config.data.source == "built/repmet" and config.checkpoint.best_metric == "test/AP_joint@0.50"
    assert os2d.get_config("dataset=repmet,runlocal").steps == 0


@pytest.mark.parametrize(
    ("arg", "line"),
    [
        ("table1=12", "the columns are 0 to 11"),
        ("table1=-2", "the columns are 0 to 11"),
        ("table1=0,recipe=v2", "table1=0 sets the recipe; leave recipe=v2 out"),
        ("table1=0,depth=101", "table1=0 sets the depth"),
        ("table1=0,dataset=dairy", "is about grozi"),
        ("table1=0,table2=r50-coco", "table1=0 and table2=r50-coco: give one table"),
        ("table2=r50", "the rows are r50-scratch, "),
        ("table2=r50-coco,depth=101", "sets the depth"),
        ("table2=r50-coco,dataset=instre-s1", "is about grozi"),
        ("table3=v3", "the models are v1-train"),
        ("table3=v2-train,recipe=v1", "sets the recipe"),
        ("table3=v2-train,dataset=instre-s1", "is about grozi, dairy, paste-v and paste-f"),
        ("table3=v2-train,dataset=dairy", "--workdir=RUN --data=built/dairy --split=test, or give weights="),
        ("table3=sliding-ar,weights=a.pth", "is not trained"),
        ("table4=v2-train,depth=50", "add dataset=instre-s1 or dataset=instre-s2"),
        ("table4=v2-train,dataset=instre-s1", "add depth=50 or depth=101"),
        ("weights=a.pth,backbone=b", "is a whole model"),
        ("weights=a.pth,steps=3", "is a whole model"),
        ("dataset=dary", "there are grozi, "),
        ("dataset=dairy,steps=3", "has no training pictures"),
        ("recipe=v3", "there are v1, v2"),
        ("stepz=3", "steps"),
        ("steps=-3", "must not be negative"),
    ],
)
def test_wrong_arguments_are_one_line(arg, line):
    with pytest.raises(ConfigError, match=re.escape(line)) as error:
        os2d.get_config(arg)
    assert "\n" not in str(error.value)
