"""`ShapeScenes`: generated images of coloured shapes on black, each with a phrase that means some of them.

Source: Ferreira et al. 2023, sec. 4 (512x512, 10 to 20 circles, squares and triangles in red, green and
blue); sizes, placement and phrases are ours, where the paper does not say.
"""

from typing import Any, NamedTuple

import numpy as np

from sm_jax.data.phrases import ABSENT, STANDARD
from sm_jax.data.shapes import draw, grammar
from sm_jax.data.shapes.grammar import Meaning
from sm_jax.errors import ConfigError

SPLITS = ("train", "val", "test")
QUERY_KINDS = (STANDARD, "phrasing", "pairs", ABSENT)
# Random streams of a scene, so that asking for one thing never changes another.
_PHRASE, _SCENE, _QUERY = range(3)
_NP_SHARES = (0.5, 0.25, 0.25)  # colour and noun, noun, colour and generic noun


class _Scene(NamedTuple):
    squares: np.ndarray  # i64 (n, 4) drawing boxes
    names: list[str]  # such as "red circle"


class ShapeScenes:
    """A `PhraseSource` of generated scenes; scene i depends on (options, seed, split, i) alone.

    Phrases of every split come from the same grammar without the held-out ones, which only the query kinds
    "phrasing" and "pairs" use. Picklable; NumPy only.

    Args:
      split: "train", "val" or "test"; no scene is in two of them.
      seed: another seed is another data set.
      num_scenes: length of the source; default 4000, 500 or 500.
      image_size: (height, width).
      count: range of the number of shapes.
      size_range: range of a shape's side or diameter in pixels.
      max_iou: largest IoU of two shapes' squares; later shapes are drawn over earlier ones.
      triangle_box: "square": the box of every shape is its drawing square; "tight": what a triangle covers.
      p_absent: share of scenes in which nothing is what the phrase asks for.
      p_union: share of phrases that join two noun phrases with "and".
      long_forms: also phrases like "circles that are red" and "circles colored red".
      holdout_phrasing: share of the phrases (per meaning) that only the query kind "phrasing" uses.
      holdout_pairs: such as ("blue triangle",): never asked for, except by the query kind "pairs"; the
        objects are in the scenes all the same.

    Raises:
      ConfigError: an option that makes no sense.
    """

    query_kinds = QUERY_KINDS

    def __init__(
        self,
        split: str,
        *,
        seed: int = 0,
        num_scenes: int | None = None,
        image_size: tuple[int, int] = (512, 512),
        count: tuple[int, int] = (10, 20),
        size_range: tuple[int, int] = (48, 80),
        max_iou: float = 0.0,
        triangle_box: str = "square",
        p_absent: float = 0.0,
        p_union: float = 0.0,
        long_forms: bool = False,
        holdout_phrasing: float = 0.1,
        holdout_pairs: tuple[str, ...] = (),
    ):
        if split not in SPLITS:
            raise ConfigError(f"shapes: no split {split!r}; choose one of {', '.join(SPLITS)}")
        self.split = split
        self._seed = int(seed)
        self._length = (4000 if split == "train" else 500) if num_scenes is None else int(num_scenes)
        self._size = (int(image_size[0]), int(image_size[1]))
        self._count = (int(count[0]), int(count[1]))
        self._sides = (int(size_range[0]), int(size_range[1]))
        self._max_iou = float(max_iou)
        self._tight = triangle_box == "tight"
        self._p_absent, self._p_union = float(p_absent), float(p_union)
        self._long_forms = bool(long_forms)
        self._held_share = float(holdout_phrasing)
        self._held_pairs = tuple(_pair(name) for name in holdout_pairs)
        self._check(triangle_box)

    @property
    def phrases(self) -> tuple[str, ...]:
        """Every phrase about one kind of thing, held-out ones too. With unions, of which there are too many:
        each of them with the longest second part, and the longest with each second part."""
        every = [grammar.phrases(meaning, long_forms=self._long_forms) for meaning in grammar.MEANINGS]
        firsts = [phrase for some in every for phrase in some]
        if self._p_union:
            seconds = [phrase for some in every for phrase in grammar.unframed(some)]
            longest, last = (max(some, key=lambda p: len(p.split())) for some in (firsts, seconds))
            joined = [(first, last) for first in firsts] + [(longest, second) for second in seconds]
            firsts += map(f" {grammar.AND} ".join, joined)
        return tuple(dict.fromkeys(firsts))

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every word the phrases can use."""
        return grammar.vocabulary(long_forms=self._long_forms, unions=self._p_union > 0)

    @property
    def most_boxes(self) -> int:
        """Of one scene."""
        return self._count[1]

    def __len__(self) -> int:
        return self._length

    def image(self, index: int) -> np.ndarray:
        """Scene `index`, uint8 (h, w, 3) RGB."""
        scene, _ = self._make(index)
        image = np.zeros((*self._size, 3), np.uint8)
        for (left, top, right, bottom), name in zip(scene.squares.tolist(), scene.names, strict=True):
            colour, shape = name.split()
            image[top:bottom, left:right][draw.mask(shape, right - left)] = grammar.COLOURS[colour]
        return image

    def annotation(self, index: int) -> dict[str, Any]:
        """What is in scene `index`.

        Returns: `image_id` str; `size` (height, width); `boxes` f32 (n, 4) xyxy; `names` n strings such as
        "red circle"; `phrases`, a list of one; `matches` bool (1, n): the objects the phrase asks for.
        """
        scene, meanings = self._make(index)
        phrase = self._phrase(meanings, self._rng(_PHRASE, index, 1))
        return {
            "image_id": f"{self.split}-{index:06d}",
            "size": self._size,
            "boxes": self._boxes(scene),
            "names": scene.names,
            "phrases": [phrase],
            "matches": _flags([meanings], scene.names),
        }

    def queries(self, index: int, kind: str = STANDARD) -> tuple[list[str], np.ndarray]:
        """At most one phrase for evaluation, and bool (p, n): which objects of scene `index` it asks for.

        Kinds: "standard" as in `annotation`; "phrasing": a phrase never used in training, with an answer in
        the scene; "pairs": asks for a held-out pair that is in the scene; "absent": an ordinary phrase for
        something that is not in the scene. There is none if the scene or the options offer none.
        """
        if kind not in QUERY_KINDS:
            raise ConfigError(f"shapes: no query kind {kind!r}; there are {', '.join(QUERY_KINDS)}")
        scene, meanings = self._make(index)
        if kind == STANDARD:
            note = self.annotation(index)
            return note["phrases"], note["matches"]
        rng = self._rng(_QUERY, index, QUERY_KINDS.index(kind))
        present = {meaning for meaning in grammar.MEANINGS if any(map(meaning.matches, scene.names))}
        if kind == "phrasing":
            chosen = self._present(rng, scene.names)
            pool = self._divided(chosen)[1] if chosen else ()
        elif kind == "pairs":
            chosen = _choice(rng, [pair for pair in self._held_pairs if pair in present])
            pool = self._divided(chosen)[0] if chosen else ()
        else:
            chosen = _choice(rng, [m for m in self._askable() if m not in present])
            pool = self._divided(chosen)[0] if chosen else ()
        if not pool:
            return [], np.zeros((0, len(scene.names)), bool)
        return [_choice(rng, pool)], _flags([(chosen,)], scene.names)

    def _make(self, index: int) -> tuple[_Scene, tuple[Meaning, ...]]:
        """The scene and what its phrase asks for."""
        if not 0 <= index < self._length:
            raise IndexError(f"shapes: scene {index} is outside 0..{self._length - 1}")
        asks = self._rng(_PHRASE, index, 0)
        missing = _choice(asks, self._askable()) if asks.random() < self._p_absent else None
        scene = self._scene(self._rng(_SCENE, index), missing)
        if missing:
            return scene, (missing,)
        first = self._present(asks, scene.names)
        if asks.random() < self._p_union and (second := self._present(asks, scene.names)) != first:
            return scene, (first, second) if self._seconds(second) else (first,)
        return scene, (first,)

    def _scene(self, rng: np.random.Generator, missing: Meaning | None) -> _Scene:
        count = int(rng.integers(self._count[0], self._count[1] + 1))
        sides = rng.integers(self._sides[0], self._sides[1] + 1, size=count)
        pairs = [pair for pair in grammar.PAIRS if not (missing and missing.matches(" ".join(pair)))]
        names = [" ".join(pairs[k]) for k in rng.integers(len(pairs), size=count).tolist()]
        squares = draw.place(rng, sides, self._size, max_iou=self._max_iou)
        if squares is None:
            raise ConfigError(
                f"shapes: {count} shapes of up to {sides.max()} pixels do not fit into "
                f"{self._size[1]}x{self._size[0]} with max_iou={self._max_iou:g}; take fewer or smaller ones"
            )
        return _Scene(squares, names)

    def _boxes(self, scene: _Scene) -> np.ndarray:
        boxes = scene.squares.astype(np.float32)
        if self._tight:
            for box, name in zip(boxes, scene.names, strict=True):
                top, bottom = draw.extent(name.split()[1], int(box[3] - box[1]))
                box[1], box[3] = box[1] + top, box[1] + bottom
        return boxes

    def _present(self, rng: np.random.Generator, names: list[str]) -> Meaning | None:
        """What to ask for: an object of the scene first, so that there is an answer, then how much to say."""
        open_names = [name for name in names if Meaning(*name.split()) not in self._held_pairs]
        kind = rng.choice(3, p=_NP_SHARES)
        if kind == 0 and not open_names:
            kind = 1  # every pair of the scene is held out
        colour, shape = _choice(rng, open_names if kind == 0 else names).split()
        return (Meaning(colour, shape), Meaning(None, shape), Meaning(colour, None))[kind]

    def _askable(self) -> list[Meaning]:
        return [meaning for meaning in grammar.MEANINGS if meaning not in self._held_pairs]

    def _divided(self, meaning: Meaning) -> tuple[tuple[str, ...], ...]:
        return grammar.divided(meaning, self._held_share, long_forms=self._long_forms)

    def _phrase(self, meanings: tuple[Meaning, ...], rng: np.random.Generator) -> str:
        """A phrase that training may use; the second part of a union has no frame."""
        parts = [_choice(rng, self._divided(meanings[0])[0])]
        parts += [_choice(rng, self._seconds(meaning)) for meaning in meanings[1:]]
        return f" {grammar.AND} ".join(parts)

    def _seconds(self, meaning: Meaning) -> list[str]:
        """What training may use behind "and"; with many held-out phrases there may be nothing."""
        trained = frozenset(self._divided(meaning)[0])
        every = grammar.phrases(meaning, long_forms=self._long_forms)
        return [phrase for phrase in grammar.unframed(every) if phrase in trained]

    def _rng(self, *stream: int) -> np.random.Generator:
        purpose, index, *rest = stream
        key = (SPLITS.index(self.split), index, purpose, *rest)
        return np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=key))

    def _check(self, triangle_box: str) -> None:
        """`ConfigError` names the first option that makes no sense."""
        low, high = self._sides
        problems = {
            "seed must not be negative": self._seed < 0,
            "num_scenes must be at least 1": self._length < 1,
            "size_range must be (low, high) with 4 <= low <= high": not 4 <= low <= high,
            "image_size must hold the largest shape": min(self._size) < high,
            "count must be (low, high) with 1 <= low <= high": not 1 <= self._count[0] <= self._count[1],
            "max_iou must be between 0 and 1": not 0 <= self._max_iou <= 1,
            "triangle_box must be square or tight": triangle_box not in ("square", "tight"),
            "p_absent must be between 0 and 1": not 0 <= self._p_absent <= 1,
            "p_union must be between 0 and 1": not 0 <= self._p_union <= 1,
            "holdout_phrasing must be at least 0 and below 1": not 0 <= self._held_share < 1,
            "holdout_pairs must leave a pair to ask for": len(set(self._held_pairs)) >= len(grammar.PAIRS),
        }
        for problem, present in problems.items():
            if present:
                raise ConfigError(f"shapes: {problem}")


def _pair(name: str) -> Meaning:
    pair = Meaning(*parts) if len(parts := str(name).split()) == 2 else None
    if pair not in grammar.PAIRS:
        raise ConfigError(f"shapes: holdout_pairs: {name!r} is not a pair such as 'blue triangle'")
    return pair


def _flags(asked: list[tuple[Meaning, ...]], names: list[str]) -> np.ndarray:
    """bool (p, n): whether one of the meanings of a phrase fits the object."""
    flags = [[any(meaning.matches(name) for meaning in meanings) for name in names] for meanings in asked]
    return np.array(flags, bool).reshape(len(asked), len(names))


def _choice(rng: np.random.Generator, options):
    """One of the options, None if there are none."""
    return options[int(rng.integers(len(options)))] if len(options) else None
