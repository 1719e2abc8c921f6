"""Methods for `CorrespondenceEvaluator`: SCNet itself, and NAM, PHM and LOM on features of any kind.

They are those of `systems.scnet.predict`, which also serves people's pictures. Regions and features are
computed once for a picture while its pairs follow one another. Sources: Proposal Flow (CVPR 2016), sec. 3;
SCNet (ICCV 2017); specification sec. 5 and 10.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sm_jax.data import images
from sm_jax.data.scnet import ProposalOptions
from sm_jax.data.sources.pair_records import KeypointPair
from sm_jax.errors import ConfigError
from sm_jax.evaluators.correspondence import Match, Matches
from sm_jax.systems.scnet import model, predict

MATCHERS = predict.OWN_PIXELS
FEATURES = {"hog": "hog", "pool": "roi", "embedding": "embedding"}
"""What a config calls features -> what `predict.Predictor` does."""
KEPT = 24  # pictures whose features are in memory; PF-WILLOW pairs the 10 of a folder


def scnet(config: model.ModelConfig, proposals: ProposalOptions) -> Callable[[Any], Match]:
    """SCNet: the best target region by the variant's score."""
    return _method(predict.Predictor(config, buckets=(proposals.count,)), proposals, config.variant.lower())


def untrained(
    matcher: str,
    features: str,
    config: model.ModelConfig,
    proposals: ProposalOptions,
    *,
    centred: bool = True,
) -> Callable[[Any], Match]:
    """NAM, PHM or LOM on the cosine of features.

    Args:
      matcher: one of `MATCHERS`.
      features: "hog" (`descriptors.hog`, no variables), "pool" (the trunk's, pooled from every region) or
        "embedding" (SCNet's of appearance).
      config: the model; of "hog" nothing is read.
      proposals: regions of a picture.
      centred: of "hog" and "pool": less their mean over the regions of both pictures, which stands in for the
        published whitening (see `descriptors`).

    Raises:
      ConfigError: an unknown matcher, or unknown features.
    """
    for name, value, known in (
        ("method", matcher, ("model", *MATCHERS)),
        ("features", features, FEATURES),
    ):
        if value not in known:
            raise ConfigError(f"eval.{name}: {value!r} is none of {', '.join(known)}")
    predictor = predict.Predictor(
        config, features=FEATURES[features], centre=centred, buckets=(proposals.count,)
    )
    return _method(predictor, proposals, matcher)


def _method(predictor: predict.Predictor, proposals: ProposalOptions, method: str) -> Callable[[Any], Match]:
    def start(variables: Any) -> Match:
        mine = predictor.with_variables(variables)

        @functools.lru_cache(maxsize=KEPT)
        def side(path: Path) -> predict.Side:
            image = images.read_image(path, orient=False)
            return mine.describe(image, proposals.of(image, path))

        def match(pair: KeypointPair) -> Matches:
            source, target = side(pair.source), side(pair.target)
            found = mine.match(source, target, method=method)
            return Matches(source.boxes, target.boxes[found.index], found.confidence)

        return match

    return start
