"""Drawing a class: the flat, evenly lit front of a product, a logo plate or a framed photograph.

`front(identity)` is what both the scenes and the class pictures are made of. It is drawn at twice its size
and reduced, and has a transparent border of `BORDER` pixels so that warping it gives soft edges.
"""

from functools import lru_cache

import numpy as np
from PIL import Image

from sm_jax.data.synthetic import artwork
from sm_jax.data.synthetic.canvas import BLACK, WHITE, Canvas, contrast, ink, luminance, mix, shade
from sm_jax.data.synthetic.catalogue import FLAVOURS, Identity

SIDE = 240  # square root of a front's area in pixels: OS2D's nominal object
BORDER = 2
_OVERSAMPLE = 2


@lru_cache(maxsize=192)
def front(identity: Identity) -> Image.Image:
    """The front of a class: RGBA, area about 240 x 240 plus the border, height / width = `identity.aspect`.

    The result is shared: do not draw on it.
    """
    height = max(8, round(SIDE * identity.aspect**0.5))
    width = max(8, round(SIDE / identity.aspect**0.5))
    canvas = Canvas((height * _OVERSAMPLE, width * _OVERSAMPLE), np.random.default_rng(identity.seed))
    {"pack": _pack, "plate": _plate, "photo": _photograph}[identity.kind](canvas, identity)
    alpha = canvas.outline(_silhouette(identity))
    picture = canvas.image.resize((width, height), Image.Resampling.BOX)
    alpha = alpha.resize((width, height), Image.Resampling.BOX)
    return _bordered(picture, alpha)


def _bordered(picture: Image.Image, alpha: Image.Image) -> Image.Image:
    """Add a border that repeats the edge colours and is transparent (no dark fringe after interpolation)."""
    rgb = np.pad(np.asarray(picture), ((BORDER, BORDER), (BORDER, BORDER), (0, 0)), mode="edge")
    cover = np.pad(np.asarray(alpha), BORDER)
    return Image.fromarray(np.dstack([rgb, cover]))


def _silhouette(identity: Identity) -> float:
    """Corner radius as a share of the shorter side."""
    if identity.kind == "photo":
        return 0.0
    if identity.kind == "plate":
        return (0.0, 0.06, 0.12, 0.2)[identity.seed % 4]
    return {"box": 0.0, "pouch": 0.05, "can": 0.04}[identity.shape]


def _pack(canvas: Canvas, identity: Identity) -> None:
    rng = canvas.rng
    word, accent = FLAVOURS[identity.flavour]
    base = _base_color(identity, rng)
    fonts = [str(f) for f in rng.choice(list(artwork.FONTS), size=2, replace=False)]
    # Drawn from the family's stream before the layout, so that all members of a family agree on them.
    extra_rng = np.random.default_rng(rng.integers(2**31))
    draw = {
        "band": _band, "split": _split, "badge": _badge, "photo": _photo_pack, "pattern": _pattern,
        "diagonal": _diagonal, "label": _label, "tower": _tower,
    }  # fmt: skip
    draw[identity.layout](canvas, identity, base, accent, word, fonts)
    _small_print(canvas, extra_rng, identity)
    _body(canvas, identity, extra_rng)


def _base_color(identity: Identity, rng: np.random.Generator) -> tuple[int, int, int]:
    choice = rng.random()
    if choice < 0.5:
        return identity.color
    if choice < 0.7:
        return (246, 243, 236)
    hue = rng.integers(30, 226, size=3)
    return tuple(int(v) for v in hue)


def _band(canvas, identity, base, accent, word, fonts):
    rng = canvas.rng
    canvas.gradient(base, shade(base, rng.uniform(0.7, 1.15)))
    top = rng.uniform(0.45, 0.58)
    canvas.box((0, top, 1, top + 0.24), accent)
    canvas.box((0, top - 0.012, 1, top), WHITE)
    canvas.mark(identity.mark, (0.5, top / 2), 0.62 * top, contrast(identity.color, base))
    canvas.text(identity.title, (0.06, top + 0.03, 0.94, top + 0.15), fonts[0], ink(accent))
    canvas.text(word, (0.12, top + 0.155, 0.88, top + 0.225), fonts[1], ink(accent))
    canvas.text(identity.goods, (0.1, top + 0.27, 0.9, top + 0.37), fonts[1], ink(base))


def _split(canvas, identity, base, accent, word, fonts):
    rng = canvas.rng
    at = rng.uniform(0.35, 0.65)
    canvas.fill(base)
    canvas.box((at, 0, 1, 1), accent)
    y = rng.uniform(0.3, 0.4)
    canvas.disc((0.5, y), 0.36, WHITE)
    canvas.mark(identity.mark, (0.5, y), 0.44, contrast(identity.color, WHITE))
    canvas.box((0, 0.66, 1, 0.83), WHITE)
    canvas.text(identity.title, (0.06, 0.67, 0.94, 0.78), fonts[0], BLACK)
    canvas.text(f"{identity.goods} {word}", (0.1, 0.785, 0.9, 0.825), fonts[1], (90, 90, 90))


def _badge(canvas, identity, base, accent, word, fonts):
    rng = canvas.rng
    canvas.gradient(shade(base, 1.25), shade(base, 0.6))
    canvas.text(identity.title, (0.06, 0.05, 0.94, 0.2), fonts[0], ink(base))
    y = rng.uniform(0.45, 0.52)
    radius = min(rng.uniform(0.36, 0.44), 0.27 * canvas.size[0] / min(canvas.size))
    canvas.disc((0.5, y), radius, WHITE)
    canvas.disc((0.5, y), radius * 0.93, accent)
    canvas.mark(identity.mark, (0.5, y), radius * 1.15, ink(accent))
    canvas.box((0, 0.8, 1, 0.91), accent)
    canvas.text(f"{word} {identity.goods}", (0.06, 0.815, 0.94, 0.895), fonts[1], ink(accent))


def _photo_pack(canvas, identity, base, accent, word, fonts):
    rng = canvas.rng
    top = rng.uniform(0.46, 0.6)
    flipped = rng.random() < 0.35
    panel = (0, 1 - top, 1, 1) if flipped else (0, 0, 1, top)
    text = 0.0 if flipped else top
    room = 1 - top
    canvas.fill(base)
    crop_rng = np.random.default_rng(identity.seed + 1)
    canvas.photo(identity.picture, panel, crop_rng, tint=accent if rng.random() < 0.5 else None)
    edge = 1 - top if flipped else top
    canvas.box((0, edge - 0.02, 1, edge + 0.02), accent)
    canvas.text(identity.title, (0.05, text + 0.1 * room, 0.95, text + 0.42 * room), fonts[0], ink(base))
    canvas.box((0.1, text + 0.5 * room, 0.9, text + 0.72 * room), accent)
    canvas.text(word, (0.14, text + 0.53 * room, 0.86, text + 0.69 * room), fonts[1], ink(accent))
    canvas.text(identity.goods, (0.1, text + 0.76 * room, 0.9, text + 0.88 * room), fonts[1], ink(base))
    x = float(rng.choice([0.16, 0.84]))
    y = 0.86 if flipped else 0.12
    canvas.disc((x, y), 0.12, WHITE)
    canvas.mark(identity.mark, (x, y), 0.15, contrast(identity.color, WHITE))


def _pattern(canvas, identity, base, accent, word, fonts):
    rng = canvas.rng
    canvas.fill(base)
    step = rng.uniform(0.16, 0.26)
    canvas.tile(identity.mark, step, mix(base, accent, 0.45))
    y1, y2 = rng.uniform(0.2, 0.27), rng.uniform(0.74, 0.82)
    canvas.box((0.06, y1 - 0.02, 0.94, y2 + 0.02), accent)
    canvas.box((0.09, y1, 0.91, y2), (252, 250, 244))
    middle = (y1 + y2) / 2
    canvas.mark(identity.mark, (0.5, y1 + 0.36 * (y2 - y1)), 0.5 * (y2 - y1), contrast(identity.color, WHITE))
    canvas.text(identity.title, (0.13, middle + 0.08, 0.87, middle + 0.18), fonts[0], BLACK)
    canvas.text(word, (0.2, y2 - 0.08, 0.8, y2 - 0.015), fonts[1], shade(accent, 0.7))


def _diagonal(canvas, identity, base, accent, word, fonts):
    rng = canvas.rng
    canvas.fill(base)
    lean = rng.uniform(0.15, 0.4) * rng.choice([-1, 1])
    start = rng.uniform(0.35, 0.5)
    for top, bottom, color in ((0.0, 0.3, accent), (0.32, 0.36, shade(accent, 0.7))):
        left, right = start - lean, start + lean
        canvas.polygon([(0, left + top), (1, right + top), (1, right + bottom), (0, left + bottom)], color)
    x = rng.uniform(0.25, 0.75)
    figure = contrast(identity.color, mix(base, accent))
    canvas.mark(identity.mark, (x, start + 0.12), rng.uniform(0.6, 0.85), figure)
    canvas.text(identity.title, (0.05, 0.03, 0.95, 0.15), fonts[0], ink(base))
    canvas.box((0, 0.86, 1, 1), WHITE)
    canvas.text(f"{identity.goods} · {word}", (0.06, 0.885, 0.94, 0.965), fonts[1], shade(accent, 0.55))


def _label(canvas, identity, base, accent, word, fonts):
    rng = canvas.rng
    paper = mix((252, 248, 236), base, 0.06)
    canvas.fill(paper)
    canvas.box((0, 0, 1, 0.1), accent)
    canvas.box((0, 0.9, 1, 1), accent)
    canvas.frame((0.05, 0.13, 0.95, 0.87), shade(accent, 0.6), 0.012)
    serif = "serif-black" if rng.random() < 0.5 else "book-italic"
    y = rng.uniform(0.3, 0.36)
    canvas.mark(identity.mark, (0.5, y), 0.27, contrast(identity.color, paper))
    canvas.text(identity.title, (0.1, 0.5, 0.9, 0.63), serif, BLACK)
    canvas.text(identity.goods, (0.16, 0.65, 0.84, 0.73), "serif", (80, 70, 60))
    canvas.text(f"— {word} —", (0.16, 0.755, 0.84, 0.825), serif, shade(accent, 0.6))


def _tower(canvas, identity, base, accent, word, fonts):
    rng = canvas.rng
    canvas.gradient(base, shade(base, 0.85), horizontal=True)
    on_left = rng.random() < 0.5
    x1, x2 = (0.0, 0.34) if on_left else (0.66, 1.0)
    canvas.box((x1, 0, x2, 1), accent)
    canvas.text(identity.title, (x1 + 0.04, 0.04, x2 - 0.04, 0.96), fonts[0], ink(accent), upright=True)
    cx = 0.67 if on_left else 0.33
    y = rng.uniform(0.24, 0.34)
    canvas.mark(identity.mark, (cx, y), 0.42, contrast(identity.color, base))
    crop_rng = np.random.default_rng(identity.seed + 1)
    left = 0.38 if on_left else 0.04
    canvas.photo(identity.picture, (left, 0.5, left + 0.58, 0.78), crop_rng)
    canvas.text(word, (left, 0.81, left + 0.58, 0.88), fonts[1], ink(base))
    canvas.text(identity.goods, (left, 0.89, left + 0.58, 0.95), fonts[1], ink(base))


def _small_print(canvas: Canvas, rng: np.random.Generator, identity: Identity) -> None:
    """Weight and, sometimes, a round offer sticker: the small things that packs carry."""
    corner = float(rng.choice([0.04, 0.72]))
    canvas.text(identity.weight, (corner, 0.945, corner + 0.24, 0.985), "sans", WHITE, plate=(40, 40, 44))
    if rng.random() < 0.25:
        x, y = float(rng.choice([0.2, 0.8])), float(rng.uniform(0.2, 0.4))
        canvas.disc((x, y), 0.13, (250, 214, 20))
        text = str(rng.choice(["NEW", "BIO", "-20%", "2 for 1", "XL", "No. 1"]))
        canvas.text(text, (x - 0.1, y - 0.045, x + 0.1, y + 0.045), "sans-black", (180, 16, 24))


def _body(canvas: Canvas, identity: Identity, rng: np.random.Generator) -> None:
    """Give the flat design the light of its body: a can, a pouch with a crimped top, or a printed box."""
    height, width = canvas.size
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    if identity.shape == "can":
        light = 0.55 + 0.5 * np.sqrt(np.clip(1 - x**2, 0, 1)) + 0.25 * np.exp(-(((x + 0.35) / 0.12) ** 2))
        gain = np.broadcast_to(light, (height, width)).copy()
        rim = (y < 0.035) | (y > 0.965)
        gain = np.where(rim, gain * 0.75, gain)
    elif identity.shape == "pouch":
        swell = 0.86 + 0.16 * np.sqrt(np.clip(1 - x**2, 0, 1))
        crimp = np.where(y < 0.06, 0.9 + 0.1 * np.sign(np.sin(x * 90)), 1.0)
        fold = 1 + 0.05 * np.sin(6 * x + 9 * y + rng.uniform(0, 6))
        gain = swell * crimp * fold
    else:
        gain = 1.03 - 0.1 * np.abs(x) ** 8 - 0.08 * y
        gain = np.broadcast_to(gain, (height, width))
    canvas.multiply(gain)


def _plate(canvas: Canvas, identity: Identity) -> None:
    rng = canvas.rng
    accent = FLAVOURS[identity.flavour][1]
    scheme = rng.integers(4)
    ground = (accent, WHITE, mix(accent, BLACK, 0.75), mix(accent, WHITE, 0.75))[scheme]
    figure = (ink(accent), accent, accent, shade(accent, 0.5))[scheme]
    if scheme in (1, 2) and abs(luminance(figure) - luminance(ground)) < 60:
        ground = mix(accent, BLACK, 0.7) if scheme == 1 else mix(accent, WHITE, 0.6)
    canvas.gradient(ground, shade(ground, rng.uniform(0.85, 1.0)))
    if rng.random() < 0.6:
        canvas.frame((0.03, 0.03, 0.97, 0.97), figure, float(rng.uniform(0.01, 0.03)))
    font_name = str(rng.choice(list(artwork.FONTS)))
    style = rng.random()
    if identity.aspect < 0.85 and style < 0.7:
        canvas.mark(identity.mark, (0.26, 0.5), 0.62 * identity.aspect**0.2, figure)
        canvas.text(identity.title, (0.5, 0.3, 0.94, 0.7), font_name, figure)
    elif style < 0.5:
        canvas.mark(identity.mark, (0.5, 0.4), 0.58, figure)
        canvas.text(identity.title, (0.1, 0.75, 0.9, 0.91), font_name, figure)
    else:
        canvas.mark(identity.mark, (0.5, 0.5), 0.78, figure)


def _photograph(canvas: Canvas, identity: Identity) -> None:
    rng = canvas.rng
    accent = FLAVOURS[identity.flavour][1]
    tint = accent if rng.random() < 0.5 or identity.picture in artwork.TEXTURES else None
    # Members of a family are neighbouring crops of one photograph: same extent, other place.
    crop_rng = np.random.default_rng([identity.seed, identity.flavour])
    extent = float(rng.uniform(0.3, 0.6))
    inset = float(rng.choice([0.0, 0.05, 0.08]))
    canvas.fill(WHITE if rng.random() < 0.6 else accent)
    caption = rng.random() < 0.6
    bottom = 0.82 if caption else 1 - inset
    canvas.photo(
        identity.picture, (inset, inset, 1 - inset, bottom), crop_rng, tint=tint, extent=(extent, extent)
    )
    font_name = str(rng.choice(list(artwork.FONTS)))
    if caption:
        canvas.box((0, 0.82, 1, 1), mix(accent, WHITE, 0.2))
        canvas.text(identity.title, (0.06, 0.845, 0.94, 0.97), font_name, ink(mix(accent, WHITE, 0.2)))
        canvas.mark(identity.mark, (0.14, 0.14), 0.16, WHITE)
