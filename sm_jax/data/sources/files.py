"""Reading a person's annotation files safely: sizes capped, XML without entities, pictures found by name."""

import json
import xml.parsers.expat
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

from sm_jax.data.images import SUFFIXES
from sm_jax.errors import ConfigError, DataError

MAX_XML_BYTES = 16 << 20
MAX_JSON_BYTES = 2 << 30
MAX_CSV_BYTES = 2 << 30


def checked_bytes(path: Path, limit: int) -> bytes:
    """The content of a file of at most `limit` bytes; raises DataError."""
    try:
        if path.stat().st_size > limit:
            raise DataError(f"{path}: larger than {limit >> 20} MiB, which no annotation file should be")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def read_json(path: Path) -> Any:
    """Parsed JSON; raises DataError."""
    try:
        return json.loads(checked_bytes(path, MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({_short(error)})") from error


def read_xml(path: Path) -> ElementTree.Element:
    """Root element of an XML file; document types and entities (they can read files) are refused."""
    builder = ElementTree.TreeBuilder()

    def refuse(*_):
        raise DataError(f"{path}: XML with a document type or entities is not accepted")

    try:
        parser = xml.parsers.expat.ParserCreate()
        parser.StartElementHandler = builder.start
        parser.EndElementHandler = builder.end
        parser.CharacterDataHandler = builder.data
        parser.StartDoctypeDeclHandler = refuse
        parser.EntityDeclHandler = refuse
        parser.ExternalEntityRefHandler = refuse
        parser.Parse(checked_bytes(path, MAX_XML_BYTES), True)
        return builder.close()
    except (xml.parsers.expat.ExpatError, ValueError, LookupError, AssertionError) as error:
        raise DataError(f"{path}: not valid XML ({_short(error)})") from error


def outside(target: str | Path, data: str | Path) -> Path:
    """`target` without links; raises ConfigError if it lies in the folder of the data set `data`."""
    target, root = (Path(path).expanduser().resolve() for path in (target, data))
    root = root.parent if root.is_file() else root
    if root.exists() and target.is_relative_to(root):
        raise ConfigError(f"{target}: lies in the data set's folder {root}, where nothing is ever written")
    return target


class PictureIndex:
    """Finds pictures by file name or stem in a few folders, each listed once, and nowhere else."""

    def __init__(self, folders: list[Path]):
        self._names: dict[str, Path] = {}
        self._stems: dict[str, Path] = {}
        self.folders = [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
        for folder in self.folders:
            for path in sorted(folder.iterdir()):
                if path.suffix.lower() in SUFFIXES:
                    self._names.setdefault(path.name, path)
                    self._stems.setdefault(path.stem, path)

    def by_stem(self, stem: str) -> Path | None:
        return self._stems.get(stem)

    def by_name(self, name: str) -> Path | None:
        """`name` may have folders; those that lead out of the data set are ignored, the file name is not."""
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if len(parts) > 1 and ".." not in parts and not parts[0].endswith(("/", ":")):
            for folder in self.folders:
                if (folder.joinpath(*parts)).is_file():
                    return folder.joinpath(*parts)
        return self._names.get(parts[-1]) if parts else None


def number(text: str | None) -> float | None:
    """The number that an XML text says, None for anything else."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def picture_size(height: Any, width: Any) -> tuple[int, int] | None:
    """(height, width) as integers if both are numbers of at least 1, else None (the file then tells)."""
    values = (height, width)
    if all(isinstance(value, (int, float)) and 1 <= value < 1e9 for value in values):
        return int(height), int(width)
    return None


def pictures_in(folder: Path) -> list[Path]:
    """Picture files directly in `folder`, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())


def class_folder_pictures(root: Path, class_names: list[str]) -> dict[int, Path]:
    """Pictures `classes/<class name>.<suffix>` by class index (case and spaces as in the name)."""
    index = PictureIndex([root / "classes", root / "classes" / "images"])
    found = {label: index.by_stem(name) for label, name in enumerate(class_names)}
    return {label: path for label, path in found.items() if path is not None}


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
