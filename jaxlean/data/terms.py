"""Terms of a domain that a tokenizer cuts into pieces: found in texts, and made tokens of their own.

A new token is written as the tokenizer writes words. Where the space before a word belongs to it (GPT-2's and
SentencePiece's way) the token begins with that space, so a text keeps its spaces when it is decoded; such a token is
also found at the start of longer words, so one that starts a word which the tokenizer has already is left out.
Elsewhere a token stands for the whole word only (`single_word`).
"""

import bisect
import copy
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jaxlean.errors import ConfigError

_MARKS = ("Ġ", "▁")  # the space before a word, as byte-level BPE and SentencePiece write it
_BLOCK = 1024  # texts tokenized at a time


class Term(NamedTuple):
    """A word that could be a token: how often it stands in the texts, and in how many pieces."""

    text: str
    times: int
    pieces: int

    @property
    def saved(self) -> int:
        """Tokens that the texts would have less."""
        return self.times * (self.pieces - 1)


@dataclass(frozen=True)
class Saving:
    """What new tokens save: tokens of the same texts, counted with both tokenizers."""

    before: int
    after: int

    @property
    def share(self) -> float:
        """Of the tokens, those that are saved."""
        return 1.0 - self.after / max(self.before, 1)

    def __str__(self) -> str:
        return f"{self.before:,} -> {self.after:,} tokens ({self.share:.1%} fewer)"


def spaced(tokenizer: Any) -> bool:
    """Whether the space before a word belongs to the word's tokens."""
    return tokenizer.convert_ids_to_tokens(_ids(tokenizer, "a a")[-1]).startswith(_MARKS)


def written(tokenizer: Any, term: str) -> str:
    """What a new token for a term stands for: with the space before it, where words have theirs.

    A term that begins with a sign, such as a tag, stands for itself.
    """
    return f" {term}" if term[:1].isalnum() and spaced(tokenizer) else term


def pieces(tokenizer: Any, term: str) -> list[int]:
    """The tokens that a term inside of a text is cut into."""
    text = written(tokenizer, term)
    if text == term:
        return _ids(tokenizer, term)
    before = _ids(tokenizer, "a")  # SentencePiece puts a space before a text of its own accord
    return _ids(tokenizer, "a" + text)[len(before) :]


def find(texts: Iterable[str], tokenizer: Any, *, num: int, min_count: int = 5, min_length: int = 4) -> list[Term]:
    """The words that cost the most tokens beyond one each: count x (pieces - 1), the dearest first.

    Args:
        texts: of the domain.
        tokenizer: a transformers fast tokenizer.
        num: how many at most.
        min_count: occurrences that a word must have.
        min_length: letters that it must have.

    Returns:
        words of letters alone; none that is a token already, none that stands in the chat template.
    """
    front = " " if spaced(tokenizer) else r"(?<!\w)"
    word = re.compile(rf"{front}([^\W\d_]{{{min_length},}})(?!\w)")
    normal = _normalizer(tokenizer)
    counts = Counter(found for text in texts for found in word.findall(normal(text)))
    known = sorted(words_of(tokenizer).values()) if front == " " else []
    cut = [
        Term(term, count, len(pieces(tokenizer, term)))
        for term, count in counts.items()
        if count >= min_count and not _starts_one(term, known)
    ]
    dearest = sorted((term for term in cut if term.pieces > 1), key=lambda term: (-term.saved, term.text))
    found = dearest[:num]
    clash = in_template(tokenizer, [term.text for term in found])
    return [term for term in found if term.text not in clash]


def read_terms(file: Path) -> list[str]:
    """Terms from a file: a JSON list, or one a line.

    Raises:
        ConfigError: the file is missing, no text, or not a list of texts.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "the file of new tokens cannot be read", where=f"model.new_tokens={file}", got=error,
            wanted="auto, a list of terms, or a file with one a line",
        ) from None  # fmt: skip
    if file.suffix != ".json":
        return text.splitlines()
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError("the file of new tokens is not JSON", where=file, got=error) from None
    if not isinstance(found, list) or not all(isinstance(term, str) for term in found):
        raise ConfigError("the file of new tokens is no list of texts", where=file, wanted='["term", ...]')
    return found


def checked(tokenizer: Any, terms: Sequence[str], *, where: object = "model.new_tokens") -> tuple[list[str], list[str]]:
    """(the terms that become tokens, without blanks around them; those that are one token already).

    Raises:
        ConfigError: there is none, one stands there twice, all are tokens already, or one stands in the chat template,
            whose tokens the model knows.
    """
    clean = [term.strip() for term in terms if term.strip()]
    if not clean:
        raise ConfigError("there are no new tokens", where=where, wanted="one term or more")
    twice = [term for term, count in Counter(clean).items() if count > 1]
    if twice:
        raise ConfigError("a new token is named twice", where=where, got=", ".join(map(repr, twice[:5])))
    kept = [term for term in clean if len(pieces(tokenizer, term)) > 1]
    if not kept:
        raise ConfigError(
            "all new tokens are tokens already", where=where, got=", ".join(clean[:5]) + ", ..." * (len(clean) > 5),
            fix="leave out model.new_tokens, or name others",
        )  # fmt: skip
    clash = in_template(tokenizer, kept)
    if clash:
        raise ConfigError(
            "a new token stands in the chat template, which would no longer be the one that the model knows",
            where=where, got=", ".join(map(repr, sorted(clash))), fix="leave it out",
        )  # fmt: skip
    chosen = set(kept)
    return kept, [term for term in clean if term not in chosen]


def add(tokenizer: Any, terms: Sequence[str]) -> list[int]:
    """Make terms tokens of a tokenizer, which is changed.

    Returns:
        their ids, ascending by one from the number of tokens that there were.
    """
    from transformers import AddedToken

    first = len(tokenizer)
    # Whole words are looked for in what the normalizer makes of a text (lower case, say), words with their space before
    # SentencePiece's makes signs of the spaces.
    tokens = [
        AddedToken(text, single_word=text == term and term[:1].isalnum(), normalized=text == term, special=False)
        for text, term in ((written(tokenizer, term), term) for term in terms)
    ]
    tokenizer.add_tokens(tokens)
    ids = tokenizer.convert_tokens_to_ids([token.content for token in tokens])
    assert ids == list(range(first, first + len(terms))), "new tokens follow the old ones"
    return ids


def grown(tokenizer: Any, terms: Sequence[str]) -> Any:
    """A copy of a tokenizer with terms as tokens."""
    other = copy.deepcopy(tokenizer)
    add(other, terms)
    return other


def saving(texts: Iterable[str], before: Any, after: Any) -> Saving:
    """Count the tokens of texts with two tokenizers."""
    totals = [0, 0]
    iterator = iter(texts)
    while block := list(itertools.islice(iterator, _BLOCK)):
        for i, tokenizer in enumerate((before, after)):
            totals[i] += sum(map(len, _ids(tokenizer, block)))
    return Saving(*totals)


def in_template(tokenizer: Any, terms: Sequence[str]) -> set[str]:
    """The terms that stand in what the chat template itself writes."""
    if not getattr(tokenizer, "chat_template", None) or not terms:
        return set()
    messages = [{"role": role, "content": "0"} for role in ("system", "user", "assistant", "user", "assistant")]
    first = len(tokenizer)
    other = grown(tokenizer, terms)
    for start in (0, 1):
        try:
            text = tokenizer.apply_chat_template(messages[start:], tokenize=False, add_generation_prompt=True)
        except Exception:  # a template that refuses a system message, or these messages at all
            continue
        return {terms[i - first] for i in _ids(other, text) if i >= first}
    return set()


def words_of(tokenizer: Any) -> dict[int, str]:
    """The tokens that are a whole word by themselves: id -> the word, without the space before it.

    Where nothing tells a word's start (a tokenizer whose spaces are tokens of their own) every token of letters counts.
    """
    special, begins = set(tokenizer.all_special_ids), spaced(tokenizer)
    added = set(tokenizer.added_tokens_decoder)
    found = {}
    for token, i in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        if i in special or i in added or (begins and not token.startswith(_MARKS)) or token.startswith("##"):
            continue
        word = tokenizer.decode([i]).strip()
        if len(word) > 1 and word.isalpha():
            found[i] = word
    return found


def _starts_one(term: str, known: list[str]) -> bool:
    """Whether a word that is known goes on where the term ends."""
    at = bisect.bisect_right(known, term)
    return at < len(known) and known[at].startswith(term)


def _normalizer(tokenizer: Any) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    normalizer = None if backend is None or spaced(tokenizer) else backend.normalizer
    return (lambda text: text) if normalizer is None else normalizer.normalize_str


def _ids(tokenizer: Any, text: Any) -> Any:
    return tokenizer(text, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False)[
        "input_ids"
    ]
