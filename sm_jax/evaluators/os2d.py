"""OS2D on a split: every annotated class is searched in every image, then scored as VOC does."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sm_jax import data as data_lib
from sm_jax import draw, search
from sm_jax.data import images as pictures
from sm_jax.errors import ConfigError, DataError, ImageError
from sm_jax.evaluators import report
from sm_jax.evaluators.damaged import Damaged
from sm_jax.evaluators.detection import JOINT, POINTS, VocResult, voc
from sm_jax.systems.os2d.model import ModelConfig
from sm_jax.systems.os2d.predict import Parts, Predictor, parts, views

CLASSES = ("all", "annotated")


def make(config: Any, *, progress=None) -> dict[str, "DetectionEvaluator"]:
    """An evaluator for each split of `config.eval.splits`, all of the scale that `data.image_scale` finds."""
    predictor = Predictor(parts(ModelConfig.create(config.model)), top_k=None)  # all count for recall
    scale = data_lib.image_scale(config.data)
    return {
        split: of_source(
            config,
            predictor,
            data_lib.make_source(config.data, split),
            scale=scale,
            max_images=config.eval.max_images,
            progress=progress,
        )
        for split in config.eval.splits
    }


def of_source(
    config: Any, predictor: Predictor, source: data_lib.Source, *, scale: float, **kwargs
) -> "DetectionEvaluator":
    """The evaluator of `config` on a source.

    Args:
      scale: of the stored images, at which the pyramid's factor is 1.
      **kwargs: of `DetectionEvaluator`.
    """
    options = config.eval
    return DetectionEvaluator(
        predictor,
        source,
        scales=[scale * factor for factor in options.scales],
        query_size=ModelConfig.create(config.model).query_size,
        augmentation=data_lib.class_views(config.data, options.views),
        iou_thresholds=options.iou_thresholds,
        points=options.get("points", "all"),
        joint=options.get("joint", "aligned"),
        classes=options.get("classes", "all"),
        iou=options.nms_iou,
        nms=options.nms,
        across_classes=options.nms_across_classes,
        score_threshold=options.score_threshold,
        max_detections=options.max_detections,
        **kwargs,
    )


def metric_names(config: Any) -> list[str]:
    """Every name that evaluation can give, without opening the data."""
    kinds = ("mAP", "mAPw", "recall", "AP_joint")
    return [
        f"{split}/{kind}@{threshold:.2f}"
        for split in config.eval.splits
        for threshold in config.eval.iou_thresholds
        for kind in kinds
    ]


class SearchEvaluator:
    """Average precision of something that searches images for classes (OS2D spec sec. 11 and 12).

    What searches is a sub-class: it says how classes are encoded and how an image is searched for them.

    Attributes, after `run`:
      results: IoU threshold -> `VocResult`; labels are class indices of the source.
      detections: per image, what was found: `boxes`, `scores`, `labels`.
      ground_truth: per image, what is there: `boxes`, `labels`, `difficult`.
      indices: the images' indices in the source.
    """

    def __init__(
        self,
        source: data_lib.Source,
        *,
        query_size: int = 240,
        augmentation: str = "",
        max_images: int = 0,
        iou_thresholds: Sequence[float] = (0.5,),
        points: str = "all",
        joint: str = "aligned",
        classes: str = "all",
        progress=None,
    ):
        """Make an evaluator.

        Args:
          source: the images, their boxes and class pictures.
          query_size: class pictures are brought to this number squared of pixels.
          augmentation: class views (see `views`).
          max_images: at most so many evenly spaced images; 0: all.
          iou_thresholds: one result for each.
          points, joint: which average precision (see `detection.voc`).
          classes: what counts in an image: "all" that the split annotates anywhere, or only those "annotated"
            in the image itself (CoAE's published evaluation, where no other class can be found by mistake).
          progress: see `sm_jax.evaluators.make`.

        Raises:
          ConfigError: an option that cannot be used; DataError: no pictures.
        """
        if not len(source):
            raise DataError("nothing to evaluate: the split has no pictures")
        views(augmentation)  # an unknown name is refused here
        if max_images < 0:
            raise ConfigError(f"eval.max_images: must not be negative, not {max_images}")
        if not iou_thresholds or not all(0 < threshold <= 1 for threshold in iou_thresholds):
            raise ConfigError(f"eval.iou_thresholds: some numbers within (0, 1], not {tuple(iou_thresholds)}")
        for name, value, known in (
            ("points", points, POINTS),
            ("joint", joint, JOINT),
            ("classes", classes, CLASSES),
        ):
            if value not in known:
                raise ConfigError(f"eval.{name}: {value!r} is none of {', '.join(known)}")
        self._points, self._joint, self._classes = points, joint, classes
        self._source, self._query_size = source, query_size
        self._augmentation, self._thresholds = augmentation, tuple(iou_thresholds)
        self._progress = progress or (lambda items, _: items)
        count = min(len(source), max_images or len(source))
        self._wanted = np.unique(np.linspace(0, len(source) - 1, count).round().astype(int)).tolist()
        self.indices = self._wanted
        self._queries: dict[int, np.ndarray] = {}
        self.results: dict[float, VocResult] = {}
        self.detections: list[dict[str, np.ndarray]] = []
        self.ground_truth: list[dict[str, np.ndarray]] = []
        self._damaged = Damaged()

    @property
    def skipped(self) -> list[str]:
        """A line for each damaged picture, which was left out."""
        return self._damaged.lines

    @property
    def class_names(self) -> list[str]:
        """Names of the source's classes; the index is the label."""
        return self._source.class_names

    def run(self, variables: Any) -> Iterator[tuple[str, float]]:
        """Search and score; yields `mAP@t`, `mAPw@t`, `recall@t`, `AP_joint@t` for each IoU threshold t."""
        self.detections, self.ground_truth, kept = [], [], []
        self._damaged = Damaged()
        annotated = [self._source.annotation(index) for index in self._wanted]
        labels = sorted({int(label) for entry in annotated for label in entry["labels"]})
        encoded = self.encode(variables, self._class_pictures(labels))
        for index, entry in zip(self._progress(self._wanted, "images"), annotated, strict=True):
            try:
                image = self._source.image(index)
            except ImageError as error:
                self._damaged.add("image", str(error), total=len(self._wanted))
                continue
            found = self.search(variables, image, encoded, name=f"image {entry['image_id']}")
            counts = slice(None) if self._classes == "all" else np.isin(found["labels"], entry["labels"])
            self.detections.append({key: found[key][counts] for key in ("boxes", "scores", "labels")})
            self.ground_truth.append({key: entry[key] for key in ("boxes", "labels", "difficult")})
            kept.append(index)
        self.indices = kept
        if not kept:
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
            yield f"mAP@{threshold:.2f}", result.map
            yield f"mAPw@{threshold:.2f}", result.map_weighted
            yield f"recall@{threshold:.2f}", result.recall
            yield f"AP_joint@{threshold:.2f}", result.ap_joint

    def encode(self, variables: Any, pictures: Iterable[tuple[int, np.ndarray]]) -> Any:
        """What `search` takes, of (label, class picture uint8 (h, w, 3)), brought to the query size."""
        raise NotImplementedError

    def search(self, variables: Any, image: np.ndarray, encoded: Any, *, name: str) -> dict[str, np.ndarray]:
        """Find all classes in a uint8 image, called `name` in messages: `boxes` (n, 4), `scores`,
        `labels`."""
        raise NotImplementedError

    def table(self) -> str:
        """The metrics at each IoU threshold and the worst classes, as text."""
        return report.detection_table(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything measured, as plain values."""
        return report.detection_dict(self)

    def pictures(self, folder: Path, *, count: int, per_image: int = 50) -> list[Path]:
        """Draw what was found in up to `count` evenly spaced images; returns the files.

        Drawn are the detections whose score reaches `VocResult.best_score` at the first IoU threshold, right
        or wrong and of whatever class, but no more than the best `per_image`; on the left are the classes
        annotated or drawn. Dashed white boxes are the annotation. The folder is made; files in it of the same
        name are replaced.
        """
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        threshold = next(iter(self.results.values())).best_score
        for position in np.unique(
            np.linspace(0, len(self.indices) - 1, min(count, len(self.indices))).astype(int)
        ):
            found, truth = self.detections[position], self.ground_truth[position]
            best = np.argsort(-found["scores"], kind="stable")
            chosen = best[found["scores"][best] >= threshold][:per_image]
            shown = dict.fromkeys([*np.unique(truth["labels"]).tolist(), *found["labels"][chosen].tolist()])
            picture = draw.detections(
                self._source.image(self.indices[position]),
                found["boxes"][chosen],
                labels=[self.class_names[label] for label in found["labels"][chosen]],
                scores=found["scores"][chosen],
                queries={
                    self.class_names[label]: self._queries[label] for label in shown if label in self._queries
                },
                truth=truth["boxes"],
            )
            written.append(folder / f"{position:04d}.png")
            picture.save(written[-1])
        return written

    def _class_pictures(self, labels: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
        """The class pictures that can be read, brought to the query size; they are kept for next time."""
        labels, some = list(labels), False
        for label in self._progress(labels, "classes"):
            if label not in self._queries:
                try:
                    picture = self._source.query(label)
                except ImageError as error:
                    self._damaged.add("class picture", str(error), total=len(labels))
                    continue
                size = pictures.fit_to_area(picture.shape[:2], self._query_size)
                self._queries[label] = pictures.resize(picture, size)
            some = True
            yield label, self._queries[label]
        if not some:
            raise DataError(
                "nothing to evaluate: no picture of the split has a box of a class with a class picture"
            )


class DetectionEvaluator(SearchEvaluator):
    """A predictor of templates, OS2D's or CoAE's, on a source; see `SearchEvaluator`."""

    def __init__(
        self,
        predictor: Predictor | Parts,
        source: data_lib.Source,
        *,
        scales: Sequence[float],
        query_size: int = 240,
        augmentation: str = "",
        max_images: int = 0,
        iou_thresholds: Sequence[float] = (0.5,),
        points: str = "all",
        joint: str = "aligned",
        classes: str = "all",
        progress=None,
        **options,
    ):
        """Make an evaluator.

        Args:
          predictor: shared between evaluators, so that they share programs; or the parts of OS2D. Any object
            that encodes and detects as OS2D's `Predictor` does.
          scales: of the pyramid, on the stored images.
          **options: of `decode_pyramid`.
          The others as of `SearchEvaluator`.
        """
        super().__init__(
            source,
            query_size=query_size,
            augmentation=augmentation,
            max_images=max_images,
            iou_thresholds=iou_thresholds,
            points=points,
            joint=joint,
            classes=classes,
            progress=progress,
        )
        self._predictor = Predictor(predictor, top_k=None) if isinstance(predictor, Parts) else predictor
        self._scales, self._options = search.checked_scales(scales), options

    def encode(self, variables, pictures):
        """Templates, class ids and shapes of all views."""
        templates, ids, shapes = [], [], []
        for label, picture in pictures:
            mine = search.encode_views(
                self._predictor, variables, picture, views=self._augmentation, side=self._query_size
            )
            templates.extend(mine)
            ids.extend([label] * len(mine))
            shapes.extend(
                picture.shape[1::-1] if view.quarter_turns % 2 else picture.shape[:2]
                for view in views(self._augmentation)
            )
        return np.stack(templates), ids, shapes

    def search(self, variables, image, encoded, *, name):
        """See `SearchEvaluator`. Raises ImageError if a level of the pyramid would be too large."""
        templates, ids, shapes = encoded
        search.check_level_sizes(image.shape[:2], self._scales, name=name)
        return self._predictor.detect(
            variables,
            search.levels(image, self._scales),
            templates,
            class_ids=ids,
            image_size=image.shape[:2],
            shapes=shapes,
            **self._options,
        )
