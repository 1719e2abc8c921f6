"""`sm-jax data check`: counts are right, every kind of damage is found and named, nothing is written."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from sm_jax.data import check
from sm_jax.errors import DataError
from tests.data import makers


def _kinds(report):
    return {finding.kind: finding for finding in report.findings}


def _printed(report) -> str:
    stream = io.StringIO()
    check.print_report(report, console=Console(file=stream, width=120))
    return stream.getvalue()


def test_clean_voc(tmp_path):
    root = makers.voc(tmp_path, 6, sets={"train": [0, 1, 2, 3], "val": [4, 5]})
    before = makers.fingerprint(root)
    report = check.check(root)
    assert makers.fingerprint(root) == before
    assert report.format == "Pascal VOC" and report.exit_code == 0 and report.findings == []
    assert report.pictures == {"train": 4, "val": 2} and report.boxes == {"train": 8, "val": 4}
    dog = report.classes[1]
    assert (dog.name, dog.boxes, dog.difficult) == ("dog", {"train": 4, "val": 2}, 1)
    assert dog.median_size == pytest.approx(np.sqrt(1200)) and dog.median_aspect == pytest.approx(0.75)
    assert report.scale == pytest.approx(240 / report.median_size)
    text = _printed(report)
    assert "Pascal VOC" in text and "dog" in text and "no problems found" in text
    json.dumps(report.to_dict())


@pytest.mark.parametrize("make", [makers.coco, makers.os2d_csv, makers.class_folders])
def test_other_formats_are_clean(tmp_path, make):
    report = check.check(make(tmp_path / "d"))
    assert report.exit_code == 0, report.problems
    assert sum(report.boxes.values()) > 0


def test_bad_boxes(tmp_path):
    nan = float("nan")
    bad = {
        "box not finite": (float("inf"), 1, float("inf"), nan),
        "box inverted": (50, 50, 40, 60),
        "box empty": (20, 20, 20, 40),
        "box outside": (200, 200, 300, 300),
        "box sticks out": (80, 60, 120, 79),
    }
    objects = [("cat", makers.BOXES["cat"], False), *(("cat", box, False) for box in bad.values())]
    report = check.check(makers.voc(tmp_path, 1, objects=objects))
    kinds = _kinds(report)
    assert set(kinds) == set(bad) and report.exit_code == 1
    for number, kind in enumerate(bad, start=2):
        assert "0.png" in kinds[kind].where and f"box {number} " in kinds[kind].detail
    assert "5 problems found" in _printed(report)


def test_damaged_pictures_are_named(tmp_path):
    root = makers.voc(tmp_path, 5)
    pictures = root / "JPEGImages"
    (pictures / "0.png").write_bytes((pictures / "0.png").read_bytes()[:300])
    (pictures / "1.png").write_bytes(b"")
    (pictures / "2.png").write_bytes(b"not a picture")
    Image.fromarray(makers.picture(3, (40, 50))).save(pictures / "3.png")
    report = check.check(root)
    problems = {finding.where[-5:]: finding.detail for finding in report.problems}
    assert set(problems) == {"0.png", "1.png", "2.png", "3.png"}
    for name, word in {"0": "truncated", "1": "empty", "2": "supported format", "3": "says 100x80"}.items():
        assert word in problems[f"{name}.png"]
    assert report.exit_code == 1


def test_annotation_problems_do_not_stop_the_check(tmp_path):
    root = makers.voc(tmp_path, 4)
    (root / "Annotations" / "0.xml").write_text("<annotation>")
    report = check.check(root)
    assert report.exit_code == 1 and "0.xml" in _kinds(report)["annotation"].detail


def test_duplicates_across_splits(tmp_path):
    root = makers.voc(tmp_path, 6, sets={"train": [0, 1, 2, 3], "val": [3, 4, 5]})
    pictures = root / "JPEGImages"
    (pictures / "4.png").write_bytes((pictures / "0.png").read_bytes())
    smooth = np.asarray(Image.fromarray(makers.picture(1, (4, 5))).resize((100, 80)))
    Image.fromarray(smooth).save(pictures / "1.png")
    Image.fromarray(np.clip(smooth.astype(int) + 3, 0, 255).astype(np.uint8)).save(pictures / "5.png")
    report = check.check(root)
    found = {(finding.where[-5:], finding.problem): finding.detail for finding in report.findings}
    assert found["3.png", True] == "the same file"
    assert "0.png" in found["4.png", True] and "1.png" in found["5.png", False]
    assert len(found) == 3


def test_flat_pictures_are_not_called_alike(tmp_path):
    root = makers.voc(tmp_path, 2, sets={"train": [0], "val": [1]})
    for i in range(2):
        Image.new("RGB", makers.SIZE[::-1], (200, 200 + i, 200)).save(root / "JPEGImages" / f"{i}.png")
    assert check.check(root).findings == []


def test_classes_without_picture_or_boxes(tmp_path):
    root = makers.voc(tmp_path / "a", 3, sets={"train": [0, 1], "val": [2]})
    shown = [
        ("cat", makers.BOXES["cat"], False),
        ("emu", makers.BOXES["dog"], False),
        ("ant", (5, 5, 5, 5), False),
    ]
    (root / "Annotations" / "2.xml").write_text(makers.voc_xml("2.png", shown))
    kinds = _kinds(check.check(root))
    assert kinds["class without picture"].where == "emu" and kinds["class without picture"].problem
    assert kinds["class without boxes"].where == "ant" and not kinds["class without boxes"].problem
    for i in range(2):
        makers.save(tmp_path / "b" / f"{i}.png", i)
        (tmp_path / "b" / f"{i}.xml").write_text(makers.voc_xml(f"{i}.png", []))
    assert "no boxes" in _kinds(check.check(tmp_path / "b"))


def test_damaged_class_picture(tmp_path):
    root = makers.os2d_csv(tmp_path)
    (root / "classes" / "images" / "20.png").write_bytes(b"")
    assert _kinds(check.check(root))["class picture"].where == "20"


def test_many_findings_are_cut_on_screen_only(tmp_path):
    objects = [("[bold]cat[/x]", (1, 1, 20, 20), False)] + [("dog", (9, 9, 3, 3), False)] * 15
    report = check.check(makers.voc(tmp_path, 2, objects=objects))
    assert len(report.problems) == 30
    text = _printed(report)
    assert "... and 20 more" in text and "[bold]cat[/x]" in text


def test_run(tmp_path, capsys):
    assert check.run(makers.voc(tmp_path / "d", 5)) == 0
    assert "cat" in capsys.readouterr().out
    with pytest.raises(DataError, match="no such file"):
        check.run(tmp_path / "none")
