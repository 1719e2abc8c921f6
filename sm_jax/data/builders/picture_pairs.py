"""TFDS builder: pairs of pictures with key-points, masks or both as ArrayRecord files, without TensorFlow.

An example holds both pictures as the files they are. Key-points are xy pixels with pixel edges on integers,
NaN where invisible, stored as float64 without loss; masks are PNG. Examples keep their order.
"""

import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

SIDES = ("source", "target")


class PicturePairs(tfds.core.GeneratorBasedBuilder):
    """Builds from functions, by split name, that yield examples (see `example`).

    Args:
      splits: the functions.
      **kwargs: of `tfds.core.GeneratorBasedBuilder`, such as `data_dir`.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, splits: Mapping[str, Callable[[], Iterator[dict[str, Any]]]], **kwargs):
        self._splits = splits
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features: dict[str, Any] = {"class_name": tfds.features.Text(), "index": np.int64}
        for side in SIDES:
            features |= {
                side: tfds.features.Image(shape=(None, None, 3)),
                f"{side}_name": tfds.features.Text(),
                f"{side}_keypoints": tfds.features.Tensor(
                    shape=(None, 2), dtype=np.float64, encoding=tfds.features.Encoding.BYTES
                ),
                f"{side}_masks": tfds.features.Sequence(
                    {"name": tfds.features.Text(), "png": tfds.features.Text()}
                ),
            }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(split) for split in self._splits}

    def _generate_examples(self, split: str) -> Iterator:
        yield from enumerate(self._splits[split]())


def example(
    index: int, class_name: str, names: tuple, pictures: tuple, keypoints: tuple, masks: tuple = ({}, {})
) -> dict[str, Any]:
    """One example.

    Args:
      index: its place in the whole list.
      class_name: what both pictures show.
      names, pictures: file names and contents of source and target.
      keypoints: float64 "k 2" of each.
      masks: name -> bool "h w" of each.
    """
    found: dict[str, Any] = {"class_name": class_name, "index": index}
    for side, name, content, xy, named in zip(SIDES, names, pictures, keypoints, masks, strict=True):
        found |= {
            side: content,
            f"{side}_name": name,
            f"{side}_keypoints": np.asarray(xy, np.float64).reshape(-1, 2),
            f"{side}_masks": [{"name": part, "png": _png(mask)} for part, mask in named.items()],
        }
    return found


def _png(mask: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0))).save(stream, "PNG")
    return stream.getvalue()
