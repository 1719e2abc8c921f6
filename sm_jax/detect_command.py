"""What `sm-jax detect` does."""

import contextlib
import json
import math
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import sm_jax
from sm_jax import api
from sm_jax.data import images as pictures
from sm_jax.detect_files import Overlays, files, output_folder, write_json
from sm_jax.detect_progress import Progress
from sm_jax.errors import ConfigError, DataError, ImageError, SmJaxError
from sm_jax.requests import RequestBank

OPTIONS = {
    "os2d": ("scales", "rotations", "mirrored", "across_labels", "transform", "iou"),
    "crossmodal": ("top_k",),
    "ssm": ("iou", "postprocess", "tiles"),
}
"""Options of `sm-jax detect` that not every system has."""

OF_ENCODING = ("label", "rotations", "mirrored", "save_bank")
"""Options that a bank of encoded queries leaves no choice of."""


def run(arguments) -> int:
    """Search by the parsed arguments of `sm-jax detect`; returns the exit status."""
    stdout = sys.stdout
    if not arguments.json:
        return _search(arguments, _say)[1]

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


def _say(line: str) -> None:
    """Print a line; letters that the encoding of stdout does not have are escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def _search(arguments, say) -> tuple[dict[str, Any], int]:
    """(document, exit status)."""
    model = _model(arguments)
    _check_numbers(arguments)
    images = files(arguments.image, what="--image")
    bank, queries, notes = None, [], []
    if arguments.bank is not None:
        bank = RequestBank.load(arguments.bank)
    else:
        queries = _phrases(arguments) if model == "crossmodal" else files(arguments.query, what="--query")
    labels = _labels(arguments.label, len(queries), phrases=model == "crossmodal")
    out = output_folder(arguments.out)
    weights = api.SYSTEMS[model] if arguments.weights is None else arguments.weights
    options = {"transform": arguments.transform or ""} if model == "os2d" else {}
    detector = api.load(model, weights=weights, **options)
    if bank is None:
        bank, notes = _encoded(detector, queries, labels, arguments)
    if arguments.save_bank is not None:
        bank.save(arguments.save_bank)
        print(f"queries kept in {arguments.save_bank}", file=sys.stderr)
    for note in [*detector.notes, *(f"note: {line}" for line in notes)]:
        print(note, file=sys.stderr)
    threshold = detector.threshold if arguments.threshold is None else arguments.threshold
    search = _search_phrases if model == "crossmodal" else _search_pictures
    overlays = Overlays(out, taken=[*images, *(Path(request.source) for request in bank if request.source)])
    entries, errors = [], []

    def fail(path, error):
        errors.append({"image": path and str(path), "error": str(error)})
        print(f"error: {error}", file=sys.stderr)

    with Progress(len(images)) as progress:
        for path, found in search(detector, bank, images, threshold, arguments, progress):
            if isinstance(found, DataError):
                fail(path, found)
                continue
            entry = {"image": str(path), "overlay": None} | found.to_dict()
            entries.append(entry)
            if out is not None:
                try:
                    entry["overlay"] = str(overlays.save(found.draw(path, queries=bank), path))
                except (ConfigError, ImageError) as error:  # what was found is not lost
                    fail(path, error)
            for line in _lines(entry):
                say(line)
    if hint := _hint(entries, threshold):
        print(hint, file=sys.stderr)
    document = {
        "sm_jax": sm_jax.__version__,
        "model": model,
        "weights": str(weights),
        "threshold": threshold,
        "queries": [
            ({"text": request.text} if request.text else {"picture": request.source})
            | {"label": request.label}
            for request in bank
        ],
        "notes": notes,
        "images": entries,
        "errors": errors,
    }
    if out is not None:
        try:
            write_json(document, out / "detections.json")
            print(f"written to {out}", file=sys.stderr)
        except ConfigError as error:
            fail(None, error)
    return document, 1 if errors else 0


def _model(arguments) -> str:
    """The system that the options ask for. Raises ConfigError for options that do not go together."""
    phrases = arguments.text is not None or arguments.text_file is not None
    given = [f"--{name}" for name in ("query", "bank") if getattr(arguments, name) is not None]
    if phrases and given:
        raise ConfigError(
            f"--text and {given[0]}: give one of them; crossmodal takes phrases (--text), os2d and ssm take "
            "pictures (--query)"
        )
    if len(given) > 1:
        raise ConfigError("--query and --bank: give one of them")
    if not phrases and not given:
        raise ConfigError("nothing to look for: give pictures (--query) or phrases (--text)")
    model = arguments.model or ("crossmodal" if phrases else "os2d")
    if phrases != (model == "crossmodal"):
        takes = "pictures (--query)" if phrases else "phrases (--text)"
        owner = "--text is for crossmodal" if phrases else f"{given[0]} is for os2d and ssm"
        raise ConfigError(f"--model {model} takes {takes}; {owner}")
    _check_options(arguments, model)
    return model


def _check_options(arguments, model: str) -> None:
    """Raises ConfigError for an option that the system does not have, or that has nothing to act on."""
    for name in dict.fromkeys(name for names in OPTIONS.values() for name in names):
        if name not in OPTIONS[model] and _is_given(arguments, name):
            owners = " and ".join(system for system, names in OPTIONS.items() if name in names)
            raise ConfigError(f"--{name.replace('_', '-')}: an option of {owners}, not of {model}")
    if arguments.bank is not None:
        for name in OF_ENCODING:
            if _is_given(arguments, name):
                raise ConfigError(f"--{name.replace('_', '-')}: the queries of --bank are encoded already")
    if arguments.save_bank is not None and not arguments.save_bank.endswith(".safetensors"):
        raise ConfigError(f"--save-bank: {arguments.save_bank} must end with .safetensors")
    if arguments.save_bank is not None and model == "crossmodal":
        raise ConfigError("--save-bank: phrases are encoded in no time; it is for pictures (--query)")


def _is_given(arguments, name: str) -> bool:
    value = getattr(arguments, name)
    return value is not None and value is not False


def _check_numbers(arguments) -> None:
    """`ConfigError` that names the option, before anything is read."""
    for option, value in (("--max", arguments.max), ("--top-k", arguments.top_k)):
        if value is not None and value < 1:
            raise ConfigError(f"{option}: must be 1 or more, not {value}")
    if arguments.threshold is not None and not math.isfinite(arguments.threshold):
        raise ConfigError(f"--threshold: must be a finite number, not {arguments.threshold}")


def _phrases(arguments) -> list[str]:
    """Those of --text, then one for each line of --text-file that is not blank."""
    phrases = _readable(arguments.text or [], "--text")
    if arguments.text_file is not None:
        path = arguments.text_file
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except OSError as error:
            raise ConfigError(f"--text-file: {path} cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise ConfigError(f"--text-file: {path} is not text in UTF-8, one phrase a line") from error
        found = [line.strip() for line in text.splitlines() if line.strip()]
        if not found:
            raise ConfigError(f"--text-file: there is no phrase in {path}")
        phrases += found
    return phrases


def _readable(texts: list[str], option: str) -> list[str]:
    """The texts of a command line; bytes that are no text came as lone surrogates."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{option}: {ascii(text)[:80]} is not text in UTF-8") from None
    return list(texts)


def _labels(labels: list[str] | None, count: int, *, phrases: bool) -> list[str] | None:
    _readable(labels or [], "--label")
    if labels is not None and len(labels) not in (1, count):
        one, many = ("phrase", "phrases") if phrases else ("query", "queries")
        raise ConfigError(
            f"--label: {len(labels)} names for {count} {one if count == 1 else many}; give one for each, or "
            "one for all"
        )
    return labels * count if labels is not None and len(labels) == 1 else labels


def _encoded(detector, queries, labels, arguments) -> tuple[RequestBank, list[str]]:
    """The requests, and what there is to say about them."""
    options = _given(arguments, "rotations", "mirrored")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        bank = detector.encode(queries, labels=labels, **options)
    return bank, list(dict.fromkeys(str(warning.message) for warning in caught))


def _given(arguments, *names) -> dict[str, Any]:
    """The options that were given, by name."""
    return {name: getattr(arguments, name) for name in names if _is_given(arguments, name)}


def _search_pictures(detector, bank, images, threshold, arguments, progress) -> Iterator[tuple]:
    """(path, what was found or a DataError) of each image."""
    names = ("scales", "iou", "across_labels", "postprocess", "tiles")  # only those of the system are given
    options = _given(arguments, *names) | {"max_detections": arguments.max}
    for path in images:
        progress.begin(path)
        try:
            (found,) = detector.detect(path, bank, threshold=threshold, progress=progress.step, **options)
        except DataError as error:
            found = error
        yield path, found
        progress.end()


def _search_phrases(detector, bank, images, threshold, arguments, progress) -> Iterator[tuple]:
    """As `_search_pictures`, with as many images at once as the detector takes."""
    options = _given(arguments, "top_k") | {"max_detections": arguments.max, "threshold": threshold}
    for begin in range(0, len(images), detector.batch):
        group, read = images[begin : begin + detector.batch], []
        for path in group:
            progress.begin(path)
            try:
                read.append(pictures.as_image(path, name=str(path)))
            except ImageError as error:
                read.append(error)
        good = [image for image in read if not isinstance(image, ImageError)]
        found = iter(detector.detect(good, bank, **options))
        for path, image in zip(group, read, strict=True):
            yield path, image if isinstance(image, ImageError) else next(found)
            progress.end()


def _lines(entry: Mapping[str, Any]) -> Iterator[str]:
    """What was found in one image, as text."""
    found, best = entry["detections"], _best([entry])
    none = "" if found or best is None else f" (best score {best:.3f})"
    if entry.get("proposals") == 0:
        none = " (no objects at all)"
    yield f"{entry['image']}: {len(found)} found{none}"
    for one in found:
        x1, y1, x2, y2 = one["box"]
        line = f"  {one['score']:.3f}  {one['label']}  box {x1:.0f} {y1:.0f} {x2:.0f} {y2:.0f}"
        if "conf" in one:
            line += f"  conf {one['conf']:.3f}  align {one['align']:.3f}"
        if "angle" in one:
            line += f"  angle {one['angle']:.0f}" + ("  mirrored" if one["mirrored"] else "")
            line += f"  scale {one['scale']:.2f}"
        yield line


def _best(entries: Iterable[Mapping[str, Any]]) -> float | None:
    """The highest score of any label in any of the images."""
    scores = [score for entry in entries for score in entry["best_scores"].values() if score is not None]
    return max(scores, default=None)


def _hint(entries, threshold: float) -> str:
    """A line for who found nothing at all, "" for others."""
    best = _best(entries)
    if best is None or best > threshold or any(entry["detections"] for entry in entries):
        return ""
    lower = math.ceil(round(best * 20, 6)) / 20 - 0.05
    return f"best score {best:.3f} is below the threshold {threshold:g}: --threshold {round(lower, 2):g}"
