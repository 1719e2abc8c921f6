"""What `sm-jax match` does."""

import contextlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import sm_jax
from sm_jax import api
from sm_jax.correspondence import Correspondence, write_flow
from sm_jax.detect_files import output_folder, write_json
from sm_jax.errors import ConfigError, SmJaxError

SHOWN = 5  # regions printed


def run(arguments) -> int:
    """Match by the parsed arguments of `sm-jax match`; returns the exit status."""
    stdout = sys.stdout
    if not arguments.json:
        return _match(arguments, lambda line: print(line, flush=True))[1]

    def answer(document):
        print(json.dumps(document, indent=2, allow_nan=False), file=stdout, flush=True)

    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout carries the document and nothing else
            document, status = _match(arguments, lambda line: None)
    except SmJaxError as error:
        answer({"sm_jax": sm_jax.__version__, "error": str(error)})
        raise
    answer(document)
    return status


def _match(arguments, say) -> tuple[dict[str, Any], int]:
    """(document, exit status)."""
    points = parse_points(arguments.points or [])
    for what, path in (("--source", arguments.source), ("--target", arguments.target)):
        if not Path(path).is_file():
            raise ConfigError(f"{what}: {path} is no file; give one picture")
    out = output_folder(arguments.out)
    given = {"features": arguments.features, "method": arguments.method, "proposals": arguments.proposals}
    options = {name: value for name, value in given.items() if value is not None}
    matcher = api.load("scnet", weights=arguments.weights, **options)
    for note in matcher.notes:
        print(note, file=sys.stderr)
    found = matcher.match(arguments.source, arguments.target, points, smooth=arguments.smooth)
    notes = _notes(found)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    for line in _lines(found):
        say(line)
    document = {
        "sm_jax": sm_jax.__version__,
        "model": "scnet",
        "weights": None if arguments.weights is None else str(arguments.weights),
        "features": arguments.features,
        "source": str(arguments.source),
        "target": str(arguments.target),
        **found.to_dict(),
        "notes": notes,
        "files": {},
        "errors": [],
    }
    if out is not None:
        _write(found, document, out)
    return document, 1 if document["errors"] else 0


def parse_points(texts: list[str]) -> list[tuple[float, float]]:
    """Points from "x,y" each. Raises ConfigError for anything else."""
    found = []
    for text in texts:
        try:
            point = tuple(float(part) for part in text.split(","))
        except ValueError:
            point = ()
        if len(point) != 2 or not all(map(math.isfinite, point)):
            raise ConfigError(
                f"--points: {text.strip()!r} is no point; give x,y in pixels of the source, such as 40,62.5"
            )
        found.append(point)
    return found


def _notes(found: Correspondence) -> list[str]:
    """What a person should know about the result."""
    height, width = found.source_size
    notes = []
    if not len(found):
        notes.append("no region of the source resembles one of the target; nothing is matched")
    for (x, y), valid in zip(found.points, found.point_valid, strict=True):
        if not (0 <= x <= width and 0 <= y <= height):
            notes.append(f"the point {x:g},{y:g} lies outside the source, which is {width}x{height}")
        elif not valid and len(found):
            notes.append(f"no matched region covers the point {x:g},{y:g}")
    return notes


def _lines(found: Correspondence):
    """The result as text."""
    covered = 100 * found.valid.mean()
    yield f"{len(found)} regions matched by {found.method}; {covered:.0f} % of the source has a flow"
    for index in range(min(SHOWN, len(found))):
        a, b = (
            " ".join(f"{v:.0f}" for v in boxes[index]) for boxes in (found.source_boxes, found.target_boxes)
        )
        yield f"  {found.confidence[index]:.3g}  source {a}  target {b}"
    for index, (x, y) in enumerate(found.points):
        to_x, to_y = found.target_points[index]
        where = f"{to_x:.1f},{to_y:.1f}  confidence {found.point_confidence[index]:.3g}"
        yield f"point {x:g},{y:g} -> {where if found.point_valid[index] else 'not found'}"


def _write(found: Correspondence, document: dict[str, Any], out: Path) -> None:
    """The files of `--out`; one that cannot be written is an error of the document, and on stderr."""
    writers = {
        "flow": ("flow.npz", lambda path: write_flow(found, path)),
        "warped": ("warped.png", lambda path: found.warp().save(path)),
        "matches": ("matches.png", lambda path: found.draw().save(path)),
    }

    def fail(error):
        document["errors"].append(str(error))
        print(f"error: {error}", file=sys.stderr)

    taken = {Path(document[side]).resolve() for side in ("source", "target")}
    for key, (name, write) in writers.items():
        path = out / name
        try:
            if path.resolve() in taken:
                raise ConfigError(f"--out: {path} is one of the pictures; give another folder")
            write(path)
            document["files"][key] = str(path)
        except OSError as error:
            fail(ConfigError(f"--out: {path} cannot be written ({error.strerror or error})"))
        except ConfigError as error:
            fail(error)
    try:
        write_json(document, out / "matches.json")
        print(f"written to {out}", file=sys.stderr)
    except ConfigError as error:
        fail(error)
