"""A source in memory whose pixels say what they are: objects of (label, image, box) on a plain ground."""

import numpy as np

from sm_jax.errors import ImageError

GROUND = 250


class Painted:
    """Images with coloured boxes: channel 0 is 10 + 20 * label, channel 1 is 10 * image, channel 2 the row.

    Args:
      scenes: per image the objects, (label, box) or (label, box, difficult).
      broken: images, or "query <label>", that cannot be read.
      listed: per image the labels annotated in full, None for all.
    """

    def __init__(self, scenes, *, num_classes=3, size=(120, 160), broken=(), listed=None, query=(40, 50)):
        self.scenes, self.num_classes, self.size, self.broken = scenes, num_classes, size, set(broken)
        self.class_names = [f"class {label}" for label in range(num_classes)]
        self._listed, self._query = listed, query
        self.decoded = 0

    def __len__(self):
        return len(self.scenes)

    def annotation(self, index):
        objects = [(*entry, False)[:3] for entry in self.scenes[index]]
        return {
            "image_id": f"picture {index}",
            "size": self.size,
            "boxes": np.array([box for _, box, _ in objects], np.float32).reshape(-1, 4),
            "labels": np.array([label for label, _, _ in objects], np.int32),
            "difficult": np.array([hard for _, _, hard in objects], bool),
        }

    def listed(self, index):
        return None if self._listed is None else self._listed[index]

    def image(self, index):
        self.decoded += 1
        if index in self.broken:
            raise ImageError(f"{index}.jpg: damaged")
        image = np.full((*self.size, 3), GROUND, np.uint8)
        for row, entry in enumerate(self.scenes[index]):
            left, top, right, bottom = entry[1]
            image[top:bottom, left:right] = (10 + 20 * entry[0], 10 * index, row)
        return image

    def query_size(self, label):
        if f"query {label}" in self.broken:
            raise ImageError(f"class {label}.jpg: damaged")
        return self._query

    def query(self, label):
        return np.full((*self.query_size(label), 3), (10 + 20 * label, 240, 0), np.uint8)


def label_of(pixel) -> int:
    return (int(pixel[0]) - 10) // 20


# Class 0 on images 0, 1 and 2, class 1 on 1 and 3, class 2 on image 4 only (two objects).
SCENES = [
    [(0, (10, 10, 60, 60)), (0, (90, 40, 150, 110))],
    [(0, (100, 60, 150, 100)), (1, (20, 20, 60, 70))],
    [(0, (40, 30, 100, 80))],
    [(1, (5, 5, 50, 50)), (1, (60, 60, 75, 75)), (0, (100, 10, 140, 60), True)],
    [(2, (0, 0, 60, 60)), (2, (90, 60, 150, 110))],
]
