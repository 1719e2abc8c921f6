"""MATLAB files of version 5 to 7 as plain data; nothing in them is executed."""

import os
from pathlib import Path
from typing import Any

from sm_jax.errors import DataError, SmJaxError


def load(
    path: str | os.PathLike, *, max_bytes: int = 64 << 20, error: type[SmJaxError] = DataError
) -> dict[str, Any]:
    """The variables of a `.mat` file, structs as objects, axes of length 1 squeezed away.

    Args:
      path: the file.
      max_bytes: a larger one is refused.
      error: what is raised.

    Raises:
      `error`, in one line: no such file, too large, version 7.3, or damaged.
    """
    import scipy.io

    path = Path(path)
    try:
        size = path.stat().st_size
    except OSError as failure:
        reason = "no such file" if isinstance(failure, FileNotFoundError) else failure.strerror
        raise error(f"{path}: {reason}") from None
    if size > max_bytes:
        raise error(f"{path}: larger than {max_bytes >> 20} MiB, which no such file should be")
    try:
        return scipy.io.loadmat(path, struct_as_record=False, squeeze_me=True)
    except NotImplementedError:
        raise error(f"{path}: MATLAB 7.3 is not read; save it in MATLAB with save(..., '-v7')") from None
    except Exception as failure:  # scipy raises many kinds on damaged files
        raise error(f"{path}: not a readable MATLAB file ({str(failure)[:80]})") from None
