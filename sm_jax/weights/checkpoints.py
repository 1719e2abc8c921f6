"""Files on disk into `name -> array` dicts: safetensors always, PyTorch files only when converting."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sm_jax.errors import WeightsError
from sm_jax.weights import formats, vgg
from sm_jax.weights.io import read_tensors, save_variables, sha256, unflatten
from sm_jax.weights.registry import RGB

TORCH_SUFFIXES = (".pth", ".pt", ".tar", ".bin", ".ckpt")
MATLAB_SUFFIX = ".mat"
PICKLE_SUFFIXES = (".pkl", ".pickle")
WRAPPERS = ("net", "state_dict", "model", "blobs")


def read(path: str | os.PathLike, *, format: str = "auto") -> tuple[formats.Converted, dict[str, str]]:
    """Read a safetensors or MATLAB file of any known format, no PyTorch file: `(converted, metadata)`."""
    path = Path(path)
    if path.suffix in TORCH_SUFFIXES:
        raise WeightsError(
            f"{path}: PyTorch files are not read at run time; convert it once with "
            f"'sm-jax weights convert {path} {path.with_suffix('.safetensors').name}'"
        )
    if path.suffix in PICKLE_SUFFIXES:
        raise _pickle_error(path)
    tensors, metadata = (vgg.read_mat(path), {}) if path.suffix == MATLAB_SUFFIX else read_tensors(path)
    return formats.convert(tensors, format=format, where=str(path)), metadata


def _pickle_error(path: Path) -> WeightsError:
    return WeightsError(
        f"{path}: pickles run code when they are read, so sm_jax does not; if you trust the file, save its "
        f"arrays once with numpy.savez(OUT.npz, **arrays) and convert the .npz"
    )


def _as_arrays(data: Any, path: Path) -> dict[str, np.ndarray]:
    """The tensors of a loaded checkpoint: itself, or what lies under the first of `WRAPPERS`."""
    for key in WRAPPERS:
        if isinstance(data, Mapping) and isinstance(data.get(key), Mapping):
            data = data[key]
            break
    if not isinstance(data, Mapping):
        raise WeightsError(f"{path}: holds a {type(data).__name__}, not a dict of tensors")
    arrays = {}
    for name, value in data.items():
        if hasattr(value, "detach"):
            value = value.detach().cpu()
            value = (value.float() if value.is_floating_point() else value).numpy()
        if not isinstance(value, np.ndarray):
            raise WeightsError(f"{path}: {name!r} is a {type(value).__name__}, not a tensor")
        arrays[str(name)] = value
    return arrays


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise WeightsError(
            f"{path}: reading a PyTorch file needs torch; pip install 'sm_jax[convert]' (only for converting)"
        ) from None
    import argparse
    import pickle

    # Published training code keeps its options and NumPy scores beside the weights: plain data, no code.
    harmless = [argparse.Namespace, np.dtype, np.ndarray, np._core.multiarray.scalar]
    harmless += [np._core.multiarray._reconstruct, np.dtypes.Float64DType, np.dtypes.Float32DType]
    harmless += [np.dtypes.Int64DType]
    try:
        with torch.serialization.safe_globals(harmless):
            data = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    except pickle.UnpicklingError:
        raise WeightsError(
            f"{path}: damaged, or holds objects other than tensors, which are not read for safety; "
            "save its state dict alone with torch.save(checkpoint['net'], OUT.pth)"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        wordless = isinstance(error, KeyError) or not str(error)
        reason = type(error).__name__ if wordless else str(error).splitlines()[0]
        raise WeightsError(f"{path}: not a readable PyTorch file, or a damaged one ({reason[:99]})") from None
    return _as_arrays(data, path)


def read_foreign(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Tensors of a `.safetensors`, `.npz`, MatConvNet `.mat` or PyTorch file under the names of the file.

    PyTorch files are loaded with `weights_only=True`, so nothing in them is executed; torch is imported only
    here.
    """
    path = Path(path)
    if path.suffix in PICKLE_SUFFIXES:
        raise _pickle_error(path)
    if path.suffix in TORCH_SUFFIXES:
        return _read_torch(path)
    if path.suffix == MATLAB_SUFFIX:
        return vgg.read_mat(path)
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except FileNotFoundError:
            raise WeightsError(f"{path}: no such file") from None
        except Exception:  # numpy and zipfile raise many kinds, and numpy advises to unpickle
            raise WeightsError(f"{path}: no readable .npz file of plain arrays, or a damaged one") from None
    return read_tensors(path)[0]


def convert_file(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    format: str = "auto",
    dtype: str = "f32",
    **options: Any,
) -> formats.Converted:
    """Convert a published file into a safetensors file in our naming; its metadata says where it came from.

    `dtype` "f16" stores convolution kernels in half precision; `options` are those of the format's converter.
    Returns what was written.
    """
    converted = formats.convert(read_foreign(source), format=format, where=str(source), **options)
    metadata = {
        "architecture": str(converted.architecture),
        "source_format": converted.format,
        "source_file": Path(source).name,
        "source_sha256": sha256(source),
        "ignored": str(len(converted.ignored)),
        "input": formats.INPUTS.get(converted.format, RGB),
    }
    save_variables(target, unflatten(converted.tensors), metadata, dtype=dtype)
    return converted
