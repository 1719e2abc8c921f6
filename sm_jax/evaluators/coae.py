"""CoAE on a split, with OS2D's evaluator: every class of the split is searched in every image."""

from typing import Any

from sm_jax import data as data_lib
from sm_jax.evaluators.os2d import DetectionEvaluator, metric_names
from sm_jax.systems.coae.model import ModelConfig
from sm_jax.systems.coae.predict import Predictor

__all__ = ["make", "metric_names"]


def make(config: Any, *, progress=None) -> dict[str, DetectionEvaluator]:
    """An evaluator for each split of `config.eval.splits`, with the scale measured on the training split.

    `eval.classes="annotated"` leaves out the classes that an image does not show, as the published evaluation
    of CoAE did.
    """
    options = config.eval
    model = ModelConfig.create(config.model)
    scale = data_lib.image_scale(config.data)
    predictor = Predictor(model)
    return {
        split: DetectionEvaluator(
            predictor,
            data_lib.make_source(config.data, split),
            scales=[scale * factor for factor in options.scales],
            query_size=model.query_size,
            augmentation=data_lib.class_views(config.data, options.get("views", "")),
            max_images=options.max_images,
            iou_thresholds=options.iou_thresholds,
            points=options.get("points", "all"),
            joint=options.get("joint", "aligned"),
            classes=options.get("classes", "all"),
            progress=progress,
            iou=options.nms_iou,
            score_threshold=options.score_threshold,
            max_detections=options.max_detections,
        )
        for split in options.splits
    }
