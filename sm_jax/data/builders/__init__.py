"""Data sets as TFDS folders of ArrayRecord files: one `build`, then fast random access from any machine."""

from pathlib import Path
from typing import Any

import numpy as np

from sm_jax.data import images
from sm_jax.data.builders import facts
from sm_jax.data.sources import classes, open_collection
from sm_jax.data.sources.base import Source
from sm_jax.data.sources.files import outside
from sm_jax.data.sources.splits import make_source
from sm_jax.errors import ConfigError, DataError

CLASSES = "classes"


def build(path: str | Path, folder: str | Path, *, splits: tuple[str, ...] = ("train", "val")) -> Path:
    """Builds the data set at `path` into `folder` (which must not be inside it) and returns the built folder.

    Boxes are the usable ones, class pictures those a training run would use. Pictures are stored without
    loss: as the files they are, or as PNG.

    Raises:
      ConfigError: the folder lies inside the data set.
      DataError: see `sources.open_source`; also for a picture that cannot be read.
    """
    target = outside(folder, path)
    collection = open_collection(path)
    if collection.objects:
        raise DataError(f"{path}: a folder per class has no scenes to build; train on it directly")
    files = {file for file in classes.FILES.values() if (collection.root / file).is_file()}
    files |= {"seen.txt"} if collection.seen else set()
    sources = {split: make_source(collection, split, own_pictures=bool(files))[0] for split in splits}
    built = build_sources(sources, target)
    stored = set(built_class_names(sources))
    for half, file in classes.FILES.items():
        if file in files:
            names = classes.class_list(collection.root, collection.class_names, half, default=collection.seen)
            (built / file).write_text("".join(f"{name}\n" for name in names if name in stored), "utf-8")
    return built


def build_sources(sources: dict[str, Source], folder: str | Path) -> Path:
    """As `build`, from sources by split name; classes are told apart by name."""
    from sm_jax.data.builders.detection_by_request import DetectionByRequest

    names = built_class_names(sources)
    if CLASSES in sources:
        raise ConfigError(f"a split cannot be called {CLASSES!r}: class pictures are stored under this name")
    builder = DetectionByRequest(
        sources=sources, class_names=names, data_dir=str(folder), file_format="array_record"
    )
    builder.download_and_prepare()
    return Path(builder.data_dir)


def built_class_names(sources: dict[str, Source]) -> list[str]:
    """The class names of a build, in the order of their numbers."""
    return list(dict.fromkeys(name for source in sources.values() for name in source.class_names))


def open_source(folder: str | Path, *, split: str = "train") -> "BuiltSource":
    """Source of one split of a folder made by `build`; raises DataError for anything else."""
    return BuiltSource(folder, split)


def find(path: str | Path) -> Path | None:
    """The built folder at `path`, or, where that is the folder it was built into, in it; None for others."""
    path = Path(path).expanduser()
    inside = sorted((path / "detection_by_request").glob("*/dataset_info.json"))
    return path if (path / "dataset_info.json").is_file() else inside[-1].parent if inside else None


class BuiltSource:
    """`Source` over ArrayRecord files; classes are those of the split, in the order of the data set's list.

    Pictures of a published data set whose longer side is not its nominal one are brought to that area, as
    the original does when it reads them (OS2D spec sec. 11).

    Args:
      folder: what `build` returned.
      split: one of its splits.
    """

    def __init__(self, folder: str | Path, split: str):
        self._folder, self._split = str(folder), split
        found = facts.read(folder)
        self._nominal = found.nominal if found else 0
        builder = open_folder(self._folder)
        available = sorted(set(builder.info.splits) - {CLASSES})
        if CLASSES not in builder.info.splits:
            raise DataError(f"{folder}: a TFDS folder, but not one built by sm_jax.data.builders")
        if split not in available:
            raise DataError(f"{folder}: there is no split {split!r}, only {', '.join(available)}")
        self._open(builder)
        self._annotations = [self._read_annotation(example) for example in self._examples]
        self._listed = [self._read_listed(example) for example in self._examples]
        present = sorted({int(label) for entry in self._annotations for label in entry["labels"]})
        all_names = builder.info.features["objects"]["label"].names
        rows = [_objects(example)[1][0] for example in self._pictures]
        row_of = {int(label): row for row, label in enumerate(rows)}
        self._query_rows = [row_of[label] for label in present]
        self.all_class_names = list(all_names)
        self.class_names = [all_names[label] for label in present]
        self.num_classes = len(present)
        index = {label: position for position, label in enumerate(present)}
        for entry in self._annotations:
            entry["labels"] = np.array([index[int(label)] for label in entry["labels"]], np.int32)
        shared = {
            labels: np.array([index[label] for label in labels if label in index], np.int32)
            for labels in set(self._listed) - {None}
        }
        self._listed = [None if labels is None else shared[labels] for labels in self._listed]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_examples", "_pictures")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open(open_folder(self._folder))  # open files do not travel between processes

    def __len__(self) -> int:
        return len(self._annotations)

    def annotation(self, index: int) -> dict[str, Any]:
        return dict(self._annotations[index])

    def image(self, index: int) -> np.ndarray:
        image = images.read_image(self._examples[index]["image"], name=f"{self._split} picture {index}")
        return images.resize(image, self._size(image.shape[:2]), "lanczos")

    def listed(self, index: int) -> np.ndarray | None:
        """As `RecordSource.listed`."""
        return self._listed[index]

    def query(self, label: int) -> np.ndarray:
        content = self._pictures[self._query_rows[label]]["image"]
        return images.read_image(content, name=f"class picture {self.class_names[label]}")

    def query_size(self, label: int) -> tuple[int, int]:
        return images.image_size(self._pictures[self._query_rows[label]]["image"])

    def _open(self, builder) -> None:
        import tensorflow_datasets as tfds

        raw = {"image": tfds.decode.SkipDecoding()}
        self._examples = builder.as_data_source(self._split, decoders=raw)
        self._pictures = builder.as_data_source(CLASSES, decoders=raw)

    def _size(self, stored: tuple[int, int]) -> tuple[int, int]:
        if not self._nominal or max(stored) == self._nominal:
            return stored
        return images.fit_to_area(stored, self._nominal)

    @staticmethod
    def _read_listed(example: dict[str, Any]) -> tuple[int, ...] | None:
        if example.get("exhaustive", True):  # builds of version 1.0.0 do not say
            return None
        return tuple(np.asarray(example["listed"], np.int64).reshape(-1).tolist())

    def _read_annotation(self, example: dict[str, Any]) -> dict[str, Any]:
        size = self._size(images.image_size(example["image"]))
        shares, labels, difficult = _objects(example)
        boxes = shares[:, [1, 0, 3, 2]] * np.array([size[1], size[0]] * 2, np.float32)
        name = example["image_id"]
        return {
            "image_id": name.decode() if isinstance(name, bytes) else str(name),
            "size": size,
            "boxes": boxes.astype(np.float32),
            "labels": labels,
            "difficult": difficult,
        }


def _objects(example: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """yxyx shares f32 (n, 4), labels i32 (n,), difficult bool (n,); TFDS gives (perhaps empty) lists."""
    objects = example["objects"]
    return (
        np.asarray(objects["bbox"], np.float32).reshape(-1, 4),
        np.asarray(objects["label"], np.int32).reshape(-1),
        np.asarray(objects["difficult"], bool).reshape(-1),
    )


def open_folder(folder: str):
    """The TFDS builder of a built folder; raises DataError for anything else."""
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(folder)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}: not a built data set ({' '.join(str(error).split())[:120]})") from error
