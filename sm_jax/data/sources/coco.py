"""COCO JSON: one file, or a folder with one file per split.

Source: Microsoft COCO (ECCV 2014), the annotation format of its detection task.
"""

import re
from pathlib import Path, PurePosixPath

import numpy as np

from sm_jax.data.sources.base import ClassPicture, Collection, Record
from sm_jax.data.sources.files import PictureIndex, class_folder_pictures, picture_size, read_json
from sm_jax.errors import DataError

_SPLIT = re.compile(r"train|val|test")
_PLACES = ("*.json", "annotations/*.json", "train/*.json", "val/*.json", "valid/*.json", "test/*.json")


def find(root: Path) -> list[Path]:
    """Annotation files under `root` (or `root` itself), each with `images` and `annotations`."""
    if root.is_file():
        return [root]
    paths = [path for place in _PLACES for path in sorted(root.glob(place))]
    detection = [path for path in paths if path.name.startswith("instances_")]
    return [path for path in detection or paths if _looks_like_coco(path)]


def read(root: Path, paths: list[Path]) -> Collection:
    """Reads the files; classes are the categories of all of them by name, in the order of their ids."""
    folder = root
    if root.is_file():
        folder = root.parent.parent if root.parent.name == "annotations" else root.parent
    documents = [(path, _document(path)) for path in paths]
    categories = _categories(documents)
    class_names = list(dict.fromkeys(name for path, _ in documents for name in categories[path].values()))
    index = {name: label for label, name in enumerate(class_names)}
    splits: dict[str, list[Record]] = {}
    problems: list[str] = []
    for path, document in documents:
        label_of = {key: index[name] for key, name in categories[path].items()}
        pictures = PictureIndex(_picture_folders(folder, path))
        records = _records(path, document, label_of, pictures, problems)
        splits.setdefault(_split_name(path, folder) if len(paths) > 1 else "", []).extend(records)
    given = {i: ClassPicture(path) for i, path in class_folder_pictures(folder, class_names).items()}
    return Collection("COCO JSON", folder, class_names, splits, given, problems=problems)


def _looks_like_coco(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            head = stream.read(1 << 16)
        # Long files list `info` and `licenses` first; a package.json or a settings file has neither key.
        return b'"images"' in head or (b'"annotations"' in head and b'"categories"' in path.read_bytes())
    except OSError:
        return False


def _document(path: Path) -> dict:
    document = read_json(path)
    for key in ("images", "annotations", "categories"):
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            raise DataError(f"{path}: not a COCO detection file, the list {key!r} is missing")
    return document


def _categories(documents: list[tuple[Path, dict]]) -> dict[Path, dict]:
    """Per file: category id -> name, by ascending id. Equal names of one file are told apart by their id."""
    result = {}
    for path, document in documents:
        entries = [c for c in document["categories"] if isinstance(c, dict) and isinstance(c.get("id"), int)]
        names: dict = {}
        for entry in sorted(entries, key=lambda entry: entry["id"]):
            name = str(entry.get("name") or entry["id"])
            names[entry["id"]] = name if name not in names.values() else f"{name} ({entry['id']})"
        if not names:
            raise DataError(f"{path}: 'categories' holds no category with an integer id")
        result[path] = names
    return result


def _records(path: Path, document: dict, label_of: dict, pictures: PictureIndex, problems: list[str]):
    entries: dict = {}
    for entry in document["images"]:
        if isinstance(entry, dict) and isinstance(entry.get("file_name"), str) and _is_id(entry.get("id")):
            entries[entry["id"]] = (entry, [], [], [])
        else:
            problems.append(f"{path}: an entry of 'images' has no id or file_name")
    for entry in document["annotations"]:
        if not isinstance(entry, dict) or "bbox" not in entry:
            problems.append(f"{path}: an annotation has no bbox")
        elif not _is_id(entry.get("image_id")) or entry["image_id"] not in entries:
            problems.append(
                f"{path}: annotation {entry.get('id')} is of image {entry.get('image_id')}, not listed"
            )
        elif not _is_id(entry.get("category_id")) or entry["category_id"] not in label_of:
            problems.append(
                f"{path}: annotation {entry.get('id')} has the unknown category {entry.get('category_id')}"
            )
        else:
            _, boxes, labels, difficult = entries[entry["image_id"]]
            boxes.append(_xyxy(entry["bbox"]))
            labels.append(label_of[entry["category_id"]])
            difficult.append(bool(entry.get("iscrowd")) or bool(entry.get("difficult")))
    records = []
    for entry, boxes, labels, difficult in entries.values():
        picture = pictures.by_name(entry["file_name"])
        if picture is None:
            problems.append(f"{path}: picture {entry['file_name']!r} was not found")
            continue
        records.append(
            Record(
                str(PurePosixPath(entry["file_name"]).with_suffix("")),
                picture,
                picture_size(entry.get("height"), entry.get("width")),
                np.asarray(boxes, np.float64).reshape(-1, 4),
                np.asarray(labels, np.int32),
                np.asarray(difficult, bool),
            )
        )
    if not records:
        folders = ", ".join(str(folder) for folder in pictures.folders)
        raise DataError(f"{path}: none of its pictures ({len(entries)}) was found in {folders}")
    return records


def _is_id(value) -> bool:
    return isinstance(value, (int, str))


def _xyxy(bbox) -> list[float]:
    """x, y, width, height -> corners; anything else becomes NaN, which the check reports and sources drop."""
    try:
        x, y, width, height = (float(value) for value in bbox) if isinstance(bbox, list) else ()
    except (TypeError, ValueError, OverflowError):
        return [float("nan")] * 4
    return [x, y, x + width, y + height]


def _split_name(path: Path, root: Path) -> str:
    folder = path.parent.name if path.parent != root else ""
    for text in (path.stem, folder):
        found = _SPLIT.search(text.lower())
        if found:
            return found.group()
    return path.stem


def _picture_folders(root: Path, path: Path) -> list[Path]:
    stem = path.stem.removeprefix("instances_")
    split = _split_name(path, root)
    names = [stem, split, "valid" if split == "val" else split]
    folders = [root / "images" / name for name in names] + [root / name for name in names]
    # Files in a split's own folder stand beside their pictures; names repeat between such folders.
    beside = [path.parent] if path.parent != root else []
    return [
        *beside,
        *folders,
        *(folder / "images" for folder in folders),
        path.parent / "images",
        root / "images",
        root,
    ]
