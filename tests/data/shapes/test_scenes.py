"""`ShapeScenes`: the invariants of the specification, reproducible anywhere, and what phrases ask for."""

import hashlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sm_jax import boxes as box_ops
from sm_jax.data.shapes import ShapeScenes, draw, grammar
from sm_jax.errors import ConfigError

_SCRIPT = """
import sys
from sm_jax.data.shapes import ShapeScenes
from tests.data.shapes.test_scenes import digest
print(digest(ShapeScenes("val", seed=5, num_scenes=4)), [m for m in ("jax", "grain") if m in sys.modules])
"""
SMALL = {"image_size": (96, 128), "count": (2, 5), "size_range": (12, 24)}


def digest(source):
    """One hash over scenes, annotations and every kind of query, read in an order of its own."""
    total = hashlib.sha256()
    for index in reversed(range(len(source))):
        note = source.annotation(index)
        total.update(note["boxes"].tobytes() + note["matches"].tobytes())
        total.update(repr((note["image_id"], note["phrases"], note["names"])).encode())
        total.update(source.image(index).tobytes())
        for kind in source.query_kinds:
            phrases, matches = source.queries(index, kind)
            total.update(repr(phrases).encode() + matches.tobytes())
    return total.hexdigest()


@pytest.mark.parametrize("triangle_box", ["square", "tight"])
def test_invariants_of_the_specification(triangle_box):
    """Spec sec. 6, vector 12."""
    source = ShapeScenes("train", num_scenes=40, triangle_box=triangle_box)
    counts = []
    for index in range(len(source)):
        image, note = source.image(index), source.annotation(index)
        boxes = note["boxes"]
        counts.append(len(boxes))
        assert image.shape == (512, 512, 3) and image.dtype == np.uint8 and boxes.dtype == np.float32
        assert (boxes >= 0).all() and (boxes <= 512).all()
        assert np.triu(box_ops.iou(boxes, boxes), 1).max() == 0
        assert note["matches"].shape == (1, len(boxes)) and note["matches"].any()
        assert len(note["names"]) == len(boxes) and len(note["phrases"]) == 1
        painted = image.any(axis=-1)
        for box, name in zip(boxes.astype(int), note["names"], strict=True):
            part = image[box[1] : box[3], box[0] : box[2]]
            colour, shape = name.split()
            shown = (part == grammar.COLOURS[colour]).all(axis=-1)
            assert (part.any(axis=-1) == shown).all() or shape != "square"
            sides = {"left": shown[:, 0], "right": shown[:, -1], "top": shown[0], "bottom": shown[-1]}
            touched = {side for side, line in sides.items() if line.any()}
            loose = shape == "triangle" and triangle_box == "square"
            assert touched == ({"left", "right"} if loose else set(sides))
            assert box[2] - box[0] in range(48, 81)
            painted[box[1] : box[3], box[0] : box[2]] = False
        assert not painted.any()
        assert set(np.unique(image)) == {0, 255}
    assert 10 <= min(counts) and max(counts) <= 20 and 13 < np.mean(counts) < 17


def test_shapes_cover_what_they_should():
    for side in range(12, 81):
        ratios = {shape: draw.mask(shape, side).mean() for shape in grammar.SHAPES}
        assert ratios["square"] == 1
        assert ratios["circle"] == pytest.approx(np.pi / 4, abs=0.03)
        assert ratios["triangle"] == pytest.approx(3**0.5 / 4, abs=0.05)
        for shape in grammar.SHAPES:
            mask = draw.mask(shape, side)
            np.testing.assert_array_equal(mask, mask[:, ::-1])
        np.testing.assert_array_equal(draw.mask("circle", side), draw.mask("circle", side).T)
        widths = draw.mask("triangle", side).sum(axis=1)
        top, bottom = draw.extent("triangle", side)
        assert (np.diff(widths[top:bottom]) >= 0).all() and 1 <= widths[top] <= 2
        assert top == (side - (bottom - top)) // 2


def test_same_bytes_in_this_process_and_in_another():
    here = digest(ShapeScenes("val", seed=5, num_scenes=4))
    command = [sys.executable, "-c", _SCRIPT]
    there = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split(None, 1)
    assert there[0] == here and there[1].strip() == "[]"
    assert digest(pickle.loads(pickle.dumps(ShapeScenes("val", seed=5, num_scenes=4)))) == here
    assert digest(ShapeScenes("val", seed=6, num_scenes=4)) != here


def test_what_is_drawn_never_changes():
    """Results of trained models are of these scenes; other generators of NumPy would show here."""
    scene = ShapeScenes("test", num_scenes=1)
    assert hashlib.sha256(scene.image(0).tobytes()).hexdigest()[:16] == "3470e49c5ca913af"
    assert digest(scene)[:16] == "8d493fe07de6beaf"


def test_a_scene_depends_on_its_index_only_and_splits_are_disjoint():
    short = ShapeScenes("train", num_scenes=3)
    long = ShapeScenes("train", num_scenes=4000)
    np.testing.assert_array_equal(short.image(2), long.image(2))
    assert (len(long), len(ShapeScenes("val")), len(ShapeScenes("test"))) == (4000, 500, 500)
    seen = [
        source.image(index).tobytes()
        for split in ("train", "val", "test")
        for source in [ShapeScenes(split, num_scenes=60)]
        for index in range(60)
    ]
    assert len(set(seen)) == 180
    other = ShapeScenes("train", p_union=0.5, long_forms=True, holdout_pairs=("red circle",))
    np.testing.assert_array_equal(other.image(2), long.image(2))


def test_matches_are_what_the_phrase_says():
    options = {"p_union": 0.4, "long_forms": True, "p_absent": 0.2, "holdout_pairs": ("blue triangle",)}
    source = ShapeScenes("train", num_scenes=150, **options)
    unions = absent = 0
    for index in range(150):
        note = source.annotation(index)
        asked = dict(zip(note["phrases"], note["matches"], strict=True))
        for kind in source.query_kinds:
            phrases, matches = source.queries(index, kind)
            assert matches.shape == (len(phrases), len(note["names"]))
            asked |= dict(zip(phrases, matches, strict=True))
        for phrase, row in asked.items():
            assert row.tolist() == grammar.matches(phrase, note["names"])
            assert set(phrase.split()) <= set(source.vocabulary) and len(phrase.split()) <= 15
        unions += "and" in note["phrases"][0].split()
        absent += not note["matches"].any()
    assert 20 < unions < 60 and 15 < absent < 50


def test_query_kinds():
    source = ShapeScenes("val", num_scenes=200, holdout_pairs=("blue triangle", "red circle"))
    held = [grammar.Meaning("blue", "triangle"), grammar.Meaning("red", "circle")]
    trained = {p for m in grammar.MEANINGS if m not in held for p in grammar.divided(m, 0.1)[0]}
    unseen = {p for m in grammar.MEANINGS if m not in held for p in grammar.divided(m, 0.1)[1]}
    counts = dict.fromkeys(source.query_kinds, 0)
    for index in range(200):
        names = source.annotation(index)["names"]
        for kind in source.query_kinds:
            phrases, matches = source.queries(index, kind)
            counts[kind] += len(phrases)
            for phrase, row in zip(phrases, matches, strict=True):
                assert (phrase in trained) == (kind in ("standard", "absent"))
                assert (phrase in unseen) == (kind == "phrasing")
                assert (grammar.parse(phrase)[0] in held) == (kind == "pairs")
                assert row.any() == (kind != "absent")
            if kind == "pairs":
                assert bool(phrases) == bool({"blue triangle", "red circle"} & set(names))
    assert counts["standard"] == counts["phrasing"] == 200
    assert 180 < counts["pairs"] < 200 and 120 < counts["absent"] < 190
    phrases, matches = ShapeScenes("val").queries(0, "pairs")
    assert phrases == [] and matches.shape == (0, len(ShapeScenes("val").annotation(0)["names"]))


@pytest.mark.parametrize("share", [0.3, 0.99])
def test_neither_part_of_a_union_is_a_held_out_phrase(share):
    source = ShapeScenes("train", **SMALL, p_union=1.0, holdout_phrasing=share, num_scenes=200)
    held = {phrase for meaning in grammar.MEANINGS for phrase in grammar.divided(meaning, share)[1]}
    phrases = [source.annotation(index)["phrases"][0] for index in range(200)]
    assert not held & {part for phrase in phrases for part in phrase.split(" and ")}
    assert share > 0.9 or sum("and" in phrase.split() for phrase in phrases) > 50


@pytest.mark.parametrize("unions", [0.0, 1.0])
def test_phrases_are_those_that_can_be_asked(unions):
    options = SMALL | {"p_union": unions, "holdout_pairs": ("red circle",), "num_scenes": 60}
    every = set(ShapeScenes("train", **options).phrases)
    asked = set()
    for split in ("train", "val"):
        source = ShapeScenes(split, **options)
        assert set(source.phrases) == every and len(source.phrases) == len(every)
        for index in range(len(source)):
            asked |= {phrase for kind in source.query_kinds for phrase in source.queries(index, kind)[0]}
    joined = {phrase for phrase in asked if "and" in phrase.split()}
    assert asked - joined < every and bool(joined) == bool(unions)
    assert max(len(p.split()) for p in every) == (11 if unions else 7)
    assert max(len(p.split()) for p in joined | {""}) <= 11 and all(grammar.parse(p) for p in every)


def test_shares_of_noun_phrases():
    """Half colour and noun, a quarter each noun or colour: 17 % and 38 % of the objects are meant."""
    source = ShapeScenes("train", num_scenes=800)
    kinds, shares = [], []
    for index in range(800):
        note = source.annotation(index)
        meaning = grammar.parse(note["phrases"][0])[0]
        kinds.append((meaning.colour is None) + 2 * (meaning.shape is None))
        shares.append(note["matches"].mean())
    kinds, shares = np.array(kinds), np.array(shares)
    assert np.bincount(kinds) / 800 == pytest.approx([0.5, 0.25, 0.25], abs=0.05)
    assert shares[kinds == 0].mean() == pytest.approx(0.17, abs=0.03)
    assert shares[kinds > 0].mean() == pytest.approx(0.38, abs=0.03)


def test_absent_scenes():
    source = ShapeScenes("train", num_scenes=100, p_absent=1.0)
    for index in range(100):
        note = source.annotation(index)
        assert not note["matches"].any() and 10 <= len(note["names"]) <= 20
    asked = {grammar.parse(source.annotation(index)["phrases"][0])[0] for index in range(100)}
    assert len(asked) > 12


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    sides=st.lists(st.integers(4, 30), min_size=1, max_size=8),
    max_iou=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
def test_places_keep_their_distance(seed, sides, max_iou):
    placed = draw.place(np.random.default_rng(seed), np.array(sides), (110, 140), max_iou=max_iou)
    assert (
        placed.shape == (len(sides), 4) and (placed[:, 2:] - placed[:, :2] == np.array(sides)[:, None]).all()
    )
    assert (placed >= 0).all() and (placed[:, [0, 2]] <= 140).all() and (placed[:, [1, 3]] <= 110).all()
    assert np.triu(box_ops.iou(placed, placed), 1).max() <= max_iou + 1e-6


def test_later_shapes_cover_earlier_ones():
    options = SMALL | {"image_size": (24, 24), "size_range": (24, 24), "count": (2, 2)}
    source = ShapeScenes("train", num_scenes=20, max_iou=1.0, **options)
    for index in range(20):
        colour, shape = source.annotation(index)["names"][-1].split()
        shown = (source.image(index) == grammar.COLOURS[colour]).all(axis=-1)
        assert shown[draw.mask(shape, 24)].all()


def test_the_full_canvas_still_works():
    source = ShapeScenes("train", num_scenes=10, count=(20, 20), size_range=(80, 80))
    for index in range(10):
        assert len(source.annotation(index)["boxes"]) == source.most_boxes == 20


@pytest.mark.parametrize(
    "options",
    [
        {"seed": -1},
        {"num_scenes": 0},
        {"size_range": (80, 48)},
        {"image_size": (64, 512)},
        {"count": (0, 3)},
        {"max_iou": 1.5},
        {"triangle_box": "round"},
        {"p_absent": -0.1},
        {"p_union": 2},
        {"holdout_phrasing": 1.0},
        {"holdout_pairs": ("blue",)},
        {"holdout_pairs": ("yellow star",)},
        {"holdout_pairs": tuple(f"{c} {s}" for c in grammar.COLOURS for s in grammar.SHAPES)},
    ],
)
def test_senseless_options_are_one_clear_line(options):
    with pytest.raises(ConfigError, match=next(iter(options))) as caught:
        ShapeScenes("train", **options)
    assert "\n" not in str(caught.value)


def test_unknown_split_index_and_kind_and_too_many_shapes():
    with pytest.raises(ConfigError, match="train, val, test"):
        ShapeScenes("dev")
    source = ShapeScenes("train", num_scenes=2, **SMALL)
    for call in (source.image, source.annotation, source.queries):
        for index in (-1, 2):
            with pytest.raises(IndexError, match="outside 0..1"):
                call(index)
    with pytest.raises(ConfigError, match="no query kind 'pairz'"):
        source.queries(0, "pairz")
    crowded = ShapeScenes("train", count=(40, 40), size_range=(20, 20), image_size=(100, 100))
    with pytest.raises(ConfigError, match="40 shapes .* do not fit into 100x100 .* fewer or smaller"):
        crowded.image(0)
