"""The grammar of phrases about shapes: what each means, how many there are, which are held out."""

import pytest

from sm_jax.data.shapes import grammar
from sm_jax.data.shapes.grammar import Meaning
from sm_jax.errors import TextError
from sm_jax.text import Tokenizer


def test_alignment_flags_of_the_specification():
    """Spec sec. 6, vector 11."""
    objects = ["red circle", "red square", "blue circle"]
    assert grammar.matches("red objects", objects) == [True, True, False]
    assert grammar.matches("circles", objects) == [True, False, True]
    assert grammar.matches("the blue circle", objects) == [False, False, True]


def test_other_phrases():
    objects = ["red circle", "red square", "blue circle"]
    assert grammar.matches("Find all objects that are red!", objects) == [True, True, False]
    assert grammar.matches("show me the squares colored red and blue things", objects) == [False, True, True]
    assert grammar.matches("find all shapes", objects) == [True, True, True]
    assert grammar.matches("the green triangle", objects) == [False, False, False]


@pytest.mark.parametrize("long_forms", [False, True])
def test_every_phrase_means_what_it_is_made_for(long_forms):
    counts = {}
    for meaning in grammar.MEANINGS:
        every = grammar.phrases(meaning, long_forms=long_forms)
        counts[meaning] = len(set(every))
        assert len(every) == len(set(every))
        for phrase in every:
            assert grammar.parse(phrase) == (meaning,)
            assert phrase == " ".join(phrase.split())
    forms = 3 if long_forms else 1
    assert counts[Meaning("red", "circle")] == 7 * 2 * 2 * forms
    assert counts[Meaning(None, "circle")] == 7 * 2 * 2
    assert counts[Meaning("red", None)] == 7 * 2 * 6 * forms
    assert len(grammar.MEANINGS) == 15


def test_a_share_of_every_meaning_is_held_out_and_no_word_is():
    trained, held = [], []
    for meaning in grammar.MEANINGS:
        train, kept = grammar.divided(meaning, 0.1)
        assert not set(train) & set(kept)
        assert set(train) | set(kept) == set(grammar.phrases(meaning))
        assert len(kept) == round(0.1 * len(train + kept)) > 0
        trained += train
        held += kept
    assert 0.09 < len(held) / len(trained + held) < 0.11
    assert Tokenizer.from_texts(trained).vocabulary == grammar.vocabulary()
    assert grammar.divided(grammar.MEANINGS[0], 0.0)[1] == ()
    assert len(grammar.divided(grammar.MEANINGS[0], 0.999)[0]) == 1


def test_what_is_held_out_never_changes():
    """Trained models know it: another choice would make their held-out numbers wrong."""
    held = grammar.divided(Meaning("red", "circle"), 0.1)[1]
    assert held == ("red circles", "show me the red circle", "i want to see the red circle")


def test_vocabulary():
    words = grammar.vocabulary()
    assert len(words) == 28 and {"i", "see", "triangles", "thing"} < set(words) and "and" not in words
    assert set(grammar.vocabulary(long_forms=True, unions=True)) - set(words) == {"and", "that", "colored"}


@pytest.mark.parametrize(
    ("phrase", "says"),
    [
        ("find the yellow circle", "'yellow' is not a word"),
        ("", "must name"),
        ("find all the", "must name"),
        ("red blue circle", "must name one"),
        ("the circles and", "must name"),
    ],
)
def test_phrases_outside_the_grammar(phrase, says):
    with pytest.raises(TextError, match=says):
        grammar.parse(phrase)
