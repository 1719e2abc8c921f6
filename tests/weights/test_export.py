"""A run as one file that says which model it is for, and back."""

import json

import jax
import numpy as np
import pytest

from configs import crossmodal
from sm_jax import cli, pretrained, systems, weights
from sm_jax.errors import ConfigError, WeightsError, run_main
from sm_jax.training import restore_variables, train
from sm_jax.weights import export, io
from tests.training import toy


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of the toy system, evaluated."""
    folder = tmp_path_factory.mktemp("run")
    train(toy.make_config(steps=2, eval_every=2, optim__ema=0.0), folder, parts=toy.make_parts())
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(config, variables, file) of a small cross-modal model, as `export` writes it."""
    config = crossmodal.get_config("runlocal")
    system = systems.make(config)
    shapes = jax.eval_shape(lambda: system.init(jax.random.key(0), None))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)
    path = tmp_path_factory.mktemp("exported") / "model.safetensors"
    io.save_variables(path, variables, {export.CONFIG: config.to_json_best_effort()}, dtype="f16")
    return config, variables, path


def test_a_run_becomes_a_file(run, tmp_path):
    out = tmp_path / "model.safetensors"
    done = export.export(run, out)
    variables, meta = restore_variables(run)
    flat, stored = io.flatten(variables), io.flatten(io.load_variables(out))
    assert (done.step, done.tensors) == (meta["step"], len(flat))
    assert flat.keys() == stored.keys() and done.numbers == sum(value.size for value in flat.values())
    for name, value in flat.items():
        np.testing.assert_array_equal(stored[name], np.asarray(value, "f2" if value.ndim > 1 else "f4"))
    metadata = io.read_metadata(out)
    assert json.loads(metadata["sm_jax.metrics"]) == {"val/score": done.metrics["val/score"]}
    assert json.loads(metadata["sm_jax.versions"])["jax"] == jax.__version__
    config = export.read_config(out)
    assert config.system == "toy" and config.optim.milestones == (1000,)
    assert "checkpoint" not in config and "mesh" not in config  # of the machine, not of the model


def test_another_step_and_precision(run, tmp_path):
    assert export.export(run, tmp_path / "a.safetensors", step=2, dtype="f32").step == 2
    wanted = io.flatten(restore_variables(run, 2)[0])
    for name, value in io.flatten(io.load_variables(tmp_path / "a.safetensors")).items():
        np.testing.assert_array_equal(value, wanted[name])
    with pytest.raises(WeightsError, match="no checkpoint 7"):
        export.export(run, tmp_path / "b.safetensors", step=7)
    assert not (tmp_path / "b.safetensors").exists()


def test_what_is_no_run(tmp_path):
    with pytest.raises(WeightsError, match="no such folder"):
        export.export(tmp_path / "nothing", tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match="holds no config.json"):
        export.export(tmp_path, tmp_path / "a.safetensors")


def test_the_command(run, tmp_path, capsys):
    out = tmp_path / "model.safetensors"
    assert run_main(lambda: cli.main(["weights", "export", str(run), "--out", str(out)])) == 0
    text = capsys.readouterr().out
    assert f"{run}: step " in text and "val/score" in text and f"wrote {out}" in text
    assert run_main(lambda: cli.main(["weights", "export", str(run), "--out", str(out)])) == 2
    assert "exists; give another name" in capsys.readouterr().err
    arguments = ["weights", "export", str(run), "--out", str(out), "--force", "--step", "last"]
    assert run_main(lambda: cli.main(arguments)) == 0


def test_an_exported_model_needs_nothing_but_its_file(exported):
    config, variables, path = exported
    found = pretrained.trained(path, system="crossmodal")
    assert found.config.system == "crossmodal"
    assert found.config.model.to_dict() == config.model.to_dict()  # tuples and vocabulary included
    assert found.notes == [f"model: {len(io.flatten(variables))} tensors from {path}"]
    for name, leaf in io.flatten(found.variables).items():
        np.testing.assert_allclose(leaf, io.flatten(variables)[name], rtol=1e-3, atol=1e-6)


def test_fields_can_be_overridden(exported):
    found = pretrained.trained(exported[2], overrides={"dtype": "bfloat16"})
    assert found.config.model.dtype == "bfloat16"
    with pytest.raises(ConfigError, match="did you mean 'dtype'"):
        pretrained.trained(exported[2], overrides={"dtyp": "bfloat16"})


def test_a_run_can_start_from_it(exported):
    config, variables, path = exported
    start, lines = weights.initialize(variables, {"model": str(path), "backbone": "mobilenetv2-tv"})
    assert lines[0].startswith(f"model: {len(io.flatten(variables))} tensors") and "not used" in lines[1]
    _, lines = weights.initialize(variables, {"backbone": "mobilenetv2-tv", "text": str(path)})
    assert [line.split(":")[0] for line in lines] == ["backbone", "text", "align, proposal, rpn"]
    assert "random start" in lines[2]


def test_a_random_backbone_is_told_with_the_name_of_a_real_one(exported):
    _, lines = weights.initialize(exported[1], {"backbone": ""})
    assert "RANDOM start" in lines[0] and "config.init.backbone=mobilenetv2-tv" in lines[0]


def test_a_part_that_the_model_does_not_have(exported):
    with pytest.raises(ConfigError, match="init.transform='x.pth': this model has no such part"):
        weights.initialize(exported[1], {"transform": "x.pth"})


def test_verify_and_show(exported, capsys, tmp_path):
    config, variables, path = exported
    assert run_main(lambda: cli.main(["weights", "verify", str(path)])) == 0
    assert f"crossmodal, {len(io.flatten(variables))} tensors" in capsys.readouterr().out
    assert run_main(lambda: cli.main(["weights", "show", str(path)])) == 0
    assert "crossmodal" in capsys.readouterr().out
    flat = io.flatten(variables)
    flat["params/rpn/extra"] = flat.pop("params/rpn/conv/kernel")
    other = tmp_path / "other.safetensors"
    metadata = {export.CONFIG: config.to_json_best_effort()}
    io.save_variables(other, io.unflatten(flat), metadata)
    assert run_main(lambda: cli.main(["weights", "verify", str(other)])) == 2
    error = capsys.readouterr().err
    assert "- params/rpn/conv/kernel" in error and "+ params/rpn/extra" in error


def test_files_that_do_not_say_what_they_are_for(tmp_path, exported):
    with pytest.raises(WeightsError, match="mobilenetv2-tv: does not say which model"):
        pretrained.trained("mobilenetv2-tv")
    with pytest.raises(WeightsError, match="is for the system crossmodal, not for os2d"):
        pretrained.trained(exported[2], system="os2d")
    damaged = tmp_path / "damaged.safetensors"
    io.save_variables(damaged, exported[1], {export.CONFIG: "{"})
    with pytest.raises(WeightsError, match="its config .* is damaged"):
        pretrained.trained(damaged)
    with pytest.raises(WeightsError, match="give a name"):
        pretrained.trained("")


def test_begin_draws_only_what_is_not_loaded(exported):
    config = crossmodal.get_config("runlocal")
    variables, lines = pretrained.begin(config)
    assert lines[0].startswith("backbone: 260 tensors from mobilenetv2-tv") and len(lines) == 2
    kernel = np.asarray(variables["params"]["rpn"]["conv"]["kernel"])
    assert 0 < np.std(kernel) < 0.02
    config.init.model = str(exported[2])
    variables, _ = pretrained.begin(config)
    np.testing.assert_array_equal(
        variables["params"]["rpn"]["conv"]["bias"], exported[1]["params"]["rpn"]["conv"]["bias"]
    )
