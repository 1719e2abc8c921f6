"""Which requests are searched in which images, and the search: each image is read and encoded once."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sm_jax.data import Source, order
from sm_jax.data.instances import Instance, cut
from sm_jax.errors import ImageError
from sm_jax.evaluators.damaged import Damaged
from sm_jax.evaluators.request_matchers import Encoded, Matcher
from sm_jax.evaluators.request_metrics import Outcome, match

SHOWN = 20  # best detections whose boxes are kept, for pictures
_PARTS, _REQUESTS, _NEGATIVES = 0, 1, 2  # random streams
Progress = Callable[[Iterable, str], Iterable]


class Scene(NamedTuple):
    """One image to search: its index in its source, and what is there; labels are of the requests' source."""

    index: int
    image_id: str
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray


class Candidate(NamedTuple):
    """One request: its class, the object it shows (None: a picture from elsewhere), and its encoding."""

    label: int
    instance: Instance | None
    encoded: Encoded


class Found(NamedTuple):
    """One request in one image: the outcome, and the boxes (k, 4) of its first k detections (`SHOWN`)."""

    outcome: Outcome
    boxes: np.ndarray


def instances(source: Source, indices: Iterable[int], *, min_side: float) -> list[Instance]:
    """The objects of these images that can be requests: not difficult, no side under `min_side` pixels."""
    listed = []
    for index in indices:
        entry = source.annotation(index)
        for number, (box, label, difficult) in enumerate(
            zip(entry["boxes"], entry["labels"], entry["difficult"], strict=True)
        ):
            if not difficult and min(box[2] - box[0], box[3] - box[1]) >= min_side:
                listed.append(Instance(index, number, int(label), box, entry["image_id"]))
    return listed


def split(count: int, *, share: float, seed: int) -> tuple[list[int], list[int]]:
    """(validation, test): positions 0..count-1 divided at random, some for each.

    All are for testing if `share` is 0 or there is only one.
    """
    validation = round(share * count)
    if share > 0 and count > 1:
        validation = min(max(validation, 1), count - 1)
    mixed = order.rng(seed, _PARTS).permutation(count)
    return sorted(mixed[:validation].tolist()), sorted(mixed[validation:].tolist())


def sample(listed: Sequence[Instance], *, cap: int, seed: int) -> list[Instance]:
    """At most `cap` random instances of each class (0: all), by image and box."""
    by_label: dict[int, list[Instance]] = {}
    for instance in listed:
        by_label.setdefault(instance.label, []).append(instance)
    chosen = []
    for label, members in by_label.items():
        mixed = order.rng(seed, _REQUESTS, label).permutation(len(members))
        chosen += [members[position] for position in mixed[: cap or None]]
    return sorted(chosen, key=lambda instance: (instance.index, instance.box_index))


def scenes(source: Source, indices: Iterable[int], class_names: Sequence[str]) -> list[Scene]:
    """The images with their labels as indices of `class_names`; boxes of other classes are left out."""
    number = {name: label for label, name in enumerate(class_names)}
    table = np.array([number.get(name, -1) for name in source.class_names], np.int64)
    listed = []
    for index in indices:
        entry = source.annotation(index)
        labels = table[entry["labels"]]
        known = labels >= 0
        kept = [entry[key][known] for key in ("boxes", "difficult")]
        listed.append(Scene(index, entry["image_id"], kept[0], labels[known], kept[1]))
    return listed


def wanted(
    listed: Sequence[Scene], labels: Collection[int], *, negatives: int, seed: int
) -> list[frozenset[int]]:
    """For each scene the classes that are searched in it: all scenes that show a class, and some others.

    Every class takes its first `negatives` scenes (0: all) of one random order, so that few images serve all
    classes.
    """
    present = [frozenset(scene.labels.tolist()) for scene in listed]
    left = dict.fromkeys(labels, negatives or len(listed))
    result: list[set[int]] = [set() for _ in listed]
    for position in order.rng(seed, _NEGATIVES).permutation(len(listed)).tolist():
        for label in labels:
            if label in present[position]:
                result[position].add(label)
            elif left[label]:
                left[label] -= 1
                result[position].add(label)
    return [frozenset(some) for some in result]


def encode(
    matcher: Matcher, variables: Any, source: Source, chosen: Sequence[Instance], *, progress: Progress
) -> tuple[list[Candidate], list[str]]:
    """The requests, and a line for each that cannot be one: a damaged image, or refused by the matcher."""
    candidates, refused, last, image = [], [], None, None
    for instance in progress(chosen, "requests"):
        try:
            if instance.index != last:
                last, image = instance.index, None
                image = source.image(instance.index)
            if image is None:  # of which the first request told
                continue
            encoded = matcher.encode(variables, cut(image, instance.box))
        except ImageError as error:
            name = source.class_names[instance.label]
            refused.append(f"request {name} in {instance.image_id}, box {instance.box_index}: {error}")
            continue
        candidates.append(Candidate(instance.label, instance, encoded))
    return candidates, refused


def search(
    matcher: Matcher,
    variables: Any,
    candidates: Sequence[Candidate],
    source: Source,
    listed: Sequence[Scene],
    *,
    negatives: int,
    rule: str,
    seed: int,
    damaged: Damaged,
    progress: Progress,
) -> list[dict[int, Found]]:
    """For each request, what it found: index of the image -> `Found`; damaged images are left out."""
    labels = sorted({candidate.label for candidate in candidates})
    result: list[dict[int, Found]] = [{} for _ in candidates]
    asked = wanted(listed, labels, negatives=negatives, seed=seed)
    todo = [(scene, some) for scene, some in zip(listed, asked, strict=True) if some]
    for scene, some in progress(todo, "images"):
        try:
            image = source.image(scene.index)
        except ImageError as error:
            damaged.add("image", str(error), total=len(todo))
            continue
        mine = [position for position, candidate in enumerate(candidates) if candidate.label in some]
        found = matcher.search(variables, image, [candidates[position].encoded for position in mine])
        for position, one in zip(mine, found, strict=True):
            rows = scene.labels == candidates[position].label
            outcome = match(
                one["boxes"], one["scores"], scene.boxes[rows], difficult=scene.difficult[rows], rule=rule
            )
            best = np.argsort(-np.asarray(one["scores"]), kind="stable")[: SHOWN if rows.any() else 0]
            result[position][scene.index] = Found(outcome, np.asarray(one["boxes"], np.float32)[best])
    return result


def outcomes(found: Mapping[int, Found], *, leave_out: int | None = None) -> list[Outcome]:
    """The outcomes of one request, without the image of index `leave_out`."""
    return [one.outcome for index, one in found.items() if index != leave_out]
