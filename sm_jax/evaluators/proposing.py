"""A trained detector as what proposes boxes to something else that compares them with requests."""

import math
import os
from collections.abc import Callable, Sequence

import numpy as np

from sm_jax import pretrained, search
from sm_jax.systems.detector.model import ModelConfig
from sm_jax.systems.detector.predict import Predictor, parts

Propose = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""A uint8 image (h, w, 3) to boxes f32 (n, 4), xyxy pixels of it, and scores (n,), best first."""


def detector(
    weights: str | os.PathLike,
    *,
    scales: Sequence[float],
    object_size: float = 240.0,
    nms_iou: float = 0.3,
    score_threshold: float = -math.inf,
    max_detections: int = 1000,
) -> Propose:
    """What a trained detector finds in an image; a class detector's classes are dropped.

    Args:
      weights: folder of a training run, exported file or registered name (see `pretrained.trained`).
      scales: of the pyramid, on stored images, for a model that works on objects of
      object_size: pixels. A detector that was trained on objects of another size scales them in proportion.
      nms_iou, score_threshold, max_detections: of `Predictor.detect`.

    Raises:
      ConfigError: scales that cannot be used; WeightsError: weights that are not those of a detector. The
        returned function raises ImageError for an image that a scale makes too large.
    """
    config, variables, _ = pretrained.trained(weights, system="detector")
    options = config.eval
    predictor = Predictor(
        parts(ModelConfig.create(config.model), candidates=options.candidates, proposals=options.proposals)
    )
    factor = float(config.data.object_size) / object_size
    own = [scale * factor for scale in search.checked_scales(scales)]

    def propose(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        search.check_level_sizes(image.shape[:2], own, name="the image")
        found = predictor.detect(
            variables,
            search.levels(image, own),
            image_size=image.shape[:2],
            nms_iou=nms_iou,
            score_threshold=score_threshold,
            max_detections=max_detections,
        )
        return found["boxes"], found["scores"]

    return propose
