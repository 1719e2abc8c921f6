"""Every detector that is asked with a picture, behind one seam: `Matcher`.

A system joins with a class that has the two methods and a line in `MAKERS`, a function `config -> Matcher`;
then `evaluate.py --protocol=requests` measures it and `rank_requests` ranks its requests.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from sm_jax import boxes as box_ops
from sm_jax import data, search
from sm_jax.data import transforms
from sm_jax.errors import ConfigError, DataError, ImageError
from sm_jax.requests import RequestBank
from sm_jax.systems.os2d.model import ModelConfig
from sm_jax.systems.os2d.predict import Predictor, parts, views
from sm_jax.systems.ssm import model as ssm
from sm_jax.systems.ssm import postprocess
from sm_jax.systems.ssm import predict as ssm_predict

Encoded = Any
"""A request as the matcher keeps it; opaque to everything else, and never changed."""


class Matcher(Protocol):
    """Finds what a picture shows."""

    def encode(self, variables: Any, picture: np.ndarray) -> Encoded:
        """Encode one request, once for all images.

        Args:
          variables: of the model.
          picture: (h, w, 3) uint8 RGB, a tight crop of one object.

        Raises:
          ImageError: a picture that cannot be a request, such as a blank or a tiny one.
        """

    def search(
        self, variables: Any, image: np.ndarray, encoded: Sequence[Encoded]
    ) -> list[dict[str, np.ndarray]]:
        """Search every request in one image, whose features are computed once.

        Requests do not compete: what one finds does not depend on which others there are.

        Args:
          image: (h, w, 3) uint8 RGB.
          encoded: what `encode` returned, any number of them.

        Returns:
          For each request `boxes` (n, 4) float32 xyxy pixels of the image and `scores` (n,) float32, finite,
          after suppression, in any order. As many as can be told apart, down to low scores: the average
          precision is cut where the list ends.
        """


class OS2DRequest(NamedTuple):
    """The views of one picture: templates (v, t, t, d), and the (height, width) that each was made of."""

    templates: np.ndarray
    shapes: list[tuple[int, int]]


class OS2DMatcher:
    """OS2D's `Predictor` as a `Matcher`."""

    def __init__(
        self,
        predictor: Predictor,
        *,
        scales: Sequence[float],
        query_size: int = 240,
        augmentation: str = "",
        **options: Any,
    ):
        """Make a matcher.

        Args:
          predictor: the model's; shared between matchers, so that they share programs.
          scales: of the pyramid, on the images as they are.
          query_size: requests are brought to this number squared of pixels.
          augmentation: views of each request (see `systems.os2d.views.views`).
          **options: of `decode_pyramid`; `max_detections` is per request.

        Raises:
          ConfigError: scales or views that cannot be used.
        """
        self._predictor, self._scales = predictor, search.checked_scales(scales)
        self._query_size, self._augmentation, self._options = query_size, augmentation, options
        self._turned = [view.quarter_turns % 2 == 1 for view in views(augmentation)]

    def encode(self, variables: Any, picture: np.ndarray) -> OS2DRequest:
        """See `Matcher`."""
        templates = search.encode_views(
            self._predictor, variables, picture, views=self._augmentation, side=self._query_size
        )
        size = picture.shape[:2]
        return OS2DRequest(templates, [size[::-1] if turned else size for turned in self._turned])

    def search(
        self, variables: Any, image: np.ndarray, encoded: Sequence[OS2DRequest]
    ) -> list[dict[str, np.ndarray]]:
        """See `Matcher`. Raises ImageError if a level of the pyramid would be too large."""
        if not encoded:
            return []
        search.check_level_sizes(image.shape[:2], self._scales, name="image")
        found = self._predictor.detect(
            variables,
            search.levels(image, self._scales),
            np.concatenate([request.templates for request in encoded]),
            class_ids=[index for index, request in enumerate(encoded) for _ in request.shapes],
            image_size=image.shape[:2],
            shapes=[shape for request in encoded for shape in request.shapes],
            **self._options,
        )
        rows = [found["labels"] == index for index in range(len(encoded))]
        return [{key: found[key][row] for key in ("boxes", "scores")} for row in rows]


class SSMMatcher:
    """The single-shot semantic matcher's `Predictor` as a `Matcher`; images are letterboxed to its size."""

    def __init__(
        self,
        predictor: Any,
        *,
        threshold: float = 0.05,
        iou: float = 0.5,
        method: str = "default",
        max_detections: int = 100,
    ):
        """Make a matcher.

        Args:
          predictor: a `systems.ssm.predict.Predictor`.
          threshold: of coverage.
          iou, method: of `systems.postprocess.detect`.
          max_detections: per request.

        Raises:
          ConfigError: an option that cannot be used.
        """
        if method not in postprocess.METHODS:
            known = ", ".join(postprocess.METHODS)
            raise ConfigError(f"eval.postprocess: {method!r} is none of {known}")
        if not (0 <= threshold <= 1 and 0 <= iou <= 1 and max_detections >= 1):
            raise ConfigError("eval: threshold and nms_iou lie within 0..1, max_detections is 1 or more")
        self._predictor, self._most = predictor, max_detections
        self._options = {"threshold": threshold, "iou": iou, "method": method}

    def encode(self, variables: Any, picture: np.ndarray) -> np.ndarray:
        """See `Matcher`."""
        try:
            return self._predictor.encode(variables, [picture])[0]
        except DataError as error:
            raise ImageError(str(error)) from None

    def search(
        self, variables: Any, image: np.ndarray, encoded: Sequence[np.ndarray]
    ) -> list[dict[str, np.ndarray]]:
        """See `Matcher`."""
        if not encoded:
            return []
        canvas, factors, offset = transforms.letterbox_centred(image, self._predictor.config.image_size)
        features = self._predictor.features(variables, transforms.bgr_minus_mean(canvas)[None])
        coverage, boxes = self._predictor.search(variables, features, np.stack(encoded))
        answers = []
        for one, corners in zip(coverage[0], boxes[0], strict=True):
            found, scores = postprocess.detect(one, corners, **self._options)
            placed = (found - np.tile(offset, 2)) / np.tile(factors, 2)
            placed = box_ops.clip(placed.astype(np.float32), image.shape[:2])
            keep = np.flatnonzero(box_ops.nonempty(placed))[: self._most]
            answers.append({"boxes": placed[keep], "scores": scores[keep]})
        return answers


class DetectorMatcher:
    """What `sm_jax.load` returned (a detector of pictures) as a `Matcher`; `variables` are its own."""

    def __init__(self, detector: Any, *, max_detections: int = 100, **options: Any):
        """`options` are those of `detector.detect`, such as `scales`; scales that are left out are chosen by
        the sizes of all requests searched together."""
        self._detector = detector
        self._options = options | {"max_detections": max_detections, "threshold": float("-inf")}

    def encode(self, variables: Any, picture: np.ndarray) -> Encoded:
        """See `Matcher`."""
        del variables
        return self._detector.encode([picture])

    def search(
        self, variables: Any, image: np.ndarray, encoded: Sequence[Encoded]
    ) -> list[dict[str, np.ndarray]]:
        """See `Matcher`."""
        del variables
        if not encoded:
            return []
        requests = [
            dataclasses.replace(request, label=str(index), threshold=None)
            for index, bank in enumerate(encoded)
            for request in bank
        ]
        bank = RequestBank(requests, fingerprint=encoded[0].fingerprint)
        (found,) = self._detector.detect(image, bank, **self._options)
        labels = np.asarray(found.labels, str)
        rows = [labels == str(index) for index in range(len(encoded))]
        return [{"boxes": found.boxes[row], "scores": found.scores[row]} for row in rows]


def make(config: Any) -> Matcher:
    """The matcher of the whole `config`.

    Raises:
      ConfigError: a system that is not asked with pictures, or an option that cannot be used.
    """
    if config.system not in MAKERS:
        raise ConfigError(
            f"protocol 'requests' asks with pictures, which {config.system!r} does not read; "
            f"it is for {', '.join(MAKERS)}"
        )
    return MAKERS[config.system](config)


def _os2d(config: Any) -> OS2DMatcher:
    """Options as `evaluators.os2d` reads them, but for `nms_across_classes`: requests do not compete."""
    options, model = config.eval, ModelConfig.create(config.model)
    scale = data.image_scale(config.data)
    return OS2DMatcher(
        Predictor(parts(model)),
        scales=[scale * factor for factor in options.scales],
        query_size=model.query_size,
        augmentation=options.views,
        iou=options.nms_iou,
        nms=options.nms,
        score_threshold=options.score_threshold,
        max_detections=options.max_detections,
    )


def _ssm(config: Any) -> SSMMatcher:
    options = config.eval
    return SSMMatcher(
        ssm_predict.Predictor(ssm.ModelConfig.create(config.model)),
        threshold=options.threshold,
        iou=options.nms_iou,
        method=options.postprocess,
        max_detections=options.max_detections,
    )


MAKERS: dict[str, Callable[[Any], Matcher]] = {"os2d": _os2d, "ssm": _ssm}
