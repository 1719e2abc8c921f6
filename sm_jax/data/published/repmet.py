"""ImageNet-RepMet: 500 episodes of one shot and five ways, and ILSVRC's boxes without the test classes
(OS2D spec sec. 13; Karlinsky et al., CVPR 2019).

An episode is one search of its own: its class names begin with its number, and its pictures say by `listed`
that they are searched for its classes alone. A picture of several episodes is there once for each.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from sm_jax.data.published import Published, needed, restricted_pickle
from sm_jax.data.published.stored import StoredSource, crop, stored_source
from sm_jax.data.sources import splits as picture_splits
from sm_jax.data.sources.base import ClassPicture, Record
from sm_jax.data.sources.files import checked_bytes, number, picture_size, read_xml
from sm_jax.errors import ConfigError, DataError

DATA = Path("RepMet_CVPR2019_data") / "data" / "Imagenet_LOC"
EPISODES = DATA / "episodes" / "epi_inloc_in_domain_1_5_10_500.pkl"
ROIDB = DATA / "voc_inloc_roidb.pkl"
TEST_CLASSES = "repmet_test_classes.txt"
NUM_TEST_CLASSES = 214
MAX_TEXT_BYTES = 1 << 20
_SYNSET = re.compile(r"n\d{8}")


def read(dataset: Published, root: Path, splits: Sequence[str]) -> dict[str, StoredSource]:
    """The sources of "test" (all episodes), "train" and "val-N" (N boxes of the validation pictures)."""
    counts = {split: _count(split) for split in splits if split.startswith("val-")}
    data = needed(root / "ILSVRC" / "Data" / "CLS-LOC", dataset)
    sources = {}
    for split in splits:
        if split == "test":
            episodes = restricted_pickle.load(needed(root / EPISODES, dataset))
            roidb = restricted_pickle.load(needed(root / ROIDB, dataset))
            sources[split] = _Test(root, episodes, roidb).source()
            continue
        excluded = _excluded(needed(root / TEST_CLASSES, dataset))
        annotations = needed(root / "ILSVRC" / "Annotations" / "CLS-LOC" / split.split("-")[0], dataset)
        entries = list(_boxes(data, annotations, excluded, train=split == "train"))
        sources[split] = _annotated(annotations, entries, counts.get(split, 0))
    return sources


class _Test:
    """The test episodes. A class picture is the first training box of its class in the episode."""

    def __init__(self, root: Path, episodes: Any, roidb: Any):
        self._root, self._episodes = root, episodes
        if not isinstance(episodes, list) or not episodes:
            raise DataError(f"{root / EPISODES}: is not a list of episodes")
        if not isinstance(roidb, dict) or not isinstance(roidb.get("roidb"), list):
            raise DataError(f"{root / ROIDB}: has no list 'roidb'")
        self._entries: dict[str, dict] = {}
        for entry in roidb["roidb"]:
            try:
                self._entries.setdefault(entry["image"], entry)
            except (KeyError, TypeError):
                raise DataError(f"{root / ROIDB}: an entry of 'roidb' has no 'image'") from None

    def source(self) -> StoredSource:
        names: list[str] = []
        pictures: dict[int, ClassPicture] = {}
        records = []
        for index, episode in enumerate(self._episodes):
            try:
                label_of = self._classes(index, episode, names, pictures)
                listed = np.array(sorted(label_of.values()), np.int32)
                records += [
                    self._record(index, image, label_of, listed) for image in list(episode["query_images"])
                ]
            except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
                raise DataError(
                    f"{self._root / EPISODES}: episode {index} is not readable "
                    f"({type(error).__name__}: {str(error)[:100]})"
                ) from None
        return stored_source(records, names, pictures)

    def _classes(self, index: int, episode: dict, names: list[str], pictures: dict) -> dict[int, int]:
        """Class number of the episode -> label; appends to `names` and `pictures`."""
        allowed = {int(one) for one in np.asarray(episode["epi_cats"]).ravel()}
        label_of: dict[int, int] = {}
        for class_id, class_name, image, box, *_ in episode["train_boxes"]:
            class_id = int(class_id)
            if class_id not in allowed:
                raise ValueError(f"class {class_id} is not one of epi_cats")
            if class_id in label_of:
                continue
            label_of[class_id] = len(names)
            what = f"{self._root / EPISODES}: episode {index}, class {class_id}"
            pictures[len(names)] = crop(self._path(image), np.asarray(box), what)
            names.append(f"{index:03d} {class_id} {' '.join(str(class_name).split())}")
        return label_of

    def _record(self, index: int, image: str, label_of: dict[int, int], listed: np.ndarray) -> Record:
        entry = self._entries.get(image)
        if entry is None:
            raise DataError(f"{self._root / ROIDB}: has no entry for {image}, which episode {index} searches")
        try:
            if entry["flipped"]:
                raise DataError(f"{self._root / ROIDB}: the entry for {image} is flipped")
            size = int(entry["height"]), int(entry["width"])
            boxes = np.asarray(entry["boxes"], np.float64).reshape(-1, 4)
            classes = [int(one) for one in np.asarray(entry["gt_classes"]).ravel()]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{self._root / ROIDB}: the entry for {image} is not readable ({str(error)[:60]})"
            ) from None
        if len(classes) != len(boxes):
            raise DataError(
                f"{self._root / ROIDB}: the entry for {image} has {len(boxes)} boxes, {len(classes)} classes"
            )
        keep = [row for row, class_id in enumerate(classes) if class_id in label_of]
        labels = np.array([label_of[classes[row]] for row in keep], np.int32)
        path = self._path(image)
        name = f"{index:03d} {path.stem}"
        return Record(name, path, size, boxes[keep], labels, np.zeros(len(keep), bool), listed=listed)

    def _path(self, image: str) -> Path:
        """Where a picture lies here; the files name it by its path on the authors' machine."""
        inside = PurePosixPath(image.rpartition("ILSVRC/")[2])
        if inside.is_absolute() or ".." in inside.parts or "\\" in image:
            raise ValueError(f"no path below ILSVRC: {image[-60:]!r}")
        return self._root / "ILSVRC" / inside


def _boxes(data: Path, annotations: Path, excluded: set[str], *, train: bool) -> Iterator[tuple]:
    """(picture, its size, class, difficult, box) of every object that is of no test class."""
    for path in sorted(annotations.glob("*/*.xml" if train else "*.xml")):
        root = read_xml(path)
        filename = (root.findtext("filename") or "").strip()
        size = picture_size(number(root.findtext("size/height")), number(root.findtext("size/width")))
        if not re.fullmatch(r"[\w-]+", filename) or size is None:
            raise DataError(f"{path}: does not say its picture and size")
        synset = filename.split("_")[0]
        if train and synset in excluded:
            continue
        inside = Path("train", synset) if train else Path("val")
        for thing in root.iter("object"):
            name = (thing.findtext("name") or "").strip()
            corners = [number(thing.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")]
            if not _SYNSET.fullmatch(name) or None in corners:
                raise DataError(f"{path}: an object has no synset or no box")
            if name not in excluded:
                difficult = number(thing.findtext("difficult")) == 1
                yield data / inside / f"{filename}.JPEG", size, name, difficult, corners


def _annotated(annotations: Path, entries: list[tuple], count: int) -> StoredSource:
    """A source of these objects; with `count` only of so many, evenly spaced as in the original.

    Class pictures are not published for these pictures: they are crops of the split (`crop_class_pictures`).
    """
    if not entries:
        raise DataError(f"{annotations}: holds no box outside the test classes")
    if count > len(entries):
        raise DataError(f"{annotations}: holds {len(entries)} boxes, fewer than {count}")
    if count:
        entries = entries[:: len(entries) // count][:count]
    names = sorted({entry[2] for entry in entries})
    label_of = {name: label for label, name in enumerate(names)}
    by_picture: dict[Path, list[tuple]] = {}
    for entry in entries:
        by_picture.setdefault(entry[0], []).append(entry)
    records = []
    for path, members in by_picture.items():
        if not path.is_file():
            raise DataError(f"{path}: is annotated, but not there")
        boxes = np.array([entry[4] for entry in members], np.float64)
        labels = np.array([label_of[entry[2]] for entry in members], np.int32)
        difficult = np.array([entry[3] for entry in members], bool)
        records.append(Record(path.stem, path, members[0][1], boxes, labels, difficult))
    pictures = picture_splits.crop_class_pictures(records, list(range(len(names))))
    if missing := sorted(set(range(len(names))) - set(pictures)):
        raise DataError(f"{annotations}: class {names[missing[0]]} has no usable box")
    return stored_source(records, names, pictures)


def _excluded(path: Path) -> set[str]:
    text = checked_bytes(path, MAX_TEXT_BYTES).decode("utf-8", errors="replace")
    names = {line.strip() for line in text.splitlines() if line.strip()}
    if len(names) != NUM_TEST_CLASSES or not all(_SYNSET.fullmatch(name) for name in names):
        raise DataError(f"{path}: must hold the {NUM_TEST_CLASSES} synsets of the test classes, one a line")
    return names


def _count(split: str) -> int:
    digits = split.removeprefix("val-")
    if not digits.isdigit() or int(digits) < 1:
        raise ConfigError(f"split {split!r}: give the number of boxes, such as val-5000")
    return int(digits)
