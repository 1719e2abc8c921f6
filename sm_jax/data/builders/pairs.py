"""Pairs of pictures as TFDS folders of ArrayRecord files: PF-PASCAL, PF-WILLOW, own key-point pairs
(`build_pairs`), Caltech-101 and PASCAL-Parts (`build_mask_pairs`).

What is built is one folder to copy, and reads as the same records as the data set itself. Since those name
their pictures by path, the pictures are laid out in the cache folder, each once.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sm_jax import platform
from sm_jax.data import images
from sm_jax.data.builders import open_folder
from sm_jax.data.sources.files import outside
from sm_jax.data.sources.mask_pairs import MaskPair
from sm_jax.data.sources.pair_records import KeypointPair, PairList
from sm_jax.errors import ConfigError, DataError

ABOUT = "pairs.json"
"""The file in a built folder that says what it is."""
KEYPOINTS, MASKS = "key-points", "masks"


def build_pairs(pairs: PairList, folder: str | Path) -> Path:
    """Builds key-point pairs into `folder`, which must not lie in the data set; returns the built folder.

    Args:
      pairs: of `sources.keypoint_pairs.open_pairs`, usually with every split.
      folder: where to; what is returned lies in it, and `open_pairs` opens it.

    Raises:
      ConfigError: the folder lies inside the data set, or a split has a name that no file can have.
      ImageError: a picture that cannot be read.
    """
    splits: dict[str, list[tuple[int, KeypointPair]]] = {}
    for index, pair in enumerate(pairs):
        splits.setdefault(pair.split, []).append((index, pair))
    about = {"holds": KEYPOINTS, "kind": pairs.kind, "notes": list(pairs.notes)}
    return _build(splits, outside(folder, pairs.root), about)


def build_mask_pairs(pairs: Sequence[MaskPair], root: str | Path, folder: str | Path) -> Path:
    """As `build_pairs`, of pairs with masks (`sources.mask_pairs`), which are all in the split "test".

    Args:
      pairs: the pairs.
      root: the folder of the data set.
      folder: where to; `open_mask_pairs` opens what is returned.
    """
    return _build({"test": list(enumerate(pairs))}, outside(folder, root), {"holds": MASKS})


def holds_masks(folder: str | Path) -> bool:
    """Whether `folder` was built by `build_mask_pairs`."""
    return (Path(folder) / ABOUT).is_file() and _read_about(folder)["holds"] == MASKS


def open_pairs(folder: str | Path) -> PairList:
    """The list of pairs that `build_pairs` was given, with all splits.

    Raises:
      DataError: not such a folder, or the cache folder cannot be written.
    """
    about = _about(folder, KEYPOINTS)
    found = []
    for split, example in _examples(folder):
        ends = [_laid_out(example, side) for side in ("source", "target")]
        xy = [_keypoints(example, side) for side in ("source", "target")]
        found.append((int(example["index"]), KeypointPair(*ends, _text(example["class_name"]), *xy, split)))
    found.sort(key=lambda one: one[0])
    return PairList(about["kind"], Path(folder), tuple(pair for _, pair in found), tuple(about["notes"]))


def open_mask_pairs(folder: str | Path) -> list[MaskPair]:
    """The pairs that `build_mask_pairs` was given; raises DataError like `open_pairs`."""
    _about(folder, MASKS)
    found = []
    for _, example in _examples(folder):
        ends = [_laid_out(example, side) for side in ("source", "target")]
        masks = [_masks(example[f"{side}_masks"]) for side in ("source", "target")]
        xy = [_keypoints(example, side) for side in ("source", "target")]
        pair = MaskPair(*ends, _text(example["class_name"]), *masks, *xy)
        found.append((int(example["index"]), pair))
    return [pair for _, pair in sorted(found, key=lambda one: one[0])]


def _build(splits: dict[str, list[tuple[int, Any]]], target: Path, about: dict[str, Any]) -> Path:
    from sm_jax.data.builders.picture_pairs import PicturePairs, example

    for split in splits:
        if split == "all" or not re.fullmatch(r"[A-Za-z_]\w*", split):
            raise ConfigError(
                f"split {split!r}: cannot be built; call it by letters, digits and _, not 'all'"
            )

    def examples(pairs: Iterable[tuple[int, Any]]):
        for index, pair in pairs:
            ends = pair.source, pair.target
            xy = pair.keypoints_source, pair.keypoints_target
            masks = (pair.source_masks(), pair.target_masks()) if about["holds"] == MASKS else ({}, {})
            contents = tuple(_content(path) for path in ends)
            yield example(index, pair.class_name, tuple(path.name for path in ends), contents, xy, masks)

    makers = {split: lambda pairs=pairs: examples(pairs) for split, pairs in splits.items()}
    builder = PicturePairs(splits=makers, data_dir=str(target), file_format="array_record")
    builder.download_and_prepare()
    folder = Path(builder.data_dir)
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n", "utf-8")
    return folder


def _content(path: Path) -> bytes:
    images.read_image(path, orient=False)  # a damaged picture is not built in
    return path.read_bytes()


def _about(folder: str | Path, holds: str) -> dict[str, Any]:
    about = _read_about(folder)
    if about["holds"] != holds:
        raise DataError(f"{folder}: holds pairs with {about['holds']}, not with {holds}")
    return about


def _read_about(folder: str | Path) -> dict[str, Any]:
    path = Path(folder) / ABOUT
    try:
        about = json.loads(path.read_text("utf-8"))
        return {"holds": about["holds"], "kind": about.get("kind", ""), "notes": about.get("notes", ())}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DataError(
            f"{folder}: not pairs built by sm_jax.data.builders.pairs ({path.name}: {error})"
        ) from error


def _examples(folder: str | Path):
    import tensorflow_datasets as tfds

    builder = open_folder(str(folder))
    raw = {"source": tfds.decode.SkipDecoding(), "target": tfds.decode.SkipDecoding()}
    for split in builder.info.splits:
        for example in builder.as_data_source(split, decoders=raw):
            yield split, example


def _laid_out(example: dict[str, Any], side: str) -> Path:
    """The path of a picture in the cache folder, where it is written if it is not there."""
    content, name = example[side], Path(_text(example[f"{side}_name"])).name
    path = platform.cache_folder() / "pictures" / hashlib.sha256(content).hexdigest()[:32] / name
    if not path.is_file():
        scratch = path.with_name(f"{name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_bytes(content)
            scratch.replace(path)
        except OSError as error:
            raise DataError(
                f"{path}: cannot be written ({error.strerror}); set the environment variable SM_JAX_CACHE "
                "to a folder for built pictures"
            ) from error
    return path


def _keypoints(example: dict[str, Any], side: str) -> np.ndarray:
    return np.array(example[f"{side}_keypoints"], np.float64).reshape(-1, 2)


def _masks(stored: dict[str, list]) -> Any:
    named = {_text(name): png for name, png in zip(stored["name"], stored["png"], strict=True)}
    return lambda: {name: np.asarray(Image.open(io.BytesIO(png))) > 0 for name, png in named.items()}


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
