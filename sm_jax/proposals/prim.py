"""Randomised Prim's region proposals: random partial spanning trees of superpixels.

Each of four colour spaces gives a graph of superpixels whose edges carry the chance that both ends belong to
one object. A proposal grows from a random superpixel along edges drawn in proportion to that chance, stops
at random (later for likely edges, earlier for large groups), and is the bounding box of the group. All draws
grow in step as rows of arrays; `grow_reference` is one draw, as one would write it.

Source: "Prime Object Proposals with Randomized Prim's Algorithm" (ICCV 2013), constants as restated in the
SCNet specification, sec. 6.
"""

from typing import NamedTuple

import numpy as np

COLOURS = ("lab", "opponent", "rg", "hsv")
DRAWS = 50  # per box asked for
SCALE, SIGMA, MIN_SIZE = 100, 0.8, 100  # of the superpixels
BINS = 16  # per channel of the LAB histograms
ENERGY = 2.0  # a draw's patience is uniform in [0, ENERGY)
BIAS, BY_SIZE, BY_BORDER, BY_COLOUR = 3.0017, 2.3655, 1.0029, 2.6864
BLOCK = 16  # weights that are summed before one is drawn
IDLE = 0.2  # share of stopped groups at which their rows are removed
CELLS = 1 << 20  # of one array of the growing groups, which should fit the processor's cache

_SIZES = """0 .0005 .0017 .0054 .0121 .0243 .0386 .0533 .079 .107 .165 .207 .241 .32 .383 .466 .583 .727 1"""
_SHARES = """0 .063 .088 .163 .243 .305 .385 .444 .544 .615 .674 .736 .795 .87 .904 .929 .975 1 1"""
AREAS = np.array(_SIZES.split(), np.float64)
"""Shares of the picture's area, and below the shares of objects that are smaller."""
SMALLER = np.array(_SHARES.split(), np.float64)


class Graph(NamedTuple):
    """Superpixels of a picture and the edges between neighbours.

    Attributes:
      boxes: `(s, 4)` int32, half-open.
      areas: `(s,)` shares of the picture.
      neighbours: `(s, d)` indices, in ascending order, padded with `s`.
      chances: `(s, d)` of the edges to `neighbours`, 0 at the padding.
    """

    boxes: np.ndarray
    areas: np.ndarray
    neighbours: np.ndarray
    chances: np.ndarray


def boxes(image: np.ndarray, draws: int, *, rng: np.random.Generator, colours=COLOURS) -> np.ndarray:
    """The boxes of `draws` groups, divided evenly among the colour spaces, with all repetitions.

    Args:
      image: uint8 `(h, w, 3)`.
      draws: groups to grow; each is one box.
      rng: of the draws.
      colours: of `COLOURS`.

    Returns:
      `(draws, 4)` int32 xyxy, half-open pixels.
    """
    lab = colour_space(image, "lab")
    found = []
    for index, name in enumerate(colours):
        count = draws * (index + 1) // len(colours) - draws * index // len(colours)
        pixels = lab if name == "lab" else colour_space(image, name)
        graph = make_graph(superpixels(pixels), lab)
        size = len(graph.areas)
        rows = max(CELLS // size, 1)
        for first in range(0, count, rows):
            part = min(rows, count - first)
            starts, energies = rng.integers(size, size=part), rng.uniform(0, ENERGY, part)
            found.append(grow(graph, starts, energies, rng.random((max(size - 1, 1), part, 2))))
    return np.concatenate(found) if found else np.zeros((0, 4), np.int32)


def colour_space(image: np.ndarray, name: str) -> np.ndarray:
    """A uint8 RGB picture in one of `COLOURS`, each channel's range mapped to [0, 1]; float64 `(h, w, c)`.

    "rg" has two channels, red and green over the sum (1/3 where the sum is 0), the others three.
    """
    from skimage import color

    if name == "lab":
        return (color.rgb2lab(image) + np.array([0.0, 128.0, 128.0])) / np.array([100.0, 255.0, 255.0])
    if name == "hsv":
        return color.rgb2hsv(image)
    red, green, blue = np.moveaxis(image.astype(np.float64) / 255.0, -1, 0)
    total = red + green + blue
    if name == "rg":
        some = np.where(total > 0, total, 1.0)
        return np.stack([np.where(total > 0, c / some, 1 / 3) for c in (red, green)], -1)
    return np.stack([(red - green + 1) / 2, (red + green - 2 * blue + 2) / 4, total / 3], -1)


def superpixels(pixels: np.ndarray) -> np.ndarray:
    """Labels 0, 1, ... `(h, w)` of graph-based superpixels; a picture under 3 pixels wide or high is one."""
    from skimage.segmentation import felzenszwalb

    if min(pixels.shape[:2]) < 3:
        return np.zeros(pixels.shape[:2], np.int64)
    return felzenszwalb(pixels, scale=SCALE, sigma=SIGMA, min_size=MIN_SIZE, channel_axis=-1)


def make_graph(labels: np.ndarray, lab: np.ndarray) -> Graph:
    """The superpixel graph of `labels` (h, w), with colours from `lab` (h, w, 3) in [0, 1].

    The border between two superpixels is the number of pairs of pixels, one in each, that touch by side or
    corner; the border of one is the sum over its neighbours.
    """
    count = int(labels.max()) + 1
    areas = np.bincount(labels.ravel(), minlength=count) / labels.size
    borders = _borders(labels, count)
    first, second = np.nonzero(np.triu(borders))
    shared = borders[first, second]
    around = borders.sum(1)
    share = np.maximum(shared / around[first], shared / around[second])
    likeness = _likeness(labels, lab, count, first, second)
    exponent = BIAS - BY_SIZE * (1 - areas[first] - areas[second]) - BY_BORDER * share - BY_COLOUR * likeness
    chance = 1 / (1 + np.exp(exponent))
    source, target = np.concatenate([first, second]), np.concatenate([second, first])
    chance = np.concatenate([chance, chance])
    order = np.lexsort((target, source))
    source, target, chance = source[order], target[order], chance[order]
    degree = np.bincount(source, minlength=count)
    place = np.arange(len(source)) - np.repeat(np.cumsum(degree) - degree, degree)
    width = max(int(degree.max()), 1)
    neighbours = np.full((count, width), count, np.int64)
    chances = np.zeros((count, width))
    neighbours[source, place], chances[source, place] = target, chance
    return Graph(_label_boxes(labels, count), areas, neighbours, chances)


def grow(graph: Graph, starts: np.ndarray, energies: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """The bounding boxes of groups that grow from `starts`; all at once.

    Args:
      graph: of `s` superpixels.
      starts: `(m,)` superpixels.
      energies: `(m,)`; a group stops before an edge of chance p when `smaller(area) + 1 - p` exceeds it.
      uniforms: `(max(s - 1, 1), m, 2)` in [0, 1): at each step the first draws the superpixel to join, the
        second the edge that leads to it.

    Returns:
      `(m, 4)` int32.
    """
    size, rows = len(graph.areas), np.arange(len(starts))
    # of the edges to each superpixel outside; behind the last is padding, to full blocks
    weights = np.zeros((len(starts), (size // BLOCK + 1) * BLOCK))
    inside = np.zeros((len(starts), size + 1), bool)
    inside[rows, starts] = True
    weights[rows[:, None], graph.neighbours[starts]] = graph.chances[starts]
    area, box = graph.areas[starts].copy(), graph.boxes[starts].copy()
    result, alive, stopped = box.copy(), rows, np.zeros(len(starts), bool)
    for step in range(size - 1):
        joined = _draw_blockwise(weights, uniforms[step, alive, 0])
        nearby, chances = graph.neighbours[joined], graph.chances[joined]
        leads = chances * inside[rows[:, None], nearby]
        edge = chances[rows, _draw(leads, uniforms[step, alive, 1])]
        stops = ~stopped & (smaller(area) + 1 - edge > energies[alive])
        result[alive[stops]] = box[stops]
        stopped |= stops
        # copying the rows at every stop would cost more than letting the stopped ones grow on, unseen
        if stopped.mean() > IDLE or stopped.all():
            on = ~stopped
            alive, weights, inside, stopped = alive[on], weights[on], inside[on], stopped[on]
            area, box, rows = area[on], box[on], np.arange(len(alive))
            joined, nearby, chances = joined[on], nearby[on], chances[on]
            if not len(alive):
                return result
        area += graph.areas[joined]
        box[:, :2] = np.minimum(box[:, :2], graph.boxes[joined, :2])
        box[:, 2:] = np.maximum(box[:, 2:], graph.boxes[joined, 2:])
        inside[rows, joined] = True
        weights[rows, joined] = 0
        weights[rows[:, None], nearby] += chances * ~inside[rows[:, None], nearby]
    result[alive[~stopped]] = box[~stopped]
    return result


def grow_reference(graph: Graph, start: int, energy: float, uniforms: np.ndarray) -> np.ndarray:
    """One draw of `grow`, edge by edge; `uniforms` `(s - 1, 2)`. Slow, for reading and for tests."""
    group = {int(start)}
    for first, second in uniforms[: len(graph.areas) - 1]:
        frontier = {}  # superpixel outside -> the edges that lead to it from inside, by their inner end
        for inner in sorted(group):
            for outer, chance in zip(graph.neighbours[inner], graph.chances[inner], strict=True):
                if outer < len(graph.areas) and int(outer) not in group:
                    frontier.setdefault(int(outer), []).append(float(chance))
        outside = sorted(frontier)
        joined = outside[_pick([sum(frontier[outer]) for outer in outside], first)]
        edge = frontier[joined][_pick(frontier[joined], second)]
        if smaller(sum(graph.areas[i] for i in group)) + 1 - edge > energy:
            break
        group.add(joined)
    members = graph.boxes[sorted(group)]
    return np.concatenate([members[:, :2].min(0), members[:, 2:].max(0)])


def smaller(area):
    """The share of objects that cover less of their picture than `area` (itself a share)."""
    return np.interp(area, AREAS, SMALLER)


def _draw(weights: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Per row an index drawn in proportion to `weights` `(m, k)` by `uniform` `(m,)`."""
    sums = np.cumsum(weights, axis=1)
    total = sums[:, -1]
    # below the total also where the product rounds up to it, so that no index of weight 0 is ever drawn
    threshold = np.minimum(uniform * total, np.nextafter(total, 0))
    return np.argmax(sums > threshold[:, None], axis=1)


def _draw_blockwise(weights: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """`_draw` for wide rows `(m, b * BLOCK)`: sums of blocks choose a block, then its weights one of it."""
    rows = np.arange(len(weights))
    blocks = weights.reshape(len(weights), -1, BLOCK)
    sums = np.cumsum(blocks @ np.ones(BLOCK), axis=1)
    threshold = np.minimum(uniform * sums[:, -1], np.nextafter(sums[:, -1], 0))
    block = np.argmax(sums > threshold[:, None], axis=1)
    before = np.where(block > 0, sums[rows, block - 1], 0.0)
    inner = np.cumsum(blocks[rows, block], axis=1)
    rest = np.minimum(threshold - before, np.nextafter(inner[:, -1], 0))
    return block * BLOCK + np.argmax(inner > rest[:, None], axis=1)


def _pick(weights, uniform: float) -> int:
    return int(np.searchsorted(np.cumsum(weights), uniform * np.sum(weights), side="right"))


def _borders(labels: np.ndarray, count: int) -> np.ndarray:
    """`(count, count)` numbers of touching pairs of pixels, symmetric, 0 on the diagonal."""
    pairs = [
        (labels[:, :-1], labels[:, 1:]),
        (labels[:-1], labels[1:]),
        (labels[:-1, :-1], labels[1:, 1:]),
        (labels[:-1, 1:], labels[1:, :-1]),
    ]
    total = np.zeros(count * count)
    for one, other in pairs:
        one, other = one.ravel(), other.ravel()
        unlike = one != other
        total += np.bincount(one[unlike] * count + other[unlike], minlength=count * count)
    total = total.reshape(count, count)
    return total + total.T


def _likeness(labels, lab, count: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersections of the colour histograms at the two ends of each edge."""
    cells = np.clip((lab * BINS).astype(np.int64), 0, BINS - 1)
    cells = (cells[..., 0] * BINS + cells[..., 1]) * BINS + cells[..., 2]
    used, cells = np.unique(cells, return_inverse=True)
    histograms = np.bincount(labels.ravel() * len(used) + cells.ravel(), minlength=count * len(used))
    histograms = histograms.reshape(count, len(used)) / np.bincount(labels.ravel(), minlength=count)[:, None]
    return np.minimum(histograms[first], histograms[second]).sum(1)


def _label_boxes(labels: np.ndarray, count: int) -> np.ndarray:
    rows, columns = np.indices(labels.shape)
    result = np.zeros((count, 4), np.int32)
    result[:, :2] = max(labels.shape)
    for axis, place in ((0, columns), (1, rows)):
        np.minimum.at(result[:, axis], labels.ravel(), place.ravel())
        np.maximum.at(result[:, axis + 2], labels.ravel(), place.ravel() + 1)
    return result
