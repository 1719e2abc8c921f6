"""The benchmark of the cross-modal detector runs on small scenes, agrees with PyTorch, and reports it."""

import json

import pytest

torch = pytest.importorskip("torch")

from benchmarks import crossmodal  # noqa: E402  needs torch
from sm_jax.errors import ConfigError  # noqa: E402

TINY = "--size 192 --widths 8 --rounds 2 --batch 2 --phrases 1,3"


def run(monkeypatch, *arguments):
    # It would change the settings of other tests.
    monkeypatch.setattr(crossmodal, "settle", lambda options: None)
    return crossmodal.run(crossmodal.parser().parse_args([*TINY.split(), *arguments]))


def test_inference(monkeypatch, capsys):
    result = run(monkeypatch, "--sections", "inference,phrases")
    json.dumps(result)
    rows = result["rows"]
    assert [(row["what"], row["images"], row["phrases"]) for row in rows] == [
        ("proposals and 1 phrase", 1, 1),
        ("proposals and 1 phrase", 2, 1),
        ("phrases, kept proposals", 1, 1),
        ("phrases, kept proposals", 1, 3),
    ]
    for row in rows[:2]:
        counts = row["agreement"]["proposals"]
        assert counts["ours"] == counts["eager"] > 10 * row["images"]
        assert row["agreement"]["eager"]["box_px"] < 1e-2 and row["agreement"]["eager"]["align"] < 1e-4
        assert set(row["ratio"]) == {"eager", "tuned"}
        seconds = row["times"]["ours"]["cpu_median_ms"] / 1e3
        assert row["images_per_second"]["ours"] == pytest.approx(row["images"] / seconds)
        assert row["temp_mb"] > 0
    for row in rows[2:]:
        assert row["agreement"]["eager"]["align"] < 1e-5
    printed = capsys.readouterr().out
    assert "ours / tuned" in printed and "images per second of CPU time" in printed


@pytest.mark.slow
def test_features(monkeypatch):
    for row in run(monkeypatch, "--sections", "features")["rows"]:
        assert all(difference["feature"] < 1e-4 for difference in row["agreement"].values())


@pytest.mark.slow
def test_training_steps_agree(monkeypatch):
    rows = run(monkeypatch, *"--sections training --train-images 2 --stored-images 3".split())["rows"]
    assert [row["images"] for row in rows] == [2, 3]
    for row in rows:
        for name, pair in row["agreement"].items():
            tolerance = 2e-2 if name == "grad_norm" else 1e-3
            assert pair["ours"] == pytest.approx(pair["eager"], rel=tolerance), name
        assert row["agreement"]["loss"]["ours"] > 0.1
        assert row["temp_mb"] > 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--sections", "heads"], "'heads' is none of"),
        (["--size", "200"], "--size: 200 must be a multiple of 32"),
        (["--size", "64"], "--size: 64 .* at least 192"),
    ],
)
def test_what_cannot_run_is_one_line(arguments, message):
    with pytest.raises(ConfigError, match=message):
        crossmodal.run(crossmodal.parser().parse_args(arguments))
