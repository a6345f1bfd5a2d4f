"""Tokens with labels: rows of `task: classify`, `tag` and `embed` -> token ids, and a label where one is to be found.

Every text stands between the tokenizer's own special tokens ([CLS] ... [SEP]), as the encoder has learned it. A label
stands at one token, all others have none (`NO_LABEL`): of a text at its first, of a word at the word's first. Of two
texts that belong together each is an example of its own, the anchor before the positive; the anchor has the label 0.
"""

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxlean.config import RunConfig
from jaxlean.data.columns import items, label_ids, need
from jaxlean.data.tokenize import BLOCK, Counts, Tokens, check_vocabulary
from jaxlean.errors import DataError

NO_LABEL = -100  # as in transformers and torch


@dataclass(frozen=True)
class Labelled:
    """A text, or two in one, and the id of its label."""

    texts: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class Tagged:
    """Words, and the id of each one's label."""

    words: list[str]
    labels: list[int]


@dataclass(frozen=True)
class Related:
    """Two texts that belong together; alone, with no positive, a text whose vector is wanted."""

    anchor: str
    positive: str | None


Example = Labelled | Tagged | Related


class LabelEncoder:
    """Rows -> tokens with labels, for one task and one tokenizer.

    Args:
        config: resolved (`columns.resolve`): its `data` names columns and labels.
        tokenizer: a transformers fast tokenizer; no text may have more tokens than its `model_max_length`.
        vocab_size: rows of the model's embedding; a token id beyond it is an error. None: not checked.
        blind: rows have no labels, and need none: their texts are to be judged. The first token of word w then has w
            for its label, and that of a text 0, so that it is known what stands where.

    Attributes:
        group: examples that one row becomes.
    """

    template = None  # it has no use for one

    def __init__(self, config: RunConfig, tokenizer: Any, *, vocab_size: int | None = None, blind: bool = False):
        data = config.data
        assert data.text_column is not None, "columns.resolve fills it in"
        self.task, self.tokenizer, self.vocab_size, self.blind = config.task, tokenizer, vocab_size, blind
        self.texts = [data.text_column] if isinstance(data.text_column, str) else list(data.text_column)
        self.label, self.labels = data.label_column, data.labels or []
        self.on_long = data.on_long
        limit = getattr(tokenizer, "model_max_length", None) or sys.maxsize
        self.max_length = min(data.max_length, limit)
        self.typed = config.task == "classify" and len(self.texts) == 2
        self.group = 2 if config.task == "embed" and not blind else 1

    def reader(self, columns: Iterable[str], path: str) -> Callable[[dict[str, Any], str], Example]:
        """A function of (row, origin) that makes the example.

        Raises:
            DataError: a column that is not there; when called, a row that is empty or has a label that is unknown.
        """
        columns = list(columns)
        need(self.texts, columns, path, "data.text_column")
        label = self.label or ""
        labelled = self.task != "embed" and not self.blind
        if labelled:
            need([label], columns, path, "data.label_column")
        find = label_ids(self.labels, label)

        def classify(row: dict[str, Any], origin: str) -> Example:
            texts = tuple(_text(row, column, origin) for column in self.texts)
            return Labelled(texts, find(row.get(label), origin) if labelled else 0)

        def tag(row: dict[str, Any], origin: str) -> Example:
            words = [str(word) for word in items(row, self.texts[0], origin)]
            if not labelled:
                return Tagged(words, list(range(len(words))))
            tags = items(row, label, origin)
            if len(tags) != len(words):
                raise DataError(
                    "a row with another number of tags than words",
                    where=origin,
                    got=f"{len(words)} in {self.texts[0]!r}, {len(tags)} in {label!r}",
                    wanted="one tag for each word",
                )
            return Tagged(words, [find(one, origin) for one in tags])

        def embed(row: dict[str, Any], origin: str) -> Example:
            texts = [_text(row, column, origin) for column in self.texts]
            return Related(texts[0], texts[1] if len(texts) == 2 else None)

        return {"classify": classify, "tag": tag, "embed": embed}[self.task]

    def encode(self, examples: Iterable[tuple[Example, str]], counts: Counts) -> Iterator[Tokens | None]:
        """Tokens of each (example, origin), in order, `group` of them each; None where the example was dropped.

        Raises:
            DataError: names the origin of an example that is too long (on_long=error), has nothing to learn, or holds a
                token beyond the vocabulary.
        """
        iterator = iter(examples)
        while block := list(itertools.islice(iterator, BLOCK)):
            kind = type(block[0][0])
            convert = {Labelled: self._labelled, Tagged: self._tagged, Related: self._related}[kind]
            yield from convert(block, counts)

    def _labelled(self, block: list[tuple[Any, str]], counts: Counts) -> Iterator[Tokens | None]:
        first = [example.texts[0] for example, _ in block]
        second = [example.texts[1] for example, _ in block] if self.typed else None
        encoded = self._call(first, second)
        for i, (example, origin) in enumerate(block):
            pair = [second[i]] if second is not None else None
            one = self._fit([encoded], i, [([first[i]], pair)], origin, counts)
            if one is None:
                yield None
                continue
            ids, more, _ = one[0]
            labels = _none(len(ids))
            labels[0] = example.label
            yield _tokens(ids, labels, origin, more)

    def _related(self, block: list[tuple[Any, str]], counts: Counts) -> Iterator[Tokens | None]:
        names = ["anchor", "positive"] if block[0][0].positive is not None else ["anchor"]
        sides = [[getattr(example, name) for example, _ in block] for name in names]
        encoded = [self._call(side, None) for side in sides]
        for i, (_, origin) in enumerate(block):
            found = self._fit(encoded, i, [([side[i]], None) for side in sides], origin, counts)
            for n in range(len(sides)):
                if found is None:
                    yield None
                    continue
                labels = _none(len(found[n][0]))
                if n == 0:
                    labels[0] = 0
                yield _tokens(found[n][0], labels, origin, {})

    def _tagged(self, block: list[tuple[Any, str]], counts: Counts) -> Iterator[Tokens | None]:
        texts = [" ".join(example.words) for example, _ in block]
        encoded = self._call(texts, None)
        for i, (example, origin) in enumerate(block):
            found = self._fit([encoded], i, [([texts[i]], None)], origin, counts)
            if found is None:
                yield None
                continue
            ids, _, offsets = found[0]
            labels = _none(len(ids))
            for word, token in enumerate(first_tokens(example.words, offsets)):
                if token is not None and labels[token] == NO_LABEL:
                    labels[token] = example.labels[word]
            if not (labels >= 0).any():
                raise DataError("a row without a word that the tokenizer knows", where=origin, got=repr(texts[i])[:80])
            yield _tokens(ids, labels, origin, {})

    def _call(self, first: list[str], second: list[str] | None, **how: Any) -> dict[str, Any]:
        return self.tokenizer(
            first,
            second,
            return_attention_mask=False,
            return_token_type_ids=self.typed,
            return_offsets_mapping=self.task == "tag",
            **how,
        )

    def _fit(
        self,
        encoded: list[dict[str, Any]],
        i: int,
        texts: list[tuple[list[str], list[str] | None]],
        origin: str,
        counts: Counts,
    ) -> list[tuple[np.ndarray, dict[str, np.ndarray], Any]] | None:
        """(ids, token types, offsets) of every text of row i, cut where they are too long; None: the row is dropped."""
        counts.rows += 1
        longest = max(len(side["input_ids"][i]) for side in encoded)
        counts.longest = max(counts.longest, longest)
        if longest > self.max_length:
            if self.on_long == "drop":
                counts.dropped += 1
                return None
            if self.on_long == "error":
                raise DataError(
                    "a text is longer than data.max_length, or than what the model can take",
                    where=origin,
                    got=f"{longest} tokens",
                    wanted=f"at most {self.max_length}",
                    fix="set data.on_long to truncate or drop (or raise data.max_length, where that is what limits)",
                )
            counts.truncated += 1
        out = []
        for side, (first, second) in zip(encoded, texts, strict=True):
            at = i
            if len(side["input_ids"][i]) > self.max_length:
                # by the tokenizer, which keeps its special tokens
                side, at = self._call(first, second, truncation=True, max_length=self.max_length), 0
            ids = np.array(side["input_ids"][at], np.int32)
            check_vocabulary(ids, self.vocab_size, self.tokenizer, origin)
            if not len(ids):
                raise DataError("the text is empty: the row has no token", where=origin)
            types = {"token_types": np.array(side["token_type_ids"][at], np.int32)} if self.typed else {}
            if self.typed and "token_type_ids" not in self.tokenizer.model_input_names:
                types = {"token_types": np.zeros(len(ids), np.int32)}  # the model knows one type
            out.append((ids, types, side["offset_mapping"][at] if self.task == "tag" else None))
        return out


def first_tokens(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[int | None]:
    """The first token of each word of `" ".join(words)`; None for one without a token of its own.

    By where tokens lie in the text, and not by the tokenizer's own `is_split_into_words`, which some byte-level ones
    refuse; and the text is then one as the encoder has learned it, with blanks between words.

    Args:
        words: of the text.
        offsets: (start, end) of each token in the text; special tokens have none, (0, 0).
    """
    starts, ends = np.array(offsets, np.int64).reshape(-1, 2).T
    inside = np.flatnonzero(ends > starts)
    found: list[int | None] = []
    start = 0
    for word in words:
        # a token may begin at the blank before the word, or be that blank: the first that ends behind it
        at = int(np.searchsorted(ends[inside], start, side="right"))
        token = int(inside[at]) if at < len(inside) else None
        found.append(token if token is not None and starts[token] < start + len(word) else None)
        start += len(word) + 1
    return found


def _none(num: int) -> np.ndarray:
    return np.full(num, NO_LABEL, np.int32)


def _tokens(ids: np.ndarray, labels: np.ndarray, origin: str, more: dict[str, np.ndarray]) -> Tokens:
    return Tokens(ids, labels >= 0, origin, {"labels": labels, **more})


def _text(row: dict[str, Any], column: str, origin: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        what = "is empty" if value is None or value == "" or isinstance(value, str) else "is not text"
        raise DataError(
            f"the column {column!r} {what}", where=origin, got=repr(value)[:80], fix="fill or remove the row"
        )
    return value
