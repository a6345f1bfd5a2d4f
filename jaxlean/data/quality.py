"""Rules that tell text from what only looks like it, each with the paper it is from.

Gopher: Rae et al., "Scaling Language Models: Methods, Analysis & Insights from Training Gopher", arXiv 2112.11446,
appendix A.1.1 (quality filtering; repetition: table A1). C4: Raffel et al., "Exploring the Limits of Transfer Learning
with a Unified Text-to-Text Transformer", arXiv 1910.10683, section 2.2, and its code (c4_utils.py of TensorFlow
Datasets).

C4 edits pages where these rules only keep or drop them. It removes lines without a full stop at their end, of less than
5 words, with "javascript" or about cookies and policies, and then drops the page unless 3 sentences are left: of that
the rule `min_sentences_of_lines` is the last part, and the share of lines that would go has a bound of ours. Not done
are its removal of marks such as [1] and of spans of three sentences that stood on another page, and its list of bad
words; that a page is English (with 0.99) is asked by `languages`.

The profile `rows` is ours: examples that a model is fine-tuned on are often one sentence, code, or not English, so that
it has no bounds on length, letters and stop words, and wider ones on symbols.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# Chinese and Japanese have no spaces: there a character counts as a word.
_WORD = re.compile(rf"[{_CJK}]|[^\s{_CJK}]+")
_BULLET = re.compile(r"\s*(?:[•‣▪◦●○]|[–*-]\s)")  # noqa: RUF001
_ELLIPSIS = re.compile(r"\.\.\.|…|\. \. \.")
_SENTENCE_END = re.compile(r"""[.!?。！？]+["'”’)]*(?=\s|$)|[。！？]""")  # noqa: RUF001
_TERMINAL = tuple(""".!?"'”’。！？""")  # noqa: RUF001
_STOP_WORDS = frozenset("the be to of and that have with".split())
_LINE_WORDS = 5
_NO_TEXT = (
    "javascript", "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies",
)  # fmt: skip
# Below, n-grams of any sentence seem frequent. Gopher never sees such texts: it drops them by their length before.
_WORDS_TO_REPEAT = 50
_MIX = np.uint64(0x9E3779B97F4A7C15)


class Measured:
    """A text and what the rules measure of it, each once and only if a rule asks."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def words(self) -> list[str]:
        return self.text.split() if self.text.isascii() else _WORD.findall(self.text)

    @cached_property
    def lengths(self) -> list[int]:
        return [len(word) for word in self.words]

    @cached_property
    def characters(self) -> int:
        return sum(self.lengths)

    @cached_property
    def lines(self) -> list[str]:
        return [line for line in self.text.split("\n") if line.strip()]

    @cached_property
    def paragraphs(self) -> list[str]:
        return [part.strip() for part in re.split(r"\n\s*\n", self.text) if part.strip()]

    def a_word(self, count: float) -> float:
        return count / max(len(self.words), 1)

    def of_lines(self, holds: Callable[[str], Any]) -> float:
        return sum(1 for line in self.lines if holds(line)) / max(len(self.lines), 1)

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([0, *self.lengths])

    @cached_property
    def _ids(self) -> np.ndarray:
        known: dict[str, int] = {}
        return np.array([known.setdefault(word, len(known) + 1) for word in self.words], np.uint64)

    def _runs(self, n: int) -> np.ndarray:
        """A number for each run of n words, the same for the same words."""
        runs = np.zeros(max(len(self._ids) - n + 1, 0), np.uint64)
        for i in range(n):
            runs = runs * _MIX + self._ids[i : i + len(runs)]
        return runs

    def top_ngram(self, n: int) -> float:
        """Share of the characters that lie in the most frequent n-gram, of several in the longest; 0 where none stands
        there twice. In "again again again" those of a pair overlap, and each is counted once.
        """
        if len(self.words) < _WORDS_TO_REPEAT:
            return 0.0
        runs = self._runs(n)
        _, first, counts = np.unique(runs, return_index=True, return_counts=True)
        if counts.max() == 1:
            return 0.0
        first = np.sort(first[counts == counts.max()])
        longest = first[np.argmax(self._ends[first + n] - self._ends[first])]
        return self._share_of(np.flatnonzero(runs == runs[longest]), n)

    def _share_of(self, starts: np.ndarray, n: int) -> float:
        """Share of the characters in the runs of n words that begin at these words."""
        inside = np.zeros(len(self.words), bool)
        for i in range(n):
            inside[starts + i] = True
        return float(np.diff(self._ends)[inside].sum()) / self.characters

    def top_ngram_at_most(self, n: int) -> float:
        """An n-gram is no more frequent than the most frequent word, and no longer than the longest."""
        longest = int((self._ends[n:] - self._ends[:-n]).max()) if len(self.words) >= n else 0
        return self._most_frequent * longest / max(self.characters, 1)

    @cached_property
    def _most_frequent(self) -> int:
        return max(Counter(self.words).values(), default=0)

    @cached_property
    def _twice(self) -> bool:
        """Some run of 5 words stands there twice; if none does, no longer one does."""
        runs = np.sort(self._runs(5))
        return bool((runs[1:] == runs[:-1]).any())

    def duplicate_ngrams(self, n: int) -> float:
        """Share of the characters in n-grams that stand there more than once, each counted once. From n = 5 on."""
        if len(self.words) < _WORDS_TO_REPEAT or not self._twice:
            return 0.0
        _, gram, counts = np.unique(self._runs(n), return_inverse=True, return_counts=True)
        return self._share_of(np.flatnonzero(counts[gram] > 1), n)


def _is_of_text(line: str) -> bool:
    """C4 would keep it."""
    line = line.rstrip()
    if not line.endswith(_TERMINAL) or line.endswith(("...", "…")) or len(_WORD.findall(line)) < _LINE_WORDS:
        return False
    lower = line.lower()
    return not any(phrase in lower for phrase in _NO_TEXT)


def _sentences_of_lines(text: Measured) -> float:
    return sum(len(_SENTENCE_END.findall(line)) for line in text.lines if _is_of_text(line))


def _duplicates(parts: list[str]) -> float:
    return (len(parts) - len(set(parts))) / max(len(parts), 1)


def _duplicate_characters(parts: list[str]) -> float:
    every = sum(map(len, parts))
    return (every - sum(map(len, set(parts)))) / max(every, 1)


def _mean_word_length(text: Measured) -> float:
    return text.a_word(text.characters)


@dataclass(frozen=True)
class Rule:
    """What is measured, and what it may be in which profile.

    Attributes:
        measure: of a text.
        source: the paper, or whose idea it is.
        bounds: profile -> bound; a profile without one does not ask.
        ceiling: never below the measure, and quickly known; where even this is within the bound, nothing is measured.
    """

    measure: Callable[[Measured], float]
    source: str
    bounds: Mapping[str, float]
    ceiling: Callable[[Measured], float] | None = None


def _ngram_rules() -> dict[str, Rule]:
    top = {2: 0.20, 3: 0.18, 4: 0.16}
    twice = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
    source = "Gopher, table A1"
    rules = {}
    for n, bound in top.items():
        measure, ceiling = partial(Measured.top_ngram, n=n), partial(Measured.top_ngram_at_most, n=n)
        rules[f"max_top_{n}gram"] = Rule(measure, source, {"gopher": bound, "rows": 0.5}, ceiling)
    for n, bound in twice.items():
        measure = partial(Measured.duplicate_ngrams, n=n)
        rules[f"max_duplicate_{n}gram"] = Rule(measure, source, {"gopher": bound, "rows": 0.8})
    return rules


# Named as the settings; min_ is a lower bound, max_ an upper one. In this order, the cheapest first: the first that a
# text breaks is its reason.
RULES: dict[str, Rule] = {
    "min_words": Rule(lambda t: len(t.words), "Gopher, A.1.1", {"gopher": 50, "rows": 1}),
    "max_words": Rule(lambda t: len(t.words), "Gopher, A.1.1", {"gopher": 100_000, "rows": 100_000}),
    "min_sentences": Rule(lambda t: len(_SENTENCE_END.findall(t.text)), "after C4, section 2.2", {}),
    "min_sentences_of_lines": Rule(_sentences_of_lines, "C4, section 2.2", {"c4": 3}),
    "min_mean_word_length": Rule(_mean_word_length, "Gopher, A.1.1", {"gopher": 3}),
    "max_mean_word_length": Rule(_mean_word_length, "Gopher, A.1.1", {"gopher": 10, "rows": 40}),
    "max_hash_ratio": Rule(lambda t: t.a_word(t.text.count("#")), "Gopher, A.1.1", {"gopher": 0.1, "rows": 0.5}),
    "max_ellipsis_ratio": Rule(
        lambda t: t.a_word(len(_ELLIPSIS.findall(t.text))), "Gopher, A.1.1", {"gopher": 0.1, "rows": 0.3}
    ),
    "max_bullet_lines": Rule(lambda t: t.of_lines(_BULLET.match), "Gopher, A.1.1", {"gopher": 0.9}),
    "max_ellipsis_lines": Rule(
        lambda t: t.of_lines(lambda line: line.rstrip().endswith(("...", "…"))), "Gopher, A.1.1", {"gopher": 0.3}
    ),
    "min_alphabetic_words": Rule(
        lambda t: t.a_word(sum(any(map(str.isalpha, word)) for word in t.words)), "Gopher, A.1.1", {"gopher": 0.8}
    ),
    "min_stop_words": Rule(
        lambda t: len(_STOP_WORDS.intersection(t.text.lower().split())), "Gopher, A.1.1", {"gopher": 2}
    ),
    "min_terminal_lines": Rule(
        lambda t: t.of_lines(lambda line: line.rstrip().endswith(_TERMINAL)), "ours, after C4, section 2.2", {"c4": 0.5}
    ),
    "max_duplicate_lines": Rule(lambda t: _duplicates(t.lines), "Gopher, table A1", {"gopher": 0.3, "rows": 0.6}),
    "max_duplicate_paragraphs": Rule(
        lambda t: _duplicates(t.paragraphs), "Gopher, table A1", {"gopher": 0.3, "rows": 0.6}
    ),
    "max_duplicate_line_characters": Rule(
        lambda t: _duplicate_characters(t.lines), "Gopher, table A1", {"gopher": 0.2, "rows": 0.6}
    ),
    "max_duplicate_paragraph_characters": Rule(
        lambda t: _duplicate_characters(t.paragraphs), "Gopher, table A1", {"gopher": 0.2, "rows": 0.6}
    ),
    **_ngram_rules(),
}
# C4 drops pages with these: the curly bracket is that of code. Its list of bad words is not among them.
FORBIDDEN = {"c4": ("lorem ipsum", "{"), "gopher": (), "rows": ("lorem ipsum",)}


def bounds(profile: str, given: Mapping[str, float | None]) -> dict[str, float]:
    """The bound of each rule that is asked, in the order of the rules: what is given, else the profile's."""
    found = {}
    for name, rule in RULES.items():
        bound = given.get(name)
        bound = rule.bounds.get(profile) if bound is None else bound
        if bound is not None:
            found[name] = bound
    return found


def broken(text: str, asked: Mapping[str, float], forbidden: Iterable[str] = ()) -> tuple[str, float] | None:
    """The first rule that a text breaks and what was measured, or None.

    >>> broken("buy now buy now", {"min_words": 5})
    ('min_words', 4)
    """
    measured = Measured(text)
    for name, bound in asked.items():
        rule = RULES[name]
        if rule.ceiling is not None and rule.ceiling(measured) <= bound:
            continue
        value = rule.measure(measured)
        if value < bound if name.startswith("min_") else value > bound:
            return name, value
    lower = text.lower() if forbidden else ""
    for phrase in forbidden:
        if phrase in lower:
            return "forbidden", float(lower.count(phrase))
    return None
