"""A picture sheet of a data source: scenes with their boxes, and under each the class pictures it shows."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from sm_jax.errors import DataError

_WIDTH = 640  # of one scene on the sheet
_STRIP = 110  # height of the row of class pictures
_GAP = 10
_GOLDEN = 0.618034


def _color(k: int) -> tuple[int, int, int]:
    """Distinct hues for consecutive k."""
    swatch = Image.new("HSV", (1, 1), (int(255 * ((k * _GOLDEN) % 1)), 230, 255))
    return swatch.convert("RGB").getpixel((0, 0))


def _cell(source, index: int) -> Image.Image:
    note = source.annotation(index)
    scene = Image.fromarray(source.image(index))
    scale = _WIDTH / scene.width
    scene = scene.resize((_WIDTH, round(scene.height * scale)), Image.Resampling.LANCZOS)
    cell = Image.new("RGB", (_WIDTH, scene.height + _STRIP), (34, 34, 38))
    draw = ImageDraw.Draw(scene)
    labels = [int(c) for c in np.unique(note["labels"])]
    for box, label, difficult in zip(note["boxes"], note["labels"], note["difficult"], strict=True):
        color = _color(labels.index(int(label)))
        draw.rectangle([float(v) * scale for v in box], outline=color, width=1 if difficult else 3)
    cell.paste(scene, (0, 0))
    x = 4
    for k, label in enumerate(labels):
        picture = Image.fromarray(source.query(label))
        picture.thumbnail((_STRIP, _STRIP - 14), Image.Resampling.LANCZOS)
        if x + picture.width > _WIDTH:
            break
        cell.paste(picture, (x, scene.height + 7))
        frame = (x - 2, scene.height + 5, x + picture.width + 1, scene.height + picture.height + 8)
        ImageDraw.Draw(cell).rectangle(frame, outline=_color(k), width=2)
        x += picture.width + 8
    return cell


def preview(source, out_path: str | Path, n: int = 6) -> Path:
    """Write a sheet of the first `n` scenes of any `Source` to `out_path` (.png, .jpg), and return the path.

    Boxes carry one colour per class, thin where the object is difficult; the class pictures of a scene stand
    below it in frames of the same colours.
    """
    count = min(n, len(source))
    if count < 1:
        raise DataError("preview: there is nothing to show; ask for at least one scene")
    cells = [_cell(source, k) for k in range(count)]
    columns = min(count, 3 if count > 4 else 2)
    rows = [cells[k : k + columns] for k in range(0, count, columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    width = columns * (_WIDTH + _GAP) + _GAP
    sheet = Image.new("RGB", (width, sum(heights) + _GAP * (len(rows) + 1)), (18, 18, 20))
    y = _GAP
    for row, height in zip(rows, heights, strict=True):
        for k, cell in enumerate(row):
            sheet.paste(cell, (_GAP + k * (_WIDTH + _GAP), y))
        y += height + _GAP
    path = Path(out_path)
    formats = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
    if path.suffix.lower() not in formats:
        raise DataError(f"preview: {path} must end in .png or .jpg")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, formats[path.suffix.lower()], quality=88, optimize=True)
    return path
