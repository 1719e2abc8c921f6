"""SIGTERM and SIGINT ask a run to save and stop; a second one stops it at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):
    """Raised inside `Stop.interruptible` when a signal arrives."""


class Stop:
    """Context manager: `requested` is the name of the signal that arrived, "" before."""

    def __init__(self) -> None:
        self.requested = ""
        self._interruptible = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python refuses handlers
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A stretch that need not be finished: a signal raises `Interrupted` in it."""
        if self.requested:
            raise Interrupted
        self._interruptible = True
        try:
            yield
        finally:
            self._interruptible = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            for each, handler in self._previous.items():
                signal.signal(each, handler)
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name
        if self._interruptible:
            self._interruptible = False
            raise Interrupted
