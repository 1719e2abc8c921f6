"""Sources of images with phrases: what they promise, and given vectors of phrases."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sm_jax.errors import DataError, TextError

STANDARD, ABSENT = "standard", "absent"
"""Kinds of queries: ordinary phrases, and those that mean nothing in the image."""


class PhraseSource(Protocol):
    """Images with boxes and with phrases that mean some of them: picklable, NumPy only.

    Attributes:
      query_kinds: the kinds of phrases that `queries` knows; the first is `STANDARD`.
      phrases: every phrase of this split that `annotation` and `queries` can give, each once.
      vocabulary: every word that the phrases of this split can use.
      most_boxes: of one image.
    """

    query_kinds: tuple[str, ...]
    phrases: tuple[str, ...]
    vocabulary: tuple[str, ...]
    most_boxes: int

    def __len__(self) -> int: ...

    def image(self, index: int) -> np.ndarray:
        """uint8 (h, w, 3) RGB. Raises ImageError for a damaged file."""

    def annotation(self, index: int) -> dict[str, Any]:
        """`image_id` str, `size` (h, w), `boxes` f32 (n, 4) pixels of the stored image, `names` (n) str,
        `phrases` (p) str, at least one, `matches` bool (p, n): the boxes that each phrase means. Never
        decodes pixels."""

    def queries(self, index: int, kind: str = STANDARD) -> tuple[list[str], np.ndarray]:
        """Phrases of one kind for evaluation, and bool (p, n): the boxes each means; there may be none."""


class SentenceVectors:
    """Given vectors of phrases, from a sentence encoder of one's own; used in place of a `Tokenizer`.

    Args:
      path: an .npz file with `phrases`, an array of n texts, and `features` (n, d) numbers. No pickle: write
        it with `np.savez(path, phrases=np.array(texts), features=vectors)`.

    Raises:
      DataError: the file cannot be read, or is of another form.
    """

    def __init__(self, path: str | Path):
        path = Path(path).expanduser()
        try:
            with np.load(path, allow_pickle=False) as stored:
                phrases, features = stored["phrases"], stored["features"]
        except Exception as error:  # np.load raises what zip and its decoders raise
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            raise DataError(f"{path}: no .npz file with 'phrases' and 'features' ({reason})") from error
        if phrases.dtype.kind != "U" or phrases.ndim != 1:
            raise DataError(f"{path}: 'phrases' must be a list of texts, not {phrases.dtype} {phrases.shape}")
        if features.dtype.kind not in "fiu" or features.ndim != 2 or len(features) != len(phrases):
            raise DataError(
                f"{path}: 'features' must be numbers ({len(phrases)}, d), not {features.dtype} "
                f"{features.shape}"
            )
        self._features = np.asarray(features, np.float32)
        if not np.isfinite(self._features).all():
            raise DataError(f"{path}: 'features' holds values that are not finite")
        self._rows = {phrase: row for row, phrase in enumerate(phrases.tolist())}
        self._path = path

    @property
    def width(self) -> int:
        """Length of a vector."""
        return self._features.shape[1]

    def encode(self, texts: str | list[str]) -> np.ndarray:
        """f32 (n, width). Raises TextError for a phrase that has no vector."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        for text in texts:
            self.check(text)
        return self._features[[self._rows[text] for text in texts]].reshape(len(texts), self.width)

    def unknown(self, text: str) -> list[str]:
        """The whole phrase, if it has no vector."""
        return [] if text in self._rows else [text]

    def check(self, text: str) -> str:
        """`text` itself; raises TextError if it has no vector."""
        if text not in self._rows:
            raise TextError(f"phrase {text[:60]!r}: there is no vector for it in {self._path}")
        return text
