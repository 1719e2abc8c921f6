"""What a person sees while `sm-jax detect` works."""

import sys
from pathlib import Path

from rich import progress
from rich.console import Console


class Progress:
    """A bar on stderr, where that is a terminal: the image, what is done with it, and the time left."""

    def __init__(self, count: int):
        console = Console(stderr=True)
        columns = (
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.TextColumn("{task.percentage:3.0f} %"),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
        )
        # Results that are printed meanwhile stay on stdout, unless that is a terminal too.
        options = {"console": console, "transient": True, "redirect_stdout": sys.stdout.isatty()}
        self._bar = progress.Progress(*columns, **options) if console.is_terminal else None
        self._count, self._done, self._name = count, 0, ""

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("searching", total=self._count)
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, path: Path) -> None:
        """The search of an image begins."""
        self._name = path.name if self._count == 1 else f"{self._done + 1}/{self._count} {path.name}"
        self._show("", self._done)

    @property
    def step(self):
        """What `detect` takes as `progress`; None where nobody looks: each call waits for the device."""
        return None if self._bar is None else self._step

    def _step(self, what: str, done: int, total: int) -> None:
        share = done / max(1, total)
        if what == "windows":
            words = f" window {done} of {total}"
        elif what == "levels":  # their features take about a quarter of the time
            words, share = f" level {done} of {total}", 0.25 * share
        else:
            words, share = " comparing with the queries", 0.25 + 0.75 * share
        self._show(words, self._done + share)

    def end(self) -> None:
        """The image is done."""
        self._done += 1
        self._show("", self._done)

    def _show(self, words: str, completed: float) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=self._name + words, completed=completed, refresh=True)
