"""The CSV of the published OS2D data sets: one row per box, class pictures beside it.

Source: OS2D (ECCV 2020), published data (GroZi-3.2k, Dairy, Paste, INSTRE lists).
"""

import csv
import io
import os
from pathlib import Path

import numpy as np

from sm_jax.data.sources.base import ClassPicture, Collection, Record
from sm_jax.data.sources.files import MAX_CSV_BYTES, checked_bytes
from sm_jax.errors import DataError

MAX_NAME = 255  # bytes; file systems refuse longer names
REQUIRED = ("imageid", "classid", "lx", "ty", "rx", "by")


def find(root: Path) -> Path | None:
    """The CSV at `root`, in it or in its `classes` folder; None if there is none, DataError if several."""
    if root.is_file():
        return root
    found = [p for p in [*sorted(root.glob("*.csv")), *sorted((root / "classes").glob("*.csv"))] if _fits(p)]
    if len(found) > 1:
        raise DataError(
            f"{root}: several annotation files ({', '.join(p.name for p in found)}); give one's path"
        )
    return found[0] if found else None


def read(
    path: Path,
    *,
    folder: Path | None = None,
    required: tuple[str, ...] = REQUIRED,
    divided: bool = True,
) -> Collection:
    """Reads the table; boxes are shares of the picture's size.

    Column `split` divides the pictures. Several splits of one family, such as "val-old-cl" and "val-new-cl",
    share their pictures: each searches all of them and keeps its own boxes; the family ("val") has all boxes.

    Args:
      path: the table.
      folder: where its pictures are; None looks for them.
      required: columns that it must have.
      divided: heed the column `split`.

    Raises:
      DataError: columns are missing, or none of the pictures is found.
    """
    rows, problems = _rows(path, required)
    root = path.parent.parent if path.parent.name == "classes" else path.parent
    class_ids = sorted({row["classid"] for row in rows})
    label_of = {class_id: label for label, class_id in enumerate(class_ids)}
    folder = folder or _picture_folder(path, root, rows)
    by_split: dict[str, dict[str, list[dict]]] = {}
    for row in rows:
        by_split.setdefault(row["split"] if divided else "", {}).setdefault(row["imagefilename"], []).append(
            row
        )
    splits = {}
    for name, images in _families(by_split).items():
        splits[name] = []
        for filename, members in images.items():
            if not (folder / filename).is_file():
                problems.append(f"{path}: picture {filename!r} was not found in {folder}")
                continue
            splits[name].append(_record(folder / filename, members, label_of))
    problems = list(dict.fromkeys(problems))
    given = _class_pictures(path, root, rows, label_of)
    names = [str(class_id) for class_id in class_ids]
    return Collection("OS2D CSV", root, names, splits, given, problems=problems)


def _fits(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            header = stream.readline(1 << 16).decode("utf-8-sig", errors="replace")
    except OSError:
        return False
    columns = {column.strip().strip('"') for column in header.split(",")}
    return columns.issuperset(REQUIRED)


def _rows(path: Path, required: tuple[str, ...]) -> tuple[list[dict], list[str]]:
    text = checked_bytes(path, MAX_CSV_BYTES).decode("utf-8-sig", errors="replace")
    reader = csv.DictReader(io.StringIO(text))
    rows, problems = [], []
    try:
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        missing = set(required).difference(reader.fieldnames)
        if missing:
            raise DataError(
                f"{path}: columns {', '.join(sorted(missing))} are missing (an OS2D CSV needs them)"
            )
        for row in reader:
            try:
                rows.append(_row(row))
            except (AttributeError, TypeError, ValueError, OverflowError) as error:
                problems.append(f"{path}: line {reader.line_num} is not usable ({str(error)[:80]})")
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num} is not valid CSV ({error})") from error
    if not rows:
        raise DataError(f"{path}: holds no usable row")
    return rows, problems


def _row(row: dict) -> dict:
    image_id, class_id = row["imageid"].strip(), int(float(row["classid"]))
    filename = (row.get("imagefilename") or "").strip() or f"{image_id}.jpg"
    class_filename = (row.get("classfilename") or "").strip() or f"{class_id}.jpg"
    for name in (filename, class_filename):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"file name {name!r} leads out of the data set")
        if any(len(os.fsencode(part)) > MAX_NAME for part in Path(name).parts):
            raise ValueError(f"file name {name[:20]!r}... is too long")
    return {
        "imageid": image_id,
        "imagefilename": filename,
        "classid": class_id,
        "classfilename": class_filename,
        "split": (row.get("split") or "").strip(),
        "difficult": float(row.get("difficult") or 0) == 1,
        "box": [float(row[key]) for key in ("lx", "ty", "rx", "by")],
    }


def _families(by_split: dict[str, dict[str, list[dict]]]) -> dict[str, dict[str, list[dict]]]:
    families: dict[str, list[str]] = {}
    for name in by_split:
        if "-" in name:
            families.setdefault(name.split("-")[0], []).append(name)
    result = dict(by_split)
    for family, members in families.items():
        if len(members) < 2 or family in by_split:
            continue
        filenames = dict.fromkeys(filename for member in members for filename in by_split[member])
        for member in members:
            result[member] = {filename: by_split[member].get(filename, []) for filename in filenames}
        result[family] = {f: [row for m in members for row in by_split[m].get(f, [])] for f in filenames}
    return result


def _record(path: Path, rows: list[dict], label_of: dict[int, int]) -> Record:
    return Record(
        rows[0]["imageid"] if rows else path.stem,
        path,
        None,
        np.asarray([row["box"] for row in rows], np.float64).reshape(-1, 4),
        np.asarray([label_of[row["classid"]] for row in rows], np.int32),
        np.asarray([row["difficult"] for row in rows], bool),
        relative=True,
    )


def _picture_folder(path: Path, root: Path, rows: list[dict]) -> Path:
    """The folder that holds most of the first pictures; the published sets keep them under `src/<name>`."""
    sources = [folder for folder in sorted((root / "src").glob("*")) if folder.is_dir()]
    folders = [*sources, root / "src", root / "images", root / "JPEGImages", root, path.parent]
    names = list(dict.fromkeys(row["imagefilename"] for row in rows))[:50]
    found = [sum((folder / name).is_file() for name in names) for folder in folders]
    if not max(found):
        raise DataError(f"{path}: its pictures (the first is {names[0]!r}) were not found under {root}")
    return folders[int(np.argmax(found))]


def _class_pictures(
    path: Path, root: Path, rows: list[dict], label_of: dict[int, int]
) -> dict[int, ClassPicture]:
    given: dict[int, ClassPicture] = {}
    folders = (path.parent / "images", root / "classes" / "images", root / "classes")
    for row in rows:
        label = label_of[row["classid"]]
        if label in given:
            continue
        for folder in folders:
            if (folder / row["classfilename"]).is_file():
                given[label] = ClassPicture(folder / row["classfilename"])
                break
    return given
