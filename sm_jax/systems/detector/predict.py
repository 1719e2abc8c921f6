"""Fixed-shape inference of the detector: padded pyramid levels, then one suppression over all of them."""

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sm_jax import boxes as box_lib
from sm_jax import two_stage
from sm_jax.systems.chunks import counted, padded
from sm_jax.systems.detector import model
from sm_jax.systems.os2d.level import bucket_size, pad_to

Array = jax.Array

SMALLEST_LEVEL = model.STRIDE + 1
"""Pixels of the shorter side; a smaller level is passed over."""


class Parts(NamedTuple):
    """The model as inference needs it.

    Attributes:
      boxes: (variables, image (b, h, w, 3), size (b, 2)) -> what `candidates` returns.
      classes: how many classes have a score (1 where any object is meant).
    """

    boxes: Callable[..., dict[str, Array]]
    classes: int


def parts(
    config: model.ModelConfig, *, candidates: int = 1000, proposals: int = 300, proposal_iou: float = 0.7
) -> Parts:
    """The functions of the model of `config`; the options are those of `candidates`."""
    options = {"candidates": candidates, "proposals": proposals, "proposal_iou": proposal_iou}
    return Parts(functools.partial(_candidates, config, **options), config.scored)


def _candidates(
    config: model.ModelConfig,
    variables: dict[str, Any],
    image: Array,
    size: Array,
    *,
    candidates: int,
    proposals: int,
    proposal_iou: float,
) -> dict[str, Array]:
    """Boxes of the second stage, before suppression.

    Args:
      config: the model.
      variables: `params` and `batch_stats`.
      image: f32 "b h w 3" normalised, zero padded outside `size`.
      size: i32 "b 2" valid (height, width) in pixels.
      candidates: anchors of an image that may become proposals, by descending logit.
      proposals: proposals of an image, p.
      proposal_iou: overlap at which the lower of two proposals is dropped.

    Returns:
      {"boxes" f32 "b p c 4" or, the same for all classes, "b p 4", clipped to the valid image; "scores" f32
      "b p c"; "valid" bool "b p"}.
    """
    features, _ = model.extract(config, variables, image, size)
    anchors = jnp.asarray(model.anchors(config, features.shape[1:3]))
    found = model.score_anchors(config, variables, features)

    def propose(logits, codes, size):
        return two_stage.proposals(
            logits,
            codes,
            anchors,
            image_size=(size[0], size[1]),
            candidates=candidates,
            iou=proposal_iou,
            size=proposals,
        )

    proposed = jax.vmap(propose)(found["logits"], found["codes"], size)
    logits, codes = model.score_boxes(config, variables, features, proposed["boxes"], size)
    boxes, scores = jax.vmap(
        lambda logits, codes, rois, size: two_stage.decode_rois(
            logits, codes, rois, image_size=(size[0], size[1])
        )
    )(logits, codes, proposed["boxes"], size)
    return {"boxes": boxes, "scores": scores, "valid": proposed["valid"]}


def predict(
    config: model.ModelConfig,
    variables: dict[str, Any],
    images: dict[str, Array],
    encoded: dict[str, Array] | None = None,
    *,
    max_detections: int = 100,
) -> dict[str, Array]:
    """Detections of a batch of equally padded images: the `predict` function of the system.

    Args:
      config: the model.
      variables: `params` and `batch_stats`.
      images: `image` "b h w 3" normalised and zero padded, `size` i32 "b 2" valid (height, width).
      encoded: not needed, there are no requests.
      max_detections: slots, d.

    Returns:
      What `two_stage.detections` returns with its default options, for each image.
    """
    del encoded
    found = parts(config).boxes(variables, images["image"], images["size"])
    suppress = functools.partial(two_stage.detections, max_detections=max_detections)
    return jax.vmap(lambda boxes, scores, valid: suppress(boxes, scores, where=valid))(
        found["boxes"], found["scores"], found["valid"]
    )


class Predictor:
    """Runs a model over pyramids with a bounded number of compiled programs.

    A level is padded to the next multiple of `step` on each side, and masked so that padding changes nothing.
    The boxes of all levels are padded to a power of two. So the programs are one per padded shape, and one
    per such power of two and power of two of `max_detections`.

    Attributes:
      classes: how many classes have a score; 1 where any object is meant.
      compiles: how often each of "boxes", "detections" was traced, so compiled or read from the cache.
    """

    def __init__(self, model_parts: Parts, *, step: int = 128):
        """Make a predictor.

        Args:
          model_parts: the model, from `parts`.
          step: bucket step in pixels, a multiple of 16.
        """
        if step < model.STRIDE or step % model.STRIDE:
            raise ValueError(f"step must be a multiple of {model.STRIDE}, is {step}")
        self.classes = model_parts.classes
        self.compiles: Counter[str] = Counter()
        self._step = step
        self._boxes = jax.jit(counted(self.compiles, "boxes", model_parts.boxes))

        def detections(slots, boxes, scores, where, iou, score_threshold):
            return two_stage.detections(
                boxes, scores, where=where, iou=iou, score_threshold=score_threshold, max_detections=slots
            )

        self._detections = jax.jit(counted(self.compiles, "detections", detections), static_argnums=0)

    def detect(
        self,
        variables: Any,
        levels: Iterable[np.ndarray],
        *,
        image_size: tuple[int, int],
        score_threshold: float = -math.inf,
        max_detections: int = 1000,
        nms_iou: float = 0.3,
        min_side: float = 0.0,
    ) -> dict[str, np.ndarray]:
        """What is in one image.

        Args:
          variables: `params` and `batch_stats`.
          levels: pyramid levels, normalised pictures (h, w, 3) of any size. One whose shorter side is under
            17 pixels is skipped.
          image_size: (height, width) that the results are in; each axis of a level is scaled to it.
          score_threshold: only scores strictly above it are kept.
          max_detections: the best so many, of all classes together.
          nms_iou: overlap above which the lower score of a class is dropped, over all levels.
          min_side: detections with a shorter side, in pixels of the image, are dropped before that.

        Returns:
          {"boxes" (n, 4), "scores" (n,), "labels" (n,) int64} by descending score; all labels are 0 where any
          object is meant.
        """
        found = [self._level(variables, level, image_size) for level in levels if _usable(level)]
        if not found or max_detections < 1:
            nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)
            return dict(zip(("boxes", "scores", "labels"), nothing, strict=True))
        joined = {name: np.concatenate([level[name] for level in found]) for name in found[0]}
        sides = np.min(joined["boxes"][..., 2:] - joined["boxes"][..., :2], axis=-1)
        sides = sides if sides.ndim == 2 else sides[:, None]
        joined["scores"] = np.where(sides >= min_side, joined["scores"], -np.inf)
        size = 1 << (len(joined["scores"]) - 1).bit_length()
        slots = min(1 << (max_detections - 1).bit_length(), size * self.classes)
        boxes, scores, where = (padded(joined[name], size)[0] for name in ("boxes", "scores", "valid"))
        thresholds = np.float32(nms_iou), np.float32(score_threshold)
        best = jax.device_get(self._detections(slots, boxes, scores, where, *thresholds))
        kept = int(np.sum(best["valid"][:max_detections]))
        return {
            "boxes": best["boxes"][:kept],
            "scores": best["scores"][:kept],
            "labels": best["labels"][:kept].astype(np.int64),
        }

    def _level(self, variables, picture, image_size) -> dict[str, np.ndarray]:
        """Candidates of a level (n, ...), boxes mapped to the image."""
        size = picture.shape[:2]
        image = pad_to(picture, bucket_size(size, self._step))
        found = self._boxes(variables, jnp.asarray(image[None]), jnp.asarray([size], jnp.int32))
        found = {name: np.asarray(value)[0] for name, value in found.items()}
        factor = np.array([image_size[1] / size[1], image_size[0] / size[0]], np.float32)
        return found | {"boxes": box_lib.scale(found["boxes"], factor)}


def _usable(level: np.ndarray) -> bool:
    return min(level.shape[:2]) >= SMALLEST_LEVEL
