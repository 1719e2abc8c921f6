"""How class pictures and crops of held-out images find each other; with `eval.detector`, both halves
together."""

from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sm_jax import data as data_lib
from sm_jax import search
from sm_jax.data import images, instances, transforms
from sm_jax.errors import ConfigError, DataError, ImageError
from sm_jax.evaluators import os2d, report
from sm_jax.evaluators.damaged import Damaged
from sm_jax.systems.retrieval import model
from sm_jax.systems.retrieval.predict import Describer

METRICS = ("mAP", "recall@1")
TILE = 96  # pixels of a picture on a drawn sheet


def make(config: Any, *, progress=None) -> dict[str, Any]:
    """A `RetrievalEvaluator` for each split of `config.eval.splits`; with `eval.detector` a
    `DetectAndRetrieve`.

    Raises:
      ConfigError: options that cannot be used; DataError: no such data; WeightsError: no such detector.
    """
    options = config.eval
    settings = model.ModelConfig.create(config.model)
    if options.query_size < 1:
        raise ConfigError(f"eval.query_size: must be positive, not {options.query_size}")
    scales = search.checked_scales(options.descriptor_scales)
    describer = Describer(
        partial(model.describe, settings),
        side=options.query_size,
        scales=scales,
        power=partial(model.scale_power, settings),
    )
    if not options.get("detector", ""):
        return {
            split: RetrievalEvaluator(
                describer,
                data_lib.make_source(config.data, split),
                min_side=config.data.min_side,
                max_images=options.max_images,
                query_size=options.query_size,
                progress=progress,
            )
            for split in options.splits
        }
    from sm_jax.evaluators import detect_and_retrieve, proposing

    scale = data_lib.image_scale(config.data)
    propose = proposing.detector(
        options.detector,
        scales=[scale * factor for factor in options.scales],
        object_size=config.data.object_size,
        nms_iou=options.detector_iou,
        score_threshold=options.detector_score,
        max_detections=options.proposals,
    )
    return {
        split: detect_and_retrieve.DetectAndRetrieve(
            propose,
            describer,
            data_lib.make_source(config.data, split),
            detector_score=options.detector_score,
            detector_iou=options.detector_iou,
            proposals=options.proposals,
            iou=options.nms_iou,
            score_threshold=options.score_threshold,
            max_detections=options.max_detections,
            query_size=options.query_size,
            augmentation=data_lib.class_views(config.data, options.views),
            max_images=options.max_images,
            iou_thresholds=options.iou_thresholds,
            points=options.points,
            joint=options.joint,
            progress=progress,
        )
        for split in options.splits
    }


def metric_names(config: Any) -> list[str]:
    """Every name that evaluation can give."""
    if config.eval.get("detector", ""):
        return os2d.metric_names(config)
    return [f"{split}/{name}" for split in config.eval.splits for name in METRICS]


class RetrievalEvaluator:
    """Class pictures against the crops of all annotated boxes (not difficult) of a split.

    Attributes, after `run`:
      metrics: `mAP`: mean over class pictures of the average precision of all crops ranked by cosine, those
        of the class being right; `recall@1`: share of the crops whose nearest class picture is that of their
        class.
      ap: class index -> average precision.
      class_names: names of the source's classes.
      crops: i32 (n,), rows of `found` whose crops were described.
      found: every box of the images (`data.instances.Instances`).
      scores: f32 (n, c), cosines of crops and class pictures.
      labels: (c,), the classes.
    """

    def __init__(
        self,
        describer: Describer,
        source: data_lib.Source,
        *,
        min_side: float = 1.0,
        max_images: int = 0,
        query_size: int = 240,
        progress=None,
    ):
        """Make an evaluator.

        Args:
          describer: of crops and class pictures.
          source: the images, their boxes and class pictures.
          min_side: pixels that both sides of a box must have.
          max_images: at most so many evenly spaced images; 0: all.
          query_size: class pictures are brought to this number squared of pixels.
          progress: see `sm_jax.evaluators.make`.

        Raises:
          ConfigError: an option that cannot be used; DataError: no pictures.
        """
        if not len(source):
            raise DataError("nothing to evaluate: the split has no pictures")
        if max_images < 0:
            raise ConfigError(f"eval.max_images: must not be negative, not {max_images}")
        self._describer, self._source, self._query_size = describer, source, query_size
        self._progress = progress or (lambda items, _: items)
        self.found = instances.find(source, min_side=min_side)
        count = min(len(source), max_images or len(source))
        wanted = np.unique(np.linspace(0, len(source) - 1, count).round().astype(int))
        self._rows = np.flatnonzero(self.found.request & np.isin(self.found.image, wanted))
        if not len(self._rows):
            raise DataError("nothing to evaluate: no picture of the split has a box that is not difficult")
        self._damaged = Damaged()
        self.class_names = source.class_names

    @property
    def skipped(self) -> list[str]:
        """A line for each damaged picture, which was left out."""
        return self._damaged.lines

    def run(self, variables: Any) -> Iterator[tuple[str, float]]:
        """Describe and rank; yields `mAP` and `recall@1`."""
        self._damaged = Damaged()
        self.labels, queries = self._class_pictures()
        kept: list[int] = []
        descriptors = self._describer(variables, chain(queries, self._crops(kept)))
        if not kept:
            raise DataError(
                "nothing to evaluate: no picture with a box of a class with a picture can be read"
            )
        self.crops = np.array(kept, np.int32)
        self.scores = descriptors[len(queries) :] @ descriptors[: len(queries)].T
        right = self.found.labels[self.crops][:, None] == self.labels[None]
        self.ap = {
            int(label): average_precision(self.scores[:, place], right[:, place])
            for place, label in enumerate(self.labels)
            if right[:, place].any()
        }
        first = right[np.arange(len(right)), self.scores.argmax(axis=1)]
        self.metrics = {"mAP": float(np.mean(list(self.ap.values()))), "recall@1": float(np.mean(first))}
        yield from self.metrics.items()

    def table(self) -> str:
        """The metrics and the worst classes, as text."""
        counts = (
            f"{report.counted(len(self.crops), 'crop')}, {report.counted(len(self.labels), 'class picture')}"
        )
        lines = [counts, *(f"  {name:<9} {value:6.3f}" for name, value in self.metrics.items())]
        worst = sorted(self.ap.items(), key=lambda item: item[1])[: report.MAX_ROWS // 4]
        lines += [f"  {self.class_names[label][:40]:<40} AP {value:.3f}" for label, value in worst]
        if len(worst) < len(self.ap):
            lines.append(
                f"  and {len(self.ap) - len(worst)} more, none of lower AP (all are in the JSON file)"
            )
        return "\n".join(lines + report.left_out(self.skipped))

    def to_dict(self) -> dict[str, Any]:
        """Everything measured, as plain values."""
        return {
            "crops": len(self.crops),
            "class_pictures": len(self.labels),
            "skipped": self.skipped,
            "classes": [{"name": self.class_names[label], "AP": value} for label, value in self.ap.items()],
        }

    def pictures(self, folder: Path, *, count: int, best: int = 8) -> list[Path]:
        """For up to `count` evenly spaced classes the class picture and its `best` crops, right ones framed
        green, wrong ones red; returns the files. The folder is made; files in it of the same name are
        replaced."""
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        places = np.linspace(0, len(self.labels) - 1, min(count, len(self.labels))).astype(int)
        for number, place in enumerate(np.unique(places)):
            label = int(self.labels[place])
            tiles = [_tile(self._source.query(label), (255, 255, 255))]
            for position in np.argsort(-self.scores[:, place], kind="stable")[:best]:
                row = self.crops[position]
                crop = instances.cut(self._source.image(int(self.found.image[row])), self.found.boxes[row])
                right = self.found.labels[row] == label
                tiles.append(_tile(crop, (40, 200, 40) if right else (220, 40, 40)))
            written.append(folder / f"{number:04d}.png")
            Image.fromarray(np.concatenate(tiles, axis=1)).save(written[-1])
        return written

    def _crops(self, kept: list[int]) -> Iterator[np.ndarray]:
        """Normalised crops of the boxes of classes that have a picture; their rows are added to `kept`."""
        rows = self._rows[np.isin(self.found.labels[self._rows], self.labels)]
        wanted = np.unique(self.found.image[rows]).tolist()
        for index in self._progress(wanted, "images"):
            try:
                image = self._source.image(index)
            except ImageError as error:
                self._damaged.add("image", str(error), total=len(wanted))
                continue
            for row in rows[self.found.image[rows] == index].tolist():
                kept.append(row)
                yield transforms.normalize(instances.cut(image, self.found.boxes[row]))

    def _class_pictures(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """Labels and normalised pictures of the classes that are annotated."""
        labels = np.unique(self.found.labels[self._rows]).tolist()
        kept, pictures = [], []
        for label in self._progress(labels, "classes"):
            try:
                picture = self._source.query(label)
            except ImageError as error:
                self._damaged.add("class picture", str(error), total=len(labels))
                continue
            size = images.fit_to_area(picture.shape[:2], self._query_size)
            pictures.append(transforms.normalize(images.resize(picture, size)))
            kept.append(label)
        if not kept:
            raise DataError("nothing to evaluate: no class picture can be read")
        return np.array(kept), pictures


def average_precision(scores: np.ndarray, right: np.ndarray) -> float:
    """Mean of the precision at every right item of a list ranked by descending score; ties in their order.

    Args:
      scores: (n,).
      right: bool (n,), at least one.
    """
    ranked = np.asarray(right, bool)[np.argsort(-np.asarray(scores), kind="stable")]
    precision = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
    return float(precision[ranked].mean())


def _tile(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """A picture in the middle of a square with a frame of the colour."""
    inner, _, _ = transforms.letterbox_centred(picture, (TILE - 8, TILE - 8))
    tile = np.full((TILE, TILE, 3), colour, np.uint8)
    tile[4:-4, 4:-4] = inner
    return tile
