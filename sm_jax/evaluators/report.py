"""Results for a screen and for a program. Every number is between 0 and 1, as during training."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sm_jax.data.phrases import ABSENT, STANDARD
from sm_jax.evaluators import proposals

MAX_ROWS = 40
PAPER = {
    "precision": 0.932,
    "recall": 0.862,
    "iou": 0.759,
    "aligned_precision": 0.948,
    "aligned_recall_matched": 0.966,
    "aligned_iou": 0.767,
    "align_accuracy": 0.996,
}
"""Ferreira et al. 2023, table 1 (500 test scenes). Its aligned recall is compared with the recall among the
objects that were proposed at all: with all aligned objects it could hardly exceed the plain recall."""


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
    listed = rows if len(rows) <= MAX_ROWS + 1 else rows[:MAX_ROWS]  # a line for a single row saves nothing
    for ap, label in listed:
        recall, boxes = result.recall_per_class[label], result.n_pos[label]
        name = evaluator.class_names[label][:width]
        lines.append(f"  {name:<{width}} {ap:6.3f} {recall:6.3f} {boxes:6d}")
    if len(listed) < len(rows):
        lines.append(f"  and {len(rows) - len(listed)} more, none of lower AP (all are in the JSON file)")
    return "\n".join(lines + left_out(evaluator.skipped))


def phrase_dict(evaluator: Any) -> dict[str, Any]:
    """Everything a `CrossModalEvaluator` measured, as plain values; what is undefined is null."""
    phrases = {}
    for kind, summaries in evaluator.summaries.items():
        phrases[kind] = {
            name: {
                "mean": number(summary.mean),
                "micro": number(summary.micro),
                "units": summary.units,
                "total": summary.total,
            }
            for name, summary in summaries.items()
        }
        for threshold, value in evaluator.ap.get(kind, {}).items():
            phrases[kind][f"AP@{threshold:.2f}"] = number(value)
    return {
        "images": len(evaluator.indices),
        "phrases": _phrases(evaluator),
        "skipped": evaluator.skipped,
        "unknown_words": evaluator.unknown,
        "kinds": phrases,
        "definitions": proposals.DEFINITIONS,
    } | ({"paper": PAPER} if evaluator.paper else {})


def phrase_table(evaluator: Any) -> str:
    """The metrics of a `CrossModalEvaluator`: means and micro averages, and the means of each other kind.

    Where the scenes are like the paper's, its figures stand in a column "paper". Below are the definitions.
    """
    counts = _phrases(evaluator)
    kinds = [kind for kind in evaluator.summaries if kind not in (STANDARD, ABSENT)]
    columns = ["mean", "of", "micro", *(["paper"] if evaluator.paper else []), *kinds]
    shown = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    lines = [f"{counted(len(evaluator.indices), 'image')}, phrases: {shown or 'none'}"]
    lines.append(f"  {'':<22} " + " ".join(f"{name:>{max(7, len(name))}}" for name in columns))
    rows = dict.fromkeys(name for kind in (STANDARD, *kinds) for name in evaluator.summaries.get(kind, {}))
    for name in rows:
        main = evaluator.summaries[STANDARD].get(name)
        values = [main and main.mean, main and main.units, main and main.micro]
        values += [PAPER.get(name)] if evaluator.paper else []
        others = [evaluator.summaries[kind].get(name) for kind in kinds]
        lines.append(_row(name, values + [other and other.mean for other in others], columns))
    for threshold in dict.fromkeys(t for by_threshold in evaluator.ap.values() for t in by_threshold):
        of_kind = {kind: by_threshold[threshold] for kind, by_threshold in evaluator.ap.items()}
        values = [of_kind.get({"mean": None, "micro": STANDARD}.get(name, name)) for name in columns]
        lines.append(_row(f"AP@{threshold:.2f}", values, columns))
    for name, summary in evaluator.summaries.get(ABSENT, {}).items():
        lines.append(_row(f"absent/{name}", [summary.mean, summary.units], columns))
    if evaluator.unknown:
        some = ", ".join(evaluator.unknown[:20]) + (", ..." if len(evaluator.unknown) > 20 else "")
        lines.append(f"  words that the model does not know: {some}")
    names = {name for summaries in evaluator.summaries.values() for name in summaries}
    if evaluator.ap:
        names.add("AP@")
    lines.append("  mean: over the images or phrases where it is defined (of); micro: ratio of the sums")
    iou, align, score = evaluator.limits
    lines.append(f"  matching: IoU > {iou:g}; aligned: align > {align:g}; false alarm: score > {score:g}")
    if evaluator.paper:
        lines.append("  paper: Ferreira et al. 2023, table 1, on other scenes and sentences")
    lines += [f"  {name}: {line}" for name, line in proposals.DEFINITIONS.items() if name in names]
    return "\n".join(lines + left_out(evaluator.skipped))


def _row(name: str, values: list[float | None], columns: list[str]) -> str:
    """Counts as they are, shares with three decimals, blanks for None."""
    cells = []
    for value, column in zip(values, columns, strict=False):
        shown = "" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"
        cells.append(f"{shown:>{max(7, len(column))}}")
    return f"  {name:<22} {' '.join(cells)}".rstrip()


def _phrases(evaluator: Any) -> dict[str, int]:
    """Kind -> number of phrases."""
    counts = Counter(query.kind for scene in evaluator.scenes for query in scene.queries)
    return {kind: counts[kind] for kind in evaluator.summaries if counts[kind]}


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
