"""The baseline "detector + retrieval": boxes of a class-agnostic detector, compared with the class pictures.

Source: OS2D (ECCV 2020), sec. 6 and its baseline's joint evaluation (specification, sec. 16).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sm_jax import data as data_lib
from sm_jax.data import instances, transforms
from sm_jax.errors import ConfigError
from sm_jax.evaluators.os2d import SearchEvaluator
from sm_jax.evaluators.proposing import Propose
from sm_jax.ops.nms import nms_chunked
from sm_jax.systems.os2d.predict import query_views
from sm_jax.systems.retrieval.predict import Describer


class DetectAndRetrieve(SearchEvaluator):
    """A detector proposes, descriptors decide; scored as OS2D is (see `SearchEvaluator`).

    Every proposal is scored for every class view by the cosine of the descriptors; of each class those that
    overlap a better one are dropped.
    """

    def __init__(
        self,
        propose: Propose,
        describer: Describer,
        source: data_lib.Source,
        *,
        detector_score: float = 0.1,
        detector_iou: float = 0.3,
        proposals: int = 1000,
        iou: float = 0.3,
        score_threshold: float = -np.inf,
        max_detections: int | None = None,
        **options,
    ):
        """Make an evaluator.

        Args:
          propose: the detector, on the whole pyramid.
          describer: of crops and class pictures.
          source: the images, their boxes and class pictures.
          detector_score: proposals of at most this score are dropped,
          detector_iou: then those that overlap a better one by more than this.
          proposals: at most so many are described in an image, the best ones.
          iou: of two detections of a class that overlap by more than this the lower is dropped.
          score_threshold: only cosines above it count.
          max_detections: at most so many of each class in an image; None: all.
          **options: of `SearchEvaluator`.

        Raises:
          ConfigError: an option that cannot be used; DataError: no pictures.
        """
        super().__init__(source, **options)
        if not (0 <= detector_iou <= 1 and 0 <= iou <= 1 and proposals >= 1):
            raise ConfigError(
                f"eval: detector_iou={detector_iou:g} and nms_iou={iou:g} must be within 0..1, "
                f"proposals={proposals} at least 1"
            )
        self._propose, self._describer = propose, describer
        self._detector = detector_score, detector_iou, proposals
        self._iou, self._score_threshold, self._limit = iou, score_threshold, max_detections

    def encode(self, variables, pictures):
        """Labels (v,) and descriptors (v, d) of all views."""
        labels, views = [], []
        for label, picture in pictures:
            mine = query_views(transforms.normalize(picture), self._augmentation)
            labels.extend([label] * len(mine))
            views.extend(mine)
        return np.array(labels), self._describer(variables, views)

    def search(self, variables, image, encoded, *, name):
        """See `SearchEvaluator`."""
        del name
        boxes = self._proposals(image)
        if not len(boxes):
            return found([], [], [])
        crops = [transforms.normalize(instances.cut(image, box)) for box in boxes]
        cosines = self._describer(variables, crops) @ encoded[1].T
        return per_class(
            boxes,
            cosines,
            encoded[0],
            iou=self._iou,
            score_threshold=self._score_threshold,
            max_detections=self._limit,
        )

    def _proposals(self, image: np.ndarray) -> np.ndarray:
        least, iou, count = self._detector
        boxes, scores = self._propose(image)
        kept = nms_chunked(boxes, scores, iou=iou, score_threshold=least)
        return np.asarray(boxes, np.float32)[kept[np.argsort(-scores[kept], kind="stable")][:count]]


def per_class(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: Sequence[int],
    *,
    iou: float,
    score_threshold: float = -np.inf,
    max_detections: int | None = None,
) -> dict[str, np.ndarray]:
    """Detections of every class from boxes that were scored for every class view.

    Args:
      boxes: (n, 4); scores: (n, v); labels: (v,), the class of each view.
      iou, score_threshold, max_detections: of one class (see `DetectAndRetrieve`).

    Returns:
      `boxes` (m, 4), `scores` (m,), `labels` (m,).
    """
    parts = []
    labels = np.asarray(labels)
    for label in np.unique(labels):
        best = scores[:, labels == label].max(axis=1)  # of equal boxes the suppression keeps the best view
        kept = nms_chunked(boxes, best, iou=iou, score_threshold=score_threshold)
        kept = kept[np.argsort(-best[kept], kind="stable")][:max_detections]
        parts.append((boxes[kept], best[kept], np.full(len(kept), label)))
    return found(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def found(boxes: Any, scores: Any, labels: Any) -> dict[str, np.ndarray]:
    """Detections as `detection.voc` takes them."""
    return {
        "boxes": np.asarray(boxes, np.float32).reshape(-1, 4),
        "scores": np.asarray(scores, np.float32),
        "labels": np.asarray(labels, np.int64),
    }
