"""Safetensors files in and out, and the strict comparison that every loader shares."""

import contextlib
import hashlib
import importlib
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sm_jax.errors import WeightsError

FORMAT = "sm_jax"
SHOWN = 40
DTYPES = {"f32": np.float32, "f16": np.float16}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"params": {"a": {"b": x}}}` -> `{"params/a/b": x}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{name}/"))
        else:
            flat[name] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def sha256(path: str | os.PathLike) -> str:
    """The hash of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _listing(sign: str, lines: list[str]) -> list[str]:
    shown = [f"{sign} {line}" for line in sorted(lines)[:SHOWN]]
    return shown + ([f"{sign} ... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else [])


def check_shapes(
    got: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], *, where: str, what: str
) -> None:
    """Raise `WeightsError` unless names and shapes are exactly the expected ones.

    The message lists with `-` what is missing and with `+` what was found instead; a wrong shape is one line
    of each. `where` names the file, `what` the network that it should fit.
    """
    missing = [name for name in expected if name not in got]
    extra = [name for name in got if name not in expected]
    misshapen = [name for name in expected if name in got and tuple(got[name]) != tuple(expected[name])]
    if not (missing or extra or misshapen):
        return
    head = (
        f"{where} does not fit {what}: {len(missing)} missing, {len(extra)} unexpected, {len(misshapen)} of "
        f"another shape (- expected, + found)"
    )
    minus = [f"{name} {tuple(expected[name])}" for name in missing + misshapen]
    plus = [f"{name} {tuple(got[name])}" for name in extra + misshapen]
    raise WeightsError("\n".join([head, *_listing("-", minus), *_listing("+", plus)]))


def check_finite(tensors: Mapping[str, np.ndarray], *, where: str) -> None:
    """Raise `WeightsError` naming the tensors that hold NaN or infinity."""
    bad = [
        name
        for name, array in tensors.items()
        if array.dtype.kind not in "iub" and not np.isfinite(array).all()
    ]
    if bad:
        raise WeightsError(
            f"{where}: NaN or infinity in {len(bad)} tensors, first: {', '.join(sorted(bad)[:3])}"
        )


def widen(array: np.ndarray) -> np.ndarray:
    """Any floating type to float32; integers and booleans stay."""
    return array if array.dtype.kind in "iub" else np.asarray(array, np.float32)


def read_tensors(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read a safetensors file: `(tensors, metadata)`; half precision is widened to float32.

    Raises `WeightsError` in one line when the file is absent, truncated, damaged or no safetensors file, or
    when a tensor is not finite.
    """
    import safetensors

    importlib.import_module("ml_dtypes")  # gives numpy the name "bfloat16", which the reader asks for
    path = Path(path)
    if path.is_dir():
        raise WeightsError(f"{path}: a folder; give the name or path of a weights file")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: widen(file.get_tensor(name)) for name in file.keys()}
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    except (safetensors.SafetensorError, OSError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: not a readable safetensors file, or a damaged one ({reason})") from None
    if not tensors:
        raise WeightsError(f"{path}: holds no tensors")
    check_finite(tensors, where=str(path))
    return tensors, metadata


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The metadata of a safetensors file, without its tensors; {} where it has none.

    Raises `WeightsError` in one line, as `read_tensors`.
    """
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    except (safetensors.SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: not a readable safetensors file, or a damaged one ({reason})") from None


def is_ours(path: str | os.PathLike) -> bool:
    """Whether a file is a safetensors file that `save_variables` wrote (its metadata says so)."""
    path = Path(path)
    return path.suffix == ".safetensors" and read_metadata(path).get("format") == FORMAT


def write_tensors(
    path: str | os.PathLike, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file; the file appears under its name only when it is complete."""
    from safetensors.numpy import save_file

    path = Path(path)
    if path.suffix != ".safetensors":
        raise WeightsError(f"{path}: weights are written as .safetensors files; give a name that ends so")
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".partial")
        os.close(handle)
        try:
            save_file(arrays, partial, metadata={key: str(value) for key, value in metadata.items()})
            os.chmod(partial, 0o644)
            os.replace(partial, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(partial)
            raise
    except OSError as error:
        raise WeightsError(f"{path}: cannot be written ({error.strerror or error})") from None


def save_variables(
    path: str | os.PathLike,
    variables: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    dtype: str = "f32",
) -> None:
    """Write `{"params": ..., "batch_stats": ...}` as one safetensors file under our flattened names.

    `dtype` "f16" stores the convolution kernels in half precision (vectors stay float32: they are small, and
    running variances need the range). Raises `WeightsError` when a kernel does not fit half precision.
    """
    if dtype not in DTYPES:
        raise WeightsError(f"dtype {dtype!r}: weights are stored as {' or '.join(DTYPES)}")
    tensors = {name: np.asarray(value) for name, value in flatten(variables).items()}
    check_names(tensors, where=str(path))
    check_finite(tensors, where="these variables")
    stored = {}
    for name, array in tensors.items():
        array = widen(array)
        if array.ndim > 1:
            if dtype == "f16" and np.abs(array).max(initial=0) > np.finfo(np.float16).max:
                raise WeightsError(f"{path}: {name} does not fit half precision; store it as f32")
            array = array.astype(DTYPES[dtype])
        stored[name] = array
    write_tensors(path, stored, {"format": FORMAT, "format_version": "1", **(metadata or {})})


def load_variables(path: str | os.PathLike) -> dict[str, Any]:
    """Read a file written by `save_variables`: nested dict of float32 NumPy arrays."""
    tensors, _ = read_tensors(path)
    check_names(tensors, where=str(path))
    return unflatten(tensors)


def check_names(names: Iterable[str], *, where: str) -> None:
    """Raise `WeightsError` unless every name lies under `params/` or `batch_stats/`."""
    foreign = [name for name in names if not name.startswith(("params/", "batch_stats/"))]
    if foreign:
        raise WeightsError(
            f"{where}: not in the naming of sm_jax (for example {foreign[0]!r}); convert it with "
            "'sm-jax weights convert IN OUT.safetensors'"
        )
