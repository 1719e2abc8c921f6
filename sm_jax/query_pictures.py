"""Query pictures as people give them: named, read, and checked, for every detector that takes pictures."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sm_jax.data import images as pictures
from sm_jax.errors import ConfigError, ImageError
from sm_jax.search import listed

MAX_ASPECT = 30
PREVIEW = 160  # longer side, in pixels, of the picture kept with a request


class QueryPicture(NamedTuple):
    """A query: its label, what error messages call it, its path ("" if none) and the uint8 picture."""

    label: str
    name: str
    source: str
    image: np.ndarray


def read(queries, labels: str | Sequence[str] | None) -> Iterator[QueryPicture]:
    """The query pictures one by one.

    Args:
      queries: a picture, several, or a dict label -> picture or several.
      labels: one for each picture of a list, or one for all; default: file names without ending, "query".

    Raises:
      ConfigError: no query, or labels that do not fit; ImageError: a picture that cannot be read, or whose
      longer side is more than `MAX_ASPECT` times the shorter one.
    """
    for label, picture, source in _labelled(queries, labels):
        name = source or f"query {label!r}"
        image = pictures.as_image(picture, name=name)
        height, width = image.shape[:2]
        if max(height, width) > MAX_ASPECT * min(height, width):
            raise ImageError(
                f"{name}: {width}x{height} is too thin for a query (at most {MAX_ASPECT}:1); crop it"
            )
        yield QueryPicture(label, name, source, image)


def preview(image: np.ndarray) -> np.ndarray:
    """A copy of at most `PREVIEW` pixels a side, for reports."""
    factor = min(1.0, PREVIEW / max(image.shape[:2]))
    return pictures.resize(image, tuple(max(1, round(side * factor)) for side in image.shape[:2]))


def _labelled(queries, labels) -> Iterable[tuple[str, Any, str]]:
    """(label, picture, path or "") of each query."""
    if isinstance(queries, Mapping):
        if labels is not None:
            raise ConfigError("labels: the queries are a dict, whose keys are the labels")
        pairs = [(str(label), picture) for label, value in queries.items() for picture in listed(value)]
    else:
        given = listed(queries)
        if isinstance(labels, str):
            labels = [labels] * len(given)
        if labels is None:
            labels = [Path(q).stem if isinstance(q, (str, os.PathLike)) else "query" for q in given]
        labels = list(labels)
        if len(labels) != len(given):
            raise ConfigError(
                f"labels: {len(labels)} for {len(given)} queries; give one for each, or one for all"
            )
        pairs = list(zip(map(str, labels), given, strict=True))
    if not pairs:
        raise ConfigError("no query: give at least one picture of what to look for")
    return [(label, q, os.fspath(q) if isinstance(q, (str, os.PathLike)) else "") for label, q in pairs]
