"""Sources with random access, augmentation and the training iterator. NumPy only; see `docs/own-data.md`."""

import functools
import json
import logging
import math
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sm_jax.data.measure import Measured, measure, query_canvas
from sm_jax.data.phrases import PhraseSource
from sm_jax.data.sources import Source, open_source
from sm_jax.data.sources.classes import CLASSES
from sm_jax.data.sources.pair_records import PairList
from sm_jax.errors import ConfigError

__all__ = [
    "Measured",
    "PhraseSource",
    "Source",
    "class_views",
    "image_scale",
    "make_encoder",
    "make_pairs",
    "make_phrase_source",
    "make_retrieval_builder",
    "make_source",
    "make_train_iterator",
    "make_training_pairs",
    "measure",
    "open_source",
    "query_canvas",
]

GENERATED = ("figures", "shapes", "shelves")
"""Values of `data.source` that are no path."""
PUBLISHED_SIZE = 240
"""Pixels that the published scales bring the objects of a data set to (OS2D spec sec. 13)."""

_log = logging.getLogger("sm_jax.data")


def make_source(data: Any, split: str) -> Source:
    """Source of one split.

    Args:
      data: config section `data`: `source` is "shelves" (generated; its options in `data.shelves`) or the
        path of a data set (see `sources.open_collection`).
      split: "train", "val", "test" or a name the data set uses; ":seen" or ":unseen" behind it restricts the
        classes ("val:unseen", see `sources.classes`). The generated shelves are divided as they are: their
        "val" and "test" are unseen, "train" is seen, and "val:seen" is their split "seen".

    Raises:
      ConfigError, DataError.
    """
    if not data.source:
        raise ConfigError("data.source: give 'shelves' or the path of a data set")
    name, _, classes = split.rpartition(":")
    if not name or classes not in CLASSES:
        name, classes = split, "all"
    if data.source == "shelves":
        return _shelves(data, _shelf_split(name, classes))
    if data.source.startswith("~") or Path(data.source).exists():
        return open_source(data.source, split=name, classes=classes)
    raise ConfigError(f"data.source: {data.source!r} is neither 'shelves' nor an existing file or folder")


def image_scale(data: Any, train: Source | None = None) -> float:
    """Factor from stored pixels to the pixels the model works on, for every split of a data set.

    `data.scale` if it is positive; if it is 0, measured on the training split (`train`, if it is open
    already), so that its median object gets `data.object_size` pixels (square root of the area). A published
    data set (`data.builders.published`) has its own scale for objects of 240 pixels; it is not measured.

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
    if found := _facts(data):
        return found.eval_scale / found.nominal * object_size / PUBLISHED_SIZE
    return measure(make_source(data, "train") if train is None else train, object_size=object_size).scale


def class_views(data: Any, views: str) -> str:
    """`eval.views` with "data" replaced by what a published data set is searched with ("" for any other)."""
    if views != "data":
        return views
    found = _facts(data)
    return found.views if found else ""


def _facts(data: Any) -> Any:
    """`builders.facts.Facts` of `data.source`, if it is a published data set that was built."""
    from sm_jax.data import builders
    from sm_jax.data.builders import facts

    path = data.get("source", "")
    built = None if path in ("", *GENERATED) else builders.find(path)
    return None if built is None else facts.read(built)


def make_phrase_source(data: Any, split: str) -> PhraseSource:
    """Source of one split of images with phrases.

    Args:
      data: config section `data`: `source` is "shapes" (generated; its options in `data.shapes`), "shelves"
        (phrases about the generated photo scenes; options in `data.shelves` and `data.shelf_phrases`) or the
        path of a JSON file (see `sources.phrase_json`).
      split: "train", "val", "test" or a name the data set uses.

    Raises:
      ConfigError, DataError.
    """
    if data.source == "shapes":
        from sm_jax.data.shapes import ShapeScenes

        options = _of_split(data.get("shapes", {}), split, "shapes")
        if split != "train":
            options.pop("p_absent", None)  # evaluation asks for what is absent as a kind of its own
        return ShapeScenes(split, **options)
    if data.source == "shelves":
        from sm_jax.data.synthetic.phrases import ShelfPhrases  # needs the packages with the artwork

        options = _of_split(data.get("shelves", {}), split, "shelves") | dict(data.get("shelf_phrases", {}))
        if split != "train":
            options.pop("p_absent", None)
        return ShelfPhrases(split, cache_dir=data.get("cache_dir", "") or None, **options)
    if not data.source:
        raise ConfigError("data.source: give 'shapes', 'shelves' or the path of a JSON file with phrases")
    from sm_jax.data.sources import phrase_json

    return phrase_json.open_source(data.source, split=split)


def make_encoder(config: Any, train: PhraseSource | None = None) -> Any:
    """What turns phrases into the model's input: `text.Tokenizer`, or `phrases.SentenceVectors`.

    The words are `config.model.vocabulary`, or, where it is empty, those of the training phrases (`train`, if
    it is open already).

    Raises:
      ConfigError, DataError.
    """
    from sm_jax.data.phrases import SentenceVectors
    from sm_jax.text import LENGTH, Tokenizer

    model = config.model
    if model.get("text_encoder", "transformer") == "features":
        path = config.data.get("text_features", "")
        if not path:
            raise ConfigError("data.text_features: give the .npz file with the vectors of the phrases")
        return SentenceVectors(path)
    words = tuple(model.get("vocabulary", ()))
    if not words:
        words = (make_phrase_source(config.data, "train") if train is None else train).vocabulary
    return Tokenizer(words, model.get("text_length", LENGTH))


def make_train_iterator(config: Any, *, trunk: Any = None) -> Any:
    """Endless iterator of this process's rows of the training batches (`pipeline.TrainIterator`).

    Args:
      config: the whole config; read are `system`, `seed`, `batch_size`, `data` and parts of `model`.
      trunk: see `crossmodal.BatchBuilder`.

    Raises:
      ConfigError, DataError.
    """
    from sm_jax.data import pipeline  # grain takes seconds to import and brings jax

    makers = {
        "os2d": _os2d_builder,
        "coae": _os2d_builder,
        "crossmodal": _crossmodal_builder,
        "detector": _detector_builder,
        "ssm": _ssm_builder,
        "scnet": _scnet_builder,
        "retrieval": make_retrieval_builder,
    }
    if config.system not in makers:
        raise ConfigError(f"system={config.system!r}: there are no training batches for it")
    if config.data.workers < 0:
        raise ConfigError(f"data.workers: must not be negative, not {config.data.workers}")
    index, count = pipeline.process_part()
    options = {"seed": config.seed, "process_index": index, "process_count": count}
    if trunk is not None:
        options["trunk"] = trunk
    return pipeline.TrainIterator(makers[config.system](config, **options), workers=config.data.workers)


def _os2d_builder(config: Any, **process: Any) -> Any:
    from sm_jax.data import coae, os2d, patches

    data = config.data
    builder = coae.BatchBuilder if config.system == "coae" else os2d.BatchBuilder
    mining = patches.options(data)
    extra = bool(data.get("mine_extra_class_images", False))
    source = make_source(data, "train")
    side = config.model.get("query_size", 240)
    options = os2d.BatchOptions(
        scale=image_scale(data, source),
        canvas=query_canvas(source, side=side, boxes=extra),
        batch_size=config.batch_size,
        class_batch_size=data.get("class_batch_size", config.batch_size),
        crop=tuple(data.crop),
        query_side=side,
        max_boxes=data.max_boxes,
        scale_jitter=data.scale_jitter,
        aspect_jitter=data.aspect_jitter,
        min_coverage=data.min_coverage,
        cut_coverage=data.cut_coverage,
        flips=data.flips,
        color=data.color,
        pad_crops=bool(data.get("pad_crops", False)),
        query_crops=data.query_crops,
        extra_query_pictures=extra,
        hard_patches=mining.enabled,
    )
    return builder(source, options, **process)


def _detector_builder(config: Any, **process: Any) -> Any:
    from sm_jax.data import detector

    data, classes = config.data, config.model.get("classes", 0)
    source = make_source(data, "train")
    if classes and classes != source.num_classes:
        raise ConfigError(
            f"model.classes: is {classes}, but the training data has {source.num_classes} classes; set it to "
            "that, or to 0 for a detector of any object"
        )
    options = detector.BatchOptions(
        scale=image_scale(data, source),
        batch_size=config.batch_size,
        crop=tuple(data.crop),
        max_boxes=data.max_boxes,
        scale_jitter=data.scale_jitter,
        aspect_jitter=data.aspect_jitter,
        min_coverage=data.min_coverage,
        flips=data.flips,
        color=data.color,
        pad_crops=bool(data.get("pad_crops", False)),
    )
    return detector.BatchBuilder(source, options, **process)


def _crossmodal_builder(config: Any, **process: Any) -> Any:
    from sm_jax.data import crossmodal

    data = config.data
    source = make_phrase_source(data, "train")
    options = crossmodal.BatchOptions(
        batch_size=config.batch_size,
        image_size=tuple(config.model.image_size),
        max_boxes=max(data.max_boxes, source.most_boxes),
        flips=data.get("flips", False),
        accumulate=int(config.get("optim", {}).get("accumulate", 1)),
    )
    encoder = make_encoder(config, source)
    crossmodal.check_phrases(source.phrases, encoder)
    if config.get("eval_every", 0):  # the first evaluation may be hours away
        for split in config.eval.splits:
            held_out = make_phrase_source(data, split)
            crossmodal.check_phrases(held_out.phrases, encoder, split=split, unknown=True)
    unread = sorted(set(source.vocabulary) - set(getattr(encoder, "vocabulary", source.vocabulary)))
    if unread:
        _log.warning(
            "training phrases: %d word%s that model.vocabulary lacks will be read as unknown (%s); name the "
            "data as an argument of the config, which takes its words",
            len(unread),
            "s" * (len(unread) != 1),
            ", ".join(unread[:10]) + (", ..." if len(unread) > 10 else ""),
        )
    return crossmodal.BatchBuilder(source, options, encoder, **process)


def make_ssm_source(config: Any) -> Source:
    """What the SSM trains on: `data.train_split` ("train:seen" where there are seen.txt and unseen.txt)."""
    return make_source(config.data, config.data.get("train_split", "train"))


def _ssm_builder(config: Any, **process: Any) -> Any:
    from sm_jax.data import ssm

    source = make_ssm_source(config)
    return ssm.BatchBuilder(source, ssm.batch_options(config, image_scale(config.data, source)), **process)


def make_pairs(data: Any, split: str) -> PairList:
    """Key-point pairs of one split.

    Args:
      data: config section `data`: `source` is "figures" (generated; its options in `data.figures`) or the
        path of pairs (see `sources.keypoint_pairs`), with which go `lists` and `convention`. With
        `leave_out`, a category, "train" is all pairs of the others, and any other split all pairs of it.
      split: "train", "val", "test", another name that the data uses, or "all".

    Raises:
      ConfigError, DataError.
    """
    from sm_jax.data.sources import keypoint_pairs

    if not data.source:
        raise ConfigError("data.source: give 'figures' or the path of pairs with key-points")
    path, left_out = data.source, data.get("leave_out", "")
    if path == "figures":
        from sm_jax.data.synthetic import figures

        cache = data.get("cache_dir", "")
        path = figures.make(str(Path(cache) / "figures") if cache else "", **data.get("figures", {}))
    pairs = keypoint_pairs.open_pairs(
        path,
        split="all" if left_out else split,
        lists=data.get("lists", ""),
        convention=data.get("convention", "edges"),
    )
    if left_out and split != "all":
        pairs = pairs.leave_out(left_out)[split != "train"]
    return pairs


def make_training_pairs(config: Any) -> Any:
    """`scnet.TrainingPairs` of the split "train"; what is left out is logged. The last ones are kept.

    Raises:
      ConfigError, DataError.
    """
    return _training_pairs(config.data.to_json_best_effort(sort_keys=True))


@functools.lru_cache(maxsize=1)
def _training_pairs(section: str) -> Any:
    from sm_jax.data import scnet

    data = ConfigDict(json.loads(section))
    pairs = make_pairs(data, "train")
    found = scnet.TrainingPairs(
        pairs, scnet.proposal_options(data), flips=data.get("flips", False), say=_log.warning
    )
    for note in found.notes:
        _log.warning("%s: %s", data.source, note)
    return found


def _scnet_builder(config: Any, **process: Any) -> Any:
    from sm_jax.data import scnet

    options = scnet.BatchOptions(config.batch_size, config.data.proposals)
    source = make_training_pairs(config)
    note = source.epoch_note(config)
    if note and "trunk" not in process:  # `training.trunk` makes one without it first
        _log.warning("%s: %s", config.data.source, note)
    return scnet.BatchBuilder(source, options, **process)


def make_retrieval_builder(config: Any, **options: Any) -> Any:
    """`retrieval.BatchBuilder` of the split "train"; `options` are its.

    Raises:
      ConfigError, DataError.
    """
    from sm_jax.data import retrieval

    data = config.data
    batches = retrieval.BatchOptions(
        side=config.model.image_size,
        batch_size=config.batch_size,
        negatives=data.negatives,
        queries=data.queries,
        pool=data.pool,
        random_crops=data.random_crops,
        positive_iou=data.positive_iou,
        negative_iou=data.negative_iou,
        min_side=data.min_side,
        accumulate=int(config.get("optim", {}).get("accumulate", 1)),
    )
    source = make_source(data, data.get("train_split", "train"))
    return retrieval.BatchBuilder(source, batches, **({"seed": config.seed} | options))


def _shelf_split(split: str, classes: str) -> str:
    """The split of the generated shelves that holds these classes."""
    trained = split in ("train", "seen")
    if classes == "unseen" and trained:
        raise ConfigError(f"shelves: the classes of {split!r} are seen; 'val' and 'test' hold unseen ones")
    return "seen" if classes == "seen" and not trained else split


def _shelves(data: Any, split: str) -> Source:
    from sm_jax.data.synthetic import ShelvesSource  # needs the packages with the artwork

    options = _of_split(data.get("shelves", {}), split, "shelves", ("train", "val", "test", "seen"))
    return ShelvesSource(split, cache_dir=data.get("cache_dir", "") or None, **options)


def _of_split(
    section: Any, split: str, name: str, splits: tuple[str, ...] = ("train", "val", "test")
) -> dict[str, Any]:
    """Options of a generated source, `num_train` and its like turned into `num_scenes` of one split."""
    options = dict(section)
    lengths = {key: options.pop(f"num_{key}", None) for key in ("train", "val", "test", "seen")}
    if split not in splits:
        raise ConfigError(
            f"{name}: there is no split {split!r}, only {', '.join(splits[:-1])} and {splits[-1]}"
        )
    if lengths[split] is not None:
        options["num_scenes"] = lengths[split]
    return options
