"""Files of `sm-jax detect`: the pictures that it searches, and the ones it writes, which it knows again."""

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from sm_jax import draw
from sm_jax.data import images as pictures
from sm_jax.errors import ConfigError

_OURS = re.compile(r".*-found(-[0-9]+)?|sheet")  # overlays, and the sheet of `sm-jax data preview`


def files(paths: list[str], *, what: str) -> list[Path]:
    """The pictures that `paths` name; a folder stands for the pictures in it (not below), sorted by name.

    Overlays and preview sheets that sm-jax left in a folder are not searched; a line on stderr says so.

    Raises:
      ConfigError: a folder without pictures, or one that cannot be read.
    """
    found = []
    for path in map(Path, paths):
        try:
            inside = _pictures_in(path) if path.is_dir() else [path]
        except OSError as error:
            raise ConfigError(f"{what}: {path} cannot be read ({error.strerror})") from error
        if path.is_dir() and (written := [file for file in inside if _is_ours(file)]):
            count = f"{len(written)} picture{'s' * (len(written) > 1)}"
            print(f"note: {path}: {count} that sm-jax drew: left out", file=sys.stderr)
            inside = [file for file in inside if file not in written]
        if not inside:
            raise ConfigError(f"{what}: {path} is a folder without pictures")
        found.extend(inside)
    return found


class Overlays:
    """Writes overlays into a folder, none over an input or over another one of this run."""

    def __init__(self, folder: Path | None, *, taken: Iterable[Path]):
        self._folder, self._taken = folder, {path.resolve() for path in taken}

    def save(self, picture: Image.Image, image: Path) -> Path:
        """Write the overlay of `image`; returns its path. Raises ConfigError if it cannot be written."""
        target = self._free_name(image)
        try:
            draw.save(picture, target)
        except OSError as error:
            raise ConfigError(f"--out: {target} cannot be written ({error.strerror or error})") from error
        return target

    def _free_name(self, image: Path) -> Path:
        suffix = ".png" if image.suffix.lower() == ".png" else ".jpg"
        number = 1
        while True:
            name = f"{image.stem}-found{f'-{number}' if number > 1 else ''}{suffix}"
            target = self._folder / name
            if target.resolve() not in self._taken:
                self._taken.add(target.resolve())
                return target
            number += 1


def output_folder(out: str | None) -> Path | None:
    """The folder, made if it is not there. Raises ConfigError if it cannot be made."""
    if out is None:
        return None
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be made ({error.strerror})") from error
    return Path(out)


def write_json(document: dict[str, Any], target: Path) -> None:
    """Write one JSON document. Raises ConfigError if it cannot be written."""
    try:
        target.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out: {target} cannot be written ({error.strerror})") from error


def _is_ours(path: Path) -> bool:
    """Whether sm-jax drew the picture: by its name, and by the mark in it."""
    return bool(_OURS.fullmatch(path.stem)) and draw.is_marked(path)


def _pictures_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in pictures.SUFFIXES and p.is_file())
