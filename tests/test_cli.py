"""The command `sm-jax`, run in this process with a fake network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sm_jax
from sm_jax import api, cli, detect_command, phrase_detector, platform, request_detector
from tests.systems.os2d.fake import PARTS, VARIABLES, scene

RED = (255, 40, 40)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Two images, a query and a damaged file; `api.load` gives a fake matcher."""
    for name, at in (("a.png", (16, 16)), ("b.jpg", (96, 32))):
        Image.fromarray(scene(np.random.default_rng(0), (96, 160), [at])).save(tmp_path / name)
    Image.fromarray(np.full((40, 40, 3), RED, np.uint8)).save(tmp_path / "thing.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    monkeypatch.setattr(api, "load", lambda *_, **__: _DETECTOR)
    monkeypatch.setattr(platform, "setup", lambda: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _read(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


_DETECTOR = api.Detector(PARTS, VARIABLES, query_size=48, step=64, notes=["weights: fake"])
DETECT = ["detect", "--scales", "1", "--threshold", "0.7"]


def test_detect_prints_what_it_found(place, capsys):
    assert cli.main([*DETECT, "--image", "a.png", "b.jpg", "--query", "thing.png"]) == 0
    out, err = capsys.readouterr()
    assert "a.png: " in out and "b.jpg: " in out and "thing" in out and "weights: fake" in err


def test_json_is_one_document_on_stdout_and_all_else_on_stderr(place, capsys, monkeypatch):
    real = _DETECTOR.encode
    monkeypatch.setattr(_DETECTOR, "encode", lambda *a, **k: print("chatter") or real(*a, **k))
    assert cli.main([*DETECT, "--json", "--image", "a.png", "--query", "thing.png", "--label", "red"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert "chatter" in err and document["errors"] == []
    (image,) = document["images"]
    assert (
        image["image"] == "a.png"
        and image["size"] == {"height": 96, "width": 160}
        and image["overlay"] is None
    )
    assert image["detections"] and {d["label"] for d in image["detections"]} == {"red"}
    box = image["detections"][0]["box"]
    assert abs((box[0] + box[2]) / 2 - 40) < 45


def test_damaged_images_are_named_and_the_rest_goes_on(place, capsys):
    command = [
        *DETECT,
        "--json",
        "--image",
        "a.png",
        "broken.jpg",
        "missing.png",
        "b.jpg",
        "--query",
        "thing.png",
    ]
    assert cli.main(command) == 1
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert [entry["image"] for entry in document["images"]] == ["a.png", "b.jpg"]
    assert [entry["image"] for entry in document["errors"]] == ["broken.jpg", "missing.png"]
    assert "error: broken.jpg" in err and "error: missing.png: no such picture file" in err


def test_a_folder_is_searched_and_overlays_are_written(place, capsys):
    (place / "shop").mkdir()
    for name in ("a.png", "b.jpg"):
        (place / name).rename(place / "shop" / name)
    (place / "shop" / "notes.txt").write_text("not a picture")
    assert cli.main([*DETECT, "--image", "shop", "--query", "thing.png", "--out", "found"]) == 0
    names = sorted(path.name for path in (place / "found").iterdir())
    assert names == ["a-found.png", "b-found.jpg", "detections.json"]
    overlay = _read(place / "found" / "a-found.png")
    assert overlay.shape[0] >= 96 and overlay.shape[2] == 3
    document = json.loads((place / "found" / "detections.json").read_text())
    assert len(document["images"]) == 2 and document["images"][0]["overlay"].endswith("a-found.png")
    assert "written to found" in capsys.readouterr().err


def test_inputs_are_never_overwritten(place, capsys):
    """The image is called as its overlay would be, and lies in the output folder."""
    (place / "a.png").rename(place / "x.png")
    Image.fromarray(_read(place / "x.png")).save(place / "x-found.png")
    before = (place / "x-found.png").read_bytes()
    same = [*DETECT, "--image", "x.png", "x-found.png", "--query", "thing.png", "--out", "."]
    assert cli.main(same) == 0
    assert (place / "x-found.png").read_bytes() == before
    assert (place / "x-found-2.png").is_file() and (place / "x-found-found.png").is_file()


@pytest.mark.parametrize(
    "words,line",
    [
        (["--image", "a.png", "--query", "broken.jpg"], "error: broken.jpg: "),
        (["--image", "a.png", "--query", "nowhere.png"], "error: nowhere.png: no such picture file"),
        (["--image", "a.png", "--query", "empty.png"], "error: empty.png: the file is empty"),
        (
            ["--image", "folder", "--query", "thing.png"],
            "error: --image: folder is a folder without pictures",
        ),
        (["--image", "a.png", "--query", "folder"], "error: --query: folder is a folder without pictures"),
        (
            ["--image", "a.png", "--query", "thing.png", "--label", "x", "y"],
            "error: --label: 2 names for 1 query;",
        ),
        (
            ["--image", "a.png", "--query", "thing.png", "--out", "a.png"],
            "error: --out: a.png cannot be made",
        ),
        (
            ["--image", "a.png", "--query", "thing.png", "--max", "0"],
            "error: --max: must be 1 or more, not 0",
        ),
        (
            ["--image", "nowhere.png", "--query", "thing.png", "--threshold", "nan"],
            "error: --threshold: must be a finite number, not nan",
        ),
        (["--image", "a.png", "--query", "thing.png", "--scales", "-1"], "error: scales: "),
    ],
)
def test_failures_are_one_line_and_exit_code_two(place, capsys, words, line):
    (place / "folder").mkdir()
    (place / "empty.png").touch()
    assert cli.main(["detect", *words]) == 2
    out, err = capsys.readouterr()
    errors = [text for text in err.splitlines() if text.startswith("error")]
    assert len(errors) == 1 and errors[0].startswith(line) and not out
    assert cli.main(["detect", *words, "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["error"] == errors[0].removeprefix("error: ")


def test_a_name_that_no_file_can_have_is_one_line(place, capsys):
    assert cli.main([*DETECT, "--image", "a" * 400, "--query", "thing.png"]) != 0
    errors = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    assert len(errors) == 1 and "aaa" in errors[0]


def test_results_that_cannot_be_written_are_one_line(place, capsys):
    (place / "out" / "detections.json").mkdir(parents=True)
    command = [*DETECT, "--json", "--image", "a.png", "--query", "thing.png", "--out", "out"]
    assert cli.main(command) == 1
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert "error: --out: " in err and document["images"][0]["detections"]
    (error,) = document["errors"]
    assert error["image"] is None and "detections.json cannot be written" in error["error"]


def test_overlays_that_cannot_be_written_lose_no_results(place, capsys):
    (place / "out" / "a-found.png").mkdir(parents=True)
    command = [*DETECT, "--json", "--image", "a.png", "b.jpg", "--query", "thing.png", "--out", "out"]
    assert cli.main(command) == 1
    document = json.loads(capsys.readouterr().out)
    assert [bool(entry["overlay"]) for entry in document["images"]] == [False, True]
    assert all(entry["detections"] for entry in document["images"])
    (error,) = document["errors"]
    assert error["image"] == "a.png" and "a-found.png cannot be written" in error["error"]
    assert json.loads((place / "out" / "detections.json").read_text()) == document


def test_overlays_of_earlier_runs_are_not_searched(place, capsys):
    """The images' own folder takes the overlays; a picture that is only called so is searched."""
    (place / "shop").mkdir()
    for name in ("a.png", "b.jpg"):
        (place / name).rename(place / "shop" / name)
    Image.fromarray(_read(place / "shop" / "a.png")).save(place / "shop" / "lost-found.png")
    command = [*DETECT, "--json", "--image", "shop", "--query", "thing.png", "--out", "shop"]
    documents = []
    for _ in range(2):
        assert cli.main(command) == 0
        out, err = capsys.readouterr()
        documents.append(json.loads(out))
    assert "note: shop: 3 pictures that sm-jax drew: left out" in err
    assert [Path(entry["image"]).name for entry in documents[1]["images"]] == [
        "a.png",
        "b.jpg",
        "lost-found.png",
    ]
    assert documents[0] == documents[1]
    for path in (place / "shop").glob("*"):
        if "found" not in path.stem:
            path.unlink()
    (place / "shop" / "lost-found.png").unlink()
    assert cli.main(command) == 2


def test_who_finds_nothing_is_told_the_best_score(place, capsys):
    command = ["detect", "--scales", "1", "--json", "--image", "a.png", "b.jpg", "--query", "thing.png"]
    assert cli.main([*command, "--threshold", "0.99"]) == 0
    out, err = capsys.readouterr()
    (hint,) = [line for line in err.splitlines() if line.startswith("best score")]
    entries = json.loads(out)["images"]
    best = max(entry["best_scores"]["thing"] for entry in entries)
    assert not any(entry["detections"] for entry in entries)
    assert hint.startswith(f"best score {best:.3f} is below the threshold 0.99: --threshold ")
    assert cli.main([*command, "--threshold", hint.split()[-1]]) == 0
    out, err = capsys.readouterr()
    assert "best score" not in err and any(entry["detections"] for entry in json.loads(out)["images"])
    assert (
        cli.main(["detect", *command[1:3], "--image", "a.png", "--query", "thing.png", "--threshold", "2"])
        == 0
    )
    assert "a.png: 0 found (best score 0." in capsys.readouterr().out


@pytest.mark.parametrize(
    "best,threshold,hint",
    [
        (0.53, 0.55, "0.5"),
        (0.5, 0.5, "0.45"),
        (0.549, 0.55, "0.5"),
        (0.551, 0.56, "0.55"),
        (-0.2, 0.5, "-0.25"),
    ],
)
def test_the_hint_names_a_threshold_that_finds_something(best, threshold, hint):
    entries = [{"detections": [], "best_scores": {"a": best, "b": None}}]
    line = detect_command._hint(entries, threshold)
    assert line == f"best score {best:.3f} is below the threshold {threshold:g}: --threshold {hint}"
    assert float(hint) < best
    assert not detect_command._hint([{"detections": [], "best_scores": {"a": None}}], threshold)
    assert not detect_command._hint([{"detections": [1], "best_scores": {"a": best}}], threshold)


def test_progress_is_shown_where_somebody_looks(place, capsys, monkeypatch):
    command = [*DETECT, "--image", "a.png", "--query", "thing.png"]
    assert cli.main(command) == 0
    quiet, err = capsys.readouterr()
    assert "level" not in err
    monkeypatch.setenv("FORCE_COLOR", "1")  # which rich takes for a terminal
    assert cli.main(command) == 0
    out, err = capsys.readouterr()
    assert "a.png level 1 of 1" in err and "a.png comparing with the queries" in err
    assert out == quiet  # results stay on stdout


def test_a_scale_that_suits_one_image_only_is_reported_for_the_other(place, capsys):
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(place / "dot.png")
    command = ["detect", "--image", "dot.png", "a.png", "--query", "thing.png", "--scales", "0.5", "--json"]
    assert cli.main(command) == 1
    document = json.loads(capsys.readouterr().out)
    assert len(document["images"]) == 1 and "too small" in document["errors"][0]["error"]


@pytest.mark.parametrize(
    "words", [[], ["detect"], ["find"], ["detect", "--image", "a", "--query", "b", "--scales", "x"]]
)
def test_wrong_usage_exits_two_with_the_usage(words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2 and "usage: sm-jax" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--help"], ["detect", "--help"], ["data", "--help"], ["weights", "--help"]]
)
def test_help_is_printed(words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 0 and "usage: sm-jax" in capsys.readouterr().out


def test_the_help_names_the_default_threshold():
    phrases, ssm = phrase_detector.THRESHOLD, request_detector.THRESHOLD
    both = f"(default: {api.THRESHOLD}; with phrases {phrases}; ssm: coverage above {ssm})"
    assert both in cli.DETECT_OPTIONS["--threshold"]["help"]


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out == f"sm-jax {sm_jax.__version__}\n"


def test_weights_are_listed(capsys):
    assert cli.main(["weights", "list"]) == 0
    assert "resnet50-caffe-c4" in capsys.readouterr().out


def test_data_check_and_preview(place, capsys):
    folder = place / "mine"
    for name in ("cup", "jar"):
        (folder / name).mkdir(parents=True)
        for i in range(3):
            picture = scene(np.random.default_rng(i), (60, 50), [(4, 4)])
            Image.fromarray(picture).save(folder / name / f"{i}.png")
    before = sorted(folder.rglob("*"))
    status = cli.main(["data", "check", "mine", "--json"])
    assert json.loads(capsys.readouterr().out)["exit_code"] == status
    assert cli.main(["data", "check", "nowhere"]) == 2
    assert cli.main(["data", "preview", "sheet.png", "--data", "mine", "-n", "1"]) == 0
    assert _read(place / "sheet.png").shape[1] > 100
    assert cli.main(["data", "preview", "mine/sheet.png", "--data", "mine"]) == 2
    assert "where nothing is ever written" in capsys.readouterr().err
    assert cli.main(["data", "preview", "sheet.png", "--data", "nowhere"]) == 2
    assert "nowhere: no such file or folder" in capsys.readouterr().err
    assert cli.main(["data", "preview", "sheet.txt"]) == 2
    assert sorted(folder.rglob("*")) == before


def test_the_public_names_come_on_demand():
    assert callable(sm_jax.load) and sm_jax.Detector is api.Detector and "RequestBank" in dir(sm_jax)
    with pytest.raises(AttributeError, match="no attribute 'Detektor'"):
        sm_jax.Detektor  # noqa: B018
    assert set(sm_jax.__all__) >= {"load", "Detector", "Detections", "Request", "RequestBank", "ops"}


def test_importing_the_package_and_an_op_needs_nothing_but_jax():
    allowed = "jax jaxlib numpy ml_dtypes opt_einsum scipy sm_jax"
    code = f"""
import sys, importlib.abc
class Guard(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in "flax optax orbax grain PIL absl ml_collections rich safetensors".split():
            raise ImportError(name + " is imported, beyond {allowed}")
import jax
sys.meta_path.insert(0, Guard())
import sm_jax
from sm_jax import boxes, points
from sm_jax.ops import affine, correlation, nms, resample
import jax.numpy as jnp
print(correlation.correlate(jnp.ones((2, 3, 4)), jnp.ones((1, 2, 4))).shape)
"""
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(2, 3, 1, 2)"


@pytest.mark.slow
def test_the_real_command_end_to_end(tmp_path):
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (12, 9, 3)).astype(np.uint8)
    thing = np.asarray(Image.fromarray(small).resize((90, 120), Image.Resampling.NEAREST))
    image = np.full((300, 400, 3), 120, np.uint8)
    image[100:220, 200:290] = thing
    Image.fromarray(thing).save(tmp_path / "thing.png")
    Image.fromarray(image).save(tmp_path / "image.png")
    command = [sys.executable, "-m", "sm_jax.cli", "detect", "--image", "image.png", "--query", "thing.png"]
    command += ["--json", "--out", "found", "--scales", "2", "2.3"]
    env = {**os.environ, "PYTHONPATH": os.getcwd(), "SM_JAX_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    best = json.loads(done.stdout)["images"][0]["detections"][0]
    assert np.abs(np.array(best["box"]) - [200, 100, 290, 220]).max() < 15 and best["score"] > 0.8
    assert (tmp_path / "found" / "image-found.png").is_file()
