"""Two real processes with two CPU devices each, joined by `jax.distributed` (gloo)."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sm_jax.training import train
from tests.training import checks, toy

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
CHANGES = {"mesh__data": 2, "mesh__fsdp": 2, "eval_every": 4, "model__conv": True}


def _start(workdir, **changes):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    options = json.dumps(CHANGES | {"distributed": True, "devices": 2} | changes)
    children = []
    for index in range(2):
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(index),
        }
        command = [sys.executable, "-m", "tests.training.toy", str(workdir), options]
        children.append(
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return children


def _finish(children):
    outputs = []
    try:
        outputs = [child.communicate(timeout=180)[0] for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0, 0], "\n".join(outputs)
    return outputs


def test_two_processes_are_one(tmp_path):
    first, second = _finish(_start(tmp_path / "two"))
    assert "in 2 processes" in first and "step 8/8" in first and "step 8/8" not in second
    alone = train(toy.make_config(**CHANGES), tmp_path / "one", parts=toy.make_parts())
    resumed = train(
        toy.make_config(**CHANGES), tmp_path / "two", parts=toy.make_parts()
    )  # its last checkpoint
    checks.assert_close(resumed, alone, rtol=2e-5, atol=2e-6)


def test_a_signal_to_one_process_stops_both_at_the_same_step(tmp_path):
    children = _start(tmp_path, steps=1000, data__delay=0.02)
    for line in children[0].stdout:
        if "step 3/1000" in line:
            break
    children[1].send_signal(signal.SIGTERM)
    first, _ = _finish(children)
    assert "stopped by a signal to another process" in first
