"""Fixed-shape inference: proposals once per image, vectors once per phrase, every pair of them compared."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sm_jax import rpn
from sm_jax.errors import ConfigError
from sm_jax.systems.chunks import counted, in_chunks, padded
from sm_jax.systems.crossmodal import model

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class ProposalOptions:
    """Which boxes of an image become proposals (Ferreira et al. 2023, sec. 4; spec of our own where silent).

    Attributes:
      min_conf: confidence must be above this.
      iou: of two boxes that overlap by more than this the less confident is dropped.
      size: proposals of an image at most.
      min_side: boxes with a shorter side, in pixels after clipping, are dropped.
    """

    min_conf: float = 0.5
    iou: float = 0.5
    size: int = 100
    min_side: float = 4.0

    def __post_init__(self):
        if not (0 <= self.min_conf <= 1 and 0 <= self.iou <= 1):
            raise ConfigError("proposals: min_conf and iou must lie between 0 and 1")
        if self.size < 1:
            raise ConfigError(f"proposals: size is {self.size}, must be positive")

    @classmethod
    def of_eval(cls, options: Mapping[str, Any]) -> "ProposalOptions":
        """Those of the `eval` section of a config: `min_conf`, `nms_iou` and `max_proposals`."""
        names = {"min_conf": "min_conf", "iou": "nms_iou", "size": "max_proposals"}
        return cls(**{name: options[key] for name, key in names.items() if key in options})


def propose(
    config: model.ModelConfig,
    variables: dict[str, Any],
    inputs: Mapping[str, Array],
    options: ProposalOptions | None = None,
) -> dict[str, Array]:
    """Proposals of images.

    Args:
      config: the model.
      variables: `params` and `batch_stats`.
      inputs: "image" f32 "b H W 3" normalised, sides multiples of 32, or "trunk"; see `model.features`.
      options: default `ProposalOptions()`.

    Returns:
      `boxes` f32 "b k 4" pixels, clipped to the image, `conf` f32 "b k" descending, `valid` bool "b k" (all 0
      where False), `embeddings` f32 "b k d" unit vectors.
    """
    features = model.features(config, variables, inputs)
    height, width = features.shape[1:3]
    found = model.score_anchors(config, variables, features)
    keep = functools.partial(
        rpn.propose,
        anchors=jnp.asarray(model.anchors(config, (height, width))),
        image_size=(height * model.STRIDE, width * model.STRIDE),
        **dataclasses.asdict(options or ProposalOptions()),
    )
    proposals = jax.vmap(lambda logits, codes: keep(logits, codes))(found["logits"], found["codes"])
    embeddings = model.encode_proposals(config, variables, features, proposals["boxes"])
    return {**proposals, "embeddings": jnp.where(proposals["valid"][..., None], embeddings, 0.0)}


def align(config: model.ModelConfig, variables: dict[str, Any], embeddings: Array, text: Array) -> Array:
    """Probability f32 "b q k" that proposals "b k d" are what phrases describe.

    `text` is "q d", for all images, or "b q d", for each its own.
    """
    compare = functools.partial(model.align_logits, config, variables)
    return jax.nn.sigmoid(jax.vmap(compare, in_axes=(0, 0 if text.ndim == 3 else None))(embeddings, text))


def encode(
    config: model.ModelConfig, variables: dict[str, Any], requests: Mapping[str, Array]
) -> dict[str, Array]:
    """Phrases, "tokens" i32 "q l" or "text_features" f32 "q e", to `{"text": f32 "q d"}` unit vectors."""
    return {"text": model.encode_text(config, variables, model.text_of(config, requests))}


def predict(
    config: model.ModelConfig,
    variables: dict[str, Any],
    images: Mapping[str, Array],
    encoded: Mapping[str, Array],
    options: ProposalOptions | None = None,
) -> dict[str, Array]:
    """Proposals of images and what they have to do with phrases.

    Args:
      config: the model.
      variables: `params` and `batch_stats`.
      images: as `inputs` of `propose`.
      encoded: of `encode`; `text` "q d", or "b q d".
      options: of `propose`.

    Returns:
      What `propose` returns, `align` f32 "b q k" and `scores` = conf x align, both 0 where not valid.
    """
    found = propose(config, variables, images, options)
    aligned = align(config, variables, found["embeddings"], encoded["text"])
    aligned = jnp.where(found["valid"][:, None], aligned, 0.0)
    return {**found, "align": aligned, "scores": found["conf"][:, None] * aligned}


class Predictor:
    """Runs a model with a bounded number of compiled programs; answers are NumPy arrays.

    Images go through in chunks of at most `chunk`, phrases in chunks of at most `text_chunk`; the last chunk
    is padded to a power of two. So there are at most log2(chunk) + 1 programs per image shape for the
    proposals, log2(text_chunk) + 1 for the phrases, and for the scores one per pair of both.

    Attributes:
      compiles: how often "proposals", "texts" and "scores" were traced, so compiled or read from the cache.
    """

    def __init__(
        self,
        config: model.ModelConfig,
        options: ProposalOptions | None = None,
        *,
        chunk: int | None = None,
        text_chunk: int = 1024,
    ):
        """Make a predictor.

        Args:
          config: the model.
          options: which boxes become proposals; default `ProposalOptions()`.
          chunk: images per call, a power of two; None chooses 4 on a CPU and 32 elsewhere.
          text_chunk: phrases per call, a power of two.
        """
        chunk = chunk or (4 if jax.default_backend() == "cpu" else 32)
        for name, value in (("chunk", chunk), ("text_chunk", text_chunk)):
            if value < 1 or value & (value - 1):
                raise ValueError(f"{name} must be a power of two, is {value}")
        self.config, self.options = config, options or ProposalOptions()
        self.compiles: Counter[str] = Counter()
        self._chunk, self._text_chunk = chunk, text_chunk

        def proposals(variables, image):
            return propose(config, variables, {"image": image}, self.options)

        def texts(variables, text):
            return model.encode_text(config, variables, text)

        self._proposals = jax.jit(counted(self.compiles, "proposals", proposals))
        self._texts = jax.jit(counted(self.compiles, "texts", texts))
        self._scores = jax.jit(counted(self.compiles, "scores", functools.partial(align, config)))

    def proposals(self, variables, images: np.ndarray) -> dict[str, np.ndarray]:
        """Proposals of normalised images f32 (b, H, W, 3), sides multiples of 32.

        Returns:
          `boxes` (b, k, 4) pixels, `conf` (b, k) descending, `valid` (b, k), `embeddings` (b, k, d).
        """
        run = functools.partial(self._proposals, variables)
        return in_chunks(run, np.asarray(images, np.float32), self._chunk)

    def texts(self, variables, text: np.ndarray) -> np.ndarray:
        """Unit vectors (q, d) of phrases: tokens int (q, l), or sentence embeddings float (q, e)."""
        run = functools.partial(self._texts, variables)
        kind = np.float32 if self.config.text_encoder == "features" else np.int32
        return in_chunks(run, np.asarray(text, kind), self._text_chunk)

    def scores(self, variables, embeddings: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """Alignment (b, q, k) of proposals (b, k, d) with phrases (q, d), or of each image (b, q, d)."""
        own = np.ndim(texts) == 3
        phrases = np.shape(texts)[-2]
        out = np.zeros((len(embeddings), phrases, np.shape(embeddings)[1]), np.float32)
        for start in range(0, len(embeddings), self._chunk):
            images = slice(start, start + self._chunk)
            part, used = padded(np.asarray(embeddings[images], np.float32), self._chunk)
            for first in range(0, phrases, self._text_chunk):
                some = slice(first, first + self._text_chunk)
                text = np.asarray(texts[images, some] if own else texts[some], np.float32)
                text, count = padded(text, self._text_chunk, axis=-2)
                text = padded(text, self._chunk)[0] if own else text
                out[images, some] = np.asarray(self._scores(variables, part, text))[:used, :count]
        return out
