"""Plain data comes through as it is; anything else is refused, and nothing of it runs."""

import collections
import pickle

import numpy as np
import pytest

from sm_jax.data.published import restricted_pickle
from sm_jax.errors import DataError


class _Runs:
    """An object whose pickle would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_comes_through(tmp_path, protocol):
    shared = [1, 2.5, None, True]
    stored = {
        "text": "é",
        "same": (shared, shared, {3: {"deep": shared}}),
        "set": {1, 2},
        "ordered": collections.OrderedDict(a=1),
        "boxes": np.arange(8, dtype=np.uint16).reshape(2, 4),
        "columns": np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3)),
        "words": np.array(["ab", "c"]),
        "objects": np.array([np.arange(2), "x"], object),
        "one": np.float32(0.5),
        "empty": np.zeros((0, 4)),
    }
    path = tmp_path / "a.pkl"
    if protocol == 5:  # keeps the buffers of arrays by a function that is not known here
        path.write_bytes(pickle.dumps(stored, protocol))
        with pytest.raises(DataError, match="the pickle holds numpy"):
            restricted_pickle.load(path)
        return
    path.write_bytes(pickle.dumps(stored, protocol))
    found = restricted_pickle.load(path)
    assert found["same"] == stored["same"] and found["same"][0] is found["same"][2][3]["deep"]
    for key in ("text", "set", "ordered"):
        assert found[key] == stored[key]
    for key in ("boxes", "columns", "words", "empty"):
        np.testing.assert_array_equal(found[key], stored[key])
        assert found[key].dtype == stored[key].dtype
    np.testing.assert_array_equal(found["objects"][0], [0, 1])
    assert found["objects"][1] == "x" and found["one"] == 0.5


def test_a_pickle_of_python_2(tmp_path):
    """Text is a string of bytes there, and so is the content of an array."""
    stored = (
        b"(dp0\nS'a'\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I2\ntcnumpy\ndtype\n(S'u1'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbI00\nS'\\x01\\xff'\ntbs."
    )
    path = _file(tmp_path, stored)
    np.testing.assert_array_equal(restricted_pickle.load(path)["a"], [1, 255])


def _file(folder, content: bytes):
    path = folder / "a.pkl"
    path.write_bytes(content)
    return path


def test_nothing_runs(tmp_path):
    target = tmp_path / "made"
    for value in (_Runs(target), [{"deep": _Runs(target)}], np.array([_Runs(target)], object)):
        path = _file(tmp_path, pickle.dumps(value, 2))
        with pytest.raises(DataError, match=r"the pickle holds _?io\.open; only containers") as error:
            restricted_pickle.load(path)
        assert "\n" not in str(error.value) and not target.exists()


ODD = {
    "a type as a value": b"cnumpy\nndarray\n.",
    "an array of structures": b"cnumpy\ndtype\n(S'V8'\nI0\nI1\ntR.",
    "a class that is called": b"cnumpy\nndarray\n(tR.",
    "a state of a class": b"cnumpy\nndarray\n(N(S'a'\nI1\ndtb.",
    "an array's subclass": b"cnumpy.core.multiarray\n_reconstruct\n(cbuiltins\nset\n(I0\ntS'b'\ntR.",
    "another module": b"cos\nsystem\n(S'true'\ntR.",
    "builtins.eval": b"cbuiltins\neval\n(S'1'\ntR.",
    "a persistent name": b"Px\n.",
    "cut off": pickle.dumps({"a": [1, 2]}, 2)[:-3],
    "no pickle": b"PK\x03\x04",
    "nothing": b"",
    "a content that is too short": (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I99999999999\ntcnumpy\ndtype\n(S'f8'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'ab'\ntb."
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_files_are_one_line(tmp_path, kind):
    path = _file(tmp_path, ODD[kind])
    with pytest.raises(DataError, match=str(path)) as error:
        restricted_pickle.load(path)
    assert "\n" not in str(error.value)


def test_missing_and_large_files(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        restricted_pickle.load(tmp_path / "none.pkl")
    with pytest.raises(DataError, match="larger than 0 MiB"):
        restricted_pickle.load(_file(tmp_path, pickle.dumps([1] * 9)), max_bytes=8)
