"""From a `Collection` to the source of one split: which pictures, which classes, which class pictures."""

import hashlib
import math
from dataclasses import replace

import numpy as np

from sm_jax.data.sources.base import ClassPicture, Collection, Record, RecordSource, usable_boxes
from sm_jax.errors import DataError

HELD_OUT = 0.2  # share of the pictures held out when the data set has no division of its own
_NAMES = {
    "train": ("train", "training", "trainval"),
    "val": ("val", "valid", "validation", "dev", "test", "testing"),
    "test": ("test", "testing", "val", "valid", "validation", "dev"),
}
_ASPECT_SLACK = math.log(1.25)


def split_records(collection: Collection, split: str) -> tuple[list[Record], list[str]]:
    """Records of `split` and notes on how they were chosen.

    A name the files use is taken as it is, and "all" is every picture. Otherwise "train", "val" and "test"
    fall back on their usual synonyms, then on each other ("val" and "test" only). Without any held-out
    pictures, one in five is held out, by a hash of its id: pictures added later hardly move the others.

    Raises:
      DataError: no such split, or one that cannot be used.
    """
    splits = collection.splits
    if split in collection.refused:
        raise DataError(f"{collection.root}: {collection.refused[split]}")
    if split == "all" and split not in splits:
        members = [record for records in splits.values() for record in records]
        members.sort(key=lambda record: len(record.boxes))  # of several views of a picture the fullest stays
        return list({record.path: record for record in members}.values()), []
    train_name = _first(splits, "train")
    held_name = _first(splits, "val")
    if train_name is None and (held_name is None or len(splits) == 1):
        train_name = next(iter(splits)) if len(splits) == 1 else None
        held_name = None
    if held_name is None and train_name is not None and split in _NAMES:
        return _carve(splits[train_name], split)
    if split in splits:
        return splits[split], []
    name = _first(splits, split) if split in _NAMES else None
    if name is None:
        raise DataError(f"{collection.root}: there is no split {split!r}, only {', '.join(sorted(splits))}")
    return splits[name], [f"split {split!r} is the data set's {name!r}"]


def training_records(collection: Collection) -> list[Record]:
    """Records of the training split, which class pictures are cropped from; empty if there is none."""
    try:
        return split_records(collection, "train")[0]
    except DataError:
        return []


def make_source(
    collection: Collection, split: str, *, own_pictures: bool = False
) -> tuple[RecordSource, list[str]]:
    """Source of one split and notes.

    Its classes are those with a usable box in the split and a class picture: a given one, or a crop of the
    training split. The classes keep their order; indices count within the split.

    Args:
      own_pictures: crop the class pictures of classes that training never shows from the split itself; for
        detection by request, where every object of a split may be a request.

    Raises:
      DataError: no such split, no pictures or no usable class.
    """
    records, notes = split_records(collection, split)
    if not records:
        raise DataError(f"{collection.root}: split {split!r} has no pictures")
    present = np.unique(np.concatenate([record.labels[_usable(record)] for record in records]))
    missing = [label for label in present.tolist() if label not in collection.class_pictures]
    pictures = dict(collection.class_pictures) | crop_class_pictures(training_records(collection), missing)
    if own_pictures:
        missing = [label for label in missing if label not in pictures]
        pictures |= crop_class_pictures(records, missing)
    kept = [label for label in present.tolist() if label in pictures]
    lost = [collection.class_names[label] for label in present.tolist() if label not in pictures]
    if lost:
        notes = notes + [
            f"{len(lost)} classes of split {split!r} have neither a class picture nor a training box and are "
            f"left out: {', '.join(lost[:5])}{' ...' if len(lost) > 5 else ''}"
        ]
    if not kept:
        raise DataError(
            f"{collection.root}: split {split!r} has no class with a usable box and a class picture; "
            "see `sm-jax data check`"
        )
    records = [
        replace(record, size=size) if (size := record.known_size())[0] else record for record in records
    ]
    index = np.full(max(len(collection.class_names), 1), -1, np.int32)
    index[kept] = np.arange(len(kept), dtype=np.int32)
    listed: dict[int, np.ndarray] = {}  # by identity: many records share one array, and so do their copies
    relabelled = [_relabel(record, index, listed) for record in records]
    names = [collection.class_names[label] for label in kept]
    return RecordSource(relabelled, names, [pictures[label] for label in kept]), notes


def crop_class_pictures(records: list[Record], labels: list[int]) -> dict[int, ClassPicture]:
    """Class pictures cut from training boxes.

    Per class: boxes that are not difficult and do not touch the picture's border are preferred; of those
    within 25 % of the median aspect ratio the largest is taken, the first of equals.
    """
    if not labels:
        return {}
    wanted = set(labels)
    found: dict[int, list[tuple]] = {label: [] for label in labels}
    for order, record in enumerate(records):
        if wanted.isdisjoint(record.labels.tolist()):
            continue
        size = record.known_size()
        boxes, usable = usable_boxes(record.pixel_boxes(size), size)
        inside = (boxes[:, :2] > 0.5).all(axis=-1) & (boxes[:, 2:] < np.array(size[::-1]) - 0.5).all(axis=-1)
        for box, label, ok, free, hard in zip(
            boxes, record.labels.tolist(), usable, inside, record.difficult, strict=True
        ):
            if ok and label in wanted:
                found[label].append((order, box, bool(free and not hard), bool(not hard)))
    return {label: _choose(records, candidates) for label, candidates in found.items() if candidates}


def _choose(records: list[Record], candidates: list[tuple]) -> ClassPicture:
    for quality in (2, 3):
        if any(candidate[quality] for candidate in candidates):
            candidates = [candidate for candidate in candidates if candidate[quality]]
            break
    boxes = np.stack([candidate[1] for candidate in candidates]).astype(np.float64)
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    aspect = np.log(width / height)
    distance = np.abs(aspect - np.median(aspect))
    near = distance <= max(_ASPECT_SLACK, distance.min())
    best = int(np.argmax(np.where(near, width * height, -1.0)))
    left, top = np.floor(boxes[best, :2]).astype(int).tolist()
    right, bottom = np.ceil(boxes[best, 2:]).astype(int).tolist()
    record = records[candidates[best][0]]
    return ClassPicture(record.path, (left, top, right, bottom), record.size)


def _usable(record: Record) -> np.ndarray:
    size = record.known_size()
    return usable_boxes(record.pixel_boxes(size), size)[1]


def _relabel(record: Record, index: np.ndarray, listed: dict[int, np.ndarray]) -> Record:
    labels = index[record.labels] if len(record.labels) else record.labels
    keep = labels >= 0
    if record.listed is not None and id(record.listed) not in listed:
        places = index[record.listed]
        listed[id(record.listed)] = places[places >= 0]
    return replace(
        record,
        listed=None if record.listed is None else listed[id(record.listed)],
        boxes=record.boxes[keep],
        labels=labels[keep].astype(np.int32),
        difficult=record.difficult[keep],
    )


def _first(splits: dict[str, list[Record]], split: str) -> str | None:
    return next((name for name in _NAMES[split] if name in splits), None)


def _carve(records: list[Record], split: str) -> tuple[list[Record], list[str]]:
    if len(records) == 1:
        return records, ["the data set has a single picture: it serves for training and for evaluation"]
    keys = [hashlib.sha256(record.image_id.encode()).digest() for record in records]
    order = sorted(range(len(records)), key=keys.__getitem__)
    count = max(1, round(HELD_OUT * len(records)))
    held = set(order[:count])
    note = (
        f"the data set has no held-out pictures: {count} of {len(records)} are held out for evaluation, "
        "chosen by a hash of their ids"
    )
    return [record for i, record in enumerate(records) if (i in held) == (split != "train")], [note]
