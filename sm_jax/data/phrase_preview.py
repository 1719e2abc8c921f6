"""Example scenes with phrases, written to a folder: pictures, a sheet, and the JSON one's own data takes."""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sm_jax.data.phrases import ABSENT, STANDARD, PhraseSource
from sm_jax.draw import FAINT, INK, PAPER, colour_of, save
from sm_jax.errors import ConfigError, DataError

SHEET, DOCUMENT = "sheet.png", "phrases.json"
_WIDTH, _GAP, _LINE = 480, 12, 20  # of a scene on the sheet, between scenes, of a line of text
_SHOWN = 8  # phrases written below a scene


def write(source: PhraseSource, folder: str | Path, *, count: int = 6) -> Path:
    """Write the first `count` scenes of any `PhraseSource` to `folder`, and return the sheet's path.

    The folder, made if need be, gets `000000.png` ... (the scenes as they are), `phrases.json` (their boxes
    and phrases in the form that `data.source` takes) and `sheet.png` (scenes above their phrases, each in its
    own colour, the boxes that it means framed in it; `sm-jax detect` does not search it among the scenes).
    Files of these names are replaced.

    Raises:
      DataError: nothing to show. ConfigError: a folder that cannot be written.
    """
    count = min(count, len(source))
    if count < 1:
        raise DataError("preview: there is nothing to show; ask for at least one scene")
    folder = Path(folder)
    entries, cells = [], []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            image = source.image(index)
            name = f"{index:06d}.png"
            Image.fromarray(image).save(folder / name)
            entries.append(_entry(source, index, name))
            cells.append(_cell(source, index, image))
        lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
        document = f'{{"images": [\n{lines}\n]}}\n'
        (folder / DOCUMENT).write_text(document, encoding="utf-8", errors="backslashreplace")
        save(_sheet(cells), folder / SHEET)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror or error})") from error
    return folder / SHEET


def _entry(source: PhraseSource, index: int, name: str) -> dict:
    note = source.annotation(index)
    asked = list(zip(note["phrases"], note["matches"], strict=True))
    if ABSENT in source.query_kinds:
        asked += zip(*source.queries(index, ABSENT), strict=True)
    ids = {phrase: np.flatnonzero(row).tolist() for phrase, row in asked}
    return {
        "image": name,
        "boxes": np.asarray(note["boxes"], np.float64).round(2).tolist(),
        "names": list(note["names"]),
        "phrases": [{"text": phrase, "ids": means} for phrase, means in ids.items()],
    }


def _cell(source: PhraseSource, index: int, image: np.ndarray) -> Image.Image:
    """A scene and the phrases about it; the phrases of training come first."""
    asked = []
    for kind in source.query_kinds:
        asked += [(kind, phrase, row) for phrase, row in zip(*source.queries(index, kind), strict=True)]
    asked = asked[:_SHOWN]
    boxes = source.annotation(index)["boxes"]
    scene = Image.fromarray(image)
    scale = _WIDTH / scene.width
    scene = scene.resize((_WIDTH, max(1, round(scene.height * scale))), Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(scene)
    for box in boxes:
        pen.rectangle((box * scale).tolist(), outline=FAINT)
    framed = np.zeros(len(boxes), int)  # frames of several phrases lie inside each other
    for number, (kind, _, row) in enumerate(asked):
        for which in np.flatnonzero(row) if kind == STANDARD else ():
            box = boxes[which] * scale + np.array([1, 1, -1, -1]) * 4 * framed[which]
            framed[which] += 1
            if box[2] - box[0] > 8 and box[3] - box[1] > 8:
                pen.rectangle((box + np.array([-1, -1, 1, 1])).tolist(), outline=PAPER, width=4)
                pen.rectangle(box.tolist(), outline=colour_of(number), width=2)
    cell = Image.new("RGB", (_WIDTH, scene.height + _LINE * max(1, len(asked)) + 8), PAPER)
    cell.paste(scene, (0, 0))
    pen, font = ImageDraw.Draw(cell), ImageFont.load_default(14)
    for number, (kind, phrase, row) in enumerate(asked):
        y = scene.height + 6 + _LINE * number
        pen.rectangle((2, y + 2, 13, y + 13), fill=colour_of(number) if kind == STANDARD else FAINT)
        note = f"{int(row.sum())} of {len(row)}" + ("" if kind == STANDARD else f", {kind}")
        pen.text((20, y - 1), f"{phrase[:60]}  ({note})", font=font, fill=INK)
    return cell


def _sheet(cells: list[Image.Image]) -> Image.Image:
    columns = min(len(cells), 3)
    rows = [cells[k : k + columns] for k in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    size = columns * (_WIDTH + _GAP) + _GAP, sum(heights) + _GAP * (len(rows) + 1)
    sheet, y = Image.new("RGB", size, (225, 225, 225)), _GAP
    for row, height in zip(rows, heights, strict=True):
        for k, cell in enumerate(row):
            sheet.paste(cell, (_GAP + k * (_WIDTH + _GAP), y))
        y += height + _GAP
    return sheet
