"""Augmentation and normalisation in NumPy; every random choice comes from the Generator passed in.

Boxes are xyxy pixels, sizes (height, width), pictures uint8 RGB `(h, w, 3)` until `normalize`.
"""

import math

import numpy as np
from PIL import Image, ImageEnhance

from sm_jax import boxes as box_ops
from sm_jax.data import images

GREY = 127
"""What the SSM's networks have subtracted from every channel: a border of this grey is 0 to them."""
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
ABSENT, CUT_OFF = -1, -2  # labels of boxes that belong to no query of the batch
MAX_CROP_TRIALS = 100

# One entry per byte value and channel: exact, and several times faster than float arithmetic on pictures.
_NORMALIZED = (
    np.arange(256, dtype=np.float32)[:, None] / np.float32(255) - np.asarray(MEAN, np.float32)
) / np.asarray(STD, np.float32)


def normalize(image: np.ndarray) -> np.ndarray:
    """uint8 `(..., 3)` RGB -> float32 `(..., 3)`: (value / 255 - mean) / std with the ImageNet constants.

    Source: OS2D, published code; used with every backbone initialisation.
    """
    out = np.empty(image.shape, np.float32)
    for channel in range(3):
        np.take(_NORMALIZED[:, channel], image[..., channel], out=out[..., channel])
    return out


def bgr_minus_mean(image: np.ndarray, mean: float | tuple[float, float, float] = GREY) -> np.ndarray:
    """uint8 `(..., 3)` RGB -> float32 `(..., 3)` in BGR order, minus `mean` (one value, or of B, G, R).

    Not scaled. What Caffe's GoogLeNet takes: `GREY` in the single-shot semantic matcher, 104 117 123 in the
    classifying network. Source: SSM specification, sec. 1.
    """
    return image[..., ::-1].astype(np.float32) - np.asarray(mean, np.float32)


def fit(size: tuple[int, int], target: tuple[int, int]) -> tuple[tuple[int, int], np.ndarray]:
    """The size (height, width) of a picture scaled, up or down, to fit into `target`, and the exact factors
    f32 (x, y) that take its coordinates there."""
    scale = min(target[0] / size[0], target[1] / size[1])
    height, width = (
        min(max(round(side * scale), 1), limit) for side, limit in zip(size, target, strict=True)
    )
    return (height, width), np.array([width / size[1], height / size[0]], np.float32)


def letterbox_centred(
    image: np.ndarray, size: tuple[int, int], *, fill: int = GREY
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A uint8 picture scaled, up or down, to fit into `size` (h, w), in the middle of a canvas of `fill`.

    Returns:
      The canvas uint8 (h, w, 3), the factors f32 (x, y) of coordinates and the offset f32 (x, y) added after
      them. Source: the published sample pair of SSM (specification, sec. 0).
    """
    (height, width), scale = fit(image.shape[:2], size)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    canvas = np.full((*size, 3), fill, np.uint8)
    canvas[top : top + height, left : left + width] = images.resize(image, (height, width))
    return canvas, scale, np.array([left, top], np.float32)


def denormalize(image: np.ndarray) -> np.ndarray:
    """Inverse of `normalize`, rounded and clipped to uint8; for pictures of a batch."""
    values = image * np.asarray(STD, np.float32) + np.asarray(MEAN, np.float32)
    return np.clip(np.rint(values * 255.0), 0, 255).astype(np.uint8)


def resize_plain(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """float32 (h, w, c) to `size` = (height, width), bilinear without antialiasing (PyTorch's `interpolate`).

    Samples lie at the centres of the new pixels, the border is repeated.
    """
    for axis, length in enumerate(size):
        if length != image.shape[axis]:
            last = image.shape[axis] - 1
            place = (np.arange(length, dtype=np.float32) + 0.5) * np.float32(image.shape[axis] / length) - 0.5
            place = np.clip(place, 0, last)
            low = np.floor(place).astype(int)
            weight = (place - low).reshape(-1, *[1] * (2 - axis))
            near, far = np.take(image, low, axis), np.take(image, np.minimum(low + 1, last), axis)
            image = near + weight * (far - near)
    return image.astype(np.float32, copy=False)


def random_filter(rng: np.random.Generator) -> str:
    """A resize filter drawn uniformly from `images.FILTERS`."""
    return list(images.FILTERS)[rng.integers(len(images.FILTERS))]


def random_crop(
    rng: np.random.Generator,
    size: tuple[int, int],
    boxes: np.ndarray,
    *,
    scale: float,
    crop: tuple[int, int] = (600, 600),
    scale_jitter: float = 0.7,
    aspect_jitter: float = 0.9,
    min_coverage: float = 0.7,
    inside: bool = True,
) -> np.ndarray:
    """A random training crop, int32 xyxy `(4,)` of an image of `size`; it is to be resized to `crop`.

    Aspect (width / height) is uniform in [aspect_jitter, 1 / aspect_jitter] times that of `crop`; the scale
    is uniform in [scale_jitter, 1 / scale_jitter] times `scale` (pixels of the crop per pixel of the image).
    A trial is accepted if the image has no boxes or some box is covered by at least `min_coverage`; after
    `MAX_CROP_TRIALS` failures the top-left corner at the plain scale is used.

    With `inside` a crop larger than the image is cut to it, on each axis for itself: resized, it shows the
    image larger than drawn, and in another aspect. Without, it reaches beyond the right and lower border.

    Source: OS2D, published code (random patches).
    """
    height, width = size
    target_aspect = crop[1] / crop[0]
    for _ in range(MAX_CROP_TRIALS):
        aspect = rng.uniform(aspect_jitter, 1 / aspect_jitter) * target_aspect
        trial_scale = rng.uniform(scale * scale_jitter, scale / scale_jitter)
        crop_width = min(crop[1] / trial_scale, width if inside else math.inf)
        crop_height = max(int(min(crop_width / aspect, height if inside else math.inf)), 1)
        crop_width = max(int(crop_width), 1)
        left = int(rng.integers(width - crop_width)) if crop_width < width else 0
        top = int(rng.integers(height - crop_height)) if crop_height < height else 0
        trial = np.array([left, top, left + crop_width, top + crop_height], np.int32)
        if len(boxes) == 0 or (box_ops.coverage(boxes, trial) >= min_coverage).any():
            return trial
    right, bottom = max(int(crop[1] / scale), 1), max(int(crop[0] / scale), 1)
    if inside:
        right, bottom = min(right, width), min(bottom, height)
    return np.array([0, 0, right, bottom], np.int32)


def apply_crop(
    image: np.ndarray, boxes: np.ndarray, crop: np.ndarray, size: tuple[int, int], filter: str = "bilinear"
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts `crop` out and resizes it to `size`, each axis on its own; boxes follow, not clipped.

    What lies to the right of the image or below it is black (0).
    """
    left, top, right, bottom = (int(edge) for edge in crop)
    cut = image[top:bottom, left:right]
    missing = bottom - top - cut.shape[0], right - left - cut.shape[1]
    if any(missing):
        cut = np.pad(cut, ((0, missing[0]), (0, missing[1]), (0, 0)))
    cut = images.resize(cut, size, filter)
    factor = np.array([size[1] / (right - left), size[0] / (bottom - top)] * 2, np.float32)
    origin = np.array([left, top, left, top], np.float32)
    return cut, ((boxes - origin) * factor).astype(np.float32)


def crop_labels(
    labels: np.ndarray,
    difficult: np.ndarray,
    covered: np.ndarray,
    *,
    min_coverage: float = 0.7,
    cut_coverage: float = 0.3,
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and difficult flags after a crop that keeps the share `covered` `(n,)` of each box.

    Below `cut_coverage` the object counts as background (`CUT_OFF`), below `min_coverage` as difficult.
    Source: OS2D, published code.
    """
    cut = covered < cut_coverage
    return np.where(cut, CUT_OFF, labels).astype(np.int32), difficult | (~cut & (covered < min_coverage))


def flip(
    image: np.ndarray, boxes: np.ndarray, *, horizontal: bool = False, vertical: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Mirrors a picture and its boxes."""
    height, width = image.shape[:2]
    boxes = boxes.copy()
    if horizontal:
        image = image[:, ::-1]
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    if vertical:
        image = image[::-1]
        boxes[:, [1, 3]] = height - boxes[:, [3, 1]]
    return image, boxes


def distort_color(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Brightness, contrast, saturation and hue, each with probability 1/2; uint8 in and out.

    Factors: brightness 1 +- 32/255, contrast and saturation in [0.5, 1.5], hue +-0.1 of the circle; contrast
    comes either first or last. Source: OS2D, published code (colour distortion), after SSD (ECCV 2016).
    """
    picture = Image.fromarray(image)
    if rng.random() < 0.5:
        picture = ImageEnhance.Brightness(picture).enhance(rng.uniform(1 - 32 / 255, 1 + 32 / 255))
    steps = ("contrast", "saturation", "hue") if rng.random() < 0.5 else ("saturation", "hue", "contrast")
    for step in steps:
        if rng.random() >= 0.5:
            continue
        if step == "hue":
            picture = _shift_hue(picture, rng.uniform(-0.1, 0.1))
        else:
            kind = ImageEnhance.Contrast if step == "contrast" else ImageEnhance.Color
            picture = kind(picture).enhance(rng.uniform(0.5, 1.5))
    return np.asarray(picture)


def recolor(image: np.ndarray, *, turn: float = 0.0, saturation: float = 1.0) -> np.ndarray:
    """Turns the hue by a share of the circle and multiplies the saturation; uint8 in and out."""
    if turn:
        image = np.asarray(_shift_hue(Image.fromarray(image), turn))
    if saturation != 1.0:
        image = np.asarray(ImageEnhance.Color(Image.fromarray(image)).enhance(saturation))
    return image


def _shift_hue(picture: Image.Image, turn: float) -> Image.Image:
    hsv = np.array(picture.convert("HSV"))
    hsv[..., 0] += np.uint8(round(turn * 255) % 256)  # the hue circle wraps like a byte
    return Image.fromarray(hsv, "HSV").convert("RGB")


def random_query_crop(
    rng: np.random.Generator, image: np.ndarray, *, aspect_jitter: float = 0.9
) -> np.ndarray:
    """The largest crop of a class picture with aspect U(jitter, 1 / jitter) times its own, at a random place.

    Source: OS2D, published code, where this option fails before it returns.
    """
    height, width = image.shape[:2]
    aspect = width / height * rng.uniform(aspect_jitter, 1 / aspect_jitter)
    crop_width = min(max(round(height * aspect), 1), width)
    crop_height = min(max(round(width / aspect), 1), height)
    left = int(rng.integers(width - crop_width + 1))
    top = int(rng.integers(height - crop_height + 1))
    return image[top : top + crop_height, left : left + crop_width]


def fit_query(size: tuple[int, int], canvas: tuple[int, int] | None, *, side: int = 240) -> tuple[int, int]:
    """Size a class picture of `size` is resized to: area `side`**2, shrunk in proportion to fit the canvas.

    Only aspect ratios beyond those the canvas was measured for (or beyond its cap) are shrunk.
    """
    height, width = images.fit_to_area(size, side)
    if canvas is None:
        return height, width
    shrink = min(canvas[0] / height, canvas[1] / width, 1.0)
    return min(max(int(height * shrink), 1), canvas[0]), min(max(int(width * shrink), 1), canvas[1])
