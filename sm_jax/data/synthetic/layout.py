"""Where everything stands in a scene: objects, shelf boards, price tags, occluders. Geometry only, no pixels.

Annotations come from here, so they cost a few milliseconds and need neither artwork nor cache. A scene is
either a shelf (rows of facings on one plane, seen by a camera) or a free layout (each object on a plane of
its own).
"""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from sm_jax.data.synthetic import geometry
from sm_jax.data.synthetic.catalogue import Identity

MIN_VISIBLE = 0.1  # below this share an object is not annotated
DIFFICULT_BELOW = 0.5  # visible share under which an annotated object is difficult
MAX_OBJECTS = 250  # the index map of `visibility` is one byte


class Options(NamedTuple):
    """What a scene may look like. Lengths in pixels of the scene, angles in degrees."""

    image_size: tuple[int, int] = (480, 640)
    object_size: tuple[float, float] = (90.0, 200.0)
    classes: tuple[int, int] = (3, 8)
    objects: tuple[int, int] = (4, 14)
    rotation: float = 0.0
    shelf_share: float = 0.6
    perspective: float = 1.0


class Placed(NamedTuple):
    """One object: class index and the quad (4, 2) its front lands on (tl, tr, br, bl), in scene pixels."""

    label: int
    quad: np.ndarray


class Cover(NamedTuple):
    """Something that hides: its polygon (n, 2), and after how many objects it is painted."""

    kind: str  # "tag", "banner" or "blob"
    polygon: np.ndarray
    after: int


class Layout(NamedTuple):
    """A scene in painting order: boards first, then objects with covers in between."""

    kind: str  # "shelf" or "free"
    size: tuple[int, int]
    boards: list[np.ndarray]
    objects: list[Placed]
    covers: list[Cover]


def choose_classes(
    families: list[list[int]], order: np.ndarray, index: int, options: Options, rng: np.random.Generator
) -> list[int]:
    """Distinct classes of scene `index`: members of a few families, which take turns so that all appear."""
    count = int(rng.integers(options.classes[0], options.classes[1] + 1))
    chosen: list[int] = []
    position = index * 3
    for step in range(len(order)):
        members = families[order[(position + step) % len(order)]]
        take = min(len(members), 1 + int(rng.integers(3)), count - len(chosen))
        chosen += [int(c) for c in rng.permutation(members)[:take]]
        if len(chosen) >= count:
            break
    return chosen


def plan(
    classes: list[int], identities: list[Identity], options: Options, rng: np.random.Generator
) -> Layout:
    """A random layout that shows `classes` (class indices into `identities`)."""
    scale = float(np.exp(rng.uniform(*np.log(options.object_size))))
    sizes = {}
    for label in classes:
        side = scale * rng.uniform(0.88, 1.14)
        aspect = identities[label].aspect
        sizes[label] = (side * aspect**0.5, side / aspect**0.5)
    if rng.random() < options.shelf_share:
        layout = _shelf(sizes, scale, options, rng)
    else:
        layout = _free(sizes, options, rng)
    return layout._replace(objects=layout.objects[:MAX_OBJECTS])


def _camera(options: Options, rng: np.random.Generator) -> np.ndarray:
    """Plane to scene homography that keeps the scale at the centre of the frame."""
    height, width = options.image_size
    center = np.array([[1, 0, width / 2], [0, 1, height / 2], [0, 0, 1.0]])
    yaw, pitch = rng.uniform(-1, 1, size=2) * options.perspective
    lens = np.array([[1, 0, 0], [0, 1, 0], [0.3 * yaw / width, 0.25 * pitch / height, 1]])
    stretch = np.exp(rng.uniform(-0.08, 0.08))
    body = np.diag([stretch * (1 - 0.1 * abs(yaw)), (1 - 0.08 * abs(pitch)) / stretch, 1])
    turn = rng.uniform(-options.rotation, options.rotation) + rng.normal(0, 1.5)
    return center @ lens @ geometry.rotation(turn) @ body @ np.linalg.inv(center)


def _shelf(
    sizes: dict[int, tuple[float, float]], scale: float, options: Options, rng: np.random.Generator
) -> Layout:
    camera = _camera(options, rng)
    height, width = options.image_size
    seen = geometry.project(np.linalg.inv(camera), geometry.rect(0, 0, width, height))
    left, top, right, bottom = geometry.bounds(seen)
    headroom = rng.uniform(1.04, 1.2)
    board = scale * rng.uniform(0.08, 0.2)
    gap = scale * rng.choice([0.0, 0.015, 0.05])
    queue = [int(c) for c in rng.permutation(list(sizes))]
    boards, objects, covers = [], [], []
    y = top - rng.uniform(0, 0.6) * max(h for h, _ in sizes.values())
    while y < bottom:
        blocks = _blocks(queue, sizes, (left - rng.uniform(0, 1) * scale, right), gap, scale, rng)
        row_height = headroom * max(sizes[label][0] for label, _, _ in blocks)
        base = y + row_height
        boards.append(geometry.project(camera, geometry.rect(left, base, right, base + board)))
        tags = []
        for label, facings, x in blocks:
            h, w = sizes[label]
            stacked = 2 if 2 * h < 0.97 * row_height and rng.random() < 0.6 else 1
            for k in range(facings):
                if rng.random() < 0.06:  # sold out
                    continue
                for level in range(stacked):
                    flat = _stand(x + k * (w + gap), base - level * h, h, w, rng)
                    quad = geometry.project(camera, flat)
                    if geometry.area(geometry.clip(quad, options.image_size)) > 0:
                        objects.append(Placed(label, quad))
            if rng.random() < 0.7:
                tags.append(_tag(x + facings * (w + gap) / 2, base, board, scale, rng))
        covers += [Cover("tag", geometry.project(camera, tag), len(objects)) for tag in tags]
        if rng.random() < 0.12:
            covers.append(Cover("banner", _banner(camera, left, right, base, row_height, rng), len(objects)))
        y = base + board
    covers += _blobs(options, scale, len(objects), rng)
    return Layout("shelf", options.image_size, boards, objects, covers)


def _blocks(queue, sizes, span, gap, scale, rng) -> list[tuple[int, int, float]]:
    """One row as (class, facings, left edge): classes take turns from `queue`, which is rotated in place."""
    x, blocks = span[0], []
    while x < span[1]:
        label = queue.pop(0)
        queue.append(label)
        facings = int(rng.integers(1, 5))
        blocks.append((label, facings, x))
        x += facings * (sizes[label][1] + gap) + scale * rng.choice([0.01, 0.06, 0.25], p=[0.5, 0.4, 0.1])
    return blocks


def _stand(x: float, base: float, h: float, w: float, rng: np.random.Generator) -> np.ndarray:
    """A facing on the board: it may lean, be a little turned (its far side shorter) or pushed back."""
    size = 1 - abs(rng.normal(0, 0.015))
    quad = geometry.rect(x, base - h * size, x + w * size, base)
    turn = np.clip(rng.normal(0, 0.02), -0.05, 0.05) * h
    quad[:2, 1] += (max(turn, 0), max(-turn, 0))
    lean = geometry.rotation(float(np.clip(rng.normal(0, 0.6), -2, 2)), (x + w / 2, base))
    return geometry.project(lean, quad)


def _tag(middle: float, base: float, board: float, scale: float, rng: np.random.Generator) -> np.ndarray:
    tall = max(board * 0.95, scale * 0.13)
    wide = tall * rng.uniform(1.5, 2.3)
    drop = rng.uniform(-0.25, 0.1) * tall
    return geometry.rect(middle - wide / 2, base + drop, middle + wide / 2, base + drop + tall)


def _banner(camera, left, right, base, row_height, rng) -> np.ndarray:
    """A hanging strip over the upper part of a row."""
    wide = row_height * rng.uniform(0.5, 1.1)
    x = rng.uniform(left, max(left, right - wide))
    y = base - row_height * rng.uniform(0.75, 1.0)
    return geometry.project(camera, geometry.rect(x, y, x + wide, y + row_height * rng.uniform(0.15, 0.3)))


def _blobs(options: Options, scale: float, count: int, rng: np.random.Generator) -> list[Cover]:
    """Now and then something stands between the camera and the scene: a rounded shape without a name."""
    covers = []
    for _ in range(int(rng.choice([0, 1, 2], p=[0.6, 0.3, 0.1]))):
        height, width = options.image_size
        center = rng.uniform((0, 0), (width, height))
        radius = scale * rng.uniform(0.2, 0.5)
        angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        waves = rng.uniform(-0.15, 0.15, size=(3, 2))
        lengths = radius * (
            1 + sum(a * np.cos(k * angles + 9 * b) for k, (a, b) in enumerate(waves, start=1))
        )
        polygon = np.stack([np.cos(angles), np.sin(angles) * rng.uniform(0.6, 1.6)], axis=1)
        polygon = center + polygon * lengths[:, None]
        covers.append(Cover("blob", polygon, int(rng.integers(count // 2, count + 1))))
    return covers


def _free(sizes: dict[int, tuple[float, float]], options: Options, rng: np.random.Generator) -> Layout:
    height, width = options.image_size
    low, high = options.objects
    mean_area = float(np.mean([h * w for h, w in sizes.values()]))
    room = max(2, int(0.75 * height * width / mean_area))
    count = min(int(rng.integers(low, high + 1)), room)
    labels = list(rng.permutation(list(sizes)))
    # Every class once, then repeats, so that a class batch has several instances to find.
    labels = [int(labels[k % len(labels)]) for k in range(count)]
    objects: list[Placed] = []
    for label in labels:
        for _ in range(12):
            quad = _toss(*sizes[label], options, rng)
            inside = geometry.area(geometry.clip(quad, options.image_size)) / geometry.area(quad)
            hidden = max((_covered(other.quad, quad) for other in objects), default=0.0)
            tolerance = 0.65 if rng.random() < 0.2 else 0.2
            if inside > 0.5 and (hidden < tolerance or not objects):
                objects.append(Placed(label, quad))
                break
    scale = mean_area**0.5
    return Layout("free", options.image_size, [], objects, _blobs(options, scale, len(objects), rng))


def _toss(h: float, w: float, options: Options, rng: np.random.Generator) -> np.ndarray:
    """An object at a random place, size, turn and tilt."""
    height, width = options.image_size
    scale = np.exp(rng.uniform(-0.25, 0.25))
    stretch = np.exp(rng.uniform(-0.1, 0.1))
    flat = geometry.rect(-w / 2, -h / 2, w / 2, h / 2) * (scale * stretch, scale / stretch)
    turn = geometry.rotation(rng.uniform(-options.rotation, options.rotation) + rng.normal(0, 4))
    tilt = rng.uniform(-0.28, 0.28, size=2) * options.perspective
    lens = np.array([[1, 0, 0], [0, 1, 0], [tilt[0] / (w * scale), tilt[1] / (h * scale), 1]])
    center = rng.uniform((0.06 * width, 0.06 * height), (0.94 * width, 0.94 * height))
    return geometry.project(turn @ lens, flat) + center


def _covered(lower: np.ndarray, upper: np.ndarray) -> float:
    """Share of the smaller of two quads' bounds that both share: a cheap guard against heaps."""
    a, b = geometry.bounds(lower), geometry.bounds(upper)
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    if (sides <= 0).any():
        return 0.0
    return float(np.prod(sides) / min(np.prod(a[2:] - a[:2]), np.prod(b[2:] - b[:2])))


def visibility(layout: Layout) -> np.ndarray:
    """Share (n,) of each object's whole quad that is in the frame and not hidden by what is painted later."""
    owner = Image.new("L", (layout.size[1], layout.size[0]), 255)
    draw = ImageDraw.Draw(owner)
    covers = sorted(layout.covers, key=lambda cover: cover.after)
    for k, placed in enumerate(layout.objects):
        while covers and covers[0].after <= k:
            draw.polygon([tuple(p) for p in covers.pop(0).polygon], fill=255)
        draw.polygon([tuple(p) for p in placed.quad], fill=k)
    for cover in covers:
        draw.polygon([tuple(p) for p in cover.polygon], fill=255)
    seen = np.bincount(np.asarray(owner).ravel(), minlength=256)[: len(layout.objects)]
    return np.minimum(1.0, seen / np.array([_pixel_count(placed.quad) for placed in layout.objects]))


def _pixel_count(quad: np.ndarray) -> float:
    """Pixels that Pillow fills for a polygon: the outline counts, so half of it comes on top of the area."""
    sides = np.abs(quad - np.roll(quad, -1, axis=0)).max(axis=1)
    return geometry.area(quad) + sides.sum() / 2 + 1


def annotate(layout: Layout) -> dict[str, np.ndarray]:
    """Boxes, labels and the difficult flag of the objects that can be seen.

    A box is the axis-aligned bounds xyxy of the object's quad clipped to the frame, whatever hides it; an
    object is difficult when less than half of its whole quad is visible, and not annotated below a tenth.
    """
    boxes, labels, difficult = [], [], []
    for placed, visible in zip(layout.objects, visibility(layout), strict=True):
        polygon = geometry.clip(placed.quad, layout.size)
        if visible < MIN_VISIBLE or len(polygon) < 3:
            continue
        boxes.append(geometry.bounds(polygon))
        labels.append(placed.label)
        difficult.append(visible < DIFFICULT_BELOW)
    return {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "labels": np.array(labels, np.int32),
        "difficult": np.array(difficult, bool),
    }
