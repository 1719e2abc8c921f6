"""`--config=FILE[:ARGS] --config.a.b=value --name=value`: the command line of training and evaluation."""

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from sm_jax.errors import ConfigError
from sm_jax.settings import nearest
from sm_jax.training.values import parse_value


class CommandLine(NamedTuple):
    """A command line in parts.

    Attributes:
      config: what `--config` says, "" without it.
      overrides: (dotted key, text) of each `--config.KEY`; None where no text was given.
      options: the values of the other options.
    """

    config: str
    overrides: list[tuple[str, str | None]]
    options: dict[str, Any]

    def load(self, default: str = "") -> ConfigDict:
        """The config of `config`, or else of the file `default`, with the overrides applied."""
        return self.apply(load_config(self.config or default))

    def apply(self, config: ConfigDict) -> ConfigDict:
        """`config` itself, after the overrides were set in it."""
        for key, text in self.overrides:
            override(config, key, text)
        return config


def read(argv: Sequence[str], *, options: dict[str, Any], help: str) -> CommandLine:
    """Read a command line, without loading a config.

    Args:
      argv: the words after the program's name.
      options: the options besides `--config` and their defaults, whose types the values take; a bare `--name`
        of a boolean switches it on.
      help: printed for `--help`, which leaves the program.

    Raises:
      ConfigError: an unknown option (with the nearest one), or a value of another type.
    """
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain's worker processes read absl flags
    config, options, overrides, words = "", dict(options), [], list(argv)
    while words:
        word = words.pop(0)
        if word in ("-h", "--help"):
            print(help.strip())
            raise SystemExit(0)
        if not word.startswith("--"):
            raise ConfigError(f"{word!r} is not an option; options look like --name=value (see --help)")
        name, equals, text = word[2:].partition("=")
        if name == "config":
            config = text if equals else _value_of(word, words)
        elif name.startswith("config."):
            if not equals:
                text = words.pop(0) if words and not words[0].startswith("--") else None
            overrides.append((name.removeprefix("config."), text))
        elif name not in options:
            raise ConfigError(f"option --{name} is not known{nearest(name, [*options, 'config', 'help'])}")
        elif isinstance(options[name], bool) and not equals:
            options[name] = True
        else:
            text = text if equals else _value_of(word, words)
            options[name] = parse_value(text, options[name], name=f"--{name}")
    return CommandLine(config, overrides, options)


def parse(
    argv: Sequence[str], *, config: str, options: dict[str, Any], help: str
) -> tuple[ConfigDict, dict[str, Any]]:
    """`read` and `load`: the config (of the file `config` where none is named), and the options' values.

    Raises:
      ConfigError: an unknown option or config key (with the nearest one), or a value of another type.
    """
    line = read(argv, options=options, help=help)
    return line.load(config), line.options


def load_config(spec: str) -> ConfigDict:
    """`get_config(ARGS)` of the Python file in `FILE[:ARGS]`; ConfigError where there is no such file."""
    parts = re.fullmatch(r"(.+?\.py)(?::(.*))?", spec, re.DOTALL)
    path = Path(parts[1] if parts else spec)
    if not parts or not path.is_file():
        there = ", ".join(sorted(map(str, path.parent.glob("*.py")))) if path.parent.is_dir() else "nothing"
        raise ConfigError(
            f"there is no config file {spec!r} (FILE.py or FILE.py:ARGS); {path.parent} holds {there}"
        )
    module_spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{path} has no get_config(arg)")
    return module.get_config(parts[2] or None)


def override(config: ConfigDict, key: str, text: str | None) -> None:
    """Set `config.<key>` (dotted) to `text`, of the type of the present value; None switches a boolean on."""
    *sections, last = key.split(".")
    node, path = config, "config"
    for name in [*sections, last]:
        if not isinstance(node, ConfigDict):
            raise ConfigError(f"{path} is a value, not a section; --config.{key} cannot be set")
        if name not in node:
            raise ConfigError(f"{path}.{name} is not known{nearest(name, node.keys())}")
        parent, node, path = node, node[name], f"{path}.{name}"
    if isinstance(node, ConfigDict):
        raise ConfigError(f"{path} is a section{nearest('', [f'{path}.{name}' for name in node])}")
    if text is None and not isinstance(node, bool):
        raise ConfigError(f"--{path} needs a value: --{path}=...")
    with config.unlocked():
        parent[last] = parse_value("true" if text is None else text, node, name=f"--{path}")


def _value_of(word: str, words: list[str]) -> str:
    if not words or words[0].startswith("--"):
        raise ConfigError(f"option {word} needs a value: {word}=...")
    return words.pop(0)
