"""Training batches of the detector: crops of scenes with the boxes of every class in them.

`BatchBuilder[k]` is a pure function of (source, options, seed, k): any process, worker or resumed run builds
the same batch. Pictures stay uint8 here and are normalised by `finish`: little travels between processes.
"""

import json
from dataclasses import dataclass

import numpy as np

from sm_jax import boxes as box_ops
from sm_jax.data import order, transforms
from sm_jax.data.order import MAX_REPLACEMENTS, SKIPPED
from sm_jax.data.sources.base import Source
from sm_jax.errors import ConfigError, DataError, ImageError

_ROW = 1  # the random stream of a row: it does not depend on the others or on how many processes share them


@dataclass(frozen=True)
class BatchOptions:
    """How batches are made; sizes are (height, width).

    Attributes:
      scale: crop pixels per image pixel that brings objects to their nominal size.
      pad_crops: a crop larger than its image is filled with black; else it is cut to it, and so enlarged.
      The others as in the config section `data`.
    """

    scale: float
    batch_size: int = 2
    crop: tuple[int, int] = (800, 800)
    max_boxes: int = 128
    scale_jitter: float = 0.5
    aspect_jitter: float = 0.9
    min_coverage: float = 0.7
    flips: bool = True
    color: bool = False
    pad_crops: bool = False

    def __post_init__(self):
        for name in ("batch_size", "max_boxes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"data: {name} must be at least 1, not {getattr(self, name)}")
        if min(self.crop) < 32:
            raise ConfigError(f"data.crop: both sides must be at least 32 pixels, not {self.crop}")
        for name in ("scale_jitter", "aspect_jitter"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"data.{name}: must lie in (0, 1], not {getattr(self, name)}")
        if not 0 <= self.min_coverage <= 1:
            raise ConfigError(f"data.min_coverage: must lie in [0, 1], not {self.min_coverage}")
        if not (np.isfinite(self.scale) and self.scale > 0):
            raise ConfigError(f"data.scale: must be positive, not {self.scale}")


class BatchBuilder:
    """Random access to this process's rows of global batch k.

    Images follow a permutation of (seed, epoch). A row is a random crop (`transforms.random_crop`), possibly
    mirrored. Boxes are clipped to it; one of which less than `min_coverage` is left counts as difficult.

    Args:
      source: the training data; labels are its class indices.
      options: see `BatchOptions`.
      seed: of everything random.
      process_index: which rows are built here.
      process_count: in how many equal parts the rows are divided.

    Raises:
      ConfigError: the rows do not divide over the processes.
      DataError: the source is empty.
    """

    def __init__(
        self,
        source: Source,
        options: BatchOptions,
        *,
        seed: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ):
        if not len(source):
            raise DataError("the training split has no pictures")
        if options.batch_size % process_count:
            raise ConfigError(
                f"batch_size={options.batch_size} does not divide over {process_count} processes"
            )
        self.source, self.options = source, options
        self._seed, self._part = seed, (process_index, process_count)

    def __len__(self) -> int:
        return 1 << 40  # endless for every practical purpose

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        """Batch k before `finish`: pictures uint8, and `SKIPPED`, JSON of [kind, name, message] as bytes."""
        size = self.options.batch_size
        picks = order.picks(self._seed, k, count=len(self.source), size=size)
        skipped: list[tuple[str, str, str]] = []
        rows = [self._row(k, row, picks[row], skipped) for row in order.rows(size, self._part)]
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        batch[SKIPPED] = np.frombuffer(json.dumps(skipped).encode(), np.uint8)
        return batch

    @property
    def totals(self) -> dict[str, int]:
        """How many pictures there are of each kind that can be skipped."""
        return {"image": len(self.source)}

    def finish(self, batch: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list]:
        """Normalises a batch and takes out (kind, name, message) of the pictures that could not be read."""
        # Copies: arrays of a worker lie in shared memory, which must not outlive the iterator.
        batch = {name: np.array(batch[name]) for name in sorted(batch)}
        skipped = [tuple(entry) for entry in json.loads(batch.pop(SKIPPED).tobytes())]
        batch["image"] = transforms.normalize(batch["image"])
        batch["image"][~batch["valid"]] = 0.0
        return batch, skipped

    def _row(self, k, row, index, skipped) -> dict[str, np.ndarray]:
        rng = order.rng(self._seed, _ROW, k, row)
        for _ in range(1 + MAX_REPLACEMENTS):
            try:
                entry, image = self.source.annotation(index), self.source.image(index)
            except ImageError as error:
                skipped.append(("image", str(index), str(error)))
                index = int(rng.integers(len(self.source)))
            else:
                return self._crop(rng, image, entry) | {"valid": np.array(True)}
        entry = {
            "boxes": np.zeros((0, 4), np.float32),
            "labels": np.zeros(0, np.int32),
            "difficult": np.zeros(0, bool),
        }
        return self._crop(rng, np.zeros((*self.options.crop, 3), np.uint8), entry) | {
            "valid": np.array(False)
        }

    def _crop(self, rng, image, entry) -> dict[str, np.ndarray]:
        options = self.options
        crop = transforms.random_crop(
            rng,
            image.shape[:2],
            entry["boxes"],
            scale=options.scale,
            crop=options.crop,
            scale_jitter=options.scale_jitter,
            aspect_jitter=options.aspect_jitter,
            min_coverage=options.min_coverage,
            inside=not options.pad_crops,
        )
        covered = box_ops.coverage(entry["boxes"], crop)
        filter = transforms.random_filter(rng)
        image, boxes = transforms.apply_crop(image, entry["boxes"], crop, options.crop, filter)
        if options.color:
            image = transforms.distort_color(rng, image)
        mirrored = bool(rng.random() < 0.5 and options.flips)
        image, boxes = transforms.flip(image, box_ops.clip(boxes, options.crop), horizontal=mirrored)
        difficult = entry["difficult"] | (covered < options.min_coverage)
        seen = np.flatnonzero(box_ops.nonempty(boxes))
        # If there are too many, difficult ones give way first, then those of which least is left.
        keep = np.sort(seen[np.lexsort((-covered[seen], difficult[seen]))[: options.max_boxes]])
        padding = options.max_boxes - len(keep)
        return {
            "image": image,
            "boxes": np.pad(boxes[keep], ((0, padding), (0, 0))).astype(np.float32),
            "labels": np.pad(entry["labels"][keep], (0, padding)).astype(np.int32),
            "difficult": np.pad(difficult[keep], (0, padding)),
            "boxes_valid": np.arange(options.max_boxes) < len(keep),
        }
