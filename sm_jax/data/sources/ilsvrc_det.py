"""ILSVRC-DET as it is published, and the rule for classes that a model trained on it has not seen.

    ILSVRC/Data/DET/          train/ILSVRC2013_train/<wnid>/*.JPEG  train/ILSVRC2014_train_000x/*.JPEG  val/
    ILSVRC/Annotations/DET/   the same tree of XML files
    ILSVRC/ImageSets/DET/     train_<k>.txt (image and flag: 1 positive, 0 partial, -1 negative)  val.txt
    map_det.txt               wnid, k, name: in the devkit, or beside the three folders

Our own addition is a part `unseen/<wnid>/` in Data/DET and Annotations/DET, with pictures of synsets outside
the 200 classes in the same form; see `unseen_synsets`.

Source: Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge (2015); SSM specification,
section 7. Boxes are taken as 0-based with the last pixel included, as the challenge's scoring counts them.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from sm_jax.data.sources.base import ClassPicture, Collection, Record
from sm_jax.data.sources.files import (
    PictureIndex,
    checked_bytes,
    class_folder_pictures,
    number,
    picture_size,
    read_xml,
)
from sm_jax.errors import DataError

NUM_CLASSES = 200
MAX_LIST_BYTES = 1 << 30
NO_TEST = "the labels of the test images are not published; evaluate on 'val'"
_MAPS = (
    "map_det.txt",
    "devkit/data/map_det.txt",
    "*devkit*/data/map_det.txt",
    "../*devkit*/data/map_det.txt",
)
_NO_LISTS = (
    "there are no ImageSets/DET/train_<k>.txt: of the 2013 training images only the annotated classes are "
    "known, so none of them makes a negative pair"
)


def find(root: Path) -> Path | None:
    """The folder ILSVRC, `root` or inside it; None if there is none."""
    for folder in (root, root / "ILSVRC"):
        if (folder / "Annotations" / "DET").is_dir() and (folder / "Data" / "DET").is_dir():
            return folder
    return None


def read(root: Path) -> Collection:
    """Reads every annotation.

    Splits are "train" with its parts "train-2013" and "train-2014", "val", and "unseen". Classes are the 200
    in the order of k (without map_det.txt they are called by their wnid), then the synsets of "unseen". An
    annotation of 2013 speaks of some classes only (`Record.listed`): of those that the lists call positive or
    negative for the image; where no list calls it negative, of all but those that call it partial.

    Raises:
      DataError: a list that cannot be read.
    """
    problems: list[str] = []
    names = _class_table(root)
    reader = _Reader(root, [wnid for wnid, _ in names], problems)
    parts = {
        "train-2013": reader.records("train/ILSVRC2013_train*"),
        "train-2014": reader.records("train/ILSVRC2014_train*"),
        "val": _in_list(root, reader.records("val"), problems),
    }
    if not names:
        names = [(wnid, wnid) for wnid in sorted(reader.labels)]
    known = {wnid for wnid, _ in names}
    reader.may_add = True
    parts["unseen"] = reader.records("unseen")
    added = sorted(set(reader.labels) - known)
    order = {wnid: label for label, wnid in enumerate([*(wnid for wnid, _ in names), *added])}
    table = np.zeros(max(len(reader.labels), 1), np.int32)
    for wnid, provisional in reader.labels.items():
        table[provisional] = order[wnid]
    for records in parts.values():
        for record in records:
            record.labels[:] = table[record.labels]
    notes = []
    parts["train-2013"], listed = _with_lists(root, parts["train-2013"], len(names))
    if parts["train-2013"] and not listed:
        notes.append(_NO_LISTS)
    splits = {"train": parts["train-2013"] + parts["train-2014"], **parts}
    class_names = [*(name for _, name in names), *added]
    return Collection(
        "ILSVRC-DET",
        root,
        class_names,
        {split: records for split, records in splits.items() if records},
        {i: ClassPicture(path) for i, path in class_folder_pictures(root, class_names).items()},
        seen=[name for _, name in names],
        refused={"test": NO_TEST},
        notes=notes,
        problems=problems,
    )


class _Reader:
    """Reads the annotations of parts of the tree; `labels` are provisional, in the order they are met."""

    def __init__(self, root: Path, wnids: list[str], problems: list[str]):
        self._root, self._problems = root, problems
        self.may_add = not wnids  # whether another wnid than these is a class
        self.labels: dict[str, int] = {wnid: label for label, wnid in enumerate(wnids)}

    def records(self, pattern: str) -> list[Record]:
        annotations = self._root / "Annotations" / "DET"
        records = []
        for part in sorted(annotations.glob(pattern)):
            for folder in [part, *sorted(path for path in part.iterdir() if path.is_dir())]:
                below = folder.relative_to(annotations)
                pictures = PictureIndex([self._root / "Data" / "DET" / below])
                for path in sorted(folder.glob("*.xml")):
                    try:
                        records.append(self._record(path, below, pictures))
                    except DataError as error:
                        self._problems.append(str(error))
        return records

    def _record(self, path: Path, below: Path, pictures: PictureIndex) -> Record:
        root = read_xml(path)
        picture = pictures.by_stem(path.stem)
        if picture is None:
            raise DataError(f"{path}: its picture was not found in {pictures.folders or below}")
        boxes, labels, difficult = [], [], []
        for position, entry in enumerate(root.findall("object"), start=1):
            wnid = (entry.findtext("name") or "").strip()
            corners = [number(entry.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")]
            if not wnid or None in corners:
                self._problems.append(f"{path}: object {position} has no name or no complete bndbox")
            elif wnid not in self.labels and not self.may_add:
                self._problems.append(f"{path}: object {position} is {wnid}, which is none of the classes")
            else:
                boxes.append([corners[0], corners[1], corners[2] + 1, corners[3] + 1])
                labels.append(self.labels.setdefault(wnid, len(self.labels)))
                difficult.append(number(entry.findtext("difficult")) == 1)
        return Record(
            "/".join((*below.parts[1:], path.stem)) if below.parts[0] == "train" else path.stem,
            picture,
            picture_size(*(number(root.findtext(f"size/{key}")) for key in ("height", "width"))),
            np.asarray(boxes, np.float64).reshape(-1, 4),
            np.asarray(labels, np.int32),
            np.asarray(difficult, bool),
        )


def _class_table(root: Path) -> list[tuple[str, str]]:
    """(wnid, name) of the DET classes in the order of k; empty if no file tells."""
    for path in (path for pattern in _MAPS for path in sorted(root.glob(pattern))):
        entries = [line.split(None, 2) for line in _lines(path)]
        if not all(len(entry) == 3 and entry[1].isdigit() for entry in entries):
            raise DataError(f"{path}: expected lines of wnid, number and name")
        entries.sort(key=lambda entry: int(entry[1]))
        often = Counter(name for _, _, name in entries)
        return [(wnid, name if often[name] == 1 else f"{name} ({wnid})") for wnid, _, name in entries]
    table = []
    for k in range(1, NUM_CLASSES + 1):  # the images that list k calls positive lie in its own folder
        path = root / "ImageSets" / "DET" / f"train_{k}.txt"
        if not path.is_file():
            return []
        found = Counter(image.split("/")[1] for image, flag in _flags(path) if flag > 0 and "/n" in image)
        if not found:
            return []
        table.append((found.most_common(1)[0][0],) * 2)
    return table


def _flags(path: Path) -> list[tuple[str, int]]:
    """(image, flag) of a list; the flag is 1 where there is none."""
    entries = []
    for line in _lines(path):
        image, *rest = line.split()
        if rest and rest[0] not in ("-1", "0", "1"):
            raise DataError(f"{path}: the flag of {image} is {rest[0][:20]!r}, not -1, 0 or 1")
        entries.append((image, int(rest[0]) if rest else 1))
    return entries


def _with_lists(root: Path, records: list[Record], count: int) -> tuple[list[Record], bool]:
    """The 2013 records with the classes that they speak of, and whether there are any lists."""
    verified: dict[str, set[int]] = {record.image_id: set() for record in records}
    partial: dict[str, set[int]] = {record.image_id: set() for record in records}
    negative: set[str] = set()
    lists = 0
    for label in range(count):
        path = root / "ImageSets" / "DET" / f"train_{label + 1}.txt"
        if not records or not path.is_file():
            continue
        lists += 1
        for image, flag in _flags(path):
            if image in verified:
                (verified if flag else partial)[image].add(label)
                if flag < 0:
                    negative.add(image)
    everything = set(range(count))
    shared: dict[frozenset, np.ndarray] = {}  # few different ones for hundreds of thousands of images
    result = []
    for record in records:
        if not lists:
            known = set(record.labels.tolist())
        elif record.image_id in negative:
            known = verified[record.image_id]
        else:
            known = everything - partial[record.image_id]
        key = frozenset(known)
        shared.setdefault(key, np.array(sorted(known), np.int32))
        result.append(replace(record, listed=shared[key]))
    return result, bool(lists)


def _in_list(root: Path, records: list[Record], problems: list[str]) -> list[Record]:
    """The records that ImageSets/DET/val.txt names, if there is such a list."""
    path = root / "ImageSets" / "DET" / "val.txt"
    if not path.is_file() or not records:
        return records
    wanted = [line.split()[0] for line in _lines(path)]
    by_id = {record.image_id: record for record in records}
    absent = [image for image in wanted if image not in by_id]
    if absent:
        problems.append(f"{path}: {len(absent)} ids have no annotation, the first is {absent[0]}")
    return [by_id[image] for image in dict.fromkeys(wanted) if image in by_id]


def unseen_synsets(
    annotations: str | Path,
    seen: Iterable[str],
    *,
    is_a: str | Path | None = None,
    count: int = 90,
    min_images: int = 50,
    seed: int = 0,
) -> list[str]:
    """Synsets for evaluation on unseen classes, ascending.

    The list of the paper is not published; ours follows from a rule. Of the synsets with at least
    `min_images` boxed images, those are left out that are one of the seen ones or, in WordNet, above or below
    one of them. Of the others, `count` are taken: the first by the SHA-256 of "<seed> <wnid>".

    Args:
      annotations: a folder per wnid with one XML per boxed image (ImageNet's bounding boxes).
      seen: wnids of the classes that are trained on.
      is_a: wordnet.is_a.txt, lines of parent and child; without it only the seen synsets are left out.

    Raises:
      DataError: fewer than `count` are left, or a file cannot be read.
    """
    folder = Path(annotations).expanduser()
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; it should hold a folder of XML files per synset")
    seen = set(seen)
    excluded = seen | (_relatives(Path(is_a).expanduser(), seen) if is_a is not None else set())
    candidates = [
        path.name
        for path in folder.iterdir()
        if path.is_dir() and path.name not in excluded and sum(1 for _ in path.glob("*.xml")) >= min_images
    ]
    if len(candidates) < count:
        raise DataError(
            f"{folder}: {len(candidates)} synsets with at least {min_images} boxed images are left, fewer "
            f"than {count}"
        )
    candidates.sort(key=lambda wnid: hashlib.sha256(f"{seed} {wnid}".encode()).hexdigest())
    return sorted(candidates[:count])


def write_list(path: str | Path, names: Iterable[str]) -> None:
    """Writes class names one a line, as `unseen.txt` and `seen.txt` are read."""
    Path(path).write_text("".join(f"{name}\n" for name in names), "utf-8")


def read_list(path: str | Path) -> list[str]:
    """The names of a list that `write_list` wrote; raises DataError."""
    return _lines(Path(path))


def seen_synsets(root: str | Path) -> list[str]:
    """The wnids of the DET classes in the order of k.

    Raises:
      DataError: neither map_det.txt nor the lists of all classes are there.
    """
    folder = Path(root).expanduser()
    table = _class_table(find(folder) or folder)
    if not table:
        raise DataError(f"{root}: neither map_det.txt nor all of ImageSets/DET/train_<k>.txt were found")
    return [wnid for wnid, _ in table]


def _relatives(path: Path, seen: set[str]) -> set[str]:
    """Everything above or below the seen synsets."""
    parents: dict[str, list[str]] = {}
    children: dict[str, list[str]] = {}
    for line in _lines(path):
        pair = line.split()
        if len(pair) != 2:
            raise DataError(f"{path}: expected lines of two wnids, not {line[:60]!r}")
        parents.setdefault(pair[1], []).append(pair[0])
        children.setdefault(pair[0], []).append(pair[1])
    return _closure(seen, parents) | _closure(seen, children)


def _closure(start: set[str], edges: dict[str, list[str]]) -> set[str]:
    found, queue = set(start), list(start)
    while queue:
        for neighbour in edges.get(queue.pop(), ()):
            if neighbour not in found:
                found.add(neighbour)
                queue.append(neighbour)
    return found


def _lines(path: Path) -> list[str]:
    text = checked_bytes(path, MAX_LIST_BYTES).decode("utf-8", errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
