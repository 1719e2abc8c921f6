"""The folder of a run: `config.json`, `evaluations.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/`."""

import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import sm_jax
from sm_jax.errors import ConfigError

# Differences in these make the state of a run meaningless for the other config; names in HARMLESS do not.
# With another category left out (SCNet) the run would be measured on what it was trained on before.
STATE_KEYS = ("system", "model.", "init.", "data.leave_out", "optim.name", "optim.adam_parts", "optim.ema")
HARMLESS = ("model.remat",)
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def prepare(workdir: str | os.PathLike) -> Path:
    """The absolute folder, created; `ConfigError` when that is not possible."""
    folder = Path(workdir).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"workdir {folder} cannot be made ({error.strerror}); give another --workdir"
        ) from error
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"workdir {folder} cannot be written; give another --workdir")
    return folder


def to_dict(config: Any) -> dict[str, Any]:
    """`config` as plain JSON values (tuples become lists)."""
    return json.loads(config.to_json_best_effort())


def tuples(value: Any) -> Any:
    """`value` as JSON gives it with tuples for its lists, as config files have them."""
    if isinstance(value, dict):
        return {key: tuples(item) for key, item in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one atomic replacement."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(scratch, path)


def read_json(path: Path, default: Any) -> Any:
    """The content of a JSON file, or `default` where there is none."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return default
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}); remove it or use another --workdir") from error


def check_same_run(saved: dict[str, Any], config: Any, folder: Path) -> list[str]:
    """Compare the config of a run's checkpoint with the one to continue it.

    Returns:
      One line per difference that is taken over (steps, rates, ...).

    Raises:
      ConfigError: the differences that make the state incompatible, all named.
    """
    old, new = _flat(saved), _flat(to_dict(config))
    for keys in (old, new):
        if "optim.ema" in keys:
            keys["optim.ema"] = keys["optim.ema"] or 0.0
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    fatal = [key for key in changed if _of_state(key, old, new)]
    lines = {key: f"{key}: {_show(old, key)} -> {_show(new, key)}" for key in changed}
    if fatal:
        raise ConfigError(
            f"{folder} holds a run of another config ({', '.join(lines[key] for key in fatal)}); "
            "use another --workdir, or the values of that run"
        )
    return list(lines.values())


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a run depends on."""
    found = {"python": platform.python_version(), "sm_jax": sm_jax.__version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def _of_state(key: str, old: dict[str, Any], new: dict[str, Any]) -> bool:
    if key in HARMLESS or not key.startswith(STATE_KEYS):
        return False
    return key != "optim.ema" or bool(old.get(key)) != bool(new.get(key))


def _show(values: dict[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "(absent)"


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    result = {}
    for key, value in tree.items():
        result |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result
