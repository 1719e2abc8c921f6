"""`rank_requests`: which picture of a thing finds it best, and above which score."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sm_jax.data import Source
from sm_jax.data import images as pictures
from sm_jax.data.instances import Instance, cut
from sm_jax.errors import ConfigError, DataError
from sm_jax.evaluators import request_search as searching
from sm_jax.evaluators.damaged import Damaged
from sm_jax.evaluators.request_matchers import Matcher
from sm_jax.evaluators.request_metrics import (
    IOU_RULES,
    Point,
    at_threshold,
    best_threshold,
    curve,
    request_ap,
)


class Ranked(NamedTuple):
    """One request and how well it finds its class.

    Attributes:
      picture: (h, w, 3) uint8.
      ap: average precision.
      threshold: scores above it give the best F1; NaN for a request that found nothing.
      point: precision, recall and F1 there.
      instance: the object of the source that the picture shows; None for a picture that was given.
      number: of the picture among those given for its class; -1 for one of the source.
    """

    picture: np.ndarray
    ap: float
    threshold: float
    point: Point
    instance: Instance | None
    number: int


def rank_requests(
    matcher: Matcher,
    variables: Any,
    source: Source,
    *,
    requests: Mapping[str, Sequence[Any]] | None = None,
    max_requests: int = 20,
    negatives: int = 1000,
    min_side: float = 16,
    iou_rule: str = "fixed",
    seed: int = 0,
    progress: searching.Progress | None = None,
) -> dict[str, list[Ranked]]:
    """Rank requests by their average precision on annotated validation images (SSM spec sec. 6 and 9).

    A request of the source itself is not searched in the image that it was cut from.

    Args:
      matcher, variables: what searches (see `request_matchers`).
      source: the validation images; keep those of a test out of it.
      requests: class name of the source -> pictures (paths, encoded bytes, arrays); default: the objects of
        the source.
      max_requests: of a class, at random; 0: all. Given pictures are all ranked.
      negatives: images without the class that are searched, at random; 0: all.
      min_side: objects of the source have at least so many pixels each way.
      iou_rule: see `request_metrics.iou_limits`.
      seed: of what is drawn at random.
      progress: see `sm_jax.evaluators.make`.

    Returns:
      Class name -> its requests, the best first (ties: as given or as they are in the source). Requests that
      no image can judge are left out, and classes without a request.

    Raises:
      ConfigError: an option, or a class that the source does not have; ImageError: a given picture that
      cannot be used; DataError: nothing to rank.
    """
    if iou_rule not in IOU_RULES or min(max_requests, negatives, min_side, seed) < 0:
        raise ConfigError(f"rank_requests: iou_rule is one of {', '.join(IOU_RULES)}, no cap is negative")
    if not len(source):
        raise DataError("nothing to rank: the source has no pictures")
    progress = progress or (lambda items, _: items)
    names, everything = source.class_names, range(len(source))
    given: list[tuple[int, int, np.ndarray]] = []
    if requests is None:
        listed = searching.instances(source, everything, min_side=min_side)
        chosen = searching.sample(listed, cap=max_requests, seed=seed)
        candidates, refused = searching.encode(matcher, variables, source, chosen, progress=progress)
    else:
        given, refused = _given(requests, names), []
        candidates = [
            searching.Candidate(label, None, matcher.encode(variables, picture))
            for _, label, picture in progress(given, "requests")
        ]
    if not candidates:
        raise DataError(f"nothing to rank: {refused[0] if refused else 'no class has a request'}")
    found = searching.search(
        matcher,
        variables,
        candidates,
        source,
        searching.scenes(source, everything, names),
        negatives=negatives,
        rule=iou_rule,
        seed=seed,
        damaged=Damaged(),
        progress=progress,
    )
    ranked: dict[str, list[Ranked]] = {}
    for position, (candidate, mine) in enumerate(zip(candidates, found, strict=True)):
        own = candidate.instance and candidate.instance.index
        line = curve(searching.outcomes(mine, leave_out=own))
        if not line.positives:
            continue
        threshold = best_threshold(line)
        if given:
            number, _, picture = given[position]
        else:
            number, picture = -1, cut(source.image(own), candidate.instance.box)
        ranked.setdefault(names[candidate.label], []).append(
            Ranked(
                picture=picture,
                ap=request_ap(line),
                threshold=threshold,
                point=at_threshold(line, threshold),
                instance=candidate.instance,
                number=number,
            )
        )
    if not ranked:
        raise DataError("nothing to rank: no class is in an image other than that of its request")
    return {name: sorted(ranked[name], key=lambda one: -one.ap) for name in names if name in ranked}


def _given(requests: Mapping[str, Sequence[Any]], names: list[str]) -> list[tuple[int, int, np.ndarray]]:
    """(number in its class, label, picture) of each given picture."""
    unknown = [name for name in requests if name not in names]
    if unknown:
        raise ConfigError(f"rank_requests: the source has no class {unknown[0]!r}")
    return [
        (number, names.index(name), pictures.as_image(picture, name=f"request {number} of {name!r}"))
        for name, some in requests.items()
        for number, picture in enumerate(some)
    ]
