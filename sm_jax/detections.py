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
      best_scores: label -> its highest score in the image, whatever the threshold; None: nothing compared.
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
    best_scores: dict[str, float | None] = dataclasses.field(default_factory=dict)

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
        return _document(self, found)

    def draw(self, image, *, queries: RequestBank | None = None):
        """The detections over `image` (as given to `detect`), a Pillow picture; `queries` adds a legend."""
        return draw.detections(
            pictures.as_image(image),
            self.boxes,
            labels=self.labels,
            scores=self.scores,
            corners=self.corners,
            queries=_legend(queries),
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
          found: arrays of `decode_pyramid`, with `best`.
          bank: the requests, whose labels the class ids index.
          request_of, view_of: (c,) request and view of each template.
        """
        order = np.argsort(-found["scores"], kind="stable")
        best = found.get("best", np.full(len(request_of), -np.inf))
        found = {key: value[order] for key, value in found.items() if key != "best"}
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
            best_scores=_best(names, best, [bank.requests[request].label for request in request_of]),
        )


@dataclasses.dataclass(frozen=True)
class PhraseDetections:
    """What phrases describe in one image, by descending score.

    Attributes:
      image_size: (height, width) of the image, upright; all coordinates are its pixels.
      boxes: (n, 4) float32 xyxy.
      scores: (n,) float32 in [0, 1]: conf x align.
      labels: n names.
      queries: (n,) index of the phrase that matched.
      conf: (n,) float32: how sure it is that the box holds an object, whatever was asked for.
      align: (n,) float32: how sure it is that the phrase describes that object.
      best_scores: label -> its highest score in the image, whatever the threshold; None: no object at all.
      proposals: number of objects that the phrases were compared with.
    """

    image_size: tuple[int, int]
    boxes: np.ndarray
    scores: np.ndarray
    labels: list[str]
    queries: np.ndarray
    conf: np.ndarray
    align: np.ndarray
    best_scores: dict[str, float | None]
    proposals: int

    def __len__(self) -> int:
        return len(self.scores)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, ready for `json.dumps`."""
        found = [
            {
                "label": self.labels[i],
                "score": round(float(self.scores[i]), 5),
                "conf": round(float(self.conf[i]), 5),
                "align": round(float(self.align[i]), 5),
                "box": _rounded(self.boxes[i]),
                "query": int(self.queries[i]),
            }
            for i in range(len(self))
        ]
        return _document(self, found) | {"proposals": self.proposals}

    def draw(self, image, *, queries: RequestBank | None = None):
        """The detections over `image` (as given to `detect`), a Pillow picture; `queries` adds a legend."""
        return draw.detections(
            pictures.as_image(image),
            self.boxes,
            labels=self.labels,
            scores=self.scores,
            queries=None if queries is None else dict.fromkeys(queries.labels),
        )

    @classmethod
    def build(
        cls,
        size: tuple[int, int],
        boxes: np.ndarray,
        conf: np.ndarray,
        align: np.ndarray,
        bank: RequestBank,
        *,
        threshold: float,
        max_detections: int,
        top_k: int | None,
    ) -> "PhraseDetections":
        """The pairs of object and phrase that score above the thresholds.

        Phrases of one label compete: of an object it is the best one that counts.

        Args:
          size: (height, width) of the image.
          boxes: (n, 4) objects in pixels of the image, and `conf` (n,) of each.
          align: (q, n) of each phrase of the `bank`.
          bank: the phrases; one with a threshold of its own keeps it.
          threshold, max_detections, top_k: see `PhraseDetector.detect`.
        """
        scores = (align * conf).astype(np.float32)
        limits = [threshold if request.threshold is None else request.threshold for request in bank]
        above = scores > np.asarray(limits, np.float32)[:, None]
        rows, columns = [], []
        names = bank.labels
        ids = {name: index for index, name in enumerate(names)}
        of_label = np.array([ids[request.label] for request in bank])
        for label in range(len(names)):
            mine = np.flatnonzero(of_label == label)
            allowed = np.where(above[mine], scores[mine], -np.inf)
            winner = np.argmax(allowed, axis=0)
            value = np.max(allowed, axis=0)
            order = np.argsort(-value, kind="stable")
            order = order[value[order] > -np.inf][:max_detections]
            rows.extend(mine[winner[order]])
            columns.extend(order)
        rows, columns = np.array(rows, np.int64), np.array(columns, np.int64)
        best = np.argsort(-scores[rows, columns], kind="stable")[:top_k]
        rows, columns = rows[best], columns[best]
        return cls(
            image_size=tuple(size),
            boxes=boxes[columns],
            scores=scores[rows, columns],
            labels=[bank.requests[row].label for row in rows],
            queries=rows,
            conf=conf[columns],
            align=align[rows, columns],
            best_scores=_best(
                names, np.max(scores, axis=1, initial=-np.inf), [request.label for request in bank]
            ),
            proposals=len(boxes),
        )


@dataclasses.dataclass(frozen=True)
class RequestDetections:
    """What pictures of class members found in one image by coverage, by descending score.

    Attributes:
      image_size: (height, width) of the image, upright; all coordinates are its pixels.
      boxes: (n, 4) float32 xyxy.
      scores: (n,) float32: by default the mean coverage of the cells behind the box, in [0, 1]; with other
        post-processing a sum over cells ("released") or a logarithm of their number ("grouprect").
      labels: n names.
      queries: (n,) index of the request that matched: the one behind the highest coverage in the box.
      coverage: label -> (rows, columns) float32 in [0, 1]: how likely each cell of the image belongs to the
        object; the highest of the label's requests.
      coverage_box: (4,) float32 xyxy: the outer edges of these maps; may reach beyond the image.
      best_scores: label -> its highest coverage in the image, whatever the threshold.
    """

    image_size: tuple[int, int]
    boxes: np.ndarray
    scores: np.ndarray
    labels: list[str]
    queries: np.ndarray
    coverage: dict[str, np.ndarray]
    coverage_box: np.ndarray
    best_scores: dict[str, float | None]

    def __len__(self) -> int:
        return len(self.scores)

    def to_dict(self, *, coverage: bool = False) -> dict[str, Any]:
        """Plain lists and numbers, ready for `json.dumps`; the maps only if asked for."""
        found = [
            {
                "label": self.labels[i],
                "score": round(float(self.scores[i]), 5),
                "box": _rounded(self.boxes[i]),
                "query": int(self.queries[i]),
            }
            for i in range(len(self))
        ]
        document = _document(self, found)
        if coverage:
            maps = {label: np.round(each.astype(float), 4).tolist() for label, each in self.coverage.items()}
            document["coverage"] = {"box": _rounded(self.coverage_box), "maps": maps}
        return document

    def draw(self, image, *, queries: RequestBank | None = None, heat: bool = True):
        """The detections over `image` (as given to `detect`), a Pillow picture.

        Args:
          image: the picture.
          queries: adds a legend.
          heat: shade the image by coverage, each place in the colour of the label with the highest one.
        """
        legend = _legend(queries)
        picture = pictures.as_image(image)
        if heat:
            names = list(dict.fromkeys([*(legend or {}), *self.labels, *self.coverage]))
            picture = draw.heat(picture, self.coverage, self.coverage_box, names=names)
        return draw.detections(picture, self.boxes, labels=self.labels, scores=self.scores, queries=legend)

    @classmethod
    def build(
        cls,
        size: tuple[int, int],
        found: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
        coverage: Mapping[str, np.ndarray],
        coverage_box: np.ndarray,
    ) -> "RequestDetections":
        """From `found`: label -> boxes (n, 4), scores (n,) and requests (n,), in any order."""
        counts = [len(scores) for _, scores, _ in found.values()]
        names = [name for name, count in zip(found, counts, strict=True) for _ in range(count)]
        boxes, scores, queries = (np.concatenate(parts) for parts in zip(*found.values(), strict=True))
        order = np.argsort(-scores, kind="stable")
        return cls(
            image_size=tuple(size),
            boxes=boxes[order].astype(np.float32),
            scores=scores[order].astype(np.float32),
            labels=[names[index] for index in order],
            queries=queries[order].astype(np.int64),
            coverage=dict(coverage),
            coverage_box=np.asarray(coverage_box, np.float32),
            best_scores={label: float(each.max()) for label, each in coverage.items()},
        )


def _legend(bank: RequestBank | None) -> dict[str, np.ndarray] | None:
    """The first picture of each label."""
    if bank is None:
        return None
    first = {request.label: request.preview for request in reversed(bank.requests)}
    return {label: first[label] for label in bank.labels}


def _document(found, detections) -> dict[str, Any]:
    height, width = found.image_size
    best = {name: None if score is None else round(score, 5) for name, score in found.best_scores.items()}
    return {"size": {"height": height, "width": width}, "detections": detections, "best_scores": best}


def _best(names, scores, labels) -> dict[str, float | None]:
    """The highest of the `scores` of each name; None where there is none."""
    best: dict[str, float | None] = dict.fromkeys(names)
    for label, score in zip(labels, np.asarray(scores, float), strict=True):
        if np.isfinite(score) and (best[label] is None or score > best[label]):
            best[label] = float(score)
    return best


def _rounded(values) -> list:
    return np.round(np.asarray(values, float), 2).tolist()
