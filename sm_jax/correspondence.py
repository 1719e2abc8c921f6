"""What of one image lies where in another: `load("scnet").match(source, target, points=[(40, 60)])`."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from sm_jax import boxes as box_lib
from sm_jax import draw_matches, pretrained
from sm_jax.data import images as pictures
from sm_jax.errors import ConfigError, DataError, WeightsError
from sm_jax.ops import flow as flows
from sm_jax.proposals import propose
from sm_jax.settings import nearest
from sm_jax.systems.scnet import descriptors, predict
from sm_jax.systems.scnet import model as scnet
from sm_jax.weights import checkpoints, export, registry, start

FEATURES = ("hog", *scnet.BACKBONES)
"""What regions can be compared by without training."""
DEFAULT_FEATURES, DEFAULT_METHOD = "resnet50", "lom"
SIDE = 512
"""Longer side, in pixels, to which larger pictures are shrunk while they are matched."""
MISSING = 127  # grey of what has no counterpart, in a warped picture


@dataclasses.dataclass(frozen=True)
class Correspondence:
    """What of the source lies where in the target. Coordinates are pixels of the upright images.

    Attributes:
      method: how matches were scored.
      source_size, target_size: (height, width).
      source_boxes, target_boxes: (n, 4) float32 xyxy, row by row a source region and its best match, the most
        confident first; regions for which nothing speaks are left out.
      confidence: (n,) float32 score of the match, above 0; its scale is the method's, so it orders the
        matches of one pair and is no probability.
      flow: (h, w, 2) float32: what is at x, y of the source lies at x + flow[..., 0], y + flow[..., 1] of the
        target; NaN where no region moves the pixel.
      flow_confidence: (h, w) float32, that of the region which moves the pixel; 0 where there is none.
      valid: (h, w) bool: whether the pixel has a flow.
      points: (k, 2) float64, those asked for, in the source.
      target_points: (k, 2) float64 where they lie in the target, NaN where not known.
      point_confidence: (k,) float64, that of the region that moved the point.
      point_valid: (k,) bool: False for a point outside the source, or where nothing moves it.
    """

    method: str
    source_size: tuple[int, int]
    target_size: tuple[int, int]
    source_boxes: np.ndarray
    target_boxes: np.ndarray
    confidence: np.ndarray
    flow: np.ndarray
    flow_confidence: np.ndarray
    valid: np.ndarray
    points: np.ndarray
    target_points: np.ndarray
    point_confidence: np.ndarray
    point_valid: np.ndarray
    _pictures: tuple[np.ndarray, np.ndarray] = dataclasses.field(repr=False)

    def __len__(self) -> int:
        """Number of region matches."""
        return len(self.confidence)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, ready for `json.dumps`; the flow is only summed up."""
        sizes = {"source": self.source_size, "target": self.target_size}
        return {
            "method": self.method,
            **{f"{name}_size": {"height": size[0], "width": size[1]} for name, size in sizes.items()},
            "regions": [
                {"source": _rounded(a), "target": _rounded(b), "confidence": _number(c)}
                for a, b, c in zip(self.source_boxes, self.target_boxes, self.confidence, strict=True)
            ],
            "points": [
                {
                    "source": _rounded(self.points[i]),
                    "target": _rounded(self.target_points[i]) if self.point_valid[i] else None,
                    "confidence": _number(self.point_confidence[i]),
                    "valid": bool(self.point_valid[i]),
                }
                for i in range(len(self.points))
            ],
            "covered": round(float(np.mean(self.valid)), 4),
        }

    def warp(self) -> Image.Image:
        """The target brought onto the source by the flow, of the source's size; grey where there is none."""
        from scipy import ndimage

        height, width = self.source_size
        shift = np.where(self.valid[..., None], self.flow, 0).astype(np.float64)
        at = [np.arange(height)[:, None] + shift[..., 1], np.arange(width)[None, :] + shift[..., 0]]
        target = self._pictures[1]
        channels = [
            ndimage.map_coordinates(target[..., c].astype(np.float32), at, order=1, mode="nearest")
            for c in range(3)
        ]
        warped = np.clip(np.rint(np.stack(channels, axis=-1)), 0, 255).astype(np.uint8)
        return Image.fromarray(np.where(self.valid[..., None], warped, np.uint8(MISSING)))

    def draw(self, *, count: int = 8) -> Image.Image:
        """Both images side by side with the `count` best matches of different places, and the points."""
        some = draw_matches.distinct(self.source_boxes, count)
        return draw_matches.matches(
            *self._pictures,
            self.source_boxes[some],
            self.target_boxes[some],
            source_points=self.points,
            target_points=self.target_points,
        )


class Matcher:
    """Matches the regions of pairs of images; `load` makes one.

    Attributes:
      notes: lines that say where the weights came from.
      method: how matches are scored unless `match` is told otherwise.
      proposals: regions per image.
    """

    def __init__(
        self,
        predictor: predict.Predictor,
        *,
        method: str = DEFAULT_METHOD,
        proposals: int = 1000,
        proposal_method: str = "prim",
        seed: int = 0,
        notes: Sequence[str] = (),
    ):
        """Wrap a predictor.

        Args:
          predictor: describes and matches regions.
          method: one of `predict.METHODS`.
          proposals: regions per image.
          proposal_method, seed: of `sm_jax.proposals.propose`; regions computed elsewhere go to `match`.
          notes: lines that say where the weights came from.
        """
        predictor.check(method)
        if isinstance(proposals, bool) or not isinstance(proposals, int) or proposals < 1:
            raise ConfigError(f"proposals: {proposals!r} is not a whole number from 1 up")
        self.notes, self.method, self.proposals = list(notes), method, proposals
        self._predictor, self._proposal_method, self._seed = predictor, proposal_method, seed

    @property
    def compiles(self):
        """Programs made so far, by kind."""
        return self._predictor.compiles

    def match(
        self,
        source,
        target,
        points=None,
        *,
        method: str | None = None,
        source_boxes=None,
        target_boxes=None,
        smooth: bool = False,
    ) -> Correspondence:
        """Find for the regions, pixels and points of the source where they lie in the target.

        Args:
          source, target: images of any size: a path, encoded bytes, a Pillow image, or an array.
          points: (k, 2) xy pixels of the source, to be found in the target. One outside the source, or in a
            place that no region moves, is not valid and NaN.
          method: how matches are scored, one of "nam", "phm", "lom", "a", "ag", "ag+"; default the matcher's.
          source_boxes, target_boxes: (n, 4) xyxy pixels, regions to be used instead of proposals. Boxes of at
            most 1 pixel match nothing.
          smooth: a smooth flow of all pixels instead of one of the covered ones, bending at the edges of the
            source; takes some seconds.

        Raises:
          ImageError: an image that cannot be read; DataError: points or boxes that cannot be used;
          ConfigError: an unknown method, or one that the weights cannot do.
        """
        points = _points(points)
        method = self.method if method is None else method
        self._predictor.check(method)
        sides, works, whole = [], [], []
        for name, picture, boxes in (("source", source, source_boxes), ("target", target, target_boxes)):
            label = str(picture) if isinstance(picture, (str, os.PathLike)) else name
            image = pictures.as_image(picture, name=label)
            work = _shrunk(image)
            sides.append(self._predictor.describe(work, self._boxes(name, work, boxes, image.shape[:2])))
            works.append(work)
            whole.append(image)
        found = self._predictor.match(*sides, method=method)
        flow = predict.dense_flow(*sides, found, unique=smooth)
        if smooth:
            flow = flows.regularize(flow, works[0])
        return _build(method, whole, sides, found, flow, points)

    def _boxes(self, name: str, work: np.ndarray, boxes, size: tuple[int, int]) -> np.ndarray:
        """Regions of a shrunk image: those given in pixels of the image of `size`, or proposals."""
        if boxes is None:
            proposed = propose(work, self.proposals, method=self._proposal_method, seed=self._seed)
            return proposed.boxes[: proposed.count]
        try:
            boxes = np.asarray(boxes, np.float32)
        except (TypeError, ValueError):
            boxes = np.zeros(0)
        if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes):
            raise DataError(f"{name}_boxes: give at least one box, as rows of x1 y1 x2 y2")
        if not np.isfinite(boxes).all():
            raise DataError(f"{name}_boxes: some are not finite numbers")
        return box_lib.scale(boxes, (work.shape[1] / size[1], work.shape[0] / size[0]))


def load(
    weights: str | os.PathLike | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    features: str | None = None,
    method: str | None = None,
    pool: str = "flat",
    **options,
) -> Matcher:
    """A `Matcher` of trained weights, or of features that need no training.

    Args:
      weights: a training run, or a file of `sm-jax weights export`; or weights of a backbone alone, by name
        or path. None: those registered for `features`.
      overrides: fields of `ModelConfig` that differ from those stored with the weights.
      features: what regions are compared by without training, one of `FEATURES`; default "resnet50", whose
        weights are packaged, as are GoogLeNet's; "hog" needs none.
      method: default "lom" without training, and a trained model's own ("a", "ag", "ag+").
      pool: of untrained features of a backbone, "flat" or "mean" (see `descriptors.flatten`).
      **options: of `Matcher`: `proposals`, `proposal_method`, `seed`.

    Raises:
      WeightsError: weights that are not there or do not fit; ConfigError: an unknown name, or names that do
        not go together.
    """
    overrides = dict(overrides or {})
    if features is not None and features not in FEATURES:
        raise ConfigError(f"features: unknown {features!r}{nearest(features, FEATURES)}")
    if pool not in predict.POOLS:
        raise ConfigError(f"pool: {pool!r} is none of {', '.join(predict.POOLS)}")
    if weights is not None and _is_model(weights):
        _check_flat(pool, f"the trained model {weights}")
        if features is not None:
            raise ConfigError(
                f"features={features!r}: {weights} is a trained model, which has its own features"
            )
        found = pretrained.trained(weights, system="scnet", overrides=overrides)
        config = scnet.ModelConfig.create(found.config.model)
        predictor = predict.Predictor(config, found.variables)
        return Matcher(predictor, method=method or config.variant.lower(), notes=found.notes, **options)
    features = features or (DEFAULT_FEATURES if weights is None else _features_of(weights))
    if features == "hog":
        if weights is not None:
            raise ConfigError(f"features='hog': takes no weights, but {weights} are given")
        _check_flat(pool, "features='hog'")
        predictor, notes = (
            predict.Predictor(scnet.ModelConfig.create(overrides), features="hog"),
            ["features: hog"],
        )
    else:
        config = scnet.ModelConfig.create({"backbone": features, "roi_size": descriptors.CELLS} | overrides)
        shapes = jax.eval_shape(lambda: scnet.init_backbone(config, jax.random.key(0)))
        name = os.fspath(weights or scnet.BACKBONES[features].weights)
        variables, notes = start.initialize(shapes, {"backbone": name})
        variables = jax.device_put(variables)
        predictor = predict.Predictor(config, variables, features="roi", pool=pool)
        notes = [f"features: {features}, not trained for matching; {line}" for line in notes]
    return Matcher(predictor, method=method or DEFAULT_METHOD, notes=notes, **options)


def _check_flat(pool: str, of: str) -> None:
    """Refuse a pooling where none is chosen."""
    if pool != "flat":
        raise ConfigError(f"pool={pool!r}: is for untrained features of a backbone, not for {of}")


def _is_model(weights: str | os.PathLike) -> bool:
    path = registry.resolve(weights)
    return path.is_dir() or export.read_config(path) is not None


def _features_of(weights: str | os.PathLike) -> str:
    """The backbone that a weights file is for."""
    converted, _ = checkpoints.read(registry.resolve(weights))
    kind = str(converted.architecture)
    for sign, features in (("vgg16", "vgg16"), ("resnet50", "resnet50"), ("resnet101", "resnet101")):
        if kind.startswith(sign):
            return features
    if kind.startswith("googlenet"):
        return "googlenet-4e"
    raise WeightsError(f"{weights}: holds {kind}; scnet takes VGG16, ResNet or GoogLeNet")


def _shrunk(image: np.ndarray) -> np.ndarray:
    factor = min(1.0, SIDE / max(image.shape[:2]))
    return pictures.resize(image, tuple(max(1, round(side * factor)) for side in image.shape[:2]))


def _points(points) -> np.ndarray:
    """(k, 2) float64 from what a person gives."""
    if points is None:
        return np.zeros((0, 2))
    try:
        found = np.asarray(points, np.float64)
    except (TypeError, ValueError):
        found = np.zeros(0)
    if found.shape == (2,):
        found = found[None]
    if found.size == 0 and np.shape(points)[:1] == (0,):
        return np.zeros((0, 2))
    if found.ndim != 2 or found.shape[1] != 2 or not np.isfinite(found).all():
        raise DataError("points: give pairs of finite numbers x, y, in pixels of the source")
    return found


def _build(method, whole, sides, found, flow, points) -> Correspondence:
    """The result in pixels of the images, from one in pixels of the shrunk ones."""
    sizes = [image.shape[:2] for image in whole]
    # factors (x, y) from a shrunk picture to the image
    back = [np.divide(size, side.size)[::-1] for size, side in zip(sizes, sides, strict=True)]
    order = np.argsort(-found.confidence, kind="stable")
    order = order[found.confidence[order] > 0]
    height, width = sizes[0]
    centres = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), axis=-1)
    inner = centres / back[0]
    pixel = np.minimum(np.floor(inner).astype(int), np.array(sides[0].size[::-1]) - 1)
    rows, columns = pixel[..., 1], pixel[..., 0]
    moved = predict.transfer(points / back[0], flow)
    return Correspondence(
        method=method,
        source_size=sizes[0],
        target_size=sizes[1],
        source_boxes=box_lib.scale(sides[0].boxes[order], back[0]).astype(np.float32),
        target_boxes=box_lib.scale(sides[1].boxes[found.index[order]], back[1]).astype(np.float32),
        confidence=found.confidence[order],
        flow=((inner + flow.shift[rows, columns]) * back[1] - centres).astype(np.float32),
        flow_confidence=flow.confidence[rows, columns].astype(np.float32),
        valid=flow.valid[rows, columns],
        points=points,
        target_points=moved.xy * back[1],
        point_confidence=moved.confidence,
        point_valid=moved.valid,
        _pictures=(whole[0], whole[1]),
    )


def _rounded(values) -> list[float]:
    return [round(float(value), 2) for value in values]


def _number(value) -> float:
    return float(f"{float(value):.6g}")


def write_flow(found: Correspondence, path: str | os.PathLike) -> None:
    """Write `flow`, `valid` and `confidence` of every source pixel as one `.npz`."""
    np.savez_compressed(Path(path), flow=found.flow, valid=found.valid, confidence=found.flow_confidence)
