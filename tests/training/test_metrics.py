import json
import math
import sys

import pytest

from sm_jax.training import metrics
from sm_jax.training.metrics import Metrics


def test_means_over_the_steps_between_two_reports(tmp_path, capsys):
    with Metrics(tmp_path, start=0, steps=5, every=2) as report:
        for step, loss in enumerate([1.0, 3.0, 5.0, math.inf, 9.0], start=1):
            report.add(step, {"loss": loss})
    lines = metrics.read(tmp_path)
    assert [(line["step"], line["loss"]) for line in lines] == [(2, 2.0), (4, None), (5, 9.0)]
    assert all(json.dumps(line, allow_nan=False) for line in lines)
    assert capsys.readouterr().out.startswith("step 2/5  loss 2\n")


def test_values_that_are_undefined_in_some_steps(tmp_path, capsys):
    """A mean over positives has no value in a step without one; it must not count as 0."""
    with Metrics(tmp_path, start=0, steps=4, every=2) as report:
        for step, score in enumerate([math.nan, 0.5, math.nan, math.nan], start=1):
            report.add(step, {"score_pos": score, "loss": 1.0})
    assert [line["score_pos"] for line in metrics.read(tmp_path)] == [0.5, None]
    first, last = capsys.readouterr().out.splitlines()
    assert "score_pos 0.5" in first and "score_pos" not in last and "loss 1" in last


def test_rate_and_time_left_leave_out_compilation_and_pauses(tmp_path, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    with Metrics(tmp_path, start=0, steps=100, every=10) as report:
        now[0] = 60.0  # compilation
        report.start_clock(1)
        for step in range(2, 11):
            now[0] += 0.5
            report.add(step, {"loss": 0.0})
        with report.pause():
            now[0] += 1000
        for step in range(11, 21):
            now[0] += 0.5
            report.add(step, {"loss": 0.0})
    assert [line["steps_per_second"] for line in metrics.read(tmp_path)] == [2.0, 2.0]
    assert "2.00 steps/s  eta 0:00:40" in capsys.readouterr().out.splitlines()[-1]


def test_a_resumed_run_drops_the_lines_it_writes_again(tmp_path):
    with Metrics(tmp_path, start=0, steps=9, every=1) as report:
        for step in range(1, 6):
            report.add(step, {"loss": float(step)})
    with (tmp_path / metrics.FILE).open("a") as file:
        file.write('{"step": 6, "lo')  # killed while writing
    with Metrics(tmp_path, start=3, steps=9, every=1) as report:
        report.add(4, {"loss": -4.0})
    assert [line["loss"] for line in metrics.read(tmp_path)] == [1, 2, 3, -4]


def test_other_processes_write_nothing(tmp_path, capsys):
    with Metrics(tmp_path, start=0, steps=1, every=1, active=False) as report:
        report.say("hello")
        report.add(1, {"loss": 0.0})
    assert not list(tmp_path.iterdir()) and not capsys.readouterr().out


def test_a_terminal_gets_a_progress_bar(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with Metrics(tmp_path, start=0, steps=4, every=1) as report:
        report.start_clock(0)
        report.add(1, {"loss": 0.5})
        report.say("[not markup]")
    output = capsys.readouterr().out
    assert "1/4" in output and "[not markup]" in output and "loss 0.5" in output


@pytest.mark.parametrize("start", [0, 5])
def test_tensorboard_files_are_written(tmp_path, start):
    with Metrics(tmp_path, start=start, steps=9, every=1) as report:
        report.write(6, {"val/score": 0.5})
    (file,) = (tmp_path / metrics.FOLDER).iterdir()
    assert b"val/score" in file.read_bytes()
