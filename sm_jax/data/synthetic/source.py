"""`ShelvesSource`: generated shelf scenes as a random-access data source."""

import hashlib
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sm_jax.data.synthetic import artwork, cache, layout, paint
from sm_jax.data.synthetic.catalogue import Identity, catalogue, class_name
from sm_jax.errors import ConfigError
from sm_jax.platform import cache_folder

# Part of the cache key: raise it with any change to what is drawn or how random numbers are consumed.
FORMAT = 1
DEFAULT_CLASSES = {"train": 3000, "val": 400, "test": 600, "seen": 3000}
SPLITS = (*artwork.SPLITS, "seen")

_ORDER, _LAYOUT, _PIXELS, _QUERY = 2, 3, 4, 5  # random streams; the catalogue has stream 1


class ShelvesSource:
    """Scenes of shelves and free layouts made of real marks, photographs and type, with exact boxes.

    Scene i depends on (options, seed, split, i) alone, and is the same in every process. Classes, marks and
    photographs of the splits are disjoint for every seed; only "seen" has those of "train", class for class,
    in scenes of its own: for measuring what a model does with classes it was trained on. Annotations come
    from geometry in milliseconds; pictures are rendered on demand and kept as files under `cache_dir`.
    Picklable; NumPy and Pillow only.

    Args:
      split: "train", "val", "test" or "seen".
      seed: another seed is another data set.
      num_scenes: length of the source.
      image_size: (height, width) of every scene in pixels.
      num_classes: classes of this split; default 3000, 400 or 600; of "seen" as of "train".
      object_size: range of the square root of an object's area in pixels; each scene draws one scale from it
        (log-uniform).
      classes_per_scene: range of the number of distinct classes of a scene.
      objects: range of the number of objects of a free layout (a shelf is filled).
      rotation: largest in-plane rotation in degrees, of the camera (shelf) or of each object (free layout).
      shelf_share: share of shelf scenes; the others are free layouts.
      perspective: strength of the perspective; 0 is a frontal, flat view.
      cache_dir: folder of the finished pictures; None is the user's cache folder.

    Raises:
      ConfigError: an option that makes no sense. DataError: an artwork package is missing.
    """

    def __init__(
        self,
        split: str,
        *,
        seed: int = 0,
        num_scenes: int = 1000,
        image_size: tuple[int, int] = (480, 640),
        num_classes: int | None = None,
        object_size: tuple[float, float] = (90.0, 200.0),
        classes_per_scene: tuple[int, int] = (3, 8),
        objects: tuple[int, int] = (4, 14),
        rotation: float = 0.0,
        shelf_share: float = 0.6,
        perspective: float = 1.0,
        cache_dir: str | Path | None = None,
    ):
        if split not in SPLITS:
            raise ConfigError(f"shelves: no split '{split}'; choose one of {', '.join(SPLITS)}")
        self.split = split
        self._artwork = "train" if split == "seen" else split  # the split that classes and photographs are of
        self.num_classes = DEFAULT_CLASSES[split] if num_classes is None else int(num_classes)
        self._seed, self._length = int(seed), int(num_scenes)
        self._options = layout.Options(
            image_size=(int(image_size[0]), int(image_size[1])),
            object_size=(float(object_size[0]), float(object_size[1])),
            classes=(int(classes_per_scene[0]), int(classes_per_scene[1])),
            objects=(int(objects[0]), int(objects[1])),
            rotation=float(rotation),
            shelf_share=float(shelf_share),
            perspective=float(perspective),
        )
        _check(self._options, self._seed, self._length, self.num_classes)
        self._identities, self._families = catalogue(
            self._artwork, seed=self._seed, num_classes=self.num_classes
        )
        self._order = self._rng(_ORDER).permutation(len(self._families))
        self.class_names = [class_name(identity, k) for k, identity in enumerate(self._identities)]
        root = cache_folder() / "shelves" if cache_dir is None else Path(cache_dir).expanduser()
        self._folder = root / self._fingerprint() / split

    def __len__(self) -> int:
        return self._length

    def annotation(self, index: int) -> dict[str, Any]:
        """What is in scene `index`; needs no pixels.

        Returns: `image_id` str; `size` (height, width); `boxes` f32 (n, 4) xyxy pixels: bounds of an object's
        outline before anything hides it, clipped to the frame; `labels` i32 (n,); `difficult` bool (n,): less
        than half of the object is visible.
        """
        plan = self._plan(index)
        return {"image_id": f"{self.split}-{index:06d}", "size": plan.size, **layout.annotate(plan)}

    def image(self, index: int) -> np.ndarray:
        """Scene `index`, uint8 (h, w, 3) RGB."""
        return _decode(self.image_bytes(index))

    def image_bytes(self, index: int) -> bytes:
        """Scene `index` as the JPEG file that `image` decodes."""
        self._check_index(index, self._length, "scene")

        def render() -> bytes:
            return paint.scene(self._plan(index), self._identities, self._artwork, self._rng(_PIXELS, index))

        return cache.fetch(self._folder / f"{index:06d}.jpg", render)

    def query(self, label: int) -> np.ndarray:
        """The class picture of class `label`, uint8 (h, w, 3) RGB; square root of its area 200 to 300 px."""
        self._check_index(label, self.num_classes, "class")

        def render() -> bytes:
            return paint.class_picture(self._identities[label], self._artwork, self._rng(_QUERY, label))

        return _decode(cache.fetch(self._folder / f"class-{label:05d}.jpg", render))

    def query_size(self, label: int) -> tuple[int, int]:
        """(height, width) of the class picture, without rendering it."""
        self._check_index(label, self.num_classes, "class")
        return paint.class_picture_size(self._identities[label], self._rng(_QUERY, label))

    @property
    def folder(self) -> Path:
        """Where the finished pictures of this split are kept."""
        return self._folder

    def identity(self, label: int) -> Identity:
        """What class `label` is made of: mark, photograph, layout, flavour."""
        return self._identities[label]

    def family(self, label: int) -> list[int]:
        """The classes that differ from `label` in flavour only (itself included)."""
        return next(members for members in self._families if members[0] <= label <= members[-1])

    def _plan(self, index: int) -> layout.Layout:
        self._check_index(index, self._length, "scene")
        rng = self._rng(_LAYOUT, index)
        classes = layout.choose_classes(self._families, self._order, index, self._options, rng)
        return layout.plan(classes, self._identities, self._options, rng)

    def _rng(self, *stream: int) -> np.random.Generator:
        # Scenes are those of the split; what belongs to the classes is that of their artwork.
        split = self.split if stream[0] in (_LAYOUT, _PIXELS) else self._artwork
        key = (stream[0], SPLITS.index(split), *stream[1:])
        return np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=key))

    def _check_index(self, index: int, limit: int, what: str) -> None:
        if not 0 <= index < limit:
            raise IndexError(f"shelves: {what} {index} is outside 0..{limit - 1}")

    def _fingerprint(self) -> str:
        """Names the cache folder: all that decides a scene's pixels, but not how many scenes there are."""
        facts = [FORMAT, self._seed, self.num_classes, self._options, artwork.versions()]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
        return f"v{FORMAT}-seed{self._seed}-{digest}"


def _decode(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as picture:
        return np.array(picture.convert("RGB"))


def _check(options: layout.Options, seed: int, length: int, num_classes: int) -> None:
    """`ConfigError` names the first option that makes no sense."""
    problems = {
        "seed must not be negative": seed < 0,
        "num_scenes must be at least 1": length < 1,
        "num_classes must be at least 1": num_classes < 1,
        "image_size must be at least 32 pixels each way": min(options.image_size) < 32,
        "object_size must be (low, high) with 8 <= low <= high": not 8
        <= options.object_size[0]
        <= options.object_size[1]
        < math.inf,
        "classes_per_scene must be (low, high) with 1 <= low <= high": not 1
        <= options.classes[0]
        <= options.classes[1],
        "objects must be (low, high) with 1 <= low <= high": not 1
        <= options.objects[0]
        <= options.objects[1],
        "rotation must be between 0 and 180 degrees": not 0 <= options.rotation <= 180,
        "shelf_share must be between 0 and 1": not 0 <= options.shelf_share <= 1,
        "perspective must be between 0 and 1.5": not 0 <= options.perspective <= 1.5,
    }
    for problem, present in problems.items():
        if present:
            raise ConfigError(f"shelves: {problem}")
