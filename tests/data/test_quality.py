import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlean.data.quality import FORBIDDEN, RULES, Measured, bounds, broken

PROSE = (
    "The river had been rising since the morning, and by noon the water stood at the doors of the mill. Nobody in the "
    "village could remember such a spring. Those who had boats took the old people and the children to the hill, where "
    "the priest had opened the church, and went back for the cattle. In the evening the rain stopped, the wind turned, "
    "and the moon came out over a lake that had not been there the day before."
)


def of_profile(name, text, **given):
    return broken(text, bounds(name, given), FORBIDDEN[name])


@pytest.mark.parametrize("profile", ["rows", "gopher", "c4"])
def test_prose_passes_every_profile(profile):
    assert of_profile(profile, PROSE) is None


@pytest.mark.parametrize(
    "text",
    [
        "How do I top up?",
        "def f(x):\n    return x + 1  # the next one\n",
        '{"intent": "refund", "slots": {"amount": "12.50"}}',
        "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n#### 72",
        "\u4eca\u5929\u5929\u6c14\u5f88\u597d\u3002" * 3,
        "\u041a\u043e\u0448\u043a\u0430 \u0441\u043f\u0438\u0442.",
        "yes",
    ],
)
def test_examples_that_models_are_tuned_on_pass_the_profile_for_them(text):
    assert of_profile("rows", text) is None


@pytest.mark.parametrize(
    ("profile", "rule", "text"),
    [
        ("rows", "min_words", " \n "),
        ("gopher", "min_words", "too short"),
        ("gopher", "min_mean_word_length", "a b of an it to " * 10),
        ("rows", "max_mean_word_length", "x" * 41),
        ("gopher", "max_mean_word_length", "incomprehensibilities " * 50),
        ("gopher", "max_hash_ratio", PROSE + " #" * 20),
        ("gopher", "max_ellipsis_ratio", PROSE + " well ..." * 20),
        ("gopher", "max_bullet_lines", "\n".join(f"- {part}" for part in PROSE.split(", "))),
        ("gopher", "max_ellipsis_lines", "\n".join(f"{part} ..." for part in PROSE.split(". ")[:2]) + f"\n{PROSE}..."),
        ("gopher", "min_alphabetic_words", PROSE + " 12 34" * 30),
        ("gopher", "min_stop_words", " ".join(f"Wort{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(60))),
        ("gopher", "max_duplicate_lines", "\n".join(["a line", "a line", PROSE])),
        ("rows", "max_duplicate_lines", "again\n" * 5),
        ("gopher", "max_duplicate_paragraphs", PROSE.replace(". ", ".\n") + "\n\nOne.\n\nOne.\n\nOne."),
        ("gopher", "max_top_2gram", PROSE[:200] + " buy now" * 30),
        ("rows", "max_top_2gram", "buy now " * 60),
        ("gopher", "max_duplicate_5gram", PROSE + " " + PROSE[:120]),
        ("c4", "min_sentences_of_lines", "This is only one sentence. And these are two sentences."),
        ("c4", "min_sentences_of_lines", "One. Two. Three here."),
        ("c4", "min_sentences_of_lines", "Enable Javascript to read this. Please do. Thank you.\nA long last line."),
        ("c4", "min_sentences_of_lines", "This site uses cookies, as most do. Do you agree? Then press the button."),
        ("c4", "min_sentences_of_lines", "We went on. We came back. And then it was all over ..."),
        ("gopher", "max_bullet_lines", "\n".join(f"\u2022{part}" for part in PROSE.split(", "))),
        ("c4", "min_terminal_lines", f"Home\nAbout\nContact\n{PROSE}"),
        ("c4", "forbidden", PROSE + " Lorem ipsum dolor."),
        ("c4", "forbidden", PROSE + " function() { return 1; }."),
    ],
)
def test_what_breaks_a_rule_is_found_by_it(profile, rule, text):
    found = of_profile(profile, text)
    assert found is not None
    assert found[0] == rule


def test_a_bound_of_one_is_never_broken():
    asked = {f"max_top_{n}gram": 1.0 for n in (2, 3, 4)} | {f"max_duplicate_{n}gram": 1.0 for n in range(5, 11)}
    assert broken("again " * 60, asked) is None
    assert Measured("again " * 60).top_ngram(2) == 1


def test_a_bound_of_ones_own_goes_before_the_profiles():
    assert of_profile("rows", "one two", min_words=3) == ("min_words", 2)
    assert of_profile("gopher", "one two", min_words=0, min_stop_words=0) is None


def test_every_bound_of_the_papers_is_theirs():
    gopher = bounds("gopher", {})
    assert [gopher[f"max_top_{n}gram"] for n in (2, 3, 4)] == [0.20, 0.18, 0.16]
    assert [gopher[f"max_duplicate_{n}gram"] for n in range(5, 11)] == [0.15, 0.14, 0.13, 0.12, 0.11, 0.10]
    assert (gopher["min_words"], gopher["max_words"], gopher["min_alphabetic_words"]) == (50, 100_000, 0.8)
    assert all(rule.source for rule in RULES.values())


def slow_top(words, n):
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    counts = Counter(grams)
    most = max(counts.values())
    longest = max((gram for gram in counts if counts[gram] == most), key=lambda gram: len("".join(gram)))
    inside = {i + j for i, gram in enumerate(grams) if gram == longest for j in range(n)}
    return sum(len(words[i]) for i in inside) / len("".join(words)) if most > 1 else 0.0


def slow_duplicates(words, n):
    counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    inside = {i + j for i in range(len(words) - n + 1) if counts[tuple(words[i : i + n])] > 1 for j in range(n)}
    return sum(len(words[i]) for i in inside) / len("".join(words))


@given(st.integers(0, 10**6), st.integers(2, 30), st.integers(50, 120))
def test_ngrams_are_those_counted_slowly(seed, vocabulary, count):
    rng = random.Random(seed)
    words = [rng.choice("abcdefghijklmnopqrstuvwxyzABCD"[:vocabulary]) * rng.randint(1, 3) for _ in range(count)]
    measured = Measured(" ".join(words))
    for n in (2, 3, 4):
        assert measured.top_ngram(n) == pytest.approx(slow_top(words, n))
        assert measured.top_ngram_at_most(n) >= measured.top_ngram(n) - 1e-12
    for n in (5, 7, 10):
        assert measured.duplicate_ngrams(n) == pytest.approx(slow_duplicates(words, n))


def test_a_character_of_chinese_is_a_word():
    assert len(Measured("\u4eca\u5929 hello, \u5929\u6c14").words) == 5
