"""Tiny data sets in exactly the published forms."""

import csv
import pickle
from pathlib import Path

import numpy as np
import scipy.io

from tests.data import makers

COLUMNS = (
    "imageid",
    "imagefilename",
    "classid",
    "classfilename",
    "gtbboxid",
    "difficult",
    "lx",
    "ty",
    "rx",
    "by",
)
BOX = (0.1, 0.15, 0.5, 0.5)


def retail(root: Path, name: str, rows: list[dict], *, folder: str, columns=COLUMNS) -> Path:
    """`root`/`name` with its CSV, class pictures and pictures."""
    home = root / name
    for row in rows:
        makers.save(home / "src" / folder / row["imagefilename"], int(row["imageid"]))
        makers.save(home / "classes" / "images" / row["classfilename"], int(row["classid"]), (24, 20))
    write(home / "classes" / f"{name}.csv", rows, columns)
    return home


def write(path: Path, rows: list[dict], columns=COLUMNS) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ("", *columns), extrasaction="ignore")  # pandas writes an index
        writer.writeheader()
        writer.writerows({"": index} | row for index, row in enumerate(rows))


def row(image: int, label: int, *, split: str = "", difficult: int = 0, box=BOX) -> dict:
    entry = {"imageid": image, "imagefilename": f"{image}.jpg", "classid": label}
    entry |= {"classfilename": f"{label}.jpg", "gtbboxid": 0, "difficult": difficult, "split": split}
    return entry | dict(zip(("lx", "ty", "rx", "by"), box, strict=True))


def grozi_rows() -> list[dict]:
    """Three pictures of train; 7 has only an old class, 8 only a new one, 9 both."""
    return [
        *(row(image, 10, split="train", difficult=int(image == 1)) for image in (0, 1, 2)),
        row(7, 10, split="val-old-cl"),
        row(8, 30, split="val-new-cl"),
        row(9, 10, split="val-old-cl"),
        row(9, 20, split="val-new-cl", box=(0.5, 0.5, 0.9, 0.9)),
    ]


def grozi(root: Path) -> Path:
    return retail(root, "grozi", grozi_rows(), folder="3264", columns=(*COLUMNS, "split"))


def instre(root: Path, *, queries: int = 20, subset: str = "INSTRE-S1") -> Path:
    """`queries` of a subset, each with one positive of its own; the first also with a picture of INSTRE-M.

    The query before them is one of INSTRE-M, and gives no class.
    """
    home = root / "instre"
    names = [f"INSTRE-M/01_pair/{0:03d}.jpg"]
    names += [f"{subset}/{i:02d}{'ab'[i % 2]}_thing/001.jpg" for i in range(queries)]
    listed = [name.replace("001.jpg", "002.jpg") for name in names[1:]] + ["INSTRE-M/01_pair/001.jpg"]
    for seed, name in enumerate((*names, *listed)):
        makers.save(home / name, seed)
        (home / name).with_suffix(".txt").write_text("10 12 40 28\n")
    (home / listed[-1]).with_suffix(".txt").write_text("10 12 40 28\n60 30 20 10\n")
    positives = [[1]] + [[i + 1] + ([len(listed)] if i == 1 else []) for i in range(queries)]
    instre_mat(home, names, listed, positives)
    return home


def instre_mat(
    home: Path, names, listed, positives, box=(10, 12, 50, 40), keys=("qimlist", "imlist", "gnd")
) -> None:
    gnd = np.zeros(len(positives), [("ok", object), ("bbx", object)])
    for entry, places in zip(gnd, positives, strict=True):
        entry["ok"], entry["bbx"] = np.array([places], np.uint16), np.array([box])
    values = (np.array(names, object)[None], np.array(listed, object)[None], gnd[None])
    scipy.io.savemat(home / "gnd_instre.mat", dict(zip(keys, values, strict=True)))


AUTHORS = "/dccstor/leonidka1/data/imagenet/ILSVRC/Data/CLS-LOC/train/"


def repmet(root: Path) -> Path:
    """Two episodes of two ways; picture b is searched in both; ILSVRC with two classes and a test class."""
    home = root / "ImageNet-RepMet"
    data = home / "RepMet_CVPR2019_data" / "data" / "Imagenet_LOC"
    (data / "episodes").mkdir(parents=True)
    pictures = home / "ILSVRC" / "Data" / "CLS-LOC"
    for seed, name in enumerate("abcd"):
        makers.save(pictures / "train" / "n00000001" / f"n00000001_{name}.JPEG", seed)
    dump(
        data / "voc_inloc_roidb.pkl",
        {"roidb": [roi(name) for name in "abc"], "classes": ["x"], "cls2img": []},
    )
    dump(
        data / "episodes" / "epi_inloc_in_domain_1_5_10_500.pkl",
        [episode("ab", (3, 5)), episode("b", (5, 3))],
    )
    (home / "repmet_test_classes.txt").write_text("".join(f"n{i:08d}\n" for i in range(1, 215)))
    annotations = home / "ILSVRC" / "Annotations" / "CLS-LOC"
    for wnid, name in (
        ("n00000001", "n00000001_a"),
        ("n09000001", "n09000001_1"),
        ("n09000002", "n09000002_1"),
    ):
        makers.save(pictures / "train" / wnid / f"{name}.JPEG", 9)
        xml(annotations / "train" / wnid / f"{name}.xml", name, [wnid])
    for index in range(4):
        name = f"ILSVRC2012_val_{index:08d}"
        makers.save(pictures / "val" / f"{name}.JPEG", index)
        xml(annotations / "val" / f"{name}.xml", name, ["n09000001", "n00000007", "n09000002"])
    return home


def xml(path: Path, name: str, classes: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(makers.voc_xml(name, [(one, makers.BOXES["cat"], False) for one in classes]))


def path_of(name: str) -> str:
    return f"{AUTHORS}n00000001/n00000001_{name}.JPEG"


def roi(name: str) -> dict:
    boxes = np.array([[10, 12, 50, 40], [60, 30, 90, 70], [0, 0, 5, 5]], np.uint16)
    entry = {"image": path_of(name), "width": np.int64(100), "height": np.int64(80), "flipped": False}
    return entry | {"boxes": boxes, "gt_classes": np.array([3, 5, 8], np.int32), "gt_overlaps": np.eye(3, 9)}


def episode(images: str, ways: tuple[int, ...]) -> dict:
    """Class 3's second training box is not to be used."""
    boxes = [[way, f"thing {way}", path_of("d"), np.array([[10, 12, 30 + way, 40]])] for way in ways]
    boxes.append([3, "thing 3", path_of("d"), np.array([[0, 0, 5, 5]])])
    names = [f"thing {way}" for way in ways]
    queries = [path_of(name) for name in images]
    return {"epi_cats": list(ways), "epi_cats_names": names, "train_boxes": boxes, "query_images": queries}


def dump(path: Path, value) -> None:
    path.write_bytes(pickle.dumps(value, protocol=2))
