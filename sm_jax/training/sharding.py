"""Mesh, and which array lies how on it. Arrays follow pjit-style sharding: `jax.jit` plus `NamedSharding`."""

import os
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from sm_jax.errors import ConfigError

AXES = ("data", "fsdp")
MIN_SIZE = 2**16  # smaller arrays cost more to gather than to hold


def start_distributed(config: Any) -> None:
    """Join the other processes when `config.distributed`; a second call does nothing.

    Cluster managers that jax knows need nothing more. Elsewhere set `JAX_COORDINATOR_ADDRESS=host:port`,
    `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` for every process.
    """
    if not config.get("distributed", False) or jax.distributed.is_initialized():
        return
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    address, count, index = (os.environ.get(name) for name in names)
    try:
        if address:
            jax.distributed.initialize(address, int(count or ""), int(index or ""))
        else:
            jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"distributed=True without a cluster ({reason}); set {', '.join(names)}") from error


def make_mesh(config: Any) -> jax.sharding.Mesh:
    """The mesh (`data`, `fsdp`) of `config.mesh`; -1 in one place means all remaining devices.

    A mesh of fewer devices than there are takes the first ones (one process only).
    """
    sizes = [config.get("data", -1), config.get("fsdp", 1)]
    devices = jax.devices()
    shown = f"mesh.data={sizes[0]}, mesh.fsdp={sizes[1]}"
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ConfigError(f"{shown}: sizes are at least 1, and one of them may be -1 (all remaining devices)")
    if -1 in sizes:
        known = -int(np.prod(sizes))
        if len(devices) % known:
            raise ConfigError(f"{shown}: {len(devices)} devices do not divide by {known}")
        sizes[sizes.index(-1)] = len(devices) // known
    wanted = sizes[0] * sizes[1]
    if wanted > len(devices) or (jax.process_count() > 1 and wanted != len(devices)):
        raise ConfigError(f"{shown} asks for {wanted} devices, there are {len(devices)}")
    # Explicit axis types, the default, are refused by Linen convolutions.
    types = (jax.sharding.AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(sizes), AXES, axis_types=types, devices=devices[:wanted])


def infer(
    shapes: Any,
    mesh: jax.sharding.Mesh,
    rules: Sequence[tuple[str, jax.P]] = (),
    *,
    min_size: int = MIN_SIZE,
) -> Any:
    """Where each array of a tree lies.

    Args:
      shapes: tree of arrays or `ShapeDtypeStruct`.
      mesh: the mesh; axis `fsdp` splits parameters, and with them what has their shape (optimizer, average).
      rules: `(regular expression, PartitionSpec)`; the first that is found in an array's path wins.
      min_size: without a rule, an array of at least this many values is split over `fsdp` along its longest
        axis that divides; all others are replicated.

    Returns:
      The tree of `NamedSharding`.
    """

    def place(path: Any, leaf: Any) -> jax.NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for pattern, spec in rules:
            if re.search(pattern, name):
                return jax.NamedSharding(mesh, spec)
        return jax.NamedSharding(mesh, _split_longest(leaf.shape, mesh.shape["fsdp"], min_size))

    return jax.tree.map_with_path(place, shapes)


def check_batch_size(mesh: jax.sharding.Mesh, batch_size: int) -> None:
    """Raise `ConfigError` when `batch_size` images do not divide over the devices."""
    if batch_size < 1 or batch_size % mesh.size:
        near = max(1, -(-batch_size // mesh.size)) * mesh.size
        raise ConfigError(
            f"batch_size={batch_size} does not divide over {mesh.size} devices; "
            f"use batch_size={near}, or fewer devices with mesh.data"
        )


def batch_sharding(batch: dict[str, Any], mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Where each array of a batch lies: split over all devices along its first axis, where that divides.

    Args:
      batch: arrays of this process (its own rows).
      mesh: the mesh.

    Raises:
      ConfigError: with several processes, rows that do not divide (one process replicates such an array).
    """
    devices, processes = mesh.size, jax.process_count()
    result = {}
    for name, value in batch.items():
        rows = value.shape[0] * processes if value.ndim else 0
        if value.ndim and rows % devices and processes > 1:
            raise ConfigError(
                f"the {rows} rows of batch[{name!r}] do not divide over {devices} devices in {processes} "
                "processes; use a size that does (for queries: data.class_batch_size)"
            )
        whole = not value.ndim or rows % devices
        result[name] = jax.NamedSharding(mesh, jax.P() if whole else jax.P(AXES))
    return result


def put(batch: dict[str, np.ndarray], shardings: dict[str, Any]) -> dict[str, jax.Array]:
    """Global arrays from this process's rows."""
    return {
        name: jax.make_array_from_process_local_data(shardings[name], np.asarray(value))
        for name, value in batch.items()
    }


def to_local(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """The whole of each array, on this process's first device of the mesh."""
    if mesh.size == 1:
        return tree
    whole = jax.jit(lambda tree: tree, out_shardings=jax.NamedSharding(mesh, jax.P()))(tree)
    return jax.tree.map(lambda array: array.addressable_data(0), whole)


def _split_longest(shape: tuple[int, ...], parts: int, min_size: int) -> jax.P:
    if parts == 1 or int(np.prod(shape)) < min_size:
        return jax.P()
    axes = [axis for axis, size in enumerate(shape) if size % parts == 0 and size > 0]
    if not axes:
        return jax.P()
    best = max(axes, key=lambda axis: shape[axis])
    return jax.P(*(None,) * best, "fsdp")
