"""Conversions between pixel and index coordinates: the only place where half-pixels live.

* pixels: continuous, pixel edges on integers, origin at the image's top-left corner.
* index: continuous coordinate of a feature map, the centre of cell i on the integer i.
* unit: -1 on the first index, +1 on the last (corner aligned).
* one-based: MATLAB's pixels, the centre of the first pixel on 1 (SCNet, Proposal Flow and their data).
* local: OS2D's frame around one feature cell, -1 and +1 on the two sides of the template box.

Every function but `present` and `pixel_of` is elementwise: x with x (and width), y with y (and height);
NumPy and jax alike.
"""

import numpy as np


def pixels_to_index(pixels, *, stride=16):
    """Image pixels to feature-map index: cell i covers pixels [i, i + 1) * stride."""
    return pixels / stride - 0.5


def index_to_pixels(index, *, stride=16):
    """Feature-map index to image pixels; the inverse of `pixels_to_index`."""
    return (index + 0.5) * stride


def one_based_to_pixels(one_based):
    """MATLAB's coordinate to pixels: the centre of the first pixel is 1 there and 0.5 here."""
    return one_based - 0.5


def pixels_to_one_based(pixels):
    """Pixels to MATLAB's coordinate; the inverse of `one_based_to_pixels`."""
    return pixels + 0.5


def present(keypoints):
    """Which key-points are real: NumPy "... 2" pixels -> "..." bool.

    Absent is a point with a coordinate that is NaN or infinite, or not above 0 counted from 1 (-0.5 here), as
    the padding -1 of many lists is. Source: published SCNet code, which drops the latter.
    """
    keypoints = np.asarray(keypoints, np.float64)
    return np.all(np.isfinite(keypoints) & (pixels_to_one_based(keypoints) > 0), axis=-1)


def pixel_of(keypoints, size):
    """Row and column of the pixel that each key-point lies in: NumPy "k 2" pixels -> two int "k".

    On the border of two pixels it is the later one; outside the picture of (height, width) `size` the nearest
    one; not finite, any.
    """
    keypoints = np.asarray(keypoints, np.float64).reshape(-1, 2)
    known = np.isfinite(keypoints).all(axis=1, keepdims=True)
    last = size[1] - 1, size[0] - 1
    column, row = np.clip(np.floor(np.where(known, keypoints, 0)), 0, last).astype(int).T
    return row, column


def unit_to_index(unit, length):
    """Corner-aligned unit coordinate to index of an axis of `length` cells (length 1: always 0)."""
    return (unit + 1) * ((length - 1) * 0.5)


def index_to_unit(index, length):
    """Index of an axis of `length` cells (at least 2) to the corner-aligned unit coordinate."""
    return index / ((length - 1) * 0.5) - 1


def local_to_index(local, cell, *, template=15):
    """Local coordinate around `cell` (an integer index) to the feature-map index that OS2D samples there.

    The template box spans `template` cells around the cell's centre in *edge* coordinates, and the published
    model uses the resulting number as an *index*. So the identity does not sample cell-7 .. cell+7 but
    cell-7 .. cell+8, stretched by 15/14. Trained weights depend on it (published OS2D code).
    """
    return local * (template * 0.5) + (cell + 0.5)


def local_to_pixels(local, cell, *, template=15, stride=16):
    """Local coordinate around `cell` to image pixels: the template is a box of template * stride pixels.

    240 px for 15 cells of 16 px, centred on the cell's centre, without the half-index shift of
    `local_to_index`.
    """
    return local * (template * stride * 0.5) + index_to_pixels(cell, stride=stride)


def pixels_to_local(pixels, cell, *, template=15, stride=16):
    """Image pixels to the local coordinate around `cell`; the inverse of `local_to_pixels`."""
    return (pixels - index_to_pixels(cell, stride=stride)) / (template * stride * 0.5)


def window_to_pixels(cell, length, *, stride=16):
    """Image pixel at which a window of `length` whole cells (an integer) around `cell` begins.

    The window's cell `length // 2` lies on `cell`: an odd window is centred on the cell's centre, an even one
    on the pixel where the cell begins.
    """
    return (cell - length // 2) * stride


def template_axis(template=15):
    """Local coordinates of the template's rows or columns: `template` values from -1 to 1, float32."""
    return np.linspace(-1, 1, template, dtype=np.float32)
