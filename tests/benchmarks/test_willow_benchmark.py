"""The PF-WILLOW benchmark on small data of the same form: rows are measured once, and kept."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from benchmarks import willow
from sm_jax.errors import ConfigError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three pictures of each of two categories: one photo-like pattern, moved."""
    root = tmp_path_factory.mktemp("willow")
    rng = np.random.default_rng(0)
    points = np.stack([rng.uniform(40, 80, 10), rng.uniform(35, 65, 10)])
    for name in ("car(S)", "duck(S)"):
        (root / name).mkdir()
        pattern = rng.integers(0, 255, (13, 15, 3)).astype(np.uint8)
        large = np.asarray(Image.fromarray(pattern).resize((150, 130)))
        for index in range(3):
            Image.fromarray(large[index * 5 : index * 5 + 100, index * 6 : index * 6 + 120]).save(
                root / name / f"p{index}.png"
            )
            moved = points - np.array([[index * 6.0], [index * 5]])
            savemat(root / name / f"p{index}.mat", {"pts_coord": moved})
    return root


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["willow.py", *arguments])
    return willow.main()


def test_rows_are_measured_once_and_shown(folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "rows.json"
    common = [f"--data={folder}", f"--out={out}", "--proposals=40", "--method=grid", "--pairs=4"]
    common.append(f"--cache={tmp_path / 'cache'}")
    assert run(monkeypatch, *common, "nam:hog") == 0
    rows = json.loads(out.read_text())
    (key,) = rows
    assert key == "nam:hog grid-40 pairs-4" and rows[key]["pairs"] == 4
    assert set(rows[key]["PCK"]) == {"0.05", "0.10", "0.15"} and "bbox" in rows[key]["protocol"]
    rows[key]["seconds"] = 1234.0
    out.write_text(json.dumps(rows))
    capsys.readouterr()
    assert run(monkeypatch, *common, "nam:hog", "lom:hog") == 0
    text = capsys.readouterr().out
    assert "1234 s" in text and "lom:hog" in text and "published" in text
    assert list(json.loads(out.read_text())) == [key, "lom:hog grid-40 pairs-4"]


@pytest.mark.parametrize("row", ["nam", "lom:hog+white", "mam:hog"])
def test_rows_that_say_nothing(folder, row, tmp_path):
    from ml_collections import ConfigDict

    section = ConfigDict({"source": str(folder), "proposals": 20, "proposal_method": "grid"})
    section.cache_dir = str(tmp_path)
    with pytest.raises(ConfigError):
        willow.measure(row, section, willow.make_pairs(section, "all"))
