"""A person's own pictures: COCO JSON, Pascal VOC, the OS2D CSV, ILSVRC-DET or a folder per class, told apart
by itself.

Class pictures are given (`classes/<class name>.jpg`, or the CSV's) or cropped from the training boxes.
Reading never writes anything into the data set's folder.
"""

import logging
from pathlib import Path

from sm_jax.data.sources import coco, folders, ilsvrc_det, os2d_csv, phrase_json, splits, voc
from sm_jax.data.sources.base import (
    MAX_PROBLEM_SHARE,
    ClassPicture,
    Collection,
    Record,
    RecordSource,
    Source,
)
from sm_jax.data.sources.classes import check_choice, class_list, of_classes, restrict
from sm_jax.data.sources.folders import ComposedSource
from sm_jax.errors import DataError

__all__ = [
    "ClassPicture",
    "Collection",
    "ComposedSource",
    "Record",
    "RecordSource",
    "Source",
    "of_classes",
    "open_collection",
    "open_source",
]

_log = logging.getLogger("sm_jax.data")
_HELP = (
    "expected one of: a COCO JSON, a Pascal VOC folder (Annotations/*.xml beside JPEGImages/), an OS2D CSV "
    "(imageid, classid, lx, ty, rx, by), ILSVRC-DET, a folder per class with pictures, or a data set built "
    "by sm_jax.data.builders"
)


def open_collection(path: str | Path) -> Collection:
    """Recognises the format at `path` (a folder, a JSON or a CSV) and reads what its files say.

    Raises:
      DataError: nothing there, nothing recognised, pictures with phrases, or annotations that cannot be read
        at all.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    suffix = path.suffix.lower()
    if path.is_file() and suffix not in (".json", ".csv"):
        raise DataError(f"{path}: not a data set; {_HELP}")
    if path.is_file():
        return coco.read(path, [path]) if suffix == ".json" else os2d_csv.read(path)
    if (path / "dataset_info.json").is_file() or (path / "detection_by_request").is_dir():
        raise DataError(
            f"{path}: a data set built by TFDS has no annotation files; give the one it was built from"
        )
    if folder := ilsvrc_det.find(path):
        return ilsvrc_det.read(folder)
    if table := os2d_csv.find(path):
        return os2d_csv.read(table)
    if documents := coco.find(path):
        try:
            return coco.read(path, documents)
        except DataError:
            _refuse_phrases(path)  # which have a list of images too
            raise
    if folder := voc.find(path):
        return voc.read(folder)
    _refuse_phrases(path)
    if found := folders.find(path):
        return folders.read(path, found)
    inside = ", ".join(sorted(entry.name for entry in path.iterdir())[:6]) or "nothing"
    raise DataError(f"{path}: no data set recognised (it holds {inside}); {_HELP}")


def _refuse_phrases(folder: Path) -> None:
    """Raises DataError if there is a JSON file with phrases in the folder."""
    for path in sorted(folder.glob("*.json")):
        try:
            found = phrase_json.recognised(path)
        except DataError:  # not JSON
            continue
        if found:
            raise DataError(f"{folder}: holds pictures with phrases; name their file itself: {path}")


def open_source(path: str | Path, *, split: str = "train", classes: str = "all", seed: int = 0) -> Source:
    """Source of one split of a data set on disk; what was decided on the way is logged.

    Args:
      path: see `open_collection`; also a folder built by `sm_jax.data.builders`.
      split: a name the data set uses, or "train", "val" or "test" (see `splits.split_records`).
      classes: "all", or the "seen" or "unseen" ones (see `sources.classes`): boxes of other classes are
        dropped, and in the split "train" also the pictures that show only those. Classes that training never
        shows then have class pictures from the split itself.
      seed: of the composed scenes, for a folder per class.

    Raises:
      DataError: also if more than 1 % of the annotation entries cannot be used.
    """
    check_choice(classes)
    path = Path(path).expanduser()
    from sm_jax.data import builders  # which needs what this module defines

    if built := builders.find(path):
        path = built
        source = builders.open_source(path, split=split)
        if classes == "all":
            return source
        names = class_list(path, source.all_class_names, classes)
        return restrict(source, names, what=f"{path}: split {split!r}", keep_empty=split != "train")
    collection = open_collection(path)
    total = sum(len(records) for records in collection.splits.values())
    if len(collection.problems) > MAX_PROBLEM_SHARE * (total + len(collection.problems)):
        raise DataError(
            f"{path}: annotation entries that cannot be used: {len(collection.problems)}, the first: "
            f"{collection.problems[0]}; `sm-jax data check --json` lists them"
        )
    names = collection.class_names
    if classes != "all":
        names = class_list(collection.root, names, classes, default=collection.seen)
    source, notes = splits.make_source(collection, split, own_pictures=classes != "all")
    for note in [*collection.notes, *notes, *collection.problems]:
        _log.warning("%s: %s", path, note)
    if classes != "all":
        keep_empty = split != "train" and not collection.objects
        source = restrict(source, names, what=f"{path}: split {split!r}", keep_empty=keep_empty)
    return ComposedSource(source, seed=seed) if collection.objects else source
