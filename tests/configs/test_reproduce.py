"""docs/reproduce.md: every command's config exists, and every cell of the paper's tables has one."""

import functools
import re

import pytest

from configs import os2d
from sm_jax.data import published
from sm_jax.training import commandline
from tests.goldens import ROOT

PAGE = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
RUNS = dict(re.findall(r"train\.py (?:--config=)(\S+) --workdir=(runs/[\w-]+)`", PAGE))
RUNS = {workdir: config for config, workdir in RUNS.items()}
CONFIGS = sorted(set(re.findall(r"--config=([^\s`]+)", PAGE)))
COMMANDS = sorted(set(re.findall(r"`python (train|evaluate)\.py ([^`]+)`", PAGE)))


@functools.cache
def _config(spec):
    return commandline.load_config(str(ROOT / spec))


@pytest.mark.parametrize("spec", CONFIGS)
def test_every_config_of_the_page_parses(spec):
    config = _config(spec)
    assert config.system and config.eval.splits


@pytest.mark.parametrize(("script", "words"), COMMANDS)
def test_every_command_of_the_page_parses(script, words):
    names = {"train": {"workdir": ""}, "evaluate": {"workdir": "", "data": "", "split": ""}}[script]
    line = commandline.read(words.split(), options=names, help="")
    config = _config(line.config) if line.config else None
    if config:
        steps = {"os2d": (200_000,), "detector": (720_000,), "retrieval": (40_000,)}
        steps = steps.get(config.system, (298_000, 294_375, 217_150))  # CoAE counts in epochs
        assert config.steps in (steps if script == "train" else (0,)) and not line.overrides
    elif line.overrides:
        line.apply(_config(RUNS[line.options["workdir"]]).copy_and_resolve_references())
    if split := line.options.get("split"):
        data = config.data.source if config else line.options["data"]
        assert split in published.find(data.removeprefix("built/")).splits


def test_every_cell_has_its_command():
    for run in range(12):
        assert f"train.py --config=configs/os2d.py:table1={run} " in PAGE
    for row in os2d.BACKBONES:
        for recipe in ("v1", "v2-init", "v2"):
            assert re.search(rf"py --config=configs/os2d.py:table2={row},recipe={recipe}\b", PAGE)
    for model in os2d.MODELS:
        assert re.search(rf"^\| {model} \| paste-f \| [\d.]+ \| `python", PAGE, re.MULTILINE)
    baselines = ("detector + retrieval, retrieval not trained", "detector + retrieval, trained")
    for model in (*baselines, "CoAE (Hsieh et al.)"):
        for data in ("val-old-cl", "val-new-cl", "dairy", "paste-v", "paste-f"):
            assert f"| {model} | {data} | " in PAGE
    assert PAGE.count("| R50 | S1 | ") == PAGE.count("| R101 | S2 | ") == 6
    tables = PAGE[PAGE.index("## 3. ") : PAGE.index("## What differs")]
    for row in re.findall(r"^\|.*\| [\d.]+ \| (.*) \|$", tables, re.MULTILINE):
        assert re.fullmatch(r"`python (train|evaluate)\.py [^`]+`", row), row
    for value in ("90.65", "88.71", "86.07", "85.58"):
        assert re.search(rf"\| {value} \| `python evaluate.py", PAGE)


def test_runs_that_are_evaluated_are_trained_on_the_page():
    trained = set(re.findall(r"train\.py \S+ --workdir=(runs/[\w-]+)", PAGE))
    evaluated = set(re.findall(r"evaluate\.py --workdir=(runs/[\w-]+)", PAGE)) - {"runs/table1-N"}
    evaluated |= set(re.findall(r"detector=(runs/[\w-]+)", PAGE))
    assert evaluated == {run for run in trained if not run.startswith(("runs/table1-", "runs/table2-"))}


@pytest.mark.parametrize("name", published.DATASETS)
def test_every_data_set_is_explained(name):
    dataset = published.find(name)
    assert f"| `{name}` |" in PAGE and f"| {dataset.nominal} / {dataset.eval_scale} |" in PAGE
