"""Results for a screen and for a program. Every number is between 0 and 1, as during training."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAX_ROWS = 40


def detection_dict(evaluator: Any) -> dict[str, Any]:
    """Everything a `DetectionEvaluator` measured, as plain values; what is undefined is null."""
    names = evaluator.class_names
    by_threshold = {}
    for threshold, result in evaluator.results.items():
        by_threshold[f"{threshold:.2f}"] = {
            "mAP": number(result.map),
            "mAPw": number(result.map_weighted),
            "recall": number(result.recall),
            "AP_joint": number(result.ap_joint),
            "best_F1": number(result.best_f1),
            "best_F1_score": number(result.best_score),
            "classes": [
                {
                    "name": names[label],
                    "AP": number(result.ap[label]),
                    "recall": number(result.recall_per_class[label]),
                    "boxes": result.n_pos[label],
                }
                for label in result.ap
            ],
        }
    return {"images": len(evaluator.indices), "skipped": evaluator.skipped, "iou": by_threshold}


def detection_table(evaluator: Any) -> str:
    """The metrics of a `DetectionEvaluator` at each IoU threshold, then its worst `MAX_ROWS` classes."""
    lines = [counted(len(evaluator.indices), "image")]
    lines.append(f"  {'IoU':>5} {'mAP':>6} {'mAPw':>6} {'recall':>6} {'joint':>6} {'best F1':>7} at score")
    for threshold, result in evaluator.results.items():
        values = (result.map, result.map_weighted, result.recall, result.ap_joint)
        shown = " ".join(f"{value:6.3f}" for value in values)
        lines.append(f"  {threshold:5.2f} {shown} {result.best_f1:7.3f} {result.best_score:8.3f}")
    result = next(iter(evaluator.results.values()))
    rows = sorted((result.ap[label], label) for label in result.ap if result.n_pos[label])
    width = max((len(evaluator.class_names[label]) for _, label in rows), default=0)
    width = min(max(width, 5), 40)
    lines.append(f"  {'class':<{width}} {'AP':>6} {'recall':>6} {'boxes':>6}")
    for ap, label in rows[:MAX_ROWS]:
        recall, boxes = result.recall_per_class[label], result.n_pos[label]
        name = evaluator.class_names[label][:width]
        lines.append(f"  {name:<{width}} {ap:6.3f} {recall:6.3f} {boxes:6d}")
    if len(rows) > MAX_ROWS:
        lines.append(f"  and {len(rows) - MAX_ROWS} better ones (all are in the JSON file)")
    return "\n".join(lines + left_out(evaluator.skipped))


def counted(n: int, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{n} {noun}{'s' * (n != 1)}"


def left_out(skipped: list[str]) -> list[str]:
    """The lines of a table that name damaged pictures."""
    return [f"  left out: {line}" for line in skipped]


def write(path: Path, document: dict[str, Any]) -> None:
    """Write a JSON document, replacing the file at once."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


def numbers(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """The metrics with null for what is undefined, which JSON has no number for."""
    return {name: number(value) for name, value in metrics.items()}


def number(value: float) -> float | None:
    """The value, None (null) for NaN."""
    return None if math.isnan(value) else float(value)
