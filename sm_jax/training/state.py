"""The state of a run as one pytree, and how it is made."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

Array = jax.Array
Tree = Any


class TrainState(NamedTuple):
    """Everything that a step reads and replaces; the batch comes from outside.

    Attributes:
      step: () int32, optimizer steps done.
      params: nested dict of float32 arrays.
      collections: the other collections of `variables`, for example `{"batch_stats": {...}}`.
      opt_state: the optimizer's state over the trainable parameters only (a flat dict of paths).
      ema: moving average of `params` (same tree), or {} when it is off.
      scale: loss scale for float16, `{"value": () float32, "good": () int32}`, or {} without one.
      failed: () int32, -1, or the step whose loss, gradient or result was not finite; nothing changes after.
    """

    step: Array
    params: Tree
    collections: Tree
    opt_state: Tree
    ema: Tree
    scale: Tree
    failed: Array

    @property
    def variables(self) -> Tree:
        """`{"params": ..., "batch_stats": ...}` as the model takes it."""
        return {"params": self.params, **self.collections}

    @property
    def averaged(self) -> Tree:
        """`variables` with the moving average in place of the parameters, where there is one."""
        return {**self.variables, "params": self.ema or self.params}


def create(
    variables: Tree,
    optimizer: optax.GradientTransformation,
    trainable: Callable[[str], bool],
    *,
    ema: bool,
    loss_scale: float | None,
) -> TrainState:
    """The state before the first step. Traceable; no output shares a buffer with another."""
    collections = {name: value for name, value in variables.items() if name != "params"}
    params = variables["params"]
    scale = {}
    if loss_scale is not None:
        scale = {"value": jnp.asarray(loss_scale, jnp.float32), "good": jnp.zeros((), jnp.int32)}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        collections=collections,
        opt_state=optimizer.init(partition(params, trainable)[0]),
        ema=jax.tree.map(jnp.copy, params) if ema else {},
        scale=scale,
        failed=jnp.full((), -1, jnp.int32),
    )


def partition(params: Tree, trainable: Callable[[str], bool]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Split nested `params` into two flat dicts by path `"a/b/c"`: those that train, and the others."""
    flat = traverse_util.flatten_dict(params, sep="/")
    chosen = {path: bool(trainable(path)) for path in flat}
    return (
        {path: value for path, value in flat.items() if chosen[path]},
        {path: value for path, value in flat.items() if not chosen[path]},
    )


def merge(*parts: dict[str, Array]) -> Tree:
    """The nested dict of several flat ones; the inverse of `partition`."""
    return traverse_util.unflatten_dict({k: v for part in parts for k, v in part.items()}, sep="/")


def update_collections(collections: Tree, updates: Tree) -> Tree:
    """`collections` with the sub-trees of `updates` in place of theirs; an unknown name raises KeyError."""
    result = dict(collections)
    for name, value in updates.items():
        if name not in result:
            raise KeyError(f"the loss updates {name!r}, which the model does not have")
        inner = isinstance(value, dict) and isinstance(result[name], dict)
        result[name] = update_collections(result[name], value) if inner else value
    return result


def to_flat(tree: Tree) -> dict[str, Array]:
    """Every leaf by its path `"a/b/c"` (dict keys, field names, indices), whatever the containers are."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def from_flat(flat: dict[str, Array], like: Tree) -> Tree:
    """The tree of the structure of `like` with the leaves of `flat`; the inverse of `to_flat`."""
    return jax.tree.unflatten(jax.tree.structure(like), [flat[path] for path in to_flat(like)])
