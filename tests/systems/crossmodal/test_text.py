"""The text encoder against PyTorch's encoder layer, and what padding, dropout and unknown ids do to it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sm_jax.systems.crossmodal.text import FeatureEncoder, TextEncoder

VOCABULARY, LENGTH = 9, 6
TOKENS = np.array([[1, 3, 4, 5, 2, 8], [1, 7, 0, 0, 0, 0], [1, 6, 6, 3, 0, 0]], np.int32)


@functools.cache
def make(**options):
    """The compiled encoder and its variables."""
    encoder = TextEncoder(VOCABULARY, LENGTH, **{"width": 8, "heads": 2, "ffn": 12, "embed": 8} | options)
    return jax.jit(encoder.apply), jax.jit(encoder.init)(jax.random.key(0), TOKENS)


def spread(variables, seed=0):
    """Other values than the start's zeros and ones, so that every parameter counts."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: x + 0.3 * rng.standard_normal(x.shape).astype(np.float32), jax.device_get(variables)
    )


def in_torch(torch, params, tokens, heads, ffn):
    """The same network made of PyTorch's own layers."""
    words, positions = (torch.tensor(params[name]) for name in ("words", "positions"))
    tokens = torch.tensor(tokens, dtype=torch.long)
    x = words[tokens] + positions[None, : tokens.shape[1]]
    for i in range(sum(name.startswith("layer_") for name in params)):
        mine = params[f"layer_{i}"]
        layer = torch.nn.TransformerEncoderLayer(x.shape[-1], heads, ffn, batch_first=True, dropout=0.0)
        qkv = [mine[name] for name in ("query", "key", "value")]
        values = {
            "self_attn.in_proj_weight": np.concatenate([part["kernel"].T for part in qkv]),
            "self_attn.in_proj_bias": np.concatenate([part["bias"] for part in qkv]),
        }
        for name, theirs in (("out", "self_attn.out_proj"), ("ffn1", "linear1"), ("ffn2", "linear2")):
            values |= {f"{theirs}.weight": mine[name]["kernel"].T, f"{theirs}.bias": mine[name]["bias"]}
        for name in ("norm1", "norm2"):
            values |= {f"{name}.weight": mine[name]["scale"], f"{name}.bias": mine[name]["bias"]}
        layer.load_state_dict({k: torch.tensor(np.ascontiguousarray(v)) for k, v in values.items()})
        x = layer(x, src_key_padding_mask=tokens == 0)
    return torch.nn.functional.normalize(x[:, 0], dim=-1).detach().numpy()


@pytest.mark.parametrize("layers", [1, 3])
def test_equals_torch(layers):
    torch = pytest.importorskip("torch")
    encode, variables = make(layers=layers)
    variables = spread(variables)
    got = encode(variables, TOKENS)
    want = in_torch(torch, variables["params"], TOKENS, heads=2, ffn=12)
    np.testing.assert_allclose(got, want, atol=2e-6)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(2, VOCABULARY - 1), min_size=1, max_size=LENGTH - 1))
def test_padding_changes_nothing_and_every_answer_has_length_one(words):
    encode, variables = make()
    short = np.array([[1, *words]], np.int32)
    padded = np.pad(short, ((0, 1), (0, LENGTH - short.shape[1])))
    got = encode(variables, padded)
    np.testing.assert_allclose(got[0], encode(variables, short)[0], atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(got, axis=-1), 1, atol=1e-5)  # the row of padding too


def test_order_of_words_counts_through_positions_only():
    encode, variables = make()
    swapped = TOKENS[:, [0, 2, 1, 3, 4, 5]]
    variables = spread(variables)
    assert np.abs(encode(variables, TOKENS)[0] - encode(variables, swapped)[0]).max() > 1e-4
    variables["params"]["positions"][:] = 0
    np.testing.assert_allclose(encode(variables, TOKENS)[0], encode(variables, swapped)[0], atol=1e-6)


@pytest.mark.parametrize("wrong", [-1, VOCABULARY, 10**6])
def test_an_id_outside_the_vocabulary_is_nan_in_its_row_only(wrong):
    encode, variables = make()
    tokens = TOKENS.copy()
    tokens[0, 2] = wrong
    got = encode(variables, tokens)
    assert np.isnan(got[0]).all() and np.isfinite(got[1:]).all()


def test_dropout_needs_a_key_and_keeps_the_mean():
    encode, variables = make(dropout=0.3)
    plain = encode(variables, TOKENS)
    run = jax.jit(jax.vmap(lambda key: encode(variables, TOKENS, key=key)))
    drawn = run(jax.random.split(jax.random.key(1), 400))
    assert np.abs(drawn[0] - drawn[1]).max() > 0.05
    cosine = jnp.sum(drawn.mean(axis=0) * plain, axis=-1) / jnp.linalg.norm(drawn.mean(axis=0), axis=-1)
    assert cosine.min() > 0.97
    still, variables = make(dropout=0.0)
    again = still(variables, TOKENS, key=jax.random.key(0))
    np.testing.assert_allclose(again, plain, atol=1e-6)


def test_another_width_is_projected():
    encode, variables = make(embed=5)
    assert variables["params"]["project"]["kernel"].shape == (8, 5)
    assert encode(variables, TOKENS).shape == (3, 5)
    assert "project" not in make()[1]["params"]


def test_sentence_embeddings_are_projected():
    encoder, features = FeatureEncoder(6), np.random.default_rng(0).normal(size=(4, 20)).astype(np.float32)
    variables = spread(jax.jit(encoder.init)(jax.random.key(0), features))
    layer = variables["params"]["project"]
    want = features @ layer["kernel"] + layer["bias"]
    want /= np.linalg.norm(want, axis=-1, keepdims=True)
    np.testing.assert_allclose(jax.jit(encoder.apply)(variables, features), want, atol=1e-5)


def test_gradients_of_padding_are_zero():
    encode, variables = make(layers=2)

    def total(params):
        return jnp.sum(encode({"params": params}, TOKENS) ** 3)

    grads = jax.jit(jax.grad(total))(spread(variables)["params"])
    assert (grads["words"][0] == 0).all() and (np.abs(grads["words"][1:]).max(axis=-1) > 0).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
