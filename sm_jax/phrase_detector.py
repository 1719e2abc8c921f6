"""Finding what phrases describe: `load("crossmodal").detect(images, ["the red circles", "a square"])`."""

import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sm_jax import boxes as box_ops
from sm_jax import pretrained
from sm_jax.data import images as pictures
from sm_jax.data.crossmodal import prepare
from sm_jax.detections import PhraseDetections
from sm_jax.errors import ConfigError, TextError
from sm_jax.requests import Request, RequestBank, fingerprint
from sm_jax.search import listed
from sm_jax.systems.crossmodal import model as crossmodal
from sm_jax.systems.crossmodal.predict import Predictor, ProposalOptions
from sm_jax.text import COMMANDS, Tokenizer, words

THRESHOLD = 0.5
"""Source: Ferreira et al. 2023, where it is used throughout."""

FEWEST_ROWS = 16  # phrases that go through the model at once


class PhraseDetector:
    """A cross-modal model with its weights and its vocabulary; `load` makes one.

    Attributes:
      notes: lines that say where the weights came from.
      tokenizer: the words that the model knows; None where it takes sentence embeddings.
      batch: images that go through the model at once.
      threshold: what `detect` takes by itself.
    """

    threshold = THRESHOLD

    def __init__(
        self,
        config: crossmodal.ModelConfig,
        variables: Mapping[str, Any],
        *,
        notes: Sequence[str] = (),
        batch: int | None = None,
        proposals: ProposalOptions | None = None,
    ):
        """Wrap a model.

        Args:
          config, variables: the model.
          notes: lines that say where the weights came from.
          batch: images that go through the model at once, a power of two; fewer are filled up, so that there
            is one program. None: 1 on a CPU, 16 on an accelerator.
          proposals: which boxes count as objects.
        """
        batch = batch or (1 if jax.default_backend() == "cpu" else 16)
        if batch < 1 or batch & (batch - 1):
            raise ConfigError(f"batch: must be a power of two, not {batch}")
        self.notes = list(notes)
        self.tokenizer = None
        if config.text_encoder != "features":
            self.tokenizer = Tokenizer(config.vocabulary, config.text_length)
        self.batch = batch
        self._config, self._variables = config, variables
        self._predictor = Predictor(config, proposals, chunk=batch)
        self._embeddings: dict[str, np.ndarray] = {}
        self._fingerprint = ""

    @property
    def compiles(self):
        """Programs made so far, by kind."""
        return self._predictor.compiles

    @property
    def fingerprint(self) -> str:
        """Of the weights; banks made with other weights are refused."""
        if not self._fingerprint:
            self._fingerprint = fingerprint(self._variables)
        return self._fingerprint

    def encode(
        self,
        texts,
        *,
        labels: str | Sequence[str] | None = None,
        threshold: float | None = None,
    ) -> RequestBank:
        """Encode phrases once, for any number of images; a phrase that came before is not encoded again.

        Args:
          texts: a phrase, several, or a dict label -> phrase or several. Of a model that takes sentence
            embeddings a dict phrase -> embedding (d,).
          labels: one for each phrase of a list, or one for all; default: the phrases themselves. Phrases of
            one label mean the same thing: of an object the best one counts.
          threshold: score that detections of these phrases must exceed, whatever `detect` is told.

        Warns:
          UserWarning: words that the model does not know, in a phrase of which it knows others; a phrase of
            nothing but articles and commands.

        Raises:
          TextError: a phrase that is empty, too long, or of which the model knows no word, or only articles
            and commands; ConfigError: no phrase,
            labels that do not fit, a threshold that is no number.
        """
        if threshold is not None and math.isnan(threshold):
            raise ConfigError("threshold: must be a number")
        if self.tokenizer is None:
            named = self._given_embeddings(texts, labels)
        else:
            named = [(label, text, None) for label, text in _labelled(texts, labels, self.tokenizer)]
            self._embed([text for _, text, _ in named])
        requests = [
            Request(
                label=label,
                template=self._embeddings[text] if vector is None else vector,
                threshold=threshold,
                text=text,
            )
            for label, text, vector in named
        ]
        return RequestBank(requests, fingerprint=self.fingerprint)

    def detect(
        self,
        images,
        texts,
        *,
        labels: str | Sequence[str] | None = None,
        threshold: float = THRESHOLD,
        max_detections: int = 100,
        top_k: int | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> list[PhraseDetections]:
        """Find what every phrase describes in every image.

        Images of any size are scaled to fit the size that the model works on; boxes are pixels of the image.
        The objects of an image are proposed once, for all phrases.

        Args:
          images: a picture or several: paths, encoded bytes, Pillow images, or uint8 arrays (h, w, 3).
          texts, labels: as `encode` takes them; or a `RequestBank` of phrases, which has its own labels.
          threshold: scores (conf x align) must be above it; a negative one gives every object with every
            phrase, which explains a result.
          max_detections: at most so many per label, the best ones.
          top_k: then the best so many of the image, all labels together.
          progress: called as `progress("images", done, all)` after each batch of images.

        Returns:
          One `PhraseDetections` per image; an image without objects has an empty one.

        Raises:
          ConfigError, ImageError, TextError, WeightsError: one line each; see `encode`.
        """
        bank = texts
        if not isinstance(bank, RequestBank):
            bank = self.encode(texts, labels=labels)
        elif labels is not None:
            raise ConfigError("labels belong to encode(); this request bank is encoded already")
        if not len(bank):
            raise ConfigError("no phrase: say what to look for")
        bank.check(self.fingerprint, what="phrases")
        if math.isnan(threshold) or max_detections < 1 or (top_k is not None and top_k < 1):
            raise ConfigError("threshold must be a number, max_detections and top_k 1 or more")
        options = {"threshold": threshold, "max_detections": max_detections, "top_k": top_k}
        found, given = [], listed(images)
        vectors = np.stack([request.template for request in bank])
        for begin in range(0, len(given), self.batch):
            group = [_read(picture) for picture in given[begin : begin + self.batch]]
            for size, boxes, conf, align in self._objects(group, vectors):
                found.append(PhraseDetections.build(size, boxes, conf, align, bank, **options))
            if progress is not None:
                progress("images", len(found), len(given))
        return found

    def _objects(self, images: list[np.ndarray], vectors: np.ndarray) -> Iterator[tuple]:
        """Per image: its size, boxes (n, 4), conf (n,) and align (q, n) of what was proposed in it."""
        stack = np.zeros((self.batch, *self._config.image_size, 3), np.float32)
        scales = []
        for row, image in enumerate(images):
            stack[row], scale = prepare(image, self._config.image_size)
            scales.append(scale)
        found = self._predictor.proposals(self._variables, stack)
        filled = _filled(vectors)
        align = self._predictor.scores(self._variables, found["embeddings"], filled)[:, : len(vectors)]
        for i, (image, scale) in enumerate(zip(images, scales, strict=True)):
            size = image.shape[:2]
            boxes = box_ops.scale(found["boxes"][i], 1 / scale)
            centre = (boxes[:, :2] + boxes[:, 2:]) / 2
            keep = found["valid"][i] & (centre[:, 0] < size[1]) & (centre[:, 1] < size[0])  # no filling
            yield size, box_ops.clip(boxes, size)[keep], found["conf"][i][keep], align[i][:, keep]

    def _embed(self, texts: list[str]) -> None:
        new = [text for text in dict.fromkeys(texts) if text not in self._embeddings]
        if new:
            vectors = self._text_vectors(self.tokenizer.encode(new))
            self._embeddings |= dict(zip(new, vectors, strict=True))

    def _text_vectors(self, rows: np.ndarray) -> np.ndarray:
        """(n, d) unit vectors of tokens (n, length) or sentence embeddings (n, width)."""
        return np.asarray(self._predictor.texts(self._variables, _filled(rows)), np.float32)[: len(rows)]

    def _given_embeddings(self, texts, labels):
        """(label, phrase, vector) from a dict phrase -> sentence embedding."""
        width = self._config.text_features
        if not isinstance(texts, Mapping) or not texts:
            raise ConfigError(
                f"this model takes sentence embeddings: give a dict phrase -> array of {width} numbers"
            )
        given = [_embedding(text, vector, width) for text, vector in texts.items()]
        names = [name for name, _ in _labelled(list(texts), labels, None)]
        vectors = self._text_vectors(np.stack(given))
        return list(zip(names, map(str, texts), vectors, strict=True))


def load(weights: str, overrides: Mapping[str, Any] | None = None, **options) -> PhraseDetector:
    """A `PhraseDetector` from a registered name, a file of `sm-jax weights export`, or the folder of a run.

    Args:
      weights: the name or path.
      overrides: fields of `ModelConfig` that differ from those stored with the weights.
      **options: of `PhraseDetector`; `proposals` by default as the model was evaluated.

    Raises:
      WeightsError: weights that are not there, of another system, or that do not fit; ConfigError: unknown
      fields.
    """
    found = pretrained.trained(weights, system="crossmodal", overrides=overrides)
    rules = ProposalOptions.of_eval(found.config.get("eval", {}))
    config = crossmodal.ModelConfig.create(found.config.model)
    return PhraseDetector(config, found.variables, **{"notes": found.notes, "proposals": rules} | options)


def _labelled(texts, labels, tokenizer: Tokenizer | None) -> list[tuple[str, str]]:
    """(label, phrase) of each phrase, checked."""
    if isinstance(texts, Mapping):
        if labels is not None:
            raise ConfigError("labels: the phrases are a dict, whose keys are the labels")
        pairs = [(str(label), text) for label, value in texts.items() for text in listed(value)]
    else:
        given = listed(texts)
        if isinstance(labels, str):
            labels = [labels] * len(given)
        names = given if labels is None else list(map(str, labels))
        if len(names) != len(given):
            raise ConfigError(
                f"labels: {len(names)} for {len(given)} phrase{'s' * (len(given) != 1)}; give one for each, "
                "or one for all"
            )
        pairs = list(zip(names, given, strict=True))
    if not pairs:
        raise ConfigError("no phrase: say what to look for")
    checked = []
    for label, text in pairs:
        if tokenizer is not None:
            tokenizer.check(text)
            if unknown := tokenizer.unknown(text):
                warnings.warn(_ignored(text, unknown), stacklevel=3)
            elif COMMANDS.issuperset(words(text)):
                warnings.warn(f"phrase {text[:60]!r}: no word of it says what to find", stacklevel=3)
        checked.append((" ".join(str(label).split()), text))
    return checked


def _ignored(text: str, unknown: Sequence[str]) -> str:
    words = ", ".join(repr(word[:40]) for word in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
    return f"phrase {text[:60]!r}: the model does not know {words}; what it finds may ignore that"


def _embedding(text: Any, vector: Any, width: int) -> np.ndarray:
    """The sentence embedding of a phrase, f32 (width,); raises TextError for anything else."""
    try:
        with np.errstate(over="ignore"):  # what float32 cannot hold is not finite in it
            row = np.asarray(vector, np.float32)
    except (TypeError, ValueError):
        row = np.zeros(0, np.float32)
    if row.shape != (width,) or not np.isfinite(row).all():
        raise TextError(f"phrase {text!r:.60}: expected {width} finite numbers as its embedding")
    return row


def _filled(rows: np.ndarray) -> np.ndarray:
    """`rows`, at least `FEWEST_ROWS` of them: one program serves any few phrases."""
    return np.concatenate([rows, np.repeat(rows[-1:], max(0, FEWEST_ROWS - len(rows)), axis=0)])


def _read(picture) -> np.ndarray:
    name = str(picture) if isinstance(picture, (str, os.PathLike)) else "image"
    return pictures.as_image(picture, name=name)
