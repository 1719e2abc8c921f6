"""Box algebra: xyxy, absolute pixels of the array the boxes go with, half-open, y down.

Every function takes NumPy arrays or jax arrays (tracers included) and answers in kind: jax as soon as one
argument is a jax array, NumPy otherwise, so the same line serves a data worker and a jitted loss; a worker
that never imports jax stays without it. Boxes are float32; integer boxes are converted. `size` is (height,
width).
"""

import math
import sys

import numpy as np

MAX_LOG_RATIO = math.log(1000 / 16)
"""Cap of the log size ratio when decoding (published OS2D code, after torchvision)."""


def _arrays(*values):
    """The namespace to compute in, then each value as a floating array of it."""
    jax = sys.modules.get("jax")  # where it was never imported, nothing can be one of its arrays
    kind = getattr(jax, "Array", ())
    xp = jax.numpy if any(isinstance(value, kind) for value in values) else np
    arrays = (xp.asarray(value) for value in values)
    return xp, *(a if xp.issubdtype(a.dtype, xp.floating) else a.astype(np.float32) for a in arrays)


# conversions --------------------------------------------------------------------------------------


def xyxy_to_cxcywh(boxes):
    """(x1, y1, x2, y2) to (centre x, centre y, width, height); "... 4" -> "... 4"."""
    xp, boxes = _arrays(boxes)
    low, high = boxes[..., :2], boxes[..., 2:]
    return xp.concatenate([(low + high) * 0.5, high - low], axis=-1)


def cxcywh_to_xyxy(boxes):
    """(centre x, centre y, width, height) to (x1, y1, x2, y2); "... 4" -> "... 4"."""
    xp, boxes = _arrays(boxes)
    centre, half = boxes[..., :2], boxes[..., 2:] * 0.5
    return xp.concatenate([centre - half, centre + half], axis=-1)


def xyxy_to_xywh(boxes):
    """(x1, y1, x2, y2) to (x1, y1, width, height), the COCO order; "... 4" -> "... 4"."""
    xp, boxes = _arrays(boxes)
    return xp.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


def xywh_to_xyxy(boxes):
    """(x1, y1, width, height) to (x1, y1, x2, y2); "... 4" -> "... 4"."""
    xp, boxes = _arrays(boxes)
    return xp.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def xyxy_to_yxyx(boxes):
    """Swap x and y within each corner; its own inverse."""
    _, boxes = _arrays(boxes)
    return boxes[..., np.array([1, 0, 3, 2])]


yxyx_to_xyxy = xyxy_to_yxyx


def inclusive_to_half_open(boxes):
    """1-based corners that belong to the box (MATLAB's x1 y1 x2 y2) to this library's; "... 4" -> "... 4".

    (11, 11, 31, 31) are the 21 pixels 10..30 counted from 0, here (10, 10, 31, 31). The only place, with its
    inverse, where the two conventions meet; SCNet and Proposal Flow compute in the first.
    """
    xp, boxes = _arrays(boxes)
    return xp.concatenate([boxes[..., :2] - 1, boxes[..., 2:]], axis=-1)


def half_open_to_inclusive(boxes):
    """The inverse of `inclusive_to_half_open`: x2 - x1 of the result is one less than the width."""
    xp, boxes = _arrays(boxes)
    return xp.concatenate([boxes[..., :2] + 1, boxes[..., 2:]], axis=-1)


# measures -----------------------------------------------------------------------------------------


def area(boxes):
    """Area in square pixels, 0 for inverted boxes; "... 4" -> "..."."""
    xp, boxes = _arrays(boxes)
    return xp.maximum(boxes[..., 2] - boxes[..., 0], 0) * xp.maximum(boxes[..., 3] - boxes[..., 1], 0)


def nonempty(boxes):
    """True where a box has positive width and height (False for NaN); "... 4" -> "..." bool."""
    _, boxes = _arrays(boxes)
    return (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])


def _overlap(xp, a, b):
    """Common area of broadcastable "... 4" arrays of the same rank."""
    width = xp.minimum(a[..., 2], b[..., 2]) - xp.maximum(a[..., 0], b[..., 0])
    height = xp.minimum(a[..., 3], b[..., 3]) - xp.maximum(a[..., 1], b[..., 1])
    return xp.maximum(width, 0) * xp.maximum(height, 0)


def _ratio(xp, numerator, denominator):
    """numerator / denominator, 0 where the denominator is not positive; finite gradients either way."""
    some = denominator > 0
    return xp.where(some, numerator / xp.where(some, denominator, 1), 0)


def intersection(a, b):
    """Common area of every pair: a "n 4", b "m 4" -> "n m"."""
    xp, a, b = _arrays(a, b)
    return _overlap(xp, a[:, None, :], b[None, :, :])


def iou(a, b):
    """Intersection over union of every pair: a "n 4", b "m 4" -> "n m"; 0 when both are empty."""
    xp, a, b = _arrays(a, b)
    common = _overlap(xp, a[:, None, :], b[None, :, :])
    return _ratio(xp, common, area(a)[:, None] + area(b)[None, :] - common)


def coverage(boxes, crop):
    """Share of each box that lies in the crop: boxes "n 4", crop "4" -> "n"; 0 for an empty box."""
    xp, boxes, crop = _arrays(boxes, crop)
    return _ratio(xp, _overlap(xp, boxes, crop.reshape(1, 4)), area(boxes))


# changes ------------------------------------------------------------------------------------------


def clip(boxes, size):
    """Cut boxes to an image of `size` (height, width); a box outside becomes empty; "... 4" -> "... 4"."""
    xp, boxes = _arrays(boxes)
    height, width = size
    parts = [xp.clip(boxes[..., i], 0, limit) for i, limit in enumerate((width, height, width, height))]
    return xp.stack(parts, axis=-1)


def scale(boxes, factor_xy):
    """Multiply x by `factor_xy[0]` and y by `factor_xy[1]` (image resizing); "... 4" -> "... 4"."""
    xp, boxes = _arrays(boxes)
    x, y = factor_xy
    return xp.stack([boxes[..., 0] * x, boxes[..., 1] * y, boxes[..., 2] * x, boxes[..., 3] * y], axis=-1)


def ensure_min_size(boxes):
    """Make every side at least 1 px: where x1 + 1 > x2, x2 becomes x1 + 1; the same in y; "... 4" -> "... 4".

    Such a box passes no gradient in that axis (neither corner does). Source: published OS2D code.
    """
    xp, boxes = _arrays(boxes)
    low, high = boxes[..., :2], boxes[..., 2:]
    short = low + 1 > high
    if xp is np:
        fixed = low
    else:
        import jax

        fixed = jax.lax.stop_gradient(low)
    return xp.concatenate([xp.where(short, fixed, low), xp.where(short, fixed + 1, high)], axis=-1)


# box coder ----------------------------------------------------------------------------------------


def encode(boxes, anchors, *, weights=(10.0, 10.0, 5.0, 5.0)):
    """Codes (dx, dy, dw, dh) of boxes against anchors, both "... 4" and broadcastable with equal rank.

    The minimum-size rule is applied to both first, as in the published OS2D code, so codes are finite for
    finite boxes. dx = w0 (cx - cx_a) / w_a, dw = w2 ln(w / w_a), likewise in y (R-CNN coder).
    """
    xp, boxes, anchors = _arrays(boxes, anchors)
    boxes, anchors = xyxy_to_cxcywh(ensure_min_size(boxes)), xyxy_to_cxcywh(ensure_min_size(anchors))
    shift = (boxes[..., :2] - anchors[..., :2]) / anchors[..., 2:]
    ratio = xp.log(boxes[..., 2:] / anchors[..., 2:])
    parts = (shift[..., 0], shift[..., 1], ratio[..., 0], ratio[..., 1])
    return xp.stack([part * weight for part, weight in zip(parts, weights, strict=True)], axis=-1)


def decode(codes, anchors, *, weights=(10.0, 10.0, 5.0, 5.0)):
    """Boxes of codes (dx, dy, dw, dh) against anchors, both "... 4" and broadcastable with equal rank.

    The inverse of `encode`; the log size ratios are capped at ln(1000/16) before the exponential.
    """
    xp, codes, anchors = _arrays(codes, anchors)
    anchors = xyxy_to_cxcywh(anchors)
    dx, dy, dw, dh = (codes[..., i] / weight for i, weight in enumerate(weights))
    cx, cy, width, height = (anchors[..., i] for i in range(4))
    new = (
        dx * width + cx,
        dy * height + cy,
        xp.exp(xp.minimum(dw, MAX_LOG_RATIO)) * width,
        xp.exp(xp.minimum(dh, MAX_LOG_RATIO)) * height,
    )
    return cxcywh_to_xyxy(xp.stack(new, axis=-1))


def anchor_grid(size, *, stride=16, box_size=(240, 240)):
    """Anchors of a feature map of `size` (height, width): "h*w 4" float32 NumPy, index a = y*w + x.

    One box of `box_size` (height, width) around the centre of each cell, not clipped to the image.
    The feature-level grid of OS2D is `stride=1, box_size=(15, 15)`.
    """
    height, width = size
    cy, cx = np.meshgrid(
        (np.arange(height, dtype=np.float32) + 0.5) * stride,
        (np.arange(width, dtype=np.float32) + 0.5) * stride,
        indexing="ij",
    )
    extent = np.broadcast_to(np.float32([box_size[1], box_size[0]]), (height, width, 2))
    return cxcywh_to_xyxy(np.concatenate([cx[..., None], cy[..., None], extent], axis=-1).reshape(-1, 4))


def mining_crops(anchors, *, size, crop_size, stride=16):
    """The training crop that shows each anchor near its middle: anchors "n 4" -> crops "n 4" float32, NumPy.

    All in pixels of one pyramid level of `size` (height, width). Crops have exactly `crop_size`
    (height, width), start on a multiple of `stride` (so that a crop repeats the level's feature grid) and
    reach beyond the level only where the level is smaller than the crop. Source: published OS2D code, hard
    patch mining.
    """
    low, high = [], []
    for axis, (extent, crop) in enumerate(zip(size[::-1], crop_size[::-1], strict=True)):
        start = (anchors[:, axis] + anchors[:, axis + 2]) / 2 - crop / 2
        start = np.where(start > 0, np.floor(start) // stride * stride, 0)
        beyond = start + crop - extent
        back = np.ceil(np.floor(beyond) / stride) * stride
        start = np.where(beyond > 0, np.where(start >= back, start - back, 0), start)
        low.append(start)
        high.append(start + crop)
    return np.stack(low + high, axis=-1).astype(np.float32)
