"""Which texts are the same: what of a text makes no difference, the numbers in it, keys of texts, repeated keys."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable

import numpy as np

# What NFKC would take for plain digits and letters, and is none: powers and indices (10², H₂O), fractions (1½ is not
# 11/2), numbers in circles, units in squares.
_RAISED = re.compile(
    "([\u00aa\u00b2\u00b3\u00b9\u00ba\u00bc-\u00be\u02b0-\u02b8\u02e0-\u02e4\u1d2c-\u1d6a\u2070-\u209c"
    "\u2150-\u215f\u2189\u2460-\u24ff\u3250-\u33ff]+)"
)
_ACUTE = "\u00b4\u1ffd"  # as an apostrophe; NFKC would part it into a space and an accent
_DASHES = "\u2010\u2013\u2212"

# Marks that come and go without changing what is said, where they are the punctuation of a sentence. In a formula or in
# code the same marks mean something: !x, a != b, f'(x), n!, x = "", .5, 3-4.
_STOPS = ".,;:?!…—。、；：？！،؛؟"  # noqa: RUF001
_QUOTES = "'\"`‘’‚“”„«»‹›「」『』¿¡"  # noqa: RUF001
_MEANING = "=<>+*/\\%&|^~@#$€£¥(){}[]_"  # computes, encloses or names: a word that has one is no sentence's
_OPERATOR = frozenset("=<>+*/%&|^~!:")
_FORMULA = re.compile(f"[{re.escape(_MEANING)}]")
_LETTER = rf"[^\s\d\-{re.escape(_STOPS + _QUOTES + _MEANING)}]"  # or part of one: accents and vowel signs are no \w
_LETTERS = re.compile(_LETTER * 2)
_PRIME = re.compile("['\"’]|!(?!!)")  # noqa: RUF001
# Between two words: don't, top-up and 5-year (but not x-y), yes,no. CJK's marks have no spaces around them.
_JOINT = re.compile(
    rf"(?<={_LETTER})(?:['`‘’]|[,;?!…—]+|\.\.+)(?={_LETTER})"  # noqa: RUF001
    rf"|(?<=[^\W_])-(?={_LETTER * 2})|(?<={_LETTER * 2})-(?={_LETTER})|[。、「」『』]+"
)

# A sign belongs to a number that stands alone: -4 and -$4, but 3-4 is a range and covid-19 a name.
_FRACTION = "\u00bc-\u00be\u2150-\u215f\u2189"
_NUMBER = re.compile(
    rf"[\-\d{_FRACTION}](?:(?<=[{_FRACTION}])|(?<=\d)\d*|(?<![\w.)\]]-)[$€£¥]?\d+)"
    rf"(?:[.,:]\d+)*[\u00b2\u00b3\u00b9\u2070-\u208e{_FRACTION}]*"
)


def normalise(text: str, ignore: Iterable[str] = ("unicode", "case", "punctuation", "whitespace")) -> str:
    """The text without what makes no difference. Doing it again changes nothing.

    unicode: forms of the same letter (NFKC, but powers, indices and fractions stay), of a dash, of an accent that
    stands for an apostrophe. punctuation: that of sentences; what computes or means something in a formula or in code
    stays, and so does a text that consists of nothing else.

    >>> normalise("It's  FINE - don\\u2019t!")
    'it s fine don t'
    >>> normalise("3 - 4 and 3-4 and $1,000.")
    '3 - 4 and 3-4 and $1,000'
    >>> normalise("if (!x) y = f'(x);")
    "if (!x) y = f'(x)"
    >>> normalise("?!"), normalise("10²")
    ('?!', '10²')
    """
    ignore = frozenset(ignore)
    plain = "unicode" not in ignore or text.isascii()
    if not plain:
        text = _in_one_form(_each(text, _ACUTE, "'"))
    if "case" in ignore:
        text = text.casefold()
        if not plain:  # İ folds to two characters, which NFKC may join again
            text = _in_one_form(text)
    if "whitespace" in ignore or "punctuation" in ignore:
        text = " ".join(text.split())
    if "punctuation" in ignore:
        text = _without_marks(text)
    return text


def _without_marks(text: str) -> str:
    """Of a text with single spaces; one of marks alone stays."""
    while True:  # a mark that goes may lay another one bare
        inner = text
        if text[:1] == text[-1:] == '"' and text.count('"') == 2:
            inner = text[1:-1].strip()
        words = inner.split(" ")
        plain = words.copy()
        for at in [at for at, word in enumerate(words) if not word.isalnum()]:
            plain[at] = _plain(words[at], words[at - 1] if at else "", words[at + 1] if at + 1 < len(words) else "")
        found = " ".join(" ".join(plain).split()) or text
        if found == text:
            return text
        text = found


def _plain(word: str, before: str, after: str) -> str:
    """A word, of which two may become, without the marks of the sentence that it stands in."""
    if word[:-1].isalnum() and word[-1] in ".,;:?…":
        return word[:-1]
    if word in ("-", "--"):  # between words a dash, in x - y a minus
        dash = _LETTERS.match(before[-2:]) and (_LETTERS.match(after) or after in ("i", "I", "a", "A"))
        return "" if dash else word
    if _FORMULA.search(word) or any(beside and _OPERATOR.issuperset(beside) for beside in (before, after)):
        return word.rstrip(".,;:?…")
    core = word.lstrip(_QUOTES + ",;…")
    bare = core.rstrip(_STOPS + _QUOTES)
    end = core[len(bare) :]
    # n! and f' of one letter, 5! and 5" of a number; not "5" nor 5!!
    if core == word and (len(bare) == 1 or bare[-1:].isdigit()) and _PRIME.match(end):
        bare += end[0]
    return _JOINT.sub(" ", bare)


def _in_one_form(text: str) -> str:
    if not unicodedata.is_normalized("NFKC", text):
        parts = _RAISED.split(text)  # every other one is raised
        parts[::2] = [unicodedata.normalize("NFKC", part) for part in parts[::2]]
        text = "".join(parts)
    return _each(text, _DASHES, "-")


def _each(text: str, of: str, by: str) -> str:
    for character in of:  # ten times as fast as str.translate
        text = text.replace(character, by)
    return text


def numbers_of(text: str) -> str:
    """The numbers in a text, with their signs and powers, in their order.

    >>> numbers_of("from -3 apples to 1,000 of 10²")
    '-3 1,000 10²'
    """
    return " ".join(_NUMBER.findall(text))


def key(text: str) -> bytes:
    """16 bytes that are the same for the same text: of 10^9 different ones no two agree, but once in 10^20 times."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def repeated(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The entries whose key stood there before.

    Args:
        keys: [n, 2] uint64.

    Returns:
        (their numbers, ascending; of each the first with that key), both [m] int64.
    """
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: among equals the first stays first
    ordered = keys[order]
    new = np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)]) if len(keys) else np.zeros(0, bool)
    firsts = order[np.flatnonzero(new)][np.cumsum(new) - 1] if len(keys) else order
    rows, of = order[~new], firsts[~new]
    ascending = np.argsort(rows)
    return rows[ascending].astype(np.int64), of[ascending].astype(np.int64)
