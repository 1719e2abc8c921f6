"""Detection by request: how well one picture of a class finds the others (SSM spec sec. 6; docs/requests.md).

Every object of the test images can be a request. A request is searched in the test images, with and without
the one that it was cut from, and in validation images, which alone decide what the best request of a class is
and where its threshold lies.
"""

import dataclasses
import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from sm_jax import data as data_lib
from sm_jax import settings
from sm_jax.errors import ConfigError, DataError
from sm_jax.evaluators import request_matchers, request_plots, request_report
from sm_jax.evaluators import request_search as searching
from sm_jax.evaluators.damaged import Damaged
from sm_jax.evaluators.request_metrics import (
    IOU_RULES,
    ClassScore,
    RequestScore,
    score_classes,
    score_request,
    summarize,
)

PROTOCOL = "requests/1"
GROUPS = ("seen", "unseen", "all")
VARIANTS = {"leave-one-out": "", "self-match": "_self"}
"""What happens to the image that a request was cut from, and the ending of the metrics' names."""

METRICS = tuple(
    f"{name}_mAP" if name in ("average", "top", "comparable") else name for name in ClassScore._fields
)


@dataclasses.dataclass(frozen=True)
class RequestOptions:
    """Config section `eval.requests`.

    Attributes:
      threshold: the score that all requests share for precision and recall; scores above it count.
      max_requests: at most so many requests of a class, at random; 0: all.
      negatives: at most so many images without a class are searched for it; 0: all.
      min_side: a request has at least so many pixels each way.
      iou_rule: "fixed" or "ilsvrc" (see `request_metrics.iou_limits`).
      validation: the split with the validation images; "": a random share of the images of the same split.
      validation_share: that share; 0: no validation, so no best request.
      seed: of everything that is drawn at random.
      shelf_classes: number of classes of the generated shelves, few enough to recur; 0: their usual number.
    """

    threshold: float = 0.5
    max_requests: int = 20
    negatives: int = 1000
    min_side: float = 16
    iou_rule: str = "fixed"
    validation: str = ""
    validation_share: float = 0.3
    seed: int = 0
    shelf_classes: int = 24

    def __post_init__(self):
        for name in ("max_requests", "negatives", "min_side", "seed", "shelf_classes"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"eval.requests.{name}: must not be negative, not {getattr(self, name)}")
        if not math.isfinite(self.threshold):
            raise ConfigError(f"eval.requests.threshold: must be a number, not {self.threshold}")
        if not 0 <= self.validation_share < 1:
            raise ConfigError(
                f"eval.requests.validation_share: must be within [0, 1), not {self.validation_share}"
            )
        if self.iou_rule not in IOU_RULES:
            raise ConfigError(f"eval.requests.iou_rule: {self.iou_rule!r} is none of {', '.join(IOU_RULES)}")


def make(config: Any, *, progress=None) -> dict[str, "RequestEvaluator"]:
    """An evaluator for each split of `config.eval.splits`; options are those of `config.eval.requests`."""
    options = settings.from_section(
        RequestOptions, config.eval.get("requests", {}), section="config.eval.requests"
    )
    matcher, seen = request_matchers.make(config), seen_classes(config.data)
    validation = _source(config.data, options.validation, options) if options.validation else None
    if options.validation in config.eval.splits:
        raise ConfigError(
            f"eval.requests.validation: {options.validation!r} is what is evaluated; "
            "name another split, or none to divide its images"
        )
    return {
        split: RequestEvaluator(
            matcher,
            _source(config.data, split, options),
            validation=validation,
            seen=seen,
            name=split,
            max_images=config.eval.max_images,
            options=options,
            progress=progress,
        )
        for split in config.eval.splits
    }


def metric_names(config: Any) -> list[str]:
    """Every name that evaluation can give; only the groups that the data has are given."""
    return [
        f"{split}/{group}/{metric}{ending}"
        for split in config.eval.splits
        for group in GROUPS
        for ending in VARIANTS.values()
        for metric in METRICS
    ]


def seen_classes(data: Any) -> frozenset[str] | None:
    """Names of the classes of the training split of config section `data`; None if it has none."""
    try:
        return frozenset(data_lib.make_source(data, "train").class_names)
    except DataError:
        return None


class RequestEvaluator:
    """The protocol on one source.

    Attributes, after `run`:
      candidates: the requests (`request_search.Candidate`).
      scores: variant ("leave-one-out", "self-match") -> the `RequestScore` of each request.
      classes: variant -> label -> `ClassScore`.
      summaries: group ("seen" and "unseen", or "all" where that is not known) -> variant -> `ClassScore` of
        means over the classes.
      found: for each request, index of a test image -> `request_search.Found`.
      images: number of images searched: "validation", "test".
      skipped: a line for each damaged image and each refused request.
      notes: lines on classes that were left out.
    """

    headline = ("average_mAP", "top_mAP")
    """What training prints of the metrics."""

    def __init__(
        self,
        matcher: request_matchers.Matcher,
        source: data_lib.Source,
        *,
        validation: data_lib.Source | None = None,
        seen: Collection[str] | None = None,
        name: str = "",
        max_images: int = 0,
        options: RequestOptions | None = None,
        progress=None,
    ):
        """Make an evaluator.

        Args:
          matcher: what finds; see `request_matchers`.
          source: the test images, from which the requests are cut too.
          validation: the validation images, whose classes are told by name; None: a share of `source`.
          seen: names of the classes that training saw; None: not known.
          name: of the split, for the report.
          max_images: at most so many evenly spaced images of `source`; 0: all.
          options: see `RequestOptions`.
          progress: see `sm_jax.evaluators.make`.

        Raises:
          ConfigError: an option that cannot be used; DataError: no pictures, no request, or an image that is
            both for validation and for testing.
        """
        if max_images < 0:
            raise ConfigError(f"eval.max_images: must not be negative, not {max_images}")
        if not len(source):
            raise DataError("nothing to evaluate: the split has no pictures")
        self.options, self.name, self.source = options or RequestOptions(), name, source
        self._matcher, self._seen = matcher, None if seen is None else frozenset(seen)
        self._progress = progress or (lambda items, _: items)
        count = min(len(source), max_images or len(source))
        indices = np.unique(np.linspace(0, len(source) - 1, count).round().astype(int)).tolist()
        self.validation_source, held = validation, []
        if validation is None:
            self.validation_source = source
            held, kept = searching.split(
                len(indices), share=self.options.validation_share, seed=self.options.seed
            )
            held, indices = [indices[i] for i in held], [indices[i] for i in kept]
        else:
            held = range(len(validation))
        names = source.class_names
        self._test = searching.scenes(source, indices, names)
        self._validation = searching.scenes(self.validation_source, held, names)
        both = {scene.image_id for scene in self._test} & {scene.image_id for scene in self._validation}
        if validation is not None and both:
            raise DataError(
                f"{len(both)} images are in the validation and in the test split (such as {min(both)}); the "
                "best request would be chosen on the images that measure it"
            )
        listed = searching.instances(source, indices, min_side=self.options.min_side)
        self._chosen = searching.sample(listed, cap=self.options.max_requests, seed=self.options.seed)
        if not self._chosen:
            raise DataError(
                "nothing to evaluate: no test image has an object that can be a request (not difficult, "
                f"{self.options.min_side:g} pixels or more each way)"
            )
        self.candidates: list[searching.Candidate] = []
        self.scores: dict[str, list[RequestScore]] = {}
        self.classes: dict[str, dict[int, ClassScore]] = {}
        self.summaries: dict[str, dict[str, ClassScore]] = {}
        self.found: list[dict[int, searching.Found]] = []
        self.images: dict[str, int] = {}
        self.skipped: list[str] = []
        self.notes: list[str] = []

    @property
    def class_names(self) -> list[str]:
        """Names of the source's classes; the index is the label."""
        return self.source.class_names

    def group_of(self, label: int) -> str:
        """The group that a class belongs to."""
        if self._seen is None:
            return "all"
        return "seen" if self.class_names[label] in self._seen else "unseen"

    def run(self, variables: Any) -> Iterator[tuple[str, float]]:
        """Search and score; yields `GROUP/METRIC` for `METRICS`, those of `ClassScore`.

        They are leave-one-out; with the ending `_self` the image of the request itself is searched too.
        """
        damaged = Damaged()
        self.candidates, refused = searching.encode(
            self._matcher, variables, self.source, self._chosen, progress=self._progress
        )
        if not self.candidates:
            raise DataError(f"nothing to evaluate: no request can be used ({refused[0]})")
        found = {
            part: searching.search(
                self._matcher,
                variables,
                self.candidates,
                source,
                scenes,
                negatives=self.options.negatives,
                rule=self.options.iou_rule,
                seed=self.options.seed,
                damaged=damaged,
                progress=self._progress,
            )
            for part, source, scenes in (
                ("validation", self.validation_source, self._validation),
                ("test", self.source, self._test),
            )
        }
        self.found, self.skipped = found["test"], refused + damaged.lines
        self.images = {part: len(set().union(*parts)) for part, parts in found.items()}
        if not self.images["test"]:
            raise DataError(f"nothing to evaluate: no picture can be read ({self.skipped[0]})")
        for variant in VARIANTS:
            self.scores[variant] = [
                score_request(
                    candidate.label,
                    searching.outcomes(
                        tested, leave_out=candidate.instance.index if variant == "leave-one-out" else None
                    ),
                    searching.outcomes(before),
                    threshold=self.options.threshold,
                )
                for candidate, tested, before in zip(
                    self.candidates, found["test"], found["validation"], strict=True
                )
            ]
            self.classes[variant] = score_classes(self.scores[variant])
        self.notes = self._left_out()
        asked = {candidate.label for candidate in self.candidates}
        present = {self.group_of(label) for label in asked}
        for group in [group for group in GROUPS if group in present]:
            self.summaries[group] = {}
            for variant, ending in VARIANTS.items():
                members = {k: v for k, v in self.classes[variant].items() if self.group_of(k) == group}
                self.summaries[group][variant] = summarize(members)
                for metric, value in zip(METRICS, self.summaries[group][variant], strict=True):
                    yield f"{group}/{metric}{ending}", value

    def table(self) -> str:
        """The protocol, the metrics of each group and the worst classes, as text."""
        return request_report.table(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything measured, down to each request, as plain values."""
        return request_report.to_dict(self)

    def pictures(self, folder: Path, *, count: int) -> list[Path]:
        """Draw precision against recall per class, and worst and best request of up to `count` classes."""
        return request_plots.draw(self, folder, count=count)

    def protocol(self) -> dict[str, Any]:
        """What must be equal for two results to be comparable."""
        options = dataclasses.asdict(self.options)
        del options["shelf_classes"]  # which says what the data are
        return {"id": PROTOCOL, "split": self.name, "images": self.images} | options

    def _left_out(self) -> list[str]:
        """A line for each reason why a class of the test images has no number, with names."""
        there = {int(label) for scene in self._test for label in scene.labels[~scene.difficult]}
        asked = {candidate.label for candidate in self.candidates}
        chosen = {label for label, score in self.classes["self-match"].items() if not np.isnan(score.top)}
        one_image = asked - set(self.classes["leave-one-out"])
        reasons = {
            "without a request": there - asked,
            "in a single test image, so only with self-match": one_image,
            "not in the validation images, so without best request": asked - chosen,
        }
        return [_listed(labels, why, self.class_names) for why, labels in reasons.items() if labels]


def _listed(labels: Collection[int], why: str, names: list[str]) -> str:
    some = ", ".join(names[label] for label in sorted(labels)[:5])
    more = ", ..." if len(labels) > 5 else ""
    return f"{len(labels)} {'class' if len(labels) == 1 else 'classes'} {why}: {some}{more}"


def _source(data: Any, split: str, options: RequestOptions) -> data_lib.Source:
    """The split; shelves with few classes, so that each is in several images (their scenes are then others
    than those of training)."""
    if data.source == "shelves" and options.shelf_classes:
        data = ConfigDict(data.to_dict())
        data.shelves = {**data.get("shelves", {}), "num_classes": options.shelf_classes}
    return data_lib.make_source(data, split)
