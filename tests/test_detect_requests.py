"""`sm-jax detect --model ssm`, and banks of queries for every system of pictures; with fake networks, then
with a real one that was exported."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import sm_jax
from sm_jax import api, cli, platform
from sm_jax.errors import ConfigError, WeightsError
from sm_jax.requests import RequestBank
from sm_jax.systems.ssm import model
from sm_jax.systems.ssm.postprocess import METHODS
from sm_jax.weights import io
from tests.fake_requests import make, query, scene
from tests.systems.os2d.fake import PARTS, VARIABLES
from tests.systems.os2d.fake import scene as os2d_scene

SSM = ["detect", "--model", "ssm"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Images of red and green squares, three queries and a damaged file; `api.load` gives fake detectors."""
    Image.fromarray(scene()).save(tmp_path / "a.png")
    Image.fromarray(scene(places=[(1, 2, "red")])).save(tmp_path / "b.png")
    Image.fromarray(scene((600, 500), 16, [(3, 4, "red"), (30, 20, "red")])).save(tmp_path / "large.png")
    for colour in ("red", "green", "blue"):
        Image.fromarray(query(colour)).save(tmp_path / f"{colour}.png")
    Image.fromarray(np.full((40, 40, 3), 200, np.uint8)).save(tmp_path / "blank.png")
    Image.fromarray(np.zeros((9, 90, 3), np.uint8)).save(tmp_path / "low.png")
    Image.fromarray(os2d_scene(np.random.default_rng(0), (96, 160), [(16, 16)])).save(tmp_path / "os2d.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no picture")

    def load(name, *, weights, **options):
        if name == "ssm":
            assert not options
            variables = {"params": {"weights": np.frombuffer(weights.encode(), np.uint8)}}
            return make(variables=variables, notes=["model: fake"], batch=2)
        return api.Detector(PARTS, VARIABLES, query_size=48, step=64, notes=["weights: fake"])

    monkeypatch.setattr(api, "load", load)
    monkeypatch.setattr(platform, "setup", lambda: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_members_are_found_and_printed(place, capsys):
    assert cli.main([*SSM, "--image", "a.png", "b.png", "--query", "red.png", "green.png"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "a.png: 3 found" and "b.png: 1 found" in lines and "model: fake" in err
    assert "  0.900  red  box 64 0 128 64" in lines


def test_the_document(place, capsys):
    command = [*SSM, "--image", "a.png", "--query", "red.png", "blue.png", "--label", "r", "b", "--json"]
    assert cli.main(command) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["model"] == "ssm" and document["weights"] == "ssm-shelves"
    assert document["threshold"] == 0.5 and document["errors"] == [] and document["notes"] == []
    assert document["queries"] == [
        {"picture": "red.png", "label": "r"},
        {"picture": "blue.png", "label": "b"},
    ]
    (image,) = document["images"]
    assert set(image) == {"image", "overlay", "size", "detections", "best_scores"}
    assert [(found["label"], found["query"]) for found in image["detections"]] == [("r", 0)] * 2
    assert set(image["detections"][0]) == {"label", "score", "box", "query"}
    assert image["best_scores"] == {"r": 0.9, "b": 0.1}


def test_overlays_show_the_coverage(place, capsys):
    command = [*SSM, "--image", "a.png", "--query", "red.png", "--out", "found", "--threshold", "0.95"]
    assert cli.main(command) == 0
    with Image.open(place / "found" / "a-found.png") as picture:
        pixels = np.asarray(picture).astype(int)
    # nothing passes the threshold, yet the red squares are shaded in the label's blue
    assert ((pixels[..., 2] > 80) & (pixels[..., 0] > 60) & (pixels[..., 0] < 200)).sum() > 2000
    assert "best score 0.900 is below the threshold 0.95: --threshold 0.85" in capsys.readouterr().err


def test_tiles_search_the_image_as_it_is(place, capsys):
    command = [*SSM, "--image", "large.png", "--query", "red.png"]
    assert cli.main(command) == 0 and cli.main([*command, "--tiles"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("large.png: 0 found") and "large.png: 2 found" in lines[1:]


def test_options_reach_the_detector(place, capsys, monkeypatch):
    seen, detector = {}, make()
    real = detector.detect

    def detect(path, bank, **options):
        seen.update(options)
        return real(path, bank)

    monkeypatch.setattr(detector, "detect", detect)
    monkeypatch.setattr(api, "load", lambda *_, **__: detector)
    command = [*SSM, "--image", "a.png", "--query", "red.png", "--postprocess", "grouprect", "--iou", "0"]
    assert cli.main([*command, "--max", "3", "--tiles"]) == 0
    assert seen.pop("progress") is None and seen == {
        "threshold": 0.5,
        "max_detections": 3,
        "iou": 0.0,
        "postprocess": "grouprect",
        "tiles": True,
    }


def test_progress_counts_windows(place, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # which rich takes for a terminal
    assert cli.main([*SSM, "--image", "a.png", "--query", "red.png", "--tiles"]) == 0
    assert "a.png window 2 of 6" in capsys.readouterr().err


def test_images_that_cannot_be_searched_are_named_and_the_rest_goes_on(place, capsys):
    command = [*SSM, "--image", "broken.jpg", "a.png", "low.png", "b.png", "--query", "red.png", "--json"]
    assert cli.main(command) == 1
    document = json.loads(capsys.readouterr().out)
    assert [entry["image"] for entry in document["images"]] == ["a.png", "b.png"]
    assert [entry["image"] for entry in document["errors"]] == ["broken.jpg", "low.png"]
    assert "low.png: 90 x 9 pixels are less than one cell of the map" in document["errors"][1]["error"]


@pytest.mark.parametrize("model", ["ssm", "os2d"])
def test_a_bank_is_kept_and_taken_again(place, capsys, model):
    command = ["detect", "--model", model, "--json", "--threshold", "0.4", "--image"]
    command += ["a.png"] if model == "ssm" else ["os2d.png", "--scales", "1"]
    keep = ["--query", "red.png", "green.png", "--label", "r", "g", "--save-bank", "things.safetensors"]
    assert cli.main([*command, *keep]) == 0
    first, err = capsys.readouterr()
    assert "queries kept in things.safetensors" in err
    assert RequestBank.load("things.safetensors").labels == ["r", "g"]
    for name in ("red.png", "green.png"):
        (place / name).unlink()
    assert cli.main([*command, "--bank", "things.safetensors"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again == json.loads(first) and again["images"][0]["detections"]


@pytest.mark.parametrize(
    "words,line",
    [
        (["--query", "blank.png"], "blank.png: is blank (one colour all over)"),
        (["--query", "red.png", "--scales", "1"], "--scales: an option of os2d, not of ssm"),
        (["--query", "red.png", "--rotations"], "--rotations: an option of os2d, not of ssm"),
        (["--query", "red.png", "--mirrored"], "--mirrored: an option of os2d, not of ssm"),
        (["--query", "red.png", "--across-labels"], "--across-labels: an option of os2d, not of ssm"),
        (["--query", "red.png", "--transform", "x"], "--transform: an option of os2d, not of ssm"),
        (["--query", "red.png", "--top-k", "1"], "--top-k: an option of crossmodal, not of ssm"),
        (["--text", "red"], "--model ssm takes pictures (--query); --text is for crossmodal"),
        (["--query", "red.png", "--text", "red"], "--text and --query: give one of them"),
        (["--query", "red.png", "--max", "0"], "--max: must be 1 or more"),
        (["--query", "red.png", "--label", "a", "b"], "--label: 2 names for 1 query"),
        (["--query", "red.png", "--bank", "x.safetensors"], "--query and --bank: give one of them"),
        (["--bank", "nowhere.safetensors"], "nowhere.safetensors: cannot be read as a request bank"),
        (["--bank", "a.png"], "a.png: cannot be read as a request bank"),
        (["--bank", "x.safetensors", "--label", "a"], "--label: the queries of --bank are encoded already"),
        (["--bank", "x.safetensors", "--save-bank", "y"], "--save-bank: the queries of --bank are encoded"),
        (["--query", "red.png", "--save-bank", "a.png"], "--save-bank: a.png must end with .safetensors"),
        (["--query", "red.png", "--save-bank", "no/x.safetensors"], "the request bank cannot be written"),
        (["--bank", "other.safetensors"], "the request bank was encoded with other weights"),
        (["--bank", "empty.safetensors"], "no query: give at least one picture"),
        ([], "nothing to look for: give pictures (--query) or phrases (--text)"),
    ],
)
def test_failures_are_one_line_and_exit_code_two(place, capsys, words, line):
    make().encode(query("red")).save("other.safetensors")
    RequestBank([]).save("empty.safetensors")
    assert cli.main([*SSM, "--image", "a.png", *words]) == 2
    out, err = capsys.readouterr()
    (error,) = [text for text in err.splitlines() if text.startswith("error")]
    assert line in error and not out and len(error) < 300
    assert cli.main([*SSM, "--image", "a.png", *words, "--json"]) == 2
    assert line in json.loads(capsys.readouterr().out)["error"]


@pytest.mark.parametrize(
    "words,line",
    [
        (["--query", "red.png", "--tiles"], "--tiles: an option of ssm, not of os2d"),
        (["--query", "red.png", "--postprocess", "released"], "--postprocess: an option of ssm, not of os2d"),
        (["--bank", "x", "--rotations"], "--rotations: the queries of --bank are encoded already"),
        (["--text", "red", "--iou", "0"], "--iou: an option of os2d and ssm, not of crossmodal"),
        (["--text", "red", "--bank", "x"], "--text and --bank: give one of them"),
        (["--text", "red", "--save-bank", "x.safetensors"], "--save-bank: phrases are encoded in no time"),
        (
            ["--bank", "x", "--model", "crossmodal"],
            "--model crossmodal takes phrases (--text); --bank is for",
        ),
    ],
)
def test_other_systems_refuse_what_is_not_theirs(place, capsys, words, line):
    assert cli.main(["detect", "--image", "a.png", *words]) == 2
    assert f"error: {line}" in capsys.readouterr().err


def test_the_help_names_every_post_processing():
    assert cli.DETECT_OPTIONS["--postprocess"]["choices"] == METHODS


# A real network, untrained ----------------------------------------------------------------------------

SMALL = {"image_size": (64, 96), "request_size": (16, 24)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A file as `sm-jax weights export` writes it."""
    config = model.ModelConfig.create(SMALL)
    shapes = jax.eval_shape(lambda: model.init(config, jax.random.key(0)))
    rng = np.random.default_rng(0)

    def value(leaf):
        fan_in = max(1, int(np.prod(leaf.shape[:-1])))
        return rng.standard_normal(leaf.shape, np.float32) * np.float32(np.sqrt(2 / fan_in))

    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    sections = {"system": "ssm", "model": SMALL, "objective": {}}
    io.save_variables(path, jax.tree.map(value, shapes), {"sm_jax.config": json.dumps(sections)}, dtype="f16")
    return path


@pytest.fixture(scope="module", params=["product_aligned", "product_gap"])
def real(exported, request):
    return sm_jax.load("ssm", weights=exported, model={"fusion": request.param}, batch=1)


def _noise(size, seed):
    return np.random.default_rng(seed).integers(0, 255, (*size, 3)).astype(np.uint8)


def test_few_programs_serve_images_of_every_size_and_any_few_requests(real, exported, tmp_path):
    assert str(exported) in real.notes[0] and type(real) is sm_jax.RequestDetector
    images = [_noise(size, 1) for size in ((40, 60), (300, 200), (130, 97), (16, 17))]
    bank = real.encode([_noise((30, 50), 2), _noise((90, 20), 3), _noise((8, 9), 4)], labels=["a", "b", "a"])
    compiled = None
    for tiles in (False, True):
        for image, found in zip(images, real.detect(images, bank, tiles=tiles, threshold=0.0), strict=True):
            assert found.image_size == image.shape[:2] and list(found.coverage) == ["a", "b"]
            assert np.all(found.boxes >= 0) and np.all(found.boxes[:, 2:] <= image.shape[1::-1])
            assert all(np.all((each >= 0) & (each <= 1)) for each in found.coverage.values())
            assert found.draw(image, queries=bank).size
        compiled = compiled or dict(real.compiles)
    assert dict(real.compiles) == compiled  # windows of other images make no new program
    bank.save(tmp_path / "bank.safetensors")
    ours, theirs = (
        real.detect(images, each, threshold=0.0)
        for each in (bank, RequestBank.load(tmp_path / "bank.safetensors"))
    )
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a.coverage["a"], b.coverage["a"])


def test_a_request_does_not_depend_on_its_company(real):
    image, mine, other = _noise((64, 96), 5), _noise((30, 50), 6), _noise((50, 30), 7)
    (alone,) = real.detect(image, {"a": mine}, threshold=0.0)
    company = real.detect([_noise((64, 96), 8), image], {"b": other, "a": mine}, threshold=0.0)[1]
    np.testing.assert_allclose(company.coverage["a"], alone.coverage["a"], atol=1e-5)
    assert np.ptp(alone.coverage["a"]) > 1e-4  # it says something


def test_load_refuses_what_does_not_fit(exported):
    for options, error, line in [
        ({"transform": "x"}, ConfigError, "transform: ssm has no transformation network"),
        ({"model": {"fusoin": "product_gap"}}, ConfigError, "did you mean 'fusion'"),
        ({"model": {"fusion": "concat_gap"}}, WeightsError, "of another shape"),
        ({"weights": ""}, WeightsError, "give a name"),
        ({"weights": "nothing-here"}, WeightsError, "no weights called 'nothing-here'"),
        ({"weights": "crossmodal-shapes"}, WeightsError, "is for the system crossmodal, not for ssm"),
    ]:
        with pytest.raises(error, match=line):
            sm_jax.load("ssm", **{"weights": exported} | options)
