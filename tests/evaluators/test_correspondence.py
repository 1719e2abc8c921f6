"""The evaluation of any matcher: a method whose answers are known, on generated figures."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from ml_collections import ConfigDict

import sm_jax
from sm_jax.data import images
from sm_jax.data.scnet import ProposalOptions
from sm_jax.data.scnet_pairs import label_regions
from sm_jax.data.sources.keypoint_pairs import open_pairs
from sm_jax.data.synthetic import figures
from sm_jax.errors import ConfigError, DataError
from sm_jax.evaluators import correspondence, correspondence_methods, report, session
from sm_jax.evaluators import scnet as evaluators
from sm_jax.evaluators.correspondence import CorrespondenceEvaluator, Matches
from sm_jax.systems.scnet.model import ModelConfig
from tests.data.pair_maker import willow
from tests.data.test_mask_pairs import parts

PROPOSALS = ProposalOptions(count=40, method="grid")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = figures.make(str(tmp_path_factory.mktemp("figures")), num_train=2, num_val=1, num_test=4)
    return open_pairs(path, split="test")


def size(path):
    return images.image_size(path, orient=False)


def oracle(variables):
    """Every active region goes to its true box."""
    del variables

    def match(pair):
        boxes = PROPOSALS.of(images.read_image(pair.source))
        labels = label_regions(
            boxes, boxes, pair.keypoints_source, pair.keypoints_target, size(pair.source), size(pair.target)
        )
        return Matches(boxes, np.where(labels.active[:, None], labels.boxes, boxes), labels.active * 1.0)

    return match


def still(variables):
    """Nothing moves."""
    del variables

    def match(pair):
        boxes = PROPOSALS.of(images.read_image(pair.source))
        return Matches(boxes, boxes, np.ones(len(boxes)))

    return match


def run(method, pairs, **options):
    evaluator = CorrespondenceEvaluator(method, pairs, **options)
    return evaluator, dict(evaluator.run(None))


def test_true_boxes_are_all_right(pairs):
    evaluator, values = run(oracle, pairs, norms=("bbox", "img"))
    assert values["PCR@0.50"] == 1.0 and values["PCR_AuC"] > 0.97 and values["mIoU_AuC"] > 0.97
    _, other = run(still, pairs)
    for name in ("PCR_AuC", "mIoU_AuC", "bbox/PCK@0.15"):
        assert other[name] < values[name]
    assert set(values) == set(correspondence.metric_names(("bbox", "img"), correspondence.ALPHAS))


def test_means_are_over_pairs_and_over_classes(pairs):
    uneven = [pairs[0], pairs[0], pairs[1]]
    evaluator, values = run(still, uneven)
    one = [run(still, [pair])[1]["bbox/PCK@0.15"] for pair in uneven]
    np.testing.assert_allclose(values["bbox/PCK@0.15"], np.mean(one))
    np.testing.assert_allclose(values["bbox/class_PCK@0.15"], np.mean(one[1:]))
    assert len(evaluator.pck_by_class("bbox", 0.15)[1]) == 2


@pytest.mark.parametrize("absent", [np.nan, -1.0])
def test_padded_points_never_count(pairs, absent):
    pad = np.full((3, 2), absent)
    padded = [
        replace(
            pair,
            keypoints_source=np.concatenate([pair.keypoints_source, pad]),
            keypoints_target=np.concatenate([pair.keypoints_target, pad if absent == -1 else pad * 0 + 9]),
        )
        for pair in pairs
    ]
    for norms in (("bbox",), ("scnet224", "diag", "img")):
        assert run(still, padded, norms=norms)[1] == run(still, list(pairs), norms=norms)[1]


def test_two_points_have_a_pck_but_no_regions(pairs):
    two = {f"keypoints_{end}": getattr(pairs[0], f"keypoints_{end}")[:2] for end in ("source", "target")}
    few = replace(pairs[0], **two)
    evaluator, values = run(still, [few])
    assert np.isfinite(values["bbox/PCK@0.10"]) and np.isnan(values["PCR_AuC"])
    assert "nan" in evaluator.table()
    json.dumps(evaluator.to_dict(), allow_nan=False)


def test_reports_name_normaliser_and_protocol(pairs, tmp_path):
    evaluator, values = run(still, pairs, norms=("scnet224", "img"), name="still", notes=["forced"])
    text = evaluator.table()
    for expected in (
        evaluator.protocol,
        "distances over 224",
        "longer side",
        "still",
        "boat",
        "note: forced",
    ):
        assert expected in text, text
    document = evaluator.to_dict()
    assert (
        document["protocol"] == evaluator.protocol and document["PCK"]["img"]["0.10"]["pairs_with_value"] == 4
    )
    json.dumps({"metrics": report.numbers(values)} | document, allow_nan=False)
    other, _ = run(still, pairs[:3], norms=("scnet224", "img"))
    assert other.protocol != evaluator.protocol
    drawn = evaluator.pictures(tmp_path / "drawn", count=2)
    assert [path.name for path in drawn] == ["curves.png", "pair-0000.png", "pair-0003.png"]
    assert all(path.stat().st_size > 1000 for path in drawn)


def test_alphas_that_differ_have_different_names(pairs):
    alphas = (0.1, 0.101, 0.0001)
    evaluator, values = run(still, pairs, alphas=alphas)
    assert list(values)[:6:2] == ["bbox/PCK@0.10", "bbox/PCK@0.101", "bbox/PCK@0.0001"]
    assert set(values) == set(correspondence.metric_names(("bbox",), alphas))
    assert list(evaluator.to_dict()["PCK"]["bbox"]) == ["0.10", "0.101", "0.0001"]
    assert "@0.10   @0.101  @0.0001" in evaluator.table()
    assert [correspondence.alpha_name(alpha) for alpha in (0.01, 0.05, 0.15, 1)] == [
        "0.01",
        "0.05",
        "0.15",
        "1.00",
    ]


def test_damaged_pictures_are_named(pairs, tmp_path):
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no picture")
    evaluator, _ = run(still, [replace(pairs[0], target=damaged), *pairs[1:]])
    assert len(evaluator.measured) == 3 and "damaged.png" in evaluator.table()
    with pytest.raises(DataError, match="damaged"):
        run(still, [replace(pairs[0], target=damaged)] * 2)


def test_options_that_cannot_be_used(pairs):
    with pytest.raises(DataError, match="no pairs"):
        CorrespondenceEvaluator(still, [])
    for norms in ((), ("bbx",)):
        with pytest.raises(ConfigError, match="scnet224"):
            CorrespondenceEvaluator(still, pairs, norms=norms)
    with pytest.raises(ConfigError, match="alphas"):
        CorrespondenceEvaluator(still, pairs, alphas=(0.0,))
    with pytest.raises(ConfigError, match="alphas: give each once"):
        CorrespondenceEvaluator(still, pairs, alphas=(0.1, 0.101, 0.10))
    with pytest.raises(ConfigError, match="none of model, nam"):
        correspondence_methods.untrained("mam", "hog", ModelConfig(), PROPOSALS)


@pytest.mark.parametrize("matcher", correspondence_methods.MATCHERS)
def test_untrained_methods_match_a_picture_with_itself(pairs, matcher):
    method = correspondence_methods.untrained(matcher, "hog", ModelConfig(), PROPOSALS)
    same = [replace(pair, target=pair.source, keypoints_target=pair.keypoints_source) for pair in pairs[:2]]
    values = run(method, same)[1]
    assert values["PCR@0.50"] > 0.9
    assert values == run(method, same)[1]


def config(pairs, **options):
    data = {
        "source": str(getattr(pairs, "root", "")),
        "leave_out": "",
        "proposals": 40,
        "proposal_method": "grid",
        "figures": {},
    }
    section = {"splits": ("test",), "method": "model", "features": "pool"} | options
    model = {"variant": "A", "backbone": "resnet50", "embed": 8, "roi_size": 1}
    return ConfigDict({"system": "scnet", "model": model, "data": data, "eval": section})


def test_what_was_trained_on_is_refused(pairs):
    settings = config(pairs)
    assert evaluators.make(settings)["test"].notes == []
    settings.eval.splits = ("train",)
    with pytest.raises(DataError, match="2 pairs of the test are also trained on"):
        evaluators.make(settings)
    settings.eval.force_overlap = True
    assert "also trained on" in evaluators.make(settings)["train"].notes[0]
    settings.eval.update(force_overlap=False, method="nam", features="hog")  # nothing is trained
    assert evaluators.make(settings)["train"].notes == []


def test_masks_of_what_was_trained_on_are_refused(tmp_path):
    root, run = parts(tmp_path / "parts"), tmp_path / "run"
    names = sorted(path.name for path in (root / "JPEGImages").iterdir())
    xy = [[1, 1], [9, 2], [3, 8]]
    pairs = [
        {"source": a, "target": b, "keypoints_source": xy, "keypoints_target": xy}
        for a, b in (names, names[::-1], names[:1] * 2)
    ]
    shutil.copytree(root / "JPEGImages", run)
    settings = config([])
    settings.data.source = str(root)
    settings.trained = {"source": str(run / "pairs.json")}

    def notes(pairs, **options):
        (run / "pairs.json").write_text(json.dumps(pairs))
        settings.eval.update(options)
        evaluator = evaluators.make(settings)["test"]
        assert evaluator.to_dict()["notes"] == evaluator.notes
        evaluator.values = {}
        assert all(f"note: {note}" in evaluator.table() for note in evaluator.notes)
        return evaluator.notes

    with pytest.raises(DataError, match="1 pair of the test is also trained on"):
        notes(pairs[1:2])  # the other way round
    assert notes(pairs[1:2], force_overlap=True)[0].startswith("1 pair of the test")
    (line,) = notes(pairs[2:], force_overlap=False)  # a pair of its own, with a picture of the test
    assert line.startswith("1 image of the test is also trained on")
    assert notes(pairs[1:2], method="lom", features="hog") == []


def test_what_was_trained_on_does_not_change_with_the_data_of_the_evaluation(tmp_path, monkeypatch):
    root = willow(tmp_path / "willow", classes=("car(S)", "duck(S)", "bottle(M)"))
    run, start = tmp_path / "run", tmp_path / "start"
    for folder, left_out, init in ((run, "car", str(start)), (start, "car", "")):
        settings = config([])
        settings.data.update(source=str(root), leave_out=left_out)
        settings.init = {"model": init}
        folder.mkdir()
        (folder / "config.json").write_text(settings.to_json())
    seen = []

    def stop(settings, **_):
        seen.append(evaluators.make(settings)["test"].notes)
        raise ConfigError("enough")

    monkeypatch.setattr(session.evaluators, "make", stop)
    monkeypatch.setattr("sm_jax.training.restore_variables", lambda *_: ({}, {"step": 1}), raising=False)

    def evaluate(*more):
        options = {"workdir": "", "step": "", "data": "", "split": "", "protocol": "", "out": ""}
        session.run(
            [f"--workdir={run}", f"--out={tmp_path / 'out'}", *more], config="", options=options, help=""
        )

    with pytest.raises(ConfigError, match="enough"):
        evaluate()
    assert seen == [[]]
    with pytest.raises(ConfigError, match="enough"):
        evaluate(f"--data={willow(tmp_path / 'other', classes=('car(G)', 'cow(S)'))}")
    assert "'car' only, of every split" in seen[1][0]
    for other in ("duck", ""):  # both were trained on
        with pytest.raises(DataError, match="also trained on"):
            evaluate(f"--config.data.leave_out={other}")
    settings = json.loads((start / "config.json").read_text())
    settings["data"]["leave_out"] = "duck"  # so the start has seen the cars
    (start / "config.json").write_text(json.dumps(settings))
    with pytest.raises(DataError, match="also trained on"):
        evaluate()


def test_methods_and_subsets_by_config(pairs):
    assert evaluators.method(config(pairs))[1] == "SCNet-A resnet50, grid 40"
    assert evaluators.method(config(pairs, method="lom", features="hog"))[1] == "LOM HOG, grid 40"
    with pytest.raises(ConfigError, match="none of hog, pool, embedding"):
        evaluators.method(config(pairs, method="lom", features="sift"))
    assert len(evaluators.subset(pairs, 2)) == 2 and len(evaluators.subset(pairs, 0)) == 4
    with pytest.raises(ConfigError, match="max_pairs"):
        evaluators.subset(pairs, -1)
    assert evaluators.norms(replace(pairs, kind="PF-PASCAL")) == ("scnet224",)
    assert "test/bbox/PCK@0.10" in evaluators.metric_names(config(pairs))


@pytest.mark.parametrize("matcher", correspondence_methods.MATCHERS)
def test_matches_are_those_that_people_get(pairs, matcher, tmp_path, monkeypatch):
    monkeypatch.setenv("SM_JAX_CACHE", str(tmp_path))
    pair = pairs[0]
    mine = correspondence_methods.untrained(matcher, "hog", ModelConfig(), PROPOSALS)(None)(pair)
    options = {"method": matcher, "proposals": PROPOSALS.count, "proposal_method": PROPOSALS.method}
    same_as_people_get(mine, sm_jax.load("scnet", features="hog", **options), pair)


def same_as_people_get(mine, matcher, pair):
    """The order of a sum depends on padding, which LOM magnifies (see `ops.matching.lom`)."""
    theirs = matcher.match(pair.source, pair.target)
    some = mine.confidence > 0

    def by_region(source, target, confidence):
        found = {tuple(a): (tuple(b), c) for a, b, c in zip(source, target, confidence, strict=True)}
        return [found[region][0] for region in sorted(found)], [found[region][1] for region in sorted(found)]

    boxes, scores = by_region(theirs.source_boxes, theirs.target_boxes, theirs.confidence)
    expected = by_region(mine.source_boxes[some], mine.target_boxes[some], mine.confidence[some])
    assert boxes == expected[0] and len(boxes) > 20
    np.testing.assert_allclose(scores, expected[1], atol=0.02 * max(scores), rtol=0)


@pytest.mark.parametrize("variant", ["A", "AG+"])
def test_scnet_matches_a_picture_with_itself(pairs, variant):
    """A region is most like itself; whatever the weights."""
    import jax

    from sm_jax.correspondence import Matcher
    from sm_jax.systems.scnet import model, predict

    settings = config(pairs)
    settings.model.update(variant=variant, embed=64, image_size=(224, 224))
    net = model.ModelConfig.create(settings.model)
    variables = model.init(net, jax.random.key(0))
    match = correspondence_methods.scnet(net, PROPOSALS)(variables)
    people = Matcher(
        predict.Predictor(net, variables),
        method=variant.lower(),
        proposals=PROPOSALS.count,
        proposal_method=PROPOSALS.method,
    )
    same_as_people_get(match(pairs[1]), people, pairs[1])
    same = replace(pairs[0], target=pairs[0].source)
    found = match(same)
    assert np.mean((found.source_boxes == found.target_boxes).all(axis=1)) > 0.6
