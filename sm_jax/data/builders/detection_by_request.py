"""TFDS builder: a detection-by-request data set as ArrayRecord files, built and read without TensorFlow.

The splits of the data set keep their names; the class pictures are one more split, `CLASSES`, whose examples
hold one box around the whole picture. Boxes are stored in TFDS's convention (ymin, xmin, ymax, xmax as shares
of the picture); the label of an object is a number of the data set's own class list. `listed` are the classes
of which every object is annotated, where that is not so of all of them (`exhaustive`).
"""

import io
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from sm_jax.data.sources.base import Source

CLASSES = "classes"


class DetectionByRequest(tfds.core.GeneratorBasedBuilder):
    """Builds from sources that share `class_names`.

    Args:
      sources: by split name; labels index the source's own class names.
      class_names: of the whole data set.
      **kwargs: of `tfds.core.GeneratorBasedBuilder`, such as `data_dir`.
    """

    VERSION = tfds.core.Version("1.1.0")

    def __init__(self, *, sources: dict[str, Source], class_names: list[str], **kwargs):
        self._sources = sources
        self._class_names = class_names
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        objects = {
            "bbox": tfds.features.BBoxFeature(),
            "label": tfds.features.ClassLabel(names=self._class_names),
            "difficult": np.bool_,
        }
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "image_id": tfds.features.Text(),
                "objects": tfds.features.Sequence(objects),
                "exhaustive": np.bool_,
                "listed": tfds.features.Sequence(tfds.features.ClassLabel(names=self._class_names)),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # nothing is downloaded
        return {split: self._scenes(split) for split in self._sources} | {CLASSES: self._class_pictures()}

    def _generate_examples(self, split: str) -> Iterator:
        return self._scenes(split)

    def _scenes(self, split: str) -> Iterator:
        source = self._sources[split]
        index_of = {name: label for label, name in enumerate(self._class_names)}
        for index in range(len(source)):
            entry = source.annotation(index)
            image = source.image(index)
            size = np.array([image.shape[1], image.shape[0]] * 2, np.float64)
            listed = source.listed(index) if hasattr(source, "listed") else None
            yield (
                index,
                {
                    "image": _encoded(image, source, index),
                    "image_id": entry["image_id"],
                    "objects": [
                        {
                            "bbox": _bbox(box / size),
                            "label": index_of[source.class_names[label]],
                            "difficult": bool(difficult),
                        }
                        for box, label, difficult in zip(
                            entry["boxes"], entry["labels"], entry["difficult"], strict=True
                        )
                    ],
                    "exhaustive": listed is None,
                    "listed": [
                        index_of[source.class_names[label]] for label in ([] if listed is None else listed)
                    ],
                },
            )

    def _class_pictures(self) -> Iterator:
        done: set[str] = set()
        for source in self._sources.values():
            for label, name in enumerate(source.class_names):
                if name in done:
                    continue
                done.add(name)
                whole = {"bbox": _bbox(np.array([0.0, 0.0, 1.0, 1.0])), "difficult": False}
                yield (
                    name,
                    {
                        "image": _png(source.query(label)),
                        "image_id": name,
                        "objects": [whole | {"label": self._class_names.index(name)}],
                        "exhaustive": True,
                        "listed": [],
                    },
                )


def _encoded(image: np.ndarray, source: Source, index: int) -> bytes:
    """The picture's own file where the source hands it out (JPEG stays small), else PNG."""
    own = source.image_bytes(index) if hasattr(source, "image_bytes") else None
    return _png(image) if own is None else own


def _png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()  # encoded here: TFDS would need TensorFlow for it
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def _bbox(shares: np.ndarray) -> tfds.features.BBox:
    left, top, right, bottom = np.clip(shares, 0.0, 1.0).tolist()
    return tfds.features.BBox(ymin=top, xmin=left, ymax=bottom, xmax=right)
