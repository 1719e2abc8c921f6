"""Pairs of pictures with corresponding key-points: opens every known form; see `open_pairs`."""

import logging
import os
from pathlib import Path

from sm_jax.data.sources import pair_files, pf_pascal, pf_willow
from sm_jax.data.sources.pair_records import (
    KeypointPair,
    PairList,
    category_of,
    check_overlap,
    class_splits,
    protocol_id,
    split_by_class,
)
from sm_jax.errors import ConfigError, DataError

__all__ = [
    "KeypointPair",
    "PairList",
    "category_of",
    "check_overlap",
    "class_splits",
    "open_pairs",
    "protocol_id",
    "split_by_class",
]

_log = logging.getLogger("sm_jax.data")


def open_pairs(
    path: str | os.PathLike,
    *,
    split: str = "all",
    lists: str | os.PathLike = "",
    convention: str = "edges",
) -> PairList:
    """The key-point pairs at `path`, whichever of the known forms it has; notes are logged.

    Args:
      path: the folder of PF-WILLOW (`pf_willow`) or PF-PASCAL (`pf_pascal`), a person's own `.csv` or `.json`
        file (`pair_files`), or what `builders.pairs.build_pairs` built of any of them.
      split: "train", "val", "test", another name that the data uses, or "all".
      lists: folder of PF-PASCAL's CSV lists, where they do not lie in `path`.
      convention: of the coordinates of a person's own file, "edges" or "matlab".

    Raises:
      DataError: nothing there, nothing recognised, or the data cannot be used. ConfigError: options that do
        not go with the data.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    own = path.is_file() and path.suffix.lower() in (".csv", ".json")
    built = (path / "dataset_info.json").is_file()
    if lists and (own or built):
        raise ConfigError(f"pairs: lists={str(lists)!r} goes with PF-PASCAL's folder, not with {path.name}")
    if convention != "edges" and not own:
        raise ConfigError(
            f"pairs: convention={convention!r} goes with a CSV or JSON file; published data has its own"
        )
    if own:
        found = pair_files.read(path, convention=convention)
    elif built:
        from sm_jax.data.builders import pairs  # TFDS is only needed for what it built

        found = pairs.open_pairs(path)
    elif path.is_dir() and (lists or pf_pascal.recognised(path)):
        found = pf_pascal.read(path, lists=Path(lists).expanduser() if lists else None)
    elif pf_willow.recognised(path):
        found = pf_willow.read(path)
    else:
        raise DataError(
            f"{path}: no key-point pairs recognised; expected a CSV or JSON file, or the folder of PF-WILLOW "
            "(folders with pictures and a .mat beside each) or of PF-PASCAL (Annotations, JPEGImages and "
            f"{pf_pascal.TABLE} or CSV lists)"
        )
    for note in found.notes:
        _log.warning("%s: %s", path, note)
    return found.split(split)
