"""The protocol from its data to its report with a matcher whose answers are known; choice of what runs."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from sm_jax import evaluators
from sm_jax.errors import ConfigError, DataError
from sm_jax.evaluators import report, request_plots, requests
from sm_jax.evaluators import request_search as searching
from sm_jax.evaluators.requests import METRICS, RequestEvaluator, RequestOptions
from tests.evaluators.fake_matcher import SIDE, Scripted, Tiles

CONFUSION = {2: 0.9, 9: 0.65, 0: 0.05}
TEST = [["0.0", "1.5"], ["0.2", "1.9"]]
VALIDATION = [["0.10"], ["1.9"]]


def _evaluator(rows=TEST, *, matcher=None, validation=VALIDATION, source=None, **options):
    given = {key: options.pop(key) for key in ("seen", "max_images", "progress", "name") if key in options}
    held = None if validation is None else Tiles(validation, prefix="v")
    return RequestEvaluator(
        Scripted(confusion=CONFUSION) if matcher is None else matcher,
        Tiles(rows) if source is None else source,
        validation=held,
        options=RequestOptions(**{"validation_share": 0.0, **options}),
        **given,
    )


def test_every_number_by_hand():
    """Leave-one-out, both cats have AP 1 and 0.5 (a dog at 0.9 comes before the cat at 0.8), both dogs too.

    On the validation images the cat of shade 0 finds nothing and that of shade 2 has AP 0.5: it is the top
    one, although it is the worse on the test images. Neither has an F1 at 0.5: the first one is best.
    The dog of shade 9 has its threshold between 1 and 0.65, which finds nothing in the test image.
    """
    evaluator = _evaluator()
    values = dict(evaluator.run(None))
    assert [(c.label, c.encoded) for c in evaluator.candidates] == [
        (0, (0, 0)),
        (1, (1, 5)),
        (0, (0, 2)),
        (1, (1, 9)),
    ]
    alone, with_self = evaluator.scores["leave-one-out"], evaluator.scores["self-match"]
    np.testing.assert_allclose([s.ap for s in alone], [1, 1, 0.5, 0.5])
    np.testing.assert_allclose([s.ap for s in with_self], [1, 1, 0.75, 0.75])
    np.testing.assert_allclose([s.validation_ap for s in alone], [0, 1, 0.5, 1])
    np.testing.assert_allclose([s.own_threshold for s in alone], [0.5, 0.6, 0.2, 0.825], atol=1e-6)
    expected = {
        # average, top, comparable, mean P R, best P R, own P R, oracle P R
        0: [0.75, 0.5, 0.75, 0.75, 1, 1, 1, 0.75, 1, 1, 1],
        1: [0.75, 1.0, 0.75, 0.75, 1, 1, 1, 0.5, 0.5, 1, 1],
    }
    for label, numbers in expected.items():
        np.testing.assert_allclose(evaluator.classes["leave-one-out"][label], numbers)
    means = [0.75, 0.75, 0.75, 0.75, 1, 1, 1, 0.625, 0.75, 1, 1]
    np.testing.assert_allclose([values[f"all/{metric}"] for metric in METRICS], means)
    means = [0.875, 0.875, 0.875, 0.75, 1, 1, 1, 0.875, 0.875, 1, 1]
    np.testing.assert_allclose([values[f"all/{metric}_self"] for metric in METRICS], means)
    assert evaluator.images == {"validation": 2, "test": 2} and evaluator.notes == evaluator.skipped == []


def test_seen_and_unseen_classes_are_apart():
    values = dict(_evaluator(seen=["cat", "bird"]).run(None))
    assert values["seen/top_mAP"] == 0.5 and values["unseen/top_mAP"] == 1.0
    assert values["seen/average_mAP_self"] == 0.875
    assert {name.split("/")[0] for name in values} == {"seen", "unseen"}
    assert set(dict(_evaluator(seen=[]).run(None))) == {
        f"unseen/{metric}{ending}" for metric in METRICS for ending in ("", "_self")
    }


def test_every_image_is_read_and_searched_once_for_all_requests():
    source, matcher = Tiles(TEST), Scripted()
    seen = []
    evaluator = _evaluator(
        source=source, matcher=matcher, progress=lambda items, name: seen.append(name) or items
    )
    first = dict(evaluator.run(None))
    assert seen == ["requests", "images", "images"]
    assert source.reads == [0, 1, 0, 1]  # for the requests, then for the search
    assert matcher.calls == [4, 4, 4, 4]
    assert dict(evaluator.run(None)) == first


def test_caps_are_random_but_fixed_by_the_seed_and_printed():
    rows = [["0.0", "0.1", "0.2"]] * 4 + [["1.0"]] * 12

    def drawn(seed):
        evaluator = _evaluator(rows, max_requests=2, negatives=3, seed=seed)
        dict(evaluator.run(None))
        return (
            [(c.instance.index, c.instance.box_index) for c in evaluator.candidates],
            [sorted(found) for found in evaluator.found],
            evaluator.table(),
        )

    first = drawn(0)
    assert first == drawn(0) and first[0] != drawn(1)[0]
    assert len(first[0]) == 4 and [len(f) for f in first[1]] == [4 + 3, 4 + 3, 12 + 3, 12 + 3]
    assert "caps: 2 requests and 3 images without the class" in first[2]


def test_few_images_serve_all_classes():
    listed = searching.scenes(Tiles([["0.0"]] + [[""]] * 9 + [["1.0"]]), range(11), ["cat", "dog"])
    asked = searching.wanted(listed, [0, 1], negatives=2, seed=0)
    assert sum(0 in some for some in asked) == sum(1 in some for some in asked) == 3
    assert sum(bool(some) for some in asked) <= 5


def test_a_share_of_the_images_is_for_validation():
    assert searching.split(10, share=0.3, seed=0) == searching.split(10, share=0.3, seed=0)
    held, kept = searching.split(10, share=0.3, seed=0)
    assert len(held) == 3 and sorted(held + kept) == list(range(10))
    assert searching.split(1, share=0.3, seed=0) == ([], [0])
    assert [len(part) for part in searching.split(2, share=0.9, seed=0)] == [1, 1]
    evaluator = _evaluator([["0.0", "1.0"]] * 10, validation=None, validation_share=0.3)
    dict(evaluator.run(None))
    assert evaluator.images == {"validation": 3, "test": 7} and len(evaluator.candidates) == 14


def test_without_validation_nothing_is_chosen():
    evaluator = _evaluator(validation=None)
    values = dict(evaluator.run(None))
    assert values["all/average_mAP"] == 0.75
    assert np.isnan(values["all/top_mAP"]) and np.isnan(values["all/best_recall"])
    assert values["all/own_recall"] == values["all/mean_recall"]
    assert "2 classes not in the validation images, so without best request: cat, dog" in evaluator.table()


def test_a_class_in_one_image_has_no_leave_one_out():
    evaluator = _evaluator([["0.0", "1.0"], ["0.2", ""]])
    dict(evaluator.run(None))
    assert list(evaluator.classes["leave-one-out"]) == [0]
    assert list(evaluator.classes["self-match"]) == [0, 1]
    assert "1 class in a single test image, so only with self-match: dog" in evaluator.table()
    values = dict(_evaluator([["0.0", "1.0"]]).run(None))
    assert np.isnan(values["all/average_mAP"]) and values["all/average_mAP_self"] == 1.0


def test_a_class_without_requests_is_named():
    source = Tiles([["0.0", "1.0"], ["0.2", "1.2"]], sides={(0, 1): 8, (1, 1): 8})
    evaluator = _evaluator(source=source)
    dict(evaluator.run(None))
    assert list(evaluator.classes["self-match"]) == [0]
    assert "1 class without a request: dog" in evaluator.table()
    with pytest.raises(DataError, match="no test image has an object that can be a request"):
        _evaluator(source=Tiles(TEST, difficult=[(0, 0), (0, 1), (1, 0), (1, 1)]))


def test_a_request_that_the_matcher_refuses_is_left_out():
    evaluator = _evaluator(matcher=Scripted(refused=[5]))
    dict(evaluator.run(None))
    assert len(evaluator.candidates) == 3
    assert "request dog in 0, box 1: a blank request" in evaluator.table()
    with pytest.raises(DataError, match="no request can be used .*blank request"):
        dict(_evaluator(matcher=Scripted(refused=[0, 2, 5, 9])).run(None))


def test_no_detections_at_all_are_zeros(tmp_path):
    evaluator = _evaluator(matcher=Scripted(blind=True))
    values = dict(evaluator.run(None))
    assert set(values.values()) == {0.0}
    report.write(tmp_path / "results.json", evaluator.to_dict())
    assert evaluator.pictures(tmp_path, count=1)


def test_no_images_or_unreadable_ones_are_one_line():
    with pytest.raises(DataError, match="the split has no pictures"):
        _evaluator([])
    with pytest.raises(DataError, match="no request can be used .*0.png: damaged"):
        dict(_evaluator(source=Tiles(TEST, damaged=[0, 1])).run(None))
    evaluator = _evaluator(source=Tiles([*TEST, ["0.3"]], damaged=[2]))
    assert dict(evaluator.run(None))["all/average_mAP"] == 0.75
    assert evaluator.images["test"] == 2 and "left out: 2.png: damaged" in evaluator.table()


def test_validation_images_must_be_others():
    with pytest.raises(DataError, match="2 images are in the validation and in the test split"):
        RequestEvaluator(Scripted(), Tiles(TEST), validation=Tiles(TEST))


def test_classes_of_the_validation_images_are_told_by_name():
    evaluator = RequestEvaluator(
        Scripted(), Tiles(TEST), validation=Tiles([["0.9", "1.9"]], names=("dog", "bird"), prefix="v")
    )
    dict(evaluator.run(None))
    assert [s.validation_ap for s in evaluator.scores["self-match"] if s.label == 1] == [0.0, 0.0]
    assert all(np.isnan(s.validation_ap) for s in evaluator.scores["self-match"] if s.label == 0)


def test_max_images_are_evenly_spaced():
    evaluator = _evaluator([["0.0"]] * 9, max_images=3)
    dict(evaluator.run(None))
    assert [c.instance.index for c in evaluator.candidates] == [0, 4, 8]


def test_small_boxes_are_matched_more_loosely_by_the_rule_of_ilsvrc():
    class Sloppy(Scripted):
        def _one(self, request, tiles):
            found = super()._one(request, tiles)
            return found | {"boxes": found["boxes"] - np.float32([0, 0, 20, 20])}

    # 14 pixels found as 20: IoU 196 / 400, limits 0.5 and 196 / 576
    source = Tiles([["0.0"], ["0.0"]], sides={(0, 0): 14, (1, 0): 14})
    for rule, ap in (("fixed", 0.0), ("ilsvrc", 1.0)):
        evaluator = _evaluator(source=source, matcher=Sloppy(), iou_rule=rule, min_side=10)
        assert dict(evaluator.run(None))["all/average_mAP"] == ap


@pytest.mark.parametrize(
    "options,line",
    [
        ({"max_requests": -1}, "eval.requests.max_requests"),
        ({"negatives": -1}, "eval.requests.negatives"),
        ({"seed": -1}, "eval.requests.seed"),
        ({"min_side": float("nan")}, "eval.requests.min_side"),
        ({"threshold": float("nan")}, "eval.requests.threshold"),
        ({"validation_share": 1.0}, "eval.requests.validation_share"),
        ({"iou_rule": "loose"}, "eval.requests.iou_rule: 'loose' is none of fixed, ilsvrc"),
        ({"max_images": -1}, "eval.max_images"),
    ],
)
def test_options_that_cannot_be_used_are_one_line(options, line):
    with pytest.raises(ConfigError, match=line):
        _evaluator(**options)


def test_the_report_says_what_was_measured(tmp_path):
    evaluator = _evaluator(seen=["cat"], name="val")
    dict(evaluator.run(None))
    table = evaluator.table()
    assert table.startswith("4 requests of 2 classes, 2 test images, 2 validation images\n")
    assert "protocol requests/1: split 'val', 0% of its images for validation, IoU > 0.5, seed 0" in table
    row = next(line for line in table.splitlines() if line.startswith("  unseen, self-match"))
    assert row.split()[2:] == "0.875 1.000 0.875 0.750 1.000 1.000 1.000 1.000 0.750 1.000 1.000 1".split()
    report.write(tmp_path / "results.json", evaluator.to_dict())
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["groups"]["seen"]["leave-one-out"]["top"] == 0.5
    assert document["classes"][1]["group"] == "unseen" and len(document["requests"]) == 4
    assert document["requests"][2] == {
        "class": "cat",
        "image": "1",
        "box": [30.0, 30.0, 30.0 + SIDE, 30.0 + SIDE],
        "leave-one-out": {"AP": 0.5, "precision": 0.5, "recall": 1.0},
        "self-match": {"AP": 0.75, "precision": 0.5, "recall": 1.0},
        "validation_AP": 0.5,
        "threshold": pytest.approx(0.2),
    }
    assert document["protocol"]["id"] == "requests/1" and document["protocol"]["max_requests"] == 20


def test_plots_are_drawn_for_groups_and_classes(tmp_path):
    source = Tiles(TEST, names=("$cat_1^", "\u732b"))  # no formulas, and a script that the font lacks
    evaluator = RequestEvaluator(
        Scripted(confusion=CONFUSION), source, options=RequestOptions(validation_share=0.0)
    )
    dict(evaluator.run(None))
    written = evaluator.pictures(tmp_path / "plots", count=5)
    assert [p.name for p in written] == ["scatter-all.png", "class-0000.png", "class-0001.png"]
    for path in written:
        with Image.open(path) as picture:
            assert picture.width >= picture.height > 100
    assert [p.name for p in evaluator.pictures(tmp_path, count=1)] == ["scatter-all.png", "class-0000.png"]
    assert request_plots.extremes(evaluator, 0) == (2, 0) and request_plots.extremes(evaluator, 1) == (3, 1)


def _config(system="os2d", **eval_options):
    return ConfigDict(
        {
            "system": system,
            "data": {"source": "mine"},
            "eval": {"protocol": "requests", "splits": ("val",), "max_images": 0, **eval_options},
        }
    )


def test_the_protocol_is_chosen_by_the_config(monkeypatch):
    sources = {"train": Tiles([["0.1"]], names=("cat",)), "val": Tiles(TEST), "held": Tiles(VALIDATION)}
    sources["held"].prefix = "v"
    monkeypatch.setattr(requests.data_lib, "make_source", lambda data, split: sources[split])
    monkeypatch.setitem(requests.request_matchers.MAKERS, "os2d", lambda _: Scripted(confusion=CONFUSION))
    config = _config(requests={"validation": "held"})
    (evaluator,) = evaluators.make(config).values()
    values = {f"val/{name}": value for name, value in evaluator.run(None)}
    assert values["val/seen/top_mAP"] == 0.5 and values["val/unseen/top_mAP"] == 1.0
    assert set(values) < set(evaluators.metric_names(config))
    with pytest.raises(ConfigError, match="eval.requests.validation: 'val' is what is evaluated"):
        evaluators.make(_config(requests={"validation": "val"}))
    with pytest.raises(ConfigError, match="config.eval.requests.capp: unknown key; .*"):
        evaluators.make(_config(requests={"capp": 1}))


def test_other_protocols_and_systems_of_phrases_are_refused():
    with pytest.raises(ConfigError, match="eval.protocol: 'request' is none of default, requests"):
        evaluators.make(_config(protocol="request"))
    with pytest.raises(ConfigError, match="asks with pictures, which 'crossmodal' does not read"):
        evaluators.make(_config("crossmodal"))


def test_shelves_have_few_classes_so_that_they_recur():
    data = ConfigDict({"source": "shelves", "shelves": {"num_val": 6, "image_size": (96, 128)}})
    source = requests._source(data, "val", RequestOptions(shelf_classes=5))
    assert source.num_classes == 5 and len(source) == 6 and "num_classes" not in data.shelves
    seen = requests.seen_classes(data)
    assert set(requests._source(data, "train", RequestOptions(shelf_classes=5)).class_names) < seen
    assert not seen & set(source.class_names)


def test_evaluate_runs_the_protocol_from_its_command_line(tmp_path, monkeypatch, capsys):
    import evaluate
    from sm_jax.evaluators import session

    monkeypatch.setattr(requests.data_lib, "make_source", lambda data, split: Tiles(TEST * 2))
    monkeypatch.setitem(requests.request_matchers.MAKERS, "os2d", lambda _: Scripted(confusion=CONFUSION))
    monkeypatch.setattr(session.pretrained, "begin", lambda *_: (None, []))
    monkeypatch.setattr(evaluate.platform, "setup", lambda: None)
    monkeypatch.chdir(tmp_path)
    words = ["--protocol=requests", "--data=mine", "--split=test", "--config.eval.pictures=1"]
    assert evaluate.main(words) == 0
    out = capsys.readouterr().out
    assert "split 'test', 30% of its images for validation" in out and "seen, leave-one-out" in out
    folder = tmp_path / "runs" / "evaluation"
    document = json.loads((folder / "results.json").read_text())
    assert document["splits"]["test"]["metrics"]["seen/average_mAP"] is not None
    assert (folder / "test" / "scatter-seen.png").is_file()
