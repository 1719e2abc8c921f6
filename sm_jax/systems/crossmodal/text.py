"""Phrases to unit vectors: a small transformer over words, or a linear layer over sentence embeddings.

Source: Ferreira et al. 2023, sec. 3 (one post-norm encoder layer, output at the first token), after
"Attention Is All You Need" (NIPS 2017), sec. 3.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from sm_jax.ops.correlation import l2_normalize
from sm_jax.text import PAD

Array = jax.Array

EPSILON = 1e-6
"""Added to the length before a vector is divided by it."""


class TextEncoder(nn.Module):
    """Words plus learned positions, encoder layers, the output at the first token (ENC), L2 over channels.

    Attributes:
      vocabulary: number of tokens, with PAD, ENC and UNK.
      length: tokens of the longest phrase.
      width: channels inside.
      heads: attention heads, a divisor of `width`.
      layers: encoder layers.
      ffn: channels inside each layer's feed-forward part.
      dropout: rate of dropout in training.
      embed: channels of the result; a linear layer is added only where `width` differs.
    """

    vocabulary: int
    length: int = 16
    width: int = 64
    heads: int = 2
    layers: int = 1
    ffn: int = 256
    dropout: float = 0.1
    embed: int = 64

    @nn.compact
    def __call__(self, tokens: Array, *, key: Array | None = None) -> Array:
        """Unit vectors of phrases.

        Args:
          tokens: i32 "q l", l <= `length`; PAD is not attended to. An id outside the vocabulary gives NaN.
          key: random key of the dropout; None: no dropout.

        Returns:
          f32 "q embed".
        """
        words = self.param("words", nn.initializers.normal(1.0), (self.vocabulary, self.width))
        positions = self.param("positions", nn.initializers.normal(0.02), (self.length, self.width))
        inside = (tokens >= 0) & (tokens < self.vocabulary)  # a negative index would count from the end
        x = words[jnp.where(inside, tokens, 0)] + positions[None, : tokens.shape[1]]
        x = jnp.where(inside[..., None], x, jnp.nan)
        # The first token is always read, so that a row of nothing but padding has a softmax.
        where = (tokens != PAD) | (jnp.arange(tokens.shape[1]) == 0)[None]
        keys = [None] * self.layers if key is None else jax.random.split(key, self.layers)
        for i in range(self.layers):
            queries = 1 if i == self.layers - 1 else tokens.shape[1]  # only ENC is read in the end
            layer = EncoderLayer(self.heads, self.ffn, self.dropout, name=f"layer_{i}")
            x = layer(x, where, queries, keys[i])
        x = x[:, 0]
        if self.width != self.embed:
            x = nn.Dense(self.embed, name="project")(x)
        return l2_normalize(x, epsilon=EPSILON)


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward part, each with dropout, residual and then LayerNorm ("post-norm")."""

    heads: int
    ffn: int
    dropout: float

    @nn.compact
    def __call__(self, x: Array, where: Array, queries: int, key: Array | None) -> Array:
        """The first `queries` positions of "q l c" after the layer; `where` bool "q l", the real tokens."""
        keys = [None] * 4 if key is None else jax.random.split(key, 4)
        width = x.shape[-1]

        def split(y):
            return y.reshape(*y.shape[:-1], self.heads, width // self.heads)

        first = x[:, :queries]
        query = split(nn.Dense(width, name="query")(first)) / math.sqrt(width // self.heads)
        products = jnp.einsum("qihc,qjhc->qhij", query, split(nn.Dense(width, name="key")(x)))
        attention = nn.softmax(jnp.where(where[:, None, None], products, -jnp.inf))
        attention = _dropout(attention, self.dropout, keys[0])
        value = jnp.einsum("qhij,qjhc->qihc", attention, split(nn.Dense(width, name="value")(x)))
        y = nn.Dense(width, name="out")(value.reshape(first.shape))
        x = nn.LayerNorm(epsilon=1e-5, name="norm1")(first + _dropout(y, self.dropout, keys[1]))
        y = _dropout(nn.relu(nn.Dense(self.ffn, name="ffn1")(x)), self.dropout, keys[2])
        y = _dropout(nn.Dense(width, name="ffn2")(y), self.dropout, keys[3])
        return nn.LayerNorm(epsilon=1e-5, name="norm2")(x + y)


class FeatureEncoder(nn.Module):
    """Embeddings of a sentence encoder of any width to unit vectors: one linear layer, L2 over channels."""

    embed: int = 64

    @nn.compact
    def __call__(self, features: Array, *, key: Array | None = None) -> Array:
        """f32 "q d" -> f32 "q embed"; `key` is not used."""
        del key
        return l2_normalize(nn.Dense(self.embed, name="project")(features), epsilon=EPSILON)


def _dropout(x: Array, rate: float, key: Array | None) -> Array:
    """`x` with a share `rate` of its elements set to 0 and the others scaled up; all of it without a key."""
    if key is None or not rate:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0.0)
