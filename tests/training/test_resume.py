"""Resume after a real `kill -9` and after signals, in real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sm_jax.training import metrics, train
from tests.training import checks, toy

ROOT = Path(__file__).parents[2]
CHANGES = {"eval_every": 4, "optim__accumulate": 2, "checkpoint__every": 4, "checkpoint__keep": 3}


class Child:
    """`toy.py` in a process of its own; `wait_for(word)` returns when a line of its output holds the word."""

    def __init__(self, workdir, **changes):
        command = [sys.executable, "-m", "tests.training.toy", str(workdir), json.dumps(changes)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True
        )
        self.output = ""

    def wait_for(self, word):
        for line in self.process.stdout:
            self.output += line
            if word in line:
                return
        raise AssertionError(self.output + self.process.stderr.read())

    def finish(self):
        rest, errors = self.process.communicate(timeout=60)
        return self.process.returncode, self.output + rest, errors


@pytest.fixture
def start():
    children = []

    def begin(workdir, **changes):
        children.append(Child(workdir, **changes))
        return children[-1]

    yield begin
    for child in children:
        if child.process.poll() is None:
            child.process.kill()
        child.process.communicate()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The run that nothing interrupts: 2N = 8 steps."""
    return train(toy.make_config(**CHANGES), tmp_path_factory.mktemp("straight"), parts=toy.make_parts())


def _wait_until(condition):
    while not condition():
        time.sleep(0.02)


def _files_of(folder):
    return {path.name for path in (folder / "checkpoints").iterdir()}


def test_killed_and_resumed_is_bitwise_the_straight_run(tmp_path, start, straight):
    """N steps, `kill -9` in the middle of a later step, resume, N steps."""
    child = start(tmp_path, data__stall=11, **CHANGES)  # two batches a step: the sixth step never ends
    child.wait_for("step 4/8  val/score")
    _wait_until(lambda: "4" in _files_of(tmp_path))
    os.kill(child.process.pid, signal.SIGKILL)
    assert child.finish()[0] == -signal.SIGKILL
    half_written = tmp_path / "checkpoints" / "6.orbax-checkpoint-tmp"  # what a kill during a save leaves
    half_written.mkdir()
    (half_written / "model").write_text("half")

    config = toy.make_config(**CHANGES)
    resumed = train(config, tmp_path, parts=toy.make_parts())
    checks.assert_same_bits(resumed, straight)
    assert not half_written.exists()
    assert {line["step"] for line in metrics.read(tmp_path)} == set(range(9))


def test_sigterm_saves_at_the_step_and_leaves_with_success(tmp_path, start, straight):
    child = start(tmp_path, data__delay=0.1, devices=1, **CHANGES)
    child.wait_for("step 2/8")
    child.process.send_signal(signal.SIGTERM)
    status, output, errors = child.finish()
    assert status == 0, errors
    assert "stopped by SIGTERM at step" in output and "Traceback" not in errors
    saved = max(int(name) for name in _files_of(tmp_path) if name.isdigit())
    assert 2 <= saved < 8
    resumed = train(toy.make_config(**CHANGES), tmp_path, parts=toy.make_parts())
    checks.assert_same_bits(resumed, straight)
