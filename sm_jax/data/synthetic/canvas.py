"""A drawing surface in fractions of its own size, and a few rules for colours that go together."""

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageOps

from sm_jax.data.synthetic import artwork

Color = tuple[int, int, int]
WHITE: Color = (255, 255, 255)
BLACK: Color = (22, 22, 26)


def luminance(color: Color) -> float:
    """Perceived lightness of an RGB colour, 0..255."""
    return 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]


def shade(color: Color, factor: float) -> Color:
    """The colour made darker (factor < 1) or lighter (> 1)."""
    return tuple(int(min(255, max(0, round(v * factor)))) for v in color)


def mix(a: Color, b: Color, share: float = 0.5) -> Color:
    """`a` with `share` of `b`."""
    return tuple(int(round(x * (1 - share) + y * share)) for x, y in zip(a, b, strict=True))


def ink(ground: Color) -> Color:
    """A colour that is readable on `ground`."""
    return BLACK if luminance(ground) > 150 else WHITE


def contrast(color: Color, ground: Color) -> Color:
    """`color`, unless it would vanish on `ground`."""
    return color if abs(luminance(color) - luminance(ground)) > 60 else ink(ground)


class Canvas:
    """An RGB picture of `size` (height, width); positions and lengths are fractions of it."""

    def __init__(self, size: tuple[int, int], rng: np.random.Generator):
        self.size = size
        self.rng = rng
        self.image = Image.new("RGB", (size[1], size[0]), WHITE)
        self._draw = ImageDraw.Draw(self.image)

    def _pixels(self, box: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
        height, width = self.size
        return round(box[0] * width), round(box[1] * height), round(box[2] * width), round(box[3] * height)

    def fill(self, color: Color) -> None:
        """Paint everything."""
        self.image.paste(color, (0, 0, *self.image.size))

    def gradient(self, start: Color, end: Color, *, horizontal: bool = False) -> None:
        """Paint everything with a linear ramp, top to bottom or left to right."""
        ramp = Image.linear_gradient("L")
        ramp = (ramp.rotate(90) if horizontal else ramp).resize(self.image.size)
        self.image.paste(ImageOps.colorize(ramp, start, end))

    def box(self, box: tuple[float, float, float, float], color: Color) -> None:
        """Fill a rectangle."""
        self.image.paste(color, self._pixels(box))

    def frame(self, box: tuple[float, float, float, float], color: Color, thickness: float) -> None:
        """Outline a rectangle."""
        x1, y1, x2, y2 = self._pixels(box)
        self._draw.rectangle(
            (x1, y1, x2 - 1, y2 - 1), outline=color, width=max(1, round(thickness * self.size[1]))
        )

    def polygon(self, points: list[tuple[float, float]], color: Color) -> None:
        """Fill a polygon."""
        height, width = self.size
        self._draw.polygon([(x * width, y * height) for x, y in points], fill=color)

    def disc(self, center: tuple[float, float], radius: float, color: Color) -> None:
        """Fill a circle whose radius is a fraction of the shorter side."""
        height, width = self.size
        x, y, r = center[0] * width, center[1] * height, radius * min(height, width)
        self._draw.ellipse((x - r, y - r, x + r, y + r), fill=color)

    def mark(self, slug: str, center: tuple[float, float], side: float, color: Color) -> None:
        """Stamp a brand mark whose side is a fraction of the shorter side, at most 0.9 of the width."""
        height, width = self.size
        pixels = max(8, round(min(side * min(height, width), 0.9 * width)))
        mask = artwork.mark_mask(slug, pixels)
        corner = (round(center[0] * width - pixels / 2), round(center[1] * height - pixels / 2))
        self.image.paste(color, (*corner, corner[0] + pixels, corner[1] + pixels), mask)

    def tile(self, slug: str, step: float, color: Color) -> None:
        """Cover everything with a staggered pattern of a mark, `step` of the width apart."""
        height, width = self.size
        pitch = max(12, round(step * width))
        mask = artwork.mark_mask(slug, round(pitch * 0.62))
        for row, y in enumerate(range(0, height, pitch)):
            for x in range(-(row % 2) * pitch // 2, width, pitch):
                self.image.paste(color, (x, y, x + mask.width, y + mask.height), mask)

    def text(
        self,
        line: str,
        box: tuple[float, float, float, float],
        face: str,
        color: Color,
        *,
        plate: Color | None = None,
        upright: bool = False,
    ) -> None:
        """Set one line as large as fits, centred in `box`; `upright` reads upwards, `plate` backs it."""
        x1, y1, x2, y2 = self._pixels(box)
        room = (y2 - y1, x2 - x1) if upright else (x2 - x1, y2 - y1)
        if min(room) < 4:
            return
        left, top, right, bottom = artwork.font(face, 64).getbbox(line)
        # Sizes go in steps of 2 so that few distinct fonts are loaded.
        scale = min(room[0] / max(1, right - left), room[1] / max(1, bottom - top))
        size = max(6, int(64 * scale) // 2 * 2)
        face_at_size = artwork.font(face, size)
        left, top, right, bottom = face_at_size.getbbox(line)
        mask = Image.new("L", (max(1, right - left), max(1, bottom - top)))
        ImageDraw.Draw(mask).text((-left, -top), line, fill=255, font=face_at_size)
        if upright:
            mask = mask.transpose(Image.Transpose.ROTATE_90)
        if plate is not None:
            self.image.paste(plate, (x1, y1, x2, y2))
        corner = ((x1 + x2 - mask.width) // 2, (y1 + y2 - mask.height) // 2)
        self.image.paste(color, (*corner, corner[0] + mask.width, corner[1] + mask.height), mask)

    def photo(
        self,
        name: str,
        box: tuple[float, float, float, float],
        rng: np.random.Generator,
        *,
        tint: Color | None = None,
        extent: tuple[float, float] = (0.35, 0.9),
    ) -> None:
        """Fill a rectangle with a crop of a photograph, as it is or as a duotone that ends in `tint`."""
        x1, y1, x2, y2 = self._pixels(box)
        crop = artwork.photo_crop(name, (max(1, y2 - y1), max(1, x2 - x1)), rng, extent=extent)
        if tint is not None:
            crop = ImageOps.colorize(crop.convert("L"), shade(tint, 0.25), mix(tint, WHITE, 0.75), mid=tint)
        self.image.paste(crop, (x1, y1))

    def multiply(self, gain: np.ndarray) -> None:
        """Scale brightness by `gain` (height, width)."""
        light = Image.fromarray(np.clip(gain * 200, 0, 255).astype(np.uint8))
        # 200 stands for 1, so that a gain up to 1.27 survives in a byte.
        scaled = ImageChops.multiply(self.image, Image.merge("RGB", [light] * 3))
        self.image.paste(scaled.point([min(255, round(v * 255 / 200)) for v in range(256)] * 3))

    def outline(self, radius: float) -> Image.Image:
        """Coverage mask "L": the whole canvas with corners rounded by `radius` of the shorter side."""
        mask = Image.new("L", self.image.size, 255)
        if radius > 0:
            mask.paste(0, (0, 0, *mask.size))
            r = round(radius * min(self.size))
            ImageDraw.Draw(mask).rounded_rectangle((0, 0, mask.width - 1, mask.height - 1), r, fill=255)
        return mask
