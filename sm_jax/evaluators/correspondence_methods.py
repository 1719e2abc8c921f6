"""Methods for `CorrespondenceEvaluator`: SCNet itself, and NAM, PHM and LOM on features of any kind.

Regions and features are computed once for a picture while its pairs follow one another. NAM, PHM and LOM
work in the pictures' own pixels, SCNet in its square frame. Sources: Proposal Flow (CVPR 2016), sec. 3; SCNet
(ICCV 2017); specification sec. 5 and 10.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sm_jax.data import images
from sm_jax.data.scnet import ProposalOptions, square
from sm_jax.data.scnet_pairs import to_square
from sm_jax.data.sources.pair_records import KeypointPair
from sm_jax.errors import ConfigError
from sm_jax.evaluators.correspondence import Match, Matches
from sm_jax.ops import hough, matching
from sm_jax.systems.scnet import descriptors, model

Array = jax.Array

MATCHERS = ("nam", "phm", "lom")
FEATURES = ("hog", "pool", "embedding")
KEPT = 24  # pictures whose features are in memory; PF-WILLOW pairs the 10 of a folder

Describe = Callable[[np.ndarray, np.ndarray], Any]
"""A uint8 picture and its regions "k 4", in its pixels, padded to a fixed number -> features "k d"."""


class Regions(NamedTuple):
    """What is known of a picture.

    Attributes:
      boxes: (n, 4) xyxy pixels, rows from `count` on are 0.
      count: real ones.
      size: (height, width).
      features: what describes them; rows from `count` on mean nothing.
    """

    boxes: np.ndarray
    count: int
    size: tuple[int, int]
    features: Any

    @property
    def valid(self) -> np.ndarray:
        """bool (n,)."""
        return np.arange(len(self.boxes)) < self.count


def scnet(config: model.ModelConfig, proposals: ProposalOptions) -> Callable[[Any], Match]:
    """SCNet: the best target region by the variant's score."""
    encode, score = _encode(config), jax.jit(functools.partial(model.match, config))

    def start(variables: Any) -> Match:
        def describe(image: np.ndarray, boxes: np.ndarray) -> dict[str, Array]:
            frame = to_square(boxes, image.shape[:2])
            return encode(variables, {"image": square(image)[None], "boxes": frame[None]})

        regions = _remembered(describe, proposals)

        def match(pair: KeypointPair) -> Matches:
            source, target = regions(pair.source), regions(pair.target)
            bins = None
            if config.variant != "A":
                frames = [to_square(one.boxes, one.size) for one in (source, target)]
                bins = hough.bins(*frames, config.image_size, config.image_size)[None]
            where = (source.valid[:, None] & target.valid[None, :])[None]
            scores = score(source.features, target.features, bins=bins, where=where)[0]
            return _best(scores, source, target)

        return match

    return start


def untrained(
    matcher: str,
    describe: Callable[[Any], Describe],
    proposals: ProposalOptions,
    *,
    centred: bool = True,
) -> Callable[[Any], Match]:
    """NAM, PHM or LOM on the cosine of features.

    Args:
      matcher: one of `MATCHERS`.
      describe: variables -> `Describe`, such as `hog` or `pool(config)`.
      proposals: regions of a picture.
      centred: features less their mean over the regions of both pictures, which stands in for the published
        whitening (see `descriptors`); SCNet's own embeddings do without.

    Raises:
      ConfigError: an unknown matcher.
    """
    if matcher not in MATCHERS:
        raise ConfigError(f"eval.method: {matcher!r} is none of model, {', '.join(MATCHERS)}")

    def start(variables: Any) -> Match:
        regions = _remembered(describe(variables), proposals)

        def match(pair: KeypointPair) -> Matches:
            source, target = regions(pair.source), regions(pair.target)
            where = source.valid[:, None] & target.valid[None, :]
            alike = _cosines(
                source.features,
                target.features,
                centre=centred,
                source_valid=source.valid,
                target_valid=target.valid,
            )
            if matcher == "phm":
                bins = hough.bins(source.boxes, target.boxes, source.size, target.size, kind="phm")
                scores = _phm(alike, bins, hough.grid(target.size, kind="phm"), where)
            else:
                scores = _nam(alike, hough.aspect_gate(source.boxes, target.boxes), where)
                if matcher == "lom":
                    scores = _lom(scores, source.boxes, target.boxes, where)
            return _best(scores, source, target)

        return match

    return start


def hog(variables: Any = None) -> Describe:
    """Plain histograms of oriented gradients (`descriptors.hog`) of every region; no variables.

    The published features are Felzenszwalb's with statistics for whitening that were not released.
    """
    del variables
    return descriptors.hog


def pool(config: model.ModelConfig) -> Callable[[Any], Describe]:
    """Features of the trunk pooled from every region, as SCNet embeds them."""

    @jax.jit
    def pooled(variables, image, boxes):
        found = model.pooled(config, variables, {"image": image, "boxes": boxes})
        return found.reshape(*found.shape[1:2], -1).astype(jnp.float32)

    def start(variables: Any) -> Describe:
        def describe(image: np.ndarray, boxes: np.ndarray) -> Array:
            return pooled(variables, square(image)[None], to_square(boxes, image.shape[:2])[None])

        return describe

    return start


def embedding(config: model.ModelConfig) -> Callable[[Any], Describe]:
    """SCNet's appearance embedding of every region."""
    encode = _encode(config)

    def start(variables: Any) -> Describe:
        def describe(image: np.ndarray, boxes: np.ndarray) -> Array:
            frame = to_square(boxes, image.shape[:2])[None]
            return encode(variables, {"image": square(image)[None], "boxes": frame})["appearance"][0]

        return describe

    return start


def _encode(config: model.ModelConfig) -> Callable[..., dict[str, Array]]:
    return jax.jit(functools.partial(model.encode, config))


def _remembered(describe: Describe, proposals: ProposalOptions) -> Callable[[Path], Regions]:
    @functools.lru_cache(maxsize=KEPT)
    def regions(path: Path) -> Regions:
        image = images.read_image(path, orient=False)
        found = proposals.of(image)
        boxes = np.pad(found, ((0, proposals.count - len(found)), (0, 0)))
        return Regions(boxes, len(found), image.shape[:2], describe(image, boxes))

    return regions


@functools.partial(jax.jit, static_argnames="centre")
def _cosines(*sides: Array, centre: bool, **valid: Array) -> Array:
    return descriptors.cosine(*sides, centre=centre, **valid)


@jax.jit
def _nam(alike: Array, gate: Array, where: Array) -> Array:
    return matching.nam(alike, gate, where=where)


@functools.partial(jax.jit, static_argnums=2)
def _phm(alike: Array, bins: Array, grid: hough.Grid, where: Array) -> Array:
    return matching.phm(alike, bins, grid, where=where)


@jax.jit
def _lom(scores: Array, source: Array, target: Array, where: Array) -> Array:
    return matching.lom(scores, source, target, where=where)


def _best(scores: Array, source: Regions, target: Regions) -> Matches:
    """The best match of every real source region."""
    scores = np.asarray(scores)[: source.count, : target.count]
    index = scores.argmax(axis=1)
    return Matches(source.boxes[: source.count], target.boxes[index], scores[np.arange(len(index)), index])
