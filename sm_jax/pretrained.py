"""From the name of weights to a model that fits them."""

import json
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
    path = registry.resolve(weights)
    fields = _run_model(path) if path.is_dir() else _fields(_architecture(path), weights)
    whole = path.is_dir() or fields.pop("whole")
    if transform:
        parameters = _architecture(registry.resolve(transform)).parameters
        if parameters is None:
            raise WeightsError(f"{transform}: holds no weights of a transformation network")
        fields.update(simplified=parameters == 4, inverse=parameters == 6)
    config = os2d.ModelConfig.create({**fields, **(overrides or {})})
    init = {"model": weights if whole else "", "backbone": "" if whole else weights, "transform": transform}
    variables, notes = start.initialize(template(config), init)
    return config, jax.device_put(variables), notes


def template(config: os2d.ModelConfig) -> dict:
    """Variables to load a backbone into: it is abstract, the transformation network is untrained."""
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda: os2d.init(config, key))

    def transform_only():
        return {kind: {"transform": tree["transform"]} for kind, tree in os2d.init(config, key).items()}

    fresh = jax.device_get(jax.jit(transform_only)())  # the backbone's initialisation is not compiled
    return {kind: {**tree, **fresh[kind]} for kind, tree in shapes.items()}


def _architecture(path: Path) -> Architecture:
    converted, _ = checkpoints.read(path)
    return recognise({name: tuple(array.shape) for name, array in converted.tensors.items()})


def _fields(found: Architecture, where: str) -> dict[str, Any]:
    if found.depth is None:
        raise WeightsError(f"{where}: holds no backbone; give it as transform=, and a backbone as weights=")
    simplified = found.parameters in (None, 4)
    norm = "group_norm" if found.norm == "group_norm" else "frozen_bn"
    return {
        "depth": found.depth,
        "norm": norm,
        "simplified": simplified,
        "inverse": not simplified,
        "whole": found.parameters is not None,
    }


def _run_model(folder: Path) -> dict[str, Any]:
    """The `model` section of the config that a training run saved."""
    path = folder / "config.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["model"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{folder}: not the folder of a training run ({path.name}: {error})") from error
