"""`sm-jax data check` for pairs with key-points: own files, PF-PASCAL and PF-WILLOW."""

import json

import pytest

from sm_jax import cli
from sm_jax.data import pair_check
from sm_jax.errors import DataError
from tests.data import makers, pair_maker

XY = [[5, 5], [30, 8], [12, 30]]


@pytest.fixture
def own(tmp_path):
    for index in range(4):
        pair_maker.picture(tmp_path / f"{index}.png", index)  # 60 x 40
    return tmp_path


def pair(source, target, **more):
    entry = {"source": f"{source}.png", "target": f"{target}.png", "class": "mug"}
    return entry | {"keypoints_source": XY, "keypoints_target": XY} | more


def write(folder, pairs):
    path = folder / "pairs.json"
    path.write_text(json.dumps({"pairs": pairs}))
    return path


def test_a_good_file(own, capsys):
    path = write(own, [pair(0, 1), pair(0, 2, **{"class": "cup"}), pair(1, 2, split="val")])
    before = makers.fingerprint(own)
    assert cli.main(["data", "check", str(path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "key-point pairs (own pairs)" in shown and "no problems found" in shown
    assert "mug │ 1 │ 1" in shown and "cup │ 1 │ 0" in shown and "note:" not in shown
    assert cli.main(["data", "check", str(path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["splits"]["train"] == {
        "pairs": 2, "trainable": 2, "pictures": 3, "keypoints": 3.0, "classes": {"mug": 1, "cup": 1},
    }  # fmt: skip
    assert report["exit_code"] == 0 and report["findings"] == [] and makers.fingerprint(own) == before


def test_everything_that_is_wrong(own, capsys):
    (own / "3.png").write_bytes((own / "3.png").read_bytes()[:-600])
    path = write(
        own,
        [
            pair(0, 1),
            pair(1, 0, split="test"),
            pair(0, 2, keypoints_target=[*XY[:2], None]),
            pair(0, 2, keypoints_source=[[1, 1], [2, 2], [3, 3]]),
            pair(0, 2, keypoints_source=[[1, 1], [70, 2], [3, 3]]),
            pair(0, 2, keypoints_source=[[1, 1], [-1, 2], [3, 3]]),
            pair(0, 7),
            pair(0, 2, splt="val"),
            pair(0, 2, keypoints_source=XY[:2]),
            pair(1, 3),
            3,
        ],
    )
    assert cli.main(["data", "check", str(path)]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    for said in (
        "problem: entry (6)",
        "pairs[4]: 0.png: key-point 1 (70, 2) lies outside the picture of 60x40",
        "pairs[5]: 0.png: key-point 1 (-1, 2) lies outside the picture",
        "pairs[6]: picture '7.png' was not found",
        "pairs[7]: key 'splt' is unknown; did you mean 'split'?",
        "pairs[8]: 2 key-points in the source, 3 in the target",
        "pairs[10]: is no object",
        "problem: picture (1)",
        "3.png",
        "remark: pair without regions (2)",
        "0.png -> 2.png (mug): 2 key-points are in both images; a thin-plate spline needs at least 3",
        "0.png -> 2.png (mug): the 3 key-points lie on one line",
        "problem: in train and in test (1)",
        "1 pair of the test is also trained on, such as 1.png -> 0.png (mug)",
        "note: training keeps its last epoch",
    ):
        assert said in shown, said


def test_csv_and_published_forms(own, capsys):
    header = "source_image,target_image,class,XA,YA,XB,YB"
    (own / "pairs.csv").write_text(f"{header}\n0.png,1.png,mug,5;30;12,5;8;30,5;30;12,5;8;30\n")
    assert cli.main(["data", "check", str(own / "pairs.csv")]) == 0
    assert "mug" in capsys.readouterr().out

    report = pair_check.check(pair_maker.willow(own / "willow"))
    assert report.format == "key-point pairs (PF-WILLOW)" and list(report.splits) == ["test"]
    assert report.notes[0].startswith("nothing is trained on") and "leave_out=CATEGORY" in report.notes[0]

    root = pair_maker.pascal(own / "pascal")
    pair_maker.annotation(root, "bus", "2008_000001", [[1.0, 1.0], [10.5, 12.0], [99.0, 21.0]])
    report = pair_check.check(root)
    assert pair_check.recognised(root) and report.splits["train"].classes == {"bird": 1, "bus": 3}
    kinds = {finding.kind: finding.detail for finding in report.findings}
    assert kinds["key-point outside"] == "key-point 2 (98.5, 20.5) in 60x40 pixels"
    assert report.splits["train"].trainable == 2 and report.exit_code == 0


def test_what_cannot_be_read_is_one_line(own):
    path = write(own, [pair(0, 7)])
    with pytest.raises(DataError, match="picture '7.png' was not found"):
        pair_check.check(path)
    with pytest.raises(DataError, match="holds no pairs"):
        pair_check.check(write(own, []))
    (own / "boxes.json").write_text(json.dumps({"images": [], "annotations": []}))
    (own / "boxes.csv").write_text("imageid,classid\n1,2\n")
    for name in ("boxes.json", "boxes.csv", "0.png", "nothing"):
        assert not pair_check.recognised(own / name)
