"""The scnet config: the published constants, its arguments, and what follows from the data."""

import json
from types import SimpleNamespace

import pytest

from configs import scnet
from sm_jax import data, evaluators, systems
from sm_jax.data import preview_command
from sm_jax.errors import ConfigError, DataError
from sm_jax.systems.scnet.model import ModelConfig
from sm_jax.systems.scnet.objective import ObjectiveConfig
from sm_jax.training import optim
from tests.data.pair_maker import willow


@pytest.fixture(autouse=True)
def few_figures(monkeypatch, tmp_path_factory):
    """Drawn once; the default number would take seconds."""
    monkeypatch.setenv("SM_JAX_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    published = scnet._published

    def small():
        config = published()
        config.data.figures.update(num_train=6, num_val=2, num_test=2)
        return config

    monkeypatch.setattr(scnet, "_published", small)


@pytest.mark.parametrize(
    "arg",
    [
        None, "runlocal", "full", "variant=A", "variant=AG+", "variant=AG+,schedule=alternate", "flips",
        "variant=AG+,schedule=joint", "backbone=vgg16,weights=vgg16-tv-conv43", "backbone=googlenet-4d",
        "method=lom,features=hog", "epochs=3,proposals=40,roi=4,embed=16", "steps=7",
    ],
)  # fmt: skip
def test_every_argument_gives_a_system(arg):
    config = scnet.get_config(arg)
    assert systems.make(config).trainable("fc_geometry/kernel") == (config.model.variant == "AG+")
    assert json.loads(config.to_json_best_effort())["system"] == "scnet"
    optim.make_optimizer(config.optim), optim.make_schedule(config.optim, config.steps)
    assert config.checkpoint.best_metric in evaluators.metric_names(config)


def test_the_published_constants():
    config = scnet.get_config("full,variant=AG+")
    assert ModelConfig.create(config.model) == ModelConfig()
    assert ObjectiveConfig.create(config.objective) == ObjectiveConfig()
    section = config.optim
    assert (section.lr, section.momentum, section.weight_decay, section.schedule) == (
        1e-4,
        0.9,
        1e-2,
        "constant",
    )
    assert scnet.get_config("full,variant=A").optim.weight_decay == 5e-3
    assert (config.steps, config.batch_size, config.eval_every) == (
        200 * 12,
        1,
        12,
    )  # 6 pairs and their mirrors
    assert config.data.proposals == 500 and config.data.flips


def test_embeddings_take_turns_by_epochs():
    config = scnet.get_config("variant=AG+,schedule=alternate,flips")
    assert tuple(config.optim.alternate) == ("fc", "fc_geometry") and config.optim.alternate_every == 12
    trainable = systems.make(config).trainable
    assert trainable("fc/kernel") and trainable("fc_geometry/kernel")
    frozen = systems.make(scnet.get_config("variant=AG+,start=RUN")).trainable
    assert frozen("fc_geometry/kernel") and not frozen("fc/kernel")


@pytest.mark.parametrize("arg, other", [("freeze_a", "alternate"), ("alternate", "joint")])
def test_a_schedule_that_the_optimizer_does_not_follow_is_refused(arg, other):
    config = scnet.get_config(f"variant=AG+,schedule={arg}")
    config.model.agplus_schedule = other
    with pytest.raises(ConfigError, match=f"configs/scnet.py:schedule={other} sets both"):
        systems.make(config)


def test_pf_willow_is_trained_on_by_leaving_out_a_category(tmp_path):
    root = willow(tmp_path / "willow", classes=("car(S)", "car(M)", "duck(S)"))
    plain = scnet.get_config(f"data={root}")
    assert not plain.eval_every and len(data.make_pairs(plain.data, "test")) == 18
    with pytest.raises(DataError, match="no split 'train'"):
        data.make_pairs(plain.data, "train")
    config = scnet.get_config(f"data={root},leave_out=car,epochs=2")
    assert config.steps == 2 * 6 and not config.eval_every and tuple(config.eval.splits) == ("test",)
    found = {
        split: {pair.class_name for pair in data.make_pairs(config.data, split)}
        for split in ("train", "test")
    }
    assert found == {"train": {"duck(S)"}, "test": {"car(S)", "car(M)"}}
    assert evaluators.make(config)["test"].notes == []
    with pytest.raises(DataError, match="did you mean 'car'"):
        scnet.get_config(f"data={root},leave_out=cra").data and data.make_pairs(
            scnet.get_config(f"data={root},leave_out=cra").data, "train"
        )


@pytest.mark.parametrize(
    "arg, message",
    [
        ("variant=B", "must be one of A, AG, AG+"),
        ("backbone=resnet5", "backbone=resnet5: unknown; did you mean 'resnet50'"),
        ("epochs=-1", "at least 1"),
        ("data=", "give the path"),
        ("data=/no/such", "no such file"),
    ],
)
def test_what_cannot_be_is_one_line(arg, message):
    with pytest.raises((ConfigError, DataError), match=message.replace("+", r"\+")):
        config = scnet.get_config(arg)
        data.make_pairs(config.data, "train")


def test_pairs_have_no_sheet(tmp_path):
    asked = SimpleNamespace(config=f"{scnet.__file__}:runlocal", folder=str(tmp_path), split="train", n=1)
    with pytest.raises(ConfigError, match=r"evaluate.py draws"):
        preview_command._of_config(asked)
