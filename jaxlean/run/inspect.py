"""`jaxlean inspect`: look at what would be trained on, before anything is.

Shows examples as the model will see them with the learned tokens coloured (and between « », for eyes and logs
without colour), how long the rows are, what `data.on_long` would do to them, what packing saves, and what a curriculum
begins with.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxlean.config import RunConfig
from jaxlean.data.loader import encoded
from jaxlean.data.pack import pack
from jaxlean.data.term_tokens import grown
from jaxlean.data.tokenize import Counts, Tokens
from jaxlean.errors import ConfigError
from jaxlean.run.init_from import with_start
from jaxlean.run.inspect_curriculum import show_curriculum
from jaxlean.run.job import resolved
from jaxlean.run.vocabulary import with_new_tokens

SHOWN_TOKENS = 1000  # of one example
STREAM_ROWS = 1000  # looked at, of a source that is streamed
_LEARNED = "bold green"


def inspect(config: RunConfig, num_examples: int = 3, *, tokenizer: Any = None, console: Console | None = None) -> None:
    """Print examples, length statistics and the saving of packing.

    Args:
        config: its `data` and `model` (for the tokenizer).
        num_examples: shown of each source.
        tokenizer: default: the model's.
        console: where to print; default: standard output.

    Raises:
        ConfigError: no training data, or no model to take the tokenizer from.
        DataError: anything wrong with a row, with its place.
    """
    data = config.data
    console = console or Console(highlight=False)
    tokenizer = tokenizer or _tokenizer(config)
    if not data.train:
        raise ConfigError("no training data", wanted="data.train: a file, a folder or a hub id")
    config, new_tokens = with_new_tokens(resolved(with_start(config), trains=False), tokenizer, counted=True)
    if new_tokens is not None:
        assert isinstance(config.model.new_tokens, list)
        console.print(new_tokens)
        tokenizer = grown(tokenizer, config.model.new_tokens)
    data = config.data
    counts, lengths, tokens = Counts(), [], 0
    for source in data.train or []:
        console.rule(Text(source.path))
        limit = STREAM_ROWS if data.streaming else 2**62
        for i, example in enumerate(encoded(config, source, tokenizer, counts, limit)):
            lengths.append(len(example.input_ids))
            tokens += int(example.loss_mask.sum())
            if i < num_examples:
                console.print(rendered(example, tokenizer), soft_wrap=True)
                if data.labels is not None:
                    console.print(Text(_label_names(example, data.labels), style=_LEARNED), soft_wrap=True)
                console.print()
    console.rule(f"the first {counts.rows:,} rows" if data.streaming else "all rows")
    all_lengths = np.array(lengths)
    total = int(all_lengths.sum())
    console.print(f"{counts.rows:,} rows, {total:,} tokens, {tokens:,} of them learned ({tokens / total:.1%})")
    console.print(_percentiles(all_lengths))
    console.print(_histogram(all_lengths))
    console.print(_too_long(all_lengths, data.max_length, data.on_long))
    console.print(_saving(all_lengths, data.max_length, data.on_long, data.packing))
    if data.curriculum is not None and (data.on_long != "error" or all_lengths.max() <= data.max_length):
        console.rule("curriculum")
        show_curriculum(config, tokenizer, num_examples, console)


def rendered(example: Tokens, tokenizer: Any) -> Text:
    """One example: its origin, then its text with the learned runs coloured and between « »."""
    ids, mask = example.input_ids[:SHOWN_TOKENS], example.loss_mask[:SHOWN_TOKENS]
    text = Text()
    text.append(
        f"{example.origin}: {len(example.input_ids)} tokens, {int(example.loss_mask.sum())} learned\n", style="dim"
    )
    cuts = [0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), len(ids)]
    for start, end in itertools.pairwise(cuts):
        run = tokenizer.decode(ids[start:end].tolist(), clean_up_tokenization_spaces=False)
        if mask[start]:
            text.append(f"«{run}»", style=_LEARNED)
        else:
            text.append(run)
    if len(example.input_ids) > SHOWN_TOKENS:
        text.append(f"\n... and {len(example.input_ids) - SHOWN_TOKENS} more tokens", style="dim")
    return text


def _label_names(example: Tokens, labels: list[str]) -> str:
    found = example.more["labels"]
    return " ".join(labels[i] for i in found[found >= 0].tolist())


def _percentiles(lengths: np.ndarray) -> Table:
    table = Table(title="tokens a row", title_justify="left")
    marks = {"shortest": 0, "25 %": 25, "50 %": 50, "75 %": 75, "90 %": 90, "99 %": 99, "longest": 100}
    for name in marks:
        table.add_column(name, justify="right")
    table.add_column("mean", justify="right")
    found = np.percentile(lengths, list(marks.values()), method="higher")
    table.add_row(*(f"{int(value):,}" for value in found), f"{lengths.mean():,.1f}")
    return table


def _histogram(lengths: np.ndarray, bars: int = 10, width: int = 40) -> str:
    step = max(1, -(-int(lengths.max()) // bars))
    counts = np.bincount((lengths - 1) // step)
    lines = []
    for b, count in enumerate(counts):
        bar = "█" * -(-int(count) * width // int(counts.max()))
        lines.append(f"{b * step + 1:>7,}-{(b + 1) * step:<7,} {bar} {count:,}")
    return "\n".join(lines)


def _too_long(lengths: np.ndarray, max_length: int, on_long: str) -> str:
    long = int((lengths > max_length).sum())
    if not long:
        return f"no row is longer than data.max_length ({max_length:,})"
    lost = int((lengths[lengths > max_length] - max_length).sum())
    what = {
        "error": "the run would stop there (data.on_long: error)",
        "truncate": f"truncated, {lost:,} tokens lost (data.on_long: truncate)",
        "drop": "dropped (data.on_long: drop)",
    }[on_long]
    return f"{long:,} rows ({long / len(lengths):.1%}) are longer than data.max_length ({max_length:,}): {what}"


def _saving(lengths: np.ndarray, max_length: int, on_long: str, packing: bool) -> str:
    kept = lengths[lengths <= max_length] if on_long == "drop" else np.minimum(lengths, max_length)
    if not len(kept):
        return "no row is left"
    longest = min(max_length, -(-int(kept.max()) // 64) * 64)
    without, sequences = len(kept) * longest, len(pack(kept, max_length))
    packed = sequences * max_length
    saving = (
        f"{1 - packed / without:.1%} fewer" if packed <= without else "more: the data are too few to fill a sequence"
    )
    return (
        f"an epoch without packing: {len(kept):,} sequences of {longest:,} = {without:,} tokens; "
        f"with packing: {sequences:,} of {max_length:,} = {packed:,} tokens, {saving} "
        f"(data.packing: {str(packing).lower()})"
    )


def _tokenizer(config: RunConfig) -> Any:
    from jaxlean.hub.load import load_tokenizer

    path = config.model.tokenizer or config.model.path
    if path is None:
        raise ConfigError("no model to take the tokenizer from", wanted="model.path or model.tokenizer")
    tokenizer = load_tokenizer(path)
    if config.model.chat_template:
        file = Path(config.model.chat_template)
        try:
            tokenizer.chat_template = file.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError("the chat template cannot be read", where=file, got=error) from None
    return tokenizer
