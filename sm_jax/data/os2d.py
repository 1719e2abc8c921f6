"""Training batches of OS2D: which images and classes belong to batch k, and the arrays they become.

`BatchBuilder[k]` is a pure function of (source, options, seed, memory, k), the memory being the hard patches
mined last, if any: any process, worker or resumed run builds the same batch. Pictures stay uint8 here and are
normalised by `finish`: little travels between processes.
Source: OS2D (ECCV 2020), sec. 5 and the published code's batch construction.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sm_jax import boxes as box_ops
from sm_jax.data import images, instances, order, transforms
from sm_jax.data.order import MAX_REPLACEMENTS, SKIPPED
from sm_jax.data.patches import PATCH_STREAM, HardPatches, Patch
from sm_jax.data.sources.base import Source
from sm_jax.errors import ConfigError, DataError, ImageError

# What a random stream is for; each is seeded by (seed, purpose, batch, row), so that a row does not depend on
# the others or on how many processes share the work; purpose 0 is the order of an epoch, `patches` has two.
_BATCH, _IMAGE, _QUERY = range(1, 4)


@dataclass(frozen=True)
class BatchOptions:
    """How batches are made; sizes are (height, width).

    Attributes:
      scale: crop pixels per image pixel that brings objects to their nominal size.
      canvas: of the class pictures.
      query_side: square root of a class picture's area.
      extra_query_pictures: take a class picture, uniformly, from the given one and every box of the class
        that is not difficult (`data.mine_extra_class_images`).
      hard_patches: there will be a memory of hard patches.
      pad_crops: a crop larger than its image is filled with black; else it is cut to it (as published).
      The others as in the config section `data`.
    """

    scale: float
    canvas: tuple[int, int]
    batch_size: int = 4
    class_batch_size: int = 15
    crop: tuple[int, int] = (600, 600)
    query_side: int = 240
    max_boxes: int = 64
    scale_jitter: float = 0.7
    aspect_jitter: float = 0.9
    min_coverage: float = 0.7
    cut_coverage: float = 0.3
    flips: bool = False
    color: bool = False
    pad_crops: bool = False
    query_crops: bool = False
    extra_query_pictures: bool = False
    hard_patches: bool = False

    def __post_init__(self):
        for name in ("batch_size", "class_batch_size", "query_side", "max_boxes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"data: {name} must be at least 1, not {getattr(self, name)}")
        if min(self.crop) < 16:
            raise ConfigError(f"data.crop: both sides must be at least 16 pixels, not {self.crop}")
        for name in ("scale_jitter", "aspect_jitter"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"data.{name}: must lie in (0, 1], not {getattr(self, name)}")
        if not 0 <= self.cut_coverage <= self.min_coverage <= 1:
            raise ConfigError("data: 0 <= cut_coverage <= min_coverage <= 1 does not hold")
        if not (np.isfinite(self.scale) and self.scale > 0):
            raise ConfigError(f"data.scale: must be positive, not {self.scale}")
        if self.hard_patches and self.class_batch_size < self.batch_size:
            raise ConfigError(
                f"data.class_batch_size={self.class_batch_size}: hard-patch mining needs at least batch_size="
                f"{self.batch_size}, because every image brings the class of its patch"
            )


class BatchBuilder:
    """Random access to this process's rows of global batch k.

    Images follow a permutation of (seed, epoch); a batch that reaches the end of an epoch goes on with the
    next. The class batch is the set of classes annotated on the batch's images (anywhere, difficult too),
    shuffled, cut to `class_batch_size` and sorted.

    With a `memory` of hard patches the first half of the images (rounded down) take a random patch that was a
    negative, the others one that was a positive, in place of a random crop; the class of each patch is in the
    class batch.

    Attributes:
      memory: `HardPatches`, None without; `with_memory` changes it.

    Args:
      source: the training data.
      options: see `BatchOptions`.
      seed: of everything random.
      process_index: which rows of images and queries are built here.
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
        for name in ("batch_size", "class_batch_size"):
            rows = getattr(options, name)
            if rows % process_count:
                raise ConfigError(f"{name}={rows} does not divide over {process_count} processes")
        self.source = source
        self.options = options
        self._seed = seed
        self._part = (process_index, process_count)
        self.memory: HardPatches | None = None
        self._extra = _ExtraPictures(source) if options.extra_query_pictures else None

    def with_memory(self, memory: HardPatches | dict | None) -> "BatchBuilder":
        """The same batches with these hard patches (or their JSON); without if the options have none.

        Raises:
          DataError: they are not of this source, or damaged.
        """
        other = copy.copy(self)
        other.memory = HardPatches.from_json(memory) if isinstance(memory, dict) else memory
        if not self.options.hard_patches:
            other.memory = None
        elif memory is not None and len(other.memory.labels) != len(self.source):
            raise DataError(
                f"the hard patches are of {len(other.memory.labels)} training pictures, the split has "
                f"{len(self.source)}; use another --workdir"
            )
        return other

    def __len__(self) -> int:
        return 1 << 40  # endless for every practical purpose

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        """Batch k before `finish`: pictures uint8, and `SKIPPED`, JSON of [kind, name, message] as bytes."""
        options = self.options
        picks = self.picks(k)
        rng = self._rng(_BATCH, k)
        patches = self.patches(k, picks)
        class_ids = self.class_batch(picks, rng, [patch.label for patch in patches if patch is not None])
        flips = {name: bool(rng.random() < 0.5 and options.flips) for name in ("horizontal", "vertical")}
        skipped: list[tuple[str, str, str]] = []
        rows = [
            self._image_row(k, row, picks[row], patches[row], class_ids, flips, skipped)
            for row in self._rows(options.batch_size)
        ]
        queries = [self._query_row(k, row, class_ids, flips, skipped) for row in self._rows(len(class_ids))]
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        batch |= {name: np.stack([query[name] for query in queries]) for name in queries[0]}
        batch["class_ids"] = class_ids[list(self._rows(len(class_ids)))]
        batch[SKIPPED] = np.frombuffer(json.dumps(skipped).encode(), np.uint8)
        return batch

    @property
    def totals(self) -> dict[str, int]:
        """How many pictures there are of each kind that can be skipped."""
        return {"image": len(self.source), "class picture": self.source.num_classes}

    def finish(self, batch: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list]:
        """The training batch and what was skipped; see `finish`."""
        return finish(batch)

    def picks(self, k: int) -> list[int]:
        """Indices of the images of global batch k."""
        return order.picks(self._seed, k, count=len(self.source), size=self.options.batch_size)

    def patches(self, k: int, picks: list[int]) -> list[Patch | None]:
        """The hard patch of each image of global batch k, None for a random crop."""
        if self.memory is None:
            return [None] * len(picks)
        return [
            self.memory.choose(self._rng(PATCH_STREAM, k, row), index, positive=row >= len(picks) // 2)
            for row, index in enumerate(picks)
        ]

    def class_batch(
        self, picks: list[int], rng: np.random.Generator, forced: Sequence[int] = ()
    ) -> np.ndarray:
        """i32 (class_batch_size,): class indices of the global batch in ascending order, then -1.

        Those in `forced`, at most `class_batch_size`, are always among them, and each takes a place, known
        from the images or not (published code).
        """
        size = self.options.class_batch_size
        labels = [self._annotation(index)["labels"] for index in picks]
        chosen = rng.permutation(np.unique(np.concatenate(labels)))[: size - len(forced)]
        chosen = np.unique(np.concatenate([chosen, np.asarray(forced, chosen.dtype)]))
        return np.concatenate([chosen, np.full(size - len(chosen), -1)]).astype(np.int32)

    def _rows(self, count: int) -> range:
        return order.rows(count, self._part)

    def _rng(self, *stream: int) -> np.random.Generator:
        return order.rng(self._seed, *stream)

    def _annotation(self, index: int) -> dict[str, Any]:
        try:
            return self.source.annotation(index)
        except ImageError:  # a scene around a damaged picture: it is named when the picture is read
            nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool)
            return dict(zip(("boxes", "labels", "difficult"), nothing, strict=True)) | {
                "image_id": str(index)
            }

    def _image_row(self, k, row, index, patch, class_ids, flips, skipped) -> dict[str, np.ndarray]:
        rng = self._rng(_IMAGE, k, row)
        for _ in range(1 + MAX_REPLACEMENTS):
            entry = self._annotation(index)
            try:
                image = self.source.image(index)
            except ImageError as error:
                skipped.append(("image", entry["image_id"], str(error)))
                index, patch = self._replacement(rng, class_ids), None
            else:
                return self._crop(rng, image, entry, class_ids, flips, patch)
        nothing = {"boxes": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int32)}
        blank = np.zeros((*self.options.crop, 3), np.uint8)
        entry = nothing | {"difficult": np.zeros(0, bool)}
        return self._crop(rng, blank, entry, class_ids, flips) | {"valid": np.array(False)}

    def _replacement(self, rng: np.random.Generator, class_ids: np.ndarray) -> int:
        """A random image, one that shows a class of the batch if a few draws find it."""
        for _ in range(MAX_REPLACEMENTS):
            index = int(rng.integers(len(self.source)))
            if np.isin(self._annotation(index)["labels"], class_ids).any():
                break
        return index

    def _crop(self, rng, image, entry, class_ids, flips, patch=None) -> dict[str, np.ndarray]:
        options = self.options
        if patch is not None:
            crop = patch.crop
        else:
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
        labels, difficult = transforms.crop_labels(
            _local_labels(entry["labels"], class_ids),
            entry["difficult"],
            covered,
            min_coverage=options.min_coverage,
            cut_coverage=options.cut_coverage,
        )
        filter = transforms.random_filter(rng)
        image, boxes = transforms.apply_crop(image, entry["boxes"], crop, options.crop, filter)
        if options.color:
            image = transforms.distort_color(rng, image)
        image, boxes = transforms.flip(image, boxes, **flips)
        # Boxes of other classes and boxes cut off match nothing: they give way first if there are too many.
        keep = np.sort(np.lexsort((-covered, labels < 0))[: options.max_boxes])
        padding = options.max_boxes - len(keep)
        return {
            "image": image,
            "size": np.array(options.crop, np.int32),
            "boxes": np.pad(boxes[keep], ((0, padding), (0, 0))).astype(np.float32),
            "labels": np.pad(labels[keep], (0, padding), constant_values=transforms.ABSENT).astype(np.int32),
            "difficult": np.pad(difficult[keep], (0, padding)),
            "boxes_valid": np.arange(options.max_boxes) < len(keep),
            "valid": np.array(True),
        }

    def _query_row(self, k, row, class_ids, flips, skipped) -> dict[str, np.ndarray]:
        options = self.options
        rng = self._rng(_QUERY, k, row)
        canvas = np.zeros((*options.canvas, 3), np.uint8)
        size, valid = options.canvas, False  # an empty row keeps a real size: nothing may divide by 0
        label = int(class_ids[row])
        if label >= 0:
            picture = self._extra and self._extra.draw(rng, label, skipped)
            try:
                picture = self.source.query(label) if picture is None else picture
            except ImageError as error:
                skipped.append(("class picture", self.source.class_names[label], str(error)))
            else:
                picture = self._augment_query(rng, picture, flips)
                size, valid = picture.shape[:2], True
                canvas[: size[0], : size[1]] = picture
        return {"query": canvas, "query_size": np.array(size, np.int32), "query_valid": np.array(valid)}

    def _augment_query(self, rng, picture, flips) -> np.ndarray:
        options = self.options
        if options.query_crops:
            picture = transforms.random_query_crop(rng, picture, aspect_jitter=options.aspect_jitter)
        size = transforms.fit_query(picture.shape[:2], options.canvas, side=options.query_side)
        picture = images.resize(picture, size, transforms.random_filter(rng))
        if options.color:
            picture = transforms.distort_color(rng, picture)
        return transforms.flip(picture, np.zeros((0, 4), np.float32), **flips)[0]


class _ExtraPictures:
    """The boxes of a source that are not difficult, as further class pictures."""

    def __init__(self, source: Source):
        self._source = source
        self._boxes = instances.find(source, min_side=1)
        self._rows = self._boxes.rows_by_class(~self._boxes.difficult)

    def draw(self, rng: np.random.Generator, label: int, skipped: list) -> np.ndarray | None:
        """One of the boxes of a class, or None for its given picture: each with equal probability.

        None also for a box of a picture that cannot be read, which is added to `skipped`.
        """
        choice = int(rng.integers(1 + len(self._rows[label])))
        if not choice:
            return None
        box = self._boxes[int(self._rows[label][choice - 1])]
        try:
            image = self._source.image(box.index)
        except ImageError as error:
            skipped.append(("image", box.image_id, str(error)))
            return None
        left, top, right, bottom = box.box.astype(int)
        return image[top:bottom, left:right]


def finish(batch: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[tuple[str, str, str]]]:
    """Normalises a batch of `BatchBuilder` (zero padding after that) and takes out what was skipped.

    Returns:
      The training batch, and (kind, name, message) of every picture that could not be read; kind is "image"
      or "class picture".
    """
    # Copies: arrays of a worker lie in shared memory, which must not outlive the iterator.
    batch = {name: np.array(batch[name]) for name in sorted(batch)}
    skipped = [tuple(entry) for entry in json.loads(batch.pop(SKIPPED).tobytes())]
    batch["image"] = transforms.normalize(batch["image"])
    batch["image"][~batch["valid"]] = 0.0
    used = np.where(batch["query_valid"][:, None], batch["query_size"], 0)
    batch["query"] = pad_queries(
        [query[:height, :width] for query, (height, width) in zip(batch["query"], used, strict=True)],
        batch["query"].shape[1:3],
    )
    return batch, skipped


def pad_queries(pictures: list[np.ndarray], canvas: tuple[int, int]) -> np.ndarray:
    """Normalised f32 (n, h, w, 3) of uint8 pictures that fit `canvas` (h, w), zero padded right and below."""
    out = np.zeros((len(pictures), *canvas, 3), np.float32)
    for row, picture in zip(out, pictures, strict=True):
        row[: picture.shape[0], : picture.shape[1]] = transforms.normalize(picture)
    return out


def _local_labels(labels: np.ndarray, class_ids: np.ndarray) -> np.ndarray:
    """Class indices -> rows of the class batch, `ABSENT` if the class is not in it."""
    present = class_ids[class_ids >= 0]
    if not len(present):
        return np.full(len(labels), transforms.ABSENT, np.int32)
    rows = np.minimum(np.searchsorted(present, labels), len(present) - 1)
    return np.where(present[rows] == labels, rows, transforms.ABSENT).astype(np.int32)
