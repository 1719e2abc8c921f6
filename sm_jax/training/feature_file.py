"""A file with the features of every picture of a list, computed once, by one process at a time."""

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from sm_jax.data import stored
from sm_jax.data.pipeline import MAX_SKIPPED_SHARE
from sm_jax.errors import ConfigError, DataError, ImageError

CHUNK = 8  # pictures at a time
SECONDS = 15  # between two notes of how far it is, in the file and on the screen
FREE = 1.05  # times the size of the file must be free on the disk

Say = Callable[[str], None]


class FeatureFile:
    """Features of pictures as float16, computed where they are not there yet.

    The file is written under another name and renamed at the end. A run that was stopped in between goes on
    where it was; a second process on the same file waits for the first.

    Attributes:
      path: of the finished file.
      shape: (pictures, h, w, c).
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, ...],
        *,
        picture: Callable[[int], np.ndarray],
        size: tuple[int, int],
        compute: Callable[[np.ndarray], Any],
        what: str,
        of: str,
        needed: bool = False,
    ):
        """Nothing is computed before `fill`.

        Args:
          path, shape: of the file.
          picture: index -> f32 (H, W, 3) as the network takes it; raises ImageError.
          size: (H, W).
          compute: pictures f32 (n, H, W, 3) -> features (n, h, w, c).
          what: what the pictures are called, in the plural.
          of: what the weights are called.
          needed: whether training takes nothing but features, so that `data.cache_trunk` stays on.
        """
        self.path, self.shape = path, shape
        self._picture, self._size, self._of_pictures = picture, size, compute
        self._what, self._of = what, of
        self._without = "" if needed else ", or set data.cache_trunk=False"

    def fill(self, say: Say) -> Path:
        """Compute what is not there yet; returns the path of the finished file.

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
        except OSError as error:
            raise ConfigError(
                f"data.cache_trunk: {self.path.parent} cannot be written ({error.strerror or error}); name a "
                f"folder with data.cache_dir{self._without}"
            ) from error
        return self.path

    def _describe(self) -> str:
        count, *shape = self.shape
        size = np.prod(self.shape, dtype=np.int64) * 2 / 1e9
        return f"{count} {self._what} x {'x'.join(map(str, shape))} float16 ({size:.2f} GB)"

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
        say(f"trunk features: computes {self._describe()} of {self._of}, once, into {self.path}{goes_on}")
        damaged, began, noted, first = [], time.monotonic(), time.monotonic(), done
        try:
            for indices, images in self._images(done, damaged):
                found = np.array(self._of_pictures(images))[: len(indices)]
                if not np.isfinite(found).all():
                    raise ConfigError(
                        f"data.cache_trunk: the features of {self._of} do not fit float16; take other weights"
                        f"{self._without}"
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
                f"variable SM_JAX_CACHE){self._without}"
            )
        return np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=self.shape), 0

    def _images(self, start: int, damaged: list[int]) -> Iterator[tuple[list[int], np.ndarray]]:
        """Indices and pictures of each chunk, read one chunk ahead; the last one is filled up."""
        count = self.shape[0]

        def one(index: int) -> np.ndarray:
            try:
                return self._picture(index)
            except ImageError as error:
                damaged.append(index)
                if len(damaged) > MAX_SKIPPED_SHARE * count:  # as the batches count them
                    raise DataError(
                        f"more than 1 % of the {self._what} cannot be read ({error}); "
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
