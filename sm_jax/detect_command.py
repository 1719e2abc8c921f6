"""What `sm-jax detect` does."""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sm_jax
from sm_jax import api
from sm_jax.data import images as pictures
from sm_jax.detections import Detections
from sm_jax.errors import ConfigError, ImageError, SmJaxError


def run(arguments) -> int:
    """Search by the parsed arguments of `sm-jax detect`; returns the exit status."""
    stdout = sys.stdout
    if not arguments.json:
        return _search(arguments, lambda line: print(line, flush=True))[1]

    def answer(document):
        print(json.dumps(document, indent=2, allow_nan=False), file=stdout, flush=True)

    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout carries the document and nothing else
            document, status = _search(arguments, lambda line: None)
    except SmJaxError as error:
        answer({"sm_jax": sm_jax.__version__, "error": str(error), "images": []})
        raise
    answer(document)
    return status


def files(paths: list[str], *, what: str) -> list[Path]:
    """The pictures that `paths` name; a folder stands for the pictures in it (not below), sorted by name.

    Raises:
      ConfigError: a folder without pictures, or one that cannot be read.
    """
    found = []
    for path in map(Path, paths):
        try:
            inside = _pictures_in(path) if path.is_dir() else [path]
        except OSError as error:
            raise ConfigError(f"{what}: {path} cannot be read ({error.strerror})") from error
        if not inside:
            raise ConfigError(f"{what}: {path} is a folder without pictures")
        found.extend(inside)
    return found


def _pictures_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in pictures.SUFFIXES and p.is_file())


def _search(arguments, say) -> tuple[dict[str, Any], int]:
    """(document, exit status)."""
    images, queries = files(arguments.image, what="--image"), files(arguments.query, what="--query")
    labels = arguments.label
    if labels is not None and len(labels) not in (1, len(queries)):
        raise ConfigError(
            f"--label: {len(labels)} names for {len(queries)} queries; give one for each, or one for all"
        )
    if labels is not None and len(labels) == 1:
        labels = labels * len(queries)
    out = _output_folder(arguments.out)
    detector = api.load("os2d", weights=arguments.weights, transform=arguments.transform)
    for note in detector.notes:
        print(note, file=sys.stderr)
    bank = detector.encode(queries, labels=labels, rotations=arguments.rotations, mirrored=arguments.mirrored)
    threshold = api.THRESHOLD if arguments.threshold is None else arguments.threshold
    entries, errors, taken = [], [], {path.resolve() for path in [*images, *queries]}
    for path in _progress(images):
        try:
            (found,) = detector.detect(
                path,
                bank,
                scales=arguments.scales,
                threshold=threshold,
                max_detections=arguments.max,
                iou=arguments.iou,
                across_labels=arguments.across_labels,
            )
        except ImageError as error:
            errors.append({"image": str(path), "error": str(error)})
            print(f"error: {error}", file=sys.stderr)
            continue
        entry = {"image": str(path), "overlay": None} | found.to_dict()
        if out is not None:
            target = _free_name(out, path, taken)
            _save(found.draw(path, queries=bank), target)
            entry["overlay"] = str(target)
        entries.append(entry)
        for line in _lines(path, found):
            say(line)
    document = {
        "sm_jax": sm_jax.__version__,
        "weights": str(arguments.weights),
        "threshold": threshold,
        "queries": [{"picture": request.source, "label": request.label} for request in bank],
        "images": entries,
        "errors": errors,
    }
    if out is not None:
        _write(document, out / "detections.json")
        print(f"written to {out}", file=sys.stderr)
    return document, 1 if errors else 0


def _lines(path: Path, found: Detections) -> Iterator[str]:
    yield f"{path}: {len(found)} found"
    for i in range(len(found)):
        x1, y1, x2, y2 = found.boxes[i]
        turned = f"  angle {found.angles[i]:.0f}" + ("  mirrored" if found.mirrored[i] else "")
        box = f"box {x1:.0f} {y1:.0f} {x2:.0f} {y2:.0f}"
        yield f"  {found.scores[i]:.3f}  {found.labels[i]}  {box}{turned}  scale {found.scales[i]:.2f}"


def _output_folder(out: str | None) -> Path | None:
    if out is None:
        return None
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be made ({error.strerror})") from error
    return Path(out)


def _save(picture, target: Path) -> None:
    try:
        picture.save(target, **({"quality": 92} if target.suffix == ".jpg" else {}))
    except OSError as error:
        raise ConfigError(f"--out: {target} cannot be written ({error.strerror or error})") from error


def _write(document: dict[str, Any], target: Path) -> None:
    try:
        target.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out: {target} cannot be written ({error.strerror})") from error


def _free_name(folder: Path, image: Path, taken: set[Path]) -> Path:
    """A name for the overlay of `image` that is no input and no output of this run yet."""
    suffix = ".png" if image.suffix.lower() == ".png" else ".jpg"
    number = 1
    while True:
        target = folder / f"{image.stem}-found{f'-{number}' if number > 1 else ''}{suffix}"
        if target.resolve() not in taken:
            taken.add(target.resolve())
            return target
        number += 1


def _progress(images: list[Path]) -> Iterator[Path]:
    """The images, with a bar, rate and time left on stderr where that is a terminal and they are several."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if len(images) < 2 or not console.is_terminal:
        yield from images
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("searching", total=len(images))
        for image in images:
            bar.update(task, description=image.name)
            yield image
            bar.advance(task)
