"""`ShelvesSource`: reproducible anywhere, cached safely, light on imports, one line on errors."""

import hashlib
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from sm_jax.data.synthetic import ShelvesSource, preview
from sm_jax.errors import ConfigError, DataError

OPTIONS = {
    "num_scenes": 6,
    "num_classes": 30,
    "image_size": (160, 200),
    "object_size": (40, 70),
    "rotation": 15.0,
}

_SCRIPT = """
import hashlib, socket, sys
def refuse(*args, **kwargs):
    raise RuntimeError("network")
socket.socket.connect = refuse
socket.create_connection = refuse
from sm_jax.data.synthetic import ShelvesSource
from tests.data.synthetic.test_source import OPTIONS, digest
print(digest(ShelvesSource("val", seed=5, cache_dir=sys.argv[1], **OPTIONS)))
"""


def digest(source):
    """One hash over scenes, annotations and class pictures, read in an order of its own."""
    total = hashlib.sha256()
    for index in reversed(range(len(source))):
        note = source.annotation(index)
        for key in ("boxes", "labels", "difficult"):
            total.update(note[key].tobytes())
        total.update(source.image_bytes(index))
        total.update(source.image(index).tobytes())
    for label in (7, 0, 29):
        total.update(source.query(label).tobytes())
    return total.hexdigest()


def _source(folder, **options):
    return ShelvesSource("val", seed=5, cache_dir=folder, **(OPTIONS | options))


def _files(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file())


def test_same_bytes_in_this_process_and_in_another(tmp_path):
    here = digest(_source(tmp_path / "a"))
    assert digest(_source(tmp_path / "b")) == here
    command = [sys.executable, "-c", _SCRIPT, str(tmp_path / "c")]
    there = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert there == here
    assert digest(_source(tmp_path / "d", rotation=16.0)) != here


def test_importing_and_rendering_needs_no_jax(tmp_path):
    script = (
        "import sys\n"
        "from sm_jax.data.synthetic import ShelvesSource\n"
        "s = ShelvesSource('test', num_scenes=1, num_classes=5, image_size=(64, 64), cache_dir=sys.argv[1])\n"
        "s.image(0); s.query(0)\n"
        "print([m for m in ('jax', 'flax', 'torch', 'skimage', 'sklearn') if m in sys.modules])\n"
    )
    command = [sys.executable, "-W", "error", "-c", script, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_protocol_types_and_class_pictures(tmp_path):
    source = _source(tmp_path)
    assert len(source) == 6 and source.num_classes == 30 and len(set(source.class_names)) == 30
    image = source.image(0)
    assert image.dtype == np.uint8 and image.shape == (160, 200, 3)
    assert source.annotation(0)["image_id"] != source.annotation(1)["image_id"]
    for label in range(30):
        picture = source.query(label)
        height, width = picture.shape[:2]
        assert picture.dtype == np.uint8 and source.query_size(label) == (height, width)
        assert height / width == pytest.approx(source.identity(label).aspect, rel=0.03)
        assert 198 < (height * width) ** 0.5 < 302


def test_class_pictures_are_taken_under_other_conditions(tmp_path):
    """Never the front's own pixels, but recognisably the front."""
    source = _source(tmp_path)
    from sm_jax.data.synthetic import products

    correlations = []
    for label in range(12):
        front = products.front(source.identity(label)).convert("L").resize((64, 64))
        picture = Image.fromarray(source.query(label)).convert("L").resize((64, 64))
        a, b = np.asarray(front, np.float32).ravel(), np.asarray(picture, np.float32).ravel()
        assert np.abs(a - b).mean() > 1
        correlations.append(np.corrcoef(a, b)[0, 1])
    assert np.median(correlations) > 0.7


def test_scene_depends_on_its_index_only(tmp_path):
    short, long = _source(tmp_path / "a"), _source(tmp_path / "b", num_scenes=50)
    assert short.image_bytes(3) == long.image_bytes(3)
    assert short.image_bytes(3) != short.image_bytes(4)


def test_cache_returns_equal_pictures_and_survives_damage(tmp_path):
    source = _source(tmp_path)
    fresh = [source.image(k) for k in range(3)]
    files = _files(tmp_path)
    assert len(files) == 3 and all(f.suffix == ".jpg" for f in files)
    with Image.open(files[0]) as stored:
        np.testing.assert_array_equal(np.asarray(stored.convert("RGB")), fresh[0])
    whole = [f.read_bytes() for f in files]
    files[0].write_bytes(whole[0][: len(whole[0]) // 2])
    middle = len(whole[1]) // 2
    files[1].write_bytes(whole[1][:middle] + bytes([whole[1][middle] ^ 255]) + whole[1][middle + 1 :])
    files[2].write_bytes(b"")
    for k in range(3):
        np.testing.assert_array_equal(source.image(k), fresh[k])
    assert [f.read_bytes() for f in files] == whole
    assert _files(tmp_path) == files  # no temporary files left


def test_cache_is_really_read(tmp_path, monkeypatch):
    from sm_jax.data.synthetic import paint

    source = _source(tmp_path)
    first = source.image(0)
    monkeypatch.setattr(paint, "scene", None)
    np.testing.assert_array_equal(source.image(0), first)


def test_a_folder_that_cannot_be_written_is_not_an_error(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    expected = _source(tmp_path / "ok").image(0)
    np.testing.assert_array_equal(_source(blocked).image(0), expected)
    assert blocked.read_text() == "in the way"


def test_pickle_and_threads_give_the_same_scenes(tmp_path):
    source = _source(tmp_path / "a")
    expected = [source.image(k) for k in range(6)]
    copy = pickle.loads(pickle.dumps(_source(tmp_path / "b")))
    with ThreadPoolExecutor(4) as pool:
        for got, want in zip(pool.map(copy.image, range(6)), expected, strict=True):
            np.testing.assert_array_equal(got, want)


def test_other_options_never_share_cache_entries(tmp_path):
    _source(tmp_path).image(0)
    _source(tmp_path, object_size=(50, 60)).image(0)
    assert len(_files(tmp_path)) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"num_scenes": 0},
        {"num_classes": 0},
        {"seed": -1},
        {"image_size": (8, 200)},
        {"object_size": (90, 40)},
        {"classes_per_scene": (0, 3)},
        {"objects": (5, 4)},
        {"rotation": -1},
        {"shelf_share": 1.5},
        {"perspective": 9},
    ],
)
def test_senseless_options_are_one_clear_line(options):
    with pytest.raises(ConfigError, match=next(iter(options))) as caught:
        ShelvesSource("train", **options)
    assert "\n" not in str(caught.value)


def test_unknown_split_and_index(tmp_path):
    with pytest.raises(ConfigError, match="train, val, test"):
        ShelvesSource("dev")
    source = _source(tmp_path)
    for call in (lambda: source.image(6), lambda: source.annotation(-1), lambda: source.query(30)):
        with pytest.raises(IndexError):
            call()


def test_preview_writes_a_sheet(tmp_path):
    source = _source(tmp_path / "cache")
    path = preview(source, tmp_path / "out" / "sheet.png", 3)
    with Image.open(path) as sheet:
        assert sheet.format == "PNG" and sheet.width > 1200
    with pytest.raises(DataError, match="png"):
        preview(source, tmp_path / "sheet.gif", 1)
    with pytest.raises(DataError):
        preview(source, tmp_path / "sheet.png", 0)


def test_seen_is_new_scenes_of_the_training_classes(tmp_path):
    train, seen = (ShelvesSource(split, seed=5, cache_dir=tmp_path, **OPTIONS) for split in ("train", "seen"))
    assert seen.class_names == train.class_names
    np.testing.assert_array_equal(seen.query(3), train.query(3))
    assert seen.query_size(3) == train.query_size(3)
    assert all((seen.image(k).shape, k) and (seen.image(k) != train.image(k)).any() for k in range(3))
    notes = [source.annotation(k) for source in (seen, train) for k in range(6)]
    assert len({note["boxes"].tobytes() for note in notes}) == 12
    assert {note["image_id"] for note in notes} == {
        f"{s}-{k:06d}" for s in ("seen", "train") for k in range(6)
    }
