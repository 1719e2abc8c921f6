"""Training batches of the cross-modal system: which images belong to batch k, and the arrays they become.

`BatchBuilder[k]` is a pure function of (source, options, seed, k): any process, worker or resumed run builds
the same batch. Pictures stay uint8 here and are normalised by `finish`.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sm_jax import text
from sm_jax.data import images, order, transforms
from sm_jax.data.order import MAX_REPLACEMENTS, SKIPPED
from sm_jax.data.phrases import PhraseSource
from sm_jax.errors import ConfigError, DataError, ImageError

_ROW = 1  # random stream of a row; purpose 0 is the order of an epoch


class Encoder(Protocol):
    """What turns phrases into arrays: a `text.Tokenizer` (integers) or `SentenceVectors` (floats)."""

    def encode(self, texts: list[str]) -> np.ndarray: ...

    def check(self, text: str) -> str: ...


@dataclass(frozen=True)
class BatchOptions:
    """How batches are made.

    Attributes:
      batch_size: images of a global batch.
      image_size: (height, width) that every image is fitted into.
      max_boxes: boxes kept per image; take the most that an image has, for the rest would count as background
        (those that the phrase means stay).
      flips: mirror half of the images; not for phrases that say left or right.
      accumulate: batches of an optimizer step.
    """

    batch_size: int = 32
    image_size: tuple[int, int] = (512, 512)
    max_boxes: int = 20
    flips: bool = False
    accumulate: int = 1

    def __post_init__(self):
        for name in ("batch_size", "max_boxes", "accumulate"):
            if getattr(self, name) < 1:
                raise ConfigError(f"data: {name} must be at least 1, not {getattr(self, name)}")
        if min(self.image_size) < 32:
            raise ConfigError(
                f"data.image_size: both sides must be at least 32 pixels, not {self.image_size}"
            )


class BatchBuilder:
    """Random access to this process's rows of global batch k.

    Images follow a permutation of (seed, epoch); of an image with several phrases one is drawn.

    Args:
      source: the training data.
      options: see `BatchOptions`.
      encoder: of phrases; integers become `tokens`, floats `text_features`.
      seed: of everything random.
      process_index: which rows are built here.
      process_count: in how many equal parts the rows are divided.
      trunk: index -> features of the frozen part of the backbone, f16 (h, w, c), of the fitted image; they
        take the place of the pixels. May raise ImageError.

    Raises:
      ConfigError: options that do not go together. DataError: the source is empty.
    """

    def __init__(
        self,
        source: PhraseSource,
        options: BatchOptions,
        encoder: Encoder,
        *,
        seed: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        trunk: Sequence[np.ndarray] | None = None,
    ):
        if not len(source):
            raise DataError("the training split has no pictures")
        if options.batch_size % process_count:
            raise ConfigError(
                f"batch_size={options.batch_size} does not divide over {process_count} processes"
            )
        if trunk is not None and options.flips:
            raise ConfigError("data.flips: stored features cannot be mirrored; set data.cache_trunk=False")
        self.source = source
        self.options = options
        self._encoder = encoder
        self._seed = seed
        self._part = (process_index, process_count)
        self._trunk = trunk

    def __len__(self) -> int:
        return 1 << 40  # endless for every practical purpose

    @property
    def totals(self) -> dict[str, int]:
        """How many pictures there are of each kind that can be skipped."""
        return {"image": len(self.source)}

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        """Batch k before `finish`: pictures uint8, and `SKIPPED`, JSON of [kind, name, message] as bytes."""
        picks = order.picks(self._seed, k, count=len(self.source), size=self.options.batch_size)
        skipped: list[tuple[str, str, str]] = []
        rows = [
            self._row(order.rng(self._seed, _ROW, k, row), picks[row], skipped)
            for row in order.rows(self.options.batch_size, self._part)
        ]
        phrases = self._encoder.encode([row.pop("phrase") for row in rows])
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        batch["tokens" if phrases.dtype.kind == "i" else "text_features"] = phrases
        batch["step"] = np.array(k // self.options.accumulate, np.int32)
        batch[SKIPPED] = np.frombuffer(json.dumps(skipped).encode(), np.uint8)
        return batch

    def finish(self, batch: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list]:
        """Normalises the pictures (zero padding after that) and takes out what was skipped.

        Returns:
          The training batch: `image` f32 (b, H, W, 3) or `trunk` f16 (b, h, w, c); `boxes` f32 (b, m, 4) in
          pixels of the fitted image; `boxes_valid` and `aligned` bool (b, m); `tokens` i32 (b, L) or
          `text_features` f32 (b, d); `valid` bool (b,), false for a row that is empty because no picture
          could be read; `step` i32 (), the optimizer step that takes it. And (kind, name, message) of every
          picture that could not be read.
        """
        # Copies: arrays of a worker lie in shared memory, which must not outlive the iterator.
        batch = {name: np.array(batch[name]) for name in sorted(batch)}
        skipped = [tuple(entry) for entry in json.loads(batch.pop(SKIPPED).tobytes())]
        if "image" in batch:
            used = batch.pop("used")
            pixels = batch["image"]
            batch["image"] = np.zeros(pixels.shape, np.float32)
            for row, (height, width) in enumerate(used.tolist()):
                batch["image"][row, :height, :width] = transforms.normalize(pixels[row, :height, :width])
        return batch, skipped

    def _row(self, rng: np.random.Generator, index: int, skipped: list) -> dict[str, Any]:
        for _ in range(1 + MAX_REPLACEMENTS):
            note = self.source.annotation(index)
            try:
                return self._example(rng, index, note)
            except ImageError as error:
                skipped.append(("image", note["image_id"], str(error)))
                index = int(rng.integers(len(self.source)))
        return self._empty()

    def _example(self, rng: np.random.Generator, index: int, note: dict[str, Any]) -> dict[str, Any]:
        if self._trunk is None:
            row, boxes = self._pixels(rng, self.source.image(index), note["boxes"])
        else:
            row = {"trunk": np.asarray(self._trunk[index], np.float16)}
            boxes = note["boxes"] * np.tile(fit(note["size"], self.options.image_size)[1], 2)
        chosen = int(rng.integers(len(note["phrases"])))
        row |= self._boxes(boxes, note["matches"][chosen])
        return row | {"phrase": note["phrases"][chosen], "valid": np.array(True)}

    def _pixels(self, rng, image, boxes) -> tuple[dict[str, np.ndarray], np.ndarray]:
        image, scale = letterbox(image, self.options.image_size)
        boxes = boxes * np.tile(scale, 2)
        if self.options.flips and rng.random() < 0.5:
            image, boxes = transforms.flip(image, boxes, horizontal=True)
        canvas = np.zeros((*self.options.image_size, 3), np.uint8)
        canvas[: image.shape[0], : image.shape[1]] = image
        return {"image": canvas, "used": np.array(image.shape[:2], np.int32)}, boxes

    def _boxes(self, boxes: np.ndarray, matches: np.ndarray) -> dict[str, np.ndarray]:
        limit = self.options.max_boxes
        keep = np.sort(np.argsort(~matches, kind="stable")[:limit])
        padding = limit - len(keep)
        return {
            "boxes": np.pad(boxes[keep], ((0, padding), (0, 0))).astype(np.float32),
            "boxes_valid": np.arange(limit) < len(keep),
            "aligned": np.pad(matches[keep], (0, padding)),
        }

    def _empty(self) -> dict[str, Any]:
        """A row that counts for nothing."""
        if self._trunk is not None:
            raise DataError(f"{1 + MAX_REPLACEMENTS} images in a row have no stored features")
        blank = np.zeros((*self.options.image_size, 3), np.uint8)
        row = {"image": blank, "used": np.zeros(2, np.int32), "valid": np.array(False)}
        row |= self._boxes(np.zeros((0, 4), np.float32), np.zeros(0, bool))
        return row | {"phrase": self.source.annotation(0)["phrases"][0]}


def check_phrases(
    phrases: Iterable[str], encoder: Encoder, *, split: str = "train", unknown: bool = False
) -> None:
    """Whether the encoder can read every one of the phrases of a split.

    `unknown`: phrases without a known word are borne, as evaluation does, which reports them.

    Raises:
      ConfigError: phrases longer than `model.text_length` allows. TextError: another phrase it cannot read.
    """
    phrases = list(phrases)
    length = getattr(encoder, "length", None)  # of a row of words; a given vector has none
    longest = max((1 + len(text.words(phrase)) for phrase in phrases), default=0)
    if length is not None and longest > length:
        raise ConfigError(
            f"model.text_length={length}: the longest phrase of split {split!r} needs {longest} (its words "
            f"and 1); train with model.text_length={longest}"
        )
    if length is None or not unknown:
        for phrase in phrases:
            encoder.check(phrase)


def fit(size: tuple[int, int], target: tuple[int, int]) -> tuple[tuple[int, int], np.ndarray]:
    """The size (height, width) of a picture scaled, up or down, to fit into `target`, and the exact factors
    f32 (x, y) that take its coordinates there."""
    scale = min(target[0] / size[0], target[1] / size[1])
    height, width = (
        min(max(round(side * scale), 1), limit) for side, limit in zip(size, target, strict=True)
    )
    return (height, width), np.array([width / size[1], height / size[0]], np.float32)


def letterbox(image: np.ndarray, target: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A uint8 picture scaled to fit into `target`, not padded, and the factors of its coordinates; `fit`."""
    size, scale = fit(image.shape[:2], target)
    return images.resize(image, size), scale


def prepare(image: np.ndarray, target: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """What the model sees of a uint8 picture: fitted into `target` (h, w), normalised, zeros right and below,
    f32 (h, w, 3); and the factors f32 (x, y) of its coordinates."""
    image, scale = letterbox(image, target)
    canvas = np.zeros((*target, 3), np.float32)
    canvas[: image.shape[0], : image.shape[1]] = transforms.normalize(image)
    return canvas, scale
