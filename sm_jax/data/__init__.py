"""Sources with random access, augmentation and the training iterator. NumPy only; see `docs/own-data.md`."""

import math
from pathlib import Path
from typing import Any

from sm_jax.data.measure import Measured, measure, query_canvas
from sm_jax.data.sources import Source, open_source
from sm_jax.errors import ConfigError

__all__ = [
    "Measured",
    "Source",
    "image_scale",
    "make_source",
    "make_train_iterator",
    "measure",
    "open_source",
    "query_canvas",
]


def make_source(data: Any, split: str) -> Source:
    """Source of one split.

    Args:
      data: config section `data`: `source` is "shelves" (generated; its options in `data.shelves`) or the
        path of a data set (see `sources.open_collection`).
      split: "train", "val", "test" or a name the data set uses.

    Raises:
      ConfigError, DataError.
    """
    if not data.source:
        raise ConfigError("data.source: give 'shelves' or the path of a data set")
    if data.source == "shelves":
        return _shelves(data, split)
    if data.source.startswith("~") or Path(data.source).exists():
        return open_source(data.source, split=split)
    raise ConfigError(f"data.source: {data.source!r} is neither 'shelves' nor an existing file or folder")


def image_scale(data: Any, train: Source | None = None) -> float:
    """Factor from stored pixels to the pixels the model works on, for every split of a data set.

    `data.scale` if it is positive; if it is 0, measured on the training split (`train`, if it is open
    already), so that its median object gets `data.object_size` pixels (square root of the area).

    Raises:
      ConfigError, DataError.
    """
    scale, object_size = float(data.get("scale", 0.0)), float(data.object_size)
    if not 0 <= scale < math.inf:
        raise ConfigError(f"data.scale: must be positive, or 0 to measure it, not {scale:g}")
    if not 0 < object_size < math.inf:
        raise ConfigError(f"data.object_size: must be positive, not {object_size:g}")
    if scale:
        return scale
    return measure(make_source(data, "train") if train is None else train, object_size=object_size).scale


def make_train_iterator(config: Any) -> Any:
    """Endless iterator of this process's rows of the training batches (`pipeline.TrainIterator`).

    Args:
      config: the whole config; read are `seed`, `batch_size`, `data` and `model.query_size`.

    Raises:
      ConfigError, DataError.
    """
    from sm_jax.data import os2d, pipeline  # grain takes seconds to import and brings jax

    data = config.data
    if config.system != "os2d":
        raise ConfigError(f"system={config.system!r}: there are no training batches for it")
    if data.get("mining", False):
        raise ConfigError("data.mining: hard-patch mining is not available; set it to False")
    if data.workers < 0:
        raise ConfigError(f"data.workers: must not be negative, not {data.workers}")
    source = make_source(data, "train")
    side = config.model.get("query_size", 240)
    options = os2d.BatchOptions(
        scale=image_scale(data, source),
        canvas=query_canvas(source, side=side),
        batch_size=config.batch_size,
        class_batch_size=data.class_batch_size,
        crop=tuple(data.crop),
        query_side=side,
        max_boxes=data.max_boxes,
        scale_jitter=data.scale_jitter,
        aspect_jitter=data.aspect_jitter,
        min_coverage=data.min_coverage,
        cut_coverage=data.cut_coverage,
        flips=data.flips,
        color=data.color,
        query_crops=data.query_crops,
    )
    index, count = pipeline.process_part()
    builder = os2d.BatchBuilder(source, options, seed=config.seed, process_index=index, process_count=count)
    return pipeline.TrainIterator(builder, workers=data.workers)


def _shelves(data: Any, split: str) -> Source:
    from sm_jax.data.synthetic import ShelvesSource  # needs the packages with the artwork

    options = dict(data.get("shelves", {}))
    lengths = {name: options.pop(f"num_{name}", None) for name in ("train", "val", "test")}
    if split not in lengths:
        raise ConfigError(f"shelves: there is no split {split!r}, only train, val and test")
    if lengths[split] is not None:
        options["num_scenes"] = lengths[split]
    return ShelvesSource(split, cache_dir=data.get("cache_dir", "") or None, **options)
