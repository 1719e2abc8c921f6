"""The two-stage detector on a split: everything it finds in every image, scored as VOC does.

A detector of any object is scored as one of a single class, "object": `AP@t` and `recall@t`. A class detector
is scored on the classes that it was trained on, like OS2D: `mAP@t`, `mAPw@t`, `recall@t`, `AP_joint@t`.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sm_jax import data as data_lib
from sm_jax import draw, search
from sm_jax.errors import ConfigError, DataError, ImageError
from sm_jax.evaluators import report
from sm_jax.evaluators.damaged import Damaged
from sm_jax.evaluators.detection import JOINT, POINTS, VocResult, voc
from sm_jax.systems.detector.model import ModelConfig
from sm_jax.systems.detector.predict import Parts, Predictor, parts

OBJECT = "object"
"""Name of the one class of a detector of any object."""


def make(config: Any, *, progress=None) -> dict[str, "DetectorEvaluator"]:
    """An evaluator for each split of `config.eval.splits`, all of the scale that `data.image_scale` finds."""
    options = config.eval
    model = ModelConfig.create(config.model)
    train = data_lib.make_source(config.data, "train") if model.classes else None  # some data has only "test"
    if train is not None and model.classes != train.num_classes:
        raise ConfigError(
            f"model.classes: is {model.classes}, but the training data, which gives their names, has "
            f"{train.num_classes} classes"
        )
    scale = data_lib.image_scale(config.data, train)
    predictor = Predictor(parts(model, candidates=options.candidates, proposals=options.proposals))
    return {
        split: DetectorEvaluator(
            predictor,
            data_lib.make_source(config.data, split),
            class_names=None if train is None else list(train.class_names),
            scales=[scale * factor for factor in options.scales],
            max_images=options.max_images,
            iou_thresholds=options.iou_thresholds,
            points=options.points,
            joint=options.joint,
            progress=progress,
            nms_iou=options.nms_iou,
            score_threshold=options.score_threshold,
            max_detections=options.max_detections,
        )
        for split in options.splits
    }


def metric_names(config: Any) -> list[str]:
    """Every name that evaluation can give, without opening the data."""
    kinds = ("mAP", "mAPw", "recall", "AP_joint") if config.model.get("classes", 0) else ("AP", "recall")
    return [
        f"{split}/{kind}@{threshold:.2f}"
        for split in config.eval.splits
        for threshold in config.eval.iou_thresholds
        for kind in kinds
    ]


class DetectorEvaluator:
    """Average precision of a detector on a source.

    Attributes:
      class_names: what the labels of all results mean.

    Attributes, after `run`:
      results: IoU threshold -> `VocResult`.
      detections: per image, what was found: `boxes`, `scores`, `labels`.
      ground_truth: per image, what is there: `boxes`, `labels`, `difficult`.
      indices: the images' indices in the source.
    """

    def __init__(
        self,
        predictor: Predictor | Parts,
        source: data_lib.Source,
        *,
        scales: Sequence[float],
        class_names: Sequence[str] | None = None,
        max_images: int = 0,
        iou_thresholds: Sequence[float] = (0.5,),
        points: str = "all",
        joint: str = "aligned",
        progress=None,
        **options,
    ):
        """Make an evaluator.

        Args:
          predictor: shared between evaluators, so that they share programs; or the model's parts.
          source: the images and their boxes.
          scales: of the pyramid, on the stored images.
          class_names: of the detector's classes; the source's classes of these names are scored, its others
            left out. None: any object.
          max_images: at most so many evenly spaced images; 0: all.
          iou_thresholds: one result for each.
          points, joint: which average precision (see `detection.voc`).
          progress: see `sm_jax.evaluators.make`.
          **options: of `Predictor.detect`.

        Raises:
          ConfigError: an option that cannot be used; DataError: no pictures, or none of the classes.
        """
        if not len(source):
            raise DataError("nothing to evaluate: the split has no pictures")
        if max_images < 0:
            raise ConfigError(f"eval.max_images: must not be negative, not {max_images}")
        if not iou_thresholds or not all(0 < threshold <= 1 for threshold in iou_thresholds):
            raise ConfigError(f"eval.iou_thresholds: some numbers within (0, 1], not {tuple(iou_thresholds)}")
        for name, value, known in (("points", points, POINTS), ("joint", joint, JOINT)):
            if value not in known:
                raise ConfigError(f"eval.{name}: {value!r} is none of {', '.join(known)}")
        self.class_names = [OBJECT] if class_names is None else list(class_names)
        self._agnostic = class_names is None
        numbers = {name: number for number, name in enumerate(self.class_names)}
        self._numbers = np.array([numbers.get(name, -1) for name in source.class_names], np.int32)
        if not self._agnostic and not np.any(self._numbers >= 0):
            raise DataError(
                "nothing to evaluate: no class of the split is among those that the detector was trained on; "
                "a class detector finds only these (val:seen, or another split)"
            )
        self._predictor = predictor if isinstance(predictor, Predictor) else Predictor(predictor)
        self._source, self._scales = source, search.checked_scales(scales)
        count = len(source) if not max_images else min(max_images, len(source))
        self._wanted = np.unique(np.linspace(0, len(source) - 1, count).astype(int)).tolist()
        self._thresholds, self._points, self._joint = tuple(iou_thresholds), points, joint
        self._progress = progress or (lambda items, name: items)
        self._options = options
        self._damaged = Damaged()
        self.results: dict[float, VocResult] = {}
        self.detections: list[dict[str, np.ndarray]] = []
        self.ground_truth: list[dict[str, np.ndarray]] = []
        self.indices: list[int] = []

    @property
    def skipped(self) -> list[str]:
        """A line for each damaged picture, which was left out."""
        return self._damaged.lines

    def run(self, variables: Any) -> Iterator[tuple[str, float]]:
        """Detect and score; yields the metrics of the module's first lines for each IoU threshold t."""
        self.detections, self.ground_truth, self.indices = [], [], []
        self._damaged = Damaged()
        for index in self._progress(self._wanted, "images"):
            try:
                entry, image = self._source.annotation(index), self._source.image(index)
            except ImageError as error:
                self._damaged.add("image", str(error), total=len(self._wanted))
                continue
            search.check_level_sizes(image.shape[:2], self._scales, name=f"image {entry['image_id']}")
            found = self._predictor.detect(
                variables, search.levels(image, self._scales), image_size=image.shape[:2], **self._options
            )
            self.detections.append(found)
            self.ground_truth.append(self._truth(entry))
            self.indices.append(index)
        if not self.indices:
            raise DataError(f"nothing to evaluate: no picture can be read ({self.skipped[0]})")
        for threshold in self._thresholds:
            result = voc(
                self.detections,
                self.ground_truth,
                iou_threshold=threshold,
                points=self._points,
                joint=self._joint,
            )
            self.results[threshold] = result
            if self._agnostic:
                yield f"AP@{threshold:.2f}", result.map
                yield f"recall@{threshold:.2f}", result.recall
            else:
                yield f"mAP@{threshold:.2f}", result.map
                yield f"mAPw@{threshold:.2f}", result.map_weighted
                yield f"recall@{threshold:.2f}", result.recall
                yield f"AP_joint@{threshold:.2f}", result.ap_joint

    def table(self) -> str:
        """The metrics at each IoU threshold and the worst classes, as text."""
        return report.detection_table(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything measured, as plain values."""
        return report.detection_dict(self)

    def pictures(self, folder: Path, *, count: int, per_image: int = 50) -> list[Path]:
        """Draw what was found in up to `count` evenly spaced images; returns the files.

        Drawn are the detections whose score reaches `VocResult.best_score` at the first IoU threshold, but no
        more than the best `per_image`. Dashed white boxes are the annotation. The folder is made; files in it
        of the same name are replaced.
        """
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        threshold = next(iter(self.results.values())).best_score
        places = np.linspace(0, len(self.indices) - 1, min(count, len(self.indices)))
        for position in np.unique(places.astype(int)):
            found, truth = self.detections[position], self.ground_truth[position]
            best = np.flatnonzero(found["scores"] >= threshold)[:per_image]  # they come by descending score
            picture = draw.detections(
                self._source.image(self.indices[position]),
                found["boxes"][best],
                labels=[self.class_names[label] for label in found["labels"][best]],
                scores=found["scores"][best],
                truth=truth["boxes"],
            )
            written.append(folder / f"{position:04d}.png")
            picture.save(written[-1])
        return written

    def _truth(self, entry: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The annotation with the detector's labels, without the classes that it does not have.

        A box of several classes (INSTRE has five for an object) is one object where any is meant: difficult
        if it is so in all of them.
        """
        labels = entry["labels"]
        if self._agnostic:
            boxes, which = np.unique(entry["boxes"], axis=0, return_inverse=True)
            difficult = np.ones(len(boxes), bool)
            np.logical_and.at(difficult, which.reshape(-1), entry["difficult"])
            return {"boxes": boxes, "labels": np.zeros(len(boxes), np.int32), "difficult": difficult}
        labels = self._numbers[labels]
        known = labels >= 0
        return {
            "boxes": entry["boxes"][known],
            "labels": labels[known],
            "difficult": entry["difficult"][known],
        }
