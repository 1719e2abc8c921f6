"""`sm-jax data check` and `data preview` for pictures with phrases."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sm_jax import cli
from sm_jax.data import phrase_check, phrase_preview
from sm_jax.data.shapes import ShapeScenes
from sm_jax.data.sources import phrase_json
from sm_jax.errors import ConfigError, DataError
from tests.data import makers
from tests.data.phrase_maker import BOXES, document, entry

CONFIG = """
from ml_collections import ConfigDict
def get_config(arg=None):
    shapes = {"num_train": 5, "image_size": (96, 128), "count": (2, 4), "size_range": (12, 24)}
    data = {"source": arg or "shapes", "shapes": shapes | {"holdout_pairs": ("red circle",)}}
    return ConfigDict({"system": "crossmodal", "data": data})
"""


def _entries():
    return [*(entry(i, split="train") for i in range(4)), *(entry(i, split="val") for i in (4, 5))]


def test_a_good_file(tmp_path, capsys):
    path = document(tmp_path, _entries())
    before = makers.fingerprint(tmp_path)
    assert cli.main(["data", "check", str(path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "pets.json: pictures with phrases (JSON)" in shown and "no problems found" in shown
    assert "8 words in the training phrases: a cats dog find horse me show the" in shown
    assert cli.main(["data", "check", str(path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    train = {"pictures": 4, "boxes": 12, "phrases": 12, "distinct": 3, "absent": 4, "meant": 0.5}
    assert report["splits"]["train"] == train and report["splits"]["val"]["pictures"] == 2
    # Pictures of 100x80 are enlarged 5.12 times; the boxes are 40x28, 30x40 and 24.5x30.
    assert report["sizes"][1] == pytest.approx(5.12 * (28 * 40) ** 0.5, rel=0.01)
    assert report["aspects"][::2] == pytest.approx([28 / 40, 40 / 30], rel=0.01)
    assert "height / width 0.7, 1.2, 1.3" in shown and report["longest"] == 5
    assert report["exit_code"] == 0 and report["findings"] == []
    assert makers.fingerprint(tmp_path) == before


def test_everything_that_is_wrong(tmp_path, capsys):
    entries = _entries()
    entries[0]["phrases"] = [
        {"text": "the cats"},
        {"text": "", "ids": []},
        {"text": "find a dog", "ids": [1]},
    ]
    entries[1]["phrases"] = [{"text": "The cats!", "ids": [0]}, {"text": "the cats", "ids": [0, 2]}]
    entries[2]["boxes"] = [*BOXES[:2], [300, 300, 310, 310]]
    entries[3]["phrases"] = [{"text": "the " * 20 + "cats", "ids": [0]}]
    entries[4]["phrases"] = [{"text": "purple zebras", "ids": [0]}]
    entries += [entry(1, split="val"), entry(6, image="photos/none.png", split="val")]
    path = document(tmp_path, entries)
    (tmp_path / "photos" / "3.png").write_bytes(b"damaged")
    (tmp_path / "photos" / "none.png").unlink()
    assert cli.main(["data", "check", str(path)]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    for said in (
        "phrases[0]: 'the cats' has no list 'ids'",
        "phrases[1]: the text is empty",
        "images[7] (photos/none.png): the picture was not found",
        "problem: contradiction (1)",
        "'the cats' is there twice, with other ids",
        "problem: picture (1)",
        "phrases[0]: 'the cats': it means box 2, which lies outside the picture (100x80 pixels)",
        "problem: box outside (1)",
        "box 2 (300, 300, 310, 310) in 100x80 pixels",
        "problem: in train and in val (1)",
        "remark: words that training never sees",
        "purple, zebras",
        "remark: long phrase (1)",
        "set model.text_length=22",
    ):
        assert said in shown, said
    assert "8 problems found" in shown


def test_no_phrase_without_an_answer_is_worth_a_note(tmp_path):
    entries = [
        entry(i, phrases=[{"text": "cats", "ids": [0]}], split=s) for i, s in enumerate(("train", "val"))
    ]
    report = phrase_check.check(document(tmp_path, entries))
    assert "nothing teaches 'nothing here'" in report.notes[-1] and report.exit_code == 0


def test_files_that_cannot_be_checked_are_one_line(tmp_path, capsys):
    (tmp_path / "bad.json").write_text('{"images": [')
    assert cli.main(["data", "check", str(tmp_path / "bad.json")]) == 2
    assert "bad.json: not valid JSON" in capsys.readouterr().err
    path = document(tmp_path, [entry(0, image="photos/0.png", phrases=[])])
    assert cli.main(["data", "check", str(path)]) == 2
    assert "none of its pictures (1) can be used" in capsys.readouterr().err


def test_a_folder_with_phrases_is_told_to_name_its_file(tmp_path, capsys):
    """Even if its folder of pictures looks like a class."""
    path = document(tmp_path, [entry(0)])
    (tmp_path / "another.json").write_text("{")
    assert cli.main(["data", "check", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"pictures with phrases; name their file itself: {path}" in error


def test_ten_findings_of_a_kind_are_printed_and_json_has_all(tmp_path, capsys):
    wrong = [{"text": f"thing {i}", "ids": [9]} for i in range(12)]
    path = document(tmp_path, [entry(0, phrases=[{"text": "cat", "ids": [0]}, *wrong])])
    assert cli.main(["data", "check", str(path)]) == 1
    assert "... and 2 more (--json prints all)" in capsys.readouterr().out
    assert cli.main(["data", "check", str(path), "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["findings"]) >= 12
    path = document(tmp_path, [entry(0, phrases=[{"text": "cat", "ids": [0]}, wrong[0]], split="train")])
    assert cli.main(["data", "check", str(path)]) == 1
    shown = capsys.readouterr().out
    assert "1 word in the training phrases: cat" in shown and "1 problem found" in shown


def test_preview_is_a_data_set_of_its_own(tmp_path):
    """Scenes, a sheet, and a JSON that reads back as the same boxes and phrases."""
    source = ShapeScenes("train", num_scenes=5, image_size=(96, 128), count=(2, 4), size_range=(12, 24))
    sheet = phrase_preview.write(source, tmp_path / "new" / "folder", count=4)
    names = sorted(path.name for path in sheet.parent.iterdir())
    assert names == [*(f"{i:06d}.png" for i in range(4)), "phrases.json", "sheet.png"]
    with Image.open(sheet) as picture:
        assert picture.width > 1200 and picture.height > 700
    records = phrase_json.read(sheet.parent / "phrases.json").splits[""]
    for index, record in enumerate(records):
        note = source.annotation(index)
        absent = source.queries(index, "absent")[0]
        assert record.phrases == (*note["phrases"], *absent) and record.names == tuple(note["names"])
        np.testing.assert_array_equal(record.matches[:1], note["matches"])
        np.testing.assert_array_equal(record.boxes, note["boxes"])
        with Image.open(record.path) as picture:
            np.testing.assert_array_equal(np.asarray(picture), source.image(index))
    assert phrase_check.check(sheet.parent / "phrases.json").problems == []


def test_preview_of_own_pictures(tmp_path):
    odd = entry(
        0, split="train", phrases=[{"text": f"赤い猫 {i} {'x' * 90}", "ids": [0, 1, 2]} for i in range(12)]
    )
    path = document(tmp_path / "data", [odd, entry(1, split="train"), entry(2, split="val")])
    source = phrase_json.open_source(path)
    assert phrase_preview.write(source, tmp_path / "out").is_file()
    with pytest.raises(DataError, match="at least one scene"):
        phrase_preview.write(source, tmp_path / "out", count=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        phrase_preview.write(source, tmp_path / "file" / "below")


def test_the_preview_command(tmp_path, capsys, monkeypatch):
    config = tmp_path / "own.py"
    config.write_text(CONFIG)
    out = tmp_path / "out"
    assert cli.main(["data", "preview", f"--config={config}", "--out", str(out), "-n", "2"]) == 0
    assert capsys.readouterr().out.strip() == str(out / "sheet.png")
    assert sorted(path.name for path in out.iterdir()) == [
        "000000.png",
        "000001.png",
        "phrases.json",
        "sheet.png",
    ]
    path = document(tmp_path / "data", _entries())
    assert cli.main(["data", "preview", f"--config={config}:{path}", f"--out={out}", "--split=val"]) == 0
    capsys.readouterr()
    for words, says in (
        (["--config=nowhere.py", f"--out={out}"], "there is no config file 'nowhere.py'"),
        ([f"--config={config}"], "--config needs --out=DIR"),
        ([], "give the picture to write"),
        ([f"--config={config}:{path}", f"--out={path.parent / 'x'}"], "lies in the data set's folder"),
        ([f"--config={config}", f"--out={out}", "--split=dev"], "no split 'dev'"),
        ([f"--config={config}", f"--out={out}", "-n", "0"], "at least one scene"),
    ):
        assert cli.main(["data", "preview", *words]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1


def test_the_commands_run_where_configs_import_each_other(tmp_path):
    """A console script has its own folder first on the path, not that of the configs."""
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "helper_of_mine.py").write_text("SOURCE = 'shapes'\n")
    (folder / "own.py").write_text("from configs.helper_of_mine import SOURCE\n" + CONFIG)
    code = f"import sys; sys.path.insert(0, {str(makers.__file__).partition('/tests/')[0]!r}); "
    code += "from sm_jax import cli; sys.path.pop(0); sys.exit(cli.main())"
    words = ["data", "preview", "--config=configs/own.py", "--out=out", "-n", "1"]
    command = [sys.executable, "-P", "-c", code, *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "sheet.png").is_file()
