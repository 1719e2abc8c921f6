"""TFDS: pairs that are built into ArrayRecord files read back exactly, without TensorFlow."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import scipy.io

from sm_jax.data.builders import pairs as builders
from sm_jax.data.sources import mask_pairs
from sm_jax.data.sources.keypoint_pairs import check_overlap, open_pairs, protocol_id
from sm_jax.errors import ConfigError, DataError, ImageError
from tests.data import makers, pair_maker
from tests.data.test_mask_pairs import caltech, parts


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SM_JAX_CACHE", str(tmp_path / "cache"))


def same(copies, originals):
    assert len(copies) == len(originals) > 0
    for copy, original in zip(copies, originals, strict=True):
        assert copy.class_name == original.class_name
        for end in ("source", "target"):
            assert getattr(copy, end).name == getattr(original, end).name
            assert getattr(copy, end).read_bytes() == getattr(original, end).read_bytes()
            found, expected = (getattr(pair, f"keypoints_{end}") for pair in (copy, original))
            assert found.dtype == np.float64
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("published", ["pascal", "willow"])
def test_published_key_point_pairs(tmp_path, published):
    root = getattr(pair_maker, published)(tmp_path / "data")
    if published == "pascal":  # a coordinate that float32 does not hold
        path = root / "Annotations" / "bus" / "2008_000001.mat"
        scipy.io.savemat(path, {"kps": scipy.io.loadmat(path)["kps"] + 1 / 3, "bbox": np.ones(4)})
    before, original = makers.fingerprint(root), open_pairs(root)
    folder = builders.build_pairs(original, tmp_path / "built")
    assert makers.fingerprint(root) == before
    copy = open_pairs(folder)
    same(copy, original)
    assert [pair.split for pair in copy] == [pair.split for pair in original]
    assert (copy.kind, copy.notes, copy.class_names) == (original.kind, original.notes, original.class_names)
    assert protocol_id(copy) == protocol_id(original)
    with pytest.raises(DataError, match="also trained on"):
        check_overlap(original, copy)  # pictures are known by their content
    split = original[0].split
    same(open_pairs(folder, split=split), original.split(split))
    with pytest.raises(DataError, match="no split 'night'"):
        open_pairs(folder, split="night")


def test_own_pairs(tmp_path):
    root = tmp_path / "mine"
    for name in ("a.png", "b.png"):
        pair_maker.picture(root / name, ord(name[0]))
    entry = {"source": "a.png", "target": "b.png", "class": "mug", "split": "extra"}
    entry |= {"keypoints_source": [[1.1, 2], None], "keypoints_target": [[3, 4], [5, 6]]}
    (root / "pairs.json").write_text(json.dumps({"pairs": [entry]}))
    original = open_pairs(root / "pairs.json")
    copy = open_pairs(builders.build_pairs(original, tmp_path / "built"))
    same(copy, original)
    assert copy[0].split == "extra" and np.isnan(copy[0].keypoints_source[1]).all()


@pytest.mark.parametrize("make", [caltech, parts])
def test_mask_pairs(tmp_path, make):
    root = make(tmp_path / "data")
    original = mask_pairs.read(root)
    folder = builders.build_mask_pairs(original, root, tmp_path / "built")
    copy = mask_pairs.read(folder)
    same(copy, original)
    for one, other in zip(copy, original, strict=True):
        for end in ("source_masks", "target_masks"):
            found, expected = getattr(one, end)(), getattr(other, end)()
            assert list(found) == list(expected)
            for name, mask in expected.items():
                assert found[name].dtype == bool and mask.any()
                np.testing.assert_array_equal(found[name], mask)


def test_pictures_are_laid_out_once(tmp_path):
    original = open_pairs(pair_maker.willow(tmp_path / "data"))
    folder = builders.build_pairs(original, tmp_path / "built")
    first, files = open_pairs(folder), set((tmp_path / "cache").rglob("*.*"))
    assert len(files) == 6  # of 12 pairs
    first[0].source.unlink()
    assert open_pairs(folder)[0].source.is_file() and set((tmp_path / "cache").rglob("*.*")) == files


def test_refusals(tmp_path):
    root = pair_maker.willow(tmp_path / "data")
    pairs = open_pairs(root)
    with pytest.raises(ConfigError, match="nothing is ever written"):
        builders.build_pairs(pairs, root / "built")
    folder = builders.build_pairs(pairs, tmp_path / "built")
    assert mask_pairs.read(folder) is None
    with pytest.raises(ConfigError, match="lists='x' goes with PF-PASCAL's folder"):
        open_pairs(folder, lists="x")
    with pytest.raises(DataError, match="holds pairs with key-points, not with masks"):
        builders.open_mask_pairs(folder)
    for name in ("all", "a/b", ""):
        renamed = replace(pairs, pairs=(replace(pairs[0], split=name),))
        with pytest.raises(ConfigError, match="cannot be built"):
            builders.build_pairs(renamed, tmp_path / "other")
    pairs[0].source.write_bytes(b"no picture")
    with pytest.raises(ImageError, match=pairs[0].source.name):
        builders.build_pairs(pairs, tmp_path / "damaged")
    (folder / builders.ABOUT).write_text("{}")
    with pytest.raises(DataError, match="not pairs built by"):
        open_pairs(folder)


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    folder = builders.build_pairs(open_pairs(pair_maker.willow(tmp_path / "data")), tmp_path / "built")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SM_JAX_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="cannot be written .*SM_JAX_CACHE"):
        open_pairs(folder)


def test_reading_needs_no_tensorflow(tmp_path):
    folder = builders.build_pairs(open_pairs(pair_maker.pascal(tmp_path / "data")), tmp_path / "built")
    code = (
        "import sys; from sm_jax.data.sources.keypoint_pairs import open_pairs;"
        f"open_pairs({str(folder)!r})[0].read(); assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
