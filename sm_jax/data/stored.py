"""Features of every picture of a data set in one file, as training reads them. NumPy only."""

from pathlib import Path

import numpy as np

from sm_jax.errors import DataError, ImageError


class StoredFeatures:
    """Rows of an `.npy` file, read from disk when they are asked for; a worker that gets it opens it anew.

    Args:
      path: of an array (pictures, h, w, c). A row of NaN stands for a picture that could not be read.

    Raises:
      DataError: the file cannot be read.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._rows: np.ndarray | None = None
        self.shape = self._open().shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> np.ndarray:
        """f16 (h, w, c) of picture `index`. Raises ImageError where there is none."""
        row = np.array(self._open()[index])
        if np.isnan(row[0, 0, 0]):
            raise ImageError(f"picture {index}: it could not be read when its features were stored")
        return row

    def damaged(self) -> list[int]:
        """The pictures that could not be read."""
        return np.flatnonzero(np.isnan(self._open()[:, 0, 0, 0])).tolist()

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_rows": None}

    def _open(self) -> np.ndarray:
        if self._rows is None:
            try:
                self._rows = np.load(self.path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise DataError(f"{self.path}: stored features cannot be read ({reason[:99]})") from None
        return self._rows
