"""The batches of a run: an iterator that can say where it is, and be put there again.

    for batch in batches:            # batches.num_steps of them, prefetched by a background thread
        ...
        state = batches.state()      # of the batch just handed out, not of what was prefetched
    batches.restore(state)           # the next batch is the one that would have come

Batches of tokens in memory (`arrays`) need numpy alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxlean.data.curriculum import Curriculum
from jaxlean.data.epochs import Batch, Mix, Steps
from jaxlean.data.tokenize import Counts, Ragged, Tokens
from jaxlean.errors import DataError, RunError

LENGTH_MULTIPLE = 64  # unpacked sequences are padded to a multiple of this, which suits every accelerator


@dataclass
class Stats:
    """What the rows became.

    Attributes:
        counts: rows read, dropped, truncated; the longest.
        examples: rows that are left.
        tokens: loss tokens in all examples.
        total_tokens: all their tokens.
        sources: examples of each source that one epoch takes.
        length: tokens of a sequence.
        sequences: sequences of the first epoch.
        padding: share of the first epoch's sequences that is padding, 0..1.
        order: in which they come, in words, if that is not at random.
    """

    counts: Counts
    examples: int = 0
    tokens: int = 0
    total_tokens: int = 0
    sources: dict[str, int] = field(default_factory=dict)
    length: int = 0
    sequences: int = 0
    padding: float = 0.0
    order: str = ""

    def __str__(self) -> str:
        counts = self.counts
        used = counts.rows - counts.dropped
        lines = [
            f"rows {counts.rows:,}: {used:,} used, {counts.dropped:,} dropped, {counts.truncated:,} truncated "
            f"(longest {counts.longest:,} tokens)"
        ]
        if not self.sequences:
            return f"streamed so far, read-ahead included: {lines[0]}; sequences of {self.length:,}"
        lines.append(
            f"tokens {self.tokens:,} with loss of {self.total_tokens:,}; "
            f"{self.sequences:,} sequences of {self.length:,}, {self.padding:.1%} padding"
        )
        if len(self.sources) > 1:
            lines += [f"  {name}: {examples:,} rows an epoch" for name, examples in self.sources.items()]
        lines += [self.order] if self.order else []
        return "\n".join(lines)


class Batches:
    """An iterator over the batches of a run, whose position can be saved and restored.

    Args:
        source: the batches by step number (a sequence), or a grain `IterDataset` of them (a stream, without end).
        num_steps: how many there are.
        length: tokens of a sequence, the same in every batch.
        stats: what the rows became; a stream counts while it is read.
        fingerprint: tells these data from others, so that a state is not restored onto the wrong ones.
        held: of a stream, the rows of each batch that are handed out; default: all. (`Steps` knows its own.)
    """

    def __init__(
        self,
        source: Any,
        *,
        num_steps: int,
        length: int,
        stats: Stats,
        fingerprint: str,
        held: Sequence[int] | None = None,
    ):
        self._held = held
        self.num_steps, self.length, self.stats, self.fingerprint = num_steps, length, stats, fingerprint
        self.step = 0
        self._source = source
        self._iterator: Any = None
        self._stream_state: Any = None

    @property
    def steps(self) -> Steps | None:
        """What makes the batches of texts in memory, by their number."""
        return self._source if isinstance(self._source, Steps) else None

    def __len__(self) -> int:
        return self.num_steps

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        if self.step >= self.num_steps:
            self.close()
            raise StopIteration
        if self._iterator is None:
            self._iterator = self._open()
        batch = next(self._iterator)
        self.step += 1
        return batch if self._held is None else {name: value[self._held] for name, value in batch.items()}

    def state(self) -> dict[str, Any]:
        """The position after the batch last handed out, as plain JSON values."""
        state = {"step": self.step, "fingerprint": self.fingerprint}
        if not isinstance(self._source, Sequence):
            state["stream"] = self._stream_state if self._iterator is None else self._iterator.get_state()
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Go on behind the batch after which `state` was taken.

        Raises:
            RunError: the state belongs to other data, another seed or another batch size.
        """
        if state["fingerprint"] != self.fingerprint:
            raise RunError(
                "the data or the batch size changed since the checkpoint, so its position means nothing here",
                got=self.fingerprint,
                wanted=state["fingerprint"],
                fix="resume with the config and data of the run, or start anew with --overwrite",
            )
        self.close()
        self.step, self._stream_state = state["step"], state.get("stream")

    def close(self) -> None:
        """Stop the background thread."""
        if hasattr(self._iterator, "close"):
            self._iterator.close()
        self._iterator = None

    def _open(self) -> Any:
        if not isinstance(self._source, Sequence):
            iterator = iter(self._source)
            if self._stream_state is not None:
                iterator.set_state(self._stream_state)
            return iterator
        try:
            import grain
        except ImportError:
            # Batches from arrays need nothing but numpy; laying one out takes about a millisecond.
            return (self._source[step] for step in range(self.step, self.num_steps))
        read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
        iterator = iter(grain.MapDataset.source(self._source).to_iter_dataset(read))
        iterator.set_state({"next_index": self.step})
        return iterator


class EvalBatches(Sequence[Batch]):
    """The held-out batches, in a fixed order; without held-out data there are none. `stats` as in `Batches`."""

    def __init__(self, steps: Sequence[Batch] | None, length: int, stats: Stats):
        self._steps, self.length, self.stats = steps, length, stats

    def __len__(self) -> int:
        return 0 if self._steps is None else len(self._steps)

    def __getitem__(self, i: int) -> Batch:  # type: ignore[override]
        if not 0 <= i < len(self) or self._steps is None:
            raise IndexError(i)
        return self._steps[i]

    @property
    def examples(self) -> Ragged | None:
        """The tokens that they are laid out of, on every process alike; None where there are none."""
        return getattr(self._steps, "examples", None)


def arrays(
    examples: Sequence[Tokens],
    *,
    rows_per_step: int,
    length: int | None = None,
    num_epochs: float = 1.0,
    max_steps: int | None = None,
    packing: bool = True,
    shuffle: bool = True,
    seed: int = 0,
) -> Batches:
    """Batches from tokens that are already in memory; needs neither datasets nor grain nor transformers.

    Args:
        examples: the tokens; the first token of an example is never learned, whatever its mask says.
        rows_per_step: sequences of one optimizer step.
        length: tokens of a sequence; default: the longest example, rounded up to a multiple of 64.
        num_epochs, max_steps, packing, shuffle, seed: as in the config.

    Raises:
        DataError: no example, an empty one, one longer than `length`, or one without a loss token.
    """
    if not examples:
        raise DataError("the dataset is empty", wanted="at least one example")
    checked = []
    for i, example in enumerate(examples):
        mask = np.array(example.loss_mask, bool)
        mask[:1] = False
        if not mask.any():
            raise DataError("an example has no loss token", where=f"example {i}", got=f"{len(mask)} tokens")
        if length is not None and len(mask) > length:
            raise DataError("an example is too long", where=f"example {i}", got=len(mask), wanted=f"at most {length}")
        checked.append(Tokens(np.asarray(example.input_ids, np.int32), mask, example.origin))
    counts = Counts(rows=len(checked), longest=max(len(e.input_ids) for e in checked))
    return in_memory(
        Ragged.of(checked),
        Mix([len(checked)], None, seed, shuffle),
        rows=rows_per_step,
        length=length or _round_up(counts.longest),
        packing=packing,
        num_epochs=num_epochs,
        max_steps=max_steps,
        counts=counts,
        names=["memory"],
    )


def in_memory(
    examples: Ragged,
    mix: Mix,
    *,
    rows: int,
    length: int,
    packing: bool,
    num_epochs: float,
    max_steps: int | None,
    counts: Counts,
    names: Sequence[str],
    held: Sequence[int] | None = None,
    group: int = 1,
    ordered: Callable[[Steps, float], Curriculum] | None = None,
) -> Batches:
    """Batches of tokens in memory. Arguments as of `Steps`.

    Args:
        names: of the sources of `mix`.
        ordered: (the steps in random order, how often they take the data) -> the curriculum to draw by instead.
    """
    how: dict[str, Any] = {
        "rows": rows, "length": length, "packing": packing, "max_steps": max_steps, "held": held, "group": group
    }  # fmt: skip
    steps = Steps(examples, mix, num_epochs=num_epochs, **how)
    stats = measure(steps, mix, counts, names)
    more = ""
    if ordered is not None:
        curriculum = ordered(steps, num_epochs if max_steps is None else _epochs(ordered, steps, stats.sequences))
        steps = Steps(examples, curriculum, num_epochs=curriculum.num_phases, **how)
        stats.order, more = str(curriculum), f", {curriculum.fingerprint}"
    fingerprint = (
        f"{stats.examples} examples ({steps.examples.checksum:08x}), seed {mix.seed}, {rows} rows of {length}, "
        f"packing {packing}, shuffle {mix.shuffle}, mix {mix.quota}{more}"
    )
    return Batches(steps, num_steps=len(steps), length=length, stats=stats, fingerprint=fingerprint)


def _epochs(ordered: Callable[[Steps, float], Curriculum], steps: Steps, sequences: int) -> float:
    """How often a run of so many steps takes the data, of which an epoch in random order has so many sequences.

    Rows of like difficulty may be of like length, and then fill sequences worse; so it is tried out.
    """
    wanted = len(steps) * steps.rows
    epochs = wanted / sequences
    for _ in range(2):
        curriculum = ordered(steps, epochs)
        phases = Steps(
            steps.examples, curriculum, rows=steps.rows, length=steps.length, packing=steps.packing,
            num_epochs=curriculum.num_phases, group=steps.group,
        )  # fmt: skip
        epochs *= wanted / int(phases.ends[-1])
    return epochs


def measure(steps: Steps, mix: Mix, counts: Counts, names: Sequence[str]) -> Stats:
    """What the rows became, once they are laid out."""
    first = steps.bins(0)
    used = int(steps.examples.lengths[first.members].sum())
    sources: dict[str, int] = {}
    for name, quota in zip(names, mix.quota, strict=True):
        sources[name] = sources.get(name, 0) + quota
    return Stats(
        counts,
        examples=len(steps.examples) // steps.group,
        tokens=int(steps.examples.loss_mask.sum()),
        total_tokens=len(steps.examples.input_ids),
        sources=sources,
        length=steps.length,
        sequences=len(first),
        padding=1 - used / (len(first) * steps.length),
    )


def sequence_length(examples: Ragged, packing: bool, max_length: int) -> int:
    """Tokens of a sequence: `max_length` when packing, else what the longest example needs."""
    return max_length if packing else min(max_length, _round_up(int(examples.lengths.max())))


def _round_up(length: int) -> int:
    return -(-length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
