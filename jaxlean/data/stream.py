"""Streaming: batches while the data are read, for data larger than the disk.

A grain pipeline, each part of which can save and restore its position: rows -> tokens -> shuffle within a window ->
mix of sources -> pack -> batch -> prefetch in a thread. A stream starts over when it ends. It knows neither its length
nor its longest row, so sequences have `max_length` tokens and the number of steps is what `train.max_steps` says.
"""

from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from jaxlean.config import DataSection, SourceSection
from jaxlean.data.format import recogniser
from jaxlean.data.source import stream_rows
from jaxlean.data.tokenize import Counts, Encoder, Tokens
from jaxlean.errors import DataError

READ_AHEAD = 64  # rows tokenized at once
WINDOW = 2048  # rows shuffled among each other
PACKING_BINS = 64  # sequences that are filled side by side
PREFETCH = 4  # batches


def stream(
    data: DataSection, encoder: Encoder, counts: Counts, *, weights: Sequence[float], rows: int, seed: int
) -> grain.IterDataset:
    """Build the pipeline.

    Args:
        data: sources, `max_length`, `packing`, `shuffle`.
        encoder: makes the tokens.
        counts: counts rows as they are read (read-ahead included).
        weights: share of each source.
        rows: sequences of a batch.
        seed: of the shuffling.

    Returns:
        A grain dataset of batches without end; `iter(it).get_state()` is the position after the last one handed out.
    """
    from grain.experimental import BestFitPackIterDataset, ThreadPrefetchIterDataset, WindowShuffleIterDataset

    parts: list[Any] = []
    for s, source in enumerate(data.train or []):
        part: Any = _TokenDataset(source, data, encoder, counts)
        if data.shuffle:
            part = WindowShuffleIterDataset(part, window_size=WINDOW, seed=seed * 1009 + s * 1_000_003)
        parts.append(part)
    mixed = parts[0] if len(parts) == 1 else grain.IterDataset.mix(parts, list(weights))
    if data.packing:
        length = {"tokens": data.max_length, "loss_mask": data.max_length}
        packed = BestFitPackIterDataset(
            mixed, length_struct=length, num_packing_bins=PACKING_BINS, seed=seed, shuffle_bins=data.shuffle
        )
        laid_out = packed.map(_from_packed)
    else:
        laid_out = mixed.map(lambda example: _alone(example, data.max_length))
    return ThreadPrefetchIterDataset(laid_out.batch(rows, drop_remainder=True), prefetch_buffer_size=PREFETCH)


class _TokenDataset(grain.IterDataset):
    """The tokens of one source, over and over."""

    def __init__(self, source: SourceSection, data: DataSection, encoder: Encoder, counts: Counts):
        super().__init__()
        self.source, self.data, self.encoder, self.counts = source, data, encoder, counts

    def __iter__(self) -> "_TokenIterator":
        return _TokenIterator(self)


class _TokenIterator(grain.DatasetIterator):
    """Its state is the number of the next row, which is read again after a restore."""

    def __init__(self, dataset: _TokenDataset):
        super().__init__()
        self._dataset = dataset
        self._row = 0
        self._start()

    def _start(self) -> None:
        self._rows: Any = None
        self._ahead: list[tuple[int, Tokens | None]] = []

    def get_state(self) -> dict[str, Any]:
        return {"row": self._row}

    def set_state(self, state: dict[str, Any]) -> None:
        self._row = state["row"]
        self._start()

    def __next__(self) -> dict[str, np.ndarray]:
        fresh = 0
        while True:
            while self._ahead:
                row, tokens = self._ahead.pop(0)
                self._row = row + 1
                if tokens is not None:
                    return {"tokens": tokens.input_ids, "loss_mask": tokens.loss_mask}
            if not self._read():
                if fresh:
                    raise DataError(
                        "the stream holds no row to train on",
                        where=self._dataset.source.path,
                        got=f"{self._dataset.counts.dropped} rows dropped for their length",
                    )
                fresh += 1
                self._row = 0
                self._start()

    def _read(self) -> bool:
        """Tokenize the next rows; False at the end of the source."""
        d = self._dataset
        if self._rows is None:
            self._rows = stream_rows(d.source, self._row)
        block = [item for _, item in zip(range(READ_AHEAD), self._rows, strict=False)]
        if not block:
            return False
        chat = d.data.chat and d.encoder.template is not None
        # The shape is taken from each block's first row, so that a restored position needs no earlier row.
        make = recogniser(block[0][1], d.source, d.data, chat=chat)
        tokens = d.encoder.encode([(make(row, origin), origin) for _, row, origin in block], d.counts)
        self._ahead = [(i, made) for (i, _, _), made in zip(block, tokens, strict=True)]
        return True


def _from_packed(packed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        "tokens": packed["tokens"].astype(np.int32),
        "loss_mask": packed["loss_mask"].astype(bool),
        "segments": packed["tokens_segment_ids"].astype(np.int32),
        "positions": packed["tokens_positions"].astype(np.int32),
    }


def _alone(example: dict[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
    used = len(example["tokens"])
    pad = (0, length - used)
    return {
        "tokens": np.pad(example["tokens"], pad).astype(np.int32),
        "loss_mask": np.pad(example["loss_mask"], pad),
        "segments": np.pad(np.ones(used, np.int32), pad),
        "positions": np.pad(np.arange(used, dtype=np.int32), pad),
    }
