"""Pixels: a layout painted with real artwork, seen by an imperfect camera; and the class pictures."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from sm_jax.data.synthetic import artwork, geometry, products
from sm_jax.data.synthetic.canvas import Color, shade
from sm_jax.data.synthetic.catalogue import Identity
from sm_jax.data.synthetic.layout import Cover, Layout

_TAG_COLORS: tuple[Color, ...] = ((250, 250, 246), (250, 214, 20), (214, 30, 40), (240, 240, 240))


def scene(layout: Layout, identities: Sequence[Identity], split: str, rng: np.random.Generator) -> bytes:
    """Paint `layout` and develop it: the JPEG file of the scene."""
    frame = (
        _shelf_ground(layout, split, rng)
        if layout.kind == "shelf"
        else _photo_ground(layout.size, split, rng)
    )
    frame = _shadows(frame, layout, rng)
    covers = sorted(layout.covers, key=lambda cover: cover.after)
    reduced: dict[tuple[int, int], Image.Image] = {}
    for k, placed in enumerate(layout.objects):
        while covers and covers[0].after <= k:
            _paint_cover(frame, covers.pop(0), split, rng)
        _paint_object(frame, identities[placed.label], placed.quad, reduced, placed.label, rng)
    for cover in covers:
        _paint_cover(frame, cover, split, rng)
    return _develop(frame, rng)


def class_picture_size(identity: Identity, rng: np.random.Generator) -> tuple[int, int]:
    """(height, width) of the class picture: the first thing that its random stream decides."""
    side = rng.uniform(200, 300)
    return round(side * identity.aspect**0.5), round(side / identity.aspect**0.5)


def class_picture(identity: Identity, split: str, rng: np.random.Generator) -> bytes:
    """The class picture as a JPEG file: the product alone, in other light, from a slightly other side.

    Its sides' ratio is the product's; the square root of its area is 200 to 300 px. The product fills it, or
    has a thin margin of another background.
    """
    height, width = class_picture_size(identity, rng)
    margin = float(rng.choice([0.0, rng.uniform(0.02, 0.07)], p=[0.6, 0.4]))
    if rng.random() < 0.5:
        ground = Image.new("RGB", (width, height), tuple(int(v) for v in rng.integers(150, 256, size=3)))
    else:
        ground = _photo_ground((height, width), split, rng)
    quad = geometry.rect(margin * width, margin * height, (1 - margin) * width, (1 - margin) * height)
    jitter = rng.uniform(-1, 1, size=(4, 2)) * (width, height) * (0.02 if margin else 0.008)
    # Without a margin the corners may only move outwards: no foreign pixel, only a sliver cut off.
    outward = np.sign(quad - quad.mean(axis=0))
    quad = quad + (jitter if margin else np.abs(jitter) * outward)
    _paint_object(ground, identity, quad, {}, 0, rng)
    return _develop(ground, rng, strength=0.6)


def _photo_ground(size: tuple[int, int], split: str, rng: np.random.Generator) -> Image.Image:
    """A background that is a crop of one of the split's photographs, in a random exposure."""
    names = artwork.photos(split)
    crop = artwork.photo_crop(names[int(rng.integers(len(names)))], size, rng, extent=(0.5, 1.0))
    crop = ImageEnhance.Brightness(crop).enhance(float(rng.uniform(0.5, 1.15)))
    crop = ImageEnhance.Color(crop).enhance(float(rng.uniform(0.3, 1.2)))
    return _soften(crop, float(rng.uniform(0, 2.5)))


def _shelf_ground(layout: Layout, split: str, rng: np.random.Generator) -> Image.Image:
    """Back wall and boards of a shelf."""
    height, width = layout.size
    wall = tuple(int(v) for v in np.clip(rng.integers(40, 190) + rng.integers(-18, 19, size=3), 0, 255))
    if rng.random() < 0.3:
        frame = _soften(_photo_ground(layout.size, split, rng), 4.0)
        frame = Image.blend(frame, Image.new("RGB", frame.size, wall), 0.5)
    else:
        frame = Image.new("RGB", (width, height), wall)
    board = tuple(int(v) for v in np.clip(rng.integers(70, 245) + rng.integers(-25, 26, size=3), 0, 255))
    draw = ImageDraw.Draw(frame)
    for quad in layout.boards:
        draw.polygon([tuple(p) for p in quad], fill=board)
        rail = quad.copy()
        rail[:2] += (quad[[3, 2]] - quad[:2]) * 0.22
        draw.polygon([tuple(p) for p in rail], fill=shade(board, 0.82))
        draw.line([tuple(quad[0]), tuple(quad[1])], fill=shade(board, 1.15), width=2)
    return frame


def _shadows(frame: Image.Image, layout: Layout, rng: np.random.Generator) -> Image.Image:
    """Darken the ground around and beside every object: one soft mask for the whole scene, at half size."""
    mask = Image.new("L", (frame.width // 2, frame.height // 2))
    draw = ImageDraw.Draw(mask)
    offset = rng.uniform(-6, 6, size=2) + (0, 3)
    for placed in layout.objects:
        center = placed.quad.mean(axis=0)
        quad = (center + (placed.quad - center) * 1.05 + offset) / 2
        draw.polygon([tuple(p) for p in quad], fill=int(rng.uniform(110, 190)))
    mask = mask.filter(ImageFilter.BoxBlur(float(rng.uniform(1.5, 4)))).resize(frame.size)
    return Image.composite(Image.new("RGB", frame.size, (12, 10, 10)), frame, mask)


def _paint_object(
    frame: Image.Image,
    identity: Identity,
    quad: np.ndarray,
    reduced: dict[tuple[int, int], Image.Image],
    label: int,
    rng: np.random.Generator,
) -> None:
    """Warp a front onto its quad, in light of its own. `reduced` remembers smaller copies of fronts."""
    picture = products.front(identity)
    ratio = geometry.area(quad) ** 0.5 / products.SIDE
    # Warping does not average: a front that lands smaller is reduced first, in steps of a quarter octave.
    step = int(np.clip(np.floor(-4 * np.log2(max(ratio, 1e-3)) - 0.5), 0, 12))
    border = products.BORDER
    if step > 0:
        factor = 2 ** (-step / 4)
        if (label, step) not in reduced:
            size = (max(4, round(picture.width * factor)), max(4, round(picture.height * factor)))
            reduced[label, step] = picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
        small = reduced[label, step]
        border_xy = (border * small.width / picture.width, border * small.height / picture.height)
        picture = small
    else:
        border_xy = (border, border)
    warped = geometry.warp(picture, quad, (frame.height, frame.width), border=border_xy)
    light = rng.uniform(0.8, 1.12)
    slope, angle = rng.uniform(0, 0.25), rng.uniform(0, 2 * np.pi)
    glare = rng.uniform(0.15, 0.5) if rng.random() < 0.15 else 0.0
    glare_at, glare_width = rng.uniform(-0.8, 0.8), rng.uniform(0.1, 0.3)
    if warped is None:
        return
    patch, corner = warped
    pixels = np.asarray(patch)
    x = np.linspace(-1, 1, patch.width, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, patch.height, dtype=np.float32)[:, None]
    gain = light * (1 + slope * (np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y))
    shaded = pixels[..., :3] * gain[..., None]
    if glare:
        shaded += (glare * 255 * np.exp(-(((x + 0.4 * y - glare_at) / glare_width) ** 2)))[..., None]
    frame.paste(Image.fromarray(np.clip(shaded, 0, 255).astype(np.uint8)), corner, patch.getchannel("A"))


def _paint_cover(frame: Image.Image, cover: Cover, split: str, rng: np.random.Generator) -> None:
    if cover.kind == "blob":
        _paint_blob(frame, cover.polygon, split, rng)
        return
    color = _TAG_COLORS[int(rng.integers(len(_TAG_COLORS)))]
    text = (20, 20, 24) if min(color[:2]) > 60 else (255, 255, 255)
    wide, tall = (160, 80) if cover.kind == "tag" else (240, 64)
    tag = Image.new("RGBA", (wide, tall), (*color, 255))
    draw = ImageDraw.Draw(tag)
    if cover.kind == "tag":
        price = f"{int(rng.integers(0, 20))}.{int(rng.integers(10)) * 10 + 9:02d}"
        draw.text((10, 2), price, fill=text, font=artwork.font("sans-black", 52))
        for x in np.cumsum(rng.integers(2, 7, size=12)):
            draw.line((90 + x, 62, 90 + x, 74), fill=text, width=2)
    else:
        word = str(rng.choice(["SALE", "SPECIAL OFFER", "2 FOR 1", "NEW IN", "-30%"]))
        draw.text((10, 8), word, fill=text, font=artwork.font("wide", 34))
    longest = max(geometry.bounds(cover.polygon)[2:] - geometry.bounds(cover.polygon)[:2])
    if longest < wide * 0.7:
        tag = tag.reduce(int(np.clip(wide / max(longest, 1), 1, 5)))
    warped = geometry.warp(tag, cover.polygon, (frame.height, frame.width))
    if warped is not None:
        frame.paste(warped[0].convert("RGB"), warped[1], warped[0].getchannel("A"))


def _paint_blob(frame: Image.Image, polygon: np.ndarray, split: str, rng: np.random.Generator) -> None:
    """An out-of-focus thing in front: photographic texture in a soft-edged shape."""
    texture = _photo_ground((frame.height // 2, frame.width // 2), split, rng)
    texture = _soften(texture, 2.0).resize(frame.size)
    mask = Image.new("L", frame.size)
    ImageDraw.Draw(mask).polygon([tuple(p) for p in polygon], fill=255)
    frame.paste(texture, (0, 0), mask.filter(ImageFilter.BoxBlur(2)))


def _soften(picture: Image.Image, radius: float) -> Image.Image:
    return picture.filter(ImageFilter.BoxBlur(radius)) if radius >= 0.3 else picture


def _develop(frame: Image.Image, rng: np.random.Generator, *, strength: float = 1.0) -> bytes:
    """Light, white balance, lens blur, sensor noise and JPEG."""
    if rng.random() < 0.5 * strength:
        frame = frame.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.2)) * strength))
    height, width = frame.height, frame.width
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.3) * strength
    spot = rng.uniform(-1, 1, size=2).astype(np.float32)
    light = 1 + slope * (np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y)
    light = light * (
        1 - np.float32(rng.uniform(0, 0.18) * strength) * ((x - spot[0]) ** 2 + (y - spot[1]) ** 2)
    )
    balance = (rng.uniform(0.85, 1.12) * (1 + rng.uniform(-0.08, 0.08, size=3) * strength)).astype(np.float32)
    noise = rng.standard_normal((height, width), dtype=np.float32) * np.float32(
        rng.uniform(0.5, 6) * strength
    )
    pixels = np.asarray(frame).astype(np.float32)
    pixels *= light[..., None]
    pixels *= balance
    pixels += noise[..., None]
    np.clip(pixels, 0, 255, out=pixels)
    gamma = rng.uniform(0.85, 1.2)
    table = [round(255 * (v / 255) ** gamma) for v in range(256)] * 3
    developed = Image.fromarray(pixels.astype(np.uint8)).point(table)
    buffer = io.BytesIO()
    quality = int(rng.integers(95 - int(40 * strength), 96))
    developed.save(buffer, "JPEG", quality=quality, subsampling=int(rng.choice([0, 2])))
    return buffer.getvalue()
