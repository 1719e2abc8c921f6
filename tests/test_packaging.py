"""The three lists of dependencies say the same."""

import re
import tomllib

from packaging.requirements import Requirement

from tests.goldens import ROOT

UNPINNED_EXTRAS = {"torch", "opencv-contrib-python-headless"}
TESTS_AND_LINT = {"pytest", "pytest-xdist", "hypothesis", "ruff"}
RUNTIME_ONLY_IN_REQUIREMENTS = TESTS_AND_LINT | {"tensorflow-datasets", "importlib-resources"}


def _read(name: str) -> list[Requirement]:
    lines = (re.sub(r"\s*#.*", "", line) for line in (ROOT / name).read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def _name(requirement: Requirement) -> str:
    return requirement.name.lower().replace("_", "-")


def test_cpu_requirements_are_the_full_ones_without_cuda():
    full = [r for r in _read("requirements.txt") if _name(r) != "jax"]
    cpu = [r for r in _read("requirements-cpu.txt") if _name(r) != "jax"]
    assert [str(r) for r in full] == [str(r) for r in cpu]
    assert not any(r.extras for r in _read("requirements-cpu.txt"))


def test_exactly_one_jax_applies_on_every_platform():
    for name in ("requirements.txt", "requirements-cpu.txt"):
        for python in ("3.11", "3.12", "3.13"):
            for system, machine in (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")):
                where = {"python_version": python, "sys_platform": system, "platform_machine": machine}
                chosen = [r for r in _read(name) if _name(r) == "jax" and r.marker.evaluate(where)]
                assert len(chosen) == 1
                assert str(chosen[0].specifier) == ("==0.10.1" if python == "3.11" else "==0.11.2")
                cuda = name == "requirements.txt" and (system, machine) == ("linux", "x86_64")
                assert chosen[0].extras == ({"cuda12"} if cuda else set())


def test_everything_is_pinned_and_the_package_ranges_admit_the_pins():
    pins = {}
    for requirement in _read("requirements.txt"):
        assert re.fullmatch(r"==[\w.]+", str(requirement.specifier)), f"not pinned: {requirement}"
        pins.setdefault(_name(requirement), []).append(str(requirement.specifier)[2:])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra in project["optional-dependencies"].values():
        for requirement in map(Requirement, extra):
            assert _name(requirement) in UNPINNED_EXTRAS or _name(requirement) in pins
    ranges = {_name(r): r for r in map(Requirement, project["dependencies"])}
    for name, versions in pins.items():
        if name in ranges:
            assert all(ranges[name].specifier.contains(version) for version in versions)
    assert set(pins) - set(ranges) - RUNTIME_ONLY_IN_REQUIREMENTS == {"flatbuffers"}


def test_nothing_is_listed_twice():
    applies = {"python_version": "3.11", "sys_platform": "linux", "platform_machine": "x86_64"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [
        _read("requirements.txt"),
        _read("requirements-cpu.txt"),
        list(map(Requirement, project["dependencies"])),
    ]
    for requirements in lists:
        names = [_name(r) for r in requirements if r.marker is None or r.marker.evaluate(applies)]
        assert sorted(names) == sorted(set(names))
