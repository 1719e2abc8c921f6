"""TFDS: what is built into ArrayRecord files reads back exactly, without TensorFlow."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

from sm_jax import data
from sm_jax.data import builders, sources
from sm_jax.errors import ConfigError, DataError
from tests.data import makers


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = makers.voc(tmp_path_factory.mktemp("data"), 6, sets={"train": [0, 1, 2, 3], "val": [4, 5]})
    (root / "Annotations" / "3.xml").write_text(makers.voc_xml("3.png", []))
    before = makers.fingerprint(root)
    folder = builders.build(root, tmp_path_factory.mktemp("built"))
    assert makers.fingerprint(root) == before
    return root, folder


def _by_id(source):
    return {source.annotation(i)["image_id"]: i for i in range(len(source))}


@pytest.mark.parametrize("split", ["train", "val"])
def test_round_trip(built, split):
    root, folder = built
    original, copy = sources.open_source(root, split=split), sources.open_source(folder, split=split)
    assert copy.class_names == original.class_names == ["cat", "dog"]
    first, second = _by_id(original), _by_id(copy)
    assert first.keys() == second.keys()
    for name, index in first.items():
        np.testing.assert_array_equal(copy.image(second[name]), original.image(index))
        expected, found = original.annotation(index), copy.annotation(second[name])
        assert found["size"] == expected["size"]
        np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=1e-3)
        for key in ("boxes", "labels", "difficult"):
            assert found[key].dtype == expected[key].dtype and found[key].shape == expected[key].shape
        np.testing.assert_array_equal(found["labels"], expected["labels"])
        np.testing.assert_array_equal(found["difficult"], expected["difficult"])
    for label in range(2):
        np.testing.assert_array_equal(copy.query(label), original.query(label))
        assert copy.query_size(label) == copy.query(label).shape[:2]


def test_pickles(built):
    source = sources.open_source(built[1])
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy.image(0), source.image(0))


def test_make_source_reads_it(built):
    source = data.make_source(ConfigDict({"source": str(built[1])}), "val")
    assert len(source) == 2


def test_refusals(built, tmp_path):
    root, folder = built
    with pytest.raises(ConfigError, match="nothing is ever written"):
        builders.build(root, root / "built")
    with pytest.raises(DataError, match=r"no split 'test', only train, val"):
        sources.open_source(folder, split="test")
    with pytest.raises(DataError, match="the one it was built from"):
        sources.open_collection(folder)
    with pytest.raises(DataError, match="train on it directly"):
        builders.build(makers.class_folders(tmp_path / "c"), tmp_path / "out")
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(DataError, match="not a built data set"):
        sources.open_source(tmp_path)


def test_reading_needs_no_tensorflow(built):
    code = (
        "import sys; from sm_jax.data import sources;"
        f"sources.open_source({str(built[1])!r}).image(0); assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
