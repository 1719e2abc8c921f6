"""An image through a model of fixed size: fitted into it as a whole, or in overlapping windows at full size.

Either way the image is resized once (to `Layout.scaled`), and each window shows the part of it that begins at
`corner`; what lies beyond the image is filled with `FILLING`. NumPy only.
"""

from typing import NamedTuple

import numpy as np

from sm_jax import boxes as box_ops
from sm_jax.data import images as pictures
from sm_jax.data.crossmodal import fit

FILLING = 127
"""Grey of what is no image: the mean that the model's input has subtracted, so that it is 0 there."""

Size = tuple[int, int]


class Layout(NamedTuple):
    """How the windows lie on an image. Sizes are (height, width), corners (x, y).

    Attributes:
      image: size of the image.
      scaled: size that it is resized to.
      window: size of a window.
      stride: pixels of a cell of the model's map.
      corners: where each window begins on the resized image; negative where filling comes first.
    """

    image: Size
    scaled: Size
    window: Size
    stride: int
    corners: list[tuple[int, int]]

    @property
    def map_shape(self) -> Size:
        """(rows, columns) of the cells that show any of the image."""
        x, y = self._origin()
        return -(-(self.scaled[0] - y) // self.stride), -(-(self.scaled[1] - x) // self.stride)

    @property
    def map_box(self) -> np.ndarray:
        """f32 (4,) xyxy pixels of the image: outer edges of the map of `map_shape`."""
        x, y = self._origin()
        rows, columns = self.map_shape
        edges = np.float32([x, y, x + self.stride * columns, y + self.stride * rows])
        return box_ops.scale(edges, self._factors())

    def cells(self, corner: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """The cells of a window that show any of the image, and the same cells on the map of the image."""
        inside, placed = [], []
        for axis, begin in ((0, corner[1]), (1, corner[0])):
            first = max(0, -begin) // self.stride
            last = min(self.window[axis] // self.stride, -(-(self.scaled[axis] - begin) // self.stride))
            offset = -(-begin // self.stride)
            inside.append(slice(first, last))
            placed.append(slice(first + offset, last + offset))
        return tuple(inside), tuple(placed)

    def to_image(self, boxes: np.ndarray, corner: tuple[int, int]) -> np.ndarray:
        """Boxes f32 (n, 4) of a window in pixels of the image, clipped to it."""
        moved = box_ops.clip(boxes + np.float32([*corner, *corner]), self.scaled)
        return box_ops.scale(moved, self._factors())

    def cut(self, boxes: np.ndarray, corner: tuple[int, int]) -> np.ndarray:
        """bool (n,): boxes (n, 4) of a window that end, within half a cell, where the image goes on."""
        (x, y), (height, width) = corner, self.window
        near = self.stride / 2
        left, top = (boxes[:, 0] < near) & (x > 0), (boxes[:, 1] < near) & (y > 0)
        right = (boxes[:, 2] > width - near) & (x + width < self.scaled[1])
        bottom = (boxes[:, 3] > height - near) & (y + height < self.scaled[0])
        return left | top | right | bottom

    def resized(self, image: np.ndarray) -> np.ndarray:
        """The uint8 image as the windows see it."""
        return pictures.resize(image, self.scaled)

    def picture(self, resized: np.ndarray, corner: tuple[int, int]) -> np.ndarray:
        """One window, uint8 (h, w, 3), of the `resized` image."""
        canvas = np.full((*self.window, 3), FILLING, np.uint8)
        x, y = corner
        part = resized[max(0, y) : y + self.window[0], max(0, x) : x + self.window[1]]
        top, left = max(0, -y), max(0, -x)
        canvas[top : top + part.shape[0], left : left + part.shape[1]] = part
        return canvas

    def _origin(self) -> tuple[int, int]:
        """(x, y) on the resized image where its first cell begins, at most a cell before it."""
        x, y = self.corners[0]
        return -(max(0, -x) % self.stride), -(max(0, -y) % self.stride)

    def _factors(self) -> tuple[float, float]:
        return self.image[1] / self.scaled[1], self.image[0] / self.scaled[0]


def fitted(image: Size, window: Size, *, stride: int = 16) -> Layout:
    """The whole image in one window: aspect ratio kept, centred.

    Source: SSM specification, section 0.4 (the released pair of pictures).
    """
    scaled, _ = fit(image, window)
    corner = -((window[1] - scaled[1]) // 2), -((window[0] - scaled[0]) // 2)
    return Layout(image, scaled, window, stride, [corner])


def tiled(image: Size, window: Size, *, stride: int = 16) -> Layout:
    """Windows over the image as it is; neighbours share half of a window, and cells of all lie on one grid.

    So what is at most half a window large lies whole within some window. An image smaller than a window is in
    the middle of one.
    """
    down, across = (_begins(side, limit, stride) for side, limit in zip(image, window, strict=True))
    return Layout(image, image, window, stride, [(x, y) for y in down for x in across])


def _begins(side: int, window: int, stride: int) -> list[int]:
    """Where windows of `window` pixels begin on `side` pixels; multiples of `stride`."""
    cells, width = -(-side // stride), window // stride
    if cells <= width:
        return [-((width - cells) // 2) * stride]
    step = max(1, width // 2)
    starts = [*range(0, cells - width, step), cells - width]
    return [start * stride for start in starts]


def merge(boxes: np.ndarray, scores: np.ndarray, cut: np.ndarray, *, iou: float) -> np.ndarray:
    """Which detections of several windows stay: indices, best first.

    Greedy suppression. Boxes that a window's edge has cut (`cut`, bool (n,)) come after all others, and go
    where half of them lies in a better one: another window has seen the whole object.

    Args:
      boxes: (n, 4) of one label, on one image.
      scores: (n,).
      cut: (n,).
      iou: of two whole ones that overlap more, the better stays.
    """
    order = np.lexsort((-scores, cut))
    kept: list[int] = []
    for index in order:
        rivals = boxes[kept]
        covered = box_ops.iou(rivals, boxes[index : index + 1])[:, 0] > iou
        if cut[index]:
            area = max(float(box_ops.area(boxes[index])), 1e-9)
            covered |= box_ops.intersection(rivals, boxes[index : index + 1])[:, 0] > 0.5 * area
        if not covered.any():
            kept.append(int(index))
    return np.array(sorted(kept, key=lambda index: -scores[index]), np.int64)
