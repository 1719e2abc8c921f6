"""From two pictures and their boxes to region matches, a dense flow and moved points.

A picture is described once (`Predictor.describe`) and matched with any number of others. NAM, PHM and LOM
work in the pictures' own pixels, pooling and SCNet's scores in one frame (`ModelConfig.image_size`), each as
published. Results are pixels of the pictures. Sets of boxes are padded to a bucket, so that one program
serves any number of them.
"""

import copy
import dataclasses
import functools
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sm_jax import boxes as box_lib
from sm_jax import points as point_lib
from sm_jax.data.images import resize
from sm_jax.errors import ConfigError, DataError
from sm_jax.ops import flow as flows
from sm_jax.ops import hough, matching
from sm_jax.systems.scnet import descriptors, model

METHODS = ("nam", "phm", "lom", "a", "ag", "ag+")
"""The three of Proposal Flow, and SCNet's scores on the same similarities."""
OWN_PIXELS = ("nam", "phm", "lom")
"""Those that work in the pictures' own pixels; the others in the frame."""
FEATURES = ("embedding", "roi", "hog")
POOLS = ("flat", "mean")
BUCKETS = (500, 1000)
"""Numbers of boxes that are compiled for; more than the last go in multiples of it."""


class Side(NamedTuple):
    """A picture described.

    Attributes:
      size: (height, width) of the picture.
      boxes: (n, 4) float32 xyxy pixels of it.
      frame_boxes: (bucket, 4) float64, the same in the frame; rows from n on are 0.
      vectors: by name ("appearance", "geometry") (bucket, d) on the device.
    """

    size: tuple[int, int]
    boxes: np.ndarray
    frame_boxes: np.ndarray
    vectors: dict[str, jax.Array]

    @property
    def pixel_boxes(self) -> np.ndarray:
        """(bucket, 4) float64, `boxes` padded like `frame_boxes`."""
        return np.pad(self.boxes.astype(np.float64), ((0, len(self.frame_boxes) - len(self.boxes)), (0, 0)))

    @property
    def valid(self) -> np.ndarray:
        """(bucket,) bool: which rows are real."""
        return np.arange(len(self.frame_boxes)) < len(self.boxes)


class Matches(NamedTuple):
    """The best target box of every source box, with all scores; evaluations measure plain boxes of any method
    (`evaluators.correspondence.Matches`).

    Attributes:
      index: (n,) int32 into the target's boxes.
      confidence: (n,) float32, the score of that match; 0: nothing speaks for any.
      scores: (n, m) float32 of all matches.
    """

    index: np.ndarray
    confidence: np.ndarray
    scores: np.ndarray


class Predictor:
    """Describes pictures and matches their regions with a bounded number of compiled programs.

    Attributes:
      compiles: how often each of "describe" and the methods was traced: once per bucket ("phm" also for
        targets of another shape, rounded; see `hough.spread`).
      config: the model.
    """

    def __init__(
        self,
        config: model.ModelConfig,
        variables: model.Variables | None = None,
        *,
        features: str = "embedding",
        pool: str = "flat",
        centre: bool = True,
        buckets: Sequence[int] = BUCKETS,
    ):
        """Make a predictor.

        Args:
          config: the model; of `features="hog"` only the frame and the constants of the vote are read.
          variables: `params` and `batch_stats`; of `features="roi"` the backbone's alone will do.
          features: "embedding" of a trained model; "roi", pooled features of the trunk (`roi_size` rows and
            columns); or "hog".
          pool: of "roi": "flat" or "mean" (see `descriptors.flatten`).
          centre: of "roi" and "hog": subtract the mean over both pictures (see `descriptors.cosine`).
          buckets: ascending numbers of boxes to compile for.

        Raises:
          ConfigError: an unknown kind of features or pooling.
        """
        for name, value, known in (("features", features, FEATURES), ("pool", pool, POOLS)):
            if value not in known:
                raise ConfigError(f"{name}: {value!r} is none of {', '.join(known)}")
        self.config = config
        self.compiles: Counter[str] = Counter()
        self._variables, self._features = variables, features
        self._centre = centre and features != "embedding"
        self._buckets = tuple(buckets)

        def describe(variables, image, boxes):
            self.compiles["describe"] += 1  # runs while tracing only
            if features == "embedding":
                found = model.encode(config, variables, {"image": image[None], "boxes": boxes[None]})
                return {name: vectors[0] for name, vectors in found.items()}
            maps = model.features(config, variables, image[None])[0]
            found = model.roi(config, maps, boxes)
            return {"appearance": descriptors.flatten(found, pool=pool)}

        self._describe = jax.jit(describe)
        self._match = {
            method: jax.jit(functools.partial(self._scores, method), static_argnames="grid")
            for method in METHODS
        }

    def with_variables(self, variables: model.Variables | None) -> "Predictor":
        """The same predictor of other variables of the same shapes; both share what is compiled."""
        other = copy.copy(self)
        other._variables = variables
        return other

    def check(self, method: str) -> None:
        """Raise `ConfigError` for an unknown method, or one that the model cannot do."""
        if method not in METHODS:
            raise ConfigError(f"method: {method!r} is none of {', '.join(METHODS)}")
        if method == "ag+" and not (self._features == "embedding" and self.config.variant == "AG+"):
            raise ConfigError("method: 'ag+' needs weights of an AG+ model; take ag, or lom")

    def describe(self, image: np.ndarray, boxes: np.ndarray) -> Side:
        """Vectors of the boxes of a picture.

        Args:
          image: uint8 RGB (h, w, 3) of any size.
          boxes: (n, 4) xyxy pixels of it; a box without a size is described, but never matches.

        Raises:
          DataError: no box, or boxes that are not finite numbers.
        """
        boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
        if not len(boxes):
            raise DataError("no region: give at least one box of each picture")
        if not np.isfinite(boxes).all():
            raise DataError(f"{int((~np.isfinite(boxes).all(axis=1)).sum())} boxes are not finite numbers")
        size, frame = image.shape[:2], self.config.image_size
        factors = frame[1] / size[1], frame[0] / size[0]
        padded = np.zeros((self._bucket(len(boxes)), 4))
        padded[: len(boxes)] = box_lib.scale(boxes.astype(np.float64), factors)
        if self._features == "hog":
            rows = np.zeros((len(padded), descriptors.HOG_CHANNELS), np.float32)
            rows[: len(boxes)] = descriptors.hog(image, boxes)
            vectors = {"appearance": jnp.asarray(rows)}
        else:
            picture = resize(image, frame, "bicubic")
            vectors = self._describe(self._variables, jnp.asarray(picture), jnp.asarray(padded, jnp.float32))
        return Side(size, boxes, padded, vectors)

    def match(self, source: Side, target: Side, *, method: str = "lom") -> Matches:
        """Scores of all matches of two described pictures, and the best for every source box.

        Args:
          source, target: of `describe`.
          method: one of `METHODS`. "ag+" needs an AG+ model; the others compare its appearance.

        Raises:
          ConfigError: an unknown method, or one that the model cannot do.
        """
        self.check(method)
        rows = max(len(source.frame_boxes), len(target.frame_boxes))
        sides = [_padded(side, rows) for side in (source, target)]
        if method in OWN_PIXELS:
            boxes, sizes = [side.pixel_boxes for side in sides], [side.size for side in sides]
        else:
            boxes, sizes = [side.frame_boxes for side in sides], [self.config.image_size] * 2
        grid = None
        if method in ("nam", "lom"):
            table = hough.aspect_gate(*boxes)
        elif method == "a":
            table = np.zeros((), np.int32)
        else:
            table = hough.bins(*boxes, *sizes, kind="phm" if method == "phm" else "scnet")
        if method == "phm":  # the grid is that of the target's size
            table, grid = hough.spread(table, hough.grid(sizes[1], kind="phm"))
        valid = [side.valid for side in sides]
        index, confidence, scores = jax.device_get(
            self._match[method](
                [side.vectors for side in sides],
                [jnp.asarray(one, jnp.float32) for one in boxes],
                jnp.asarray(table),
                [jnp.asarray(one) for one in valid],
                grid=grid,
            )
        )
        n, m = len(source.boxes), len(target.boxes)
        return Matches(index[:n], confidence[:n], scores[:n, :m])

    def _scores(self, method, vectors, boxes, table, valid, grid):
        """Traced: (index, confidence, scores) of padded sides."""
        self.compiles[method] += 1
        where = valid[0][:, None] & valid[1][None, :]
        similarity = {
            name: self._similarity(vectors[0][name], vectors[1][name], valid)
            for name in ("appearance", "geometry")
            if name in vectors[0] and (name == "appearance" or method == "ag+")
        }
        first = similarity["appearance"]
        if method == "nam":
            found = matching.nam(first, table, where=where)
        elif method == "lom":
            found = matching.lom(matching.nam(first, table, where=where), *boxes, where=where)
        elif method == "phm":
            found = matching.phm(first, table, grid, where=where)
        else:
            config = dataclasses.replace(self.config, variant=method.upper())
            bins = None if method == "a" else table
            found = model.scores(config, first, geometry=similarity.get("geometry"), bins=bins, where=where)
        return *matching.best_matches(found, where=where), found

    def _similarity(self, source, target, valid):
        if self._features == "embedding":
            return model.similarity(source, target)
        return descriptors.cosine(
            source, target, centre=self._centre, source_valid=valid[0], target_valid=valid[1]
        )

    def _bucket(self, count: int) -> int:
        for bucket in self._buckets:
            if count <= bucket:
                return bucket
        return -(-count // self._buckets[-1]) * self._buckets[-1]


def dense_flow(source: Side, target: Side, matches: Matches, *, unique: bool = False) -> flows.Flow:
    """The displacement of every source pixel by the most confident match that covers it.

    Matches with confidence 0 move nothing: no pixel is valid where nothing is similar.

    Args:
      source, target, matches: a pair and its matches.
      unique: of pixels that land on one target pixel only the most confident stays.
    """
    some = matches.confidence > 0
    found = flows.dense_flow(
        source.boxes[some],
        target.boxes[matches.index[some]],
        matches.confidence[some],
        source.size,
        target.size,
    )
    return flows.unique(found, target.size) if unique else found


class Points(NamedTuple):
    """Points moved to the target: `xy` (k, 2) pixels, NaN without a flow; `confidence`, `valid` (k,)."""

    xy: np.ndarray
    confidence: np.ndarray
    valid: np.ndarray


def transfer(keypoints: np.ndarray, flow: flows.Flow) -> Points:
    """Where points of the source lie in the target: (k, 2) pixels, moved by the flow of their pixel.

    A point outside the picture, absent (NaN) or in a pixel without a flow is not valid. The metrics'
    `transfer` moves annotated points just outside as well, which a person's answer should not pretend to.
    """
    keypoints = np.asarray(keypoints, np.float64).reshape(-1, 2)
    height, width = flow.valid.shape
    with np.errstate(invalid="ignore"):
        inside = (keypoints >= 0).all(axis=1) & (keypoints <= [width, height]).all(axis=1)
    row, column = point_lib.pixel_of(keypoints, (height, width))
    valid = inside & flow.valid[row, column]
    xy = np.where(valid[:, None], keypoints + flow.shift[row, column], np.nan)
    return Points(xy, np.where(valid, flow.confidence[row, column], 0), valid)


def _padded(side: Side, rows: int) -> Side:
    more = rows - len(side.frame_boxes)
    if not more:
        return side
    vectors = {name: jnp.pad(x, ((0, more), (0, 0))) for name, x in side.vectors.items()}
    return side._replace(frame_boxes=np.pad(side.frame_boxes, ((0, more), (0, 0))), vectors=vectors)
