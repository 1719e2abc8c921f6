"""Training batches of CoAE: every image with the picture of one class that it shows.

Crops, class pictures and `finish` are those of `data.os2d`; only the class of a row is chosen here. The
published code trains on whole images whose shorter side is drawn anew; crops of one size, at a scale that
varies as much, need one program. Source: Hsieh et al., NeurIPS 2019, and the OS2D specification's section on
baselines.
"""

import dataclasses
import json

import numpy as np

from sm_jax.data import os2d
from sm_jax.data.order import SKIPPED
from sm_jax.data.sources.base import Source
from sm_jax.errors import ConfigError, DataError

FLIPS = ("horizontal", "vertical")
_CLASS = 6  # random stream of a row's class; 0 to 5 are those of `data.os2d` and `data.patches`


class BatchBuilder(os2d.BatchBuilder):
    """Random access to this process's rows of global batch k, each an image and one query.

    Images follow a permutation of (seed, epoch). The class of a row is uniform among those of the image's
    boxes that are not difficult; an image without any gets no query. The crop is drawn around the boxes of
    that class, and only they are in the batch, with the label 0 (negative where they are cut off).

    Args:
      source: the training data.
      options: see `os2d.BatchOptions`; `class_batch_size` is not used.
      seed: of everything random.
      process_index: which rows are built here.
      process_count: in how many equal parts the rows are divided.

    Raises:
      ConfigError: the rows do not divide over the processes, or the options ask for hard patches.
      DataError: the source is empty or has no box that is not difficult.
    """

    def __init__(
        self,
        source: Source,
        options: os2d.BatchOptions,
        *,
        seed: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ):
        if options.hard_patches:
            raise ConfigError("data.mining: hard patches are those of os2d; set it to False")
        options = dataclasses.replace(options, class_batch_size=options.batch_size)
        part = {"process_index": process_index, "process_count": process_count}
        super().__init__(source, options, seed=seed, **part)
        if not any(len(self.choices(index)) for index in range(len(source))):
            raise DataError("the training split has no box that is not difficult, so nothing to ask for")

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        """Batch k before `finish`: pictures uint8, and `SKIPPED`, JSON of [kind, name, message] as bytes."""
        skipped: list[tuple[str, str, str]] = []
        picks, rows = self.picks(k), []
        class_ids = self.row_classes(k, picks)
        for row in self._rows(self.options.batch_size):
            rng = self._rng(_CLASS, k, row, 1)
            flips = {name: bool(rng.random() < 0.5 and self.options.flips) for name in FLIPS}
            mine = class_ids[row : row + 1]
            image = self._image_row(k, row, picks[row], None, mine, flips, skipped)
            rows.append(image | self._query_row(k, row, class_ids, flips, skipped))
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        batch["class_ids"] = class_ids[list(self._rows(len(class_ids)))]
        batch[SKIPPED] = np.frombuffer(json.dumps(skipped).encode(), np.uint8)
        return batch

    def choices(self, index: int) -> np.ndarray:
        """The classes that image `index` can be asked for, in ascending order."""
        entry = self._annotation(index)
        return np.unique(entry["labels"][~entry["difficult"]])

    def row_classes(self, k: int, picks: list[int]) -> np.ndarray:
        """i32 (batch_size,): the class of each row of global batch k, -1 without one."""
        labels = []
        for row, index in enumerate(picks):
            choices = self.choices(index)
            labels.append(int(self._rng(_CLASS, k, row, 0).choice(choices)) if len(choices) else -1)
        return np.array(labels, np.int32)

    def _crop(self, rng, image, entry, class_ids, flips, patch=None) -> dict[str, np.ndarray]:
        mine = entry["labels"] == class_ids[0]
        only = {name: entry[name][mine] for name in ("boxes", "labels", "difficult")}
        return super()._crop(rng, image, entry | only, class_ids, flips, patch)
