"""OS2D and its baselines on the same classes of the same scenes, measured by the same code, a row each.

    python benchmarks/baselines.py [--out=baselines.json] [--split=test] [--scenes=32] ROW ...

A ROW is NAME=SOURCE, where SOURCE is the folder of a run (its best checkpoint) or FILE.py:ARGS for what a run
with this config starts from; settings of it may follow, each after a semicolon (they win over the table's):

    "sliding window, square=configs/os2d.py:recipe=sliding-square"
    "sliding window, target AR=configs/os2d.py:recipe=sliding-ar"
    "OS2D V1=runs/v1"
    "detector + retrieval=runs/retrieval;eval.detector=runs/detector"

Split, scenes, scales, IoU thresholds, suppression and the number of detections are the table's for every row;
the rest is the row's own. Rows that the file has already for the same of these are not measured again (delete
them to do so): a stopped command goes on with the row it was in. Every class that is annotated in any of the
images is searched in all of them. Milliseconds are the median over the images, after the first, divided by
the classes; what is computed once for a class is not in them. A class detector has rows with
--split=test:seen --classes=N only: the classes of its training, in new scenes.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

if not __package__:  # python benchmarks/baselines.py
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.measure import environment
from configs import os2d as published
from sm_jax import data as data_lib
from sm_jax import evaluators, platform
from sm_jax.errors import ConfigError, run_main
from sm_jax.training import commandline

IOUS = (0.5, 0.75)
SHARED = ("scales", "nms_iou", "max_detections", "max_images")
"""Options of evaluation that a row is marked for if it has others, or none."""
RATE = "steps_per_second"


class Frame(NamedTuple):
    """What is the same for every row: `data`, a config section, and the options of evaluation."""

    data: ConfigDict
    split: str
    scales: tuple[float, ...]
    max_images: int

    @property
    def key(self) -> str:
        """Names the frame in the file of rows."""
        parts = [f"{self.data.source} {self.split}"]
        if self.data.source == "shelves":
            shelves = self.data.shelves
            parts.append(f"{shelves.num_test} scenes")
            parts += [f"{shelves.num_classes} classes"] if "num_classes" in shelves else []
        parts += [f"{self.max_images} images"] if self.max_images else []
        return f"{', '.join(parts)}, scales {' '.join(f'{scale:g}' for scale in self.scales)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW")
    parser.add_argument("--out", default="baselines.json", help="file of the rows")
    parser.add_argument("--data", default="shelves", help="shelves, or the path of a data set")
    parser.add_argument("--split", default="test", help="test:seen for classes of training, in new scenes")
    parser.add_argument("--scenes", type=int, default=32, help="scenes that are generated")
    parser.add_argument(
        "--classes", type=int, default=0, help="classes that are generated; 0: as many as usual"
    )
    parser.add_argument("--images", type=int, default=0, help="evenly spaced images instead of all")
    parser.add_argument("--scales", default="", help="such as 0.8,1,1.25; default: the published pyramid")
    args = parser.parse_args()
    platform.setup()
    out = Path(args.out)
    rows = json.loads(out.read_text()) if out.is_file() else {}
    counts = {"scenes": args.scenes, "classes": args.classes, "max_images": args.images}
    scales = args.scales.split(",") if args.scales else published.PYRAMID
    frame = make_frame(args.data, args.split, scales, **counts)
    print(frame.key, flush=True)
    for row in args.rows:
        key = f"{row} | {frame.key}"
        if key not in rows:
            rows[key] = measure(row, frame)
            _store(out, rows)
        print(_line(rows[key]), flush=True)
    print("\n".join(["", table(rows)]))
    return 0


def make_frame(
    data: str,
    split: str,
    scales: Iterable[float | str],
    *,
    scenes: int = 32,
    classes: int = 0,
    max_images: int = 0,
) -> Frame:
    """The frame of a table; the scenes are those of `configs/os2d.py`.

    Raises:
      ConfigError: a number that makes no sense.
    """
    from sm_jax.search import checked_scales  # jax, after the platform is settled

    if scenes < 1 or classes < 0 or max_images < 0:
        raise ConfigError("--scenes must be 1 or more, --classes and --images 0 or more")
    section = published.get_config().data
    section.source = data
    section.shelves.update(num_val=scenes, num_test=scenes, num_seen=scenes)
    if classes:
        section.shelves.num_classes = classes
    return Frame(section, split, checked_scales(scales), max_images)


def measure(row: str, frame: Frame) -> dict[str, Any]:
    """One row: average precision, recall, seconds, parameters, training.

    Raises:
      ConfigError: a row that says nothing, or a system that finds no boxes; WeightsError, DataError.
    """
    import jax

    from sm_jax.evaluators.report import numbers

    name, source, settings = parse_row(row)
    config, variables, budget = _opened(source)
    own = force(config, frame)
    for key, value in settings:
        commandline.override(config, key, value)
    own += [key.removeprefix("eval.") for key, _ in settings if key.removeprefix("eval.") in SHARED]
    if f"{frame.split}/mAP@{IOUS[0]:.2f}" not in evaluators.metric_names(config):
        raise ConfigError(f"{name}: this is not evaluated by mean average precision of the classes' boxes")
    helper = config.eval.get("detector", "")
    if helper:
        _, other, first = _opened(helper)
        budget = f"{first}; {budget}"
    clock = _Clock()
    evaluator = evaluators.make(config, progress=clock)[frame.split]
    images, classes = _fetch(frame)
    metrics = dict(evaluator.run(variables))
    facts = environment(jax.default_backend())
    return {
        "name": name,
        "frame": frame.key,
        "metrics": numbers(metrics),
        "images": images,
        "classes": classes,
        "seconds": _per_class(clock.wall, classes),
        "cpu_seconds": _per_class(clock.cpu, classes),
        "parameters": count(variables) + (count(other) if helper else 0),
        "budget": budget,
        "own": own,
        "facts": {key: facts[key] for key in ("date", "processor", "cores", "jax", "jax_device")},
    }


def parse_row(row: str) -> tuple[str, str, list[tuple[str, str]]]:
    """(name, source, settings) of "NAME=SOURCE;KEY=VALUE;..."; ConfigError for anything else."""
    first, *rest = row.split(";")
    name, _, source = first.partition("=")
    settings = [part.partition("=") for part in rest]
    if not name.strip() or not source.strip() or not all(equals for _, equals, _ in settings):
        raise ConfigError(f"row {row!r}: expected NAME=RUN or NAME=FILE.py:ARGS, then ;KEY=VALUE if needed")
    return name.strip(), source.strip(), [(key.strip(), value.strip()) for key, _, value in settings]


def force(config: ConfigDict, frame: Frame) -> list[str]:
    """Put the frame into `config`; returns the options of evaluation that the system does not have."""
    wanted = {"splits": (frame.split,), "iou_thresholds": IOUS, "scales": frame.scales}
    wanted |= {"max_images": frame.max_images, "nms_iou": 0.3, "nms_across_classes": False}
    wanted |= {"max_detections": 1000, "score_threshold": float("-inf"), "protocol": "default"}
    wanted |= {"classes": "all"}  # of every image, also where the original searched the annotated ones only
    with config.unlocked():
        config.data.source = frame.data.source
        config.data.shelves = frame.data.shelves
        own = [key for key in wanted if key not in config.eval]
        config.eval.update({key: value for key, value in wanted.items() if key not in own})
    if {"splits", "iou_thresholds"} & {*own}:
        raise ConfigError(f"{config.system} has no evaluation with average precision of boxes")
    return [key for key in own if key in SHARED]


def count(variables: Any) -> int:
    """Number of parameters."""
    from sm_jax.weights.io import flatten

    return sum(int(np.size(leaf)) for leaf in flatten(variables["params"]).values())


def table(rows: dict[str, Any]) -> str:
    """All rows, those of one frame together."""
    lines = []
    for frame in dict.fromkeys(row["frame"] for row in rows.values()):
        mine = [row for row in rows.values() if row["frame"] == frame]
        searched = sorted({f"{row['classes']} classes in {row['images']} images" for row in mine})
        lines += [f"{frame}: {' / '.join(searched)}", _HEAD, *map(_line, mine), ""]
    return "\n".join(lines).rstrip()


_HEAD = f"{'':<34} mAP@.50 mAP@.75 recall@.50     ms CPU ms  parameters  training"


def _line(row: dict[str, Any]) -> str:
    values = [row["metrics"].get(key) for key in ("mAP@0.50", "mAP@0.75", "recall@0.50")]
    shown = [f"{'-' if value is None else format(value, '.3f'):>7}" for value in values]
    times = [f"{1000 * row[key]:6.1f}" for key in ("seconds", "cpu_seconds")]
    note = f" (not the table's {', '.join(row['own'])})" if row["own"] else ""
    return (
        f"{row['name']:<34} {' '.join(shown)}    {' '.join(times)}  {row['parameters'] / 1e6:8.2f} M"
        f"  {row['budget']}{note}"
    )


class _Clock:
    """Wraps the iteration over images: how long each took, by the clock and in time of all cores."""

    def __init__(self):
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def __call__(self, items: Iterable, name: str) -> Iterator:
        for item in items:
            wall, cpu = time.perf_counter(), time.process_time()
            yield item
            if name == "images":
                self.wall.append(time.perf_counter() - wall)
                self.cpu.append(time.process_time() - cpu)


def _per_class(seconds: list[float], classes: int) -> float:
    """The median without the first, in which programs are compiled, if there are more."""
    return statistics.median(seconds[1:] or seconds) / max(classes, 1)


def _opened(source: str) -> tuple[ConfigDict, dict[str, Any], str]:
    """(config, variables, what it was trained with) of a run, or of the start of one."""
    from sm_jax import pretrained
    from sm_jax.training import restore_config, restore_variables

    if ".py" in source:
        config = commandline.load_config(source)
        variables, notes = pretrained.begin(config)
        for note in notes:
            print(f"  {note}", flush=True)
        return config, variables, "none"
    config = restore_config(source)
    variables, meta = restore_variables(source)
    return config, variables, training(Path(source), config, meta["step"])


def training(run: Path, config: ConfigDict, step: int) -> str:
    """In words: steps and images of a run, about how long they took without evaluation, and the best step."""
    from sm_jax.training.metrics import FILE, read

    if not config.steps:
        return "none"
    rates = [line[RATE] for line in read(run) if line.get(RATE)] if (run / FILE).is_file() else []
    took = f", {config.steps * statistics.mean(1 / rate for rate in rates) / 60:.0f} min" if rates else ""
    best = f", best at {step}" if step != config.steps else ""
    return f"{config.steps} x {config.batch_size}{took}{best}"


def _fetch(frame: Frame) -> tuple[int, int]:
    """How many images and classes are searched; generated pictures are drawn now, outside the measurement."""
    source = data_lib.make_source(frame.data, frame.split)
    size = min(len(source), frame.max_images or len(source))
    chosen = np.unique(np.linspace(0, len(source) - 1, size).round().astype(int)).tolist()
    labels = {int(label) for index in chosen for label in source.annotation(index)["labels"]}
    if frame.data.source == "shelves":
        for index in chosen:
            source.image(index)
        for label in labels:
            source.query(label)
    return len(chosen), len(labels)


def _store(path: Path, rows: dict[str, Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(rows, indent=1) + "\n")
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(run_main(main))
