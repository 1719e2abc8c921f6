"""Curves over regions, and key-points where a method takes them (needs matplotlib)."""

from pathlib import Path
from typing import Any

import numpy as np

from sm_jax.data import images
from sm_jax.evaluators import correspondence_metrics as metrics

DPI = 110
TRUE, FOUND = "#009e73", "#d55e00"


def draw(evaluator: Any, folder: Path, *, count: int) -> list[Path]:
    """Draw what a `CorrespondenceEvaluator` that has run found; returns the files.

    `curves.png` (PCR over tau and mIoU@k, with the areas under them), and `pair-NUMBER.png` of up to `count`
    evenly spaced pairs. The folder is made; files in it of the same name are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "curves.png"]
    curves({evaluator.name or "method": (evaluator.pcr, evaluator.miou)}, written[0])
    places = np.linspace(0, len(evaluator.measured) - 1, min(count, len(evaluator.measured))).round()
    for place in np.unique(places.astype(int)):
        written.append(folder / f"pair-{place:04d}.png")
        keypoints(evaluator.measured[place], written[-1])
    return written


def curves(methods: dict[str, tuple[np.ndarray, np.ndarray]], path: Path) -> None:
    """PCR and mIoU@k of several methods by name, each (pcr (101,), miou (100,)), in one picture."""
    figure = _figure(9, 3.8)
    steps = metrics.STEPS
    axes = figure.add_subplot(1, 2, 1)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="tau (right: 1 - IoU < tau)", ylabel="PCR")
    for name, (pcr, _) in methods.items():
        label = f"{name}, AuC {metrics.area_under_curve(pcr):.3f}"
        axes.plot(np.arange(steps + 1) / steps, pcr, label=label)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.25)
    axes = figure.add_subplot(1, 2, 2)
    axes.set(xlim=(1, steps), ylim=(0, 1), xlabel="k most confident regions", ylabel="mean IoU")
    for name, (_, miou) in methods.items():
        label = f"{name}, AuC {metrics.area_under_curve(miou):.3f}"
        axes.plot(np.arange(1, steps + 1), miou, label=label)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.25)
    figure.tight_layout()
    figure.savefig(path, dpi=DPI)


def keypoints(one: Any, path: Path) -> None:
    """A pair: the source with its key-points, the target with where they should be (rings) and were put."""
    from sm_jax.data.scnet_pairs import common

    source, target = common(one.pair.keypoints_source, one.pair.keypoints_target)
    figure = _figure(8, 4)
    for column, picture in enumerate((one.pair.source, one.pair.target)):
        axes = figure.add_subplot(1, 2, column + 1)
        pixels = images.read_image(picture, orient=False)
        height, width = pixels.shape[:2]
        axes.imshow(pixels, extent=(0, width, height, 0))
        axes.set_axis_off()
        if not column:
            axes.scatter(*source.T, s=30, color=TRUE)
            continue
        axes.scatter(*target.T, s=60, facecolors="none", edgecolors=TRUE, linewidths=2)
        known = np.isfinite(one.moved).all(axis=1)
        axes.scatter(*one.moved[known].T, s=20, color=FOUND)
        for true, found in zip(target[known], one.moved[known], strict=True):
            axes.plot(*np.stack([true, found]).T, color=FOUND, linewidth=1)
    figure.suptitle(f"{one.pair.class_name}: {one.pair.source.name} -> {one.pair.target.name}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=DPI)


def _figure(width: float, height: float):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure
