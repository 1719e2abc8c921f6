"""Arguments of a config file: `--config=configs/os2d.py:runlocal,steps=100`; the published data sets."""

from typing import Any

from ml_collections import ConfigDict

from sm_jax.errors import ConfigError
from sm_jax.settings import nearest
from sm_jax.training.values import parse_value

DATASETS = {  # name -> the splits that a run is evaluated on
    "grozi": ("val-new-cl",),
    "instre-s1": ("val",),
    "instre-s2": ("val",),
    "dairy": ("test",),
    "paste-v": ("test",),
    "paste-f": ("test",),
    "repmet": ("test",),
}
TEST_ONLY = tuple(name for name, splits in DATASETS.items() if splits == ("test",))
TRAINED = tuple(name for name in DATASETS if name not in TEST_ONLY)


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
    """Read `arg` as typed values; every config knows `runlocal`, even if it is not among `defaults`.

    Args:
      arg: comma-separated `key=value` pairs; a bare `key` switches a boolean on. A comma inside (), [] or {}
        does not separate. None or "" gives the defaults.
      **defaults: the keys that are known; the type of each default is the type of the value. A default of
        None takes any Python literal, or else text.

    Returns:
      A `ConfigDict` with the value of every key.

    Raises:
      ConfigError: an unknown key (with the nearest one), a key given twice, or a value of another type.
    """
    values = {"runlocal": False, **defaults}
    given = set()
    for part in _split(arg or ""):
        key, equals, text = (piece.strip() for piece in part.partition("="))
        name = f"config argument {key!r}"
        if key not in values:
            raise ConfigError(f"{name} is not known{nearest(key, values)}")
        if key in given:
            raise ConfigError(f"{name} is given twice")
        given.add(key)
        default = values[key]
        if not equals and not isinstance(default, bool):
            raise ConfigError(f"{name} needs a value: {key}=...")
        values[key] = parse_value(text if equals else "true", default, name=name)
    return ConfigDict(values)


def use_dataset(config: ConfigDict, name: str, *, data: str = "", metric: str = "mAP@0.50") -> None:
    """Set what a published data set is trained and evaluated on; scale and class views come with the build.

    Args:
      config: changed in place.
      name: one of `DATASETS`.
      data: where it is built; "" for built/NAME.
      metric: the best checkpoint is that of the best `metric` on its first split.
    """
    config.data.source = data or f"built/{name}"
    config.eval.splits = DATASETS[name]
    if "views" in config.eval:
        config.eval.views = "data"
    config.checkpoint.best_metric = f"{config.eval.splits[0]}/{metric}"


def check_dataset(name: str, known: tuple[str, ...]) -> None:
    """Refuse a data set that a config cannot start from.

    Raises:
      ConfigError: `name` is none of `known`.
    """
    if name in TEST_ONLY and name not in known and name != "repmet":
        raise ConfigError(
            f"dataset={name} has no training pictures: evaluate a run with --workdir=RUN --data=built/{name} "
            "--split=test"
        )
    if name not in known:
        raise ConfigError(f"dataset={name}: there are {', '.join(known)}")


def _split(arg: str) -> list[str]:
    parts, depth = [""], 0
    for letter in arg:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part.strip()]
