import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import train as script
from sm_jax.errors import run_main
from sm_jax.training import restore_config, trainer
from tests.training import toy

ROOT = Path(__file__).parents[1]
CONFIG = """
from configs.common import parse_arg
from tests.training import toy

def get_config(arg=None):
    args = parse_arg(arg, steps=4)
    return toy.make_config(steps=args.steps, eval_every=2)
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A config file of the toy; the trainer takes the toy's parts."""
    path = tmp_path / "toy.py"
    path.write_text(CONFIG)
    monkeypatch.setattr(trainer, "default_parts", toy.make_parts)
    monkeypatch.setattr(script.platform, "setup", lambda: None)  # the tests' own platform stays
    monkeypatch.chdir(tmp_path)
    return path


def _main(*words):
    return run_main(lambda: script.main(words))


def test_a_run_and_its_continuation(config, tmp_path, capsys):
    assert _main(f"--config={config}:steps=2", "--workdir=out", "--config.optim.lr=0.05") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "workdir: out" and lines[1].startswith("devices: ") and "random weights" in lines[2]
    assert lines[-1].endswith(f"evaluate.py --workdir={tmp_path / 'out'}")
    assert restore_config("out").optim.lr == 0.05
    assert _main(f"--config={config}", "--workdir=out", "--config.optim.lr=0.05") == 0
    output = capsys.readouterr().out
    assert "continues from" in output and "steps: 2 -> 4" in output and "step 4/4" in output


def test_a_signal_while_features_are_computed_is_no_failure(config, capsys, monkeypatch):
    def make(config):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(trainer, "default_parts", lambda: toy.make_parts(make_train_iterator=make))
    assert _main(f"--config={config}", "--workdir=out") == 0
    assert "stopped before the first step; with this workdir the same" in capsys.readouterr().out


def test_the_default_workdir_names_the_system(config, tmp_path):
    assert _main(f"--config={config}:steps=0") == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("toy-") and (folder / "config.json").exists()


def test_profile_is_part_of_the_config(config):
    assert _main(f"--config={config}:steps=0", "--workdir=out", "--profile") == 0
    assert restore_config("out").profile is True


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config.optim.lrr=1"], "config.optim.lrr is not known; did you mean 'lr'?"),
        (["--config.batch_size=3", "--config.mesh.data=2"], "batch_size=3 does not divide over 2 devices"),
        (["--workdr=x"], "did you mean 'workdir'?"),
    ],
)
def test_bad_words_are_one_line_and_status_2(config, capsys, words, message):
    assert _main(f"--config={config}", "--workdir=out", *words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and message in captured.err and captured.err.count("\n") == 1


def test_a_workdir_of_another_config(config, capsys):
    assert _main(f"--config={config}:steps=1", "--workdir=out") == 0
    assert (
        _main(f"--config={config}", "--workdir=out", "--config.model.width=5", "--config.init.shift=1") == 2
    )
    error = capsys.readouterr().err
    assert "model.width: 4 -> 5" in error and "init.shift: 0.0 -> 1.0" in error and error.count("\n") == 1


def test_the_real_command_on_the_real_config():
    """A mistyped key of `configs/os2d.py`, as a person would meet it."""
    run = subprocess.run(
        [sys.executable, "train.py", "--config=configs/os2d.py:runlocal", "--config.optim.lrr=1"],
        cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
    )  # fmt: skip
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "error: config.optim.lrr is not known; did you mean 'lr'?\n"


def test_nothing_is_written_into_the_data(tmp_path, capsys):
    config = ROOT / "configs" / "os2d.py"
    arguments = [f"--config={config}:runlocal,data={tmp_path}", f"--workdir={tmp_path / 'run'}"]
    assert run_main(lambda: script.main(arguments)) == 2
    assert "nothing is ever written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_script_is_short():
    assert len(Path(script.__file__).read_text().splitlines()) <= 60
