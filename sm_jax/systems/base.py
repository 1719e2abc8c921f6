"""The seam between a matcher and everything that trains, evaluates or serves it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Array = jax.Array
Batch = dict[str, Array]
Metrics = dict[str, Array]
Variables = dict[str, Any]


class System(NamedTuple):
    """A matcher as pure functions; all state is in `variables` (`params` and `batch_stats`).

    Attributes:
      init: `(key, batch) -> variables`; can be traced by `jax.eval_shape`.
      loss: `(variables, batch, key) -> (scalar, (metrics, updates))`; `updates` holds the collections that
        the step replaces (for example `{"batch_stats": ...}`, only the changed sub-tree) and may be empty.
      encode: `(variables, requests) -> encoded`; the request side, computed once per request.
      predict: `(variables, images, encoded) -> dict of arrays` of fixed shapes.
      trainable: `path -> bool` for a parameter path such as `"backbone/conv1/kernel"`; a parameter that is
        not trainable gets no update and no weight decay.
    """

    init: Callable[[Array, Batch], Variables]
    loss: Callable[[Variables, Batch, Array], tuple[Array, tuple[Metrics, dict[str, Any]]]]
    encode: Callable[[Variables, dict[str, Array]], dict[str, Array]]
    predict: Callable[[Variables, dict[str, Array], dict[str, Array]], dict[str, Array]]
    trainable: Callable[[str], bool] = lambda path: True
