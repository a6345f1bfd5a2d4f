"""Examples in a prompt (few-shot): training rows before each held-out one, for a model that was not trained for them.

Language models learn from what stands in their prompt (Brown et al., arXiv 2005.14165): what K examples are worth there
is what paying for training has to beat. Each held-out row has its own, drawn (as there, section 2.4) or those whose
prompts are most like its own (Liu et al., arXiv 2101.06804; likeness here is BM25's), the most alike last, next to the
row itself. They stand as earlier turns of the conversation where a chat template renders it, else as blocks of text:

    Where is my card?          <- prompt of an example, its completion in a new line if neither brings a blank
    card_arrival

    I was charged twice        <- the held-out row: this is where the model goes on
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from jaxlean.config import RunConfig
from jaxlean.data.batches import LENGTH_MULTIPLE, EvalBatches, measure
from jaxlean.data.bm25 import BM25
from jaxlean.data.dedupe import normalise
from jaxlean.data.epochs import Mix, Steps
from jaxlean.data.format import Chat, Example, Pair, Text
from jaxlean.data.loader import held_out_rows, training_rows
from jaxlean.data.tokenize import Counts, Encoder, Ragged, Tokens
from jaxlean.errors import DataError

# Of more training rows so many are drawn to choose from.
_POOL = 50_000
# What parts blocks of text: the first that no completion holds, since a generated one ends there.
_PARTS = ("\n\n", "\n\n\n", "\n\n###\n\n")
_SYSTEM = ("system", "developer")
Row = tuple[Example, str]  # with the place it came from


@dataclass(frozen=True)
class ShotRows:
    """Held-out rows with examples before them.

    Attributes:
        tokens: of each row, examples included; loss on the row's own completion alone.
        prompts: (token ids of the prompt, wanted completion, origin) of each row, as `loader.eval_examples` gives them.
        shots: int [rows], examples before each.
        counts: what happened to the held-out rows.
        wanted: examples asked for.
        there: training rows to choose from.
        longest: tokens that a row may have.
        leaked: training rows that were left out, since their prompts are those of held-out rows.
        end: where a generated completion ends, if not at the model's own end; None in a chat.
        train_on: of the config. Here the loss is of completions, whatever it says.
    """

    tokens: list[Tokens]
    prompts: list[tuple[list[int], str, str]]
    shots: np.ndarray
    counts: Counts
    wanted: int
    there: int
    longest: int
    leaked: int
    end: str | None
    train_on: Literal["completion", "all"]

    def __str__(self) -> str:
        most = min(self.wanted, self.there)
        fewer = int((self.shots < most).sum())
        said = f"few-shot: {most} examples before each of {len(self.tokens):,} held-out rows"
        if most < self.wanted:
            said += f"; {self.wanted} were asked for, and the training data have no more to give"
        if fewer:
            said += f"; {fewer:,} rows have fewer ({self.shots.mean():.1f} on average) to fit {self.longest:,} tokens"
        if self.leaked:
            said += f"; {self.leaked:,} training rows are not used: their prompts are held-out ones"
        if self.train_on == "all":
            said += (
                "; loss on their completions alone, not comparable with one under data.train_on: all, "
                "which has the prompts too (data.train_on=completion compares)"
            )
        return said

    def batches(self, *, rows: int, seed: int, held: Sequence[int] | None = None) -> EvalBatches:
        """Packed batches, as `loader.eval_batches` gives them; args as there."""
        examples = Ragged.of(self.tokens)
        length = -(-int(examples.lengths.max()) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        mix = Mix([len(examples)], None, seed, shuffle=False)
        steps = Steps(examples, mix, rows=rows, length=length, packing=True, held=held)
        return EvalBatches(steps, length, measure(steps, mix, self.counts, ["eval"]))

    def cut(self, text: str) -> str:
        """A generated completion up to where the next block would begin."""
        return text if self.end is None else text.lstrip().partition(self.end)[0]


def shot_rows(config: RunConfig, tokenizer: Any, *, longest: int, vocab_size: int | None = None) -> ShotRows:
    """The held-out rows of `task: generate` with `eval.shots` training rows before each.

    The rows are those of `loader.eval_batches`. One that would be too long has fewer examples: the least alike, or the
    first drawn, are left out. Of blocks of text the model's own end carries no loss, since other blocks end without it.

    Args:
        config: its `data`, `eval` and `seed`; `eval.shots` is 1 or more.
        tokenizer: a transformers fast tokenizer.
        longest: tokens that the model can take; those it is to generate (`eval.exact_match`) must fit too.
        vocab_size: rows of the model's embedding.

    Raises:
        DataError: a row that cannot be read, plain text (which has no prompt), no training row that may be used.
        ConfigError: no training data named.
    """
    data, wanted = config.data, config.eval.shots or 0
    cut = Encoder(
        tokenizer, max_length=data.max_length, on_long=data.on_long, train_on="completion", vocab_size=vocab_size
    )
    counts = Counts()
    read = list(held_out_rows(config, tokenizer))
    kept = [pair for pair in zip(read, cut.encode(read, counts), strict=True) if pair[1] is not None]
    if not kept:
        raise DataError("no held-out row is left", got=f"all {counts.rows} dropped for their length")
    rows, alone = [row for row, _ in kept], [tokens for _, tokens in kept if tokens is not None]
    pool, leaked = _pool(config, tokenizer, rows)
    chosen = choose(
        [prompt_of(*row) for row in rows], [prompt_of(*row) for row in pool], wanted, config.eval.shots_by, config.seed
    )
    completions = [example.completion for example, _ in [*rows, *pool] if isinstance(example, Pair)]
    part = next((part for part in _PARTS if not any(part in text for text in completions)), _PARTS[-1])

    whole = Encoder(tokenizer, max_length=sys.maxsize, vocab_size=vocab_size)
    new = config.eval.max_new_tokens if config.eval.exact_match else 0
    made: list[Tokens | None] = [None] * len(rows)
    prompts: list[tuple[list[int], str, str] | None] = [None] * len(rows)
    # The most examples that fit, by bisection: a prompt is laid out and cut anew for each number that is tried.
    fit, most = np.full(len(rows), -1), np.array([len(own) for own in chosen])
    tried, left = most.copy(), np.arange(len(rows))
    while len(left):
        laid = [
            (lay_out(rows[i][0], [pool[n][0] for n in chosen[i][len(chosen[i]) - tried[i] :]], part), rows[i][1])
            for i in left
        ]
        for i, (example, origin), tokens in zip(left, laid, whole.encode(laid, Counts()), strict=True):
            asked = whole.prompt(example, origin)
            assert asked is not None, "prompt_of refuses plain text"
            assert tokens is not None, "nothing is dropped"
            if tried[i] and max(len(tokens.input_ids), len(asked[0]) + new) > longest:
                most[i] = tried[i] - 1
                continue
            if not tried[i] and len(tokens.input_ids) > data.max_length:
                tokens = alone[i]
            fit[i], made[i], prompts[i] = tried[i], _without_end(tokens, example, tokenizer), (*asked, origin)
        left = left[fit[left] < most[left]]
        tried = (fit + most + 1) // 2
    return ShotRows(
        [tokens for tokens in made if tokens is not None], [prompt for prompt in prompts if prompt is not None],
        fit, counts, wanted, len(pool), longest, leaked, part if completions else None, data.train_on,
    )  # fmt: skip


def choose(
    asked: Sequence[str], pool: Sequence[str], num: int, by: Literal["random", "nearest"], seed: int
) -> list[list[int]]:
    """The examples of each row, as places in the pool, in the order in which they are to stand.

    Args:
        asked: the prompts of the rows.
        pool: the prompts of the examples there are.
        num: examples of a row; all there are, if they are fewer.
        by: drawn for each row by its place and the seed, or the most alike by BM25, the most alike last.
        seed: of the drawing.
    """
    num = min(num, len(pool))
    if by == "nearest":
        index = BM25(pool, seed=seed)
        return [index.nearest(text, num)[::-1].tolist() for text in asked]
    return [np.random.default_rng([seed, i]).choice(len(pool), num, replace=False).tolist() for i in range(len(asked))]


def lay_out(row: Example, shots: Sequence[Example], part: str = _PARTS[0]) -> Example:
    """A row with examples before it: of a conversation earlier turns, else blocks of text.

    Args:
        row: its system message stays the first.
        shots: of the same kind as the row; their own system messages are left out.
        part: what stands between blocks.

    >>> lay_out(Pair("2 + 2 =", " 4"), [Pair("1 + 1 =", " 2")])
    Pair(prompt='1 + 1 = 2\\n\\n2 + 2 =', completion=' 4')
    """
    if isinstance(row, Chat):
        system = [m for m in row.messages[:1] if m["role"] in _SYSTEM]
        turns = [m for shot in shots if isinstance(shot, Chat) for m in shot.messages if m["role"] not in _SYSTEM]
        learned = max(row.learn_from, len(system)) + len(turns)
        return replace(row, messages=[*system, *turns, *row.messages[len(system) :]], learn_from=learned)
    assert isinstance(row, Pair), "prompt_of refuses plain text"
    blocks = [_seamed(shot) for shot in shots if isinstance(shot, Pair)]
    own = _seamed(row)
    before = "".join(f"{block.prompt}{block.completion.rstrip()}{part}" for block in blocks)
    return Pair(before + own.prompt, own.completion)


def prompt_of(example: Example, origin: str) -> str:
    """What the model is asked, as text: of a conversation all that stands before its last learned turn.

    Raises:
        DataError: plain text, of which nothing is asked.
    """
    if isinstance(example, Pair):
        return example.prompt
    if isinstance(example, Text):
        raise DataError(
            "few-shot examples are rows with a prompt and a completion, and this is plain text", where=origin,
            fix="leave out eval.shots, or name the columns with data.prompt and data.completion",
        )  # fmt: skip
    last = max(i for i, m in enumerate(example.messages) if m["role"] == "assistant" and i >= example.learn_from)
    return "\n".join(m["content"] for m in example.messages[:last] if m["role"] not in _SYSTEM)


def _pool(config: RunConfig, tokenizer: Any, rows: Sequence[Row]) -> tuple[list[Row], int]:
    """The training rows that may stand as examples, and how many may not, since their prompts are held out.

    As `leakage` of `jaxlean curate` has it: case, marks, blanks and forms of Unicode make no other prompt.
    """
    held, kind = {normalise(prompt_of(*row)) for row in rows}, type(rows[0][0])
    every = [row for row in training_rows(config, tokenizer, most=_POOL) if isinstance(row[0], kind)]
    pool = [row for row in every if normalise(prompt_of(*row)) not in held]
    if not pool:
        raise DataError(
            "no training row can stand as an example", where="data.train",
            got=f"{len(every):,} rows of the held-out rows' kind, all of whose prompts are held-out ones",
            fix="other training data, or no eval.shots",
        )  # fmt: skip
    return pool, len(every) - len(pool)


def _seamed(pair: Pair) -> Pair:
    """The same with a line's end between prompt and completion, where neither has a blank there."""
    if pair.prompt[-1:].isspace() or pair.completion[:1].isspace() or not pair.prompt:
        return pair
    return Pair(pair.prompt + "\n", pair.completion)


def _without_end(tokens: Tokens, example: Example, tokenizer: Any) -> Tokens:
    if not isinstance(example, Pair) or tokens.input_ids[-1] != tokenizer.eos_token_id:
        return tokens
    mask = tokens.loss_mask.copy()
    mask[-1] = False
    return replace(tokens, loss_mask=mask)
