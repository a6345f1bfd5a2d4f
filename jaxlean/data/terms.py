"""Terms of a domain that a tokenizer cuts into pieces: found in texts, read, and looked through before they are tokens.

How they become tokens: `data.term_tokens`.
"""

import bisect
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import regex

from jaxlean.data.term_tokens import MARKS, grown, ids_of, is_cut, is_held, key_of, pieces, spaced, written
from jaxlean.errors import ConfigError

# With the marks that belong to them: the vowel signs of Hindi are no \w in the standard library's re.
_LETTERS = regex.compile(r"(?:\p{L}\p{M}*)+")


class Term(NamedTuple):
    """A word that could be a token: how often it stands in the texts, and in how many pieces.

    Attributes:
        unknown: some of the pieces stand for what the tokenizer does not know.
    """

    text: str
    times: int
    pieces: int
    unknown: bool = False

    @property
    def saved(self) -> int:
        """Tokens that the texts would have less."""
        return self.times * (self.pieces - 1)

    @property
    def cost(self) -> int:
        """What the word is ranked by: the tokens saved. One that is not known counts as if cut into its letters."""
        return self.times * (len(self.text) - 1) if self.unknown else self.saved


class Checked(NamedTuple):
    """Terms that were named.

    Attributes:
        kept: those that become tokens, without blanks around them.
        known: those that are one token already.
        starting: those that start a word which the tokenizer has, and would cut it.
    """

    kept: list[str]
    known: list[str]
    starting: list[str]


def find(texts: Iterable[str], tokenizer: Any, *, num: int, min_count: int = 5, min_length: int = 4) -> list[Term]:
    """The words that cost the most tokens beyond one each: count x (pieces - 1), the dearest first (`Term.cost`).

    Args:
        texts: of the domain.
        tokenizer: a transformers fast tokenizer.
        num: how many at most.
        min_count: occurrences that a word must have.
        min_length: letters that it must have.

    Returns:
        words of letters alone; none that is a token already, none that stands in the chat template.

    Raises:
        ConfigError: the tokenizer cannot have words as tokens without changing the texts around them.
    """
    front = " " if spaced(tokenizer) else r"(?<!\w)"
    word = regex.compile(rf"{front}((?:\p{{L}}\p{{M}}*){{{min_length},}})(?!\w)")
    normal = _normalizer(tokenizer)
    counts = Counter(found for text in texts for found in word.findall(normal(text)))
    known = _known(tokenizer)
    often = [
        counted(tokenizer, term, count)
        for term, count in counts.items()
        if count >= min_count and not _starts_one(term, known)
    ]
    cut = sorted((term for term in often if term.cost), key=lambda term: (-term.cost, term.text))
    found = list(itertools.islice((term for term in cut if not is_held(tokenizer, term.text)), num))
    clash = in_template(tokenizer, [term.text for term in found])
    return [term for term in found if term.text not in clash]


def counted(tokenizer: Any, term: str, times: int) -> Term:
    """A term that stands so many times in texts, with the pieces that it is in."""
    found = pieces(tokenizer, term)
    return Term(term, times, len(found), tokenizer.unk_token_id in found)


def read_terms(file: Path) -> list[str]:
    """Terms from a file: a JSON list, or one a line.

    Raises:
        ConfigError: the file is missing, no text, or not a list of texts.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
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


def checked(tokenizer: Any, terms: Sequence[str], *, where: object = "model.new_tokens") -> Checked:
    """Tell terms apart that can become tokens.

    Raises:
        ConfigError: there is none, two cannot be told apart, none is left, one is a token that no text is cut into, or
            one stands in the chat template, whose tokens the model knows.
    """
    clean = [term.strip() for term in terms if term.strip()]
    if not clean:
        raise ConfigError("there are no new tokens", where=where, wanted="one term or more")
    keys: dict[str, list[str]] = {}
    for term in clean:
        keys.setdefault(key_of(tokenizer, term), []).append(term)
    twice = [" and ".join(map(repr, same)) for same in keys.values() if len(same) > 1]
    if twice:
        raise ConfigError(
            "a new token is named twice, as the tokenizer reads it", where=where, got=", ".join(twice[:5])
        )
    cut = [term for term in clean if is_cut(tokenizer, term)]
    if not cut:
        raise ConfigError(
            "all new tokens are tokens already", where=where, got=_some(clean),
            fix="leave out model.new_tokens, or name others",
        )  # fmt: skip
    held = [term for term in cut if is_held(tokenizer, term)]
    if held:
        raise ConfigError(
            "a new token's name is that of a token in the vocabulary, which the tokenizer never cuts a text into",
            where=where, got=_some([*map(repr, held)]), fix="leave it out, or name the term otherwise",
        )  # fmt: skip
    known = _known(tokenizer)
    starting = [term for term in cut if written(tokenizer, term) != term and _starts_one(term, known)]
    kept = [term for term in cut if term not in starting]
    if not kept:
        raise ConfigError(
            "all new tokens start words that are tokens already, and would cut those", where=where, got=_some(starting),
            fix="leave out model.new_tokens, or name others",
        )  # fmt: skip
    clash = in_template(tokenizer, kept)
    if clash:
        raise ConfigError(
            "a new token stands in the chat template, which would no longer be the one that the model knows",
            where=where, got=", ".join(map(repr, sorted(clash))), fix="leave it out",
        )  # fmt: skip
    return Checked(kept, [term for term in clean if term not in cut], starting)


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
        return {terms[i - first] for i in ids_of(other, text) if i >= first}
    return set()


def words_of(tokenizer: Any) -> dict[int, str]:
    """The tokens that are a whole word by themselves: id -> the word, without the space before it.

    Where nothing tells a word's start (a tokenizer whose spaces are tokens of their own) every token of letters counts.
    """
    special, begins = set(tokenizer.all_special_ids), spaced(tokenizer)
    added = set(tokenizer.added_tokens_decoder)
    found = {}
    for token, i in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        if i in special or i in added or (begins and not token.startswith(MARKS)) or token.startswith("##"):
            continue
        word = tokenizer.decode([i]).strip()
        if len(word) > 1 and _LETTERS.fullmatch(word):
            found[i] = word
    return found


def _known(tokenizer: Any) -> list[str]:
    """The words that a new token could cut, sorted: none where it stands for a whole word only."""
    return sorted(words_of(tokenizer).values()) if spaced(tokenizer) else []


def _starts_one(term: str, known: list[str]) -> bool:
    """Whether a word that is known goes on where the term ends."""
    at = bisect.bisect_right(known, term)
    return at < len(known) and known[at].startswith(term)


def _normalizer(tokenizer: Any) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    normalizer = None if backend is None or spaced(tokenizer) else backend.normalizer
    return (lambda text: text) if normalizer is None else normalizer.normalize_str


def _some(terms: Sequence[str], most: int = 5) -> str:
    return ", ".join(terms[:most]) + ", ..." * (len(terms) > most)
