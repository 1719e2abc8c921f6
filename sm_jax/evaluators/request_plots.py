"""Detection by request in pictures, as figures 3 to 7 of the SSM paper (needs matplotlib)."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sm_jax.data.instances import cut
from sm_jax.evaluators.request_metrics import ClassScore

IMAGES = 3  # searched images beside each request
DPI = 110
GROUND = {"seen": "#0072b2", "unseen": "#d55e00", "all": "#0072b2"}
RIGHT, WRONG = "#009e73", "#d55e00"


class Extremes(NamedTuple):
    """Positions among the candidates of the requests of a class with the least and the greatest F1."""

    worst: int
    best: int


def draw(evaluator: Any, folder: Path, *, count: int) -> list[Path]:
    """Everything that there is to see of a `RequestEvaluator` that has run; returns the files.

    `scatter-GROUP.png` for each group, and `class-LABEL.png` of up to `count` classes, evenly spaced from the
    lowest to the highest average AP. The folder is made; files in it of the same name are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for group in evaluator.summaries:
        scored = evaluator.classes["leave-one-out"]
        mine = [score for label, score in scored.items() if evaluator.group_of(label) == group]
        if mine:
            written.append(folder / f"scatter-{group}.png")
            scatter(mine, written[-1], group=group)
    ranked = sorted(evaluator.classes["leave-one-out"].items(), key=lambda item: (item[1].average, item[0]))
    places = np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int)
    for place in np.unique(places):
        written.append(folder / f"class-{ranked[place][0]:04d}.png")
        examples(evaluator, ranked[place][0], written[-1])
    return written


def scatter(scores: list[ClassScore], path: Path, *, group: str = "all") -> None:
    """Recall and precision of each class at the shared threshold: the mean of its requests, and its best one.

    A cross marks the mean over the classes. Leave-one-out; the best request is chosen on validation images.
    """
    figure = _figure(9, 4.4)
    for column, (kind, title) in enumerate((("mean", "mean by request"), ("best", "best by request"))):
        axes = figure.add_subplot(1, 2, column + 1)
        points = np.array(
            [[getattr(s, f"{kind}_{name}") for name in ("recall", "precision")] for s in scores]
        )
        points = points[~np.isnan(points).any(axis=1)]
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="recall", ylabel="precision", aspect="equal")
        axes.grid(alpha=0.25)
        axes.scatter(*points.T, s=18, alpha=0.7, color=GROUND[group], linewidths=0)
        if len(points):
            recall, precision = points.mean(axis=0)
            axes.scatter([recall], [precision], s=120, marker="+", color="black")
            title += f": P {precision:.2f}, R {recall:.2f}"
        noun = "class" if len(points) == 1 else "classes"
        axes.set_title(f"{title}  ({len(points)} {'' if group == 'all' else group + ' '}{noun})", fontsize=10)
    _save(figure, path)


def extremes(evaluator: Any, label: int) -> Extremes:
    """The worst and the best request of a class by their F1 on the test images (ties: AP, then the first)."""
    scores = evaluator.scores["leave-one-out"]
    mine = [
        position for position, score in enumerate(scores) if score.label == label and not np.isnan(score.ap)
    ]

    def worth(position):
        return scores[position].point.f1, scores[position].ap

    return Extremes(min(mine, key=worth), max(mine, key=worth))


def examples(evaluator: Any, label: int, path: Path) -> None:
    """The worst request of a class above its best one, each beside some images with what it found there.

    Shown are detections above the shared threshold: green right, orange wrong; annotated boxes are dashed.
    """
    requests = extremes(evaluator, label)
    shown = [
        [
            index
            for index, found in evaluator.found[position].items()
            if found.outcome.positives and index != evaluator.candidates[position].instance.index
        ][:IMAGES]
        for position in requests
    ]
    columns = 1 + max(map(len, shown))
    figure = _figure(3 * columns, 6)
    for row, (kind, position) in enumerate(requests._asdict().items()):
        candidate, score = evaluator.candidates[position], evaluator.scores["leave-one-out"][position]
        title = f"{kind}: precision {score.point.precision:.2f}, recall {score.point.recall:.2f}"
        picture = cut(evaluator.source.image(candidate.instance.index), candidate.instance.box)
        _picture(figure, (2, columns, row * columns + 1), picture).set_title(title, fontsize=9)
        for column, index in enumerate(shown[row], 2):
            axes = _picture(figure, (2, columns, row * columns + column), evaluator.source.image(index))
            _boxes(axes, evaluator, label, index, evaluator.found[position][index])
    figure.suptitle(evaluator.class_names[label], parse_math=False, fontsize=11)
    _save(figure, path)


def _picture(figure, place: tuple[int, int, int], picture: np.ndarray):
    axes = figure.add_subplot(*place)
    axes.imshow(picture)
    axes.set_axis_off()
    return axes


def _boxes(axes, evaluator, label, index, found) -> None:
    from matplotlib.patches import Rectangle

    def rectangle(box, **style):
        x1, y1, x2, y2 = np.asarray(box, float) - 0.5  # imshow puts the centre of a pixel on the integer
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, **style))

    entry = evaluator.source.annotation(index)
    for box in entry["boxes"][entry["labels"] == label]:
        rectangle(box, edgecolor="white", linestyle="--", linewidth=1)
    scores, matches, _ = found.outcome
    for box, score, right in zip(found.boxes, scores, matches, strict=False):  # only the first boxes are kept
        if score > evaluator.options.threshold:
            rectangle(box, edgecolor=RIGHT if right == 1 else WRONG, linewidth=1.5)


def _figure(width: float, height: float):
    from matplotlib.figure import Figure  # pyplot would choose a window system and keep every figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure, path: Path) -> None:
    import warnings

    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # names in any script
        figure.savefig(path, format="png", dpi=DPI)
