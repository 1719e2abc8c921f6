"""Results of a `CorrespondenceEvaluator` for a screen and for a program; the normaliser stands everywhere."""

from typing import Any

import numpy as np

from sm_jax.evaluators import correspondence_metrics as metrics
from sm_jax.evaluators.report import counted, left_out, number

RULE = "strict-visible"
RULE_TEXT = (
    "a key-point is right below alpha times the normaliser; those absent in either picture (NaN, or padding "
    "such as -1) never count"
)


def alpha_name(alpha: float) -> str:
    """What results call an alpha: two digits where these are all of it ("0.10"), else all ("0.101")."""
    short = f"{alpha:.2f}"
    return short if float(short) == alpha else repr(float(alpha))


def table(evaluator: Any) -> str:
    """PCK by normaliser (over pairs, over classes), regions, and a row for each class; protocol and rule."""
    names = [alpha_name(alpha) for alpha in evaluator.alphas]
    columns = max(5, *map(len, names))
    heads = " ".join(f"@{name:<{columns}}" for name in names)
    classes = by_class(evaluator)
    lines = [
        f"{counted(len(evaluator.measured), 'pair')}, "
        f"{len(classes)} class{'es' * (len(classes) != 1)}{', ' + evaluator.name if evaluator.name else ''}"
    ]
    width = max(17, *(len(name) for name in classes))
    lines.append(f"  {'PCK, normaliser':<{width}}  over     {heads}")
    for norm in evaluator.norms:
        pairs = [evaluator.pck(norm, alpha)[0] for alpha in evaluator.alphas]
        means = [evaluator.pck_by_class(norm, alpha)[0] for alpha in evaluator.alphas]
        for name, values in (("pairs", pairs), ("classes", means)):
            lines.append(f"  {norm:<{width}}  {name:<7}  {_values(values, columns)}".rstrip())
    lines.append(
        f"  regions: PCR AuC {metrics.area_under_curve(evaluator.pcr):.3f}, "
        f"mIoU@k AuC {metrics.area_under_curve(evaluator.miou):.3f} "
        f"({counted(sum(len(one.overlaps) > 0 for one in evaluator.measured), 'pair')} with active regions)"
    )
    lines.append(f"  {'class, PCK by ' + evaluator.norms[0]:<{width}}  pairs    {heads} PCR AuC")
    for name, row in classes.items():
        shares = _values(row["PCK"].values(), columns)
        lines.append(f"  {name:<{width}}  {row['pairs']:<7}  {shares} {row['PCR_AuC']:7.3f}")
    lines.append(f"  protocol: {evaluator.protocol}: {RULE_TEXT}")
    lines += [f"  {norm}: {metrics.NORMALIZERS[norm]}" for norm in evaluator.norms]
    lines += [f"  note: {note}" for note in evaluator.notes]
    return "\n".join(lines + left_out(evaluator.skipped))


def to_dict(evaluator: Any) -> dict[str, Any]:
    """Everything measured, as plain values; what is undefined is null."""
    pck = {}
    for norm in evaluator.norms:
        pck[norm] = {
            alpha_name(alpha): {
                "pairs": number(evaluator.pck(norm, alpha)[0]),
                "classes": number(evaluator.pck_by_class(norm, alpha)[0]),
                "pairs_with_value": evaluator.pck(norm, alpha)[1],
            }
            for alpha in evaluator.alphas
        }
    classes = {
        name: {
            "pairs": row["pairs"],
            "PCR_AuC": number(row["PCR_AuC"]),
            "PCK": {alpha_name(alpha): number(value) for alpha, value in row["PCK"].items()},
        }
        for name, row in by_class(evaluator).items()
    }
    return {
        "method": evaluator.name,
        "protocol": evaluator.protocol,
        "rule": RULE_TEXT,
        "normalizers": {norm: metrics.NORMALIZERS[norm] for norm in evaluator.norms},
        "pairs": len(evaluator.measured),
        "PCK": pck,
        "PCR": [number(value) for value in evaluator.pcr],
        "mIoU@k": [number(value) for value in evaluator.miou],
        "classes": classes,
        "notes": evaluator.notes,
        "skipped": evaluator.skipped,
    }


def by_class(evaluator: Any) -> dict[str, dict[str, Any]]:
    """Class -> number of pairs, PCK by alpha (first normaliser), area under its PCR curve."""
    norm = evaluator.norms[0]
    scores = {alpha: evaluator.pck_by_class(norm, alpha)[1] for alpha in evaluator.alphas}
    rows = {}
    for name in dict.fromkeys(one.pair.class_name for one in evaluator.measured):
        mine = [one for one in evaluator.measured if one.pair.class_name == name]
        rows[name] = {
            "pairs": len(mine),
            "PCK": {alpha: scores[alpha].get(name, np.nan) for alpha in evaluator.alphas},
            "PCR_AuC": metrics.area_under_curve(metrics.pcr([one.overlaps for one in mine])),
        }
    return rows


def _values(values: Any, columns: int) -> str:
    return " ".join(f"{value:<{columns + 1}.3f}" for value in values)
