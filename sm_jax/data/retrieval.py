"""Training tuples of the retrieval system: a query, another picture of its class, pictures of other classes.

The pictures are class pictures, crops of annotated boxes, and random crops of the images; `Crops` plans them
from annotations and a seed alone, so that every process and every resumed run has the same list. Which tuples
an epoch has, but for its negatives, is a function of (seed, epoch); the negatives are what the model of that
moment confuses with the query (`hardest`). Source: OS2D's baseline (specification, sec. 16) and
cnnimageretrieval v1.1.
"""

import copy
import json
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sm_jax import boxes as box_ops
from sm_jax.data import images, instances, order, transforms
from sm_jax.data.order import SKIPPED
from sm_jax.data.sources.base import PictureCache, Source
from sm_jax.errors import ConfigError, DataError, ImageError

BACKGROUND = -1
"""Label of a crop that shows no annotated object."""
CACHE_BYTES = 64 << 20  # images kept decoded: passes over all pictures go image by image
_CROPS, _TUPLES, _FILLING = range(1, 4)  # random streams, see `order.rng`


@dataclass(frozen=True)
class BatchOptions:
    """How pictures and tuples are made.

    Attributes:
      side: pictures are scaled, up or down, so that their longer side has so many pixels; also the canvas'
        side.
      batch_size: tuples of a batch.
      negatives: pictures of other classes in a tuple.
      queries: tuples of an epoch, at most; whole steps of them are used.
      pool: pictures of an epoch among which negatives are looked for.
      random_crops: tried in every image, besides its boxes.
      positive_iou: a random crop shows the object of the box that it overlaps by more than this,
      negative_iou: none if it overlaps every box by at most this; one in between is not used.
      min_side: pixels that both sides of a box must have to be cut out.
      accumulate: batches of an optimizer step.
    """

    side: int = 240
    batch_size: int = 5
    negatives: int = 5
    queries: int = 2000
    pool: int = 20_000
    random_crops: int = 10
    positive_iou: float = 0.7
    negative_iou: float = 0.3
    min_side: float = 16.0
    accumulate: int = 1

    def __post_init__(self):
        for name in ("batch_size", "negatives", "queries", "pool", "accumulate"):
            if getattr(self, name) < 1:
                raise ConfigError(f"data.{name}: must be at least 1, not {getattr(self, name)}")
        if self.random_crops < 0 or self.min_side < 1:
            raise ConfigError(
                f"data: random_crops={self.random_crops} must not be negative, min_side={self.min_side:g} at "
                "least 1"
            )
        if not 0 <= self.negative_iou <= self.positive_iou < 1:
            raise ConfigError("data: 0 <= negative_iou <= positive_iou < 1 does not hold")
        if self.queries < self.step:
            raise ConfigError(
                f"data.queries: {self.queries} are fewer than the {self.step} of a step (batch_size x "
                "optim.accumulate)"
            )

    @property
    def step(self) -> int:
        """Tuples of an optimizer step."""
        return self.batch_size * self.accumulate


class Crops:
    """The list of all training pictures; make it with `plan`.

    Attributes (n pictures):
      image: i32 (n,), index in the source; -1 for a class picture.
      labels: i32 (n,), class index, or `BACKGROUND`.
      boxes: f32 (n, 4), what is cut out, pixels of the stored image; zeros for a class picture.
      sizes: i32 (n, 2), (height, width) that the pictures are brought to.
    """

    def __init__(self, source: Source, side: int, image, labels, boxes, shapes):
        self.source, self.side = source, side
        self.image = np.asarray(image, np.int32)
        self.labels = np.asarray(labels, np.int32)
        self.boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
        fitted = [transforms.fit(tuple(shape), (side, side))[0] for shape in shapes]
        self.sizes = np.asarray(fitted, np.int32).reshape(-1, 2)
        self._images = PictureCache(CACHE_BYTES)

    def __len__(self) -> int:
        return len(self.labels)

    def picture(self, row: int) -> np.ndarray:
        """Picture `row`, uint8 `(*sizes[row], 3)` RGB. Raises ImageError where it cannot be read."""
        size = tuple(self.sizes[row])
        if self.image[row] < 0:
            return images.resize(self.source.query(int(self.labels[row])), size)
        index = int(self.image[row])
        image = self._images.get(index, lambda: self.source.image(index))
        return images.resize(instances.cut(image, self.boxes[row]), size)

    def canvas(self, row: int) -> np.ndarray:
        """Picture `row`, normalised f32 (side, side, 3), zero padded right and below. No valid pixel is 0."""
        picture = self.picture(row)
        out = np.zeros((self.side, self.side, 3), np.float32)
        out[: picture.shape[0], : picture.shape[1]] = transforms.normalize(picture)
        return out

    def name(self, row: int) -> str:
        """What a message calls the picture."""
        if self.image[row] < 0:
            return self.source.class_names[self.labels[row]]
        return self.source.annotation(int(self.image[row]))["image_id"]


def plan(source: Source, options: BatchOptions, *, seed: int = 0) -> Crops:
    """The pictures of all annotated classes, every box that is not difficult, random crops of every image."""
    found = instances.find(source, min_side=options.min_side)
    rows = np.flatnonzero(found.request)
    classes = np.unique(found.labels)
    image = [np.full(len(classes), -1, np.int32), found.image[rows]]
    labels = [classes, found.labels[rows]]
    boxes = [np.zeros((len(classes), 4), np.float32), found.boxes[rows]]
    for index in range(len(found.sizes)):
        mine = found.rows(index)
        rng = order.rng(seed, _CROPS, index)
        crops, shown = random_crops(
            rng, tuple(found.sizes[index]), found.boxes[mine], found.labels[mine], options=options
        )
        image.append(np.full(len(crops), index, np.int32))
        labels.append(shown)
        boxes.append(crops)
    image, labels, boxes = (np.concatenate(parts) for parts in (image, labels, boxes))
    cut = boxes[len(classes) :]
    sides = np.maximum(np.rint(cut[:, [3, 2]] - cut[:, [1, 0]]), 1).astype(int)
    shapes = [_query_shape(source, int(label)) for label in classes]
    return Crops(source, options.side, image, labels, boxes, [*shapes, *sides.tolist()])


def random_crops(
    rng: np.random.Generator,
    size: tuple[int, int],
    boxes: np.ndarray,
    labels: np.ndarray,
    *,
    options: BatchOptions,
) -> tuple[np.ndarray, np.ndarray]:
    """Up to `options.random_crops` crops f32 (n, 4) of an image of `size`, and what they show, i32 (n,).

    Each has the sides of a random box of the image times U(0.8, 1.25); every other one lies anywhere, the
    others at that box, moved by up to a sixth of its sides. (The baseline's lie between two random points.)
    """
    height, width = size
    crops, shown = [], []
    for trial in range(options.random_crops if len(boxes) and min(size) > 0 else 0):
        box = boxes[rng.integers(len(boxes))]
        sides = np.minimum((box[2:] - box[:2]) * rng.uniform(0.8, 1.25, 2), [width, height])
        room = np.array([width, height]) - sides
        corner = rng.uniform(0, 1, 2) * room
        if trial % 2:
            moved = rng.uniform(-1 / 6, 1 / 6, 2) * (box[2:] - box[:2])
            corner = np.clip((box[:2] + box[2:]) / 2 - sides / 2 + moved, 0, room)
        crop = np.concatenate([corner, corner + sides]).astype(np.float32)
        overlap = box_ops.iou(crop[None], boxes)[0]
        best = int(overlap.argmax())
        if options.negative_iou < overlap[best] <= options.positive_iou or min(sides) < options.min_side:
            continue
        crops.append(crop)
        shown.append(labels[best] if overlap[best] > options.positive_iou else BACKGROUND)
    return np.array(crops, np.float32).reshape(-1, 4), np.array(shown, np.int32)


class Epoch(NamedTuple):
    """What an epoch asks for: rows of `Crops`.

    Attributes:
      queries, positives: i64 (q,), pairs of different pictures of a class.
      pool: i64 (m,), where negatives are looked for.
    """

    queries: np.ndarray
    positives: np.ndarray
    pool: np.ndarray


class Epochs:
    """The epochs of a list of pictures, as a function of (seed, number).

    Attributes:
      size: tuples of each epoch.

    Raises (when made):
      DataError: too few pictures for a step, or one class alone.
    """

    def __init__(self, crops: Crops, options: BatchOptions, *, seed: int = 0):
        self._crops, self._options, self._seed = crops, options, seed
        labels = crops.labels
        counts = np.bincount(labels[labels >= 0], minlength=1)
        self._members = {label: np.flatnonzero(labels == label) for label in np.flatnonzero(counts > 1)}
        self._eligible = np.flatnonzero((labels >= 0) & (counts[labels] > 1))
        self.size = min(options.queries, len(self._eligible)) // options.step * options.step
        if not self.size:
            raise DataError(
                f"the training split has {len(self._eligible)} pictures of classes with at least two, fewer "
                f"than the {options.step} of a step; give more data or a smaller batch_size"
            )
        if len(np.unique(labels[labels >= 0])) < 2:
            raise DataError("the training split has one class; there is nothing to tell it from")
        self._last: tuple[int, Epoch] | None = None

    def __getitem__(self, number: int) -> Epoch:
        if self._last is None or self._last[0] != number:
            self._last = number, self._draw(number)
        return self._last[1]

    def _draw(self, number: int) -> Epoch:
        rng = order.rng(self._seed, _TUPLES, number)
        queries = rng.permutation(self._eligible)[: self.size]
        positives = np.empty_like(queries)
        for place, query in enumerate(queries):
            members = self._members[self._crops.labels[query]]
            other = members[rng.integers(len(members) - 1)]
            positives[place] = members[-1] if other == query else other
        return Epoch(queries, positives, rng.permutation(len(self._crops))[: self._options.pool])

    def unmined(self, number: int, places: slice) -> np.ndarray:
        """Random negatives (q, n), rows of the list, of the queries of an epoch at `places`."""
        epoch, labels = self[number], self._crops.labels
        queries = epoch.queries[places]
        rng = order.rng(self._seed, _FILLING, number, places.start)
        scores = rng.random((len(queries), len(epoch.pool)), np.float32)
        return hardest(scores, labels[queries], labels[epoch.pool], epoch.pool, self._options.negatives)


def hardest(
    scores: np.ndarray, query_labels: np.ndarray, labels: np.ndarray, rows: np.ndarray, count: int
) -> np.ndarray:
    """For every query the `count` pictures of the pool that score highest, no two of a class, none of its
    own.

    Crops that show nothing are each a class of their own (together one in the source). Where there are fewer
    classes, pictures of the classes taken come next, then -1. Source: cnnimageretrieval v1.1.

    Args:
      scores: f32 (q, m), similarity of every query with every picture of the pool.
      query_labels: (q,); labels: (m,), `BACKGROUND` for none.
      rows: (m,), what the pictures are called in the result.

    Returns:
      (q, count) of `rows`.
    """
    result = np.full((len(scores), count), -1, np.int64)
    for place, (row, own) in enumerate(zip(scores, query_labels, strict=True)):
        taken, spare, seen = [], [], {int(own)}
        for candidate in np.argsort(-row, kind="stable"):
            label = int(labels[candidate])
            if label == own:
                continue
            if label in seen:
                spare.append(candidate)
                continue
            taken.append(candidate)
            if label != BACKGROUND:
                seen.add(label)
            if len(taken) == count:
                break
        chosen = (taken + spare)[:count]
        result[place, : len(chosen)] = rows[chosen]
    return result


@dataclass(frozen=True)
class Negatives:
    """What a builder of tuples remembers: the negatives of one epoch.

    Attributes:
      step: optimizer steps done when they were chosen.
      epoch: whose they are.
      rows: i64 (q, n), rows of `Crops` for the epoch's queries in their order; -1 for none.
    """

    step: int
    epoch: int
    rows: np.ndarray

    @property
    def json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"step": self.step, "epoch": self.epoch, "rows": self.rows.tolist()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Negatives":
        """Inverse of `json`. Raises DataError for anything else."""
        try:
            rows = np.asarray(values["rows"], np.int64)
            return cls(int(values["step"]), int(values["epoch"]), rows)
        except (TypeError, ValueError, KeyError) as error:
            raise DataError(f"not the negatives of an epoch: {str(values)[:80]!r}") from error


class BatchBuilder:
    """Random access to this process's rows of the training batches (see `pipeline.Builder`).

    A batch is a function of (pictures, options, seed, memory, k). Negatives of epochs that `memory` is not of
    are random ones, which are good for a batch's shape.

    Attributes:
      crops: the pictures.
      epochs: which tuples there are.
      every: optimizer steps of an epoch.
      memory: `Negatives`, None without; `with_memory` changes it.
    """

    def __init__(
        self,
        source: Source,
        options: BatchOptions,
        *,
        seed: int = 0,
        trunk: Any = None,
        process_index: int = 0,
        process_count: int = 1,
    ):
        """Make a builder.

        Args:
          source: the training data.
          options: see `BatchOptions`.
          seed: of everything random.
          trunk: features by row of `crops` (`stored.StoredFeatures`), in place of the pictures.
          process_index, process_count: which part of a batch is built here.

        Raises:
          ConfigError: the tuples do not divide over the processes.
          DataError: too few pictures.
        """
        if not len(source):
            raise DataError("the training split has no pictures")
        if options.batch_size % process_count:
            raise ConfigError(
                f"batch_size={options.batch_size} does not divide over {process_count} processes"
            )
        self.options = options
        self.crops = plan(source, options, seed=seed)
        self.epochs = Epochs(self.crops, options, seed=seed)
        self.every = self.epochs.size // options.step
        self.memory: Negatives | None = None
        self._trunk, self._part = trunk, (process_index, process_count)

    def with_memory(self, memory: Negatives | dict | None) -> "BatchBuilder":
        """The builder of the same batches with these negatives, or their JSON.

        Raises:
          DataError: they are not of these pictures, or damaged.
        """
        other = copy.copy(self)
        other.memory = Negatives.from_json(memory) if isinstance(memory, dict) else memory
        if memory is not None:
            expected, rows = (self.epochs.size, self.options.negatives), other.memory.rows
            if rows.shape != expected or rows.max(initial=-1) >= len(self.crops):
                raise DataError(
                    "the hard negatives are not of this training split and these options; use another "
                    "--workdir"
                )
        return other

    def __len__(self) -> int:
        return 1 << 40  # endless for every practical purpose

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        """Batch k before `finish`: pictures uint8 and `SKIPPED`, JSON of [kind, name, message] as bytes."""
        size = self.options.batch_size
        number, place = divmod(k, self.epochs.size // size)
        epoch = self.epochs[number]
        mined = self.memory is not None and self.memory.epoch == number
        places = slice(place * size, (place + 1) * size)
        negatives = self.memory.rows[places] if mined else self.epochs.unmined(number, places)
        pairs = np.stack([epoch.queries[places], epoch.positives[places]], axis=1)
        mine = list(order.rows(size, self._part))
        return self.pictures(np.concatenate([pairs, negatives], axis=1)[mine])

    def pictures(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The pictures of `rows`, integers of any shape; -1 for one that is not there. For `finish`."""
        skipped: list[tuple[str, str, str]] = []
        found, valid = zip(*[self._picture(int(row), skipped) for row in rows.flat], strict=True)
        name = "image" if self._trunk is None else "image_trunk"
        return {
            name: np.stack(found).reshape(*rows.shape, *found[0].shape),
            "size": self.crops.sizes[rows],
            "valid": np.array(valid).reshape(rows.shape),
            SKIPPED: np.frombuffer(json.dumps(skipped).encode(), np.uint8),
        }

    @property
    def totals(self) -> dict[str, int]:
        """How many pictures there are of each kind that can be skipped."""
        return {"image": len(self.crops.source), "class picture": self.crops.source.num_classes}

    def finish(self, batch: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list]:
        """Normalises a batch (zero padding after that) and takes out what was skipped.

        Returns:
          The training batch (`systems.retrieval.objective.loss`), and (kind, name, message) of every picture
          that could not be read.
        """
        # Copies: arrays of a worker lie in shared memory, which must not outlive the iterator.
        batch = {name: np.array(batch[name]) for name in sorted(batch)}
        skipped = [tuple(entry) for entry in json.loads(batch.pop(SKIPPED).tobytes())]
        if "image" in batch:
            side = np.arange(self.crops.side)
            rows, columns = (side < batch["size"][..., axis, None] for axis in (0, 1))
            shown = rows[..., :, None] & columns[..., None, :] & batch["valid"][..., None, None]
            batch["image"] = np.where(shown[..., None], transforms.normalize(batch["image"]), np.float32(0))
        return batch, skipped

    def _picture(self, row: int, skipped: list) -> tuple[np.ndarray, bool]:
        crops, side = self.crops, self.crops.side
        try:
            if row >= 0 and self._trunk is not None:
                return self._trunk[row], True
            if row >= 0:
                picture = crops.picture(row)
                return np.pad(
                    picture, ((0, side - picture.shape[0]), (0, side - picture.shape[1]), (0, 0))
                ), True
        except ImageError as error:
            skipped.append(
                ("class picture" if crops.image[row] < 0 else "image", crops.name(row), str(error))
            )
        if self._trunk is not None:
            return np.zeros(self._trunk.shape[1:], np.float16), False
        return np.zeros((side, side, 3), np.uint8), False


def _query_shape(source: Source, label: int) -> tuple[int, int]:
    try:
        return source.query_size(label) if hasattr(source, "query_size") else source.query(label).shape[:2]
    except ImageError:
        return (1, 1)  # it is named when it is read
