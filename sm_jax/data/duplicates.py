"""Pictures that are in two splits: the same file, the same content, or (perhaps) the same look."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from sm_jax.data.sources.base import Record, read_annotated
from sm_jax.errors import ImageError

NEAR_BITS = 2  # of 128: pictures whose difference hashes differ by no more look the same


@dataclass(frozen=True)
class Look:
    """What decoding a picture told: an error, or hashes of its file and, if it has contrast, of its look."""

    problem: str = ""
    content: str = ""
    bits: np.ndarray | None = None


class Twin(NamedTuple):
    """A picture that is in two splits; `certain` is False if it only looks the same."""

    path: Path
    kind: str
    detail: str
    certain: bool


def look(record: Record) -> Look:
    """Decodes one picture in the frame of its annotation."""
    try:
        image = read_annotated(record.path, record.size)
        content = hashlib.sha256(record.path.read_bytes()).hexdigest()
    except (ImageError, OSError) as error:
        return Look(problem=str(error))
    return Look(content=content, bits=difference_hash(image))


def difference_hash(image: np.ndarray) -> np.ndarray | None:
    """bool (128,): which of neighbouring cells of a 9x9 thumbnail is brighter, along x and along y.

    None for pictures without contrast, which would all look alike.
    """
    small = np.asarray(Image.fromarray(image).convert("L").resize((9, 9), Image.Resampling.BOX)).astype(int)
    if np.ptp(small) < 16:
        return None
    along_x, along_y = np.diff(small[:8], axis=1) > 0, np.diff(small[:, :8], axis=0) > 0
    return np.concatenate([along_x.ravel(), along_y.ravel()])


def across(records: dict[str, list[Record]], looks: dict[Path, Look]) -> Iterator[Twin]:
    """Pictures of one split that are in another as well."""
    names = list(records)
    for position, split in enumerate(names):
        for other in names[position + 1 :]:
            first = {record.path for record in records[split]}
            second = {record.path for record in records[other]}
            if _one_family(split, other) or first == second:
                continue
            kind = f"in {split} and in {other}"
            contents = {looks[path].content: path for path in sorted(first) if looks[path].content}
            left = []
            for path in sorted(second):
                if path in first:
                    yield Twin(path, kind, "the same file", True)
                elif looks[path].content in contents:
                    yield Twin(path, kind, f"the same content as {contents[looks[path].content]}", True)
                else:
                    left.append(path)
            yield from _near(sorted(first), left, looks, kind)


def _near(first: list[Path], second: list[Path], looks: dict[Path, Look], kind: str) -> Iterator[Twin]:
    first = [path for path in first if looks[path].bits is not None]
    if not first:
        return
    table = np.stack([looks[path].bits for path in first])
    for path in second:
        if looks[path].bits is None:
            continue
        distance = (table != looks[path].bits).sum(axis=1)
        if distance.min() <= NEAR_BITS:
            yield Twin(path, f"perhaps {kind}", f"looks the same as {first[int(distance.argmin())]}", False)


def _one_family(split: str, other: str) -> bool:
    """Splits that share pictures on purpose: "val-old-cl" and "val-new-cl", or "train" and "trainval"."""
    pair = {split, other}
    return split.split("-")[0] == other.split("-")[0] or (
        "trainval" in pair and pair <= {"train", "val", "trainval"}
    )
