"""What was found in one image, for people."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from sm_jax import draw
from sm_jax.data import images as pictures
from sm_jax.requests import RequestBank
from sm_jax.systems.os2d.views import angle_and_scale, query_to_image, views


@dataclasses.dataclass(frozen=True)
class Detections:
    """What was found in one image, by descending score.

    Attributes:
      image_size: (height, width) of the image, upright; all coordinates are its pixels.
      boxes: (n, 4) float32 xyxy.
      scores: (n,) float32 in [-1, 1].
      labels: n names.
      queries: (n,) index of the request that matched.
      corners: (n, 4, 2) float32 xy: where the query picture's corners came to lie: top left, top right,
        bottom right, bottom left.
      transforms: (n, 2, 3) float32: pixels of the query picture -> pixels of the image.
      angles: (n,) degrees by which the object is turned against the query, counter-clockwise as seen.
      scales: (n,) size of the object over size of the query picture (square root of the ratio of areas).
      mirrored: (n,) bool: the object is a mirror image of the query.
      anchors: (n, 4) float32: the undeformed template at that place, not cut to the image.
    """

    image_size: tuple[int, int]
    boxes: np.ndarray
    scores: np.ndarray
    labels: list[str]
    queries: np.ndarray
    corners: np.ndarray
    transforms: np.ndarray
    angles: np.ndarray
    scales: np.ndarray
    mirrored: np.ndarray
    anchors: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, ready for `json.dumps`."""
        found = [
            {
                "label": self.labels[i],
                "score": round(float(self.scores[i]), 5),
                "box": _rounded(self.boxes[i]),
                "angle": round(float(self.angles[i]), 2),
                "scale": round(float(self.scales[i]), 4),
                "mirrored": bool(self.mirrored[i]),
                "corners": _rounded(self.corners[i]),
                "transform": np.round(self.transforms[i].astype(float), 6).tolist(),
                "anchor": _rounded(self.anchors[i]),
                "query": int(self.queries[i]),
            }
            for i in range(len(self))
        ]
        return {"size": {"height": self.image_size[0], "width": self.image_size[1]}, "detections": found}

    def draw(self, image, *, queries: RequestBank | None = None):
        """The detections over `image` (as given to `detect`), a Pillow picture; `queries` adds a legend."""
        legend = None
        if queries is not None:
            first = {request.label: request.preview for request in reversed(queries.requests)}
            legend = {label: first[label] for label in queries.labels}
        return draw.detections(
            pictures.as_image(image),
            self.boxes,
            labels=self.labels,
            scores=self.scores,
            corners=self.corners,
            queries=legend,
        )

    @classmethod
    def build(
        cls,
        size: tuple[int, int],
        found: Mapping[str, np.ndarray],
        bank: RequestBank,
        request_of: np.ndarray,
        view_of: np.ndarray,
    ) -> "Detections":
        """From what `Predictor.detect` found with `bank.templates()`.

        Args:
          size: (height, width) of the image.
          found: arrays of `decode_pyramid`.
          bank: the requests, whose labels the class ids index.
          request_of, view_of: (c,) request and view of each template.
        """
        order = np.argsort(-found["scores"], kind="stable")
        found = {key: value[order] for key, value in found.items()}
        rows = found["template"]
        transforms = np.zeros((len(rows), 2, 3))
        outline = np.zeros((len(rows), 4, 3))
        for template in np.unique(rows):
            mine, request = rows == template, bank.requests[request_of[template]]
            view = views(request.views)[view_of[template]]
            transforms[mine] = query_to_image(found["corners"][mine], view, request.size)
            height, width = request.size
            outline[mine] = [[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]]
        angles, scales = angle_and_scale(transforms)
        names = bank.labels
        return cls(
            image_size=tuple(size),
            boxes=found["boxes"],
            scores=found["scores"],
            labels=[names[label] for label in found["labels"]],
            queries=request_of[rows],
            corners=np.einsum("nij,nkj->nki", transforms, outline).astype(np.float32),
            transforms=transforms.astype(np.float32),
            angles=angles.astype(np.float32),
            scales=scales.astype(np.float32),
            mirrored=np.linalg.det(transforms[:, :, :2]) < 0,
            anchors=found["anchors"],
        )


def _rounded(values) -> list:
    return np.round(np.asarray(values, float), 2).tolist()
