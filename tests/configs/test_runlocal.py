"""Every config end to end, as a person would: train, go on, evaluate, export, detect."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from tests.goldens import ROOT

CONFIGS = sorted({path.stem for path in (ROOT / "configs").glob("[!_]*.py")} - {"common"})
RESULT = {
    "os2d": "val/mAP@0.50",
    "crossmodal": "val/AP@0.50",
    "scnet": "val/PCR_AuC",
    "ssm": "val/unseen/average_mAP",
    "coae": "val/mAP@0.50",
    "detector": "val/AP@0.50",
    "retrieval": "val/mAP",
}
REQUEST = {
    "os2d": ["detect", "--image", "PICTURE", "--query", "query.png"],
    "crossmodal": ["detect", "--image", "PICTURE", "--text", "the red circles", "find all squares"],
    "scnet": ["match", "--source", "PICTURE", "--target", "query.png", "--points", "20,20"],
    "ssm": ["detect", "--image", "PICTURE", "--model", "ssm", "--query", "query.png"],
}
BASELINES = {"coae", "detector", "retrieval"}
"""These take no request of their own: they are trained and evaluated, and there is no command for them."""


def test_every_config_has_its_request():
    assert set(CONFIGS) == set(RESULT) == set(REQUEST) | BASELINES


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_runs_locally(name, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "SM_JAX_CACHE": str(tmp_path / "cache")}
    environment.pop("JAX_PLATFORMS", None)

    def command(*arguments):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, text=True, capture_output=True
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr and "ERROR" not in done.stderr
        return done.stdout

    folder, out = tmp_path / "run", tmp_path / "model.safetensors"

    def train(steps):
        config = f"{ROOT / 'configs' / name}.py:runlocal{steps}"
        return command(str(ROOT / "train.py"), f"--config={config}", f"--workdir={folder}")

    train(",steps=3")
    output = train("")
    assert "continues from" in output and RESULT[name] in output
    assert list((folder / "pictures" / "val").glob("*.png"))
    command(str(ROOT / "evaluate.py"), f"--workdir={folder}")
    assert (folder / "evaluation" / "results.json").exists()
    picture = next((folder / "pictures" / "val").glob("*.png"))
    with Image.open(picture) as opened:
        opened.convert("RGB").crop((150, 20, 300, 170)).save(tmp_path / "query.png")
    command("-m", "sm_jax.cli", "weights", "export", str(folder), "--out", str(out))
    for weights in () if name in BASELINES else (folder, out):
        arguments = [str(picture) if word == "PICTURE" else word for word in REQUEST[name]]
        found = json.loads(command("-m", "sm_jax.cli", *arguments, "--weights", str(weights), "--json"))
        assert found["points"] if name == "scnet" else found["images"][0]["size"]["width"] > 0
