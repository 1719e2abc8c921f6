"""Masks and parts carried from one picture to another by a method's dense flow: Caltech-101, PASCAL-Parts.

The target's labels are seen from the source through the flow, which is smoothed along the edges of the
source picture (static/dynamic filter) as published. Methods are those of `correspondence`. Source: SCNet
(ICCV 2017), sec. 5.4; specification sec. 8.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sm_jax.data import images
from sm_jax.data.scnet_pairs import common
from sm_jax.data.sources.mask_pairs import OBJECT, MaskPair
from sm_jax.data.sources.pair_records import protocol_id
from sm_jax.errors import DataError, ImageError
from sm_jax.evaluators import correspondence_metrics as metrics
from sm_jax.evaluators.correspondence import Match
from sm_jax.evaluators.damaged import Damaged
from sm_jax.evaluators.report import counted, left_out, number
from sm_jax.ops import flow as flow_lib

PART_ALPHA = 0.05
DEFINITIONS = {
    "LT-ACC": "share of source pixels with the right label, object or not",
    "IoU": "of the carried mask with the true one",
    "LOC-ERR": "mean |dx| + |dy| of places in units of the objects' boxes; lower is better",
    "part_IoU": "IoU of parts, weighted by their areas",
    f"PCK@{PART_ALPHA:.2f}": "share of key-points within 0.05 of the target's longer side (img)",
}


class MaskEvaluator:
    """A method on pairs with masks.

    Attributes, after `run`:
      values: metric -> class of each pair and its value (NaN where it has none).
    """

    def __init__(
        self,
        method: Callable[[Any], Match],
        pairs: Sequence[MaskPair],
        *,
        name: str = "",
        smooth: bool = True,
        notes: Sequence[str] = (),
        progress=None,
    ):
        """Make an evaluator.

        Args:
          method: variables -> `Match`, which needs `source` and `target` of a pair only.
          pairs: of `mask_pairs.read_caltech` or `read_parts`.
          name: of the method, for the report.
          smooth: whether the flow goes through the static/dynamic filter (about a second a pair).
          notes: lines for the report, such as on an overlap with what was trained on.
          progress: see `sm_jax.evaluators.make`.

        Raises:
          DataError: no pairs.
        """
        if not len(pairs):
            raise DataError("nothing to evaluate: there are no pairs")
        self._method, self.pairs, self.name, self._smooth = method, list(pairs), name, smooth
        self.notes = list(notes)
        self._progress = progress or (lambda items, _: items)
        self._damaged = Damaged()
        self.values: dict[str, list[tuple[str, float]]] = {}
        self.protocol = f"{protocol_id(self.pairs)}-masks-{'smoothed' if smooth else 'plain'}"

    @property
    def skipped(self) -> list[str]:
        """A line for each pair that was left out because a picture is damaged."""
        return self._damaged.lines

    def run(self, variables: Any) -> Iterator[tuple[str, float]]:
        """Match and measure; yields means over the pairs that have a value."""
        self._damaged, self.values = Damaged(), {}
        match = self._method(variables)
        for pair in self._progress(self.pairs, "pairs"):
            try:
                found = self._measure(match, pair)
            except ImageError as error:
                self._damaged.add("pair", str(error), total=len(self.pairs))
                continue
            for name, value in found.items():
                self.values.setdefault(name, []).append((pair.class_name, value))
        if not self.values:
            raise DataError(f"nothing to evaluate: no pair can be read ({self.skipped[0]})")
        for name, values in self.values.items():
            yield name, metrics.mean_over_pairs([value for _, value in values])[0]

    def table(self) -> str:
        """Means over pairs and over classes, and the definitions, as text."""
        lines = [f"{counted(len(self.pairs), 'pair')}{', ' + self.name if self.name else ''}"]
        lines.append(f"  {'':<10} {'pairs':>7} {'classes':>7} {'of':>6}")
        for name in self.values:
            pairs, count, classes, _ = self._means(name)
            lines.append(f"  {name:<10} {pairs:7.3f} {classes:7.3f} {count:6d}")
        lines.append(f"  protocol: {self.protocol}")
        lines += [f"  {name}: {DEFINITIONS[name]}" for name in self.values]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines + left_out(self.skipped))

    def to_dict(self) -> dict[str, Any]:
        """Everything measured, as plain values; what is undefined is null."""
        found = {}
        for name in self.values:
            pairs, count, classes, by_class = self._means(name)
            found[name] = {
                "pairs": number(pairs),
                "of": count,
                "classes": number(classes),
                "by_class": {key: number(value) for key, value in by_class.items()},
            }
        return {
            "method": self.name,
            "protocol": self.protocol,
            "metrics_by_name": found,
            "definitions": {name: DEFINITIONS[name] for name in self.values},
            "notes": self.notes,
            "skipped": self.skipped,
        }

    def pictures(self, folder: Path, *, count: int) -> list[Path]:
        """None are drawn."""
        del folder, count
        return []

    def _means(self, name: str) -> tuple[float, int, float, dict[str, float]]:
        classes, values = zip(*self.values[name], strict=True)
        return *metrics.mean_over_pairs(values), *metrics.mean_over_classes(values, classes)

    def _measure(self, match: Match, pair: MaskPair) -> dict[str, float]:
        source = images.read_image(pair.source, orient=False)
        target_size = images.image_size(pair.target, orient=False)
        flow = flow_lib.dense_flow(*match(pair), source.shape[:2], target_size)
        if self._smooth:
            flow = flow_lib.regularize(flow, source)
        here, there = pair.source_masks(), pair.target_masks()
        for masks, size, path in ((here, source.shape[:2], pair.source), (there, target_size, pair.target)):
            wrong = next((mask.shape for mask in masks.values() if mask.shape != tuple(size)), None)
            if wrong:
                raise DataError(f"{path}: its mask is {wrong}, the picture {tuple(size)} (height, width)")
        if OBJECT in here:
            carried = metrics.transfer_mask(flow.shift, there[OBJECT])
            return {
                "LT-ACC": metrics.label_transfer_accuracy(carried, here[OBJECT]),
                "IoU": metrics.mask_iou(carried, here[OBJECT]),
                "LOC-ERR": metrics.localization_error(flow.shift, here[OBJECT], there[OBJECT]),
            }
        shared = [name for name in here if name in there]
        found = {"part_IoU": float("nan")}
        if shared:
            carried = np.stack([metrics.transfer_mask(flow.shift, there[name]) for name in shared])
            found["part_IoU"] = metrics.weighted_part_iou(carried, np.stack([here[name] for name in shared]))
        if len(pair.keypoints_source):
            points, truth = common(pair.keypoints_source, pair.keypoints_target)
            moved = metrics.transfer(points, flow.shift)
            distances = metrics.keypoint_distances(moved, truth, norm="img", target_size=target_size)
            found[f"PCK@{PART_ALPHA:.2f}"] = metrics.pck(distances, PART_ALPHA)
        return found
