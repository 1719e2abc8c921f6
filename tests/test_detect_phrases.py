"""`sm-jax detect --text`: with a fake network, and with a tiny one that was exported."""

import json
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import sm_jax
from sm_jax import api, cli, platform
from sm_jax.data import phrase_preview
from sm_jax.data.shapes import ShapeScenes
from sm_jax.errors import ConfigError, WeightsError
from sm_jax.systems.crossmodal import model
from sm_jax.systems.crossmodal.predict import ProposalOptions
from sm_jax.weights import io
from tests.evaluators.fake_phrases import COLOURS
from tests.test_api_phrases import make


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Two images of red and green cells, a black one and a damaged file; `api.load` gives a fake detector."""
    for name, cells in {
        "a.png": [(0, 1, "red"), (3, 2, "green")],
        "b.jpg": [(2, 1, "red")],
        "black.png": [],
    }.items():
        picture = np.zeros((256, 192, 3), np.uint8)
        for row, column, colour in cells:
            picture[row * 64 : row * 64 + 64, column * 64 : column * 64 + 64] = COLOURS[colour]
        Image.fromarray(picture).save(tmp_path / name)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no picture")

    def load(name, **options):
        assert name == "crossmodal" and set(options) == {"weights"}
        return make(notes=["model: fake"], batch=2)

    monkeypatch.setattr(api, "load", load)
    monkeypatch.setattr(platform, "setup", lambda: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_phrases_are_found_and_printed(place, capsys):
    command = ["detect", "--image", "a.png", "b.jpg", "--text", "the red things", "green"]
    assert cli.main(command) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "a.png: 2 found" and "b.jpg: 1 found" in lines and "model: fake" in err
    assert "the red things  box 64 0 128 64  conf 0." in lines[1] and "align 0.900" in lines[1]


def test_the_document_has_conf_align_and_score(place, capsys):
    command = [
        "detect",
        "--image",
        "a.png",
        "--text",
        "the red things",
        "blue",
        "--label",
        "r",
        "b",
        "--json",
    ]
    assert cli.main(command) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["model"] == "crossmodal" and document["weights"] == "crossmodal-shapes"
    assert document["threshold"] == 0.5 and document["errors"] == [] and document["notes"] == []
    assert document["queries"] == [
        {"text": "the red things", "label": "r"},
        {"text": "blue", "label": "b"},
    ]
    (image,) = document["images"]
    (found,) = image["detections"]
    assert found["score"] == pytest.approx(found["conf"] * found["align"], abs=1e-4)
    assert found["label"] == "r" and found["box"] == [64, 0, 128, 64] and found["query"] == 0
    assert image["best_scores"]["b"] < 0.2 and image["proposals"] == 2 and image["overlay"] is None


def test_overlays_have_a_legend_of_phrases(place, capsys):
    command = ["detect", "--image", "a.png", "--text", "the red things", "green", "--out", "found"]
    assert cli.main(command) == 0
    assert sorted(path.name for path in (place / "found").iterdir()) == ["a-found.png", "detections.json"]
    with Image.open(place / "found" / "a-found.png") as picture:
        assert picture.width > 192
        pixels = np.asarray(picture).reshape(-1, 3)
    from sm_jax import draw

    for index in range(2):  # the square of the legend and the box
        assert (np.abs(pixels - np.array(draw.colour_of(index))).sum(axis=-1) == 0).sum() > 200


def test_a_file_of_phrases(place, capsys):
    (place / "phrases.txt").write_text("\ufeffthe red things\n\n  green \n", encoding="utf-8")
    command = ["detect", "--image", "a.png", "--text", "blue", "--text-file", "phrases.txt", "--json"]
    assert cli.main(command) == 0
    document = json.loads(capsys.readouterr().out)
    assert [query["text"] for query in document["queries"]] == ["blue", "the red things", "green"]


def test_bytes_that_are_no_text_are_one_line(place, capsys):
    """As Python takes them from a command line: lone surrogates."""
    for words in (["red", "green\udcff"], ["red", "--label", "r\udcff"]):
        assert cli.main(["detect", "--image", "a.png", "--text", *words, "--out", "found"]) == 2
        err = capsys.readouterr().err
        assert "\\udcff' is not text in UTF-8" in err and err.count("\n") == 1
        assert err.startswith(f"error: {'--label' if '--label' in words else '--text'}: ")
    assert not (place / "found").exists()


def test_letters_that_the_terminal_lacks_are_escaped(place, capsys, monkeypatch):
    stdout = TextIOWrapper(BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    assert cli.main(["detect", "--image", "a.png", "--text", "red", "--label", "красный"]) == 0
    assert "  \\u043a\\u0440" in stdout.buffer.getvalue().decode("ascii")


def test_what_sm_jax_drew_is_not_searched_in_a_folder(place, capsys):
    """The sheet beside previewed scenes, and the overlays of a run that wrote among its own images."""
    source = ShapeScenes("train", num_scenes=2, image_size=(96, 128), count=(2, 4), size_range=(12, 24))
    phrase_preview.write(source, place / "scenes", count=2)
    command = ["detect", "--image", "scenes", "--text", "red", "--out", "scenes", "--json"]
    for left_out in ("1 picture", "3 pictures"):
        assert cli.main(command) == 0
        out, err = capsys.readouterr()
        names = [Path(entry["image"]).name for entry in json.loads(out)["images"]]
        assert names == ["000000.png", "000001.png"]
        assert f"note: scenes: {left_out} that sm-jax drew: left out" in err
    Image.new("RGB", (64, 64)).save(place / "scenes" / "sheet.png")  # somebody's own, only called so
    assert cli.main(command) == 0
    assert len(json.loads(capsys.readouterr().out)["images"]) == 3


def test_damaged_images_are_named_and_the_rest_goes_on(place, capsys):
    """In batches of two, the good ones keep their places."""
    images = ["broken.jpg", "a.png", "missing.png", "black.png", "b.jpg"]
    assert cli.main(["detect", "--image", *images, "--text", "red", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert [(e["image"], len(e["detections"])) for e in document["images"]] == [
        ("a.png", 1),
        ("black.png", 0),
        ("b.jpg", 1),
    ]
    assert [entry["image"] for entry in document["errors"]] == ["broken.jpg", "missing.png"]


def test_an_image_without_objects_is_no_failure(place, capsys):
    assert cli.main(["detect", "--image", "black.png", "--text", "red", "--out", "found"]) == 0
    out, err = capsys.readouterr()
    assert "black.png: 0 found (no objects at all)" in out and "best score" not in err
    (entry,) = json.loads((place / "found" / "detections.json").read_text())["images"]
    assert entry["detections"] == [] and entry["proposals"] == 0 and entry["best_scores"] == {"red": None}


def test_words_that_are_not_known_are_a_note(place, capsys):
    assert cli.main(["detect", "--image", "a.png", "--text", "the red elephants", "--json"]) == 0
    out, err = capsys.readouterr()
    (note,) = json.loads(out)["notes"]
    assert "the model does not know 'elephants'" in note and f"note: {note}" in err.splitlines()
    assert len(json.loads(out)["images"][0]["detections"]) == 1


def test_numbers_are_checked_before_the_weights_are_loaded(place, capsys, monkeypatch):
    monkeypatch.setattr(api, "load", None)
    for option, value in (("--max", "0"), ("--top-k", "0"), ("--threshold", "nan"), ("--threshold", "inf")):
        assert cli.main(["detect", "--image", "a.png", "--text", "red", option, value]) == 2
        assert capsys.readouterr().err.startswith(f"error: {option}: must be ")


def test_a_phrase_of_nothing_but_commands_is_a_note(place, capsys):
    assert cli.main(["detect", "--image", "a.png", "--text", "the", "--json"]) == 0
    (note,) = json.loads(capsys.readouterr().out)["notes"]
    assert note == "phrase 'the': no word of it says what to find"


def test_who_finds_nothing_is_told_the_best_score(place, capsys):
    command = ["detect", "--image", "a.png", "--text", "red", "--threshold", "0.95"]
    assert cli.main(command) == 0
    out, err = capsys.readouterr()
    assert "a.png: 0 found (best score 0.8" in out
    assert "is below the threshold 0.95: --threshold 0.85" in err


def test_the_best_of_all_phrases(place, capsys):
    command = ["detect", "--image", "a.png", "--text", "red", "green", "--top-k", "1", "--json"]
    assert cli.main(command) == 0
    assert len(json.loads(capsys.readouterr().out)["images"][0]["detections"]) == 1


@pytest.mark.parametrize(
    "words,line",
    [
        (["--text", ""], "phrase '': there are no words in it"),
        (["--text", "purple elephants"], "the model knows none of its words; it knows blue, green"),
        (["--text", "red " * 10_000], "10000 words, the model reads at most 7"),
        (["--text", "красные круги"], "phrase 'красные круги': the model knows none"),
        (["--text", "red", "--query", "a.png"], "--text and --query: give one of them; crossmodal takes"),
        (
            ["--text", "red", "--model", "os2d"],
            "--model os2d takes pictures (--query); --text is for crossmodal",
        ),
        (
            ["--query", "a.png", "--model", "crossmodal"],
            "--model crossmodal takes phrases (--text); --query is",
        ),
        ([], "nothing to look for: give pictures (--query) or phrases (--text)"),
        (["--text", "red", "--scales", "1"], "--scales: an option of os2d, not of crossmodal"),
        (["--text", "red", "--rotations"], "--rotations: an option of os2d"),
        (["--text", "red", "--iou", "0"], "--iou: an option of os2d"),
        (["--query", "a.png", "--top-k", "1"], "--top-k: an option of crossmodal, not of os2d"),
        (["--text", "red", "--top-k", "0"], "--top-k: must be 1 or more, not 0"),
        (["--text", "red", "--label", "a", "b"], "--label: 2 names for 1 phrase;"),
        (["--text-file", "nowhere.txt"], "--text-file: nowhere.txt cannot be read"),
        (["--text-file", "a.png"], "--text-file: a.png is not text in UTF-8"),
        (["--text-file", "blank.txt"], "--text-file: there is no phrase in blank.txt"),
    ],
)
def test_failures_are_one_line_and_exit_code_two(place, capsys, words, line):
    (place / "blank.txt").write_text(" \n\n")
    assert cli.main(["detect", "--image", "a.png", *words]) == 2
    out, err = capsys.readouterr()
    (error,) = [text for text in err.splitlines() if text.startswith("error")]
    assert line in error and not out and len(error) < 300
    assert cli.main(["detect", "--image", "a.png", *words, "--json"]) == 2
    assert line in json.loads(capsys.readouterr().out)["error"]


# A real network, tiny and untrained -------------------------------------------------------------------

WORDS = ("circles", "green", "red", "the")
TINY = {
    "vocabulary": WORDS,
    "text_length": 6,
    "rpn_width": 4,
    "proposal_width": 4,
    "proposal_hidden": 4,
    "text_ffn": 8,
    "image_size": (64, 96),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A file as `sm-jax weights export` writes it."""
    config = model.ModelConfig.create(TINY)
    shapes = jax.eval_shape(lambda: model.init(config, jax.random.key(0)))
    rng = np.random.default_rng(0)

    def value(path, leaf):
        if "batch_stats" in jax.tree_util.keystr(path):
            return np.ones(leaf.shape, np.float32)
        return rng.normal(0, 0.1, leaf.shape).astype(np.float32)

    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    sections = {"system": "crossmodal", "model": TINY, "objective": {}}
    variables = jax.tree_util.tree_map_with_path(value, shapes)
    io.save_variables(path, variables, {"sm_jax.config": json.dumps(sections)}, dtype="f16")
    return path


@pytest.fixture(scope="module")
def real(exported):
    return sm_jax.load("crossmodal", weights=exported, proposals=ProposalOptions(min_conf=0.0), batch=2)


def test_the_vocabulary_travels_with_the_file(real, exported):
    assert real.tokenizer.vocabulary == WORDS and str(exported) in real.notes[0]
    assert sm_jax.PhraseDetector is type(real)


def test_one_program_serves_images_of_every_size_and_any_few_phrases(real):
    rng = np.random.default_rng(1)
    for count, size in [(1, (40, 60)), (3, (300, 200)), (2, (1, 1))]:
        images = [rng.integers(0, 255, (*size, 3)).astype(np.uint8) for _ in range(count)]
        phrases = ["red circles", "the green circles", "the red"][:count]
        for found in real.detect(images, phrases, threshold=-1):
            assert len(found) == found.proposals * count > 0
            np.testing.assert_allclose(found.scores, found.conf * found.align, rtol=1e-6)
            assert np.all((found.align > 0) & (found.align < 1)) and np.all(np.isfinite(found.boxes))
            assert np.all(found.boxes[:, 2:] <= size[::-1]) and np.all(found.boxes >= 0)
    assert dict(real.compiles) == {"proposals": 1, "texts": 1, "scores": 1}
    assert real._predictor._chunk == real.batch == 2


def test_a_phrase_does_not_depend_on_its_company(real):
    image = np.random.default_rng(2).integers(0, 255, (64, 96, 3)).astype(np.uint8)
    (alone,) = real.detect(image, "red circles", threshold=-1)
    (company,) = real.detect([image, image], ["the green circles", "red circles"], threshold=-1)[1:]
    mine = [i for i, label in enumerate(company.labels) if label == "red circles"]
    np.testing.assert_allclose(company.scores[mine], alone.scores, rtol=1e-6)
    np.testing.assert_allclose(company.boxes[mine], alone.boxes, rtol=1e-6)


def test_load_refuses_what_does_not_fit(exported, tmp_path):
    for options, error, line in [
        ({"transform": "x"}, ConfigError, "transform: crossmodal has no transformation network"),
        ({"model": {"rpn_with": 8}}, ConfigError, "did you mean 'rpn_width'"),
        ({"model": {"rpn_width": 8}}, WeightsError, "of another shape"),
        ({"weights": ""}, WeightsError, "give a name"),
        ({"weights": "nothing-here"}, WeightsError, "no weights called 'nothing-here'"),
        ({"weights": "resnet50-caffe-c4"}, WeightsError, "does not say which model it is for"),
    ]:
        with pytest.raises(error, match=line):
            sm_jax.load("crossmodal", **{"weights": exported} | options)
    with pytest.raises(WeightsError, match="is for the system crossmodal, not for os2d"):
        sm_jax.load("os2d", weights=exported)
