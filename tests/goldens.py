"""Where the recorded numbers are: discovery and loading of golden files.

`SM_JAX_GOLDEN`, if set, is the only folder searched. Otherwise `tests/golden` (the small committed copy)
comes first and `../shared/golden` beside the checkout second; the first file of a name wins.
"""

import os
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


def search_path() -> list[Path]:
    """The folders searched, in order of precedence."""
    if chosen := os.environ.get("SM_JAX_GOLDEN"):
        return [Path(chosen)]
    return [ROOT / "tests" / "golden", ROOT.parent / "shared" / "golden"]


def files(folder: str, pattern: str) -> list[Path]:
    """All golden files of `folder` whose name matches the glob `pattern`, sorted by name."""
    found: dict[str, Path] = {}
    for root in search_path():
        for path in sorted((root / folder).glob(pattern)):
            found.setdefault(path.name, path)
    return [found[name] for name in sorted(found)]


def params(folder: str, pattern: str) -> list:
    """Parameters for `pytest.mark.parametrize`: one per file, or one that skips when there is none."""
    found = [pytest.param(path, id=path.stem) for path in files(folder, pattern)]
    reason = f"no golden file {folder}/{pattern}"
    return found or [pytest.param(None, id="absent", marks=pytest.mark.skip(reason=reason))]


def companion(path: Path, name: str) -> Path:
    """The golden file `name` that goes with `path` (same folder name); without it the test is skipped."""
    found = files(path.parent.name, name)
    if not found:
        pytest.skip(f"no golden file {path.parent.name}/{name}")
    return found[0]


def load(path: Path) -> dict[str, np.ndarray]:
    """Read every array of an `.npz` file (never a pickle)."""
    with np.load(path, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}
