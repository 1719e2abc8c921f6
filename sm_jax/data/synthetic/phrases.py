"""`ShelfPhrases`: phrases about generated photo scenes, made from what the products in them really look like.

    phrase := frame ["the"] (colour kind | kind | colour generic | flavour kind)

A kind is told by the shape (can, pack, sign, picture), a colour is measured on the drawn front, and a flavour
is that of the class name, whose word and accent colour are printed on the product.
"""

import functools
import json
from typing import Any, NamedTuple

import numpy as np

from sm_jax.data.phrases import ABSENT, STANDARD
from sm_jax.data.shapes import grammar
from sm_jax.data.synthetic import artwork, cache, colours, products
from sm_jax.data.synthetic.catalogue import FLAVOURS, Identity
from sm_jax.data.synthetic.colours import COLOURS
from sm_jax.data.synthetic.source import ShelvesSource
from sm_jax.errors import ConfigError

KINDS = ("can", "pack", "sign", "picture")
GENERIC = ("object", "thing", "item")
# "Orange" would read as the colour. On a picture the flavour's colour need not show.
FLAVOUR_WORDS = tuple(name.lower() for name, _ in FLAVOURS if name != "Orange")
FLAVOURED = ("can", "pack", "sign")
HELD_PAIRS = ("red can", "blue pack", "black pack", "white sign", "yellow sign", "green picture")
QUERY_KINDS = (STANDARD, "phrasing", "pairs", "flavour", ABSENT)
SCENE = {"image_size": (512, 512), "shelf_share": 0.0, "object_size": (64.0, 128.0), "objects": (5, 12)}
TRIES = 8
_PHRASE, _QUERY = range(2)  # random streams
_FORMS = {"pair": 0.5, "kind": 0.25, "colour": 0.25}  # of the phrases without a flavour


class Meaning(NamedTuple):
    """What a noun phrase asks for: a colour or flavour word, and a kind; None where it does not say."""

    word: str | None
    kind: str | None


class Thing(NamedTuple):
    """What can be said of an object: its kind, and words that fit or may be disputed."""

    kind: str
    clear: frozenset[str]
    unclear: frozenset[str]

    def fits(self, meaning: Meaning) -> bool:
        """Whether a phrase with this meaning asks for it."""
        return meaning.kind in (None, self.kind) and (meaning.word is None or meaning.word in self.clear)

    def disputed(self, meaning: Meaning) -> bool:
        """Whether people would differ."""
        return meaning.kind in (None, self.kind) and meaning.word in self.unclear


MEANINGS = (
    *(Meaning(word, kind) for word in COLOURS for kind in KINDS),
    *(Meaning(None, kind) for kind in KINDS),
    *(Meaning(word, None) for word in COLOURS),
    *(Meaning(word, kind) for word in FLAVOUR_WORDS for kind in FLAVOURED),
)


class ShelfPhrases:
    """A `PhraseSource` over `ShelvesSource`: by default free layouts of 5 to 12 objects on 512x512.

    Scene i is the first of `TRIES` layouts of its own in which every object is at least half visible, so
    that what a phrase says of an object can be seen. A phrase is only used in a scene in which it is clear
    of every object whether it is meant.

    Args:
      split: "train", "val" or "test"; classes, brand marks and photographs of the splits are disjoint.
      num_scenes: length of the source.
      phrase_seed: of the choice of phrases; the scenes have the seed of `scenes`.
      p_absent: share of scenes whose phrase asks for what is not there.
      p_flavour: share of the phrases that name a flavour.
      holdout_phrasing: share of the phrases (per meaning) that only the query kind "phrasing" uses.
      holdout_pairs: of colour and kind, never asked for except by the query kind "pairs".
      **scenes: options of `ShelvesSource`, in place of those of `SCENE`.

    Raises:
      ConfigError: an option that makes no sense. DataError: an artwork package is missing.
    """

    query_kinds = QUERY_KINDS

    def __init__(
        self,
        split: str,
        *,
        num_scenes: int = 1000,
        phrase_seed: int = 0,
        p_absent: float = 0.0,
        p_flavour: float = 0.2,
        holdout_phrasing: float = 0.1,
        holdout_pairs: tuple[str, ...] = HELD_PAIRS,
        **scenes: Any,
    ):
        problems = {
            "num_scenes must be at least 1": num_scenes < 1,
            "phrase_seed must not be negative": phrase_seed < 0,
            "p_absent must be between 0 and 1": not 0 <= p_absent <= 1,
            "p_flavour must be between 0 and 1": not 0 <= p_flavour <= 1,
            "holdout_phrasing must be at least 0 and below 1": not 0 <= holdout_phrasing < 1,
        }
        for problem, present in problems.items():
            if present:
                raise ConfigError(f"shelf_phrases: {problem}")
        if split not in artwork.SPLITS:
            raise ConfigError(f"shelf_phrases: no split '{split}'; choose one of {', '.join(artwork.SPLITS)}")
        self.scenes = ShelvesSource(split, num_scenes=num_scenes * TRIES, **(SCENE | scenes))
        self.split = split
        self._length, self._seed = int(num_scenes), int(phrase_seed)
        self._most = int((SCENE | scenes)["objects"][1]) if not (SCENE | scenes)["shelf_share"] else 250
        self._p_absent, self._p_flavour = float(p_absent), float(p_flavour)
        self._held_share = float(holdout_phrasing)
        self._held_pairs = tuple(_pair(name) for name in holdout_pairs)
        self._notes: dict[int, tuple[int, dict[str, Any]]] = {}
        self._things: dict[int, Thing] = {}

    @property
    def phrases(self) -> tuple[str, ...]:
        """Every phrase, held-out ones too."""
        return tuple(phrase for meaning in MEANINGS for phrase in phrases(meaning))

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every word the phrases can use."""
        return tuple(sorted({word for phrase in self.phrases for word in phrase.split()}))

    @property
    def most_boxes(self) -> int:
        """Of one scene."""
        return self._most

    def __len__(self) -> int:
        return self._length

    def image(self, index: int) -> np.ndarray:
        """Scene `index`, uint8 (h, w, 3) RGB."""
        return self.scenes.image(self._scene(index)[0])

    def annotation(self, index: int) -> dict[str, Any]:
        """What is in scene `index`.

        Returns: `image_id` str; `size` (height, width); `boxes` f32 (n, 4) xyxy, as in `ShelvesSource`;
        `names` n strings such as "white can (Nokia Rice Mint)"; `phrases`, a list of one; `matches` bool
        (1, n): the objects the phrase asks for.
        """
        _, note = self._scene(index)
        things = [self.thing(label) for label in note["labels"].tolist()]
        rng = self._rng(_PHRASE, index)
        absent = rng.random() < self._p_absent
        meaning = (self._absent(rng, things) if absent else None) or self._present(rng, things)
        return {
            "image_id": f"{self.split}-{index:06d}",
            "size": note["size"],
            "boxes": note["boxes"].copy(),
            "names": [self._name(label) for label in note["labels"].tolist()],
            "phrases": [_choice(rng, self._divided(meaning)[0])],
            "matches": _flags([meaning], things),
        }

    def queries(self, index: int, kind: str = STANDARD) -> tuple[list[str], np.ndarray]:
        """At most one phrase for evaluation, and bool (p, n): which objects of scene `index` it asks for.

        Kinds: "standard" as in `annotation`; "phrasing": a phrase never used in training, with an answer in
        the scene; "pairs": a held-out pair of colour and kind that is in the scene; "flavour": a phrase that
        names a flavour that is in the scene; "absent": an ordinary phrase for something that is not in it.
        """
        if kind not in QUERY_KINDS:
            raise ConfigError(f"shelf_phrases: no query kind {kind!r}; there are {', '.join(QUERY_KINDS)}")
        if kind == STANDARD:
            note = self.annotation(index)
            return note["phrases"], note["matches"]
        things = [self.thing(label) for label in self._scene(index)[1]["labels"].tolist()]
        rng = self._rng(_QUERY, index, QUERY_KINDS.index(kind))
        if kind == "phrasing":
            meaning = self._present(rng, things)
        elif kind == "pairs":
            meaning = _choice(rng, [m for m in self._held_pairs if _clear(m, things) and _there(m, things)])
        elif kind == "flavour":
            meaning = _choice(rng, self._candidates("flavour", things))
        else:
            meaning = self._absent(rng, things)
        pool = self._divided(meaning)[kind == "phrasing"] if meaning else ()
        if not pool:
            return [], np.zeros((0, len(things)), bool)
        return [_choice(rng, pool)], _flags([meaning], things)

    def thing(self, label: int) -> Thing:
        """What can be said of the objects of class `label`."""
        if label not in self._things:
            identity, measured = self.scenes.identity(label), self._colours(label)
            kind, flavour = kind_of(identity), FLAVOURS[identity.flavour][0].lower()
            printed = {flavour} & set(FLAVOUR_WORDS) if kind in FLAVOURED else set()
            self._things[label] = Thing(kind, measured.clear | printed, measured.unclear)
        return self._things[label]

    def _colours(self, label: int) -> colours.Colours:
        """Measured once and kept with the finished pictures: drawing a front takes 12 ms."""

        def measure() -> bytes:
            front = np.asarray(products.front(self.scenes.identity(label)))
            return json.dumps([sorted(words) for words in colours.name(front)]).encode()

        path = self.scenes.folder / f"colours-v{colours.VERSION}-{label:05d}.json"
        return colours.Colours(*(frozenset(words) for words in json.loads(cache.fetch(path, measure))))

    def _scene(self, index: int) -> tuple[int, dict[str, Any]]:
        """The layout that is scene `index`, an index into `scenes`, and its annotation there. Kept, for a
        layout costs milliseconds and every epoch asks for it."""
        if not 0 <= index < self._length:
            raise IndexError(f"shelf_phrases: scene {index} is outside 0..{self._length - 1}")
        if index not in self._notes:
            best = None
            for layout in range(index * TRIES, (index + 1) * TRIES):
                note = self.scenes.annotation(layout)
                hidden = int(note["difficult"].sum()) if len(note["boxes"]) else 1 << 20
                if best is None or hidden < best[0]:
                    best = hidden, layout, note
                if not hidden:
                    break
            self._notes[index] = best[1:]
        return self._notes[index]

    def _present(self, rng: np.random.Generator, things: list[Thing]) -> Meaning:
        """What to ask for: how much to say, then an object of which that is clear."""
        shares = {form: share * (1 - self._p_flavour) for form, share in _FORMS.items()}
        shares["flavour"] = self._p_flavour
        form = list(shares)[int(rng.choice(len(shares), p=list(shares.values())))]
        return _choice(rng, self._candidates(form, things) or self._candidates("kind", things))

    def _candidates(self, form: str, things: list[Thing]) -> list[Meaning]:
        """What could be asked for in this form, once per object and word."""
        if form == "kind":
            return [Meaning(None, thing.kind) for thing in things]
        words = FLAVOUR_WORDS if form == "flavour" else COLOURS
        asked = [
            Meaning(word, None if form == "colour" else thing.kind)
            for thing in things
            for word in words
            if word in thing.clear
        ]
        return [m for m in asked if m not in self._held_pairs and _clear(m, things)]

    def _absent(self, rng: np.random.Generator, things: list[Thing]) -> Meaning | None:
        known = [m for m in MEANINGS if m not in self._held_pairs]
        return _choice(rng, [m for m in known if _clear(m, things) and not _there(m, things)])

    def _divided(self, meaning: Meaning) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return _divided(meaning, self._held_share)

    def _name(self, label: int) -> str:
        thing, title = self.thing(label), self.scenes.class_names[label].partition(" ")[2]
        seen = " and ".join(word for word in COLOURS if word in thing.clear)
        return f"{seen} {thing.kind} ({title})".strip()

    def _rng(self, *stream: int) -> np.random.Generator:
        purpose, index, *rest = stream
        key = (("train", "val", "test").index(self.split), index, purpose, *rest)
        return np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=key))


@functools.cache
def phrases(meaning: Meaning) -> tuple[str, ...]:
    """Every phrase with this meaning."""
    nouns = (meaning.kind,) if meaning.kind else GENERIC
    forms = [noun + ending for noun in nouns for ending in ("", "s")]
    return grammar.framed(f"{meaning.word} {form}" if meaning.word else form for form in forms)


def kind_of(identity: Identity) -> str:
    """One of `KINDS`; boxes and pouches look too alike in a scene to be told apart."""
    if identity.kind == "pack":
        return "can" if identity.shape == "can" else "pack"
    return {"plate": "sign", "photo": "picture"}[identity.kind]


@functools.cache
def _divided(meaning: Meaning, share: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return grammar.divide(phrases(meaning), share)


def _clear(meaning: Meaning, things: list[Thing]) -> bool:
    return not any(thing.disputed(meaning) for thing in things)


def _there(meaning: Meaning, things: list[Thing]) -> bool:
    return any(thing.fits(meaning) for thing in things)


def _pair(name: str) -> Meaning:
    pair = Meaning(*parts) if len(parts := str(name).split()) == 2 else None
    if pair is None or pair.word not in COLOURS or pair.kind not in KINDS:
        raise ConfigError(f"shelf_phrases: holdout_pairs: {name!r} is not a pair such as 'red can'")
    return pair


def _flags(asked: list[Meaning], things: list[Thing]) -> np.ndarray:
    flags = [[thing.fits(meaning) for thing in things] for meaning in asked]
    return np.array(flags, bool).reshape(len(asked), len(things))


def _choice(rng: np.random.Generator, options):
    """One of the options, None if there are none."""
    return options[int(rng.integers(len(options)))] if len(options) else None
