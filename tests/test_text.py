"""The tokenizer: the specification's vector, every script, and phrases that cannot be read."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sm_jax import text
from sm_jax.data.shapes import grammar
from sm_jax.errors import ConfigError, SmJaxError, TextError
from sm_jax.text import COMMANDS, ENC, PAD, UNK, Tokenizer

WORDS = ("red", "find", "all", "the", "circles")


def test_vector_of_the_specification():
    """Spec sec. 6, vector 10."""
    tokenizer = Tokenizer(WORDS)
    row = tokenizer.encode("Find all the red circles!")[0]
    assert tokenizer.vocabulary == ("all", "circles", "find", "red", "the")
    assert row.tolist() == [ENC, 5, 3, 7, 6, 4] + [PAD] * 10
    assert (PAD, ENC, UNK) == (0, 1, 2) and row.dtype == np.int32 and tokenizer.size == 8


def test_rows_and_unknown_words():
    tokenizer = Tokenizer(WORDS, 4)
    rows = tokenizer.encode(["the green circles", "", "all the red circles", "RED,red;red"])
    assert rows.tolist() == [
        [ENC, 7, UNK, 4],
        [ENC, PAD, PAD, PAD],
        [ENC, 3, 7, 6],
        [ENC, 6, 6, 6],
    ]
    assert tokenizer.encode([]).shape == (0, 4)
    assert tokenizer.unknown("a green, green thing that is red") == ["a", "green", "thing", "that", "is"]
    assert Tokenizer(tokenizer.vocabulary[::-1], 4).encode("find all").tolist() == [[ENC, 5, 3, PAD]]
    assert Tokenizer.from_texts(["Find the", "the circles."], length=5).vocabulary == (
        "circles",
        "find",
        "the",
    )


@pytest.mark.parametrize(
    ("phrase", "words"),
    [
        ("Don't  STOP\u2014me\u2026", ["dont", "stop", "me"]),
        ("rock\u2019n\u2019roll (loud), dark-red_thing", ["rocknroll", "loud", "dark", "red", "thing"]),
        ("\u00abКрасные КРУГИ\u00bb", ["красные", "круги"]),
        ("ＲＥＤ ﬁnd x²", ["red", "find", "x2"]),
        ("赤い円", ["赤", "い", "円"]),
        ("الدوائر، الحمراء؟", ["الدوائر", "الحمراء"]),
        ("लाल वृत्त।", ["लाल", "वृत्त"]),
        ("e\u0301te\u0301 \u200bzero\u200bwidth\x00", ["\u00e9t\u00e9", "zerowidth"]),
        ("find \U0001f534 now \ud800", ["find", "\U0001f534", "now"]),
        ("\t\n\u2003", []),
        ("?!... -- \u061f", []),
    ],
)
def test_words_of_many_scripts(phrase, words):
    assert text.words(phrase) == words
    assert text.words(" ".join(words)) == words


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_every_text_encodes(phrase):
    """Whatever the text, a row has the fixed form, and its words are known to a tokenizer made from it."""
    tokenizer = Tokenizer.from_texts([phrase], length=8)
    row = tokenizer.encode(phrase)[0]
    count = min(len(text.words(phrase)), 7)
    assert row[0] == ENC and (row[1 : 1 + count] > UNK).all() and (row[1 + count :] == PAD).all()
    assert tokenizer.unknown(phrase) == []
    if 0 < len(text.words(phrase)) <= 7:
        assert tokenizer.check(phrase) == phrase


@pytest.mark.parametrize(
    ("phrase", "says"),
    [
        ("", "no words"),
        (" ?! ", "no words"),
        ("red " * 10_000, "10000 words, the model reads at most 15"),
        ("yellow stars", "knows none of its words; it knows all, circles, find, red, the"),
        ("Find the yellow stars", "knows none of its words that say what to find; it knows all, circles"),
        ("желтые\nзвезды\ud800", "knows none"),
        (None, "must be text, not NoneType"),
        (7, "must be text, not int"),
    ],
)
def test_what_cannot_be_read_is_one_line(phrase, says):
    with pytest.raises(TextError, match=says) as caught:
        Tokenizer(WORDS).check(phrase)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 300 and message.encode()
    assert isinstance(caught.value, SmJaxError)


def test_what_can_be_read_is_given_back():
    tokenizer = Tokenizer(WORDS)
    assert tokenizer.check("a RED thing") == "a RED thing"
    assert tokenizer.check("red " * 15) == "red " * 15
    assert tokenizer.check("find all") == "find all"  # a model may have learnt what that means
    assert "and 5 more" in _message(lambda: Tokenizer([f"w{i}" for i in range(25)]).check("x"))


def test_commands_are_those_of_the_packaged_model():
    assert {word for frame in grammar.FRAMES for word in frame.split()} | {"the", grammar.AND} < COMMANDS
    assert not COMMANDS & {*grammar.COLOURS, *grammar.SHAPES, *grammar.GENERIC}


@pytest.mark.parametrize("word", ["", "two words", "Red", "stop!", "a-b"])
def test_a_vocabulary_holds_words(word):
    with pytest.raises(ConfigError, match="is not one lower-case word"):
        Tokenizer(["red", word])


def test_a_length_without_room():
    with pytest.raises(ConfigError, match="text_length: must be at least 2"):
        Tokenizer(WORDS, 1)


def test_needs_neither_jax_nor_pillow():
    code = "import sys, sm_jax.text; assert not {'jax', 'PIL', 'grain'} & set(sys.modules)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def _message(call):
    with pytest.raises(TextError) as caught:
        call()
    return str(caught.value)
