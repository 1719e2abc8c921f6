"""Weights from the Hugging Face hub: resumable, with a progress bar, and one name is always one file.

A file whose revision and sha256 are known in advance is checked against them. For any other, the revision and
hash that the hub itself states at the first download are verified and then remembered (`pins.json` in the
user's cache folder): trust on first use, a later change is an error.
"""

import json
import os
from pathlib import Path

from sm_jax import platform
from sm_jax.errors import WeightsError
from sm_jax.weights.io import sha256 as hash_file

TIMEOUT = 10.0


def pins_path() -> Path:
    """Where the revisions and hashes of first downloads are remembered."""
    return platform.cache_folder() / "pins.json"


def _read_pins() -> dict[str, dict[str, str]]:
    try:
        return json.loads(pins_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _remember(address: str, revision: str, digest: str) -> None:
    path = pins_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    pins = {**_read_pins(), address: {"revision": revision, "sha256": digest}}
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(pins, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)


def _stated(repository: str, file: str, revision: str) -> tuple[str, str]:
    """The commit and sha256 that the hub states for a file; one request: being offline shows at once."""
    import huggingface_hub

    url = huggingface_hub.hf_hub_url(repository, file, revision=revision or None)
    found = huggingface_hub.get_hf_file_metadata(url, timeout=TIMEOUT)
    if not found.commit_hash or len(found.etag or "") != 64:
        raise WeightsError(f"{repository}/{file}: the hub states no sha256 for it, so it is not used")
    return found.commit_hash, found.etag


def _download(repository: str, file: str, revision: str, sha256: str) -> tuple[Path, str, str]:
    """The file from the hub's cache or the hub itself: `(path, revision, expected sha256)`."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    if revision and sha256:  # without a hash to compare, the hub is asked for one
        try:
            cached = huggingface_hub.hf_hub_download(
                repository, file, revision=revision, local_files_only=True
            )
            return Path(cached), revision, sha256
        except LocalEntryNotFoundError:
            pass
    commit, stated = _stated(repository, file, revision)
    if sha256 and stated != sha256:
        raise WeightsError(
            f"huggingface.co/{repository}/{file} was replaced: the hub states sha256 {stated[:16]}..., not "
            f"the expected {sha256[:16]}...; it is not used"
        )
    path = huggingface_hub.hf_hub_download(repository, file, revision=commit, etag_timeout=TIMEOUT)
    return Path(path), commit, stated


def fetch(
    address: str,
    *,
    revision: str = "",
    sha256: str = "",
    save_as: str = "",
    packaged: str = "resnet50-caffe-c4",
) -> Path:
    """Download `owner/repository/file` once and return its path in the hub's cache.

    `revision` (a commit) and `sha256` pin the file; without them they are taken from the first download.
    `save_as` is the file name under which a person may put it into `SM_JAX_WEIGHTS`, `packaged` the weights
    of the same kind that are always there. Raises `WeightsError` in
    one line when offline, when the file is not there, or when the hash is wrong.
    """
    owner, repository, file = address.split("/", 2)
    repository = f"{owner}/{repository}"
    if not sha256:
        pin = _read_pins().get(address, {})
        revision, sha256 = revision or pin.get("revision", ""), pin.get("sha256", "")
    advice = (
        f"go online once, or save https://huggingface.co/{repository}/resolve/{revision or 'main'}/{file} as "
        f"{save_as or file} in a folder and set SM_JAX_WEIGHTS to it, or use {packaged} (comes with sm_jax)"
    )
    try:
        path, commit, stated = _download(repository, file, revision, sha256)
    except WeightsError:
        raise
    except ImportError:
        raise WeightsError(f"{address}: downloading needs the package huggingface_hub; {advice}") from None
    except Exception as error:  # the client raises its HTTP library's errors, which differ between versions
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"huggingface.co/{address} cannot be fetched ({reason[:120]}); {advice}") from None
    got = hash_file(path)
    if got != stated:
        raise WeightsError(
            f"huggingface.co/{address}: the download has sha256 {got[:16]}..., not the expected "
            f"{stated[:16]}...: it is damaged; delete {path} and try again"
        )
    if not sha256:
        _remember(address, commit, stated)
    return path
