"""Batches of images with phrases: pure functions of (seed, k), fitted images, a phrase each, damaged rows."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from sm_jax import data
from sm_jax.data import crossmodal, images, transforms
from sm_jax.data.phrases import SentenceVectors
from sm_jax.data.shapes import ShapeScenes, grammar
from sm_jax.errors import ConfigError, DataError, ImageError, TextError
from sm_jax.text import PAD, Tokenizer
from tests.data.phrase_maker import document, entry

SHAPES = {"image_size": (96, 128), "count": (2, 5), "size_range": (12, 24), "num_train": 10}


def _config(source="shapes", *, shapes=None, model=None, **changes):
    section = {"source": str(source), "max_boxes": 6, "workers": 0, "shapes": SHAPES | (shapes or {})}
    model = {"vocabulary": (), "text_length": 16, "image_size": (64, 64)} | (model or {})
    fields = {"system": "crossmodal", "seed": 3, "batch_size": 4, "model": model}
    return ConfigDict(fields | {"data": section | changes})


def _take(config, count, **options):
    with data.make_train_iterator(config, **options) as iterator:
        return [next(iterator) for _ in range(count)]


def _equal(first, second):
    assert list(first) == list(second)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def _builder(source=None, *, encoder=None, options=None, **rest):
    source = source or ShapeScenes(
        "train", num_scenes=10, image_size=(96, 128), count=(2, 5), size_range=(12, 24)
    )
    settings = {"batch_size": 4, "image_size": (64, 64), "max_boxes": 6} | (options or {})
    return crossmodal.BatchBuilder(
        source, crossmodal.BatchOptions(**settings), encoder or Tokenizer(source.vocabulary), **rest
    )


class Fake:
    """Plain pictures, some damaged. Picture i has i % 6 boxes, its phrases mean the first or the others."""

    query_kinds = ("standard",)
    vocabulary = ("one", "rest")
    most_boxes = 5

    def __init__(self, count=6, damaged=()):
        self.count, self.damaged = count, damaged

    def __len__(self):
        return self.count

    def image(self, index):
        if index in self.damaged:
            raise ImageError(f"{index}.png: damaged")
        return np.full((40, 80, 3), index, np.uint8)

    def annotation(self, index):
        count = index % 6
        boxes = np.array([[8 * i, 4, 8 * i + 8, 20] for i in range(count)], np.float32).reshape(-1, 4)
        first = np.arange(count) == 0
        matches = np.stack([first, ~first])
        names = {"phrases": ["one", "rest"], "matches": matches, "names": [""] * count}
        return names | {"image_id": f"picture {index}", "size": (40, 80), "boxes": boxes}


def test_arrays_of_a_batch():
    batch = _take(_config(), 1)[0]
    expected = {
        "aligned": ((4, 6), np.bool_),
        "boxes": ((4, 6, 4), np.float32),
        "boxes_valid": ((4, 6), np.bool_),
        "image": ((4, 64, 64, 3), np.float32),
        "step": ((), np.int32),
        "tokens": ((4, 16), np.int32),
        "valid": ((4,), np.bool_),
    }
    assert {name: (value.shape, value.dtype.type) for name, value in batch.items()} == {
        name: (shape, np.dtype(kind).type) for name, (shape, kind) in expected.items()
    }
    assert batch["valid"].all() and batch["step"] == 0


def test_rows_are_the_scenes_and_their_phrases():
    """96x128 fitted into 64x64: half the size, black below after normalisation means zero."""
    builder = _builder()
    picks = [row for k in range(5) for row in crossmodal.order.picks(0, k, count=10, size=4)]
    assert sorted(picks[:10]) == list(range(10)) == sorted(picks[10:])
    tokenizer = Tokenizer(builder.source.vocabulary)
    for k in range(3):
        batch, skipped = builder.finish(builder[k])
        assert skipped == [] and batch["step"] == k
        for row in range(4):
            note = builder.source.annotation(picks[4 * k + row])
            count = len(note["boxes"])
            np.testing.assert_array_equal(batch["tokens"][row], tokenizer.encode(note["phrases"])[0])
            np.testing.assert_allclose(batch["boxes"][row, :count], note["boxes"] / 2)
            assert batch["boxes_valid"][row].tolist() == [True] * count + [False] * (6 - count)
            assert batch["aligned"][row, :count].tolist() == note["matches"][0].tolist()
            assert not batch["aligned"][row, count:].any() and not batch["boxes"][row, count:].any()
            image = batch["image"][row]
            assert not image[48:].any() and image[:48].any()
            assert grammar.matches(note["phrases"][0], note["names"]) == note["matches"][0].tolist()


def test_workers_change_nothing_and_the_state_resumes():
    expected = _take(_config(), 5)
    for first, second in zip(expected, _take(_config(workers=1), 5), strict=True):
        _equal(first, second)
    with data.make_train_iterator(_config()) as iterator:
        next(iterator), next(iterator)
        state = iterator.get_state()
    with data.make_train_iterator(_config()) as iterator:
        iterator.set_state(state)
        _equal(next(iterator), expected[2])
    assert not np.array_equal(expected[0]["boxes"], expected[1]["boxes"])


def test_processes_build_the_same_rows():
    whole, halves = _builder(seed=7), [_builder(seed=7, process_index=i, process_count=2) for i in (0, 1)]
    for k in (0, 3):
        parts = [half.finish(half[k])[0] for half in halves]
        for name, value in whole.finish(whole[k])[0].items():
            if name != "step":
                np.testing.assert_array_equal(value, np.concatenate([part[name] for part in parts]))
    with pytest.raises(ConfigError, match="batch_size=4 does not divide over 3"):
        _builder(process_count=3)


def test_one_of_several_phrases_is_drawn(tmp_path):
    batches = _take(_config(document(tmp_path, [entry(i, split="train") for i in range(4)])), 12)
    texts = np.concatenate([batch["tokens"] for batch in batches])
    aligned = np.concatenate([batch["aligned"] for batch in batches]).sum(axis=1)
    assert len({tuple(row) for row in texts.tolist()}) == 3 and set(aligned.tolist()) == {0, 1, 2}
    lengths = (texts != PAD).sum(axis=1)
    assert dict(zip(lengths.tolist(), aligned.tolist(), strict=True)) == {3: 2, 4: 1, 5: 0}


def test_boxes_that_are_meant_stay():
    builder = _builder(Fake(), options={"max_boxes": 2, "batch_size": 6})
    rest = Tokenizer(Fake.vocabulary).encode("rest")[0]
    counts = set()
    for k in range(4):
        batch, _ = builder.finish(builder[k])
        for row, index in enumerate(crossmodal.order.picks(0, k, count=6, size=6)):
            meant = max(0, index - 1) if (batch["tokens"][row] == rest).all() else min(index, 1)
            assert batch["aligned"][row].sum() == min(meant, 2)
            assert batch["boxes_valid"][row].sum() == min(index, 2)
            counts.add(meant)
    assert counts == {0, 1, 2, 3, 4}


def test_enough_places_for_the_boxes(tmp_path):
    path = document(tmp_path, [entry(0, split="train")])
    assert _take(_config(path, max_boxes=1), 1)[0]["boxes"].shape == (4, 3, 4)


def test_flips():
    plain, mirrored = _builder(Fake()), _builder(Fake(), options={"flips": True})
    count = 0
    for k in range(8):
        one, other = (builder.finish(builder[k])[0] for builder in (plain, mirrored))
        for row in range(4):
            valid = one["boxes_valid"][row]
            turned = 64 - one["boxes"][row][valid][:, [2, 1, 0, 3]] * [1, 0, 1, 0]
            turned[:, [1, 3]] = one["boxes"][row][valid][:, [1, 3]]
            same = np.allclose(one["boxes"][row], other["boxes"][row])
            count += not same
            assert same or np.allclose(other["boxes"][row][valid], turned)
    assert 5 < count < 25


def test_a_damaged_picture_is_replaced_and_counted():
    builder = _builder(Fake(200, damaged={3}), options={"batch_size": 50})
    found = [builder.finish(builder[k]) for k in range(4)]
    assert [entry for _, skipped in found for entry in skipped] == [("image", "picture 3", "3.png: damaged")]
    assert all(batch["valid"].all() for batch, _ in found)
    everything = _builder(Fake(3, damaged={0, 1, 2}))
    batch, skipped = everything.finish(everything[0])
    assert not batch["valid"].any() and not batch["boxes_valid"].any() and len(skipped) == 44
    assert not batch["image"].any()


def test_too_many_damaged_pictures_end_the_run(tmp_path):
    entries = [entry(i, split="train") for i in range(4)]
    path = document(tmp_path, [*entries, entry(4, split="val")])
    (tmp_path / "photos" / "2.png").write_bytes(b"x")
    with data.make_train_iterator(_config(path)) as iterator:
        with pytest.raises(DataError, match="1 of 4 images cannot be read, more than 1%"):
            for _ in range(3):
                next(iterator)


def test_stored_features_take_the_place_of_pixels():
    class Trunk:
        def __getitem__(self, index):
            if index == 2:
                raise ImageError("2.png: it could not be read")
            return np.full((2, 2, 5), index, np.float32)

    builder = _builder(Fake(damaged=range(6)), options={"batch_size": 6}, trunk=Trunk())
    batch, skipped = builder.finish(builder[0])
    assert batch["trunk"].shape == (6, 2, 2, 5) and batch["trunk"].dtype == np.float16
    assert "image" not in batch and [entry[1] for entry in skipped] == ["picture 2"]
    for row in range(6):  # picture i has i boxes
        assert batch["boxes_valid"][row].sum() == batch["trunk"][row, 0, 0, 0]
    assert batch["boxes"].max() == pytest.approx(5 * 8 * 64 / 80)
    with pytest.raises(ConfigError, match="data.flips: stored features"):
        _builder(options={"flips": True}, trunk=Trunk())
    batch = _take(_config(), 1, trunk=np.zeros((10, 2, 2, 5), np.float16))[0]
    assert batch["trunk"].dtype == np.float16


def test_given_vectors_of_phrases(tmp_path):
    path, vectors = document(tmp_path, [entry(i, split="train") for i in range(4)]), tmp_path / "own.npz"
    phrases = ["the cats", "find the dog", "show me a horse"]
    features = np.arange(6.0).reshape(3, 2)
    np.savez(vectors, phrases=np.array(phrases), features=features)
    config = _config(path, model={"text_encoder": "features"}, text_features=str(vectors))
    batch = _take(config, 1)[0]
    assert batch["text_features"].shape == (4, 2) and batch["text_features"].dtype == np.float32
    assert "tokens" not in batch and set(batch["text_features"][:, 0].tolist()) <= {0, 2, 4}
    encoder = pickle.loads(pickle.dumps(SentenceVectors(vectors)))
    assert encoder.encode(phrases[::-1]).tolist() == features[::-1].tolist() and encoder.width == 2
    assert encoder.encode([]).shape == (0, 2) and encoder.unknown("x") == ["x"]
    np.savez(vectors, phrases=np.array(phrases[:2]), features=features[:2])
    with pytest.raises(TextError, match="'show me a horse': there is no vector for it"):
        _take(config, 1)
    config.data.text_features = ""
    with pytest.raises(ConfigError, match="data.text_features"):
        _take(config, 1)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"phrases": np.array(["a"])}, "no .npz file with 'phrases' and 'features'"),
        ({"phrases": np.array(["a", "b"]), "features": np.zeros((1, 3))}, r"must be numbers \(2, d\)"),
        ({"phrases": np.array([1]), "features": np.zeros((1, 3))}, "must be a list of texts"),
        ({"phrases": np.array(["a"]), "features": np.full((1, 3), np.nan)}, "not finite"),
        ({"phrases": np.array(["a"], object), "features": np.zeros((1, 3))}, "no .npz file"),
    ],
)
def test_files_of_vectors_that_cannot_be_used(tmp_path, arrays, says):
    np.savez(tmp_path / "v.npz", **arrays)
    with pytest.raises(DataError, match=says) as caught:
        SentenceVectors(tmp_path / "v.npz")
    assert "\n" not in str(caught.value)
    for content in (None, b"", b"hello"):
        if content is not None:
            (tmp_path / "w.npz").write_bytes(content)
        with pytest.raises(DataError, match="w.npz"):
            SentenceVectors(tmp_path / "w.npz")


def test_phrases_that_the_model_cannot_read(tmp_path):
    path = document(tmp_path, [entry(0, split="train")])
    with pytest.raises(
        ConfigError, match="model.text_length=4: .* needs 5 .* train with model.text_length=5"
    ):
        _take(_config(path, model={"text_length": 4}), 1)
    with pytest.raises(TextError, match="'show me a horse': the model knows none of its words"):
        _take(_config(path, model={"vocabulary": ("the", "cats", "dog")}), 1)


def test_generated_phrases_that_would_be_cut_are_refused():
    with pytest.raises(ConfigError, match="model.text_length=6: .* 'train' needs 8 .* model.text_length=8"):
        data.make_train_iterator(_config(model={"text_length": 6}))
    with pytest.raises(ConfigError, match="model.text_length=8: .* needs 12 "):
        data.make_train_iterator(_config(shapes={"p_union": 0.1}, model={"text_length": 8}))


def _with_evaluation(config, *splits):
    return ConfigDict(config.to_dict() | {"eval_every": 10, "eval": {"splits": splits}})


def test_held_out_phrases_are_checked_before_training(tmp_path, monkeypatch):
    """Long ones, ones without a vector, a split that is not there; unknown words are left to evaluation."""
    monkeypatch.setattr(images, "read_image", None)  # no picture is decoded for it
    held_out = [{"text": "zebras", "ids": [0]}]
    path = document(tmp_path, [entry(0, split="train"), entry(1, split="val", phrases=held_out)])
    data.make_train_iterator(_with_evaluation(_config(path, model={"text_length": 5}), "val"))
    held_out[0]["text"] = "a zebra that nobody ever trained on"
    document(tmp_path, [entry(0, split="train"), entry(1, split="val", phrases=held_out)])
    config = _config(path, model={"text_length": 5})
    data.make_train_iterator(config)  # without evaluation nobody reads it
    with pytest.raises(ConfigError, match="longest phrase of split 'val' needs 8"):
        data.make_train_iterator(_with_evaluation(config, "val"))
    with pytest.raises(DataError, match="no split 'night'"):
        data.make_train_iterator(_with_evaluation(config, "night"))
    phrases = np.array(["the cats", "find the dog", "show me a horse"])
    np.savez(tmp_path / "v.npz", phrases=phrases, features=np.eye(3))
    vectors = {"text_encoder": "features"}
    config = _config(path, model=vectors, text_features=str(tmp_path / "v.npz"))
    with pytest.raises(TextError, match="'a zebra that nobody ever trained on': there is no vector for it"):
        data.make_train_iterator(_with_evaluation(config, "val"))


def test_the_step_of_a_batch_is_the_optimizers():
    steps = {}
    for accumulate in (1, 3):
        config = ConfigDict(_config().to_dict() | {"optim": {"accumulate": accumulate}})
        steps[accumulate] = [int(batch["step"]) for batch in _take(config, 7)]
    assert steps == {1: list(range(7)), 3: [0, 0, 0, 1, 1, 1, 2]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"workers": -1}, "data.workers"),
        ({"source": ""}, "data.source"),
        ({"max_boxes": 0, "source": "shapes", "shapes": {"count": (0, 0)}}, "count"),
        ({"shapes": {"image_size": (8, 8)}}, "image_size"),
    ],
)
def test_config_errors(changes, words):
    with pytest.raises(ConfigError, match=words):
        data.make_train_iterator(_config(**changes))
    for options in ({"batch_size": 0}, {"max_boxes": 0}, {"image_size": (16, 64)}, {"accumulate": 0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            crossmodal.BatchOptions(**options)


def test_only_training_scenes_lack_what_is_asked_for():
    section = _config(shapes={"p_absent": 1.0, "num_val": 4}).data
    train, val = (data.make_phrase_source(section, split) for split in ("train", "val"))
    assert not train.annotation(0)["matches"].any() and val.annotation(0)["matches"].any()
    with pytest.raises(ConfigError, match="no split 'dev'"):
        data.make_phrase_source(section, "dev")


@given(st.integers(1, 2000), st.integers(1, 2000), st.sampled_from([(64, 64), (512, 512), (96, 160)]))
def test_fit(height, width, target):
    """One side fills the target, the aspect stays up to rounding, and the factors are exact."""
    size, scale = crossmodal.fit((height, width), target)
    assert (size[0] == target[0] or size[1] == target[1]) and size[0] <= target[0] and size[1] <= target[1]
    np.testing.assert_allclose(scale, [size[1] / width, size[0] / height], rtol=1e-6)
    if min(size) > 20:
        assert scale[0] == pytest.approx(scale[1], rel=0.05)


def test_prepare():
    image = np.random.default_rng(0).integers(0, 256, (30, 60, 3), dtype=np.uint8)
    canvas, scale = crossmodal.prepare(image, (64, 60))
    assert canvas.shape == (64, 60, 3) and canvas.dtype == np.float32 and scale.tolist() == [1, 1]
    np.testing.assert_array_equal(canvas[:30], transforms.normalize(image))
    assert not canvas[30:].any()
