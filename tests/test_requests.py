"""Requests: storing, merging, and refusing what does not fit."""

import numpy as np
import pytest

from sm_jax.errors import ConfigError, WeightsError
from sm_jax.requests import Request, RequestBank, fingerprint


def _request(label, views="", seed=0, **options):
    rng = np.random.default_rng(seed)
    count = {"": 1, "rotation90": 4}[views]
    template = rng.random((count, 3, 3, 5)).astype(np.float32)
    preview = rng.integers(0, 255, (4, 6, 3)).astype(np.uint8)
    return Request(label, template, views, (20, 30), preview=preview, **options)


@pytest.fixture
def bank():
    requests = [
        _request("cup", seed=1, threshold=0.7, source="a.jpg"),
        _request("jar", "rotation90"),
        _request("cup"),
    ]
    return RequestBank(requests, fingerprint="f")


def test_a_saved_bank_comes_back(bank, tmp_path):
    bank.save(tmp_path / "bank.safetensors")
    loaded = RequestBank.load(tmp_path / "bank.safetensors")
    assert loaded.fingerprint == "f" and len(loaded) == len(bank)
    for ours, theirs in zip(bank, loaded, strict=True):
        for field in ("label", "views", "size", "threshold", "source"):
            assert getattr(ours, field) == getattr(theirs, field)
        np.testing.assert_array_equal(ours.template, theirs.template)
        np.testing.assert_array_equal(ours.preview, theirs.preview)
    assert [path.name for path in tmp_path.iterdir()] == ["bank.safetensors"]


def test_templates_name_class_request_and_view(bank):
    templates, classes, requests, views = bank.templates()
    assert bank.labels == ["cup", "jar"] and len(templates) == 6
    assert classes.tolist() == [0, 1, 1, 1, 1, 0]
    assert requests.tolist() == [0, 1, 1, 1, 1, 2] and views.tolist() == [0, 0, 1, 2, 3, 0]
    np.testing.assert_array_equal(templates[3], bank.requests[1].template[2])
    assert [bank.requests[1].view_size(view) for view in range(2)] == [(20, 30), (30, 20)]


def test_banks_of_the_same_weights_can_be_joined(bank):
    assert (bank + bank).labels == bank.labels and len(bank + bank) == 6
    with pytest.raises(WeightsError, match="different weights"):
        bank + RequestBank(bank, fingerprint="other")


@pytest.mark.parametrize("content", [b"", b"not a bank", None])
def test_a_file_that_is_no_bank_is_one_line(content, tmp_path):
    path = tmp_path / "x.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"^{path}: cannot be read as a request bank") as caught:
        RequestBank.load(path)
    assert "\n" not in str(caught.value)


def test_other_safetensors_files_are_refused(tmp_path):
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match="not a request bank"):
        RequestBank.load(tmp_path / "x.safetensors")
    save_file({"a": np.zeros(1)}, tmp_path / "y.safetensors", metadata={"format": "sm_jax request bank 1"})
    with pytest.raises(ConfigError, match="damaged"):
        RequestBank.load(tmp_path / "y.safetensors")
    header = {"format": "sm_jax request bank 1", "requests": "[]"}
    save_file({"a": np.zeros(1)}, tmp_path / "z.safetensors", metadata=header)
    with pytest.raises(ConfigError, match="damaged.*fingerprint"):
        RequestBank.load(tmp_path / "z.safetensors")


def test_a_place_that_cannot_be_written_is_one_line(bank, tmp_path):
    with pytest.raises(ConfigError, match="x.safetensors: the request bank cannot be written"):
        bank.save(tmp_path / "nowhere" / "x.safetensors")


def test_fingerprint_sees_every_value_and_name():
    tree = {"a": {"b": np.zeros((2, 2), np.float32)}, "c": np.ones(3)}
    same = {"c": np.ones(3), "a": {"b": np.zeros((2, 2), np.float32)}}
    changed = {"a": {"b": np.array([[0, 0], [0, 1e-9]], np.float32)}, "c": np.ones(3)}
    renamed = {"a": {"d": np.zeros((2, 2), np.float32)}, "c": np.ones(3)}
    assert fingerprint(tree) == fingerprint(same)
    assert len({fingerprint(t) for t in (tree, changed, renamed)}) == 3
