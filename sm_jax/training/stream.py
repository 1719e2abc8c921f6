"""Batches on the devices, with an iterator state that belongs to the step boundary."""

import json
from typing import Any

import jax
import numpy as np

from sm_jax.errors import DataError
from sm_jax.training import sharding


class Stream:
    """Micro-batches for the steps, from an iterator of NumPy batches with `get_state` and `set_state`.

    Args:
      iterator: yields dicts of this process's rows. `get_state()` gives something that JSON can hold (or
        bytes), the same on every process.
      mesh: where the batches go.
      accumulate: batches per step.
    """

    def __init__(self, iterator: Any, mesh: jax.sharding.Mesh, *, accumulate: int = 1):
        self._iterator, self._mesh, self._accumulate = iterator, mesh, accumulate
        self._peeked: tuple[Any, dict[str, np.ndarray]] | None = None
        self._boundary: Any = None  # the state before a step whose batches did not all come
        self._shardings: dict[str, Any] | None = None

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of one batch; reads it, and keeps it for the next step."""
        if self._peeked is None:
            state = self.state()
            self._peeked = (state, self._read())
        return {k: jax.ShapeDtypeStruct(np.shape(v), np.asarray(v).dtype) for k, v in self._peeked[1].items()}

    def next(self) -> list[dict[str, jax.Array]]:
        """The micro-batches of one step; if one cannot be read, `state` stays that of the step boundary."""
        boundary = self.state() if self._accumulate > 1 else None
        try:
            batches = [self._take() for _ in range(self._accumulate)]
        except Exception:
            self._boundary = boundary
            raise
        if self._shardings is None:
            self._shardings = sharding.batch_sharding(batches[0], self._mesh)
        return [sharding.put(batch, self._shardings) for batch in batches]

    def complete(self, variables: Any) -> Any:
        """The variables of a new run with what the iterator adds from its data, if it has a `complete`."""
        complete = getattr(self._iterator, "complete", None)
        return variables if complete is None else complete(variables)

    def check(self, variables: Any) -> None:
        """Let the iterator refuse a model that its batches are not for, if it has a `check` of its own."""
        check = getattr(self._iterator, "check", None)
        if check is not None:
            check(variables)

    def state(self) -> Any:
        """Where the next batch comes from, as JSON can hold it."""
        if self._boundary is not None:
            return self._boundary
        if self._peeked is not None:
            return self._peeked[0]
        state = self._iterator.get_state()
        return {"bytes": state.decode()} if isinstance(state, bytes) else json.loads(json.dumps(state))

    def restore(self, state: Any) -> None:
        """Continue where `state` was taken."""
        as_bytes = isinstance(state, dict) and set(state) == {"bytes"}
        self._peeked = self._boundary = None
        self._iterator.set_state(state["bytes"].encode() if as_bytes else state)

    @property
    def memory(self) -> Any:
        """What the iterator's batches are made from besides the data; None without."""
        return getattr(self._iterator, "memory", None)

    def remember(self, memory: Any) -> None:
        """From the next step on make batches from that memory; one that was read ahead is made again."""
        self.restore(self.state())
        self._iterator.remember(memory)

    def _take(self) -> dict[str, np.ndarray]:
        if self._peeked is None:
            return self._read()
        batch, self._peeked = self._peeked[1], None
        return batch

    def _read(self) -> dict[str, np.ndarray]:
        try:
            return next(self._iterator)
        except StopIteration:
            raise DataError("the training data ended before the last step; it must repeat") from None
