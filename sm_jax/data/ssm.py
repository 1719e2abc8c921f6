"""Training batches of the SSM: pairs of a test window and a request picture.

`BatchBuilder[k]` is a pure function of (source, options, seed, k): any process, worker or resumed run builds
the same batch. Pictures stay uint8 here; `finish` makes them BGR minus 127.
Source: SSM (2018), sec. on training; SSM specification, section 4.
"""

import json
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from sm_jax.data import order, transforms
from sm_jax.data import ssm_windows as geometry
from sm_jax.data.sources.base import Source
from sm_jax.data.ssm_pairs import CropList, Pair, Pairs, WindowList
from sm_jax.data.stored import StoredFeatures
from sm_jax.errors import ConfigError, DataError, ImageError

MAX_REPLACEMENTS = 10
SKIPPED = "skipped"  # transport key, taken out by `finish`
_ROW = 1  # random stream of a row; purpose 0 is the order of an epoch


@dataclass(frozen=True)
class BatchOptions:
    """How batches are made; sizes are (height, width).

    Attributes:
      batch_size: pairs of a global batch.
      image_size: of the test window.
      request_size: of the canvas that request crops are letterboxed to.
      max_boxes: boxes kept per window, the largest.
      scale: window pixels per stored pixel; 1 for pictures with objects of ImageNet's sizes.
      positive_share: of the pairs; exact over any run of rows, 0.5 alternates.
      min_request: pixels that both sides of a request's box must have.
      min_visible: share of a box that must be in the window, or it is dropped.
      request_jitter: share of its side by which each edge of a request's box may move.
      flips: mirror half of the windows and half of the requests; not for things with writing on them.
      augment: as DetectNet; see `ssm_windows.plan`.
      requests_per_class: at most so many instances of a class serve as requests, a fixed choice; 0: all.
      fixed_crops: train on `views` fixed windows per image and one fixed crop per request, named by their
        rows, so that features of frozen layers can be computed once; see `windows`, `request_crops`.
      views: fixed windows per image.
    """

    batch_size: int = 10
    image_size: tuple[int, int] = (512, 512)
    request_size: tuple[int, int] = (128, 128)
    max_boxes: int = 32
    scale: float = 1.0
    positive_share: float = 0.5
    min_request: float = 32.0
    min_visible: float = 0.25
    request_jitter: float = 0.1
    flips: bool = True
    augment: bool = False
    requests_per_class: int = 0
    fixed_crops: bool = False
    views: int = 4

    def __post_init__(self):
        for name in ("batch_size", "max_boxes", "min_request", "views"):
            if not getattr(self, name) >= 1:
                raise ConfigError(f"data: {name} must be at least 1, not {getattr(self, name)}")
        for name in ("image_size", "request_size"):
            if min(getattr(self, name)) < 16:
                raise ConfigError(
                    f"data.{name}: both sides must be at least 16 pixels, not {getattr(self, name)}"
                )
        for name in ("positive_share", "min_visible"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"data.{name}: must lie in [0, 1], not {getattr(self, name)}")
        if not 0 <= self.request_jitter < 0.5:
            raise ConfigError(f"data.request_jitter: must lie in [0, 0.5), not {self.request_jitter}")
        if self.requests_per_class < 0:
            raise ConfigError(f"data.requests_per_class: must not be negative, not {self.requests_per_class}")
        if not (np.isfinite(self.scale) and self.scale > 0):
            raise ConfigError(f"data.scale: must be positive, not {self.scale}")


def batch_options(config: Any, scale: float = 1.0) -> BatchOptions:
    """The options that a config names: `batch_size`, `model.image_size` and `request_size`, and those keys of
    `data` that are called like an option; the others keep their defaults.

    Args:
      config: the whole config.
      scale: takes the place of `data.scale`, which may ask for measuring.
    """
    names = [field.name for field in fields(BatchOptions)]
    chosen = {name: config.data[name] for name in names if name in config.data}
    for name in ("image_size", "request_size"):
        if name in config.model:
            chosen[name] = tuple(config.model[name])
    return BatchOptions(**chosen | {"batch_size": config.batch_size, "scale": scale})


class Trunk(NamedTuple):
    """Stored features of the frozen stages of both branches.

    Attributes:
      image: by row of the window list, f16 (h, w, c) each.
      request: by row of the crop list.
    """

    image: StoredFeatures
    request: StoredFeatures


class BatchBuilder:
    """Random access to this process's rows of global batch k.

    A row is drawn as follows. The class: classes take turns, in a permutation of (seed, epoch). The image:
    uniform among those that show the class. The window: anywhere around an instance of the class. In a
    positive row the request is of this class: an instance of another image, else another instance of the
    same one, else the class picture. In a negative row, whose window is drawn in the same way, so that the
    picture tells nothing, it is of a class that the whole image surely does not show.

    Boxes are those of the requested class, difficult ones too; difficult ones are neither requests nor what
    a window is drawn around.

    Args:
      source: the training data; `listed(index)`, if it has it, says of which classes an image's annotation
        is complete (see `RecordSource.listed`).
      options: see `BatchOptions`.
      seed: of everything random.
      process_index: which rows are built here.
      process_count: in how many equal parts the rows are divided.
      trunk: features that batches carry in place of the pictures, for `fixed_crops`; rows of damaged pictures
        are never drawn.

    Raises:
      ConfigError: the rows do not divide over the processes, or every image shows every class, so that there
        are no negative pairs.
      DataError: the source is empty, or nothing in it makes a pair.
    """

    def __init__(
        self,
        source: Source,
        options: BatchOptions,
        *,
        seed: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        trunk: Trunk | None = None,
    ):
        if not len(source):
            raise DataError("the training split has no pictures")
        if options.batch_size % process_count:
            raise ConfigError(
                f"batch_size={options.batch_size} does not divide over {process_count} processes"
            )
        self.source = source
        self.options = options
        if trunk is not None and not options.fixed_crops:
            raise ConfigError("data.fixed_crops: stored features are of fixed crops; set it to True")
        damaged = ((), ()) if trunk is None else (trunk.image.damaged(), trunk.request.damaged())
        self.pairs = Pairs(source, options, seed=seed, damaged=damaged)
        self._trunk = trunk
        self._seed = seed
        self._part = (process_index, process_count)

    def __len__(self) -> int:
        return 1 << 40  # endless for every practical purpose

    @property
    def totals(self) -> dict[str, int]:
        """How many pictures there are of each kind that can be skipped."""
        return {"image": len(self.source), "class picture": self.source.num_classes}

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        """Batch k before `finish`: pictures uint8, and `SKIPPED`, JSON of [kind, name, message] as bytes."""
        size = self.options.batch_size
        skipped: list[tuple[str, str, str]] = []
        turns = {
            positive: order.picks(self._seed, k, count=len(classes), size=size)
            for positive, classes in ((True, self.pairs.positive), (False, self.pairs.negative))
            if len(classes)
        }
        rows = []
        for row in order.rows(size, self._part):
            positive = self.is_positive(k, row)
            rng = order.rng(self._seed, _ROW, k, row)
            rows.append(self._row(rng, positive, turns[positive][row], skipped))
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        batch[SKIPPED] = np.frombuffer(json.dumps(skipped).encode(), np.uint8)
        return batch

    def is_positive(self, k: int, row: int) -> bool:
        """Whether row `row` of global batch k is a positive pair."""
        position, share = k * self.options.batch_size + row, self.options.positive_share
        return int((position + 1) * share) > int(position * share)

    def finish(self, batch: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list]:
        """The training batch and what was skipped; see `finish`."""
        return finish(batch)

    def _row(self, rng, positive: bool, turn: int, skipped: list) -> dict[str, np.ndarray]:
        for _ in range(1 + MAX_REPLACEMENTS):
            pair = self.pairs.draw(rng, positive, turn)
            try:
                row = self._fixed(pair) if self.options.fixed_crops else self._pixels(rng, pair, skipped)
            except ImageError:
                turn = int(rng.integers(1 << 30))  # another class: this one may have no other picture
            else:
                return row | {"positive": np.array(pair.positive)}
        return self._empty()

    def _fixed(self, pair: Pair) -> dict[str, np.ndarray]:
        row = self._boxes(pair, self.pairs.windows.window(pair.window))
        if self._trunk is None:
            rows = {"image_row": pair.window, "request_row": pair.request}
            return row | {name: np.array(number, np.int32) for name, number in rows.items()}
        return row | {
            "image_trunk": self._trunk.image[pair.window],
            "request_trunk": self._trunk.request[pair.request],
        }

    def _pixels(self, rng, pair: Pair, skipped: list) -> dict[str, np.ndarray]:
        options, found = self.options, self.pairs.found
        try:
            image = self.source.image(pair.image)
        except ImageError as error:
            skipped.append(("image", found.image_ids[pair.image], str(error)))
            raise
        window = geometry.plan(
            rng,
            found.sizes[pair.image].tolist(),
            found.boxes[pair.anchor],
            image_size=options.image_size,
            scale=options.scale,
            flips=options.flips,
            augment=options.augment,
        )
        try:
            request = self.pairs.crops.cut(rng, pair.request)
        except ImageError as error:
            skipped.append((*self.pairs.crops.name(pair.request), str(error)))
            raise
        return self._boxes(pair, window) | {
            "image": geometry.render(image, window, options.image_size),
            "request": request,
        }

    def _boxes(self, pair: Pair, window: geometry.Window) -> dict[str, np.ndarray]:
        options, found = self.options, self.pairs.found
        boxes = np.zeros((0, 4), np.float32)
        if pair.positive:
            rows = found.rows(pair.image)
            rows = rows[found.labels[rows] == pair.label]
            size = found.sizes[pair.image].tolist()
            boxes, share = geometry.boxes_in(found.boxes[rows], size, window, options.image_size)
            boxes = boxes[(share >= options.min_visible) & (share > 0)]
            area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
            boxes = boxes[np.argsort(-area, kind="stable")[: options.max_boxes]]
        padding = options.max_boxes - len(boxes)
        return {
            "boxes": np.pad(boxes, ((0, padding), (0, 0))),
            "valid": np.arange(options.max_boxes) < len(boxes),
        }

    def _empty(self) -> dict[str, np.ndarray]:
        """A grey window and a grey request, which do not match."""
        return {
            "boxes": np.zeros((self.options.max_boxes, 4), np.float32),
            "valid": np.zeros(self.options.max_boxes, bool),
            "image": np.full((*self.options.image_size, 3), geometry.GREY, np.uint8),
            "request": np.full((*self.options.request_size, 3), geometry.GREY, np.uint8),
            "positive": np.array(False),
        }


def finish(batch: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[tuple[str, str, str]]]:
    """Makes the pictures of a batch of `BatchBuilder` BGR minus 127 and takes out what was skipped.

    Returns:
      The training batch: `image` f32 (b, H, W, 3) and `request` f32 (b, h, w, 3), or with `fixed_crops`
      `image_row` and `request_row` i32 (b,), or with a trunk `image_trunk` and `request_trunk` f16
      (b, h, w, c); `boxes` f32 (b, n, 4) of the requested class in pixels of the
      window, from large to small; `valid` bool (b, n); `positive` bool (b,). A row for which no picture could
      be read is grey and negative. And (kind, name, message) of every picture that could not be read; kind is
      "image" or "class picture".
    """
    # Copies: arrays of a worker lie in shared memory, which must not outlive the iterator.
    batch = {name: np.array(batch[name]) for name in sorted(batch)}
    skipped = [tuple(entry) for entry in json.loads(batch.pop(SKIPPED).tobytes())]
    for name in ("image", "request"):
        if name in batch:
            batch[name] = transforms.bgr_minus_mean(batch[name], geometry.GREY)
    return batch, skipped


def windows(options: BatchOptions, source: Source, *, seed: int = 0) -> WindowList:
    """The fixed windows that `image_row` counts: row `image * views + view`. Same arguments as the builder,
    which holds the list as `pairs.windows`."""
    return _lists(options, source, seed).windows


def request_crops(options: BatchOptions, source: Source, *, seed: int = 0) -> CropList:
    """The fixed request crops that `request_row` counts; the builder holds the list as `pairs.crops`."""
    return _lists(options, source, seed).crops


def _lists(options: BatchOptions, source: Source, seed: int) -> Pairs:
    if not options.fixed_crops:
        raise ConfigError("data.fixed_crops: is off, so windows and crops are random and have no list")
    return Pairs(source, options, seed=seed)
