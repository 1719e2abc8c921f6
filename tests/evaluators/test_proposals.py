"""The metrics of proposals and their alignment: the specification's example, hand counts, properties."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sm_jax.evaluators import proposals
from sm_jax.ops import nms

# Vector 9 of the specification, in descending confidence.
BOXES = np.float32([[10, 10, 60, 60], [12, 10, 62, 60], [100, 100, 160, 160], [300, 300, 350, 350]])
TRUTH = np.float32([[10, 12, 60, 62], [105, 100, 165, 160], [200, 200, 260, 260]])
CONF = np.float32([0.9, 0.8, 0.7, 0.6])


def _means(*units):
    return {name: summary.mean for name, summary in proposals.summarize(units).items()}


def test_the_example_of_the_specification():
    found = proposals.match(BOXES, CONF, TRUTH)
    np.testing.assert_allclose(found.iou, [0.923077, 0.854599, 0.846154, 0], atol=5e-7)
    assert found.truth.tolist() == [0, -1, 1, -1]  # the second repeats the first
    means = _means(proposals.proposal_ratios(found, objects=3))
    assert (means["precision"], means["recall"]) == (0.5, pytest.approx(0.666667, abs=5e-7))
    assert means["iou"] == pytest.approx(0.655958, abs=5e-7)


def test_the_example_of_the_specification_after_suppression():
    index, valid = nms.nms(jnp.asarray(BOXES), jnp.asarray(CONF), iou=0.5, size=4)
    kept = np.asarray(index)[np.asarray(valid)]
    assert kept.tolist() == [0, 2, 3]
    found = proposals.match(BOXES[kept], CONF[kept], TRUTH)
    means = _means(proposals.proposal_ratios(found, objects=3))
    assert means["precision"] == means["recall"] == pytest.approx(0.666667, abs=5e-7)


def test_a_match_needs_more_than_the_threshold():
    half = np.float32([[0, 0, 10, 10], [0, 0, 10, 20]])
    assert proposals.match(half[:1], [1.0], half[1:]).truth.tolist() == [-1]  # exactly 0.5
    assert proposals.match(half[:1], [1.0], half[1:], iou=0.49).truth.tolist() == [0]


def test_the_more_confident_of_two_matches_whatever_their_order():
    truth = np.float32([[0, 0, 10, 10]])
    near = np.float32([[0, 0, 10, 9], [0, 0, 10, 10]])
    assert proposals.match(near, [0.9, 0.8], truth).truth.tolist() == [0, -1]
    assert proposals.match(near, [0.8, 0.9], truth).truth.tolist() == [-1, 0]
    assert proposals.match(near, [0.9, 0.9], truth).truth.tolist() == [0, -1]


def _alignment(align, aligned, **options):
    return proposals.alignment_ratios(BOXES, CONF, align, TRUTH, aligned, **options)


def test_alignment_counted_by_hand():
    # Found objects 0 (by proposal 0) and 1 (by 2); object 2 was never proposed. The phrase means 1 and 2.
    units = _alignment([0.6, 0.1, 0.9, 0.8], [False, True, True])
    assert units["aligned_precision"] == (1, 3)  # of the aligned 0, 2 and 3
    assert units["aligned_recall_gt"] == (1, 2)
    assert units["aligned_recall_matched"] == (1, 1)  # object 2 cannot be told apart from what was not seen
    assert units["aligned_iou"] == (pytest.approx(0.846154, abs=5e-7), 3)
    assert units["align_accuracy"] == (1, 2)  # proposal 0 is wrongly aligned
    assert units["align_positive_recall"] == (1, 1) and units["negatives"] == (1, 2)


def test_a_repetition_may_find_what_the_match_itself_denies():
    """Recall counts objects: proposal 1 finds object 0; the judgement counted is that of proposal 0."""
    units = _alignment([0.1, 0.9, 0.1, 0.1], [True, False, False])
    assert units["aligned_recall_gt"] == units["aligned_recall_matched"] == (1, 1)
    assert units["align_positive_recall"] == (0, 1) and units["align_accuracy"] == (1, 2)
    assert units["aligned_precision"] == (1, 1)


def test_an_aligned_object_that_is_nobodys_nearest_is_found_but_not_matched():
    truth = np.float32([[0, 0, 10, 10], [0, 0, 10, 8]])
    units = proposals.alignment_ratios(truth[:1], [0.9], [0.9], truth, [False, True])
    assert units["aligned_recall_gt"] == (1, 1) and units["aligned_recall_matched"] == (0, 0)


def test_the_mean_weighs_units_and_the_micro_average_weighs_counts():
    result = proposals.summarize([{"precision": (2, 4)}, {"precision": (1, 1)}, {"recall": (0, 7)}])
    assert result["precision"] == proposals.Summary(mean=0.75, micro=0.6, units=2, total=5.0)


def test_thresholds_are_exclusive():
    units = _alignment([0.5, 0.5, 0.5, 0.5], [True, True, True])
    assert units["aligned_precision"] == (0, 0) and units["align_accuracy"] == (0, 2)
    units = _alignment([0.5, 0.5, 0.5, 0.5], [True, True, True], threshold=0.4)
    assert units["align_accuracy"] == (2, 2)


def test_majority_is_the_answer_that_is_more_often_right():
    few = _alignment([0.9] * 4, [True, False, False])
    assert _means(few, few)["majority"] == 0.5
    many = _alignment([0.9] * 4, [True, True, False])
    assert _means(few, many, many)["majority"] == pytest.approx((0.5 + 1 + 1) / 3)  # "aligned" always
    none = _alignment([0.9] * 4, [False, False, True])
    assert _means(few, none, none)["majority"] == pytest.approx((0.5 + 1 + 1) / 3)  # "not aligned" always
    assert "negatives" not in _means(few)
    summary = proposals.summarize([{"negatives": unit} for unit in ((9, 10), (1, 40), (7, 10))])["majority"]
    assert summary.mean == pytest.approx((0.9 + 0.025 + 0.7) / 3)  # "not aligned" always
    assert summary.micro == pytest.approx(43 / 60)  # "aligned" always
    none = proposals.summarize([{"negatives": (0, 0)}])["majority"]
    assert np.isnan(none.mean) and np.isnan(none.micro)


def test_units_without_a_value_are_left_out_of_the_mean():
    full = proposals.proposal_ratios(proposals.match(BOXES, CONF, TRUTH), objects=3)
    no_proposals = proposals.proposal_ratios(proposals.match([], [], TRUTH), objects=3)
    no_objects = proposals.proposal_ratios(proposals.match(BOXES, CONF, []), objects=0)
    assert no_proposals == {"precision": (0, 0), "recall": (0, 3), "iou": (0.0, 0)}
    assert no_objects == {"precision": (0, 4), "recall": (0, 0), "iou": (0.0, 4)}
    result = proposals.summarize([full, no_proposals, no_objects])
    assert (result["precision"].mean, result["precision"].micro) == (0.25, 0.25)
    assert (result["recall"].mean, result["recall"].micro) == (pytest.approx(1 / 3), pytest.approx(2 / 6))
    assert (result["precision"].units, result["precision"].total) == (2, 8)
    empty = proposals.summarize([proposals.proposal_ratios(proposals.match([], [], []), objects=0)])
    assert all(np.isnan([s.mean, s.micro]).all() and s.units == 0 for s in empty.values())
    assert proposals.summarize([]) == {}


def test_alignment_without_proposals_or_objects():
    units = proposals.alignment_ratios([], [], [], TRUTH, [True, False, True])
    assert units["aligned_recall_gt"] == (0, 2) and units["align_accuracy"] == (0, 0)
    units = proposals.alignment_ratios(BOXES, CONF, [0.9, 0.1, 0.1, 0.1], [], [])
    assert units["aligned_precision"] == (0, 1) and units["aligned_recall_gt"] == (0, 0)


def test_absent_phrases():
    assert proposals.absent_ratios(CONF, np.float32([0.9, 0.9, 0.6, 0.9])) == {
        "false_alarms": (1, 1),
        "boxes": (3, 1),
    }
    assert proposals.absent_ratios([0.9], [0.5])["false_alarms"] == (0, 1)  # 0.45, though conf is high
    assert proposals.absent_ratios([], []) == {"false_alarms": (0, 1), "boxes": (0, 1)}


def test_arrays_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="4 boxes with 3 confidences"):
        proposals.match(BOXES, CONF[:3], TRUTH)
    with pytest.raises(ValueError, match="4 boxes with 2 alignments, 3 objects with 3 flags"):
        _alignment([0.5, 0.5], [True] * 3)
    with pytest.raises(ValueError, match="3 objects with 2 flags"):
        _alignment([0.5] * 4, [True] * 2)


def test_every_metric_has_a_definition():
    units = proposals.proposal_ratios(proposals.match(BOXES, CONF, TRUTH), objects=3)
    units |= _alignment([0.9] * 4, [True] * 3) | proposals.absent_ratios(CONF, CONF)
    assert {*proposals.summarize([units]), "AP@"} == set(proposals.DEFINITIONS)


@st.composite
def _images(draw):
    """Proposals near objects and elsewhere, with distinct confidences."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, m = draw(st.integers(0, 12)), draw(st.integers(0, 6))
    corner = rng.uniform(0, 100, (m, 2))
    truth = np.concatenate([corner, corner + rng.uniform(20, 60, (m, 2))], axis=1)
    boxes = rng.uniform(0, 100, (n, 2))
    boxes = np.concatenate([boxes, boxes + rng.uniform(20, 60, (n, 2))], axis=1)
    if m:
        near = truth[rng.integers(0, m, n)] + rng.normal(0, 4, (n, 4))
        boxes = np.where(rng.random((n, 1)) < 0.7, near, boxes)
    conf = rng.permutation(n) / max(n, 1)
    return boxes, conf, rng.random(n), truth, rng.random(m) < 0.5, rng


def _everything(boxes, conf, align, truth, aligned):
    found = proposals.match(boxes, conf, truth)
    plain = proposals.proposal_ratios(found, objects=len(truth))
    return plain | proposals.alignment_ratios(boxes, conf, align, truth, aligned, found=found)


@given(_images())
def test_ratios_are_shares(image):
    *arrays, _ = image
    for name, (part, whole) in _everything(*arrays).items():
        assert 0 <= part <= whole + 1e-9, name


@given(_images())
def test_the_order_of_proposals_and_objects_does_not_matter(image):
    boxes, conf, align, truth, aligned, rng = image
    p, q = rng.permutation(len(boxes)), rng.permutation(len(truth))
    one = _everything(boxes, conf, align, truth, aligned)
    other = _everything(boxes[p], conf[p], align[p], truth[q], aligned[q])
    assert one.keys() == other.keys()
    for name in one:
        assert one[name] == pytest.approx(other[name]), name


@given(_images())
def test_repeated_proposals_never_raise_recall_or_precision(image):
    boxes, conf, align, truth, aligned, rng = image
    if not len(boxes):
        return
    again = rng.integers(0, len(boxes), 5)
    one = _everything(boxes, conf, align, truth, aligned)
    other = _everything(
        np.concatenate([boxes, boxes[again]]),
        np.concatenate([conf, conf[again] - 1]),  # behind all others
        np.concatenate([align, align[again]]),
        truth,
        aligned,
    )
    for name in ("recall", "aligned_recall_gt", "aligned_recall_matched", "align_accuracy"):
        assert one[name] == other[name], name
    assert other["precision"][0] == one["precision"][0] and other["precision"][1] == one["precision"][1] + 5


@given(_images())
def test_annotation_as_proposals_is_perfect(image):
    _, _, _, truth, aligned, rng = image
    conf = rng.permutation(len(truth)) / max(len(truth), 1)
    result = _everything(truth, conf, aligned.astype(float), truth, aligned)
    assert all(part == pytest.approx(whole) for name, (part, whole) in result.items() if name != "negatives")


@given(_images())
def test_matching_is_one_to_one_and_agrees_with_a_plain_loop(image):
    boxes, conf, _, truth, _, _ = image
    found = proposals.match(boxes, conf, truth)
    matched = found.truth[found.truth >= 0]
    assert len(set(matched.tolist())) == len(matched)
    used, want = set(), np.full(len(boxes), -1)
    for row in sorted(range(len(boxes)), key=lambda row: -conf[row]):
        overlaps = [_overlap(boxes[row], box) for box in truth]
        nearest = int(np.argmax(overlaps)) if overlaps else -1
        if overlaps and overlaps[nearest] > 0.5 and nearest not in used:
            used.add(nearest)
            want[row] = nearest
    assert found.truth.tolist() == want.tolist()


def _overlap(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (area - width * height)
