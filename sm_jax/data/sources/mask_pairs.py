"""Pairs of pictures with masks of the object or of its parts: Caltech-101 and PASCAL-Parts as published.

    caltech-101/
      101_ObjectCategories/beaver/image_0001.jpg
      Annotations/beaver/annotation_0001.mat  box_coord (top, bottom, left, right); obj_contour (2, k) from
                                              its corner
      test_pairs_caltech_with_category.csv    optional: source_image,target_image,class[,XA,YA,XB,YB]; the
                                              last four are outlines

    PASCAL-Parts/
      JPEGImages/2008_000033.jpg
      Annotations_Part/2008_000033.mat         anno.objects: class, mask, parts (part_name, mask)
      pairs.csv                               source_image,target_image,class[,XA,YA,XB,YB]; key-points

Sources: SCNet (ICCV 2017), sec. 5.4; Caltech-101's own annotations and the outlines listed with later work;
PASCAL-Part (CVPR 2014). Coordinates are counted from 1; masks have the size of their pictures.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from sm_jax import matlab
from sm_jax.data import images, order
from sm_jax.data.sources.files import pictures_in
from sm_jax.data.sources.pair_records import points
from sm_jax.data.sources.pf_pascal import COLUMNS, POINT_COLUMNS, listed_points, rows
from sm_jax.errors import DataError

CALTECH_PICTURES, CALTECH_CSV = "101_ObjectCategories", "test_pairs_caltech_with_category.csv"
CALTECH_FOLDERS = {
    "airplanes": "Airplanes_Side_2",
    "Faces": "Faces_2",
    "Faces_easy": "Faces_3",
    "Motorbikes": "Motorbikes_16",
}
"""Classes whose annotations lie in a folder of another name."""
NO_CLASS = "BACKGROUND_Google"
"""A folder beside those of the classes: pictures of anything, without annotations."""
PER_CLASS = 15
PARTS, PARTS_CSV = "Annotations_Part", "pairs.csv"
OBJECT = "object"

Masks = Callable[[], dict[str, np.ndarray]]


@dataclass(frozen=True)
class MaskPair:
    """Two pictures of a class and the masks of both.

    Attributes:
      source, target: paths of the pictures.
      class_name: what both show.
      source_masks, target_masks: give name -> bool (h, w): "object" of Caltech-101, else each part.
      keypoints_source, keypoints_target: float64 (k, 2) pixels, or none.
    """

    source: Path
    target: Path
    class_name: str
    source_masks: Masks
    target_masks: Masks
    keypoints_source: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    keypoints_target: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))


def read(path: Path) -> list[MaskPair] | None:
    """The pairs of a folder of Caltech-101 or PASCAL-Parts, or built of one; None for any other.

    Raises:
      DataError: see `read_caltech`, `read_parts` and `builders.pairs.open_mask_pairs`.
    """
    if is_caltech(path):
        return read_caltech(path)
    if is_parts(path):
        return read_parts(path)
    if (path / "dataset_info.json").is_file():
        from sm_jax.data.builders import pairs as built

        return built.open_mask_pairs(path) if built.holds_masks(path) else None
    return None


def is_caltech(path: Path) -> bool:
    """Whether `path` is a folder of Caltech-101."""
    return (path / CALTECH_PICTURES).is_dir()


def is_parts(path: Path) -> bool:
    """Whether `path` is a folder of PASCAL-Parts with a list of pairs."""
    return (path / PARTS).is_dir() and (path / PARTS_CSV).is_file()


def read_caltech(path: Path, *, per_class: int = PER_CLASS, seed: int = 0) -> list[MaskPair]:
    """The listed pairs, or `per_class` random ones of each class where there is no list.

    Raises:
      DataError: no pictures, a class with a single one, or a list that cannot be used.
    """
    listed = path / CALTECH_CSV
    if listed.is_file():
        return [_listed(path, where, row) for where, row in rows(listed, COLUMNS)]
    pairs = []
    folders = sorted(
        folder
        for folder in (path / CALTECH_PICTURES).iterdir()
        if folder.is_dir() and folder.name != NO_CLASS
    )
    for number, folder in enumerate(folders):
        pictures = pictures_in(folder)
        if len(pictures) < 2:
            raise DataError(f"{folder}: holds {len(pictures)} pictures, which make no pair")
        every = list(itertools.permutations(range(len(pictures)), 2))
        chosen = order.rng(seed, number).permutation(len(every))[:per_class]
        for a, b in (every[place] for place in np.sort(chosen)):
            ends = pictures[a], pictures[b]
            masks = [_caltech_masks(path, folder.name, end) for end in ends]
            pairs.append(MaskPair(*ends, folder.name, *masks))
    if not pairs:
        raise DataError(f"{path}: {CALTECH_PICTURES} holds no class folders")
    return pairs


def read_parts(path: Path) -> list[MaskPair]:
    """The pairs of the list, with the masks of the parts of the largest object of their class.

    Raises:
      DataError: a list that cannot be used.
    """
    pairs = []
    for where, row in rows(path / PARTS_CSV, COLUMNS):
        stems = [PurePosixPath(row[column].strip()).name.removesuffix(".jpg") for column in COLUMNS[:2]]
        ends = [path / "JPEGImages" / f"{stem}.jpg" for stem in stems]
        for end in ends:
            if not end.is_file():
                raise DataError(f"{where}: there is no picture {end}")
        name = row["class"].strip()
        masks = [_part_masks(path / PARTS / f"{stem}.mat", name) for stem in stems]
        given = all(row.get(column) for column in POINT_COLUMNS)
        keypoints = listed_points(row, where, convention="matlab") if given else ()
        pairs.append(MaskPair(*ends, name, *masks, *keypoints))
    if not pairs:
        raise DataError(f"{path / PARTS_CSV}: lists no pairs")
    return pairs


def outline_mask(outline: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool (h, w): pixels whose centre lies in the polygon "k 2" (pixels, edges on integers)."""
    from skimage import draw

    mask = np.zeros(size, bool)
    mask[draw.polygon(outline[:, 1] - 0.5, outline[:, 0] - 0.5, size)] = True
    return mask


def _listed(root: Path, where: str, row: dict[str, str]) -> MaskPair:
    ends = []
    for column in COLUMNS[:2]:
        name = row[column].strip()
        places = [root / name, root / CALTECH_PICTURES / name]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise DataError(f"{where}: there is no picture {name!r} in {root}")
        ends.append(found)
    given = all(row.get(column) for column in POINT_COLUMNS)
    if given:
        outlines = listed_points(row, where, convention="matlab")
        masks = [_outlined(end, outline) for end, outline in zip(ends, outlines, strict=True)]
    else:
        masks = [_caltech_masks(root, end.parent.name, end) for end in ends]
    return MaskPair(*ends, row["class"].strip(), *masks)


def _outlined(picture: Path, outline: np.ndarray) -> Masks:
    return lambda: {OBJECT: outline_mask(outline, images.image_size(picture, orient=False))}


def _caltech_masks(root: Path, class_name: str, picture: Path) -> Masks:
    folder = root / "Annotations" / CALTECH_FOLDERS.get(class_name, class_name)
    path = folder / f"{picture.stem.replace('image', 'annotation')}.mat"

    def masks() -> dict[str, np.ndarray]:
        content = matlab.load(path)
        for name in ("obj_contour", "box_coord"):
            if name not in content:
                raise DataError(f"{path}: has no {name!r}, which outlines the object")
        contour = np.asarray(content["obj_contour"], np.float64)
        box = np.asarray(content["box_coord"], np.float64).ravel()
        if contour.ndim != 2 or contour.shape[0] != 2 or box.shape != (4,):
            raise DataError(
                f"{path}: obj_contour {contour.shape} and box_coord {box.shape}, expected (2, k) and (4,)"
            )
        outline = points(contour.T + box[[2, 0]], convention="matlab", where=str(path), all_visible=True)
        return {OBJECT: outline_mask(outline, images.image_size(picture, orient=False))}

    return masks


def _part_masks(path: Path, class_name: str) -> Masks:
    def masks() -> dict[str, np.ndarray]:
        anno = matlab.load(path).get("anno")
        objects = np.atleast_1d(np.asarray(getattr(anno, "objects", []), object))
        mine = [each for each in objects.ravel() if getattr(each, "class", "") == class_name]
        if not mine:
            raise DataError(f"{path}: anno.objects has none of the class {class_name!r}")
        largest = max(mine, key=lambda each: np.sum(np.asarray(each.mask) > 0))
        parts = np.atleast_1d(np.asarray(getattr(largest, "parts", []), object)).ravel()
        found = {str(part.part_name): np.asarray(part.mask) > 0 for part in parts if _named(part)}
        if not found:
            raise DataError(f"{path}: its {class_name} has no parts")
        return found

    return masks


def _named(part: Any) -> bool:
    return hasattr(part, "part_name") and hasattr(part, "mask")
