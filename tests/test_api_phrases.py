"""`load("crossmodal").detect(images, phrases)` with a fake network: what is given, found, and refused."""

import io
import json
import warnings

import numpy as np
import pytest
from PIL import Image

from sm_jax import phrase_detector
from sm_jax.errors import ConfigError, ImageError, SmJaxError, TextError, WeightsError
from sm_jax.phrase_detector import PhraseDetector
from sm_jax.requests import Request, RequestBank
from sm_jax.systems.crossmodal.model import ModelConfig
from tests.evaluators.fake_phrases import CANVAS, CELL, COLOURS, TOKENIZER, Predictor

CONFIG = ModelConfig(vocabulary=TOKENIZER.vocabulary, text_length=8, image_size=CANVAS)


class Network(Predictor):
    """The fake of the evaluator, for phrases that all images share."""

    def scores(self, variables, embeddings, texts):
        return super().scores(variables, embeddings, np.broadcast_to(texts, (len(embeddings), *texts.shape)))


def make(config=CONFIG, variables=None, **options):
    """A detector whose network proposes coloured cells of 32 pixels of the canvas, surer at the top left."""
    detector = PhraseDetector(config, variables or {"params": {}}, **options)
    detector._predictor = Network()
    return detector


@pytest.fixture
def detector():
    return make()


@pytest.fixture(scope="module")
def image():
    """256x192, so twice the canvas: red at row 0 column 1, red at (2, 1), green at (3, 2) in cells of 64."""
    picture = np.zeros((256, 192, 3), np.uint8)
    for row, column, colour in [(0, 1, "red"), (2, 1, "red"), (3, 2, "green")]:
        picture[row * 64 : row * 64 + 64, column * 64 : column * 64 + 64] = COLOURS[colour]
    return picture


RED_BOXES = [[64, 0, 128, 64], [64, 128, 128, 192]]


def test_what_a_phrase_describes_is_found_in_pixels_of_the_image(detector, image):
    (found,) = detector.detect(image, "show me the red things")
    np.testing.assert_allclose(found.boxes, RED_BOXES)
    assert found.image_size == (256, 192) and found.proposals == 3
    assert found.labels == ["show me the red things"] * 2 and found.queries.tolist() == [0, 0]
    np.testing.assert_allclose(found.scores, found.conf * found.align)
    np.testing.assert_allclose(found.align, 0.9)
    assert found.conf[0] > found.conf[1] and np.all(np.diff(found.scores) < 0)
    assert found.best_scores == {"show me the red things": pytest.approx(found.scores[0])}


def test_several_phrases_share_the_proposals_and_are_encoded_once(detector, image):
    phrases = ["the red things", "the green things", "the blue things"]
    found = detector.detect([image, image], phrases)
    assert [sorted(one.labels) for one in found] == [sorted([phrases[0]] * 2 + [phrases[1]])] * 2
    kinds = [kind for kind, _ in detector._predictor.calls]
    assert kinds.count("proposals") == 2 and kinds.count("texts") == 1  # two images; all phrases together
    detector.detect(image, [phrases[1], "red"])
    detector.detect(image, phrases)
    kinds = [kind for kind, _ in detector._predictor.calls]
    assert kinds.count("texts") == 2  # for "red" only


def test_a_negative_threshold_explains_every_pair(detector, image):
    (found,) = detector.detect(image, ["red", "green"], threshold=-1)
    assert len(found) == 2 * 3
    pairs = {
        (label, tuple(box)): align
        for label, box, align in zip(found.labels, found.boxes.tolist(), found.align, strict=True)
    }
    assert pairs["red", tuple(RED_BOXES[0])] > 0.8 > 0.2 > pairs["green", tuple(RED_BOXES[0])]


def test_thresholds_and_limits(detector, image):
    def count(**options):
        return [len(one) for one in detector.detect(image, ["red", "green"], **options)][0]

    assert count() == 3 and count(threshold=0.99) == 0
    assert count(max_detections=1) == 2  # one of each phrase
    assert count(top_k=1) == 1 and count(top_k=50) == 3
    (best,) = detector.detect(image, ["red", "green"], top_k=1)
    assert best.scores[0] == max(best.best_scores.values())
    strict = detector.encode("red", threshold=0.88)
    assert len(detector.detect(image, strict, threshold=0)[0]) == 1


def test_phrases_of_one_label_compete(detector, image):
    (found,) = detector.detect(image, {"thing": ["red", "the red things"], "other": "green"}, threshold=0.2)
    assert sorted(found.labels) == ["other", "thing", "thing"]
    (found,) = detector.detect(image, ["red", "green"], labels="x")
    assert found.labels == ["x"] * 3 and sorted(found.queries.tolist()) == [0, 0, 1]
    assert list(found.best_scores) == ["x"]


def test_results_go_through_json_and_can_be_drawn(detector, image):
    bank = detector.encode(["red", "blue"])
    (found,) = detector.detect(image, bank)
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["size"] == {"height": 256, "width": 192} and document["proposals"] == 3
    assert set(document["detections"][0]) == {"label", "score", "conf", "align", "box", "query"}
    assert document["best_scores"]["blue"] < 0.2 < 0.8 < document["best_scores"]["red"]
    assert found.draw(image, queries=bank).width > found.draw(image).width


def test_a_bank_of_phrases_is_a_bank_of_requests(detector, image, tmp_path):
    bank = detector.encode({"r": "the red things"}, threshold=0.4)
    (request,) = bank
    assert isinstance(request, Request) and request.text == "the red things" and request.threshold == 0.4
    bank.save(tmp_path / "bank.safetensors")
    loaded = RequestBank.load(tmp_path / "bank.safetensors")
    assert loaded.requests[0].text == request.text
    ours, theirs = (detector.detect(image, b)[0] for b in (bank, loaded))
    np.testing.assert_array_equal(ours.boxes, theirs.boxes)
    other = make(variables={"params": {"a": np.ones(1, np.float32)}})
    with pytest.raises(WeightsError, match="other weights, .*encode its phrases again"):
        other.detect(image, bank)
    with pytest.raises(ConfigError, match="belong to encode"):
        detector.detect(image, bank, labels="x")


def test_batches_change_nothing_but_the_number_of_calls(image):
    images = [image, image[:, ::-1], np.zeros((40, 300, 3), np.uint8), image[:100], image]
    one, many = make(batch=1), make(batch=4)
    want, got = (d.detect(images, ["red", "green"]) for d in (one, many))
    for a, b in zip(want, got, strict=True):
        np.testing.assert_array_equal(a.boxes, b.boxes)
        np.testing.assert_array_equal(a.scores, b.scores)
        assert a.labels == b.labels
    shapes = [shape for kind, shape in many._predictor.calls if kind == "proposals"]
    assert shapes == [(4, *CANVAS, 3)] * 2  # the last batch is filled up: one program


def test_generators_are_taken_as_lists_are(detector, image):
    want = detector.detect([image, image], ["red", "green"])
    got = detector.detect((i for i in (image, image)), (p for p in ("red", "green")))
    assert len(got) == 2 and [len(one) for one in got] == [len(one) for one in want] == [3, 3]


def test_nothing_in_the_filling_is_found(detector):
    """The canvas is wider than a tall image; what is proposed beside it does not count."""
    real = detector._predictor.proposals

    def everywhere(variables, images):
        found = real(variables, images)
        return found | {"valid": np.ones_like(found["valid"]), "conf": np.full_like(found["conf"], 0.9)}

    detector._predictor.proposals = everywhere
    (found,) = detector.detect(np.zeros((256, 112, 3), np.uint8), "red", threshold=-1)
    assert found.proposals == 4 * 2  # 128x56 of the canvas: a column, and most of another
    assert found.boxes[:, 2].max() == 112 and found.boxes.min() >= 0


def test_pictures_of_every_size_and_mode_are_taken(detector, image, tmp_path):
    rgb = Image.fromarray(image)
    pictures = {
        "grey.png": rgb.convert("L"),
        "alpha.png": rgb.convert("RGBA"),
        "palette.png": rgb.convert("P"),
        "deep.png": Image.fromarray(image[..., 0].astype(np.uint16) * 257),
        "cmyk.jpg": rgb.convert("CMYK"),
        "lab.tif": Image.new("LAB", (30, 20)),
        "tiny.png": rgb.resize((1, 1)),
        "thin.png": rgb.resize((1, 900)),
        "flat.png": rgb.resize((900, 1)),
        "huge.png": rgb.resize((3000, 4000), Image.Resampling.NEAREST),
    }
    for name, picture in pictures.items():
        picture.save(tmp_path / name)
        (found,) = detector.detect(tmp_path / name, "red")
        assert found.image_size == picture.size[::-1], name
        assert np.all(found.boxes[:, 2:] <= picture.size) and np.all(found.boxes >= 0), name
        if name in ("alpha.png", "palette.png", "cmyk.jpg", "huge.png"):
            scale = np.tile(np.array(picture.size) / image.shape[1::-1], 2)
            np.testing.assert_allclose(found.boxes, RED_BOXES * scale)
    buffer = io.BytesIO()
    rgb.save(buffer, "PNG")
    for same in (rgb, buffer.getvalue(), image / np.float32(255)):
        assert len(detector.detect(same, "red")[0]) == 2


def test_an_image_without_objects_is_an_empty_result(detector):
    (found,) = detector.detect(np.zeros((90, 70, 3), np.uint8), ["red", "green"])
    assert len(found) == 0 and found.boxes.shape == (0, 4) and found.proposals == 0
    assert found.to_dict()["best_scores"] == {"red": None, "green": None}
    assert found.draw(np.zeros((90, 70, 3), np.uint8)).size


@pytest.mark.parametrize(
    "texts,line",
    [
        ("", "there are no words in it"),
        ("  \n ", "there are no words in it"),
        ("?!...", "there are no words in it"),
        ("purple elephants", "knows none of its words; it knows blue, green, me"),
        ("красные круги", "knows none of its words"),
        ("赤い丸", "knows none of its words"),
        ("الدوائر الحمراء", "knows none of its words"),
        ("🔴 🔵", "knows none|no words"),
        ("red " * 10_000, "10000 words, the model reads at most 7"),
        ("red\n" * 10_000, "10000 words, the model reads at most 7"),
        ("x" * 1_000_000, "knows none of its words"),
        (["red", ""], "there are no words in it"),
        ([], "no phrase: say what to look for"),
        ({}, "no phrase: say what to look for"),
        ({"a": []}, "no phrase: say what to look for"),
        ([None], "a phrase must be text, not NoneType"),
        (5, "a phrase must be text, not int"),
        (b"red", "a phrase must be text, not bytes"),
    ],
)
def test_bad_phrases_are_one_short_line(detector, image, texts, line):
    with pytest.raises((TextError, ConfigError), match=line) as caught:
        detector.detect(image, texts)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "phrase", ["the red elephant's things", "red 赤い", "red " + "x" * 100_000, "ｒｅｄ shoes"]
)
def test_words_that_are_not_known_are_told_and_the_rest_is_searched(detector, image, phrase):
    with pytest.warns(UserWarning, match="the model does not know '") as caught:
        (found,) = detector.detect(image, phrase)
    (warning,) = caught
    assert len(found) == 2 and "\n" not in str(warning.message) and len(str(warning.message)) < 250
    assert warning.filename.endswith("phrase_detector.py") or warning.filename == __file__


def test_case_punctuation_and_spaces_do_not_matter(detector, image):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = detector.detect(image, "  Show me:\tthe RED things!\n")
    assert len(found) == 2 and found.labels[0] == "Show me: the RED things!"


@pytest.mark.parametrize(
    "options,line",
    [
        ({"threshold": float("nan")}, "threshold must be a number"),
        ({"max_detections": 0}, "max_detections and top_k 1 or more"),
        ({"top_k": 0}, "max_detections and top_k 1 or more"),
        ({"labels": ["a", "b"]}, "labels: 2 for 1 phrase;"),
    ],
)
def test_bad_options_are_one_line(detector, image, options, line):
    with pytest.raises(ConfigError, match=line) as caught:
        detector.detect(image, "red", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "bad", [np.zeros((0, 4, 3), np.uint8), b"junk", "missing.png", np.full((4, 4), np.nan)]
)
def test_bad_images_are_one_line(detector, bad):
    with pytest.raises(ImageError) as caught:
        detector.detect(bad, "red")
    assert "\n" not in str(caught.value)


def test_more_that_is_refused(detector, image):
    with pytest.raises(ConfigError, match="keys are the labels"):
        detector.encode({"a": "red"}, labels="b")
    with pytest.raises(ConfigError, match="threshold: must be a number"):
        detector.encode("red", threshold=float("nan"))
    with pytest.raises(ConfigError, match="batch: must be a power of two, not 3"):
        make(batch=3)


def test_sentence_embeddings_take_the_place_of_words(image):
    config = ModelConfig(text_encoder="features", text_features=3, image_size=CANVAS)
    detector = make(config)
    detector._predictor.texts = lambda variables, rows: np.asarray(rows)  # the fake's vectors are colours
    (found,) = detector.detect(image, {"something warm": [1.0, 0, 0], "grass": np.eye(3)[1]})
    assert sorted(found.labels) == ["grass", "something warm", "something warm"]
    with pytest.raises(ConfigError, match="takes sentence embeddings: give a dict phrase -> array of 3"):
        detector.detect(image, "red")
    wrong = [[1.0, 2.0], [1.0, np.nan, 0.0], [1e300, 0, 0], "red", ["a", "b", "c"], [[1], [2, 3], 4], None]
    for vector in [*wrong, [None] * 3, [1j, 0, 0], np.array([{}, {}, {}])]:
        with pytest.raises(SmJaxError, match="expected 3 finite numbers"):
            detector.detect(image, {"warm": vector})


def test_the_canvas_is_the_models(detector):
    assert CANVAS[0] % CELL == 0
    detector.detect(np.zeros((1, 1, 3), np.uint8), "red")
    assert [shape for kind, shape in detector._predictor.calls if kind == "proposals"] == [(1, *CANVAS, 3)]
    assert phrase_detector.THRESHOLD == PhraseDetector.threshold == 0.5
