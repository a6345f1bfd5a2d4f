import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
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
        ("Hello!!", '"hello"'),
        ("Quoi ?", "quoi"),
        ("yes,no ,perhaps", "Yes, no, perhaps ..."),
        ("a 5-year plan", "a 5 year plan"),
        ('"5 apples"', "5 apples"),
        ("I ate (a lot).", "i ate (a lot)"),
        ("C++.", "c++"),
        ('"Where is order 2737"', "where is order 2737"),
        ("Where is order 2737!!", "where is order 2737"),
        ("it failed - I have no idea -- none", "It failed, I have no idea. None"),
        ("The transfer fails - why?", "the transfer fails , why"),
        ("$x_i$, and $y$.", "$x_i$ and $y$"),
        ("\u4eca\u5929\u3002\u660e\u5929\uff01\u597d", "\u4eca\u5929 \u660e\u5929 \u597d"),
        ("\u22124", "-4"),
        ("don\u00b4t", "don't"),
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
        ("10\u00b2", "102"),
        ("H\u2082O", "H2O"),
        ("1\u00bd", "1 1/2"),
        ("1\u00bd", "11\u20442"),
        ("-4 degrees", "4 degrees"),
        ("if (!x)", "if (x)"),
        ("!done", "done"),
        ("a != b", "a = b"),
        ("x - y", "x, y"),
        ("x-y", "x, y"),
        ("x - a b", "x, a b"),
        ("-v", "v"),
        ("f'(x)", "f(x)"),
        ("f' = g", "f = g"),
        ("n!", "n"),
        ("5!", "5"),
        ('a board of 5"', "a board of 5"),
        ("$n!$", "$n$"),
        ("x_{1,2}", "x_{12}"),
        ("a_i", "a i"),
        ("a\\,b", "a b"),
        ("(a + b) * c", "a + b * c"),
        ("x = []", "x = {}"),
        ('x = ""', "x ="),
        ('x = "y"', "x = y"),
        ("print('x')", "print(x)"),
        ("a.b", "a, b"),
        ("std::x", "std x"),
        (":)", ":("),
        ("?!", "..."),
    ],
)
def test_what_makes_a_difference(one, other):
    assert normalise(one) != normalise(other)


def test_nothing_is_ignored_unless_asked():
    assert normalise("A,  b", ()) == "A,  b"
    assert normalise("A,  b", ("case",)) == "a,  b"
    assert normalise("A,  b", ("whitespace",)) == "A, b"


MARKED = st.text("abX19é .,;:?!…—'\"“’-–=+*(){}_\\$。「²½\n", max_size=12)  # noqa: RUF001


@settings(max_examples=300)
@given(st.text() | MARKED)
def test_normalising_again_changes_nothing(text):
    once = normalise(text)
    assert normalise(once) == once


@given(MARKED.filter(str.strip))
def test_only_spaces_become_nothing(text):
    assert normalise(text)


@given(st.text())
def test_the_form_of_the_letters_makes_no_difference(text):
    assert normalise(unicodedata.normalize("NFD", text)) == normalise(text)


@given(st.lists(st.sampled_from(["a", "b", "c", "d"])))
def test_repeated_names_the_first(texts):
    keys = np.frombuffer(b"".join(map(key, texts)), np.uint64).reshape(-1, 2)
    rows, of = repeated(keys)
    wanted = [(i, texts.index(text)) for i, text in enumerate(texts) if texts.index(text) < i]
    assert list(zip(rows.tolist(), of.tolist(), strict=True)) == wanted


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3 apples", "5 apples"),
        ("from 3 to 5", "from 5 to 3"),
        ("-4 degrees", "4 degrees"),
        ("it owes -$4", "it owes $4"),
        ("10\u00b2", "10\u00b3"),
        ("\u00bd an apple", "\u00bc of an apple"),
        ("1.5", "15"),
    ],
)
def test_numbers_that_differ(one, other):
    assert numbers_of(one) != numbers_of(other)


def test_a_range_has_no_sign():
    assert numbers_of("pages 3-4 of covid-19, (5)-6") == "3 4 19 5 6"
    assert numbers_of("3 apples for $12.50") == numbers_of("take 3, pay $12.50!")
