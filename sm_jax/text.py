"""Phrases to words to numbers: what the text encoder reads. NumPy only.

Source: Ferreira et al. 2023 prepend one token whose output stands for the phrase; the word tokenizer is ours
(the paper does not name one).
"""

import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

from sm_jax.errors import ConfigError, TextError

PAD, ENC, UNK = 0, 1, 2
RESERVED = 3  # tokens before the first word
LENGTH = 16  # tokens of a phrase, unless a model has another number
COMMANDS = frozenset("a all an and are find for i look me see show the to want where".split())
"""Words of a request that do not say what to find."""
_SHOWN = 60  # characters of a phrase that an error message repeats

# Scripts written without spaces: every character counts as a word.
_UNSPACED = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])")
_APOSTROPHES = frozenset("'\u2019\u02bc\uff07")


def words(text: str) -> list[str]:
    """The words of a phrase: NFKC, lower case, without punctuation, split on white space.

    Punctuation of any script separates words, except an apostrophe, which goes without a trace. Invisible
    characters (controls, joiners, lone surrogates) are dropped. Characters of scripts written without spaces
    (Chinese, Japanese) are words of their own.
    """
    text = unicodedata.normalize("NFKC", text).lower()
    kept = "".join(_kept(letter) for letter in text)
    return _UNSPACED.sub(r" \1 ", kept).split()


class Tokenizer:
    """Phrases to fixed-length rows of word numbers: `PAD` 0, `ENC` 1 (always first), `UNK` 2, words from 3.

    Args:
      vocabulary: the known words, each as `words` gives it; their order does not matter.
      length: tokens of a row, `ENC` included.

    Raises:
      ConfigError: an entry of the vocabulary that is not one word, or a length without room for a word.
    """

    def __init__(self, vocabulary: Iterable[str], length: int = LENGTH):
        self.vocabulary = tuple(sorted(set(vocabulary)))
        self.length = int(length)
        for word in self.vocabulary:
            if words(word) != [word]:
                raise ConfigError(f"vocabulary: {_short(word)} is not one lower-case word")
        if self.length < 2:
            raise ConfigError(f"text_length: must be at least 2 (ENC and a word), not {self.length}")
        self._numbers = {word: RESERVED + i for i, word in enumerate(self.vocabulary)}

    @classmethod
    def from_texts(cls, texts: Iterable[str], *, length: int = LENGTH) -> "Tokenizer":
        """A tokenizer that knows every word of `texts`."""
        return cls({word for text in texts for word in words(text)}, length)

    @property
    def size(self) -> int:
        """Rows of the embedding table: the words and the three special tokens."""
        return RESERVED + len(self.vocabulary)

    def encode(self, texts: str | Sequence[str]) -> np.ndarray:
        """i32 (n, length): `ENC`, the words, then `PAD`.

        A phrase with more than `length - 1` words is cut, words outside the vocabulary become `UNK`; use
        `check` first where a person should hear about it.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        tokens = np.full((len(texts), self.length), PAD, np.int32)
        tokens[:, 0] = ENC
        for row, text in zip(tokens, texts, strict=True):
            numbers = [self._numbers.get(word, UNK) for word in words(text)[: self.length - 1]]
            row[1 : 1 + len(numbers)] = numbers
        return tokens

    def unknown(self, text: str) -> list[str]:
        """The words of a phrase that are not in the vocabulary, each once."""
        return list(dict.fromkeys(word for word in words(text) if word not in self._numbers))

    def check(self, text: str) -> str:
        """`text` itself, if it says something to a model with this vocabulary.

        Raises:
          TextError: not a string, no words, too many words, none that is known, or beside unknown ones only
            articles and commands (`COMMANDS`).
        """
        if not isinstance(text, str):
            raise TextError(f"a phrase must be text, not {type(text).__name__}")
        found = words(text)
        if not found:
            raise TextError(f"phrase {_short(text)}: there are no words in it")
        if len(found) > self.length - 1:
            raise TextError(
                f"phrase {_short(text)}: {len(found)} words, the model reads at most {self.length - 1}"
            )
        unknown = self.unknown(text)
        if len(unknown) == len(set(found)):
            raise TextError(f"phrase {_short(text)}: the model knows none of its words; {self._known()}")
        if unknown and COMMANDS.union(unknown).issuperset(found):
            raise TextError(
                f"phrase {_short(text)}: the model knows none of its words that say what to find; "
                f"{self._known()}"
            )
        return text

    def _known(self) -> str:
        shown = ", ".join(self.vocabulary[:20])
        rest = len(self.vocabulary) - 20
        return f"it knows {shown}" + (f" and {rest} more" if rest > 0 else "")


@functools.lru_cache(4096)
def _kept(letter: str) -> str:
    """The letter, a space, or nothing."""
    if letter.isspace():
        return " "
    if letter in _APOSTROPHES:
        return ""
    kind = unicodedata.category(letter)
    if kind[0] == "C":
        return ""
    return " " if kind[0] == "P" or kind in ("Sm", "Sk") else letter


def _short(text: str) -> str:
    """The phrase as an error message shows it: quoted, on one line, not too long."""
    shown = text[:_SHOWN] + ("..." if len(text) > _SHOWN else "")
    return repr(shown) if shown.isprintable() else ascii(shown)
