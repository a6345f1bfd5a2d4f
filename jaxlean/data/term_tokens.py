"""Terms as tokens of a tokenizer: how they are written, and how a text stays what it was around them.

A new token is written as the tokenizer writes words. Where the space before a word belongs to it (GPT-2's and
SentencePiece's way) the token begins with that space, so a text keeps its spaces when it is decoded; such a token is
also found at the start of longer words. Elsewhere a token stands for the whole word only (`single_word`). A term that
begins with a sign, or in a script that has no spaces between words, stands for itself, wherever it is.
"""

import copy
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxlean.errors import ConfigError

MARKS = ("Ġ", "▁")  # the space before a word, as byte-level BPE and SentencePiece write it
# Thai, Lao, Tibetan, Burmese, Khmer, kana and Han: words follow each other without a space.
_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
# SentencePiece's "▁" before a text that has none; `|<term>\z` is added for terms that stand for themselves.
_FIRST = r"\A(?!▁)"
_BLOCK = 1024  # texts tokenized at a time


@dataclass(frozen=True)
class Saving:
    """What new tokens save: tokens of the same texts, counted with both tokenizers.

    Args:
        before, after: tokens in all.
        times: how often each new token stands in them.
    """

    before: int
    after: int
    times: tuple[int, ...]

    @property
    def share(self) -> float:
        """Of the tokens, those that are saved."""
        return 1.0 - self.after / max(self.before, 1)

    def __str__(self) -> str:
        return f"{self.before:,} -> {self.after:,} tokens ({self.share:.1%} fewer)"


def spaced(tokenizer: Any) -> bool:
    """Whether the space before a word belongs to the word's tokens."""
    return tokenizer.convert_ids_to_tokens(ids_of(tokenizer, "a a")[-1]).startswith(MARKS)


def written(tokenizer: Any, term: str) -> str:
    """What a new token for a term stands for in a text: with the space before it, where words have theirs."""
    return f" {term}" if _is_word(term) and spaced(tokenizer) else term


def pieces(tokenizer: Any, term: str) -> list[int]:
    """The tokens that a term inside of a text is cut into."""
    text = written(tokenizer, term)
    if text == term and not _UNSPACED.match(term):
        return ids_of(tokenizer, term)
    before = ids_of(tokenizer, "a")  # SentencePiece puts a space before a text of its own accord
    return ids_of(tokenizer, "a" + text)[len(before) :]


def known_pieces(tokenizer: Any, term: str) -> list[int]:
    """Of a term's pieces, those that say something: without the one that stands for all that is not known."""
    return [piece for piece in pieces(tokenizer, term) if piece != tokenizer.unk_token_id]


def is_cut(tokenizer: Any, term: str) -> bool:
    """Whether a term is not one token of its own: it is several, or some of it is not known at all."""
    found = pieces(tokenizer, term)
    return len(found) > 1 or tokenizer.unk_token_id in found


def key_of(tokenizer: Any, term: str) -> str:
    """What is looked for in a text to find a term: equal for terms that cannot be told apart."""
    normalizer = _normalizer(tokenizer)
    return term if normalizer is None else normalizer.normalize_str(written(tokenizer, term))


def is_held(tokenizer: Any, term: str) -> bool:
    """Whether a token of a term's name is in the vocabulary, though no text is cut into it."""
    name = content_of(tokenizer, term)
    found = tokenizer.convert_tokens_to_ids(name)
    return found is not None and tokenizer.convert_ids_to_tokens(found) == name


def content_of(tokenizer: Any, term: str) -> str:
    """The name of a term's token: how the tokenizer writes its other words, where it puts "▁" before a text itself."""
    text = written(tokenizer, term)
    return f"▁{term}" if text != term and _marks_texts(tokenizer) else text


def add(tokenizer: Any, terms: Sequence[str]) -> list[int]:
    """Make terms tokens of a tokenizer, which is changed.

    Returns:
        their ids, ascending by one from the number of tokens that there were.
    """
    from transformers import AddedToken

    first = len(tokenizer)
    contents = [content_of(tokenizer, term) for term in terms]
    if _marks_texts(tokenizer):
        _mark_once(tokenizer, [name for name, term in zip(contents, terms, strict=True) if name == term])
    # looked for in what the normalizer makes of a text: lower case, say
    tokens = [
        AddedToken(name, single_word=name == term and _is_word(term), normalized=True, special=False)
        for name, term in zip(contents, terms, strict=True)
    ]
    tokenizer.add_tokens(tokens)
    ids = tokenizer.convert_tokens_to_ids(contents)
    assert ids == list(range(first, first + len(terms))), "new tokens follow the old ones"
    return ids


def grown(tokenizer: Any, terms: Sequence[str]) -> Any:
    """A copy of a tokenizer with terms as tokens.

    Raises:
        ConfigError: with them it would decode a text to another one.
    """
    other = copy.deepcopy(tokenizer)
    add(other, terms)
    for term in terms:
        text = f"a {term} b, {term}."
        was, now = (one.decode(ids_of(one, text), clean_up_tokenization_spaces=False) for one in (tokenizer, other))
        if not _same(tokenizer, term, text, was, now):
            raise ConfigError(
                "a new token would change the text around it, as this tokenizer treats spaces",
                where="model.new_tokens", got=f"{term!r}: {text!r} would be read as {now!r}", wanted=repr(was),
                fix="leave it out, or model.tokenizer=<the same tokens in another form>; of Llama's, one whose "
                "tokenizer_config.json says legacy: false",
            )  # fmt: skip
    return other


def saving(texts: Iterable[str], before: Any, after: Any) -> Saving:
    """Count the tokens of texts with two tokenizers, of which the second has new ones."""
    totals, first = [0, 0], len(before)
    times = np.zeros(len(after) - first, np.int64)
    iterator = iter(texts)
    while block := list(itertools.islice(iterator, _BLOCK)):
        totals[0] += sum(map(len, ids_of(before, block)))
        for row in ids_of(after, block):
            totals[1] += len(row)
            own = np.asarray(row, np.int64)
            times += np.bincount(own[own >= first] - first, minlength=len(times))
    return Saving(totals[0], totals[1], tuple(times.tolist()))


def ids_of(tokenizer: Any, text: Any) -> Any:
    """The tokens of a text, or of each of several, without those that stand around one."""
    return tokenizer(text, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False)[
        "input_ids"
    ]


def _is_word(term: str) -> bool:
    """Whether a term stands between spaces in a text."""
    return term[:1].isalnum() and not _UNSPACED.match(term)


def _same(tokenizer: Any, term: str, text: str, was: str, now: str) -> bool:
    """Whether a text with a term is decoded as it was, as far as that can be told."""
    normalizer = _normalizer(tokenizer)

    def bare(text: str) -> str:
        return "".join((text if normalizer is None else normalizer.normalize_str(text)).split())

    if now in (was, text) or bare(term) not in bare(was):  # what was not known was not decoded
        return True
    return was != text and not spaced(tokenizer) and bare(now) == bare(was)


# ---- the "▁" that SentencePiece's normalizer puts before a text, and so before what follows an added token


def _normalizer(tokenizer: Any) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return None if backend is None else backend.normalizer


def _steps(tokenizer: Any) -> list[dict[str, Any]]:
    """What the normalizer does, one after the other, in the words of tokenizer.json."""
    normalizer = _normalizer(tokenizer)
    if normalizer is None:
        return []
    stated = json.loads(normalizer.__getstate__())
    return stated["normalizers"] if stated["type"] == "Sequence" else [stated]


def _is_mark(step: dict[str, Any]) -> bool:
    if step["type"] == "Replace":
        return str(step["pattern"].get("Regex", "")).startswith(_FIRST[:-1]) and step["content"] == "▁"
    return step["type"] == "Prepend" and step["prepend"] == "▁"


def _marks_texts(tokenizer: Any) -> bool:
    """Whether the normalizer puts "▁" before a text (published Mistral, Mixtral and Phi-3 are of this form)."""
    return any(map(_is_mark, _steps(tokenizer)))


def _mark_once(tokenizer: Any, apart: Sequence[str]) -> None:
    """Let the normalizer put "▁" only before a text that has none.

    With it new tokens can be looked for in a text that is normalized whole, by a name that has its "▁": nothing comes
    between such a token and what follows. Texts are cut as before.

    Args:
        apart: terms that stand for themselves, before which there is to be none.
    """
    from tokenizers import Tokenizer, models

    steps = _steps(tokenizer)
    at = next(i for i, step in enumerate(steps) if _is_mark(step))
    pattern = _FIRST if steps[at]["type"] == "Prepend" else steps[at]["pattern"]["Regex"]
    pattern = pattern[:-1] + "".join(rf"|{re.escape(term)}\z" for term in apart) + ")"
    steps[at] = {"type": "Replace", "pattern": {"Regex": pattern}, "content": "▁"}
    stated = json.loads(Tokenizer(models.BPE()).to_str()) | {"normalizer": {"type": "Sequence", "normalizers": steps}}
    tokenizer.backend_tokenizer.normalizer = Tokenizer.from_str(json.dumps(stated)).normalizer
