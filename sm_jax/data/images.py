"""Pictures in, uint8 RGB out: safe decoding, EXIF orientation, every common pixel format, Pillow resizing.

Formats outside `FORMATS`, pictures above a pixel cap and damaged files give an `ImageError` of one line that
names the file. Pillow's warnings stay inside this module.
"""

import contextlib
import io
import math
import os
import struct
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from sm_jax.errors import ImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif")
MAX_PIXELS = 128_000_000  # a 108-megapixel phone picture passes; 0.4 GB as uint8 RGB
FILTERS = {
    "box": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
}
PathOrBytes = str | os.PathLike | bytes | bytearray | memoryview
# Pillow's decoders raise all of these on hostile or damaged files; the `try` around them holds nothing else.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    EOFError,
    RuntimeError,
    AssertionError,
    struct.error,
    Image.DecompressionBombError,
)
_ORIENTATION_TAG = 0x0112
# Keys of Pillow's `info` of a PNG that `getexif` takes the orientation from; XMP has it as tiff:Orientation.
_SAYS_ORIENTATION = frozenset({"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"})
_TIFF_SIZE_TAGS = 256, 257  # width, height
_UNTURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # what brings a picture turned by its EXIF orientation back to the stored pixels


class _QuietPillow:
    """Ignores warnings raised inside Pillow. `catch_warnings` is not thread safe: nested users share one."""

    def __init__(self):
        self._lock = threading.Lock()
        self._depth = 0
        self._saved: warnings.catch_warnings | None = None

    def __enter__(self):
        with self._lock:
            if self._depth == 0:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL(\..*)?$")
            self._depth += 1

    def __exit__(self, *exc):
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                self._saved.__exit__(*exc)
                self._saved = None


_quiet_pillow = _QuietPillow()


def read_image(
    path_or_bytes: PathOrBytes, *, max_pixels: int = MAX_PIXELS, orient: bool = True, name: str | None = None
) -> np.ndarray:
    """Decodes a picture to uint8 RGB `(h, w, 3)`.

    Transparent pictures are composited on white, palettes and CMYK converted, 16-bit values scaled from the
    full 16-bit range, float values taken as [0, 1] or [0, 255] if they fit and stretched otherwise, and only
    the first frame of an animation is read.

    Args:
      path_or_bytes: a file, or the content of one.
      max_pixels: pictures with more pixels are refused before they are decoded.
      orient: apply the EXIF orientation.
      name: what error messages call the picture; default the path.

    Raises:
      ImageError: missing, empty, damaged, too large or not one of `FORMATS`.
    """
    with _opened(path_or_bytes, max_pixels, name) as (image, label):
        return _decoded(image, label, orient)


def image_size(
    path_or_bytes: PathOrBytes, *, max_pixels: int = MAX_PIXELS, orient: bool = True, name: str | None = None
) -> tuple[int, int]:
    """`(height, width)` from the header alone; arguments and errors as `read_image`."""
    with _opened(path_or_bytes, max_pixels, name) as (image, _):
        width, height = _stored_size(image)
        turned = orient and _may_have_exif(image) and _orientation(image) >= 5
        return (width, height) if turned else (height, width)


def turned(path_or_bytes: PathOrBytes, *, max_pixels: int = MAX_PIXELS) -> bool:
    """Whether the EXIF orientation says that the stored pixels are not upright; errors as `read_image`."""
    with _opened(path_or_bytes, max_pixels, None) as (image, _):
        return _may_have_exif(image) and _orientation(image) > 1


def as_image(image: Any, *, max_pixels: int = MAX_PIXELS, name: str | None = None) -> np.ndarray:
    """uint8 RGB `(h, w, 3)` from a path, encoded bytes, a Pillow image or an array.

    Arrays are `(h, w)`, `(h, w, 1)`, `(h, w, 3)` or `(h, w, 4)` (the last with alpha, composited on white):
    uint8, bool, uint16 (full range) or float in [0, 1].

    Raises:
      ImageError: as `read_image`, and for arrays of another shape, value range or of size zero.
    """
    if isinstance(image, (str, os.PathLike, bytes, bytearray, memoryview)):
        return read_image(image, max_pixels=max_pixels, name=name)
    if isinstance(image, Image.Image):
        label = name or "picture"
        _check_size(image, label, max_pixels)
        with _quiet_pillow:
            return _decoded(image, label, True)
    return _from_array(np.asarray(image), name or "array")


def fit_to_area(size: tuple[int, int], side: int = 240) -> tuple[int, int]:
    """`(height, width)` of area about `side`**2 with the aspect ratio of `size`, each at least 1.

    Source: OS2D, published code (class image size): both sides truncated.
    """
    root = math.sqrt(size[0] / size[1])
    return max(int(side * root), 1), max(int(side / root), 1)


def resize(image: np.ndarray, size: tuple[int, int], filter: str = "bilinear") -> np.ndarray:
    """Resizes uint8 `(h, w, 3)` to `size` = (height, width); the filter's support grows when shrinking.

    Raises:
      ImageError: a size below 1.
      KeyError: an unknown filter; see `FILTERS`.
    """
    height, width = (int(side) for side in size)
    if height < 1 or width < 1 or 0 in image.shape:
        raise ImageError(f"cannot resize a picture of {image.shape[1]}x{image.shape[0]} to {width}x{height}")
    if (height, width) == image.shape[:2]:
        return image  # every filter is the identity here
    return np.asarray(Image.fromarray(image).resize((width, height), FILTERS[filter]))


@contextlib.contextmanager
def _opened(source: PathOrBytes, max_pixels: int, name: str | None):
    if isinstance(source, (bytes, bytearray, memoryview)):
        label, stream = name or "picture", io.BytesIO(source)
        empty = not stream.getbuffer().nbytes
    else:
        path = Path(source)
        label = name or str(path)
        try:
            if not path.exists():
                raise ImageError(f"{label}: no such picture file")
            if not path.is_file():  # a pipe or device would block or never end
                raise ImageError(f"{label}: not a regular file")
            empty = path.stat().st_size == 0
            stream = path.open("rb")
        except (OSError, ValueError) as error:
            raise ImageError(f"{label}: cannot be read ({_reason(error)})") from error
    with stream, _quiet_pillow:
        if empty:
            raise ImageError(f"{label}: the file is empty")
        try:
            image = Image.open(stream, formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise ImageError(f"{label}: too many pixels ({_limit(max_pixels)})") from error
        except _DECODE_ERRORS as error:
            formats = ", ".join(FORMATS)
            raise ImageError(f"{label}: not a picture in a supported format ({formats})") from error
        _check_size(image, label, max_pixels)
        yield image, label


def _check_size(image: Image.Image, label: str, max_pixels: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{label}: the picture has no pixels ({width}x{height})")
    if width * height > max_pixels:
        raise ImageError(f"{label}: {width}x{height} is too many pixels ({_limit(max_pixels)}); shrink it")


def _orientation(image: Image.Image) -> int:
    try:
        orientation = int(image.getexif().get(_ORIENTATION_TAG, 1))
    except _DECODE_ERRORS:
        return 1  # a damaged EXIF block says nothing
    return orientation if 1 <= orientation <= 8 else 1


def _may_have_exif(image: Image.Image) -> bool:
    """Whether to ask for it: Pillow decodes a PNG to look behind its pixels, where hardly any has it."""
    if image.format != "PNG" or not _SAYS_ORIENTATION.isdisjoint(image.info):
        return True
    position, behind = image.fp.tell(), False
    try:
        image.fp.seek(8)
        while len(head := image.fp.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if behind and kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
                return True
            behind |= kind == b"IDAT"
            image.fp.seek(length + 4, os.SEEK_CUR)  # the content and its checksum
        return False
    finally:
        image.fp.seek(position)


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) before the EXIF orientation; Pillow turns that of a TIFF on opening it."""
    if image.format == "TIFF" and all(tag in image.tag_v2 for tag in _TIFF_SIZE_TAGS):
        return tuple(int(image.tag_v2[tag]) for tag in _TIFF_SIZE_TAGS)
    return image.size


def _decoded(image: Image.Image, label: str, orient: bool) -> np.ndarray:
    turned = _orientation(image) if image.format == "TIFF" else 1
    try:
        # TIFF is oriented by Pillow while loading; asking it again afterwards is then a no-op.
        image.load()
    except MemoryError as error:
        raise ImageError(f"{label}: not enough memory to decode the picture") from error
    except _DECODE_ERRORS as error:
        raise ImageError(f"{label}: damaged or truncated ({_reason(error)})") from error
    if orient and _orientation(image) > 1:
        with contextlib.suppress(*_DECODE_ERRORS):
            image = ImageOps.exif_transpose(image)
    if not orient and turned > 1:
        image = image.transpose(_UNTURN[turned])
    try:
        return _to_rgb(image)
    except _DECODE_ERRORS as error:
        raise ImageError(f"{label}: cannot convert pixel format {image.mode} ({_reason(error)})") from error


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith(("I", "F")):
        return _grey_to_rgb(_to_bytes(np.asarray(image)))
    if image.mode == "LAB":
        from PIL import ImageCms  # Pillow converts this mode only through colour management

        try:
            profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
            image = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
        except (ImageCms.PyCMSError, ImportError) as error:  # the first comes directly from Exception
            raise ValueError(str(error)) from error
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return _on_white(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))


def _on_white(rgba: np.ndarray) -> np.ndarray:
    alpha = rgba[..., 3:].astype(np.float32) / 255.0
    return np.rint(rgba[..., :3] * alpha + 255.0 * (1.0 - alpha)).astype(np.uint8)


def _grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """Single-channel integer or float values -> uint8, by the rules in `read_image`."""
    if values.dtype == np.uint16:
        return np.rint(values / 257.0).astype(np.uint8)
    values = values.astype(np.float64)
    finite = np.isfinite(values)
    low, high = (values[finite].min(), values[finite].max()) if finite.any() else (0.0, 0.0)
    values = np.where(finite, values, low)
    if low >= 0 and high <= 1:
        scale, shift = 255.0, 0.0
    elif low >= 0 and high <= 255:
        scale, shift = 1.0, 0.0
    elif low >= 0 and high <= 65535 and np.array_equal(values, np.rint(values)):
        scale, shift = 1.0 / 257.0, 0.0
    else:
        scale, shift = 255.0 / (high - low), low
    return np.rint((values - shift) * scale).astype(np.uint8)


def _from_array(array: np.ndarray, label: str) -> np.ndarray:
    if array.size == 0:
        raise ImageError(f"{label}: the picture has no pixels (shape {array.shape})")
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4):
        raise ImageError(f"{label}: expected an array (h, w) or (h, w, 1, 3 or 4), got {array.shape}")
    if array.dtype == np.bool_:
        array = array * np.uint8(255)
    elif array.dtype == np.uint16:
        array = _to_bytes(array)
    elif array.dtype.kind == "f" or array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
        if not (array.min() >= 0 and array.max() <= 1):  # also false for NaN
            raise ImageError(f"{label}: float pictures must lie in [0, 1] and be finite")
        array = np.rint(array * 255.0).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ImageError(f"{label}: expected uint8, uint16, bool or float in [0, 1], got {array.dtype}")
    if array.shape[-1] == 4:
        return _on_white(array)
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else np.array(array)


def _limit(max_pixels: int) -> str:
    return f"the limit is {max_pixels / 1e6:g} megapixels"


def _reason(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:120] or type(error).__name__
