"""A folder of finished pictures. An entry that is damaged, or cannot be written, is simply rendered again."""

import os
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

_MAGIC = b"SMJX"


def fetch(path: Path, render: Callable[[], bytes]) -> bytes:
    """The picture file stored at `path`; rendered, and stored for the next time, if it is absent or damaged.

    The checksum behind the picture's own bytes (image viewers ignore it) tells a damaged file. Writing is
    atomic; a folder that cannot be written to costs time, not the run.
    """
    try:
        stored = path.read_bytes()
    except OSError:
        stored = b""
    content, seal = stored[:-8], stored[-8:]
    if content and seal == _seal(content):
        return content
    content = render()
    try:
        _write(path, content + _seal(content))
    except OSError:
        pass
    return content


def _seal(content: bytes) -> bytes:
    return _MAGIC + zlib.crc32(content).to_bytes(4, "big")


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise
