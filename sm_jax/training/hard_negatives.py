"""The pass over the pool of an epoch that chooses its negatives (`data.retrieval`), for the training loop."""

import functools
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sm_jax.data.retrieval import BatchBuilder, Negatives, hardest
from sm_jax.systems.retrieval import model

AHEAD = 2  # chunks that are read while one is described
CHUNK = 16  # pictures described at a time
Say = Callable[[str], None]


class NegativeMiner:
    """Chooses what the model of the moment confuses with each query, at the start of every epoch.

    With several processes all do the same work and find the same.

    Args:
      config: the whole config.
      make_builder: gives the builder of the training batches; called when it is needed first.
    """

    def __init__(self, config: Any, make_builder: Callable[[], BatchBuilder]):
        self._model = model.ModelConfig.create(config.model)
        self._make_builder = make_builder

    @property
    def every(self) -> int:
        """Optimizer steps of an epoch."""
        return self._builder.every

    @functools.cached_property
    def _builder(self) -> BatchBuilder:
        return self._make_builder()

    def run(self, variables: Any, *, step: int, say: Say) -> Negatives:
        """The negatives of the epoch that begins after `step` steps.

        Args:
          variables: on this process's first device.
          step: steps done.
          say: takes a line on what was found.
        """
        began = time.perf_counter()
        number = step // self.every
        epoch, labels = self._builder.epochs[number], self._builder.crops.labels
        rows = np.union1d(epoch.queries, epoch.pool)
        found, valid = describe(self._model, variables, self._builder, rows)
        pool = epoch.pool[valid[np.searchsorted(rows, epoch.pool)]]
        scores = found[np.searchsorted(rows, epoch.queries)] @ found[np.searchsorted(rows, pool)].T
        count = self._builder.options.negatives
        negatives = hardest(scores, labels[epoch.queries], labels[pool], pool, count)
        say(
            f"epoch {number}: hard negatives of {len(epoch.queries)} queries among {len(pool)} pictures, in "
            f"{time.perf_counter() - began:.0f} s"
        )
        return Negatives(step, number, negatives)


def describe(
    config: model.ModelConfig, variables: Any, builder: BatchBuilder, rows: np.ndarray, *, whiten: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Descriptors f32 (r, d) of training pictures, and which of them could be read, bool (r,).

    Args:
      config: the model.
      variables: of it.
      builder: of the pictures; its stored features are used where it has them.
      rows: (r,) of `builder.crops`.
      whiten: else pooled features are given, without the learned layer.
    """
    found, valid = [], []
    for batch in _batches(builder, rows):
        found.append(np.asarray(_descriptors(config, whiten, variables, batch)))
        valid.append(batch["valid"])
    return np.concatenate(found)[: len(rows)], np.concatenate(valid)[: len(rows)]


def _batches(builder: BatchBuilder, rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """Chunks of one size, read ahead; the last is filled up with pictures that are not there."""
    rows = np.pad(np.asarray(rows, np.int64), (0, -len(rows) % CHUNK), constant_values=-1).reshape(-1, CHUNK)
    with ThreadPoolExecutor(AHEAD) as pool:
        reading: deque[Any] = deque()
        for chunk in rows:
            reading.append(pool.submit(builder.pictures, chunk))
            if len(reading) > AHEAD:
                yield builder.finish(reading.popleft().result())[0]
        while reading:
            yield builder.finish(reading.popleft().result())[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _descriptors(config: model.ModelConfig, whiten: bool, variables: Any, batch: dict[str, Any]) -> jax.Array:
    features = batch.get("image_trunk")
    if features is None:
        features = model.extract(config, variables, batch["image"], batch["size"])
    pooled = model.pool(variables, features, batch["size"])
    return model.whiten(config, variables, pooled) if whiten else jnp.asarray(pooled)
