"""`ShelfPhrases`: what phrases say of an object is what is drawn; reproducible; splits and queries apart."""

import hashlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from sm_jax import data
from sm_jax.data import phrase_preview
from sm_jax.data.synthetic import colours, phrases, products
from sm_jax.data.synthetic.catalogue import FLAVOURS
from sm_jax.data.synthetic.phrases import COLOURS, FLAVOUR_WORDS, KINDS, Meaning, ShelfPhrases, Thing
from sm_jax.errors import ConfigError
from sm_jax.text import Tokenizer

OPTIONS = {"num_scenes": 12, "num_classes": 40, "image_size": (160, 200), "object_size": (24, 40)}

_SCRIPT = """
import sys
from sm_jax.data.synthetic.phrases import ShelfPhrases
from tests.data.synthetic.test_phrases import OPTIONS, digest
print(digest(ShelfPhrases("val", cache_dir=sys.argv[1], **OPTIONS)), "jax" in sys.modules)
"""


def digest(source):
    total = hashlib.sha256()
    for index in reversed(range(len(source))):
        note = source.annotation(index)
        total.update(note["boxes"].tobytes() + note["matches"].tobytes())
        total.update(repr((note["image_id"], note["phrases"], note["names"])).encode())
        for kind in source.query_kinds:
            asked, matches = source.queries(index, kind)
            total.update(repr(asked).encode() + matches.tobytes())
    total.update(source.image(0).tobytes())
    return total.hexdigest()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("shelves")


@pytest.fixture
def source(cache):
    return ShelfPhrases("val", cache_dir=cache, **OPTIONS)


def _meaning(phrase):
    """What a phrase asks for, read from its words alone."""
    words = phrase.split()
    kinds = [word.removesuffix("s") for word in words if word.removesuffix("s") in KINDS]
    named = [word for word in words if word in COLOURS + FLAVOUR_WORDS]
    assert len(kinds) <= 1 and len(named) <= 1 and kinds + named
    return Meaning(named[0] if named else None, kinds[0] if kinds else None)


def test_same_in_this_process_and_in_another_and_without_jax(source, tmp_path):
    here = digest(source)
    command = [sys.executable, "-W", "error", "-c", _SCRIPT, str(tmp_path)]
    there = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert there == [here, "False"]
    assert digest(pickle.loads(pickle.dumps(source))) == here


def test_matches_are_what_the_phrase_says(source):
    counts, every = dict.fromkeys(source.query_kinds, 0), set(source.phrases)
    for index in range(len(source)):
        note = source.annotation(index)
        labels = source._scene(index)[1]["labels"].tolist()
        things = [source.thing(label) for label in labels]
        assert not source._scene(index)[1]["difficult"].any()
        assert len(note["boxes"]) == len(note["names"]) == len(labels) <= source.most_boxes
        for kind in source.query_kinds:
            asked, matches = source.queries(index, kind)
            counts[kind] += len(asked)
            assert matches.shape == (len(asked), len(labels)) and len(asked) <= 1
            for phrase, row in zip(asked, matches, strict=True):
                meaning = _meaning(phrase)
                assert row.tolist() == [thing.fits(meaning) for thing in things]
                assert not any(thing.disputed(meaning) for thing in things)
                assert row.any() == (kind != "absent")
                assert (meaning in source._held_pairs) == (kind == "pairs")
                assert (phrase in source._divided(meaning)[1]) == (kind == "phrasing")
                assert (meaning.word in FLAVOUR_WORDS) or kind != "flavour"
                assert set(phrase.split()) <= set(source.vocabulary) and phrase in every
                assert Tokenizer(source.vocabulary).check(phrase) == phrase
        assert source.queries(index)[0] == note["phrases"]
    assert counts["standard"] == counts["phrasing"] == counts["absent"] == len(source)
    assert counts["flavour"] > 6 and counts["pairs"] > 0


def test_a_scene_does_not_depend_on_the_others(source, cache):
    longer = ShelfPhrases("val", cache_dir=cache, **OPTIONS | {"num_scenes": 50})
    np.testing.assert_array_equal(longer.annotation(7)["boxes"], source.annotation(7)["boxes"])
    assert longer.annotation(7)["phrases"] == source.annotation(7)["phrases"]
    other = ShelfPhrases("val", cache_dir=cache, phrase_seed=1, **OPTIONS)
    np.testing.assert_array_equal(other.annotation(7)["boxes"], source.annotation(7)["boxes"])
    assert [other.annotation(i)["phrases"] for i in range(12)] != [
        source.annotation(i)["phrases"] for i in range(12)
    ]
    marks = [
        {ShelfPhrases(split, **OPTIONS).scenes.identity(label).mark for label in range(40)}
        for split in ("train", "val", "test")
    ]
    assert not marks[0] & marks[1] and not marks[0] & marks[2] and not marks[1] & marks[2]


def test_kinds_and_flavours_are_those_of_the_class(source):
    for label in range(40):
        identity, thing = source.scenes.identity(label), source.thing(label)
        kinds = {"plate": "sign", "photo": "picture"}
        shape = "can" if identity.shape == "can" else "pack"
        assert thing.kind == kinds.get(identity.kind, shape)
        printed = thing.clear & set(FLAVOUR_WORDS)
        flavour = FLAVOURS[identity.flavour][0].lower()
        shown = flavour != "orange" and thing.kind != "picture"
        assert printed == ({flavour} if shown else set())
        assert not thing.clear & thing.unclear
    assert "orange" in COLOURS and "orange" not in FLAVOUR_WORDS and not set(COLOURS) & set(FLAVOUR_WORDS)


def test_colours_are_those_of_the_picture(source):
    """The measured word against the mean colour of the pixels that are not near grey, or all of them."""
    seen = set()
    for label in range(40):
        front = np.asarray(products.front(source.scenes.identity(label)))
        measured = colours.name(front)
        assert measured == source._colours(label)
        assert source.thing(label).clear & set(COLOURS) == measured.clear
        rgb = front[..., :3][front[..., 3] > 127].astype(float)
        if measured.clear == {"white"}:
            assert np.median(rgb.min(axis=1)) > 120
        if measured.clear == {"black"}:
            assert np.median(rgb.max(axis=1)) < 90
        for channel, word in enumerate(("red", "green", "blue")):
            if measured.clear == {word}:
                lead = rgb[:, channel] - np.delete(rgb, channel, axis=1).mean(axis=1)
                assert np.mean(lead > 20) > 0.35
        seen |= measured.clear
    assert len(seen) >= 5


@pytest.mark.parametrize(
    ("rgb", "clear", "unclear"),
    [
        ((205, 30, 45), {"red"}, set()),
        ((250, 10, 10), {"red"}, set()),
        ((243, 128, 24), {"orange"}, set()),
        ((247, 210, 38), {"yellow"}, set()),
        ((40, 176, 140), {"green"}, set()),
        ((22, 104, 190), {"blue"}, set()),
        ((150, 112, 200), {"purple"}, set()),
        ((235, 120, 160), {"pink"}, {"red"}),
        ((104, 62, 38), {"brown"}, set()),
        ((250, 250, 246), {"white"}, set()),
        ((20, 20, 24), {"black"}, set()),
        ((128, 128, 128), set(), set()),
        ((120, 24, 90), set(), {"purple"}),
        ((0, 170, 190), set(), {"blue"}),
    ],
)
def test_names_of_plain_colours(rgb, clear, unclear):
    found = colours.name(np.full((8, 8, 3), rgb, np.uint8))
    assert found.clear == clear and unclear <= found.unclear
    assert not clear & found.unclear


def test_shares_decide():
    """40 % are enough; from 20 % to 40 % opinions differ; transparent pixels do not count."""
    picture = np.full((10, 10, 4), (250, 250, 250, 255), np.uint8)
    for count, expected in ((4, "clear"), (3, "unclear"), (2, "unclear"), (1, "")):
        picture[:] = (250, 250, 250, 255)
        picture[:count] = (22, 104, 190, 255)
        found = colours.name(picture)
        assert ("blue" in found.clear, "blue" in found.unclear) == (
            expected == "clear",
            expected == "unclear",
        )
    picture[:, 5:, 3] = 0
    picture[:, 5:, :3] = (205, 30, 45)
    assert "red" not in colours.name(picture).clear | colours.name(picture).unclear
    assert colours.name(np.zeros((2, 2, 4), np.uint8)) == (frozenset(), frozenset())


def test_things():
    thing = Thing("can", frozenset({"red", "mint"}), frozenset({"pink"}))
    assert (
        thing.fits(Meaning("red", "can"))
        and thing.fits(Meaning(None, "can"))
        and thing.fits(Meaning("red", None))
    )
    assert thing.fits(Meaning("mint", "can")) and not thing.fits(Meaning("red", "pack"))
    assert not thing.fits(Meaning("pink", "can")) and thing.disputed(Meaning("pink", None))
    assert not thing.disputed(Meaning("pink", "sign")) and not thing.disputed(Meaning(None, "can"))


def test_absent_phrases_in_training(cache):
    source = ShelfPhrases("train", cache_dir=cache, p_absent=1.0, **OPTIONS)
    assert not any(source.annotation(index)["matches"].any() for index in range(12))
    none = ShelfPhrases("train", cache_dir=cache, p_flavour=0.0, holdout_phrasing=0.0, **OPTIONS)
    for index in range(12):
        assert not set(none.annotation(index)["phrases"][0].split()) & set(FLAVOUR_WORDS)
        assert none.queries(index, "phrasing")[0] == []


def test_colours_are_measured_once(cache, source, monkeypatch):
    expected = source.thing(3)
    assert list(source.scenes.folder.glob("colours-v*-00003.json"))
    monkeypatch.setattr(products, "front", None)
    assert ShelfPhrases("val", cache_dir=cache, **OPTIONS).thing(3) == expected


def test_dispatch_batches_and_preview(cache, tmp_path):
    section = {
        "source": "shelves",
        "max_boxes": 4,
        "workers": 0,
        "cache_dir": str(cache),
        "shelves": {key: value for key, value in OPTIONS.items() if key != "num_scenes"} | {"num_train": 5},
        "shelf_phrases": {"p_absent": 1.0, "holdout_pairs": ("red can",)},
    }
    model = {"vocabulary": (), "text_length": 16, "image_size": (96, 96)}
    config = ConfigDict({"system": "crossmodal", "seed": 0, "batch_size": 2, "model": model, "data": section})
    with data.make_train_iterator(config) as iterator:
        batch = next(iterator)
    assert batch["image"].shape == (2, 96, 96, 3) and batch["boxes"].shape == (2, 12, 4)
    assert not batch["aligned"].any() and batch["boxes_valid"].sum(axis=1).min() > 0
    assert len(data.make_phrase_source(config.data, "train")) == 5
    val = data.make_phrase_source(config.data, "val")
    assert val.annotation(0)["matches"].any()
    with Image.open(phrase_preview.write(val, tmp_path, count=2)) as sheet:
        assert sheet.width > 900
    config.model.text_length = 7  # "i want to see the red cans" and 1 are 8
    with pytest.raises(ConfigError, match="model.text_length=7: the longest phrase .* needs 8"):
        data.make_train_iterator(config)


@pytest.mark.parametrize(
    "options",
    [
        {"num_scenes": 0},
        {"phrase_seed": -1},
        {"p_absent": 1.5},
        {"p_flavour": -0.5},
        {"holdout_phrasing": 1.0},
        {"holdout_pairs": ("lemon can",)},
        {"holdout_pairs": ("red",)},
    ],
)
def test_senseless_options_are_one_clear_line(options):
    with pytest.raises(ConfigError, match=next(iter(options))) as caught:
        ShelfPhrases("train", **options)
    assert "\n" not in str(caught.value)


def test_unknown_split_index_and_kind(source):
    for split in ("dev", "seen"):
        with pytest.raises(ConfigError, match="train, val, test"):
            ShelfPhrases(split)
    for call in (source.image, source.annotation, source.queries):
        with pytest.raises(IndexError, match="outside 0..11"):
            call(12)
    with pytest.raises(ConfigError, match="no query kind 'names'"):
        source.queries(0, "names")


def test_every_meaning_has_phrases_of_both_kinds():
    assert len(phrases.MEANINGS) == 10 * 4 + 4 + 10 + 11 * 3
    for meaning in phrases.MEANINGS:
        for phrase in phrases.phrases(meaning):
            assert _meaning(phrase) == meaning
        train, held = phrases._divided(meaning, 0.1)
        assert len(train) > 8 * len(held) > 0
