"""GroZi-3.2k, Dairy and Paste: one CSV each (OS2D spec sec. 13)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sm_jax.data.published import Published, needed
from sm_jax.data.published.stored import StoredPicture, StoredSource, stored_source
from sm_jax.data.sources import os2d_csv
from sm_jax.data.sources.base import Record
from sm_jax.errors import DataError

COLUMNS = (*os2d_csv.REQUIRED, "gtbboxid", "difficult")
PICTURES = {"grozi": "3264"}  # of `src`; the others: original
MINI = 2  # pictures of train-mini


def read(dataset: Published, root: Path, splits: Sequence[str]) -> dict[str, StoredSource]:
    """The sources; everything that the CSV names must be there.

    Every picture of GroZi's two validation splits is searched in each of them: a split only chooses boxes
    and classes. In paste-f nothing is difficult.
    """
    table = needed(root / "classes" / f"{dataset.folder}.csv", dataset)
    needed(root / "classes" / "images", dataset)
    folder = needed(root / "src" / PICTURES.get(dataset.name, "original"), dataset)
    is_grozi = dataset.name == "grozi"
    required = (*COLUMNS, "split") if is_grozi else COLUMNS
    found = os2d_csv.read(table, folder=folder, required=required, divided=is_grozi)
    if found.problems:
        raise DataError(found.problems[0])
    if missing := sorted(set(range(len(found.class_names))) - set(found.class_pictures)):
        name = found.class_names[missing[0]]
        raise DataError(
            f"{table}: the class picture of class {name} was not found in {table.parent / 'images'}"
        )
    by_split = _grozi(table, found.splits) if is_grozi else {"test": found.splits[""]}
    if dataset.name == "paste-f":
        by_split = {
            split: [replace(record, difficult=np.zeros(len(record.labels), bool)) for record in records]
            for split, records in by_split.items()
        }
    pictures = {label: StoredPicture(picture.path) for label, picture in found.class_pictures.items()}
    return {split: stored_source(by_split[split], found.class_names, pictures) for split in splits}


def _grozi(table: Path, splits: dict[str, list[Record]]) -> dict[str, list[Record]]:
    expected = {"train", "val-old-cl", "val-new-cl"}
    if names := expected ^ (set(splits) - {"val"}):
        raise DataError(
            f"{table}: column split must hold {', '.join(sorted(expected))}, and differs in "
            f"{', '.join(sorted(name or '(empty)' for name in names))}"
        )
    return splits | {"val-all": splits["val"], "train-mini": splits["train"][:MINI]}
