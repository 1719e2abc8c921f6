"""Descriptors of pictures of any size: several scales, few padded shapes, hence few programs."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from sm_jax.data import transforms
from sm_jax.systems.chunks import counted

PUBLISHED_SCALES = (1.0, 2**-0.5, 0.5)
MAX_ASPECT = 16  # a picture more elongated than that (sides `side` * 4 and / 4) is shrunk to fit

Describe = Callable[[Any, jax.Array, jax.Array], jax.Array]


class Describer:
    """Describes pictures with a bounded number of compiled programs.

    A picture is brought to the area `side` squared, then to every scale, each bilinearly without
    antialiasing; its descriptor is the normalised generalised mean over the scales. Pictures are padded to
    multiples of `step` and go through `chunk` at a time, the last ones with empty ones beside them: a program
    for each padded shape. Source: OS2D's baseline (specification, sec. 16).

    Attributes:
      compiles: how often "describe" was traced, so compiled or read from the cache.
    """

    def __init__(
        self,
        describe: Describe,
        *,
        side: int = 240,
        scales: Sequence[float] = PUBLISHED_SCALES,
        step: int = 64,
        chunk: int | None = None,
        power: Callable[[Any], float] = lambda variables: 1.0,
    ):
        """Make a describer.

        Args:
          describe: `(variables, image "b h w 3", size int32 "b 2") -> "b d"`, as `model.describe`.
          side, scales: which sizes pictures are described at.
          step: bucket step in pixels.
          chunk: pictures of a call; None: 4 on a CPU, 32 elsewhere.
          power: `variables -> p` of the mean over the scales (see `model.scale_power`).
        """
        if chunk is None:
            chunk = 4 if jax.default_backend() == "cpu" else 32
        if min(side, step, chunk) < 1:
            raise ValueError(f"side={side}, step={step} and chunk={chunk} must be positive")
        self.compiles: Counter[str] = Counter()
        self._power = power
        self._describe = jax.jit(counted(self.compiles, "describe", describe))
        self._side, self._scales, self._step, self._chunk = side, tuple(scales), step, chunk

    def __call__(self, variables: Any, pictures: Iterable[np.ndarray]) -> np.ndarray:
        """Descriptors f32 (n, d) of normalised pictures f32 (h, w, 3), at least one, as they were stored."""
        waiting: dict[tuple[int, int], list[tuple[int, np.ndarray]]] = defaultdict(list)
        total: list[Any] = []
        power = self._power(variables) if len(self._scales) > 1 else 1.0

        def flush(bucket: tuple[int, int]) -> None:
            places, images = zip(*waiting.pop(bucket), strict=True)
            canvas = np.zeros((self._chunk, *bucket, 3), np.float32)
            sizes = np.ones((self._chunk, 2), np.int32)
            for row, image in enumerate(images):
                canvas[row, : image.shape[0], : image.shape[1]] = image
                sizes[row] = image.shape[:2]
            found = np.asarray(self._describe(variables, canvas, sizes))
            for place, descriptor in zip(places, found, strict=False):
                total[place] = total[place] + (descriptor if power == 1 else descriptor**power)

        limit = (self._side * MAX_ASPECT // 4,) * 2
        for place, picture in enumerate(pictures):
            total.append(0.0)
            size = transforms.fit_query(picture.shape[:2], limit, side=self._side)
            whole = transforms.resize_plain(picture, size)
            for scale in self._scales:
                scaled = tuple(max(int(length * scale), 1) for length in size)
                bucket = tuple(-(-length // self._step) * self._step for length in scaled)
                waiting[bucket].append((place, transforms.resize_plain(whole, scaled)))
                if len(waiting[bucket]) == self._chunk:
                    flush(bucket)
        for bucket in list(waiting):
            flush(bucket)
        found = np.stack(total)
        found = found if power == 1 else found ** (1 / power)
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
