"""What a run starts from: weights put into a model's variables, strictly; each part's line says so."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sm_jax.errors import ConfigError, WeightsError
from sm_jax.settings import nearest
from sm_jax.weights import checkpoints, registry, structure
from sm_jax.weights.io import (
    check_finite,
    check_names,
    check_shapes,
    flatten,
    is_ours,
    read_tensors,
    unflatten,
)


def parts_of(flat: Mapping[str, Any]) -> list[str]:
    """The parts of a model from its flat names `params/<part>/...`, in their order."""
    return list(dict.fromkeys(name.split("/")[1] for name in flat if name.startswith("params/")))


def _part(flat: Mapping[str, Any], part: str) -> dict[str, Any]:
    """The tensors of one part of the model: `params/<part>/...` and `batch_stats/<part>/...`."""
    return {name: value for name, value in flat.items() if name.split("/")[1] == part}


def is_backbone(part: str) -> bool:
    """Whether `init.backbone` gives a part: the backbone, or a branch (each then gets its own copy)."""
    return part == "backbone" or part.endswith("_branch")


def asked_for(init: Any, part: str) -> str:
    """The weights that `init` names for `part`: under its own key, for branches else `init.backbone`."""
    return _setting(init, part) or (_setting(init, "backbone") if is_backbone(part) else "")


def _of_part(tensors: Mapping[str, Any], part: str) -> dict[str, Any]:
    """The tensors of one part; those of a plain backbone serve any branch."""
    mine = _part(tensors, part)
    if mine or not is_backbone(part):
        return mine
    return {name.replace("/backbone/", f"/{part}/", 1): x for name, x in _part(tensors, "backbone").items()}


def _read(name_or_path: str) -> tuple[dict[str, np.ndarray], str]:
    """Tensors under our names and one phrase on where they came from."""
    path = registry.resolve(name_or_path)
    if path.is_dir():
        from sm_jax.training import restore_variables

        variables, meta = restore_variables(os.fspath(path))
        flat = flatten(variables)
        check_names(flat, where=str(path))
        return flat, f"the run in {path}, step {meta.get('step', '?')}"
    phrase = f"{name_or_path}" if Path(name_or_path) == path else f"{name_or_path} ({path.name})"
    if is_ours(path):  # of any system: `merge` compares every name
        tensors, _ = read_tensors(path)
        check_names(tensors, where=str(path))
        return tensors, phrase
    converted, _ = checkpoints.read(path)
    if converted.ignored:
        phrase += f", {len(converted.ignored)} unused tensors ignored"
    return converted.tensors, phrase


def _like(value: np.ndarray, leaf: Any) -> Any:
    """`value` in the dtype of `leaf`, and on its devices when `leaf` is a jax array."""
    value = np.asarray(value).astype(leaf.dtype)
    if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer):
        return jax.device_put(value, leaf.sharding)
    return value


def merge(variables: Mapping[str, Any], tensors: Mapping[str, np.ndarray], *, where: str, what: str) -> dict:
    """Replace the leaves of `variables` by `tensors` (flat, our names); strict both ways.

    The leaves may be abstract (`jax.ShapeDtypeStruct`). Returns NumPy arrays of the same dtypes, or jax
    arrays on the same devices where the leaves were jax arrays. Raises `WeightsError` with a `-`/`+` list.
    """
    flat = flatten(variables)
    check_shapes(
        {name: tuple(np.shape(value)) for name, value in tensors.items()},
        {name: tuple(leaf.shape) for name, leaf in flat.items()},
        where=where,
        what=what,
    )
    check_finite({name: np.asarray(value) for name, value in tensors.items()}, where=where)
    return unflatten({name: _like(tensors[name], leaf) for name, leaf in flat.items()})


def _setting(init: Any, name: str) -> str:
    value = (
        init.get(name, "") if isinstance(init, Mapping) or hasattr(init, "get") else getattr(init, name, "")
    )
    return value or ""


def _advice(part: str, leaves: Mapping[str, Any]) -> str:
    """The report line of a part that keeps the values it was initialised with."""
    if is_backbone(part):
        return (
            f"{part}: RANDOM start, its features mean nothing yet; for ImageNet features set "
            f"config.init.backbone={_imagenet(leaves)}"
        )
    return (
        "transform: untrained start (identity transformation); a converted file ('sm-jax weights convert') "
        "gives a trained one: config.init.transform in training, --transform in detection"
    )


def _imagenet(leaves: Mapping[str, Any]) -> str:
    """The registered ImageNet features that fit a backbone or a branch."""
    if any("/inception_" in name for name in leaves):
        return "googlenet-bvlc"
    if any(name.startswith("params/backbone/features_") for name in leaves):
        return "mobilenetv2-tv"
    if any(name.startswith("params/backbone/conv4_3/") for name in leaves):
        return "vgg16-tv"
    deep = structure.recognise({name: tuple(leaf.shape) for name, leaf in leaves.items()}).depth == 101
    return "resnet101-tv" if deep else "resnet50-caffe-c4"


def _untrained(parts: list[str], flat: Mapping[str, Any]) -> list[str]:
    """Report lines of all parts that nothing was loaded for; the small heads share one."""
    known = [part for part in parts if is_backbone(part) or part == "transform"]
    heads = [part for part in parts if part not in known and part != "pool"]  # an exponent, not random
    lines = [_advice(part, _part(flat, part)) for part in known]
    if heads:
        lines.append(
            f"{', '.join(heads)}: random start, as training begins; a run or an exported file "
            "(config.init.model) gives trained ones"
        )
    return lines


def _check_asked(init: Any, parts: list[str]) -> None:
    """Refuse weights for a part that the model does not have: nothing would load them."""
    asked = {name: value for name, value in init.items() if isinstance(value, str) and value}
    for name in asked:
        shared = name == "backbone" and any(is_backbone(part) for part in parts)
        if name != "model" and name not in parts and not shared:
            raise ConfigError(
                f"config.init.{name}={asked[name]!r}: this model has no such part{nearest(name, parts)}"
            )


def _geometry_from_appearance(
    tensors: dict[str, np.ndarray], parts: list[str]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """A trained SCNet-A as the start of an AG+: its second embedding starts as a copy of the first.

    Returns the tensors, and a report line where something was copied. Source: SCNet (ICCV 2017), published
    code.
    """
    if "fc_geometry" not in parts or _part(tensors, "fc_geometry") or not _part(tensors, "fc"):
        return tensors, []
    copies = {name.replace("/fc/", "/fc_geometry/", 1): value for name, value in _part(tensors, "fc").items()}
    return tensors | copies, ["fc_geometry: starts as a copy of fc, which the model alone has"]


def initialize(variables: Mapping[str, Any], init: Any) -> tuple[dict, list[str]]:
    """Load what `config.init` asks for into freshly initialised variables: `(variables, report lines)`.

    `init` has the string `model` and one for each part of the model that can be loaded alone (`backbone`,
    `transform`, ...: the names below `params`); each is a registry name, a path or the folder of a run, "" =
    not asked for. `model` gives everything and wins over `backbone`; any other part that is named overrides
    the one of `model`. Each part must fit exactly: missing, unexpected or misshapen tensors raise
    `WeightsError`; a part that the model does not have, `ConfigError`. A part that nothing is asked for keeps
    its values (an abstract leaf stays abstract) and its report line says so.

    Order of precedence: OS2D (ECCV 2020), published OS2D code; there, failures are swallowed, here they are
    errors.
    """
    result = flatten(variables)
    report = []
    loaded: set[str] = set()

    def put(part: str, tensors: Mapping[str, Any], where: str, what: str) -> None:
        mine = _part(result, part)
        merged = merge(unflatten(mine), tensors, where=where, what=what)
        result.update(flatten(merged))
        loaded.add(part)

    present = parts_of(result)
    if hasattr(init, "items"):
        _check_asked(init, present)
    if model := _setting(init, "model"):
        tensors, phrase = _read(model)
        tensors, copied = _geometry_from_appearance(tensors, present)
        merged = merge(unflatten(result), tensors, where=model, what="this model (config.model)")
        result.update(flatten(merged))
        loaded.update(present)
        report.append(f"model: {len(tensors)} tensors from {phrase}")
        report += copied
        if backbone := _setting(init, "backbone"):
            report.append(
                f"backbone: {backbone} is not used, because config.init.model gives the whole model"
            )
    for part in present:
        own = "" if part == "backbone" else _setting(init, part)
        name = own or ("" if part in loaded else asked_for(init, part))
        if not name:
            continue
        tensors, phrase = _read(name)
        mine = _of_part(tensors, part)
        if not mine:
            raise WeightsError(f"config.init.{part}: {name} holds no {part} weights")
        put(part, mine, name, f"the {part} of this model (config.model)")
        extra = len(tensors) - len(mine)
        others = f"; the other {extra} tensors of the file are not used" if extra else ""
        report.append(f"{part}: {len(mine)} tensors from {phrase}{others}")
    report += _untrained([part for part in present if part not in loaded], result)
    return unflatten(result), report
