"""Detection by request for a screen and for a program."""

from typing import Any

from sm_jax.evaluators.report import MAX_ROWS, counted, left_out, number

COLUMNS = (
    ("average", "average"),
    ("top", "top"),
    ("comparable", "(avg)"),
    ("mean_precision", "mean P"),
    ("mean_recall", "R"),
    ("best_precision", "best P"),
    ("best_recall", "R"),
    ("own_precision", "own P"),
    ("own_recall", "R"),
    ("oracle_precision", "oracle P"),
    ("oracle_recall", "R"),
)
LEGEND = (
    "average: mean over classes of the mean AP of their requests",
    "top: the same of one request a class, which has the best AP on the validation images",
    "(avg): average over the classes that top is the mean of; others are not in the validation images",
    "mean: precision and recall above the shared threshold, mean over requests, then over classes",
    "best: of one request a class, which has the best F1 on the validation images",
    "own: as mean, each request at its own threshold, chosen on the validation images",
    "oracle: of one request a class, chosen on the test images; a bound, no result",
)


def table(evaluator: Any) -> str:
    """The protocol, one row for each group and variant, the legend, and the worst `MAX_ROWS` classes."""
    images, options = evaluator.images, evaluator.options
    classes = {candidate.label for candidate in evaluator.candidates}
    lines = [
        f"{counted(len(evaluator.candidates), 'request')} of {len(classes)} "
        f"{'class' if len(classes) == 1 else 'classes'}, "
        f"{counted(images['test'], 'test image')}, {counted(images['validation'], 'validation image')}",
        f"  protocol {protocol_line(evaluator.protocol())}",
        f"  caps: {_cap(options.max_requests)} requests and {_cap(options.negatives)} images without the "
        f"class for each class; threshold: score > {options.threshold:g}",
    ]
    groups = [f"{group}, {variant}" for group, found in evaluator.summaries.items() for variant in found]
    rows = [score for found in evaluator.summaries.values() for score in found.values()]
    counts = [
        sum(evaluator.group_of(label) == group for label in evaluator.classes[variant])
        for group, found in evaluator.summaries.items()
        for variant in found
    ]
    lines += _rows("", [*zip(groups, rows, counts, strict=True)], "classes")
    lines += [f"  {line}" for line in LEGEND]
    scored = evaluator.classes["leave-one-out"]
    worst = sorted(scored, key=lambda label: (scored[label].average, label))
    listed = worst if len(worst) <= MAX_ROWS + 1 else worst[:MAX_ROWS]
    requests = [sum(c.label == label for c in evaluator.candidates) for label in listed]
    names = [evaluator.class_names[label] for label in listed]
    lines += _rows("class", [*zip(names, [scored[k] for k in listed], requests, strict=True)], "requests")
    if len(listed) < len(worst):
        lines.append(f"  and {len(worst) - len(listed)} more, none of lower AP (all are in the JSON file)")
    return "\n".join(lines + [f"  {line}" for line in evaluator.notes] + left_out(evaluator.skipped))


def protocol_line(protocol: dict[str, Any]) -> str:
    """The protocol in one line: its id, and what decides which images and matches count."""
    if protocol["validation"]:
        held = f"validation on split {protocol['validation']!r}"
    else:
        held = f"{protocol['validation_share']:.0%} of its images for validation"
    rule = {"fixed": "IoU > 0.5", "ilsvrc": "IoU > min(0.5, wh/((w+10)(h+10)))"}[protocol["iou_rule"]]
    return f"{protocol['id']}: split {protocol['split']!r}, {held}, {rule}, seed {protocol['seed']}"


def to_dict(evaluator: Any) -> dict[str, Any]:
    """Everything that was measured, as plain values; what is undefined is null."""
    rows = []
    for position, candidate in enumerate(evaluator.candidates):
        instance = candidate.instance
        row = {
            "class": evaluator.class_names[candidate.label],
            "image": instance.image_id,
            "box": [float(value) for value in instance.box],
        }
        for variant, scores in evaluator.scores.items():
            row[variant] = {
                "AP": number(scores[position].ap),
                "precision": number(scores[position].point.precision),
                "recall": number(scores[position].point.recall),
            }
        score = evaluator.scores["leave-one-out"][position]
        rows.append(
            row | {"validation_AP": number(score.validation_ap), "threshold": number(score.own_threshold)}
        )
    return {
        "protocol": evaluator.protocol(),
        "skipped": evaluator.skipped,
        "notes": evaluator.notes,
        "groups": {
            group: {variant: _values(score) for variant, score in found.items()}
            for group, found in evaluator.summaries.items()
        },
        "classes": [
            {"name": evaluator.class_names[label], "group": evaluator.group_of(label)}
            | {
                variant: _values(scores[label])
                for variant, scores in evaluator.classes.items()
                if label in scores
            }
            for label in evaluator.classes["self-match"]
        ],
        "requests": rows,
        "definitions": list(LEGEND),
    }


def _values(score: Any) -> dict[str, float | None]:
    return {name: number(value) for name, value in score._asdict().items()}


def _rows(title: str, rows: list[tuple[str, Any, int]], unit: str) -> list[str]:
    """Lines of a table: (name, `ClassScore`, count), `-` for what is undefined."""
    width = min(max([len(title), *(len(name) for name, _, _ in rows)]), 40)
    lines = [f"  {title:<{width}} " + " ".join(f"{name:>8}" for _, name in COLUMNS) + f" {unit:>8}"]
    for name, score, count in rows:
        values = [number(getattr(score, field)) for field, _ in COLUMNS]
        cells = " ".join(f"{'-' if value is None else f'{value:.3f}':>8}" for value in values)
        lines.append(f"  {name[:width]:<{width}} {cells} {count:>8}")
    return lines


def _cap(value: int) -> str:
    return str(value) if value else "all"
