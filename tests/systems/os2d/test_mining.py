"""Mining on one image against loops over every class, anchor and level."""

import dataclasses

import jax
import numpy as np
import pytest

from sm_jax import boxes
from sm_jax.systems.os2d import mining, objective
from tests.systems.os2d.fake import Output

MARGINS = {"negative_margin": 0.4, "positive_margin": 0.7}


def crops_by_hand(centre, size, crop):
    """One axis of a crop as the specification words it."""
    start = centre - crop / 2
    start = 16 * int(start // 16) if start > 0 else 0
    beyond = int(np.floor(start + crop - size))
    if beyond > 0:
        shift = 16 * int(np.ceil(beyond / 16))
        start = start - shift if start - shift >= 0 else 0
    return start, start + crop


@pytest.mark.parametrize(
    ("centre", "size", "expected"),
    [
        (104, 1000, (0, 600)),  # 104 - 300 is negative
        (408, 1000, (96, 696)),  # 108 floored to a multiple of 16
        (696, 1000, (384, 984)),  # 396 -> 384
        (840, 1000, (400, 1000)),  # 540 -> 528, 128 beyond: shifted by 128
        (888, 1010, (400, 1000)),  # 588 -> 576, 166 beyond: shifted by 176
        (456, 610, (0, 600)),  # 156 -> 144, 134 beyond: shifted by 144
        (472, 601, (0, 600)),  # 172 -> 160, 159 beyond: shifted by 160
        (328, 500, (0, 600)),  # smaller than the crop: reaches beyond the image
    ],
)
def test_crops_worked_by_hand(centre, size, expected):
    assert crops_by_hand(centre, size, 600) == expected
    anchor = np.array([[centre - 120, 180, centre + 120, 420]], np.float32)
    crop = boxes.mining_crops(anchor, size=(1000, size), crop_size=(600, 600))
    assert crop.tolist() == [[expected[0], 0, expected[1], 600]]


def test_crops_in_the_stored_image():
    """A level of half the width and a third of the height: 16 level pixels are 32 x 48 stored ones."""
    crops = mining.level_crops((20, 20), size=(320, 320), image_size=(960, 640), crop=(64, 96))
    anchor = 20 * 5 + 10  # centre (168, 88): starts at (120, 56) -> (112, 48)
    assert crops.shape == (400, 4) and crops[anchor].tolist() == [224, 144, 416, 336]


# losses -------------------------------------------------------------------------------------------


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def target(annotated, box, positive, negative):
    """(1, 0 or -1, matched box) of a box among the (box, difficult) of one class."""
    if not annotated:
        return 0, None
    overlaps = [iou(truth, box) for truth, _ in annotated]
    best = int(np.argmax(overlaps))
    if overlaps[best] < negative:
        return 0, None
    if overlaps[best] < positive or annotated[best][1]:
        return -1, None
    return 1, annotated[best][0]


def slow_losses(config, scores, codes, batch, factor, valid):
    """{role: f (c, n)}, -inf where an anchor does not count."""
    _, classes, height, width = scores.shape
    result = np.full((3, classes, height * width), -np.inf)
    for label in range(classes):
        annotated = [
            (box, difficult)
            for box, own, difficult, real in zip(
                *(batch[name][0] for name in ("boxes", "labels", "difficult", "boxes_valid")), strict=True
            )
            if real and own == label
        ]
        for a in range(height * width):
            y, x = divmod(a, width)
            if y >= valid[0] or x >= valid[1] or not batch["query_valid"][label]:
                continue
            centre = np.array([16 * (x + 0.5), 16 * (y + 0.5)])
            anchor = np.concatenate([centre - 120, centre + 120]) * np.tile(factor, 2)
            score, code = scores[0, label, y, x], codes[0, label, y, x]
            original, truth = target(annotated, anchor, config.positive_iou, config.negative_iou)
            judged = original
            if config.remap:
                predicted = boxes.decode(code[None].astype(np.float64), anchor[None])[0]
                judged, _ = target(annotated, predicted, config.remap_positive_iou, config.remap_negative_iou)
            if judged == 0:
                result[0, label, a] = 0.5 * max(score - config.negative_margin, 0)
            if judged == 1:
                result[1, label, a] = 0.5 * max(config.positive_margin - score, 0)
            if original == 1:
                away = np.abs(code - boxes.encode(truth[None].astype(np.float64), anchor[None])[0])
                result[2, label, a] = np.where(away < 1, 0.5 * away**2, away - 0.5).sum()
    return result


def example(seed, shape=(6, 8), classes=4):
    """Class 2 is not in the image, class 3 is padding."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0.2, 0.9, (1, classes, *shape)).astype(np.float32)
    codes = rng.normal(size=(1, classes, *shape, 4)).astype(np.float32)
    corner = rng.uniform(-150, -20, (1, 5, 2))
    batch = {
        "boxes": np.concatenate([corner, corner + rng.uniform(180, 330, (1, 5, 2))], -1).astype(np.float32),
        "labels": np.array([[0, 1, 1, -1, 0]], np.int32),
        "difficult": np.array([[False, False, True, False, False]]),
        "boxes_valid": np.array([[True, True, True, True, False]]),
        "valid": np.array([True]),
        "query_valid": np.arange(classes) < 3,
    }
    return Output(scores, codes, None), batch


FACTOR = np.array([1.25, 0.8], np.float32)
VALID = (5, 7)


@pytest.fixture(scope="module")
def fast():
    def run(config, output, batch):
        return mining.level_losses(config, output, batch, np.int32([VALID]), FACTOR)

    return jax.jit(run, static_argnums=0)


@pytest.mark.parametrize("remap", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_losses_against_loops(fast, remap, seed):
    config = objective.ObjectiveConfig(
        remap=remap, remap_positive_iou=0.6, positive_iou=0.45, class_objective="RLL", **MARGINS
    )
    output, batch = example(seed)
    expected = slow_losses(config, *output[:2], batch, FACTOR, VALID)
    assert all(np.isfinite(role).any() for role in expected)  # the example has every role
    found = fast(config, output, batch)
    np.testing.assert_allclose(found.losses, expected.max(axis=1), rtol=2e-4, atol=2e-6)
    counts = np.isfinite(expected.max(axis=1))
    first, second = np.sort(np.maximum(expected, -1), axis=1)[:, :-3:-1].transpose(1, 0, 2)
    clear = counts & (first - second > 1e-4)  # equal to rounding: any of the classes
    np.testing.assert_array_equal(np.asarray(found.labels)[clear], expected.argmax(axis=1)[clear])
    contrastive = dataclasses.replace(config, class_objective="contrastive")
    squared = fast(contrastive, output, batch).losses[0]
    np.testing.assert_allclose(squared[counts[0]], found.losses[0][counts[0]] ** 2, rtol=1e-5, atol=1e-8)


def test_a_loss_that_is_not_finite_is_none(fast):
    output, batch = example(0)
    output.scores[0, :, 2, 3] = np.nan
    found = fast(objective.ObjectiveConfig(remap=False, **MARGINS), output, batch)
    assert not np.isfinite(found.losses[:2, 2 * 8 + 3]).any() and np.isfinite(found.losses[0]).any()


# selection ----------------------------------------------------------------------------------------


def test_reduction_and_selection_against_one_long_list():
    """Every class of every anchor of two levels in one list, suppressed greedily: the same patches."""
    rng = np.random.default_rng(3)
    crops, found, everything = [], [], []
    for shape, size in (((6, 8), (96, 128)), ((9, 12), (144, 192))):
        level = mining.level_crops(shape, size=size, image_size=(192, 256), crop=(64, 64))
        losses = rng.permutation(3 * 5 * len(level)).reshape(3, 5, -1).astype(np.float32)
        losses[rng.random(losses.shape) < 0.2] = -np.inf
        chunks = [
            mining.Hardest(losses[:, ids].max(axis=1), ids[losses[:, ids].argmax(axis=1)])
            for ids in (np.array([0, 1, 2]), np.array([3, 4]))
        ]
        crops.append(level)
        found.append(mining.worse(*chunks))
        everything.append([(losses[:, label], label, level) for label in range(5)])
    selected = mining.select(crops, found, count=6, iou=0.5)
    for role in range(3):
        items = [
            (loss, label, crop)
            for level in everything
            for losses, label, boxes_ in level
            for loss, crop in zip(losses[role], boxes_, strict=True)
            if np.isfinite(loss)
        ]
        kept = []
        for item in sorted(items, key=lambda item: -item[0]):
            if all(iou(item[2], other[2]) <= 0.5 for other in kept):
                kept.append(item)
        kept = kept[:6]
        assert selected["labels"][role].tolist() == [label for _, label, _ in kept]
        assert selected["losses"][role].tolist() == [loss for loss, _, _ in kept]
        assert selected["crops"][role].tolist() == [crop.astype(int).tolist() for _, _, crop in kept]


def test_selection_worked_by_hand():
    crops = np.array([[0, 0, 10, 10], [0, 0, 10.9, 10], [5, 0, 15, 10], [30, 0.9, 30.5, 1.2]], np.float32)
    losses = np.array([[0.1, 0.4, 0.0, 0.3], [-np.inf] * 4, [-np.inf, -np.inf, 0.2, 0.2]], np.float32)
    labels = np.arange(12, dtype=np.int32).reshape(3, 4)
    found = mining.select([crops], [mining.Hardest(losses, labels)], count=3, iou=0.5)
    # The first overlaps the second by 10/10.9; the third only by 5.9/15. No positive; two of equal loss.
    assert found["labels"].tolist() == [[1, 3, 2], [-1, -1, -1], [10, 11, -1]]
    assert found["crops"][0].tolist() == [[0, 0, 10, 10], [30, 0, 31, 1], [5, 0, 15, 10]]
    np.testing.assert_allclose(found["losses"][0], [0.4, 0.3, 0.0])
    nothing = mining.select([crops[:0]], [mining.Hardest(losses[:, :0], labels[:, :0])], count=2, iou=0.5)
    assert (nothing["labels"] == -1).all()


def test_of_equal_losses_the_first_class_stays():
    first, second = (mining.Hardest(np.zeros((3, 2)), np.full((3, 2), label)) for label in (1, 2))
    assert (mining.worse(first, second).labels == 1).all()
