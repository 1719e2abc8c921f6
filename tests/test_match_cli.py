"""`sm-jax match`, run in this process on HOG."""

import json

import numpy as np
import pytest
from PIL import Image

from sm_jax import api, cli, correspondence, match_command, platform
from sm_jax.errors import ConfigError
from sm_jax.systems.scnet import model, predict
from tests.test_correspondence import scene

MATCH = ["match", "--source", "a.png", "--target", "b.png"]


@pytest.fixture(scope="module")
def matcher():
    predictor = predict.Predictor(model.ModelConfig(), features="hog", buckets=(64,))
    return correspondence.Matcher(predictor, proposals=60, proposal_method="grid", notes=["features: fake"])


@pytest.fixture
def place(tmp_path, monkeypatch, matcher):
    """Two pictures; `api.load` gives a small matcher and remembers what it was asked."""
    asked = {}

    def load(name, **options):
        asked.update(options | {"name": name})
        return matcher

    monkeypatch.setattr(api, "load", load)
    monkeypatch.setattr(platform, "setup", lambda: None)
    monkeypatch.setenv("SM_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Image.fromarray(scene()).save("a.png")
    Image.fromarray(scene((80, 100), (35, 25))).save("b.png")
    return asked


def test_prints_regions_and_points(place, capsys):
    assert cli.main([*MATCH, "--points", "40,30", "500,1"]) == 0
    out, err = capsys.readouterr()
    assert "regions matched by lom" in out and "point 40,30 -> " in out and "confidence" in out
    assert "point 500,1 -> not found" in out
    assert "features: fake" in err and "note: the point 500,1 lies outside the source, which is 120x90" in err
    assert place == {"name": "scnet", "weights": None}


def test_a_negative_point_is_a_point_outside_and_not_an_option(place, capsys):
    assert cli.main([*MATCH, "--points", "-3,5", "40,30", "-.5,-2"]) == 0
    out, err = capsys.readouterr()
    assert "point -3,5 -> not found" in out and "point 40,30 -> " in out
    assert "the point -3,5 lies outside the source" in err and "the point -0.5,-2 lies outside" in err


def test_options_reach_load(place, capsys):
    options = ["--features", "hog", "--method", "phm", "--proposals", "50", "--weights", "w.safetensors"]
    assert cli.main([*MATCH, *options]) == 0
    assert place == {
        "name": "scnet", "features": "hog", "method": "phm", "proposals": 50, "weights": "w.safetensors"
    }  # fmt: skip


def test_out_has_the_four_files(place, capsys, tmp_path):
    assert cli.main([*MATCH, "--points", "40,30", "--out", "deep/found", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    folder = tmp_path / "deep" / "found"
    assert json.loads((folder / "matches.json").read_text()) == document
    assert document["files"] == {
        key: f"deep/found/{name}"
        for key, name in (("flow", "flow.npz"), ("warped", "warped.png"), ("matches", "matches.png"))
    }
    with np.load(folder / "flow.npz", allow_pickle=False) as flow:
        assert flow["flow"].shape == (90, 120, 2) and flow["valid"].dtype == bool
        assert flow["confidence"].shape == (90, 120)
        assert document["covered"] == pytest.approx(flow["valid"].mean(), abs=1e-4)
    with Image.open(folder / "warped.png") as warped, Image.open(folder / "matches.png") as page:
        assert warped.size == (120, 90) and page.height == 480


def test_json_is_one_document_on_stdout(place, capsys, matcher, monkeypatch):
    real = matcher.match
    monkeypatch.setattr(matcher, "match", lambda *a, **k: print("chatter") or real(*a, **k))
    assert cli.main([*MATCH, "--json", "--points", "40,30", "5,300"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert "chatter" in err and document["model"] == "scnet" and document["errors"] == []
    assert document["source"] == "a.png" and document["regions"] and document["files"] == {}
    assert [point["valid"] for point in document["points"]] == [True, False]
    assert "lies outside the source" in document["notes"][0]


@pytest.mark.parametrize("text", ["40", "40,", "1,2,3", "a,b", "nan,3", "inf,2", ""])
def test_a_point_that_is_none(text):
    with pytest.raises(ConfigError, match=r"--points: .* is no point; give x,y in pixels of the source"):
        match_command.parse_points([text])


def test_negative_and_fractional_points_are_points():
    assert match_command.parse_points(["-3,5.5", " 1e1 , 2"]) == [(-3, 5.5), (10, 2)]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (["--source", "nowhere.png"], "error: --source: nowhere.png is no file"),
        (["--target", "."], "error: --target: . is no file; give one picture"),
        (["--target", "broken.png"], "error: broken.png: not a picture"),
        (["--points", "3;4"], "error: --points: '3;4' is no point"),
        (["--points", "-3,x"], "error: --points: '-3,x' is no point"),
        (["--out", "a.png"], "error: --out: a.png cannot be made"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_bad_input_is_one_line_and_2(place, capsys, tmp_path, change, line, as_json):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert cli.main([*MATCH, *change, *(["--json"] if as_json else [])]) == 2
    out, err = capsys.readouterr()
    assert err.splitlines()[-1].startswith(line)
    if as_json:
        assert line.removeprefix("error: ") in json.loads(out)["error"]
    else:
        assert not out


def test_grey_pictures_say_that_nothing_is_matched(place, capsys):
    for name in ("a.png", "b.png"):
        Image.new("L", (50, 40), 99).save(name)
    assert cli.main([*MATCH, "--points", "9,9", "--out", "found", "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["regions"] == [] and document["covered"] == 0
    assert "nothing is matched" in err and document["points"][0]["target"] is None


def test_a_result_that_cannot_be_written_is_1_and_the_rest_is_there(place, capsys, tmp_path):
    (tmp_path / "found" / "warped.png").mkdir(parents=True)
    assert cli.main([*MATCH, "--out", "found", "--json"]) == 1
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert "error: --out: found/warped.png cannot be written" in err and len(document["errors"]) == 1
    assert set(document["files"]) == {"flow", "matches"} and document["regions"]


def test_inputs_are_never_overwritten(place, capsys, tmp_path):
    Image.fromarray(scene()).save("warped.png")
    before = (tmp_path / "warped.png").read_bytes()
    assert cli.main(["match", "--source", "warped.png", "--target", "b.png", "--out", "."]) == 1
    assert (tmp_path / "warped.png").read_bytes() == before
    assert "is one of the pictures; give another folder" in capsys.readouterr().err


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["match", "--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0 and all(name in text for name in cli.MATCH_OPTIONS)
    assert all(name in text for name in correspondence.FEATURES)


def test_the_methods_of_the_command_are_those_there_are():
    assert cli.MATCH_OPTIONS["--method"]["choices"] == predict.METHODS
