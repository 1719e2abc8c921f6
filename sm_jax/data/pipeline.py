"""The training iterator: grain builds batches ahead in worker processes; the position is the whole state."""

import json
import logging
import multiprocessing
import os
import signal
import threading
from typing import Any, Protocol

import grain
import numpy as np
from absl import flags

from sm_jax.errors import DataError

MAX_SKIPPED_SHARE = 0.01
_log = logging.getLogger("sm_jax.data")


class Builder(Protocol):
    """Makes batches: picklable, NumPy only.

    One with a `memory` (an object with `json`, or None) makes them from what was found out during training;
    its `with_memory(memory or its JSON)` gives the builder of the same batches with another.

    Attributes:
      totals: kind of picture -> how many there are; for judging how many of them cannot be read.
    """

    totals: dict[str, int]

    def __len__(self) -> int: ...

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        """Batch k as it travels between processes, a pure function of k."""

    def finish(self, batch: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list]:
        """The training batch, and (kind, name, message) of every picture that could not be read."""


class TrainIterator:
    """Endless iterator over this process's rows of the training batches.

    Batch k is a pure function of the builder, so the batches do not depend on the number of workers, and the
    state is the number of the next batch and the builder's memory, the same on every process. It follows
    grain's checkpoint protocol: `grain.checkpoint.CheckpointSave(iterator)` and `CheckpointRestore(iterator)`
    work.

    Pictures that cannot be read were replaced by the builder; here they are counted and named once each.

    Args:
      builder: makes batch k.
      workers: processes that build batches; 0 builds them in threads of this process.

    Raises:
      DataError: from `next`, when more than 1 % of the pictures of a kind cannot be read.
    """

    def __init__(self, builder: Builder, *, workers: int = 0):
        self._builder = builder
        self._workers = workers
        self._position = 0
        self._iterator: Any = None
        self._skipped: dict[tuple[str, str], str] = {}  # (kind, reason) -> name

    def __iter__(self) -> "TrainIterator":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        self.start_prefetch()
        batch, skipped = self._builder.finish(next(self._iterator))
        self._position += 1
        self._count(skipped)
        return batch

    @property
    def skipped(self) -> list[tuple[str, str, str]]:
        """What could not be read so far in this process: (kind, name, reason), each reason once."""
        return [(kind, name, reason) for (kind, reason), name in self._skipped.items()]

    @property
    def memory(self) -> Any:
        """The builder's, None without."""
        return getattr(self._builder, "memory", None)

    def remember(self, memory: Any) -> None:
        """Goes on with a builder of that memory; workers end and start again, and batches ahead are dropped.

        Raises:
          DataError: the builder refuses it.
        """
        self.close()
        self._builder = self._builder.with_memory(memory)

    def get_state(self) -> bytes:
        """Position and memory as JSON bytes (what grain's checkpoint handler expects)."""
        memory = {} if self.memory is None else {"memory": self.memory.json}
        return json.dumps({"next_batch": self._position} | memory).encode()

    def set_state(self, state: bytes | str | dict[str, Any]) -> None:
        """Goes on with the batch that `get_state` stood before. Raises DataError for anything else."""
        try:
            values = state if isinstance(state, dict) else json.loads(state)
            position = int(values["next_batch"])
        except (TypeError, ValueError, KeyError) as error:
            raise DataError(f"not the state of a training iterator: {str(state)[:80]!r}") from error
        self.close()
        self._position = position
        if hasattr(self._builder, "with_memory"):
            self.remember(values.get("memory"))

    def start_prefetch(self) -> None:
        """Starts building batches ahead; `next` does it by itself."""
        if self._iterator is None:
            self._iterator = iter(_dataset(self._builder, self._position, self._workers))

    def close(self) -> None:
        """Ends the workers; the iterator can be used again and goes on where it was."""
        iterator, self._iterator = self._iterator, None
        if hasattr(iterator, "close"):
            iterator.close()

    def __enter__(self) -> "TrainIterator":
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def _count(self, skipped: list[tuple[str, str, str]]) -> None:
        for kind, name, reason in skipped:
            if (kind, reason) not in self._skipped:
                self._skipped[kind, reason] = name
                _log.warning("skipped %s %s: %s", kind, name, reason)
        for kind, total in self._builder.totals.items():
            reasons = [reason for skipped_kind, reason in self._skipped if skipped_kind == kind]
            if len(reasons) > MAX_SKIPPED_SHARE * total:
                self.close()
                raise DataError(
                    f"{len(reasons)} of {total} {kind}s cannot be read, more than "
                    f"{MAX_SKIPPED_SHARE:.0%}; the first: {reasons[0]}; `sm-jax data check --json` lists them"
                )


class _From:
    """Batches of a builder from a position on."""

    def __init__(self, builder: Builder, start: int):
        self._builder, self._start = builder, start

    def __len__(self) -> int:
        return len(self._builder) - self._start

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self._builder[self._start + int(index)]


def _dataset(builder: Builder, start: int, workers: int) -> grain.IterDataset:
    batches = grain.MapDataset.source(_From(builder, start))
    if not workers:
        return batches.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain's workers read flags, which a notebook never parses
    serial = batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    return serial.mp_prefetch(options, worker_init_fn=_leave_with_parent)


def _leave_with_parent(index: int, count: int) -> None:
    """In a worker: leave Ctrl-C to the parent, which ends its workers, and do not outlive a killed one."""
    del index, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def process_part() -> tuple[int, int]:
    """(index, count) of this process in a distributed run."""
    shard = grain.sharding.ShardByJaxProcess()
    return shard.shard_index, shard.shard_count
