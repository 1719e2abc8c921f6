"""The pass over the training images that finds their hard patches (`data.patches`), for the training loop."""

import time
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sm_jax import data as data_lib
from sm_jax import search
from sm_jax.data import order
from sm_jax.data.patches import MINING_STREAM, HardPatches, options
from sm_jax.errors import ImageError
from sm_jax.systems.chunks import counted
from sm_jax.systems.os2d import mining
from sm_jax.systems.os2d.model import ModelConfig
from sm_jax.systems.os2d.objective import ObjectiveConfig
from sm_jax.systems.os2d.predict import (
    DEVICE_ROWS,
    SMALLEST_LEVEL,
    Parts,
    Predictor,
    bucket_size,
    pad_to,
    parts,
)

BUCKET = 256  # pixels; levels at random scales share few padded shapes, hence few programs
REPORT_SECONDS = 60.0
MIN_BOXES = 16  # boxes are padded to this, or the next power of two
Say = Callable[[str], None]


def make_miner(config: Any) -> Any:
    """What mines for a config (see `trainer.Parts`); None where nothing shall.

    Raises:
      ConfigError: `data.mining` asks for what cannot be.
    """
    if config.system == "retrieval":
        from sm_jax.training import trunk_retrieval

        return trunk_retrieval.make_miner(config)
    if config.system != "os2d":
        return None
    return PatchMiner(config) if options(config.data).enabled else None


class PatchMiner:
    """Finds the crops of each training image with the largest losses.

    Every image is looked at once, in inference mode, at `scales` random scales within `eval.scales` and with
    `random_classes` random classes besides its own. What is drawn depends on (seed, step, image) alone, so
    that a resumed run finds what the straight run found. With several processes each takes every
    `process_count`-th image, and all receive all results.

    A picture that cannot be read is named and left out: such an image has no patches, and its batches take
    random crops; the training iterator counts it, and stops the run where there are many.

    Attributes:
      every: steps between two passes.
      compiles: how often each of "extract" and "losses" was traced.
    """

    def __init__(self, config: Any, *, model_parts: Parts | None = None):
        """Make a miner; opens nothing yet.

        Args:
          config: the whole config.
          model_parts: in place of the model that `config.model` names.
        """
        self._options = options(config.data)
        self.every = self._options.every
        self._config = config
        self._crop = tuple(config.data.crop)
        self._side = config.model.get("query_size", 240)
        self._pyramid = search.checked_scales(config.eval.scales)
        self.compiles: Counter[str] = Counter()
        model_parts = parts(ModelConfig.create(config.model)) if model_parts is None else model_parts
        objective = ObjectiveConfig.create(config.objective)

        def losses(variables, features, features_size, templates, batch, factor):
            output = model_parts.head(variables, features, features_size, templates)
            return mining.level_losses(objective, output, batch, features_size, factor)

        self._predictor = Predictor(model_parts)
        self._extract = jax.jit(counted(self.compiles, "extract", model_parts.extract))
        self._losses = jax.jit(counted(self.compiles, "losses", losses))

    def run(self, variables: Any, *, step: int, say: Say, part: tuple[int, int] | None = None) -> HardPatches:
        """Mine with the model `variables`.

        Args:
          variables: on this process's first device.
          step: steps done; seeds what is drawn.
          say: takes each line of progress.
          part: (index, count) of this process; None asks JAX.

        Returns:
          The patches of all images; if `part` is given, only of that part of them.
        """
        source, began = self._source, time.perf_counter()
        index, count = part or (jax.process_index(), jax.process_count())
        mine = range(index, len(source), count)
        say(
            f"step {step}: mines hard patches in {len(source)} images at {self._options.scales} scales with "
            f"{self._options.random_classes} random classes"
        )
        memory = HardPatches.empty(len(source), self._options.patches, step=step)
        templates = _Templates(self._predictor, variables, source, self._side, say)
        reported = began
        for done, image_index in enumerate(mine, 1):
            try:
                found = self._image(variables, image_index, step, templates)
            except ImageError as error:
                say(f"not mined: {error}")
                continue
            for name, values in found.items():
                getattr(memory, name)[image_index] = values
            now = time.perf_counter()
            if now - reported > REPORT_SECONDS:
                reported = now
                left = (now - began) / done * (len(mine) - done)
                say(f"mined {done} of {len(mine)} images, about {left / 60:.0f} min left")
        if part is None and count > 1:
            memory = exchange(memory)
        kept = ", ".join(f"{number} {role}" for role, number in memory.counts().items())
        say(f"hard patches: {kept}; took {time.perf_counter() - began:.0f} s")
        return memory

    @cached_property
    def _source(self) -> Any:
        return data_lib.make_source(self._config.data, "train")

    @cached_property
    def _scale_range(self) -> tuple[float, float]:
        scale = data_lib.image_scale(self._config.data, self._source)
        return scale * min(self._pyramid), scale * max(self._pyramid)

    def _image(self, variables: Any, index: int, step: int, templates: "_Templates") -> dict[str, np.ndarray]:
        """Arrays of `HardPatches` for one image. Raises ImageError if it cannot be read."""
        rng = order.rng(self._config.seed, MINING_STREAM, step, index)
        scales = np.unique(rng.uniform(*self._scale_range, self._options.scales))
        random = rng.permutation(self._source.num_classes)[: self._options.random_classes]
        entry, image = self._source.annotation(index), self._source.image(index)
        search.check_level_sizes(image.shape[:2], scales, name=f"image {entry['image_id']}")
        levels = [
            self._level(variables, picture, image.shape[:2])
            for picture in search.levels(image, scales)
            if min(picture.shape[:2]) >= SMALLEST_LEVEL
        ]
        class_ids = templates.readable(np.union1d(random, entry["labels"]))
        if not levels or not len(class_ids):
            return {}
        chunk = min(_chunk(levels), _power_of_two(self._source.num_classes))
        found: list[mining.Hardest] = []
        for start in range(0, len(class_ids), chunk):
            ids = class_ids[start : start + chunk]
            rows, batch = templates.padded(ids, chunk), _batch(entry, ids, chunk)
            hardest = [
                self._losses(variables, level.features, level.features_size, rows, batch, level.factor)
                for level in levels
            ]
            hardest = [
                mining.Hardest(np.asarray(one.losses), ids[np.minimum(np.asarray(one.labels), len(ids) - 1)])
                for one in hardest
            ]
            found = list(map(mining.worse, found, hardest)) if found else hardest
        crops = [
            mining.level_crops(
                level.features.shape[1:3], size=level.size, image_size=image.shape[:2], crop=self._crop
            )
            for level in levels
        ]
        return mining.select(crops, found, count=self._options.patches, iou=self._options.nms_iou)

    def _level(self, variables: Any, picture: np.ndarray, image_size: tuple[int, int]) -> "_Level":
        size = picture.shape[:2]
        padded = pad_to(picture, bucket_size(size, BUCKET))
        features, features_size = self._extract(
            variables, jnp.asarray(padded[None]), jnp.asarray([size], jnp.int32)
        )
        return _Level(features, features_size, size, jnp.asarray(mining.level_factor(size, image_size)))


class _Level(NamedTuple):
    """One level on the device; `size` is (height, width) without padding."""

    features: jax.Array
    features_size: jax.Array
    size: tuple[int, int]
    factor: jax.Array


class _Templates:
    """Templates of the classes that were asked for, kept on the host: each class is encoded once a pass."""

    def __init__(self, predictor: Predictor, variables: Any, source: Any, side: int, say: Say):
        self._predictor, self._variables, self._source = predictor, variables, source
        self._side, self._say = side, say
        self._known: dict[int, np.ndarray | None] = {}

    def readable(self, labels: np.ndarray) -> np.ndarray:
        """Those of the class indices whose class picture can be read; the others are named once."""
        for label in set(labels.tolist()) - self._known.keys():
            try:
                picture = self._source.query(label)
            except ImageError as error:
                self._say(f"not mined: class picture of {self._source.class_names[label]}: {error}")
                self._known[label] = None
            else:
                views = search.encode_views(self._predictor, self._variables, picture, side=self._side)
                self._known[label] = views[0]
        return np.array([label for label in labels.tolist() if self._known[label] is not None], np.int32)

    def padded(self, labels: np.ndarray, chunk: int) -> jax.Array:
        """Templates (chunk, t, t, d), zeros behind those of `labels`."""
        rows = np.stack([self._known[label] for label in labels.tolist()])
        return jnp.asarray(np.pad(rows, ((0, chunk - len(rows)), *((0, 0),) * (rows.ndim - 1))))


def _batch(entry: dict[str, Any], class_ids: np.ndarray, chunk: int) -> dict[str, np.ndarray]:
    """The annotation of one image as `objective` takes it, labels counting `class_ids` (ascending)."""
    count = len(entry["labels"])
    padding = max(MIN_BOXES, _power_of_two(count)) - count
    rows = np.minimum(np.searchsorted(class_ids, entry["labels"]), len(class_ids) - 1)
    labels = np.where(class_ids[rows] == entry["labels"], rows, -1)
    return {
        "boxes": np.pad(entry["boxes"], ((0, padding), (0, 0)))[None].astype(np.float32),
        "labels": np.pad(labels, (0, padding), constant_values=-1)[None].astype(np.int32),
        "difficult": np.pad(entry["difficult"], (0, padding))[None],
        "boxes_valid": (np.arange(count + padding) < count)[None],
        "valid": np.ones(1, bool),
        "query_valid": np.arange(chunk) < len(class_ids),
    }


def _chunk(levels: list[_Level]) -> int:
    """Classes per call of the head: a power of two that fills the device, as in inference."""
    if jax.default_backend() == "cpu":
        return 4
    cells = max(level.features.shape[1] * level.features.shape[2] for level in levels)
    return min(128, 1 << max(2, (DEVICE_ROWS // cells).bit_length() - 1))


def _power_of_two(count: int) -> int:
    """The least power of two that is at least `count`."""
    return 1 << max(count - 1, 0).bit_length()


def exchange(memory: HardPatches) -> HardPatches:
    """From each process the images that it mined, on all of them."""
    from jax.experimental import multihost_utils

    arrays = {
        name: multihost_utils.process_allgather(getattr(memory, name))
        for name in ("labels", "crops", "losses")
    }
    return HardPatches(memory.step, **{name: join(values) for name, values in arrays.items()})


def join(parts_: np.ndarray) -> np.ndarray:
    """Row i of part i % n, of n parts (n, m, ...) of the same m images: (m, ...)."""
    rows = np.arange(parts_.shape[1])
    return np.asarray(parts_)[rows % len(parts_), rows]
