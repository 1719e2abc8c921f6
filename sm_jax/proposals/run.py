"""`propose` and `propose_many`: seeds from the picture itself, results on disk, many pictures at once."""

import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sm_jax import platform
from sm_jax.data import order
from sm_jax.data.images import as_image
from sm_jax.data.synthetic import cache as files
from sm_jax.errors import ConfigError
from sm_jax.proposals import methods

VERSION = 1  # of how boxes are made; another one makes all cached files anew
Progress = Callable[[int, int], None]


class Proposals(NamedTuple):
    """Boxes of one picture, padded, and how many are real.

    Attributes:
      boxes: `(n, 4)` float32, `x1 y1 x2 y2` in pixels of the picture, half-open; rows from `count` on are 0.
      count: valid boxes, always at least 1.
    """

    boxes: np.ndarray
    count: int


def propose(
    image: Any,
    n: int = 1000,
    *,
    seed: int = 0,
    method: str = "prim",
    fill: bool = False,
    cache: bool = True,
    cache_dir: str | os.PathLike = "",
    **options: Any,
) -> Proposals:
    """Class-agnostic boxes that may hold an object or a part of one.

    The candidates of a method lose exact repetitions and boxes that touch the picture's border without being
    the whole picture (`border_filter`); of the rest `n` are taken at random (of "edge_boxes" the best). The
    result is a function of the pixels, the seed, `n`, the method and its options, in any process and order.

    There may be fewer than `n`. The methods that look for structure find little in a small, grey or constant
    picture; where nothing is left, the one box is the whole picture. `fill=True` adds boxes of the grid.

    Args:
      image: a path, encoded bytes, a Pillow image or an array (see `data.images.as_image`).
      n: boxes wanted.
      seed: of the draws.
      method: "prim" (Randomised Prim), "selective_search", "edge_boxes" (both need the extra `proposals`),
        "uniform", "gaussian", "sliding" (64 x 64 windows), "grid" (5 scales, 3 aspects), or "precomputed"
        (an `.npy` beside the picture: its first `n` boxes as they are; never cached).
      fill: add boxes of the grid up to `n`.
      cache: keep the result on disk, and take it from there; a damaged file is made again.
      cache_dir: folder of the cache; default `proposals` in the user's cache folder (`SM_JAX_CACHE`).
      **options: of the method: `draws`, `side` ("prim"), `mode` ("selective_search": "quality" or "fast"),
        `min_score` ("edge_boxes"), `window` ("sliding"), `folder`, `convention` ("precomputed", see
        `precomputed.read`).

    Raises:
      ConfigError: an unknown method or option, `n` or `seed` out of range, OpenCV not installed.
      ImageError: the picture cannot be read. DataError: precomputed boxes cannot be used.

    Source: SCNet specification, sec. 6.
    """
    methods.check_options(method, options)
    for name, value, least in (("n", n, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise ConfigError(f"proposals: {name}={value!r} is not a whole number from {least} up")
    pixels = as_image(image)
    if method == "precomputed":
        boxes = methods.read_precomputed(image, pixels.shape[:2], n, options)
    else:
        digest = _digest(pixels)

        def compute() -> np.ndarray:
            rng = order.rng(int(seed), int(digest[:8], 16), int(digest[8:16], 16))
            return methods.compute(pixels, int(n), method=method, rng=rng, fill=fill, options=options)

        if cache:
            key = [VERSION, digest, int(n), int(seed), method, bool(fill), sorted(options.items())]
            boxes = _fetch(_cache_path(cache_dir, method, json.dumps(key, default=str)), compute)
        else:
            boxes = compute()
    padded = np.zeros((n, 4), np.float32)
    padded[: len(boxes)] = boxes
    return Proposals(padded, len(boxes))


def propose_many(
    images: Sequence[Any],
    n: int = 1000,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """`propose` for many pictures, several at a time (threads: NumPy's and scikit-image's loops share them).

    Args:
      images: m pictures; paths are opened when their turn comes.
      n: boxes per picture.
      workers: pictures at a time; default one per processor.
      progress: called as `progress(done, m)` after each picture, in this thread.
      **options: of `propose`.

    Returns:
      Boxes `(m, n, 4)` float32 and counts `(m,)` int32, in the order of `images`.

    Raises:
      As `propose`, for the first picture in order that fails.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"proposals: workers={workers} is not a whole number from 1 up")
    boxes, counts = np.zeros((len(images), n, 4), np.float32), np.zeros(len(images), np.int32)
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        try:
            results = pool.map(lambda image: propose(image, n, **options), images)
            for index, result in enumerate(results):
                boxes[index], counts[index] = result
                if progress is not None:
                    progress(index + 1, len(images))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return boxes, counts


def _digest(pixels: np.ndarray) -> str:
    text = hashlib.sha256(f"{pixels.shape}".encode())
    text.update(np.ascontiguousarray(pixels))
    return text.hexdigest()


def _cache_path(folder: str | os.PathLike, method: str, key: str) -> Path:
    root = Path(folder).expanduser() if folder else platform.cache_folder() / "proposals"
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    return root / name[:2] / f"{method}-{name}.boxes"


def _fetch(path: Path, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """The boxes of the sealed file at `path`, computed and stored where it is absent or damaged."""

    def render() -> bytes:
        stream = io.BytesIO()
        np.save(stream, compute(), allow_pickle=False)
        return stream.getvalue()

    return np.load(io.BytesIO(files.fetch(path, render)), allow_pickle=False)
