"""How well a method matches pictures of pairs with key-points: PCK, PCR and mIoU@k, whatever the method.

A method is a function of a model's variables that gives `Match`: from a pair to `Matches` in pixels of its
two pictures. Everything after that is the same code for all of them. Sources: SCNet (ICCV 2017), sec. 5;
Proposal Flow (CVPR 2016), sec. 4; specification sec. 7 and 8.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sm_jax import boxes as box_lib
from sm_jax.data import images
from sm_jax.data.scnet_pairs import common, label_regions
from sm_jax.data.sources.pair_records import KeypointPair, protocol_id
from sm_jax.errors import ConfigError, DataError, ImageError
from sm_jax.evaluators import correspondence_metrics as metrics
from sm_jax.evaluators import correspondence_plots, correspondence_report
from sm_jax.evaluators.correspondence_report import alpha_name
from sm_jax.evaluators.damaged import Damaged
from sm_jax.ops.flow import dense_flow

ALPHAS = (0.01, 0.05, 0.1, 0.15)
SHOWN_IOU = 0.5


class Matches(NamedTuple):
    """The match of every region of a source picture, as any method gives it: boxes, so that what is measured
    need not choose among given regions, as those of `systems.scnet.predict.Matches` do.

    Attributes:
      source_boxes: (n, 4) xyxy pixels of the source picture.
      target_boxes: (n, 4) pixels of the target picture: row by row what they match.
      confidence: (n,) score of the match.
    """

    source_boxes: np.ndarray
    target_boxes: np.ndarray
    confidence: np.ndarray


Match = Callable[[KeypointPair], Matches]


class Measured(NamedTuple):
    """One pair.

    Attributes:
      pair: the pair.
      moved: (k, 2) where the source key-points go, NaN where nowhere.
      distances: by normaliser, of the present key-points.
      overlaps: of every active region's match with its true box; none where no spline fits the points.
      confidence: of those.
    """

    pair: KeypointPair
    moved: np.ndarray
    distances: dict[str, np.ndarray]
    overlaps: np.ndarray
    confidence: np.ndarray


def measure(
    matches: Matches,
    pair: KeypointPair,
    source_size: tuple[int, int],
    target_size: tuple[int, int],
    *,
    norms: Sequence[str],
) -> Measured:
    """Key-points moved by the dense flow of the matches, and regions against their true boxes."""
    source, target = common(pair.keypoints_source, pair.keypoints_target)
    flow = dense_flow(*matches, source_size, target_size)
    moved = metrics.transfer(source, flow.shift)
    distances = {
        norm: metrics.keypoint_distances(moved, target, norm=norm, target_size=target_size, source=source)
        for norm in norms
    }
    none = np.zeros(0)
    try:
        labels = label_regions(
            matches.source_boxes, np.zeros((0, 4)), source, target, source_size, target_size
        )
    except DataError:  # the points say where they are, but not where regions are
        return Measured(pair, moved, distances, none, none)
    found = np.asarray(matches.target_boxes, np.float64)[labels.active]
    overlaps = _rowwise_iou(found, labels.boxes[labels.active])
    return Measured(pair, moved, distances, overlaps, np.asarray(matches.confidence)[labels.active])


class CorrespondenceEvaluator:
    """A method on a list of pairs.

    Attributes, after `run`:
      measured: of every pair that could be read.
      pcr, miou: curves over tau (101,) and k (100,).
      protocol: what was measured, in one word: pairs, normalisers, rule.
    """

    headline = ("PCK@0.10", "PCR_AuC")

    def __init__(
        self,
        method: Callable[[Any], Match],
        pairs: Sequence[KeypointPair],
        *,
        name: str = "",
        norms: Sequence[str] = ("bbox",),
        alphas: Sequence[float] = ALPHAS,
        notes: Sequence[str] = (),
        progress=None,
    ):
        """Make an evaluator.

        Args:
          method: variables -> `Match`.
          pairs: what to match.
          name: of the method, for the report.
          norms: of `correspondence_metrics.NORMALIZERS`; the first is that of the table by class.
          alphas: shares of the normaliser up to which a key-point is right; named by `alpha_name`.
          notes: lines for the report, such as on an overlap with what was trained on.
          progress: see `sm_jax.evaluators.make`.

        Raises:
          DataError: no pairs. ConfigError: an unknown normaliser, an alpha that is none, or one twice.
        """
        if not len(pairs):
            raise DataError("nothing to evaluate: there are no pairs")
        if not norms or not set(norms) <= set(metrics.NORMALIZERS):
            raise ConfigError(f"eval.norms: {tuple(norms)}; take some of {', '.join(metrics.NORMALIZERS)}")
        if not alphas or not all(0 < alpha < math.inf for alpha in alphas):
            raise ConfigError(f"eval.alphas: some positive numbers, not {tuple(alphas)}")
        if len(set(map(alpha_name, alphas))) < len(alphas):
            raise ConfigError(f"eval.alphas: give each once, not {tuple(alphas)}")
        self._method, self.pairs, self.name = method, list(pairs), name
        self.norms, self.alphas, self.notes = tuple(norms), tuple(alphas), list(notes)
        self._progress = progress or (lambda items, _: items)
        self._sizes: dict[Path, tuple[int, int]] = {}
        self._damaged = Damaged()
        self.measured: list[Measured] = []
        self.pcr, self.miou = np.zeros(0), np.zeros(0)
        self.protocol = f"{protocol_id(self.pairs)}-{'+'.join(self.norms)}-{correspondence_report.RULE}"

    @property
    def skipped(self) -> list[str]:
        """A line for each pair that was left out because a picture is damaged."""
        return self._damaged.lines

    def run(self, variables: Any) -> Iterator[tuple[str, float]]:
        """Match and measure; yields `NORM/PCK@ALPHA` (mean over pairs), `NORM/class_PCK@ALPHA` (mean over
        classes), `PCR@0.50`, `PCR_AuC` and `mIoU_AuC`."""
        self._damaged, self.measured = Damaged(), []
        match = self._method(variables)
        for pair in self._progress(self.pairs, "pairs"):
            try:
                sizes = self._size(pair.source), self._size(pair.target)
                matches = match(pair)
            except ImageError as error:
                self._damaged.add("pair", str(error), total=len(self.pairs))
                continue
            self.measured.append(measure(matches, pair, *sizes, norms=self.norms))
        if not self.measured:
            raise DataError(f"nothing to evaluate: no pair can be read ({self.skipped[0]})")
        self.pcr = metrics.pcr([one.overlaps for one in self.measured])
        self.miou = metrics.miou_at_k(
            [one.overlaps for one in self.measured], [one.confidence for one in self.measured]
        )
        for norm in self.norms:
            for alpha in self.alphas:
                yield f"{norm}/PCK@{alpha_name(alpha)}", self.pck(norm, alpha)[0]
                yield f"{norm}/class_PCK@{alpha_name(alpha)}", self.pck_by_class(norm, alpha)[0]
        yield f"PCR@{SHOWN_IOU:.2f}", float(self.pcr[round(metrics.STEPS * (1 - SHOWN_IOU))])
        yield "PCR_AuC", metrics.area_under_curve(self.pcr)
        yield "mIoU_AuC", metrics.area_under_curve(self.miou)

    def pck(self, norm: str, alpha: float) -> tuple[float, int]:
        """Mean over the pairs that have a value, and their number."""
        return metrics.mean_over_pairs(self._pcks(norm, alpha))

    def pck_by_class(self, norm: str, alpha: float) -> tuple[float, dict[str, float]]:
        """Mean over classes, and the mean of each class over its pairs."""
        classes = [one.pair.class_name for one in self.measured]
        return metrics.mean_over_classes(self._pcks(norm, alpha), classes)

    def table(self) -> str:
        """Everything that was measured, as text."""
        return correspondence_report.table(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything that was measured, as plain values."""
        return correspondence_report.to_dict(self)

    def pictures(self, folder: Path, *, count: int) -> list[Path]:
        """The curves, and key-points of up to `count` evenly spaced pairs; returns the files."""
        return correspondence_plots.draw(self, folder, count=count)

    def _pcks(self, norm: str, alpha: float) -> list[float]:
        return [metrics.pck(one.distances[norm], alpha) for one in self.measured]

    def _size(self, path: Path) -> tuple[int, int]:
        if path not in self._sizes:
            self._sizes[path] = images.image_size(path, orient=False)
        return self._sizes[path]


def metric_names(norms: Sequence[str], alphas: Sequence[float]) -> list[str]:
    """Every name that `CorrespondenceEvaluator.run` gives."""
    kinds = [f"{norm}/{kind}" for norm in norms for kind in ("PCK", "class_PCK")]
    return [f"{kind}@{alpha_name(alpha)}" for kind in kinds for alpha in alphas] + [
        f"PCR@{SHOWN_IOU:.2f}",
        "PCR_AuC",
        "mIoU_AuC",
    ]


def _rowwise_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of row i of one with row i of the other."""
    return np.array([box_lib.iou(x[None], y[None])[0, 0] for x, y in zip(a, b, strict=True)], np.float64)
