"""Tiny data sets of every supported form, written into a temporary folder."""

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image

BOXES = {"cat": (10, 12, 50, 40), "dog": (60, 30, 90, 70)}
SIZE = (80, 100)  # height, width


def picture(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def save(path: Path, seed: int = 0, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed, size)).save(path)
    return path


def voc_xml(name: str, objects, size=SIZE) -> str:
    entries = "".join(
        f"<object><name>{label}</name><difficult>{int(difficult)}</difficult><bndbox>"
        f"<xmin>{box[0] + 1}</xmin><ymin>{box[1] + 1}</ymin>"
        f"<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax>"
        "</bndbox></object>"
        for label, box, difficult in objects
    )
    return (
        f"<annotation><filename>{name}</filename><size><width>{size[1]}</width><height>{size[0]}</height>"
        f"<depth>3</depth></size>{entries}</annotation>"
    )


def voc(root: Path, count: int = 6, *, sets: dict[str, list[int]] | None = None, objects=None) -> Path:
    """`count` pictures, each with one cat (not difficult) and one dog (difficult on picture 0)."""
    (root / "Annotations").mkdir(parents=True)
    for i in range(count):
        save(root / "JPEGImages" / f"{i}.png", i)
        shown = objects or [("cat", BOXES["cat"], False), ("dog", BOXES["dog"], i == 0)]
        (root / "Annotations" / f"{i}.xml").write_text(voc_xml(f"{i}.png", shown))
    for name, ids in (sets or {}).items():
        path = root / "ImageSets" / "Main" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{i}\n" for i in ids))
    return root


def coco_document(count: int = 4, first: int = 0, folder: str = "") -> dict:
    images, annotations = [], []
    for i in range(first, first + count):
        images.append({"id": i, "file_name": f"{folder}{i}.png", "height": SIZE[0], "width": SIZE[1]})
        for category, name in ((7, "dog"), (3, "cat")):
            x1, y1, x2, y2 = BOXES[name]
            entry = {"id": len(annotations), "image_id": i, "category_id": category, "iscrowd": 0}
            annotations.append(entry | {"bbox": [x1, y1, x2 - x1, y2 - y1]})
    categories = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def coco(root: Path, count: int = 4) -> Path:
    for split, first in (("train2017", 0), ("val2017", count)):
        for i in range(first, first + count):
            save(root / split / f"{i}.png", i)
        path = root / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(coco_document(count, first)))
    return root


def os2d_csv(root: Path, splits=("train", "train", "val-old-cl", "val-new-cl")) -> Path:
    """Picture i belongs to split i and shows class 10 (a cat) and, except for the last, class 20 (a dog)."""
    rows = []
    for i, split in enumerate(splits):
        save(root / "src" / "3264" / f"{i}.png", i)
        for class_id, name in ((10, "cat"), (20, "dog")):
            if i == len(splits) - 1 and class_id == 20:
                continue
            x1, y1, x2, y2 = BOXES[name]
            shares = [x1 / SIZE[1], y1 / SIZE[0], x2 / SIZE[1], y2 / SIZE[0]]
            files = [f"{i}.png", class_id, f"{class_id}.png"]
            rows.append([i, *files, len(rows), int(class_id == 20), *shares, split])
    for class_id in (10, 20):
        save(root / "classes" / "images" / f"{class_id}.png", class_id, (30, 40))
    header = "imageid,imagefilename,classid,classfilename,gtbboxid,difficult,lx,ty,rx,by,split".split(",")
    with (root / "classes" / "demo.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return root


def class_folders(root: Path, names=("apple", "pear", "plum"), count: int = 5) -> Path:
    for label, name in enumerate(names):
        for i in range(count):
            save(root / name / f"{i}.png", 10 * label + i, (40 + 5 * i, 50))
    return root


def fingerprint(root: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of everything below `root`: nothing may be written into a person's folder."""
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in [root, *root.rglob("*")]}
