"""Features of the frozen units of a backbone, computed once for every training picture and kept on disk.

The units that do not train give the same features in every epoch. With `data.cache_trunk` they are computed
before the first step, stored as float16 in the cache folder under a name made from everything that they
depend on, and read by the batches in place of the pixels; the next run of the same weights and data starts at
once.
"""

import contextlib
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sm_jax import platform
from sm_jax.data import GENERATED, stored
from sm_jax.data.crossmodal import prepare
from sm_jax.data.pipeline import MAX_SKIPPED_SHARE
from sm_jax.errors import ConfigError, DataError, ImageError, WeightsError
from sm_jax.weights import start
from sm_jax.weights.io import flatten, unflatten

VERSION = 1  # of how features are made; another one makes all files anew
CHUNK = 8  # pictures at a time
SECONDS = 15  # between two notes of how far it is, in the file and on the screen
FREE = 1.05  # times the size of the file must be free on the disk
OTHER_SPLITS = ("num_val", "num_test")
FINGERPRINTED = 16  # pictures whose pixels stand for the data set

Say = Callable[[str], None]


def make_train_iterator(config: Any, *, say: Say | None = None) -> Any:
    """The training iterator of a config, on stored features where `data.cache_trunk` asks for them.

    Args:
      config: the whole config.
      say: takes each line of what happens; default: prints it on the first process.

    Raises:
      ConfigError: features that change cannot be stored, or the disk is too full; DataError, WeightsError.
    """
    from sm_jax import data

    if not config.data.get("cache_trunk", False):
        return data.make_train_iterator(config)
    if config.system != "crossmodal":
        raise ConfigError(f"data.cache_trunk: is for the system crossmodal, not for {config.system}")
    say = say or _print
    data.make_train_iterator(config)  # what is wrong with the data is said before minutes of computing
    trunk = Trunk(config)
    path = trunk.fill(say)
    iterator = data.make_train_iterator(config, trunk=stored.StoredFeatures(path))
    return Checked(iterator, trunk)


class Checked:
    """A training iterator on stored features; `check` tells whether they are those of a model's trunk."""

    def __init__(self, iterator: Any, trunk: "Trunk"):
        self._iterator, self._trunk = iterator, trunk
        self.get_state, self.set_state, self.close = iterator.get_state, iterator.set_state, iterator.close

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._iterator)

    def check(self, variables: Any) -> None:
        """Raise `WeightsError` if training would go on from other frozen units than the features are of."""
        if self._trunk.hash_of(variables) != self._trunk.weights_hash:
            raise WeightsError(
                "the frozen units of this run are not those that config.init names: the file has changed "
                "since; set data.cache_trunk=False, or use another --workdir"
            )


class Trunk:
    """The frozen units that a config names, and the file of their features.

    Attributes:
      path: of the finished file.
      shape: (pictures, h, w, c).
      weights_hash: of the frozen units.
    """

    def __init__(self, config: Any):
        """Load the frozen units and open the training data.

        Raises:
          ConfigError: no unit is frozen, or they would be random; DataError, WeightsError.
        """
        from sm_jax import data
        from sm_jax.backbones import mobilenet
        from sm_jax.systems.crossmodal import model

        self._model = model.ModelConfig.create(config.model)
        self._cut, self._net = model.cut(self._model), model
        if not self._cut:
            raise ConfigError(
                "data.cache_trunk: nothing of the backbone is frozen (model.trainable=all), so its features "
                "change with every step; set data.cache_trunk=False or model.trainable=last2"
            )
        if config.data.get("flips", False):
            raise ConfigError(
                "data.cache_trunk: stored features cannot be mirrored; set data.flips=False or "
                "data.cache_trunk=False"
            )
        self._variables, self._name = self._load(config.get("init", {}))
        self._source = data.make_phrase_source(config.data, "train")
        self._size = self._model.image_size
        self.weights_hash = self.hash_of(self._variables)
        self.shape = (len(self._source), *mobilenet.unit_output(self._cut - 1, self._size))
        key = hashlib.sha256(f"{self.weights_hash} {self._fingerprint(config.data)}".encode()).hexdigest()
        folder = Path(config.data.get("cache_dir", "") or platform.cache_folder()).expanduser() / "trunk"
        self.path = folder.absolute() / f"{config.system}-cut{self._cut}-{key[:16]}.npy"

    def hash_of(self, variables: Any) -> str:
        """Of the frozen units among `variables`, their number, and how they compute."""
        units = {f"features_{i}" for i in range(self._cut)}
        flat = {name: leaf for name, leaf in flatten(variables).items() if units & set(name.split("/"))}
        digest = hashlib.sha256(f"{VERSION} {self._cut} {self._model.dtype} {self._model.padding}".encode())
        for name in sorted(flat):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(jax.device_get(flat[name]), np.float32).tobytes())
        return digest.hexdigest()

    def fill(self, say: Say) -> Path:
        """Compute what is not there yet; returns the path of the finished file.

        It is written under another name and renamed at the end. A run that was stopped in between goes on
        where it was; a second process on the same file waits for the first.

        Raises:
          ConfigError: the disk is too full, or the folder cannot be written; DataError: more damaged pictures
            than training bears.
        """
        try:
            if self._finished():
                say(f"trunk features: {self._describe()} in {self.path}, from an earlier run")
                return self.path
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _alone(self.path.with_suffix(".lock"), say):
                if not self._finished():
                    self._compute(say)
        except BrokenPipeError:  # nobody reads the lines any more
            raise
        except OSError as error:
            raise ConfigError(
                f"data.cache_trunk: {self.path.parent} cannot be written ({error.strerror or error}); name a "
                "folder with data.cache_dir, or set data.cache_trunk=False"
            ) from error
        return self.path

    def _load(self, init: Any) -> tuple[Any, str]:
        """The backbone's variables, and what they are called."""
        name = init.get("model", "") or init.get("backbone", "")
        if not name:
            raise ConfigError(
                "data.cache_trunk: the frozen units would start from random numbers; name real features with "
                "init.backbone=mobilenetv2-tv, or train everything with model.trainable=all"
            )
        shapes = jax.eval_shape(lambda: self._net.init(self._model, jax.random.key(0)))
        mine = {key: leaf for key, leaf in flatten(shapes).items() if key.split("/")[1] == "backbone"}
        variables, _ = start.initialize(unflatten(mine), {"backbone": name})
        return variables, name

    def _fingerprint(self, section: Any) -> str:
        """Of the pictures: how many, of which source and options, and the pixels of some of them."""
        options = dict(section.get(section.source, {})) if section.source in GENERATED else {}
        kept = {"source": section.source}
        kept[section.source] = {key: value for key, value in options.items() if key not in OTHER_SPLITS}
        stamp = getattr(self._source, "fingerprint", str)()
        count = len(self._source)
        text = json.dumps([kept, self._size, count, stamp], sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode())
        for index in sorted({i * (count - 1) // max(FINGERPRINTED - 1, 1) for i in range(FINGERPRINTED)}):
            try:
                digest.update(self._source.image(index).tobytes())
            except ImageError:
                digest.update(b"damaged")
        return digest.hexdigest()

    def _describe(self) -> str:
        count, *shape = self.shape
        size = np.prod(self.shape, dtype=np.int64) * 2 / 1e9
        return f"{count} pictures x {'x'.join(map(str, shape))} float16 ({size:.2f} GB)"

    def _finished(self) -> bool:
        if not self.path.is_file():
            return False
        try:
            return stored.StoredFeatures(self.path).shape == self.shape
        except DataError:
            return False

    def _compute(self, say: Say) -> None:
        partial, notes = self.path.with_suffix(".partial"), self.path.with_suffix(".json")
        rows, done = self._open_partial(partial, notes)
        count = self.shape[0]
        goes_on = f", goes on at {done}" if done else ""
        say(f"trunk features: computes {self._describe()} of {self._name}, once, into {self.path}{goes_on}")
        features = jax.jit(
            lambda variables, images: self._net.trunk(self._model, variables, images).astype(jnp.float16)
        )
        variables = jax.device_put(self._variables, jax.local_devices()[0])
        damaged, began, noted, first = [], time.monotonic(), time.monotonic(), done
        try:
            for indices, images in self._images(done, damaged):
                found = np.array(features(variables, images))[: len(indices)]
                if not np.isfinite(found).all():
                    raise ConfigError(
                        "data.cache_trunk: the features do not fit float16; set data.cache_trunk=False"
                    )
                found[[index in damaged for index in indices]] = np.nan
                rows[indices[0] : indices[-1] + 1] = found
                done = indices[-1] + 1
                if time.monotonic() - noted > SECONDS:
                    noted = time.monotonic()
                    _note(rows, notes, done)
                    left = (noted - began) / (done - first) * (count - done)
                    say(f"trunk features: {done}/{count}, {timedelta(seconds=round(left))} left")
        finally:
            _note(rows, notes, done)
        del rows
        partial.replace(self.path)
        notes.unlink(missing_ok=True)
        say(f"trunk features: done in {timedelta(seconds=round(time.monotonic() - began))}")

    def _open_partial(self, partial: Path, notes: Path) -> tuple[np.memmap, int]:
        """The file to write, and how many pictures it holds already."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            done = int(json.loads(notes.read_text())["done"])
            rows = np.lib.format.open_memmap(partial, mode="r+")
            if rows.shape == self.shape and rows.dtype == np.float16 and 0 <= done <= self.shape[0]:
                return rows, done
        notes.unlink(missing_ok=True)
        partial.unlink(missing_ok=True)
        needed = int(np.prod(self.shape, dtype=np.int64)) * 2
        free = shutil.disk_usage(partial.parent).free
        if free < needed * FREE:
            raise ConfigError(
                f"data.cache_trunk: {self._describe()} do not fit into {partial.parent}, where "
                f"{free / 1e9:.2f} GB are free; name another folder with data.cache_dir (or the environment "
                "variable SM_JAX_CACHE), or set data.cache_trunk=False"
            )
        return np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=self.shape), 0

    def _images(self, start: int, damaged: list[int]) -> Iterator[tuple[list[int], np.ndarray]]:
        """Indices and normalised pictures of each chunk, read one chunk ahead; the last one is filled up."""
        count = self.shape[0]

        def one(index: int) -> np.ndarray:
            try:
                return prepare(self._source.image(index), self._size)[0]
            except ImageError as error:
                damaged.append(index)
                if len(damaged) > MAX_SKIPPED_SHARE * count:  # as the batches count them
                    raise DataError(
                        f"more than 1 % of the images cannot be read ({error}); "
                        "`sm-jax data check --json` lists them"
                    ) from None
                return np.zeros((*self._size, 3), np.float32)

        def several(at: int) -> tuple[list[int], np.ndarray]:
            indices = list(range(at, min(at + CHUNK, count)))
            images = [one(index) for index in indices]
            return indices, np.stack(images + [images[-1]] * (CHUNK - len(indices)))

        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(several, start) if start < count else None
            while ahead is not None:
                indices, images = ahead.result()
                after = indices[-1] + 1
                ahead = pool.submit(several, after) if after < count else None
                yield indices, images


def _note(rows: np.memmap, notes: Path, done: int) -> None:
    """Remember that the first `done` rows are on disk."""
    rows.flush()
    scratch = notes.with_suffix(".scratch")
    scratch.write_text(json.dumps({"done": done}))
    scratch.replace(notes)


@contextlib.contextmanager
def _alone(path: Path, say: Say) -> Iterator[None]:
    """One process at a time; the system lets go of the lock of a process that was killed."""
    try:
        import fcntl
    except ImportError:  # not on Windows, where a second process computes the same once more
        yield
        return
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"trunk features: waits for another process that computes them ({path})")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _print(line: str) -> None:
    if jax.process_index() == 0:
        print(line, flush=True)
        sys.stdout.flush()
