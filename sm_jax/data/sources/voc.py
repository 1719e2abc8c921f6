"""Pascal VOC: a folder of XML files beside the pictures, with or without `ImageSets`.

Source: The PASCAL Visual Object Classes development kit (annotation format).
"""

from pathlib import Path

import numpy as np

from sm_jax.data.sources.base import ClassPicture, Collection, Record
from sm_jax.data.sources.files import PictureIndex, class_folder_pictures, number, picture_size, read_xml
from sm_jax.errors import DataError

_PICTURE_FOLDERS = ("JPEGImages", "images", "Images", "img", "imgs")
_SPLIT_FOLDERS = ("train", "val", "valid", "test")
_SET_NAMES = ("train", "val", "trainval", "test")


def find(root: Path) -> Path | None:
    """The VOC folder at `root` or one level below; None if there is none, DataError if there are several."""
    if _annotation_folders(root):
        return root
    below = [
        folder for folder in sorted(root.glob("VOC*")) if folder.is_dir() and _annotation_folders(folder)
    ]
    if len(below) > 1:
        names = ", ".join(folder.name for folder in below)
        raise DataError(f"{root}: holds several VOC data sets ({names}); give the path of one of them")
    return below[0] if below else None


def read(root: Path) -> Collection:
    """Reads every annotation; boxes become half-open pixels (in VOC they are 1-based and inclusive)."""
    records: dict[str, tuple[str, Record]] = {}
    names: dict[str, int] = {}
    problems: list[str] = []
    for split, folder in _annotation_folders(root):
        index = PictureIndex(
            [root / name for name in _PICTURE_FOLDERS]
            + [folder.parent / name for name in _PICTURE_FOLDERS]
            + [folder, folder.parent, root]
        )
        for path in sorted(folder.glob("*.xml")):
            try:
                record = _read_one(path, index, names, problems)
            except DataError as error:
                problems.append(str(error))
                continue
            records[f"{split}/{path.stem}" if split else path.stem] = (split, record)
    order = {name: label for label, name in enumerate(sorted(names))}
    table = np.zeros(max(len(names), 1), np.int32)
    for name, provisional in names.items():
        table[provisional] = order[name]
    for _, record in records.values():
        record.labels[:] = table[record.labels] if len(record.labels) else record.labels
    class_names = sorted(names)
    pictures = {i: ClassPicture(path) for i, path in class_folder_pictures(root, class_names).items()}
    splits, notes = _splits(root, records, problems)
    return Collection("Pascal VOC", root, class_names, splits, pictures, notes=notes, problems=problems)


def _annotation_folders(root: Path) -> list[tuple[str, Path]]:
    """(split by folder name or "", folder with XML files)."""
    for folder in (root / "Annotations", root / "annotations", root):
        if folder.is_dir() and next(folder.glob("*.xml"), None):
            return [("", folder)]
    named = [(name, root / name) for name in _SPLIT_FOLDERS]
    return [(name, folder) for name, folder in named if folder.is_dir() and next(folder.glob("*.xml"), None)]


def _splits(root: Path, records: dict, problems: list[str]):
    by_folder: dict[str, list[Record]] = {}
    for split, record in records.values():
        by_folder.setdefault(split, []).append(record)
    if "" not in by_folder:
        return by_folder, []
    listed: dict[str, list[Record]] = {}
    notes = []
    for name in _SET_NAMES:
        path = root / "ImageSets" / "Main" / f"{name}.txt"
        if not path.is_file():
            continue
        ids = [
            line.split()[0] for line in path.read_text("utf-8", errors="replace").splitlines() if line.split()
        ]
        absent = [image_id for image_id in ids if image_id not in records]
        if absent:
            problems.append(f"{path}: {len(absent)} ids have no annotation, the first is {absent[0]}")
        listed[name] = [records[image_id][1] for image_id in dict.fromkeys(ids) if image_id in records]
    listed = {name: members for name, members in listed.items() if members}
    unlisted = len(records) - len({record.image_id for members in listed.values() for record in members})
    if listed and unlisted:
        notes.append(f"{unlisted} annotated pictures are in no list under ImageSets/Main and are not used")
    return (listed or {"": by_folder[""]}), notes


def _read_one(path: Path, index: PictureIndex, names: dict[str, int], problems: list[str]) -> Record:
    root = read_xml(path)
    if root.tag != "annotation":
        raise DataError(f"{path}: the XML is not a Pascal VOC annotation (its root is <{root.tag}>)")
    filename = (root.findtext("filename") or "").strip()
    picture = index.by_stem(path.stem) or (index.by_name(filename) if filename else None)
    if picture is None:
        raise DataError(f"{path}: its picture {filename or path.stem!r} was not found")
    boxes, labels, difficult = [], [], []
    for position, entry in enumerate(root.findall("object"), start=1):
        name = (entry.findtext("name") or "").strip()
        corners = [number(entry.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")]
        if not name or None in corners:
            problems.append(f"{path}: object {position} has no {'name' if not name else 'complete bndbox'}")
            continue
        boxes.append([corners[0] - 1, corners[1] - 1, corners[2], corners[3]])
        labels.append(names.setdefault(name, len(names)))
        difficult.append(number(entry.findtext("difficult")) == 1)
    return Record(
        path.stem,
        picture,
        picture_size(*(number(root.findtext(f"size/{key}")) for key in ("height", "width"))),
        np.asarray(boxes, np.float64).reshape(-1, 4),
        np.asarray(labels, np.int32),
        np.asarray(difficult, bool),
    )
