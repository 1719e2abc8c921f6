"""From the name of weights to a model that fits them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from sm_jax.errors import WeightsError
from sm_jax.systems.os2d import model as os2d
from sm_jax.weights import checkpoints, registry, start
from sm_jax.weights.structure import Architecture, recognise


def restore(
    weights: str | os.PathLike, transform: str | os.PathLike = "", overrides: Mapping[str, Any] | None = None
) -> tuple[os2d.ModelConfig, dict, list[str]]:
    """The OS2D model that `weights` are for, its variables, and lines that say where they came from.

    Args:
      weights: registered name, safetensors file, or folder of a training run. With a backbone alone the
        transformation network is the untrained one, which deforms nothing.
      transform: weights of the transformation network from another file, "" for none.
      overrides: fields of `ModelConfig` that are not read from the weights.

    Raises:
      WeightsError: weights that are not there, hold no backbone, or do not fit; ConfigError: unknown fields.
    """
    weights, transform = os.fspath(weights), os.fspath(transform)
    if not weights:
        raise WeightsError("weights: give a name (see 'sm-jax weights list'), a file or the folder of a run")
    path = registry.resolve(weights)
    if path.is_dir():
        return _restore_run(path, transform, dict(overrides or {}))
    found = _architecture(path)
    if found.depth is None:
        raise WeightsError(f"{weights}: holds no backbone; give it as transform=, and a backbone as weights=")
    fields = {"depth": found.depth, "norm": "group_norm" if found.norm == "group_norm" else "frozen_bn"}
    fields |= _version(found.parameters)
    init = {"model": "", "backbone": "", "transform": transform}
    init["backbone" if found.parameters is None else "model"] = weights
    if transform:
        parameters = _architecture(registry.resolve(transform)).parameters
        if parameters is None:
            raise WeightsError(f"{transform}: holds no weights of a transformation network")
        fields |= _version(parameters)
    config = os2d.ModelConfig.create({**fields, **(overrides or {})})
    variables, notes = begin(config, init)
    return config, variables, notes


def begin(config: os2d.ModelConfig, init: Mapping[str, Any]) -> tuple[dict, list[str]]:
    """Variables on the device that a run with `config.model` and `config.init` starts from, and report lines.

    What is loaded anyway is not initialised, because compiling that takes half a minute.
    """
    key = jax.random.key(0)

    def everything():
        return os2d.init(config, key)

    def transform_only():
        return {kind: {"transform": tree["transform"]} for kind, tree in everything().items()}

    if init.get("model") or init.get("backbone"):
        fresh = jax.device_get(jax.jit(transform_only)())
        shapes = jax.eval_shape(everything)
        variables = {kind: {**tree, **fresh[kind]} for kind, tree in shapes.items()}
    else:
        variables = jax.jit(everything)()
    variables, notes = start.initialize(variables, init)
    return jax.device_put(variables), notes


def _restore_run(folder: Path, transform: str, overrides: dict[str, Any]):
    from sm_jax.training import restore_config, restore_variables  # brings the checkpoint library

    if transform:
        raise WeightsError(f"{folder}: a run has its own transformation network; leave transform out")
    config = os2d.ModelConfig.create({**restore_config(folder).model.to_dict(), **overrides})
    variables, meta = restore_variables(folder)
    return config, jax.device_put(variables), [f"model: the run in {folder}, step {meta['step']}"]


def _version(parameters: int | None) -> dict[str, bool]:
    """V1 has 4 parameters, V2 has 6 and is used inversely; V1 where there are none."""
    return {"simplified": parameters != 6, "inverse": parameters == 6}


def _architecture(path: Path) -> Architecture:
    converted, _ = checkpoints.read(path)
    return recognise({name: tuple(array.shape) for name, array in converted.tensors.items()})
