"""Reads pickles of plain data without running anything that is in them.

ImageNet-RepMet is published as pickles of Python 2, and only `sm-jax data build repmet` reads them. The
reader knows containers, text, numbers and NumPy arrays of numbers; a pickle that names anything else is
refused before it is touched. Even arrays are put together here: nothing that a file says reaches NumPy's own
unpickling.
"""

import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from sm_jax.errors import DataError

MAX_BYTES = 4 << 30
_CODE = re.compile(r"[biuf][1248]|[SU]\d{1,6}|O8?")
_DAMAGED = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    ImportError,
    MemoryError,
    RecursionError,
)


class _Refused(Exception):
    """A pickle that names what is not plain data."""


class _Text:
    """`_codecs.encode`, by which newer pickles of old protocols write bytes."""

    def __new__(cls, text: str, encoding: str) -> bytes:
        if encoding not in ("latin1", "latin-1"):
            raise _Refused(f"bytes in {str(encoding)[:20]!r}")
        return text.encode("latin1")

    def __setstate__(self, state):
        raise _Refused("a state of bytes")


class _Nothing:
    """`bytes()`, as which Python 3 writes the empty ones in old protocols."""

    def __new__(cls) -> bytes:
        return b""

    def __setstate__(self, state):
        raise _Refused("a state of bytes")


class _Type:
    """`numpy.dtype`: a type of numbers, texts or objects, and its byte order."""

    def __init__(self, code: str, *options: Any):
        if not isinstance(code, str) or not _CODE.fullmatch(code):
            raise _Refused(f"arrays of type {str(code)[:20]!r}")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple):
        if state[1] not in ("<", ">", "=", "|") or any(part is not None for part in state[2:5]):
            raise _Refused("arrays of structures")
        self.order = state[1]

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.code if self.order == "|" else self.order + self.code)


class _Array:
    """`_reconstruct`: an array, empty until its state is set; `value` is an array, or a list of objects."""

    def __init__(self, kind: Any, shape: Any, code: Any):
        if kind is not _NdArray:
            raise _Refused("a subclass of arrays")
        self.value: Any = None

    def __setstate__(self, state: tuple):
        _, shape, kind, columns_first, content = state
        if not isinstance(kind, _Type) or not all(isinstance(side, int) and side >= 0 for side in shape):
            raise _Refused("an array of an odd form")
        if kind.code.startswith("O"):
            if not isinstance(content, list) or len(content) != math.prod(shape):
                raise _Refused("an array of an odd form")
            self.value = content
            return
        content = content.encode("latin1") if isinstance(content, str) else content
        self.value = (
            np.frombuffer(content, kind.dtype).reshape(shape, order="F" if columns_first else "C").copy()
        )


class _NdArray:
    """`numpy.ndarray`, which is only named as the kind of `_Array`."""

    def __init__(self):
        raise _Refused("an array of an odd form")

    def __setstate__(self, state):
        raise _Refused("an array of an odd form")


class _Scalar:
    """`numpy.core.multiarray.scalar`: one number."""

    def __new__(cls, kind: _Type, content: Any):
        content = content.encode("latin1") if isinstance(content, str) else content
        if not isinstance(kind, _Type) or kind.code.startswith("O") or not isinstance(content, bytes):
            raise _Refused("a number of an odd form")
        return np.frombuffer(content, kind.dtype).reshape(()).item()

    def __setstate__(self, state):
        raise _Refused("a state of a number")


_KNOWN = {
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("__builtin__", "set"): set,  # of Python 2
    ("__builtin__", "frozenset"): frozenset,
    ("__builtin__", "bytes"): _Nothing,
    ("collections", "OrderedDict"): dict,
    ("_codecs", "encode"): _Text,
    ("numpy", "ndarray"): _NdArray,
    ("numpy", "dtype"): _Type,
} | {
    (f"numpy.{core}.multiarray", name): stand_in
    for core in ("core", "_core")
    for name, stand_in in (("_reconstruct", _Array), ("scalar", _Scalar))
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get((module, name))
        if known is None:
            raise _Refused(f"{module[:60]}.{name[:60]}")
        return known


def load(path: Path, *, max_bytes: int = MAX_BYTES) -> Any:
    """What the pickle at `path` holds: containers, texts, numbers and arrays; texts of Python 2 as latin-1.

    Arrays of objects become flat lists, numbers of NumPy those of Python.

    Raises:
      DataError: no such file, larger than `max_bytes`, damaged, or with anything in it but plain data.
    """
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise DataError(f"{path}: larger than {max_bytes >> 20} MiB, which no such file should be")
        with path.open("rb") as stream:
            return _plain(_Unpickler(stream, encoding="latin1").load())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except _Refused as error:
        raise DataError(
            f"{path}: the pickle holds {error}; only containers, texts, numbers and arrays are read, because "
            "anything else could run code"
        ) from None
    except _DAMAGED as error:
        raise DataError(
            f"{path}: not a readable pickle ({' '.join(str(error).split())[:80] or type(error).__name__})"
        ) from None


def _plain(found: Any) -> Any:
    """`found` with arrays in place of their stand-ins; what is referred to twice is made once."""
    done: dict[int, Any] = {}
    kept: list[Any] = []  # an id stays taken as long as its object lives

    def plain(value: Any) -> Any:
        if isinstance(value, _Array):
            return plain(value.value)
        if not isinstance(value, (dict, list, tuple)):
            if isinstance(value, (_Type, type)):
                raise _Refused("a type in place of a value")
            return value
        if id(value) in done:
            return done[id(value)]
        kept.append(value)
        if isinstance(value, tuple):
            done[id(value)] = tuple(plain(part) for part in value)
        elif isinstance(value, list):
            done[id(value)] = made = []
            made.extend(plain(part) for part in value)
        else:
            done[id(value)] = made = {}
            made.update((key, plain(part)) for key, part in value.items())
        return done[id(value)]

    return plain(found)
