"""Buckets, chunks and top-k change nothing but the number of programs; with a fake network."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sm_jax.data import transforms
from sm_jax.systems.os2d import model
from sm_jax.systems.os2d.level import flatten_output
from sm_jax.systems.os2d.predict import Parts, Predictor, bucket_size, pad_to, parts
from tests.systems.os2d.fake import PARTS, VARIABLES, Output, scene

RED, BLUE = (255, 40, 40), (40, 40, 255)


@functools.cache
def _predictor(**options):
    """Shared, so that programs are made once."""
    return Predictor(PARTS, **options)


def _templates(predictor, *colours):
    pictures = [np.full((32, 40, 3), colour, np.uint8) for colour in colours]
    return np.stack([predictor.encode(VARIABLES, transforms.normalize(p)) for p in pictures])


def _levels(image, steps=(1, 2)):
    return [transforms.normalize(np.ascontiguousarray(image[::s, ::s])) for s in steps]


def _detect(predictor, image, colours=(RED,), **options):
    templates = _templates(predictor, *colours)
    options = {"class_ids": range(len(colours)), "image_size": image.shape[:2], **options}
    found = predictor.detect(VARIABLES, _levels(image), templates, **options)
    best = found.pop("best")  # per template; everything else is per detection
    above = np.array(
        [np.max(found["scores"][found["template"] == t], initial=-np.inf) for t in range(len(best))]
    )
    assert np.all(best >= above)
    return found


def _same(a, b, atol=1e-5):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_allclose(a[key], b[key], atol=atol, err_msg=key)


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([16, 64, 128]))
def test_bucket_is_the_next_multiple(height, width, step):
    got = bucket_size((height, width), step)
    assert all(
        side % step == 0 and 0 <= side - real < step for side, real in zip(got, (height, width), strict=True)
    )


def test_pad_to_adds_zeros_below_and_right():
    image = np.ones((2, 3, 3), np.float32)
    padded = pad_to(image, (4, 8))
    assert padded.shape == (4, 8, 3) and padded.sum() == 18 and padded[:2, :3].all()


@pytest.mark.parametrize("size", [(130, 200), (100, 77), (17, 300)])
def test_padding_does_not_change_results(size):
    image = scene(np.random.default_rng(0), size, [(16, 0)])
    small, large = (_detect(_predictor(step=step, top_k=None), image) for step in (16, 128))
    assert len(small["scores"])
    _same(small, large, atol=1e-4)


def test_objects_are_found_and_labelled():
    rng = np.random.default_rng(1)
    image = scene(rng, (160, 240), [(16, 16), (160, 96)])
    image[64:112, 64:112] = BLUE
    found = _detect(_predictor(step=64), image, (BLUE, RED), class_ids=[7, 5], score_threshold=0.7)
    assert set(found["labels"].tolist()) == {5, 7}
    assert np.array_equal(found["template"], (found["labels"] == 5).astype(int))
    centres = (found["boxes"][:, :2] + found["boxes"][:, 2:]) / 2
    for label, want in ((7, [(88, 88)]), (5, [(40, 40), (184, 120)])):
        mine = centres[found["labels"] == label]
        distance = np.abs(mine[:, None] - np.array(want)[None]).max(-1)
        assert distance.min(axis=0).max() < 36 and distance.min(axis=1).max() < 40


@pytest.mark.parametrize(
    "options", [{}, {"max_detections": 3}, {"score_threshold": 0.3}, {"across_classes": True}]
)
@pytest.mark.parametrize("top_k", [1, 40])
def test_top_k_never_changes_results(options, top_k):
    image = scene(np.random.default_rng(2), (160, 256), [(16, 16), (160, 96)])
    fast, full = (_detect(_predictor(step=64, top_k=k), image, (RED, BLUE), **options) for k in (top_k, None))
    _same(fast, full)


@pytest.mark.parametrize("chunk", [1, 2, 8])
def test_chunks_of_classes_do_not_change_results(chunk):
    image = scene(np.random.default_rng(3), (100, 120), [(16, 16)])
    colours = (RED, BLUE, (0, 255, 0), (255, 255, 0), RED)
    options = {"class_ids": [0, 1, 2, 1, 0], "nms": "exact"}
    one, other = (_detect(_predictor(step=64, chunk=c), image, colours, **options) for c in (16, chunk))
    order = [np.lexsort((found["template"], -found["scores"], found["labels"])) for found in (one, other)]
    _same({k: v[order[0]] for k, v in one.items()}, {k: v[order[1]] for k, v in other.items()})


def test_published_suppression_sees_every_candidate():
    image = scene(np.random.default_rng(4), (100, 120), [(16, 16)])
    fast, full = (_detect(_predictor(step=64, top_k=k), image, nms="chunked") for k in (2, None))
    _same(fast, full)


def test_number_of_programs_is_bounded_for_any_mix_of_sizes():
    rng = np.random.default_rng(5)
    predictor = Predictor(PARTS, step=64, chunk=4)
    sizes = [(int(h), int(w)) for h, w in rng.integers(33, 128, (12, 2))]
    buckets = set()
    for size in sizes:
        image = scene(rng, size, [])
        count = int(rng.integers(1, 7))
        _detect(predictor, image, [(RED, BLUE)[i % 2] for i in range(count)])
        buckets |= {
            bucket_size(level.shape[:2], 64) for level in _levels(image) if min(level.shape[:2]) >= 17
        }
    assert len(buckets) <= 4 < len(set(sizes))
    assert predictor.compiles["extract"] == len(buckets)
    assert predictor.compiles["head"] <= 3 * len(buckets)  # chunks of 1, 2 and 4
    assert predictor.compiles["encode"] == 1
    before = dict(predictor.compiles)
    _detect(predictor, image, [(RED, BLUE)[i % 2] for i in range(count)])
    assert dict(predictor.compiles) == before


def test_levels_too_small_are_skipped_and_none_at_all_finds_nothing():
    image = scene(np.random.default_rng(6), (16, 200), [])
    assert len(_detect(_predictor(step=64), image)["scores"]) == 0
    assert len(_detect(_predictor(step=64), scene(np.random.default_rng(6), (20, 200), []))["scores"])


def test_a_network_gone_wrong_gives_no_detection_instead_of_nan():
    def broken(*args):
        output = PARTS.head(*args)
        return output._replace(
            scores=output.scores.at[..., ::2].set(jnp.nan), offsets=output.offsets * jnp.nan
        )

    image = scene(np.random.default_rng(7), (100, 120), [])
    found = _detect(Predictor(Parts(PARTS.encode, PARTS.extract, broken), step=64), image)
    assert len(found["scores"]) == 0


@pytest.mark.parametrize("options", [{"step": 8}, {"step": 100}, {"chunk": 3}, {"chunk": 0}])
def test_bad_options(options):
    with pytest.raises(ValueError, match="must be"):
        Predictor(PARTS, **options)


def test_shapes_of_a_flattened_level():
    b, c, h, w = 2, 3, 4, 5
    output = Output(jnp.zeros((b, c, h, w)), jnp.zeros((b, c, h, w, 4)), jnp.zeros((b, c, h, w, 4, 2)))
    sizes = jnp.array([[4, 5], [2, 3]]), jnp.array([[64, 80], [30, 40]])
    flat = jax.eval_shape(flatten_output, output, *sizes)
    assert {k: v.shape for k, v in flat.items()} == {
        "scores": (b, c, 20),
        "boxes": (b, c, 20, 4),
        "corners": (b, c, 20, 4, 2),
    }
    valid = np.isfinite(flatten_output(output, *sizes)["scores"][:, 0]).sum(axis=-1)
    assert valid.tolist() == [20, 6]


@pytest.mark.parametrize("simplified,inverse", [(True, False), (False, True)])
def test_windows_equal_the_untrained_network_and_take_the_shape_of_the_query(simplified, inverse):
    config = model.ModelConfig(simplified=simplified, inverse=inverse)
    rng = np.random.default_rng(8)
    features = jnp.asarray(rng.random((1, 6, 7, 5), np.float32))
    template = rng.random((2, 15, 15, 5)).astype(np.float32)
    template = jnp.asarray(template / np.linalg.norm(template, axis=-1, keepdims=True))
    size = jnp.array([[6, 5]], jnp.int32)
    net = jax.jit(model.transform_net(config).init)(jax.random.key(0), jnp.zeros((1, 1, 1, 225)))
    variables = {kind: {"transform": tree} for kind, tree in net.items()}
    made = parts(config, window=True)
    window = jax.jit(made.window)
    want = jax.jit(made.head)(variables, features, size, template)
    got = window(variables, features, size, template, jnp.ones((2, 2)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), got, want)
    got = window(variables, features, size, template, jnp.array([[2.0, 0.5], [1.0, 1.0]]))
    sides = np.asarray(got.boxes[..., 2:] - got.boxes[..., :2])
    np.testing.assert_allclose(sides[0, 0], np.broadcast_to([480, 120], sides[0, 0].shape), rtol=1e-4)
    np.testing.assert_allclose(sides[0, 1], 240, rtol=1e-4)
    np.testing.assert_allclose(got.scores[0, 1], want.scores[0, 1], atol=1e-5)
    assert parts(config).window is None
    square = parts(dataclasses.replace(config, window="square"))
    np.testing.assert_array_equal(square.layout([(30, 90), (5, 4)]), np.ones((2, 2)))
    got = jax.jit(square.window)({}, features, size, template, jnp.ones((2, 2)))
    np.testing.assert_allclose(got.scores, want.scores, atol=1e-5)


def test_the_best_score_of_each_template_is_told_whatever_the_threshold():
    image = scene(np.random.default_rng(4), (100, 120), [(16, 16)])
    low, high = (
        _predictor(step=64).detect(
            VARIABLES,
            _levels(image),
            _templates(_predictor(step=64), RED, BLUE),
            class_ids=[0, 1],
            image_size=image.shape[:2],
            score_threshold=threshold,
        )
        for threshold in (-1.0, 2.0)
    )
    assert not len(high["scores"]) and len(low["scores"])
    np.testing.assert_array_equal(high["best"], low["best"])
    for template in (0, 1):
        assert low["best"][template] == low["scores"][low["template"] == template].max()


def test_progress_counts_every_level_and_match_once():
    image = scene(np.random.default_rng(5), (100, 120), [(16, 16)])
    calls = []
    _detect(
        _predictor(step=64, chunk=2),
        image,
        (RED, BLUE, RED),
        progress=lambda *call: calls.append(call),
    )
    assert calls[:2] == [("levels", 1, 0), ("levels", 2, 0)]
    what, done, total = zip(*calls[2:], strict=True)
    assert set(what) == {"matches"} and len(set(total)) == 1 and done[-1] == total[0]
    assert np.all(np.diff(done) > 0)
