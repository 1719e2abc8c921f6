import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sm_jax import platform

ROOT = Path(__file__).parents[1]


@pytest.fixture
def machine(monkeypatch):
    """A machine by description: CUDA wheels, devices, environment."""
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(platform, "_configure", lambda name, value: None)

    def describe(*, packages=(), nodes=(), **environment):
        monkeypatch.setattr(platform, "_installed", packages.__contains__)
        monkeypatch.setattr(platform.os.path, "exists", nodes.__contains__)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    yield describe
    os.environ.pop("JAX_PLATFORMS", None)


CUDA = ("jax_cuda12_plugin",)


@pytest.mark.parametrize(
    ("description", "platforms"),
    [
        ({}, ""),
        ({"packages": CUDA}, "cpu"),
        ({"packages": CUDA, "nodes": ("/dev/nvidia0",)}, ""),
        ({"packages": CUDA, "nodes": ("/dev/dxg",)}, ""),
        ({"packages": CUDA, "nodes": ("/dev/nvidia0",), "CUDA_VISIBLE_DEVICES": ""}, "cpu"),
        ({"packages": CUDA, "nodes": ("/dev/nvidia0",), "CUDA_VISIBLE_DEVICES": "-1"}, "cpu"),
        ({"packages": CUDA, "nodes": ("/dev/nvidia0",), "CUDA_VISIBLE_DEVICES": "1"}, ""),
        ({"packages": (*CUDA, "libtpu")}, ""),
        ({"packages": CUDA, "JAX_PLATFORMS": "cuda"}, "cuda"),
    ],
)
def test_the_cpu_is_chosen_only_where_cuda_cannot_work(machine, description, platforms):
    machine(**description)
    assert platform.choose_platform() == platforms
    assert os.environ.get("JAX_PLATFORMS", "") == platforms


@pytest.mark.parametrize(
    ("description", "quiet"),
    [
        ({}, True),
        ({"nodes": ("/dev/nvidia0",)}, True),  # a GPU, but wheels for the CPU
        ({"packages": CUDA}, True),
        ({"packages": CUDA, "nodes": ("/dev/nvidia0",)}, False),
        ({"packages": CUDA, "nodes": ("/dev/nvidia0",), "JAX_PLATFORMS": "cpu"}, True),
    ],
)
def test_reports_of_xla_are_hidden_where_programs_run_on_the_cpu(machine, monkeypatch, description, quiet):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "")
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    machine(**description)
    absl = logging.getLogger("absl")
    level = absl.level
    platform.setup(compile_cache=False)
    absl.setLevel(level)
    assert os.environ.pop("TF_CPP_MIN_LOG_LEVEL", None) == ("3" if quiet else None)


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SM_JAX_CACHE", str(tmp_path))
    assert platform.cache_folder() == tmp_path
    monkeypatch.delenv("SM_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux":
        assert platform.cache_folder() == tmp_path / "xdg" / "sm_jax"


SCRIPT = """
from sm_jax import errors, platform

def main():
    platform.setup()
    print(platform.describe_devices())
    import jax
    print(jax.jit(lambda x: x + 1)(1))

raise SystemExit(errors.run_main(main))
"""


def _run(**environment):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "TF_"))}
    command = [sys.executable, "-c", SCRIPT]
    return subprocess.run(command, cwd=ROOT, env=clean | environment, capture_output=True, text=True)


def test_a_command_on_this_machine_is_silent_and_caches_its_programs(tmp_path):
    for _ in range(2):  # the second time from the cache, where XLA would report a processor that differs
        run = _run(SM_JAX_CACHE=str(tmp_path), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
        assert (run.returncode, run.stdout.splitlines()[-1], run.stderr) == (0, "2", "")
    assert list((tmp_path / "compiled").rglob("*-cache"))


def test_a_platform_without_a_device_is_one_clear_line(tmp_path):
    run = _run(SM_JAX_CACHE=str(tmp_path), JAX_PLATFORMS="rocm")
    assert run.returncode == 2 and "JAX_PLATFORMS='rocm'" in run.stderr
    assert run.stderr.startswith("error: jax finds no device") and run.stderr.count("\n") == 1
