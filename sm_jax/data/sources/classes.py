"""Seen and unseen classes: which classes of a data set a model may be trained on.

`seen.txt` and `unseen.txt` lie beside the annotations (in the data set's folder) and hold class names, one a
line; an empty line or one that starts with # says nothing. One of the files is enough: the other half is then
all other classes.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sm_jax.data.sources.base import Source
from sm_jax.data.sources.files import checked_bytes
from sm_jax.errors import ConfigError, DataError

CLASSES = ("all", "seen", "unseen")
FILES = {"seen": "seen.txt", "unseen": "unseen.txt"}
MAX_LIST_BYTES = 16 << 20


def class_list(folder: Path, class_names: list[str], half: str, *, default: Iterable[str] = ()) -> list[str]:
    """Names of the "seen" or the "unseen" classes (`half`), in the order of `class_names`.

    Args:
      folder: where the files lie.
      class_names: of the whole data set.
      half: "seen" or "unseen".
      default: the seen classes if there are no files.

    Raises:
      DataError: no file and no default, an empty half, an unknown class name, a class in both files.
    """
    found = {name: _read(folder / file) for name, file in FILES.items() if (folder / file).is_file()}
    if not found and default:
        found = {"seen": list(default)}
    if not found:
        raise DataError(f"{folder}: there is neither seen.txt nor unseen.txt to tell the classes apart")
    known = set(class_names)
    for name, members in found.items():
        unknown = [member for member in members if member not in known]
        if unknown:
            raise DataError(
                f"{folder / FILES[name]}: {len(unknown)} names are no class of the data set: {_some(unknown)}"
            )
    both = sorted(set(found.get("seen", ())) & set(found.get("unseen", ())))
    if both:
        raise DataError(f"{folder}: {len(both)} classes are in seen.txt and in unseen.txt: {_some(both)}")
    other = "unseen" if half == "seen" else "seen"
    chosen = set(found[half]) if half in found else known - set(found[other])
    if not chosen:
        why = f"{FILES[half]} is empty" if half in found else f"all classes are {other}"
        raise DataError(f"{folder}: there are no {half} classes, {why}")
    return [name for name in class_names if name in chosen]


def restrict(source: Source, names: list[str], *, what: str, keep_empty: bool = True) -> "ClassSubset":
    """`source` with the classes that are among `names`; see `of_classes`.

    Raises:
      DataError: `what` (for the message) has none of them.
    """
    chosen = set(names) & set(source.class_names)
    if not chosen:
        raise DataError(f"{what}: none of its {source.num_classes} classes is chosen")
    return of_classes(source, chosen, keep_empty=keep_empty)


def of_classes(source: Source, names: Iterable[str], *, keep_empty: bool = True) -> "ClassSubset":
    """The source of some classes: boxes of the others are dropped, labels count within the chosen ones.

    Args:
      source: any source.
      names: of its class names; they keep the order of the source.
      keep_empty: keep pictures that show none of the chosen classes. Held-out pictures are kept, for a
        detection there is a false one; training leaves them out. Pictures without any box stay in any case.

    Raises:
      DataError: no name, an unknown name, or no picture is left.
    """
    return ClassSubset(source, names, keep_empty=keep_empty)


class ClassSubset:
    """`Source` of some classes of another; arguments as `of_classes`."""

    def __init__(self, source: Source, names: Iterable[str], *, keep_empty: bool = True):
        chosen = set(names)
        if unknown := sorted(chosen - set(source.class_names)):
            raise DataError(f"{len(unknown)} names are no class of the source: {_some(unknown)}")
        if not chosen:
            raise DataError("no classes are chosen: the split is empty")
        self._source = source
        self._labels = [label for label, name in enumerate(source.class_names) if name in chosen]
        self._index = np.full(source.num_classes, -1, np.int32)
        self._index[self._labels] = np.arange(len(self._labels), dtype=np.int32)
        self.class_names = [source.class_names[label] for label in self._labels]
        self.num_classes = len(self.class_names)
        self._images = np.arange(len(source))
        if not keep_empty:
            self._images = np.flatnonzero([self._shows(index) for index in range(len(source))])
        if not len(self._images):
            raise DataError(f"no picture shows one of the {self.num_classes} chosen classes")

    def __len__(self) -> int:
        return len(self._images)

    def annotation(self, index: int) -> dict[str, Any]:
        note = dict(self._source.annotation(self._place(index)))
        labels = self._index[note["labels"]]
        keep = labels >= 0
        note.update({key: note[key][keep] for key in ("boxes", "difficult")}, labels=labels[keep])
        return note

    def listed(self, index: int) -> np.ndarray | None:
        """As `RecordSource.listed`."""
        if not hasattr(self._source, "listed"):
            return None
        labels = self._source.listed(self._place(index))
        if labels is None:
            return None
        labels = self._index[labels]
        return labels[labels >= 0]

    def image(self, index: int) -> np.ndarray:
        return self._source.image(self._place(index))

    def image_bytes(self, index: int) -> bytes | None:
        """As `RecordSource.image_bytes`."""
        if not hasattr(self._source, "image_bytes"):
            return None
        return self._source.image_bytes(self._place(index))

    def query(self, label: int) -> np.ndarray:
        return self._source.query(self._labels[label])

    def query_size(self, label: int) -> tuple[int, int]:
        """(height, width) of the class picture, without decoding it where the source can tell."""
        if hasattr(self._source, "query_size"):
            return self._source.query_size(self._labels[label])
        return self.query(label).shape[:2]

    def _place(self, index: int) -> int:
        return int(self._images[index])

    def _shows(self, index: int) -> bool:
        labels = self._source.annotation(index)["labels"]
        return not len(labels) or bool((self._index[labels] >= 0).any())


def check_choice(classes: str) -> None:
    """Raise ConfigError unless `classes` is one of `CLASSES`."""
    if classes not in CLASSES:
        raise ConfigError(f"classes={classes!r}: choose one of {', '.join(CLASSES)}")


def _read(path: Path) -> list[str]:
    content = checked_bytes(path, MAX_LIST_BYTES)
    try:
        lines = [line.strip() for line in content.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a text file in UTF-8") from None
    return list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
