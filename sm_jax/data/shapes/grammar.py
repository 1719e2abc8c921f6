"""Phrases about coloured shapes: which there are, what each means, and which are kept out of training.

    phrase := frame NP                      NP := ["the"] (colour noun | noun | colour generic)

Source: the grammar is ours (Ferreira et al. 2023 only say that each image comes with one sentence).
"""

import functools
import hashlib
import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sm_jax import text
from sm_jax.errors import TextError

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
SHAPES = ("circle", "square", "triangle")
GENERIC = ("object", "shape", "thing")
FRAMES = ("", "find", "find all", "show me", "where are", "look for", "i want to see")
AND = "and"
_LONG_FORMS = ("that are {colour}", "colored {colour}")


class Meaning(NamedTuple):
    """What a noun phrase asks for; None where it does not say."""

    colour: str | None
    shape: str | None

    def matches(self, name: str) -> bool:
        """Whether an object such as "red circle" is meant."""
        colour, shape = name.split()
        return self.colour in (None, colour) and self.shape in (None, shape)


PAIRS = tuple(Meaning(colour, shape) for colour in COLOURS for shape in SHAPES)
MEANINGS = (
    *PAIRS,
    *(Meaning(None, shape) for shape in SHAPES),
    *(Meaning(colour, None) for colour in COLOURS),
)


@functools.cache
def phrases(meaning: Meaning, *, long_forms: bool = False) -> tuple[str, ...]:
    """Every phrase with this meaning: all frames, with and without "the", singular and plural (no difference
    in meaning), every generic noun; `long_forms` adds "circles that are red" and "circles colored red"."""
    parts = []
    singular = (meaning.shape,) if meaning.shape else GENERIC
    for noun in (noun + ending for noun in singular for ending in ("", "s")):
        parts.append(f"{meaning.colour} {noun}" if meaning.colour else noun)
        if meaning.colour and long_forms:
            parts.extend(f"{noun} {form.format(colour=meaning.colour)}" for form in _LONG_FORMS)
    return framed(parts)


@functools.cache
def divided(meaning: Meaning, share: float, *, long_forms: bool = False) -> tuple[tuple[str, ...], ...]:
    """(phrases for training, held-out phrases): the same `share` of every meaning's phrases."""
    return divide(phrases(meaning, long_forms=long_forms), share)


def framed(parts: Iterable[str]) -> tuple[str, ...]:
    """Every frame around every noun phrase, with and without "the"; the empty frame comes first."""
    return tuple(
        " ".join(piece for piece in (frame, article, part) if piece)
        for frame, article, part in itertools.product(FRAMES, ("", "the"), parts)
    )


def unframed(every: Sequence[str]) -> Sequence[str]:
    """Of all that `framed` gives, the noun phrases alone."""
    return every[: len(every) // len(FRAMES)]


def divide(every: Sequence[str], share: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(the others, a `share` of the phrases), chosen by a hash of the phrase, so that the choice depends on
    nothing else; at least one is left."""
    order = sorted(every, key=lambda phrase: hashlib.sha256(phrase.encode()).digest())
    held = frozenset(order[: min(round(share * len(every)), len(every) - 1)])
    return tuple(p for p in every if p not in held), tuple(p for p in every if p in held)


@functools.cache
def vocabulary(*, long_forms: bool = False, unions: bool = False) -> tuple[str, ...]:
    """Every word of the grammar, sorted."""
    found = {w for meaning in MEANINGS for p in phrases(meaning, long_forms=long_forms) for w in p.split()}
    return tuple(sorted(found | ({AND} if unions else set())))


def parse(phrase: str) -> tuple[Meaning, ...]:
    """What a phrase of the grammar asks for: one `Meaning`, or several joined by "and".

    Raises:
      TextError: a word outside the grammar, or a part that names neither colour, shape nor generic noun.
    """
    known = vocabulary(long_forms=True, unions=True)
    found = text.words(phrase)
    for word in found:
        if word not in known:
            raise TextError(f"phrase {phrase!r}: {word!r} is not a word of the shape grammar")
    parts: list[list[str]] = [[]]
    for word in found:
        if word == AND:
            parts.append([])
        else:
            parts[-1].append(word)
    return tuple(_meaning(phrase, part) for part in parts)


def matches(phrase: str, names: list[str]) -> list[bool]:
    """For each object, such as "red circle", whether the phrase asks for it. Raises TextError as `parse`."""
    meanings = parse(phrase)
    return [any(meaning.matches(name) for meaning in meanings) for name in names]


def _meaning(phrase: str, part: list[str]) -> Meaning:
    colours = [word for word in part if word in COLOURS]
    nouns = [word.removesuffix("s") for word in part]
    shapes = [noun for noun in nouns if noun in SHAPES]
    if len(colours) > 1 or len(shapes) > 1 or not (colours or shapes or set(nouns) & set(GENERIC)):
        raise TextError(f"phrase {phrase!r}: it must name one colour, one shape or a generic noun")
    return Meaning(colours[0] if colours else None, shapes[0] if shapes else None)
