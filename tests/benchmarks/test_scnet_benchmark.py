"""The benchmark of SCNet runs on a few small boxes, agrees with its references, and reports it."""

import json

import numpy as np
import pytest

from benchmarks import scnet, scnet_subjects
from sm_jax.errors import ConfigError
from sm_jax.ops.hough import vote_reference

TINY = "--proposals 6,12 --width 64 --frame 64 --embed 8 --rounds 1"


def run(monkeypatch, *arguments):
    monkeypatch.setattr(scnet, "settle", lambda options, peer: None)  # it would change others' settings
    return scnet.run(scnet.parser().parse_args([*TINY.split(), *arguments]))


def test_operations_agree_with_their_references(monkeypatch, capsys):
    result = run(monkeypatch, "--sections", "voting,matching,roi")
    json.dumps(result)
    rows = result["rows"]
    voting = [
        (what, count) for count in (6, 12) for what in ("bins, on the host", "vote", "vote and gradient")
    ]
    others = [f"scores, {method}" for method in scnet_subjects.METHODS] + ["RoI max pooling"]
    assert [(row["what"], row["proposals"]) for row in rows] == voting + [(what, 12) for what in others]
    for row in rows:
        if row["what"] == "bins, on the host":
            continue
        (name,) = row["ratio"]
        assert row["ratio"][name] > 0 and row["temp_mb"] >= 0
        limit = {"scores, lom": 0.02, "RoI max pooling": 0.0}.get(row["what"], 1e-5)
        assert max(row["agreement"][name].values()) <= limit, row["what"]
    assert set(rows[2]["agreement"]["numpy"]) == {"votes", "gradient"}
    (lom,) = (row for row in rows if row["what"] == "scores, lom")
    assert any("against itself" in name for name in lom["agreement"])
    printed = capsys.readouterr().out
    assert "largest difference to numpy" in printed and "ours / reference" in printed


def test_the_material_votes_and_numpy_counts_as_the_definition():
    given = scnet_subjects.matches(30, 64)
    table = given.bins
    shared = np.bincount(table[table > 0])
    assert shared.max() > 1, "no two matches share a bin: nothing would be compared"
    found = scnet_subjects._bincount(given.geometry, table, table.max())
    np.testing.assert_allclose(found, vote_reference(given.geometry, table), rtol=1e-12)


def test_boxes_lie_in_the_picture():
    x1, y1, x2, y2 = scnet_subjects.boxes(np.random.default_rng(0), 500, (75, 100)).T
    assert (x1 >= 0).all() and (y1 >= 0).all() and (x2 <= 100).all() and (y2 <= 75).all()
    assert (x2 - x1 >= 7).all() and (y2 - y1 >= 5).all()


@pytest.mark.slow
def test_whole_pairs(monkeypatch, capsys):
    rows = run(monkeypatch, "--sections", "pair")["rows"]
    assert [row["proposals"] for row in rows] == [6, 12]
    for row in rows:
        times = {name: found["wall_median_ms"] for name, found in row["times"].items()}
        assert {"whole, AG+", "whole, LOM", "scores, AG+", "scores, LOM", "flow"} < set(times)
        assert all(value > 0 for value in times.values())
    assert "paper: Titan X Pascal: AG+ 0.33 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--sections", "hough"], "--sections: 'hough' is none of"),
        (["--frame", "40"], "--frame: 40 must be a multiple of 16"),
        (["--frame", "16"], "--frame: 16 .* at least 32"),
        (["--width", "8"], "--width: 8 must be at least 32"),
        (["--embed", "0"], "--embed: 0 must be at least 1"),
        (["--rounds", "0"], "--rounds: 0 must be at least 1"),
    ],
)
def test_what_cannot_run_is_one_line(arguments, message):
    with pytest.raises(ConfigError, match=message):
        scnet.run(scnet.parser().parse_args([*TINY.split(), *arguments]))
