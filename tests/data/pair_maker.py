"""Small key-point data sets in exactly the published forms."""

import numpy as np
import scipy.io
from PIL import Image

from sm_jax.data.sources import pf_pascal

NAN = np.nan


def picture(path, seed=0, size=(40, 60)):
    """A picture of (height, width) `size` that no other seed gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def willow(root, classes=("car(S)", "duck(S)"), count=3):
    """PF-WILLOW: class folders with `count` pictures; the i-th has its first point at (i + 1, 2)."""
    for number, name in enumerate(classes):
        for index in range(count):
            path = root / name / f"p_{index}.png"
            picture(path, 100 * number + index)
            coordinates = np.arange(20.0).reshape(2, 10) + 3
            coordinates[:, 0] = index + 1, 2
            scipy.io.savemat(path.with_suffix(".mat"), {"pts_coord": coordinates})
    return root


def annotation(root, class_name, image, points, box=(1, 1, 60, 40)):
    """One annotation of PF-PASCAL, with its picture."""
    path = root / "Annotations" / class_name / f"{image}.mat"
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {"kps": np.asarray(points, float), "bbox": np.asarray(box, float)})
    picture(root / "JPEGImages" / f"{image}.jpg", int(image[-4:]))


def table(root, pairs):
    """`parsePascalVOC.mat` with `pairs` {class name: [(source, target), ...]}."""
    cells = np.empty((1, len(pf_pascal.CLASSES)), object)
    for index, name in enumerate(pf_pascal.CLASSES):
        listed = pairs.get(name, [])
        cells[0, index] = np.empty((len(listed), 2), object)
        for row, names in enumerate(listed):
            cells[0, index][row] = names
    scipy.io.savemat(root / pf_pascal.TABLE, {"PascalVOC": {"pair": cells}})


def pascal(root, count=4):
    """PF-PASCAL with `count` pairs of buses (three points) and one of birds (one point)."""
    buses = [f"2008_{index:06d}" for index in range(count + 1)]
    for index, name in enumerate(buses):
        last = [NAN, NAN] if index == 0 else [30.0, 20.0 + index]
        annotation(root, "bus", name, [[1.0, 1.0], [10.5, 11.0 + index], last])
    for name in ("2009_000101", "2009_000102"):
        annotation(root, "bird", name, [[5.0, 6.0]])
    pairs = {"bus": list(zip(buses, buses[1:], strict=False)), "bird": [("2009_000101", "2009_000102")]}
    table(root, pairs)
    return root
