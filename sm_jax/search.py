"""Pictures through a predictor: sizes and scales chosen, levels resized and normalised one at a time."""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from sm_jax.data import images, transforms
from sm_jax.errors import ConfigError, ImageError
from sm_jax.systems.os2d.predict import Predictor, pyramid_sizes, query_views

MAX_LEVEL_PIXELS = 64_000_000
_ONE = (str, bytes, bytearray, memoryview, os.PathLike, Image.Image, Mapping)


def listed(value: Any) -> list:
    """A list from one picture or phrase, or from any iterable of them, generators too."""
    single = isinstance(value, _ONE) or hasattr(value, "__array__") or not isinstance(value, Iterable)
    return [value] if single else list(value)


def checked_scales(scales: Iterable[float]) -> tuple[float, ...]:
    """The scales as floats. Raises ConfigError unless there are some and all are positive and finite."""
    try:
        scales = tuple(float(scale) for scale in scales)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"scales: {scales!r} must be positive numbers, such as 0.5 1 2") from error
    if not scales or not all(math.isfinite(scale) and scale > 0 for scale in scales):
        raise ConfigError(f"scales: {scales} must be positive numbers, such as 0.5 1 2")
    return scales


def check_level_sizes(image_size: tuple[int, int], scales: Sequence[float], *, name: str) -> None:
    """Raises ImageError, in which the image is called `name`, if a pyramid level would be too large."""
    for scale, (height, width) in zip(scales, pyramid_sizes(image_size, scales), strict=True):
        if height * width > MAX_LEVEL_PIXELS:
            raise ImageError(
                f"{name}: scale {scale:g} makes it {width}x{height}, too large; use smaller scales"
            )


def levels(image: np.ndarray, scales: Sequence[float]) -> Iterator[np.ndarray]:
    """Normalised pyramid levels (h, w, 3) of a uint8 `image`, each resized from the image itself."""
    for size in pyramid_sizes(image.shape[:2], scales):
        yield transforms.normalize(images.resize(image, size))


def encode_views(
    predictor: Predictor, variables, picture: np.ndarray, *, views: str = "", side: int = 240
) -> np.ndarray:
    """Templates (v, t, t, d) of the views of a uint8 query `picture`, brought to the area `side`**2 first."""
    resized = images.resize(picture, images.fit_to_area(picture.shape[:2], side))
    copies = query_views(transforms.normalize(resized), views)
    return np.stack([predictor.encode(variables, copy) for copy in copies])


def automatic_scales(
    image_size: tuple[int, int],
    query_sizes: Iterable[tuple[int, int]],
    *,
    object_size: int = 240,
    ratio: float = 1.25,
) -> tuple[float, ...]:
    """Pyramid scales that cover every plausible size of the queried objects, smallest scale first.

    A size here is the square root of an area in pixels; a level finds objects that are about `object_size` on
    it. Searched is everything from a tenth of the image, or a quarter of the smallest query if that is more,
    up to twice the largest query, or the whole image if that is less; 1.25 times below the smallest query is
    always included, unless that is under a sixteenth of the image (levels would get huge). Neighbours differ
    by `ratio` at most. A query larger than the image is taken to be as large as the image.
    """
    whole = math.sqrt(image_size[0] * image_size[1])
    queries = [min(math.sqrt(height * width), whole) for height, width in query_sizes]
    small = min(max(min(queries) / 4, whole / 10), min(queries) / 1.25)
    small = max(small, whole / 16)
    large = max(min(2 * max(queries), whole), small)
    steps = math.ceil(math.log(large / small) / math.log(ratio) - 1e-9)
    return tuple(float(object_size / size) for size in np.geomspace(large, small, steps + 1))
