"""What a run reports: lines or a progress bar on stdout, `metrics.jsonl`, TensorBoard files."""

import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

FILE = "metrics.jsonl"
WINDOW = 8  # reports over which the rate is taken
FOLDER = "tensorboard"


class Metrics:
    """Collects the values of steps, writes their means every `every` steps, and estimates the time left.

    A value that is NaN is undefined in its step: means are over the steps where there is one, and what has
    none since the last report is null in the file and left out of the line.

    Args:
      folder: the run's folder; lines after `start` in its `metrics.jsonl` are dropped: they come again.
      start: the step that the run starts from.
      steps: the step at which it ends.
      every: steps between two reports.
      active: False on all processes but the first: nothing is written.
    """

    def __init__(self, folder: Path, *, start: int, steps: int, every: int, active: bool = True):
        self._start, self._steps, self._every, self._active = start, steps, max(1, every), active
        self._values: dict[str, list[float]] = {}  # those that are defined, since the last report
        self._paused = 0.0
        self._marks: deque[tuple[float, int]] = deque(maxlen=WINDOW)  # (seconds without pauses, step)
        self._progress = None
        if active:
            _truncate(folder / FILE, start)
            self._file = (folder / FILE).open("a")
            self._board = SummaryWriter(str(folder / FOLDER), purge_step=start + 1 if start else None)
            if sys.stdout.isatty():
                self._progress = _progress_bar()
                self._task = self._progress.add_task("train", total=steps, completed=start, rate="", loss="")

    def __enter__(self) -> "Metrics":
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress:
            self._progress.stop()
        if self._active:
            self._file.close()
            self._board.close()

    def say(self, line: str) -> None:
        """Print one line (above the progress bar where there is one)."""
        if not self._active:
            return
        if self._progress:
            self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, flush=True)

    def start_clock(self, step: int) -> None:
        """Measure the rate from `step` on: what went before (compilation) does not count."""
        self._marks.append((self._seconds(), step))

    @contextmanager
    def pause(self) -> Iterator[None]:
        """A stretch (evaluation, saving) that is left out of the rate."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - began

    def add(self, step: int, values: dict[str, Any]) -> None:
        """Take the values of `step` (the number of steps done); report when it is time."""
        for name, value in values.items():
            defined = self._values.setdefault(name, [])
            if not math.isnan(value):
                defined.append(float(value))
        if step % self._every == 0 or step == self._steps:
            self._report(step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write values of `step` to the files; NaN and infinities become null in the JSON line."""
        if not self._active:
            return
        clean = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **clean}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if not math.isnan(value):
                self._board.add_scalar(name, value, step)

    def _report(self, step: int) -> None:
        values = {
            name: sum(several) / len(several) if several else math.nan
            for name, several in self._values.items()
        }
        self._values = {}
        loss = f"loss {values.get('loss', math.nan):.4g}"
        speed = ""
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items() if not math.isnan(value))
        now, (since, first) = self._seconds(), self._marks[0] if self._marks else (math.inf, step)
        if now > since and step > first:
            rate = (step - first) / (now - since)
            values["steps_per_second"] = rate
            speed = f"{rate:.2f} steps/s" if rate >= 1 else f"{1 / rate:.2f} s/step"
            shown += f"  {speed}  eta {timedelta(seconds=round((self._steps - step) / rate))}"
            self._marks.append((now, step))
        self.write(step, values)
        self.say(f"step {step}/{self._steps}  {shown}")
        if self._progress:
            self._progress.update(self._task, completed=step, rate=speed, loss=loss)

    def _seconds(self) -> float:
        return time.perf_counter() - self._paused


def read(workdir: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`; a last line that a killed run left unfinished is ignored."""
    lines = []
    for line in (workdir / FILE).read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def _truncate(path: Path, start: int) -> None:
    if path.exists():
        kept = [line for line in read(path.parent) if line.get("step", 0) <= start]
        scratch = path.with_suffix(".scratch")
        scratch.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(scratch, path)


def _progress_bar() -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    return Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[loss]}"))
