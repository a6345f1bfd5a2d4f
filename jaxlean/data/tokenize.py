"""Tokens: an example -> token ids and the mask of those that are learned.

Never twice BOS: a chat template that writes it is not given another. The end is always learned, padding never (it is
added later and is no token of any example, so a tokenizer whose pad is its EOS does no harm). What the model is given
when it is used is a prefix, token for token, of what it was trained on.
"""

import itertools
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from jaxlean.data.chat import Rendered, Template
from jaxlean.data.format import Chat, Example, Pair, Text
from jaxlean.errors import DataError

BLOCK = 512  # examples given to the (parallel) fast tokenizer at once


@dataclass(frozen=True)
class Tokens:
    """One example: `input_ids` int32 [n], `loss_mask` bool [n] (True: this token carries loss), its origin.

    `more` holds what else there is of each token, int32 [n]: the `labels` of a task (`labelled.py`), `token_types`.
    """

    input_ids: np.ndarray
    loss_mask: np.ndarray
    origin: str = "memory"
    more: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Counts:
    """What happened to the rows: nothing is cut in silence."""

    rows: int = 0
    dropped: int = 0
    truncated: int = 0
    longest: int = 0  # tokens, before anything was cut


@dataclass(frozen=True)
class Ragged:
    """Many examples in two flat arrays (5 bytes a token), example i at `offsets[i]:offsets[i + 1]`."""

    input_ids: np.ndarray  # int32 [total_tokens]
    loss_mask: np.ndarray  # bool [total_tokens]
    offsets: np.ndarray  # int64 [num_examples + 1]
    more: Mapping[str, np.ndarray] = field(default_factory=dict)  # int32 [total_tokens] each, as of `Tokens`
    lengths: np.ndarray = field(init=False)  # int64 [num_examples]

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", np.diff(self.offsets))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def checksum(self) -> int:
        """CRC-32 of all of it: tokens, what of them is learned, and where one example ends."""
        value = 0
        for array in (self.offsets, self.input_ids, self.loss_mask, *self.more.values()):
            value = zlib.crc32(array.data, value)
        return value

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """(input_ids, loss_mask) of example i."""
        span = slice(int(self.offsets[i]), int(self.offsets[i + 1]))
        return self.input_ids[span], self.loss_mask[span]

    def more_of(self, i: int) -> dict[str, np.ndarray]:
        """What else there is of the tokens of example i."""
        span = slice(int(self.offsets[i]), int(self.offsets[i + 1]))
        return {name: value[span] for name, value in self.more.items()}

    @staticmethod
    def of(examples: Iterable[Tokens]) -> "Ragged":
        """Gather examples, as they come, without holding them one by one."""
        parts: list[Ragged] = []
        iterator = iter(examples)
        while block := list(itertools.islice(iterator, 16 * BLOCK)):
            lengths = [len(example.input_ids) for example in block]
            parts.append(
                Ragged(
                    np.concatenate([example.input_ids for example in block]).astype(np.int32, copy=False),
                    np.concatenate([example.loss_mask for example in block]).astype(bool, copy=False),
                    np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
                    {name: np.concatenate([example.more[name] for example in block]) for name in block[0].more},
                )
            )
            assert len(parts[-1].input_ids) == len(parts[-1].loss_mask), "tokens and mask differ in length"
        return Ragged.join(parts)

    @staticmethod
    def join(parts: Sequence["Ragged"]) -> "Ragged":
        """The examples of all parts, in order."""
        starts = np.concatenate([[0], np.cumsum([len(part.input_ids) for part in parts])]).astype(np.int64)
        offsets = [part.offsets[:-1] + start for part, start in zip(parts, starts, strict=False)]
        return Ragged(
            np.concatenate([np.zeros(0, np.int32), *(part.input_ids for part in parts)]),
            np.concatenate([np.zeros(0, bool), *(part.loss_mask for part in parts)]),
            np.concatenate([*offsets, starts[-1:]]),
            {name: np.concatenate([part.more[name] for part in parts]) for name in (parts[0].more if parts else ())},
        )


class Encoder:
    """Examples -> tokens, for one tokenizer and one set of limits.

    Args:
        tokenizer: a transformers fast tokenizer.
        max_length: tokens an example may have.
        on_long: what happens to a longer one.
        train_on: `completion`: loss on assistant and completion tokens; `all`: on every token.
        vocab_size: rows of the model's embedding; a token id beyond it is an error. None: not checked.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_length: int,
        on_long: Literal["error", "truncate", "drop"] = "error",
        train_on: Literal["completion", "all"] = "completion",
        vocab_size: int | None = None,
    ):
        self.tokenizer, self.max_length, self.on_long = tokenizer, max_length, on_long
        self.train_on, self.vocab_size = train_on, vocab_size
        self.template = Template(tokenizer) if getattr(tokenizer, "chat_template", None) else None
        self.prefix = _prefix(tokenizer)

    def encode(self, examples: Iterable[tuple[Example, str]], counts: Counts) -> Iterator[Tokens | None]:
        """Tokens of each (example, origin), in order; None where the example was dropped.

        Raises:
            DataError: names the origin of an example that is too long (on_long=error), has nothing to learn, holds a
                token beyond the vocabulary, or that the chat template refuses.
        """
        block: list[tuple[Example, str]] = []
        for item in examples:
            block.append(item)
            if len(block) == BLOCK:
                yield from self._encode(block, counts)
                block = []
        yield from self._encode(block, counts)

    def prompt(self, example: Example, origin: str) -> tuple[list[int], str] | None:
        """Token ids to generate from, and the text that is wanted; None for plain text, which has no completion."""
        if isinstance(example, Text):
            return None
        if isinstance(example, Pair):
            ids = self._ids([example.prompt])[0]
            return [*self._unless_there(ids), *ids], example.completion
        text, completion = self._template().prompt(example, origin)
        return self._ids([text])[0], completion

    def _encode(self, block: Sequence[tuple[Example, str]], counts: Counts) -> Iterator[Tokens | None]:
        made: list[tuple[np.ndarray, np.ndarray] | None] = [None] * len(block)
        for kind, convert in ((Chat, self._chats), (Pair, self._pairs), (Text, self._texts)):
            at = [i for i, (example, _) in enumerate(block) if isinstance(example, kind)]
            if at:
                for i, tokens in zip(at, convert([block[i] for i in at]), strict=True):
                    made[i] = tokens
        for pair, (_, origin) in zip(made, block, strict=True):
            assert pair is not None
            yield self._fit(*pair, origin, counts)

    def _fit(self, ids: np.ndarray, mask: np.ndarray, origin: str, counts: Counts) -> Tokens | None:
        counts.rows += 1
        counts.longest = max(counts.longest, len(ids))
        if self.train_on == "all":
            mask = np.ones(len(ids), bool)
        mask[:1] = False  # nothing comes before the first token that could predict it
        check_vocabulary(ids, self.vocab_size, self.tokenizer, origin)
        if len(ids) > self.max_length:
            if self.on_long == "drop":
                counts.dropped += 1
                return None
            if self.on_long == "error":
                raise DataError(
                    "a row is longer than data.max_length",
                    where=origin,
                    got=f"{len(ids)} tokens",
                    wanted=f"at most {self.max_length}",
                    fix="raise data.max_length, or set data.on_long to truncate or drop",
                )
            counts.truncated += 1
            whole, ids, mask = len(ids), ids[: self.max_length], mask[: self.max_length]
            if not mask.any():
                raise DataError(
                    "a row has no loss token left after truncation: its prompt alone fills data.max_length",
                    where=origin,
                    got=f"{whole} tokens, {self.max_length} kept",
                    fix="raise data.max_length, or set data.on_long: drop",
                )
        if not mask.any():
            raise DataError(
                "a row has no loss token", where=origin, got=f"{len(ids)} tokens", fix="fill or remove the row"
            )
        return Tokens(ids, mask, origin)

    def _texts(self, block: list[tuple[Any, str]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for ids, (_, origin) in zip(self._ids([example.text for example, _ in block]), block, strict=True):
            if not ids:
                raise DataError("the text is empty: the row has no token to learn", where=origin)
            whole = self._ended([*self._unless_there(ids), *ids], origin)
            yield np.array(whole, np.int32), np.ones(len(whole), bool)

    def _pairs(self, block: list[tuple[Any, str]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        prompts = self._ids([example.prompt for example, _ in block])
        joined = self._ids([example.prompt + example.completion for example, _ in block])
        for prompt, ids, (example, origin) in zip(prompts, joined, block, strict=True):
            if ids[: len(prompt)] != prompt:
                # A token would straddle the two; at generation the prompt stands alone, so it does here.
                ids = prompt + self._ids([example.completion])[0]
            prefix = self._unless_there(prompt)
            whole = self._ended([*prefix, *ids], origin)
            mask = np.arange(len(whole)) >= len(prefix) + len(prompt)
            yield np.array(whole, np.int32), mask

    def _chats(self, block: list[tuple[Any, str]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        rendered = [self._template().render(example, origin) for example, origin in block]
        encoded = self.tokenizer(
            [r.text for r in rendered],
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        for r, ids, offsets, (_, origin) in zip(
            rendered, encoded["input_ids"], encoded["offset_mapping"], block, strict=True
        ):
            starts, ends = np.array(offsets, np.int64).reshape(-1, 2).T
            # Some tokenizers leave blanks out of their offsets; a token reaches back to the end of the one before.
            starts = np.minimum(starts, np.concatenate([[0], ends[:-1]]))
            if any(np.any((starts < start) & (start < ends)) for start, _ in r.spans):
                ids, mask = self._pieces(r)
            else:
                mask = np.zeros(len(ids), bool)
                for start, end in r.spans:
                    mask |= (starts < end) & (ends > start)
            if r.add_end:
                ended = self._ended(list(ids), origin)
                mask, ids = np.concatenate([mask, np.ones(len(ended) - len(ids), bool)]), ended
            yield np.array(ids, np.int32), mask

    def _pieces(self, r: Rendered) -> tuple[list[int], np.ndarray]:
        """Tokenize between the starts and ends of the spans, where a token of the whole would straddle a start."""
        cuts = [0, *(cut for span in r.spans for cut in span), len(r.text)]
        pieces = self._ids([r.text[a:b] for a, b in itertools.pairwise(cuts)])
        learned = np.concatenate([np.full(len(piece), n % 2 == 1) for n, piece in enumerate(pieces)])
        return [token for piece in pieces for token in piece], learned

    def _ids(self, texts: list[str]) -> list[list[int]]:
        encoded = self.tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False
        )
        return encoded["input_ids"]

    def _unless_there(self, ids: list[int]) -> list[int]:
        """The tokenizer's own prefix (BOS), or nothing where the text already spells it."""
        return [] if self.prefix and ids[: len(self.prefix)] == self.prefix else self.prefix

    def _ended(self, ids: list[int], origin: str) -> list[int]:
        end = self.tokenizer.eos_token_id
        if end is None:
            raise DataError(
                "the tokenizer has no EOS token, so the model could not learn to stop",
                where=origin,
                fix="set eos_token in the tokenizer's tokenizer_config.json",
            )
        return ids if ids[-1:] == [end] else [*ids, end]

    def _template(self) -> Template:
        return self.template or Template(self.tokenizer)  # the second raises: there is none


def check_vocabulary(ids: np.ndarray, vocab_size: int | None, tokenizer: Any, origin: str) -> None:
    """Check that a model has a vector for each token id; a `vocab_size` of None is not checked.

    Raises:
        DataError: names the origin and the token.
    """
    if vocab_size is not None and len(ids) and int(ids.max()) >= vocab_size:
        beyond = int(ids.max())
        raise DataError(
            "a token id beyond the model's vocabulary",
            where=origin,
            got=f"{beyond} ({tokenizer.convert_ids_to_tokens(beyond)!r})",
            wanted=f"ids below {vocab_size}",
            fix="use the tokenizer that belongs to the model",
        )


def _prefix(tokenizer: Any) -> list[int]:
    """What the tokenizer itself puts before a text: [BOS] or nothing."""
    with_special = tokenizer("a")["input_ids"]
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    for start in range(len(with_special) - len(plain) + 1):
        if with_special[start : start + len(plain)] == plain:
            return list(with_special[:start])
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
