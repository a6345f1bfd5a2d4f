import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlean.data.dedupe import key, normalise, numbers_of, repeated


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Top up", "top-up"),
        ("Is there an auto top up option?", "is there an AUTO top-up option"),
        ("caf\u00e9", "cafe\u0301"),
        ("\uff28\uff45\uff4c\uff4c\uff4f", "hello"),  # full width
        ("Stra\u00dfe", "STRASSE"),
        ("don\u2019t  stop", "don't stop..."),
        ("a\n\tb", "A b"),
    ],
)
def test_what_makes_no_difference(one, other):
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3 + 4", "3 - 4"),
        ("3*4", "3/4"),
        ("1.5", "15"),
        ("C", "C++"),
        ("10%", "10"),
        ("\u0939\u093f\u0902\u0926\u0940", "\u0939\u0926"),  # vowel signs are letters' own
        ("r\u00e9sum\u00e9", "resume"),
    ],
)
def test_what_makes_a_difference(one, other):
    assert normalise(one) != normalise(other)


def test_nothing_is_ignored_unless_asked():
    assert normalise("A,  b", ()) == "A,  b"
    assert normalise("A,  b", ("case",)) == "a,  b"
    assert normalise("A,  b", ("whitespace",)) == "A, b"


@given(st.text())
def test_normalising_again_changes_nothing(text):
    once = normalise(text)
    assert normalise(once) == once


@given(st.text())
def test_the_form_of_the_letters_makes_no_difference(text):
    assert normalise(unicodedata.normalize("NFD", text)) == normalise(text)


@given(st.lists(st.sampled_from(["a", "b", "c", "d"])))
def test_repeated_names_the_first(texts):
    keys = np.frombuffer(b"".join(map(key, texts)), np.uint64).reshape(-1, 2)
    rows, of = repeated(keys)
    wanted = [(i, texts.index(text)) for i, text in enumerate(texts) if texts.index(text) < i]
    assert list(zip(rows.tolist(), of.tolist(), strict=True)) == wanted


def test_numbers_are_compared_whatever_their_order():
    assert numbers_of("3 apples, 12.50 euros") == numbers_of("for 12.50 you get 3")
    assert numbers_of("3 apples") != numbers_of("5 apples")
