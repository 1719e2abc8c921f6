"""The benchmark of the semantic matcher runs on small images, agrees with PyTorch, and reports it."""

import json

import pytest

torch = pytest.importorskip("torch")

from benchmarks import ssm  # noqa: E402  needs torch
from sm_jax.errors import ConfigError  # noqa: E402

TINY = "--size 32 --batch 2 --rounds 2 --requests 1,4 --kept 2 --eager-requests 1 --train-size 32 --backbone="


def run(monkeypatch, *arguments):
    monkeypatch.setattr(ssm, "settle", lambda options: None)  # it would change the settings of other tests
    return ssm.run(ssm.parser().parse_args([*TINY.split(), *arguments]))


def test_search_and_postprocess(monkeypatch, capsys):
    result = run(
        monkeypatch, "--sections", "search,predictor,batched,postprocess", "--fusions", "product_gap"
    )
    json.dumps(result)
    rows = result["rows"]
    assert [(row["what"], row.get("requests")) for row in rows] == [
        ("search", 1),
        ("search", 4),
        ("Predictor.search, features given", 2),
        ("search, images in a batch", 1),
        ("voting, one request", None),
        ("post-processing, one request", None),
    ]
    assert [set(row["ratio"]) for row in rows[:2]] == [{"eager", "tuned"}, {"tuned"}]
    for row in (*rows[:2], rows[3]):
        assert row["temp_mb"] > 0 and row["fusion"] == "product_gap"
        for other in row["ratio"]:
            assert max(row["agreement"][other].values()) < 1e-4
    seconds = rows[0]["times"]["ours"]["cpu_median_ms"] / 1e3
    assert rows[0]["images_per_second"]["ours"] == pytest.approx(1 / seconds)
    assert rows[4]["agreement"]["loops"]["box_px"] < 1e-9
    printed = capsys.readouterr().out
    assert "ours / tuned" in printed and "paper: more than 30 fps" in printed


@pytest.mark.slow
def test_features_encoding_and_aligned_search(monkeypatch):
    rows = run(monkeypatch, "--sections", "features,encoding,search,batched", "--fusions", "product_aligned")[
        "rows"
    ]
    assert len(rows) == 7
    for row in rows:
        for other in row["ratio"]:
            assert max(row["agreement"][other].values()) < 1e-4


@pytest.mark.slow
def test_training_steps_agree(monkeypatch):
    (row,) = run(monkeypatch, "--sections", "training", "--fusions", "product_aligned")["rows"]
    for name, pair in row["agreement"].items():
        assert pair["ours"] == pytest.approx(pair["eager"], rel=1e-3), name
    assert row["agreement"]["rect_loss"]["ours"] > 0.1 and row["temp_mb"] > 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--sections", "heads"], "--sections: 'heads' is none of"),
        (["--fusions", "sum"], "--fusions: 'sum' is none of"),
        (["--size", "40"], "--size: 40 must be a multiple of 16"),
        (["--train-size", "16"], "--train-size: 16 .* at least 32"),
        (["--batch", "0"], "--batch: 0 must be positive"),
        (["--requests", "1,3"], "--requests: 3 is more than --kept 2"),
    ],
)
def test_what_cannot_run_is_one_line(arguments, message):
    with pytest.raises(ConfigError, match=message):
        ssm.run(ssm.parser().parse_args([*TINY.split(), *arguments]))
