"""Proposals that somebody computed elsewhere: one `.npy` file of boxes beside, or for, each picture."""

import os
from pathlib import Path

import numpy as np

from sm_jax.errors import ConfigError, DataError

CONVENTIONS = ("half_open", "matlab")


def read(
    image: str | os.PathLike,
    size: tuple[int, int],
    *,
    folder: str | os.PathLike = "",
    convention: str = "half_open",
) -> np.ndarray:
    """The boxes stored for a picture, in their order, clipped to it.

    Args:
      image: path of the picture; `photo.jpg` has its boxes in `photo.npy`.
      size: (height, width) of the picture.
      folder: where the `.npy` files are; default beside the picture.
      convention: of the file's boxes `x1 y1 x2 y2`: "half_open" as everywhere here (pixel edges on integers,
        the whole picture is `0 0 width height`), or "matlab", pixels counted from 1 with both corners inside
        (the whole picture is `1 1 width height`).

    Returns:
      `(k, 4)` float32, half-open.

    Raises:
      ConfigError: `image` is not a path, or an unknown convention.
      DataError: no such file, not `(k, 4)` numbers, NaN or infinity, an inverted or empty box, or one outside
        the picture.
    """
    if convention not in CONVENTIONS:
        raise ConfigError(f"proposals: convention={convention!r} is not one of {', '.join(CONVENTIONS)}")
    if not isinstance(image, (str, os.PathLike)):
        raise ConfigError("proposals: 'precomputed' needs the path of the picture, not its pixels")
    picture = Path(image)
    path = (Path(folder).expanduser() if folder else picture.parent) / f"{picture.stem}.npy"
    try:
        boxes = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; it should hold the proposals of {picture.name}") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a readable .npy file of numbers ({str(error)[:80]})") from None
    if not isinstance(boxes, np.ndarray) or boxes.ndim != 2 or boxes.shape[1] != 4:
        shape = getattr(boxes, "shape", "several arrays")
        raise DataError(f"{path}: expected boxes of shape (k, 4), found {shape}")
    if boxes.dtype.kind not in "iuf":
        raise DataError(f"{path}: expected numbers, found {boxes.dtype}")
    boxes = boxes.astype(np.float64)
    if convention == "matlab":
        boxes[:, :2] -= 1
    if bad := np.flatnonzero(~np.isfinite(boxes).all(1)).tolist():
        raise DataError(f"{path}: box {bad[0]} holds NaN or infinity ({len(bad)} such boxes)")
    if bad := np.flatnonzero((boxes[:, 2:] <= boxes[:, :2]).any(1)).tolist():
        raise DataError(
            f"{path}: box {bad[0]} is inverted or empty ({len(bad)} such boxes); expected x1 < x2, y1 < y2"
        )
    height, width = size
    boxes = np.clip(boxes, 0, [width, height, width, height]).astype(np.float32)
    if bad := np.flatnonzero((boxes[:, 2:] <= boxes[:, :2]).any(1)).tolist():
        raise DataError(
            f"{path}: box {bad[0]} lies outside the picture of {width}x{height} ({len(bad)} such boxes); are "
            "these the boxes of another picture, or of another size of it?"
        )
    return boxes
