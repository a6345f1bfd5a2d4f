"""From a config to the batches of its run: what the training loop, the evaluation and `jaxlean inspect` call."""

import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxlean.config import DataSection, RunConfig, SourceSection
from jaxlean.data.batches import Batches, EvalBatches, Stats, in_memory, measure, sequence_length
from jaxlean.data.columns import need
from jaxlean.data.curriculum import Curriculum, Losses, difficulty
from jaxlean.data.epochs import Mix, Steps
from jaxlean.data.files import Row, Rows
from jaxlean.data.format import recogniser
from jaxlean.data.labelled import LabelEncoder
from jaxlean.data.source import open_rows, stream_rows
from jaxlean.data.tokenize import Counts, Encoder, Ragged, Tokens
from jaxlean.errors import ConfigError, DataError
from jaxlean.fingerprint import of_files


def train_batches(
    config: RunConfig,
    tokenizer: Any,
    *,
    rows_per_step: int,
    vocab_size: int | None = None,
    held: Sequence[int] | None = None,
    losses: Losses | None = None,
) -> Batches:
    """The training batches of a run.

    Reads and tokenizes every source first, so that every problem of the data is found before the first step, unless
    `data.streaming` is set.

    Args:
        config: its `data`, `train.num_train_epochs`, `train.max_steps` and `seed`.
        tokenizer: a transformers fast tokenizer.
        rows_per_step: sequences of one optimizer step.
        vocab_size: rows of the model's embedding.
        held: of these sequences, those that this process hands out; default: all. Every process of a run reads the
            sources (of a stream, every row), lays out only what it holds, and counts for all.
        losses: measures the base's loss of each row, for `data.curriculum.difficulty: loss`; called if that is set.

    Raises:
        DataError: anything wrong with the data, with its place.
        ConfigError: no training data named, or settings that exclude each other.
    """
    _check_named(config.data)
    if config.data.streaming and config.task == "generate":
        encoder = _encoder(config, tokenizer, vocab_size)
        assert isinstance(encoder, Encoder)
        return _stream(config, encoder, rows_per_step, held)
    examples = read_examples(config, tokenizer, vocab_size=vocab_size)
    return lay_out(config, examples, rows_per_step=rows_per_step, held=held, losses=losses)


@dataclass(frozen=True)
class Examples:
    """The training rows of a run as tokens, before it is said in which order they come.

    Attributes:
        tokens: of all sources, one after the other.
        sizes: rows of each source.
        columns: float64 [rows], what `data.curriculum.column` names; empty where nothing is named.
        group: examples that a row became.
        counts: what became of the rows.
    """

    tokens: Ragged
    sizes: tuple[int, ...]
    columns: np.ndarray
    group: int
    counts: Counts


def read_examples(config: RunConfig, tokenizer: Any, *, vocab_size: int | None = None) -> Examples:
    """Read and tokenize every training source. Args, errors: as of `train_batches`."""
    data = config.data
    _check_named(data)
    assert data.train
    encoder = _encoder(config, tokenizer, vocab_size)
    shares(data.train)  # refused before anything is read
    counts = Counts()
    read = [_read(source, data, encoder, counts, config.seed) for source in data.train]
    parts = [part for part, _ in read]
    for source, part in zip(data.train, parts, strict=True):
        if not len(part):
            raise DataError(
                "no row is left to train on",
                where=source.path,
                got=f"{counts.rows} rows, {counts.dropped} dropped for their length",
                fix="raise data.max_length" if counts.dropped else "lower data.eval_fraction",
            )
    group = _group(encoder)
    columns = np.concatenate([column for _, column in read])
    return Examples(Ragged.join(parts), tuple(len(part) // group for part in parts), columns, group, counts)


def lay_out(
    config: RunConfig,
    examples: Examples,
    *,
    rows_per_step: int,
    held: Sequence[int] | None = None,
    losses: Losses | None = None,
) -> Batches:
    """The batches that the config makes of these examples: order, mix, curriculum, packing. Args: as `train_batches`.

    Examples may be laid out by any config that would read the same: one that differs in the sources' weights, the
    shuffling, the curriculum, packing, and (without `data.eval_fraction`) the seed.
    """
    data, group = config.data, examples.group
    assert data.train, "read_examples checks this"
    ordered = None
    if data.curriculum is not None:
        scores = difficulty(data.curriculum, examples.tokens, group, column=examples.columns, losses=losses)
        ordered = partial(Curriculum.of_run, data.curriculum, scores)
    return in_memory(
        examples.tokens,
        Mix(list(examples.sizes), shares(data.train), config.seed, data.shuffle),
        rows=rows_per_step,
        length=sequence_length(examples.tokens, data.packing, data.max_length),
        packing=data.packing,
        num_epochs=config.train.num_train_epochs,
        max_steps=config.train.max_steps,
        counts=examples.counts,
        names=[source.path for source in data.train],
        held=held,
        group=group,
        ordered=ordered,
    )


def eval_batches(
    config: RunConfig, tokenizer: Any, *, rows: int, vocab_size: int | None = None, held: Sequence[int] | None = None
) -> EvalBatches:
    """The held-out batches: `data.eval`, or the share `data.eval_fraction` of the training rows; each row once.

    Args:
        rows: sequences of a batch; the last batch is filled up with empty ones (segment 0).
        held: of these, those that this process lays out; default: all.

    Raises:
        DataError, ConfigError: as `train_batches`.
    """
    data = config.data
    encoder, counts = _encoder(config, tokenizer, vocab_size), Counts()
    examples = Ragged.of(_tokens(_held_out(config, encoder), encoder, counts))
    if not len(examples):
        if counts.rows:
            raise DataError("no held-out row is left", got=f"all {counts.rows} dropped for their length")
        return EvalBatches(None, data.max_length, Stats(counts))
    length = sequence_length(examples, data.packing, data.max_length)
    group = _group(encoder)
    mix = Mix([len(examples) // group], None, config.seed, shuffle=False)
    steps = Steps(examples, mix, rows=rows, length=length, packing=data.packing, held=held, group=group)
    return EvalBatches(steps, length, measure(steps, mix, counts, ["eval"]))


def eval_examples(config: RunConfig, tokenizer: Any) -> list[tuple[list[int], str, str]]:
    """The held-out rows for generation: (token ids of the prompt, wanted completion, origin).

    Of a conversation, the last assistant turn is wanted. Rows of plain text have no completion and are left out.
    """
    encoder = _encoder(config, tokenizer, None)
    assert isinstance(encoder, Encoder), "only task: generate has completions"
    made = ((encoder.prompt(example, origin), origin) for example, origin in _held_out(config, encoder))
    return [(*prompt, origin) for prompt, origin in made if prompt is not None]


def held_out_rows(config: RunConfig, tokenizer: Any) -> Iterator[tuple[Any, str]]:
    """(example, origin) of each held-out row, the first `eval.max_examples` of them. Errors as of `eval_batches`."""
    yield from _held_out(config, _encoder(config, tokenizer, None))


def training_rows(config: RunConfig, tokenizer: Any, *, most: int) -> Iterator[tuple[Any, str]]:
    """(example, origin) of the training rows; of more than `most` as many from each source, drawn by the seed.

    Raises:
        ConfigError: no training data named.
        DataError: a row that cannot be read, with its place.
    """
    data = config.data
    _check_named(data)
    assert data.train
    encoder = _encoder(config, tokenizer, None)
    for source in data.train:
        rows = open_rows(source)
        chosen = part_of(len(rows), data, False, config.seed)
        if len(chosen) > most // len(data.train):
            draw = np.random.default_rng([config.seed, len(rows)])
            chosen = np.sort(draw.choice(np.asarray(chosen), most // len(data.train), replace=False)).tolist()
        yield from _examples(rows, chosen, source, data, encoder)


def encoded(config: RunConfig, source: SourceSection, tokenizer: Any, counts: Counts, limit: int) -> Iterator[Tokens]:
    """The first rows of one source as tokens, at their full length, for looking at (`jaxlean inspect`)."""
    data = config.data
    if config.task != "generate":
        labels = LabelEncoder(config, tokenizer)
        labels.max_length = sys.maxsize
        rows = open_rows(source)
        return _tokens(_examples(rows, range(min(limit, len(rows))), source, data, labels), labels, counts)
    encoder = Encoder(tokenizer, max_length=sys.maxsize, train_on=data.train_on)
    if data.streaming:
        found = [(row, origin) for _, (_, row, origin) in zip(range(limit), stream_rows(source), strict=False)]
        make = recogniser(found[0][0] if found else [], source, data, chat=data.chat and encoder.template is not None)
        return _tokens(((make(row, origin), origin) for row, origin in found), encoder, counts)
    rows = open_rows(source)
    return _tokens(_examples(rows, range(min(limit, len(rows))), source, data, encoder), encoder, counts)


# --- from rows to examples to tokens ----------------------------------------------------------------------------


def _encoder(config: RunConfig, tokenizer: Any, vocab_size: int | None) -> Encoder | LabelEncoder:
    data = config.data
    if config.task != "generate":
        return LabelEncoder(config, tokenizer, vocab_size=vocab_size)
    return Encoder(
        tokenizer, max_length=data.max_length, on_long=data.on_long, train_on=data.train_on, vocab_size=vocab_size
    )


def _group(encoder: Encoder | LabelEncoder) -> int:
    """Examples that a row becomes."""
    return encoder.group if isinstance(encoder, LabelEncoder) else 1


def _examples(
    rows: Rows,
    chosen: Sequence[int],
    source: SourceSection,
    data: DataSection,
    encoder: Encoder | LabelEncoder,
    note: Callable[[Row, str], None] | None = None,
) -> Iterator[tuple[Any, str]]:
    """(example, origin) of the chosen rows (ascending), each of which `note` is told of, with its origin."""
    make: Callable[[dict[str, Any], str], Any]
    if isinstance(encoder, LabelEncoder):
        make = encoder.reader(rows[0], source.path)
    else:
        make = recogniser(rows[0], source, data, chat=data.chat and encoder.template is not None)
    wanted = iter(chosen)
    next_one = next(wanted, None)
    for i, row in enumerate(rows):
        if next_one is None:
            return
        if i == next_one:
            origin = rows.origin(i)
            if note is not None:
                note(row, origin)
            yield make(row, origin), origin
            next_one = next(wanted, None)


def _tokens(examples: Iterator[tuple[Any, str]], encoder: Encoder | LabelEncoder, counts: Counts) -> Iterator[Tokens]:
    return (tokens for tokens in encoder.encode(examples, counts) if tokens is not None)


def _read(
    source: SourceSection, data: DataSection, encoder: Encoder | LabelEncoder, counts: Counts, seed: int
) -> tuple[Ragged, np.ndarray]:
    """(the examples of a source, what stands in the column of difficulties for the row of each, if there is one)."""
    rows = open_rows(source)
    chosen = part_of(len(rows), data, False, seed)
    column = data.curriculum.column if data.curriculum is not None else None
    if column is None:
        return Ragged.of(_tokens(_examples(rows, chosen, source, data, encoder), encoder, counts)), np.zeros(0)
    need([column], rows[0], source.path, "data.curriculum.column")
    values: list[float] = []
    examples = _examples(rows, chosen, source, data, encoder, note=lambda *row: values.append(_number(column, *row)))
    made = list(encoder.encode(examples, counts))
    kept = [tokens is not None for tokens in made[:: _group(encoder)]]
    return Ragged.of(tokens for tokens in made if tokens is not None), np.array(values, np.float64)[kept]


def _number(column: str, row: Row, origin: str) -> float:
    try:
        found = float(row[column])
        if math.isfinite(found):
            return found
    except (KeyError, TypeError, ValueError):
        pass
    raise DataError(
        f"the column {column!r}, which data.curriculum.column names, holds no number", where=origin,
        got=repr(row.get(column))[:80], wanted="how hard the row is: a finite number, larger is harder",
    )  # fmt: skip


def part_of(num_rows: int, data: DataSection, held_out: bool, seed: int) -> Sequence[int]:
    """The rows that train, or those held out by `data.eval_fraction`: a fixed share of each source, by the seed."""
    if data.eval or not data.eval_fraction:
        return range(0) if held_out else range(num_rows)
    count = max(1, round(num_rows * data.eval_fraction))
    chosen = np.random.default_rng([seed, num_rows]).permutation(num_rows)
    return np.sort(chosen[:count] if held_out else chosen[count:]).tolist()


def _held_out(config: RunConfig, encoder: Encoder | LabelEncoder) -> Iterator[tuple[Any, str]]:
    """The held-out examples in their fixed order, the first `eval.max_examples` of them."""
    data = config.data
    no_split_of_a_stream(data)

    def every() -> Iterator[tuple[Any, str]]:
        for source in data.eval or (data.train if data.eval_fraction else None) or []:
            rows = open_rows(source)
            chosen = range(len(rows)) if data.eval else part_of(len(rows), data, True, config.seed)
            yield from _examples(rows, chosen, source, data, encoder)

    return itertools.islice(every(), config.eval.max_examples)


def _check_named(data: DataSection) -> None:
    if not data.train:
        raise ConfigError("no training data", wanted="data.train: a file, a folder or a hub id")


def shares(sources: Sequence[SourceSection]) -> list[float] | None:
    """Mixing weights, or None where no source has one: then every row counts alike."""
    given = [source.weight for source in sources if source.weight is not None]
    if len(sources) == 1 or not given:
        return None
    for source in sources:
        if source.weight is None:
            raise ConfigError("a source without a weight beside others that have one", where=source.path)
    return given


def no_split_of_a_stream(data: DataSection) -> None:
    if data.streaming and data.eval_fraction and not data.eval:
        raise ConfigError(
            "data.eval_fraction needs the number of rows, which a stream does not tell",
            fix="name held-out data in data.eval, or set data.eval_fraction=0 or data.streaming=false",
        )


def _stream(config: RunConfig, encoder: Encoder, rows_per_step: int, held: Sequence[int] | None) -> Batches:
    from jaxlean.data.stream import stream

    data, max_steps = config.data, config.train.max_steps
    no_split_of_a_stream(data)
    assert data.train, "train_batches checks this"
    assert max_steps is not None, "the config checks this"
    counts = Counts()
    weights = shares(data.train) or [1.0] * len(data.train)
    source = stream(data, encoder, counts, weights=weights, rows=rows_per_step, seed=config.seed)
    names = ", ".join(f"{part.path}{content_of(part)}" for part in data.train)
    fingerprint = (
        f"stream of {names}, seed {config.seed}, {rows_per_step} rows of {data.max_length}, "
        f"packing {data.packing}, shuffle {data.shuffle}, mix {weights}"
    )
    stats = Stats(counts, length=data.max_length)
    return Batches(source, num_steps=max_steps, length=data.max_length, stats=stats, fingerprint=fingerprint, held=held)


def content_of(source: SourceSection) -> str:
    """What tells local files from others; of what comes over the network nothing does, and this is empty."""
    if "://" in source.path or not Path(source.path).exists():
        return ""
    rows = open_rows(source)
    return f" ({rows.fingerprint or of_files(rows.files)})"
