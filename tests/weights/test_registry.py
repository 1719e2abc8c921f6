import hashlib
import json
import os
import shutil
import types

import numpy as np
import pytest
from safetensors.numpy import save_file

from sm_jax.errors import WeightsError
from sm_jax.weights import hub, registry

NAME = "resnet50-caffe-c4"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("SM_JAX_WEIGHTS", raising=False)
    monkeypatch.setenv("SM_JAX_CACHE", str(tmp_path / "cache"))


def test_packaged_weights_are_the_registered_ones_and_have_a_card():
    path = registry.resolve(NAME)
    assert path.parent == registry.PACKAGED
    text = registry.card(path)
    weights = registry.REGISTRY[NAME]
    for fact in (weights.sha256, "MIT", "BGR", "1x1"):
        assert fact in text


def test_registry_is_complete():
    for name, weights in registry.REGISTRY.items():
        assert name == weights.name and weights.files and weights.licence and weights.source and weights.input
        assert weights.hub or weights.by_hand or registry.find_local(weights)
        assert len(weights.sha256) in (0, 64) and len(weights.revision) in (0, 40)


def test_a_path_wins_over_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file({"a": np.zeros(1)}, tmp_path / "mine.safetensors")
    assert registry.resolve("mine.safetensors").name == "mine.safetensors"


def test_folders_of_the_environment_variable(tmp_path, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    save_file({"a": np.zeros(1)}, second / "mine.safetensors")
    monkeypatch.setenv("SM_JAX_WEIGHTS", f"{first}{os.pathsep}{second}")
    assert registry.resolve("mine") == registry.resolve("mine.safetensors") == second / "mine.safetensors"
    shutil.copy(second / "mine.safetensors", second / "resnet101-tv.safetensors")
    assert registry.resolve("resnet101-tv") == second / "resnet101-tv.safetensors"
    shutil.copy(second / "mine.safetensors", second / "resnet50-tv.safetensors")
    with pytest.raises(WeightsError, match="is not that of resnet50-tv"):
        registry.resolve("resnet50-tv")
    monkeypatch.setenv("SM_JAX_WEIGHTS", str(tmp_path / "absent"))
    with pytest.raises(WeightsError, match="SM_JAX_WEIGHTS: .*absent is not a folder"):
        registry.resolve("mine")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet50-cafe-c4", "no weights called 'resnet50-cafe-c4'; did you mean 'resnet50-caffe-c4'"),
        ("elephant", "no weights called 'elephant'; there are .*resnet50-caffe-c4, "),
        ("weights/elephant.safetensors", "no such file, neither here nor in SM_JAX_WEIGHTS .not set"),
    ],
)
def test_unknown_names_are_one_clear_line(name, message):
    with pytest.raises(WeightsError, match=message) as error:
        registry.resolve(name)
    assert "\n" not in str(error.value)


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    """A hub with one file; `online`, `content` and `calls` steer and record it."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    errors = pytest.importorskip("huggingface_hub.errors")
    state = types.SimpleNamespace(online=True, content=b"weights", commit="c" * 40, calls=[], corrupt=False)
    cache = tmp_path / "hub"
    cache.mkdir()

    def metadata(url, timeout=None):
        state.calls.append("metadata")
        if not state.online:
            raise ConnectionError("Name or service not known")
        return types.SimpleNamespace(commit_hash=state.commit, etag=hashlib.sha256(state.content).hexdigest())

    def download(repository, file, *, revision, local_files_only=False, etag_timeout=None):
        path = cache / f"{revision}-{file}"
        if path.exists():
            return str(path)
        if local_files_only:
            raise errors.LocalEntryNotFoundError("not cached")
        state.calls.append("download")
        path.write_bytes(b"noise" if state.corrupt else state.content)
        return str(path)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return state


def test_hub_first_download_is_verified_and_remembered(fake_hub):
    path = hub.fetch("owner/net/model.safetensors")
    assert path.read_bytes() == b"weights" and fake_hub.calls == ["metadata", "download"]
    pins = json.loads(hub.pins_path().read_text())
    assert pins["owner/net/model.safetensors"]["revision"] == "c" * 40
    fake_hub.online = False
    assert hub.fetch("owner/net/model.safetensors") == path
    assert len(fake_hub.calls) == 2
    path.write_bytes(b"changed on disk")
    with pytest.raises(WeightsError, match="it is damaged; delete"):
        hub.fetch("owner/net/model.safetensors")


def test_hub_revision_without_a_hash_asks_for_it_also_when_the_file_is_there(fake_hub):
    pinned = {"revision": "c" * 40}
    path = hub.fetch("owner/net/model.safetensors", **pinned)
    hub.pins_path().unlink()
    assert hub.fetch("owner/net/model.safetensors", **pinned) == path
    assert fake_hub.calls == ["metadata", "download", "metadata"]


def test_hub_file_that_was_replaced_is_refused(fake_hub):
    pinned = {"revision": "c" * 40, "sha256": "0" * 64}
    with pytest.raises(WeightsError, match="was replaced: the hub states sha256"):
        hub.fetch("owner/net/model.safetensors", **pinned)
    assert "download" not in fake_hub.calls


def test_hub_damaged_download_is_refused_and_not_remembered(fake_hub):
    fake_hub.corrupt = True
    with pytest.raises(WeightsError, match="it is damaged; delete"):
        hub.fetch("owner/net/model.safetensors")
    assert not hub.pins_path().exists()


@pytest.mark.parametrize(("name", "packaged"), [("resnet101-tv", NAME), ("mobilenetv2-hf", "mobilenetv2-tv")])
def test_offline_says_what_to_do_in_one_line(fake_hub, name, packaged):
    fake_hub.online = False
    with pytest.raises(WeightsError) as error:
        registry.resolve(name)
    text = str(error.value)
    assert "\n" not in text
    for hint in ("Name or service not known", f"{name}.safetensors", "SM_JAX_WEIGHTS", f"use {packaged} "):
        assert hint in text
