"""Results for a screen and for a program."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sm_jax.evaluators.os2d import DetectionEvaluator

MAX_ROWS = 40


def to_dict(evaluator: DetectionEvaluator) -> dict[str, Any]:
    """Everything measured, as plain values; what is undefined is null."""
    names = evaluator.class_names
    by_threshold = {}
    for threshold, result in evaluator.results.items():
        by_threshold[f"{threshold:.2f}"] = {
            "mAP": _number(result.map),
            "mAPw": _number(result.map_weighted),
            "recall": _number(result.recall),
            "AP_joint": _number(result.ap_joint),
            "classes": [
                {
                    "name": names[label],
                    "AP": _number(result.ap[label]),
                    "recall": _number(result.recall_per_class[label]),
                    "boxes": result.n_pos[label],
                }
                for label in result.ap
            ],
        }
    return {"images": len(evaluator.indices), "skipped": evaluator.skipped, "iou": by_threshold}


def table(split: str, evaluator: DetectionEvaluator) -> str:
    """A text table: the metrics at each IoU threshold, then the worst `MAX_ROWS` classes at the first."""
    images = len(evaluator.indices)
    lines = [f"{split}: {images} image{'s' * (images != 1)}"]
    lines.append(f"  {'IoU':>5} {'mAP':>7} {'mAPw':>7} {'recall':>7} {'joint':>7}")
    for threshold, result in evaluator.results.items():
        values = (result.map, result.map_weighted, result.recall, result.ap_joint)
        lines.append(f"  {threshold:5.2f} " + " ".join(f"{100 * value:7.2f}" for value in values))
    result = next(iter(evaluator.results.values()))
    rows = sorted((result.ap[label], label) for label in result.ap if result.n_pos[label])
    width = max((len(evaluator.class_names[label]) for _, label in rows), default=0)
    width = min(max(width, 5), 40)
    lines.append(f"  {'class':<{width}} {'AP':>7} {'recall':>7} {'boxes':>6}")
    for ap, label in rows[:MAX_ROWS]:
        recall, boxes = result.recall_per_class[label], result.n_pos[label]
        name = evaluator.class_names[label][:width]
        lines.append(f"  {name:<{width}} {100 * ap:7.2f} {100 * recall:7.2f} {boxes:6d}")
    if len(rows) > MAX_ROWS:
        lines.append(f"  and {len(rows) - MAX_ROWS} better ones (all are in the JSON file)")
    lines += [f"  left out: {line}" for line in evaluator.skipped]
    return "\n".join(lines)


def write(path: Path, document: dict[str, Any]) -> None:
    """Write a JSON document, replacing the file at once."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


def numbers(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """The metrics with null for what is undefined, which JSON has no number for."""
    return {name: _number(value) for name, value in metrics.items()}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
