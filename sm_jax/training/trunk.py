"""Features of the frozen part of a backbone, computed once for every training picture and kept on disk.

What does not train gives the same features in every epoch. With `data.cache_trunk` they are computed before
the first step, stored as float16 in the cache folder under a name made from everything that they depend on,
and read by the batches in place of the pixels; the next run of the same weights and data starts at once.
"""

import hashlib
import importlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from sm_jax import platform
from sm_jax.data import GENERATED
from sm_jax.errors import ConfigError, ImageError, WeightsError
from sm_jax.training.feature_file import Say
from sm_jax.weights import start
from sm_jax.weights.io import flatten, unflatten

SYSTEMS = ("crossmodal", "retrieval", "scnet", "ssm")
NEEDED = ("scnet",)
"""The systems that train on stored features only; their trunk's module has a `check(config)`."""
VERSION = 1  # of how features are made; another one makes all files anew
OTHER_SPLITS = ("num_val", "num_test", "num_seen")
FINGERPRINTED = 16  # pictures whose pixels stand for the data set


class Trunk(Protocol):
    """The frozen part that a config names, and the files of its features.

    Attributes:
      weights_hash: of the frozen part.
    """

    weights_hash: str

    def __init__(self, config: Any):
        """Load the frozen part and open the training data.

        Raises:
          ConfigError: nothing is frozen, or it would be random; DataError, WeightsError.
        """

    def hash_of(self, variables: Any) -> str:
        """Of the frozen part among `variables`, and of how it computes."""

    def fill(self, say: Say) -> Any:
        """Compute what is not there yet; returns what `data.make_train_iterator` takes as `trunk`."""


def make_train_iterator(config: Any, *, say: Say | None = None) -> Any:
    """The training iterator of a config, on stored features where `data.cache_trunk` asks for them.

    Args:
      config: the whole config.
      say: takes each line of what happens; default: prints it on the first process.

    Raises:
      ConfigError: features that change cannot be stored, or the disk is too full; DataError, WeightsError.
    """
    from sm_jax import data

    if config.system in NEEDED:  # before regions are proposed for minutes
        _module(config).check(config)
    if not config.data.get("cache_trunk", False):
        iterator = data.make_train_iterator(config)
        if config.system == "retrieval":
            from sm_jax.training.trunk_retrieval import Starting

            return Starting(config, iterator)
        return iterator
    if config.system not in SYSTEMS:
        raise ConfigError(f"data.cache_trunk: is for {', '.join(SYSTEMS)}, not for {config.system}")
    data.make_train_iterator(config)  # what is wrong with the data is said before minutes of computing
    trunk = _module(config).Trunk(config)
    iterator = data.make_train_iterator(config, trunk=trunk.fill(say or print_line))
    return Checked(iterator, trunk, needed=config.system in NEEDED)


def _module(config: Any) -> Any:
    return importlib.import_module(f"sm_jax.training.trunk_{config.system}")


class Checked:
    """A training iterator on stored features; `check` tells whether they are those of a model's trunk."""

    def __init__(self, iterator: Any, trunk: Trunk, *, needed: bool = False):
        self._iterator, self._trunk = iterator, trunk
        self._without = "" if needed else "set data.cache_trunk=False, or "
        self.get_state, self.set_state, self.close = iterator.get_state, iterator.set_state, iterator.close

    @property
    def memory(self) -> Any:
        """As of `data.pipeline.TrainIterator`."""
        return self._iterator.memory

    def remember(self, memory: Any) -> None:
        """As of `data.pipeline.TrainIterator`."""
        self._iterator.remember(memory)

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._iterator)

    def complete(self, variables: Any) -> Any:
        """The variables that a new run starts from, with what its trunk knows from the training pictures."""
        complete = getattr(self._trunk, "complete", None)
        return variables if complete is None else complete(variables)

    def check(self, variables: Any) -> None:
        """Raise `WeightsError` if training would go on from other frozen weights than the features are of."""
        if self._trunk.hash_of(variables) != self._trunk.weights_hash:
            raise WeightsError(
                "the frozen part of this run is not what config.init names: the file has changed since; "
                f"{self._without}use another --workdir"
            )


# what the trunks of all systems need -----------------------------------------------------------------


def load(shapes: Mapping[str, Any], init: Any, *, backbone: str, needed: bool = False) -> tuple[Any, str]:
    """The variables of `shapes` (abstract, of the parts that hold the frozen weights) and their name.

    Args:
      init: config section; its keys mean what they mean at the start of a run (`weights.start`).
      backbone: a name to propose where none is given.
      needed: of a system of `NEEDED`.
    """
    parts = start.parts_of(shapes)
    wanted = {key: init.get(key, "") for key in dict.fromkeys(("model", "backbone", *parts))}
    names = [wanted["model"] or start.asked_for(wanted, part) for part in parts]
    if not all(names):
        whole = "" if needed else ", or train everything with model.trainable=all"
        raise ConfigError(
            "data.cache_trunk: the frozen part would start from random numbers; name real features with "
            f"init.backbone={backbone}{whole}"
        )
    variables, _ = start.initialize(unflatten(dict(shapes)), wanted)
    return variables, ", ".join(dict.fromkeys(names))


def weights_hash(variables: Any, frozen: Callable[[str], bool], how: str) -> str:
    """Of the arrays of `variables` that are frozen, by their paths below the collection
    ("backbone/features_3/..."), and of `how` they compute."""
    digest = hashlib.sha256(f"{VERSION} {how}".encode())
    flat = flatten(variables)
    for name in sorted(flat):
        if frozen(name.split("/", 1)[1]):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(jax.device_get(flat[name]), np.float32).tobytes())
    return digest.hexdigest()


def data_hash(section: Any, source: Any, *more: Any) -> str:
    """Of the training pictures: how many, of which source and options, and the pixels of some of them.

    Args:
      section: config section `data`.
      source: of its split "train".
      *more: what else features depend on, ready for JSON.
    """
    options = dict(section.get(section.source, {})) if section.source in GENERATED else {}
    kept = {"source": section.source}
    kept[section.source] = {key: value for key, value in options.items() if key not in OTHER_SPLITS}
    stamp = getattr(source, "fingerprint", str)()
    count = len(source)
    text = json.dumps([kept, *more, count, stamp], sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode())
    for index in sorted({i * (count - 1) // max(FINGERPRINTED - 1, 1) for i in range(FINGERPRINTED)}):
        try:
            digest.update(source.image(index).tobytes())
        except ImageError:
            digest.update(b"damaged")
    return digest.hexdigest()


def file_path(config: Any, name: str, *hashes: str) -> Path:
    """Where a file of features lies: in `data.cache_dir`, or in the cache folder."""
    key = hashlib.sha256(" ".join(hashes).encode()).hexdigest()
    folder = Path(config.data.get("cache_dir", "") or platform.cache_folder()).expanduser() / "trunk"
    return folder.absolute() / f"{config.system}-{name}-{key[:16]}.npy"


def print_line(line: str) -> None:
    """Print on the first process."""
    if jax.process_index() == 0:
        print(line, flush=True)
        sys.stdout.flush()
