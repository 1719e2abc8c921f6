"""Detections drawn over a picture, for a report; pictures that are written here are known again."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

COLOURS = (
    (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0),
    (86, 180, 233), (148, 52, 110), (90, 110, 30), (120, 94, 240), (60, 60, 60),
)  # fmt: skip
"""The first six can be told apart without colour vision (Okabe and Ito)."""

HEAT = 0.65  # of the colour over the image where a heat map is 1

PAPER, INK, FAINT = (255, 255, 255), (30, 30, 30), (120, 120, 120)

MARK = "sm-jax"
"""Stands in every picture that `save` wrote: as `Software` in a PNG, as the comment in a JPEG."""


def save(picture: Image.Image, path: Path) -> None:
    """Write a .png or .jpg that `is_marked` knows again. Raises OSError."""
    if path.suffix.lower() == ".png":
        text = PngImagePlugin.PngInfo()
        text.add_text("Software", MARK)
        picture.save(path, pnginfo=text)
    else:
        picture.save(path, quality=92, comment=MARK)


def is_marked(path: Path) -> bool:
    """Whether `save` wrote the picture; False for what cannot be read."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as picture:
            return MARK == picture.info.get("Software") or MARK.encode() == picture.info.get("comment")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def colour_of(index: int) -> tuple[int, int, int]:
    """The colour of the label with this index; colours repeat after ten."""
    return COLOURS[index % len(COLOURS)]


def detections(
    image: np.ndarray,
    boxes: np.ndarray,
    *,
    labels: Sequence[str],
    scores: np.ndarray | None = None,
    corners: np.ndarray | None = None,
    queries: Mapping[str, np.ndarray | None] | None = None,
    truth: np.ndarray | None = None,
    captions: Sequence[str] | None = None,
) -> Image.Image:
    """Boxes with captions over a picture, and on its left the queries with the number of hits.

    Args:
      image: (h, w, 3) uint8; a small one is enlarged so that captions can be read.
      boxes: (n, 4) xyxy pixels.
      labels: (n,) names; captions show them unless there is only one name in all.
      scores: (n,) shown with two decimals.
      corners: (n, 4, 2) outline of the aligned query, clockwise; drawn thin.
      queries: label -> (h, w, 3) uint8 picture, or None for a phrase, whose words are shown; fixes the order
        of colours; None in place of the mapping leaves the panel out.
      truth: (m, 4) annotated boxes, drawn dashed in white.
      captions: (n,) what stands at the boxes instead of label and score.
    """
    names = list(dict.fromkeys([*(queries or {}), *labels]))
    zoom = min(8.0, max(1.0, 640 / max(image.shape[:2])))
    canvas = Image.fromarray(image)
    if zoom > 1:
        canvas = canvas.resize(
            (round(canvas.width * zoom), round(canvas.height * zoom)), Image.Resampling.BICUBIC
        )
    side = math.sqrt(canvas.width * canvas.height)
    width = max(2, round(side / 350))
    fine = 2 if side < 3000 else 1  # drawn larger and shrunk, so that slanted lines are smooth
    layer = Image.new("RGBA", (canvas.width * fine, canvas.height * fine), (0, 0, 0, 0))
    pen = ImageDraw.Draw(layer)
    step = zoom * fine
    for box in np.asarray(truth if truth is not None else np.zeros((0, 4)), np.float64).reshape(-1, 4):
        _dashed(pen, _drawable(box * step, layer.size), width * fine)
    order = np.argsort(scores, kind="stable") if scores is not None else np.arange(len(boxes))
    copies = _copies(boxes, order[::-1])
    for index in order:
        colour = colour_of(names.index(labels[index]))
        if corners is not None:
            points = np.clip(np.asarray(corners[index], np.float64) * step, -30_000, 30_000)
            outline = [tuple(point) for point in points]
            pen.line(
                [*outline, outline[0]], fill=(*colour, 170), width=max(1, width * fine // 2), joint="curve"
            )
        box = _drawable(np.asarray(boxes[index], np.float64) * step, layer.size)
        inset = min(2 * copies[index] * width * fine, (box[2] - box[0]) // 2, (box[3] - box[1]) // 2)
        box = [box[0] + inset, box[1] + inset, box[2] - inset, box[3] - inset]
        pen.rectangle(box, outline=(255, 255, 255, 200), width=(width + 1) * fine)
        pen.rectangle(box, outline=(*colour, 255), width=width * fine)
    canvas = canvas.convert("RGBA")
    canvas.alpha_composite(layer.resize(canvas.size, Image.Resampling.LANCZOS) if fine > 1 else layer)
    font = ImageFont.load_default(max(11, round(side / 75)))
    pen = ImageDraw.Draw(canvas)
    for index in order:
        place, name = np.asarray(boxes[index]) * zoom, labels[index]
        score = f"{scores[index]:.2f}" if scores is not None else ""
        text = f"{name}  {score}".strip() if len(names) > 1 else score
        if queries is not None and score and pen.textlength(text, font=font) > 1.3 * (place[2] - place[0]):
            text = score  # the colour and the panel say the rest
        if captions is not None:
            text = captions[index]
        if text:
            _caption(pen, canvas.size, place, text, font, names.index(name), copies[index])
    canvas = canvas.convert("RGB")
    return canvas if queries is None else _with_panel(canvas, names, queries, list(labels))


def heat(
    image: np.ndarray, maps: Mapping[str, np.ndarray], box: np.ndarray, *, names: Sequence[str] | None = None
) -> np.ndarray:
    """The picture under its heat maps: each place in the colour of the label with the highest value there.

    Args:
      image: (h, w, 3) uint8.
      maps: label -> (rows, columns) float in 0..1, all of one shape; at 1 the colour prevails.
      box: (4,) xyxy pixels of the image: the outer edges of the maps; it may reach beyond the image.
      names: labels in the order of their colours; default: that of `maps`.

    Returns:
      (h, w, 3) uint8.
    """
    if not maps:
        return image
    names = list(maps) if names is None else list(names)
    values = np.clip(np.stack(list(maps.values())), 0, 1).astype(np.float32)
    colours = np.array([colour_of(names.index(label)) for label in maps], np.float32)
    alpha = HEAT * values.max(axis=0)
    # Premultiplied by alpha, so that colours of faint cells do not bleed into their neighbours.
    layers = [alpha, *np.moveaxis(colours[values.argmax(axis=0)] * alpha[..., None], -1, 0)]
    alpha, *tint = (_spread(layer, box, image.shape[:2])[..., None] for layer in layers)
    mixed = image * (1 - alpha) + np.concatenate(tint, axis=-1)
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def titled(picture: Image.Image, title: str) -> Image.Image:
    """The picture below a line of text, which is cut to its width."""
    font = ImageFont.load_default(max(13, round(math.sqrt(picture.width * picture.height) / 40)))
    band = 2 * font.size
    page = Image.new("RGB", (picture.width, picture.height + band), PAPER)
    page.paste(picture, (0, band))
    pen = ImageDraw.Draw(page)
    text = _fit(pen, title, font, picture.width - font.size)
    pen.text((font.size // 2, band // 2), text, font=font, fill=INK, anchor="lm")
    return page


def _spread(layer, box, size):
    """A map (rows, columns) float32 over an image of `size` (height, width); 0 where the map does not lie."""
    x1, y1, x2, y2 = (float(edge) for edge in box)
    rows, columns = layer.shape
    padded = Image.fromarray(np.pad(layer, 1))  # nothing around it
    across, down = columns / (x2 - x1), rows / (y2 - y1)
    # Pillow gives the centre of pixel x the value at a (x + 0.5) + c of the map, edges on integers.
    transform = (across, 0.0, 1 - x1 * across, 0.0, down, 1 - y1 * down)
    method, sampling = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    return np.asarray(padded.transform(size[::-1], method, transform, sampling), np.float32)


def _drawable(box, size):
    """The box with its corners in order, cut a little outside the picture of `size` (width, height)."""
    x = np.clip(sorted((box[0], box[2])), -100, size[0] + 100)
    y = np.clip(sorted((box[1], box[3])), -100, size[1] + 100)
    return [x[0], y[0], x[1], y[1]]


def _dashed(pen, box, width):
    x1, y1, x2, y2 = box
    dash = 6 * width
    for start, end in (
        ((x1, y1), (x2, y1)),
        ((x2, y1), (x2, y2)),
        ((x2, y2), (x1, y2)),
        ((x1, y2), (x1, y1)),
    ):
        length = math.dist(start, end)
        for at in np.arange(0, length, 2 * dash):
            a, b = at / length, min(at + dash, length) / length
            points = [tuple(s + (e - s) * t for s, e in zip(start, end, strict=True)) for t in (a, b)]
            pen.line(points, fill=(255, 255, 255, 255), width=width)


def _copies(boxes, order) -> list[int]:
    """Of each box, how many equal ones come before it in `order`: these are drawn inside one another."""
    seen: dict[tuple, int] = {}
    copies = [0] * len(boxes)
    for index in order:
        key = tuple(np.round(np.asarray(boxes[index], np.float64)))
        copies[index] = seen.get(key, 0)
        seen[key] = copies[index] + 1
    return copies


def _caption(pen, size, box, text, font, index, below):
    """White text on the label's colour, above the box if there is room, always inside the picture.

    `below` is how many captions of equal boxes stand above this one.
    """
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    pad = max(2, (bottom - top) // 5)
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    x = min(max(0, box[0]), max(0, size[0] - width))
    y = (box[1] - height if box[1] >= height else max(0.0, box[1])) + below * height
    y = max(0.0, min(y, size[1] - height))
    pen.rectangle([x, y, x + width, y + height], fill=colour_of(index))
    pen.text((x + pad - left, y + pad - top), text, font=font, fill=PAPER)


def _with_panel(canvas, names, queries, labels):
    """The picture with a column of queries on its left: thumbnail or coloured square, name, hits."""
    width = int(min(260, max(110, canvas.width * 0.18)))
    gap = max(6, width // 16)
    font = ImageFont.load_default(max(11, width // 12))
    line, room = font.size + 4, canvas.height - gap
    cell = max(48, min(width, room // max(1, len(names)) - 2 * line - gap))
    page = Image.new("RGB", (canvas.width + width + 2 * gap, canvas.height), PAPER)
    page.paste(canvas, (width + 2 * gap, 0))
    pen = ImageDraw.Draw(page)
    entries = [_entry(pen, queries.get(name), name, font, (width, cell)) for name in names]
    ends = np.cumsum([height + (len(text) + 1) * line + gap for _, text, height in entries])
    shown = len(names)
    if shown and ends[-1] > room:  # only then the last line says how many are left out
        shown = max(1, int(np.sum(ends <= room - line)))
    y = gap
    for index, (thumbnail, text, height) in enumerate(entries[:shown]):
        if thumbnail is not None:
            page.paste(thumbnail, (gap, y))
            corner = gap + thumbnail.width - 1, y + thumbnail.height - 1
            pen.rectangle([gap, y, *corner], outline=colour_of(index), width=3)
        y += height
        indent = 0
        if thumbnail is None:
            indent = font.size + 4
            pen.rectangle([gap, y, gap + font.size - 1, y + font.size - 1], fill=colour_of(index))
        for words in text:
            pen.text((gap + indent, y), words, font=font, fill=INK)
            y += line
        hits = labels.count(names[index])
        pen.text((gap + indent, y), f"{hits} found", font=font, fill=FAINT)
        y += line + gap
    if shown < len(names):
        pen.text((gap, canvas.height - line), f"and {len(names) - shown} more", font=font, fill=FAINT)
    return page


def _entry(pen, picture, name, font, cell):
    """(thumbnail or None, lines of text, height of the thumbnail) of one name of the panel."""
    width, height = cell
    if picture is None:
        return None, _wrapped(pen, name, font, width - font.size - 4), 0
    thumbnail = Image.fromarray(np.asarray(picture, np.uint8))
    ratio = min(width / thumbnail.width, height / thumbnail.height)
    new = max(1, int(thumbnail.width * ratio)), max(1, int(thumbnail.height * ratio))
    return thumbnail.resize(new, Image.Resampling.LANCZOS), [_fit(pen, name, font, width)], new[1] + 2


def _wrapped(pen, text, font, width, most=3):
    """`text` in at most `most` lines of `width` pixels, broken between words."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or pen.textlength(longer, font=font) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > most:
        lines = [*lines[: most - 1], " ".join(lines[most - 1 :])]
    return [_fit(pen, words, font, width) for words in lines]


def _fit(pen, text, font, width):
    """`text`, cut to `width` pixels."""
    text = text if len(text) <= 200 else text[:200] + "..."
    if pen.textlength(text, font=font) <= width:
        return text
    while text and pen.textlength(text + "...", font=font) > width:
        text = text[:-1]
    return text + "..."
