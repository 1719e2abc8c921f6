"""From the name of weights to a model that fits them."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from sm_jax import systems
from sm_jax.errors import WeightsError
from sm_jax.systems.os2d import model as os2d
from sm_jax.weights import checkpoints, export, registry, start
from sm_jax.weights.io import flatten, unflatten
from sm_jax.weights.structure import Architecture, recognise


class Trained(NamedTuple):
    """A trained model: its whole `config`, its `variables` on the device, lines on where they are from."""

    config: ConfigDict
    variables: dict[str, Any]
    notes: list[str]


def trained(
    weights: str | os.PathLike, *, system: str = "", overrides: Mapping[str, Any] | None = None
) -> Trained:
    """The model of a training run, or of a file that `sm-jax weights export` made from one.

    Args:
      weights: registered name, safetensors file, or folder of a training run.
      system: the system that it must be of, "" for any.
      overrides: fields of `config.model` that replace those of the run, for example `{"dtype": "bfloat16"}`.

    Raises:
      WeightsError: no such weights, a file without a config, another system, or weights that do not fit;
      ConfigError: unknown fields.
    """
    if not os.fspath(weights):
        raise WeightsError("weights: give a name (see 'sm-jax weights list'), a file or the folder of a run")
    path = registry.resolve(weights)
    if path.is_dir():
        from sm_jax.training import restore_config

        config = restore_config(path)
    else:
        config = export.read_config(path)
        if config is None:
            raise WeightsError(
                f"{weights}: does not say which model it is for (no config in it); give a training run, or a "
                "file that 'sm-jax weights export' made from one"
            )
    if system and config.system != system:
        raise WeightsError(f"{weights}: is for the system {config.system}, not for {system}")
    config = ConfigDict(config.to_dict())
    with config.unlocked():
        config.model = {**config.model.to_dict(), **(overrides or {})}
        config.init = {"model": os.fspath(weights)}
    variables, notes = begin(config)
    return Trained(config, variables, notes)


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
    if path.is_dir() or export.read_config(path) is not None:
        if transform:
            raise WeightsError(f"{path}: a run has its own transformation network; leave transform out")
        config, variables, notes = trained(weights, system="os2d", overrides=overrides)
        return os2d.ModelConfig.create(config.model), variables, notes
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
    model = os2d.ModelConfig.create({**fields, **(overrides or {})})
    sections = {"model": dataclasses.asdict(model), "objective": {}, "init": init}
    variables, notes = begin(ConfigDict({"system": "os2d", **sections}))
    return model, variables, notes


def begin(config: Any) -> tuple[dict, list[str]]:
    """Variables on the device that a run with `config` starts from, and report lines.

    What is loaded anyway is not initialised, because compiling that can take half a minute.

    Args:
      config: a whole config; read are `system`, its sections, `init` and `seed`.

    Raises:
      ConfigError, WeightsError.
    """
    system, init = systems.make(config), config.get("init", {})
    # The key that training starts from.
    key = jax.random.split(jax.random.key(config.get("seed", 0)))[0]

    def everything():
        return system.init(key, None)

    shapes = flatten(jax.eval_shape(everything))
    parts = start.parts_of(shapes)
    loaded = {part for part in parts if init.get("model") or start.asked_for(init, part)}

    def remaining():
        return {
            name: leaf for name, leaf in flatten(everything()).items() if name.split("/")[1] not in loaded
        }

    fresh = jax.device_get(jax.jit(remaining)()) if loaded != set(parts) else {}
    variables, notes = start.initialize(unflatten(shapes | fresh), init)
    return jax.device_put(variables), notes


def _version(parameters: int | None) -> dict[str, bool]:
    """V1 has 4 parameters, V2 has 6 and is used inversely; V1 where there are none."""
    return {"simplified": parameters != 6, "inverse": parameters == 6}


def _architecture(path: Path) -> Architecture:
    converted, _ = checkpoints.read(path)
    return recognise({name: tuple(array.shape) for name, array in converted.tensors.items()})
