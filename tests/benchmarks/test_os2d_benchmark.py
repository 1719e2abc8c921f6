"""The benchmark of OS2D runs end to end on a tiny picture, agrees with PyTorch, and reports it."""

import json
import time

import jax
import pytest

torch = pytest.importorskip("torch")

from benchmarks import flops, measure, os2d, report  # noqa: E402  need torch
from sm_jax.errors import ConfigError  # noqa: E402

TINY = "--height 64 --width 80 --scales 0.8,1.0 --classes 3 --chunk 2 --rounds 2 --backbone= --peak 0.1"


def run(monkeypatch, *arguments):
    monkeypatch.setattr(os2d, "settle", lambda options: None)  # it would change the settings of other tests
    return os2d.run(os2d.parser().parse_args([*TINY.split(), *arguments]))


def test_every_section_of_inference(monkeypatch, capsys):
    result = run(monkeypatch, "--sections", "features,head,pyramid")
    json.dumps(result)
    rows = result["rows"]
    assert [row["what"] for row in rows] == (
        ["features"] * 2
        + ["head"] * 2
        + ["pyramid features", "pyramid head", "pyramid, both", "suppression of one class"]
    )
    for row in rows[:2]:
        assert all(difference["feature"] < 1e-4 for difference in row["agreement"].values())
    for row in rows[2:4]:
        assert row["chunk"] == min(2, row["classes"])
        assert all(d["score"] < 1e-5 and d["box_px"] < 1e-2 for d in row["agreement"].values())
        assert row["temp_per_cell"] > 0
    for row in rows[:-1]:
        assert set(row["ratio"]) == {"eager", "tuned"}
        assert all(0 < value < 100 for value in row["ratio"].values())
        assert all(value > 0 for value in row["share_of_peak"].values())
        assert row["flop"] > 0
    assert rows[-1]["agreement"]["exact"] and rows[-1]["agreement"]["on the device"]
    assert rows[-1]["agreement"]["published"]
    printed = capsys.readouterr().out
    assert "ours / eager" in printed and "% of peak" in printed and "load average" in printed


@pytest.mark.slow
@pytest.mark.parametrize("model", ["v1", "v2"])
def test_training_step_agrees(monkeypatch, model):
    options = f"--sections training --model {model} --train-size 160 --train-classes 2 --train-images 2"
    head, row = run(monkeypatch, *options.split())["rows"]
    for name, pair in head["agreement"].items():
        assert pair["ours"] == pytest.approx(pair["eager"], rel=1e-3), name
    assert row["temp_mb"] > 0
    for name, pair in row["agreement"].items():
        assert pair["ours"] == pytest.approx(pair["eager"], rel=1e-3, abs=1e-6), name
    assert row["agreement"]["loss"]["ours"] > 0


def test_rounds_alternate_and_short_calls_are_repeated():
    order = []

    def make(name, seconds):
        def work():
            order.append(name)
            time.sleep(seconds)

        return measure.Call(work, lambda handle: handle)

    calls = {"a": make("a", 0.004), "b": make("b", 0.0011)}
    times = measure.interleave(calls, rounds=2)
    assert [len(values) for values in times["b"]] == [2, 2]
    timed = order[4:]  # after two warm-up calls each
    assert timed[0] == "a" and timed[-1] == "a" and timed.count("a") == 2
    assert timed.count("b") == len(timed) - 2 >= 4  # 1.1 ms is less than the shortest measurement
    assert min(times["b"].wall) >= 1e-3
    assert measure.ratio(times, "a", "b", clock="wall") > 1


def test_arithmetic_equals_the_published_sizes():
    assert flops.features((960, 1280)) == pytest.approx(160.6e9, rel=0.01)
    assert flops.head(4800, 1, 6) == pytest.approx(17.8e9, rel=0.01)


def test_report_of_a_row_without_extras(capsys):
    times = {"ours": measure.Times([0.1, 0.2], [0.3, 0.1]).summary()}
    report.row({"what": "nothing", "times": times}, clock="cpu")
    assert "cpu    200.00 ms (min 100.00)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--sections", "heads"], "'heads' is none of"),
        (["--device", "cuda"], "--device cuda: .* --device cpu"),
    ],
)
def test_what_cannot_run_is_one_line(monkeypatch, arguments, message):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    monkeypatch.setattr(measure, "quiet_threads", lambda: None)
    names = ("jax_enable_compilation_cache", "jax_default_matmul_precision")
    before = {name: getattr(jax.config, name) for name in names}
    try:
        with pytest.raises(ConfigError, match=message):
            os2d.run(os2d.parser().parse_args(arguments))
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@pytest.mark.parametrize("text", ["1,-2", "0", "a"])
def test_lists_must_be_positive(text, capsys):
    with pytest.raises(SystemExit):
        os2d.parser().parse_args(["--classes", text])
    assert "--classes" in capsys.readouterr().err
