"""Which examples make which step: a pure function of the seed.

Step k can be computed without the steps before it, so the position of a run is one number, resume is exact, and the
number of steps is known before training starts.

What an epoch is. Without weights: every example once. With weights: as many examples as there are in all sources
together, of which source s gives its share; a source goes through all its examples in a new order before it repeats
one, and takes up in the next epoch where it stopped in this one.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from jaxlean.data.pack import Bins, one_each, pack, pack_in_order
from jaxlean.data.tokenize import Ragged

Batch = dict[str, np.ndarray]
# What stands in `Ragged.more` where there is no token.
_PADDING = {"labels": -100, "token_types": 0}


class Order(Protocol):
    """Draws the examples of one epoch after another: `Mix`, or a `Curriculum` whose epochs are phases.

    Attributes:
        seed: of everything random.
        shuffle: whether sequences may be put in any order.
        alike: whether every whole epoch holds the same examples.
    """

    seed: int
    shuffle: bool
    alike: bool

    def epoch(self, e: int, fraction: float = 1.0) -> np.ndarray:
        """int [examples]: those of (a part of) epoch e, in order."""
        ...


class Mix:
    """Draws the examples of an epoch from several sources.

    Args:
        sizes: number of examples of each source; source s owns the next `sizes[s]` indices.
        weights: shares of the sources (any scale), or None: every example once an epoch.
        seed: of the order. The same seed gives the same epochs.
        shuffle: a new order each epoch; without it the sources in their own order, evenly interleaved under weights.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float] | None, seed: int, shuffle: bool):
        self.sizes, self.weights, self.seed, self.shuffle = list(sizes), weights, seed, shuffle
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)
        self.alike = weights is None
        self.quota = list(self.sizes) if weights is None else _apportion(int(self.starts[-1]), weights)

    def epoch(self, e: int, fraction: float = 1.0) -> np.ndarray:
        """int64 [round(fraction * num_examples)]: the examples of epoch e, in order."""
        draws = [self._draw(s, e) for s in range(len(self.sizes))]
        order = np.concatenate(draws)
        if self.shuffle:
            order = np.random.default_rng([self.seed, e]).permutation(order)
        elif self.weights is not None:
            places = np.concatenate([(np.arange(len(draw)) + 0.5) / max(len(draw), 1) for draw in draws])
            order = order[np.argsort(places, kind="stable")]
        return order[: max(1, round(fraction * len(order)))]

    def _draw(self, s: int, e: int) -> np.ndarray:
        """The part of epoch e that source s gives: the next `quota[s]` of its endless run of permutations."""
        size, quota = self.sizes[s], self.quota[s]
        if size == 0:
            return np.zeros(0, np.int64)
        first, last = e * quota, (e + 1) * quota
        passes = [self._pass(s, p) for p in range(first // size, -(-last // size))]
        drawn = np.concatenate([*passes, np.zeros(0, np.int64)])
        return drawn[first % size :][:quota]

    def _pass(self, s: int, p: int) -> np.ndarray:
        own = np.arange(self.starts[s], self.starts[s + 1])
        # The third number keeps these streams apart from the one that orders epoch e.
        return np.random.default_rng([self.seed, p, s + 1]).permutation(own) if self.shuffle else own


def _apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Split `total` by weight into whole numbers that add up (largest remainder)."""
    exact = np.asarray(weights, np.float64) / sum(weights) * total
    counts = np.floor(exact).astype(np.int64)
    for s in np.argsort(counts - exact, kind="stable")[: total - int(counts.sum())]:
        counts[s] += 1
    return [int(count) for count in counts]


class Steps(Sequence[Batch]):
    """The batches of a run, by step number.

    A batch that reaches the end of an epoch goes on into the next; only the very last may end in empty rows
    (segment 0), so no example is dropped.

    Args:
        examples: the tokens.
        mix: draws the epochs, or the phases of a curriculum.
        rows: sequences of a batch.
        length: tokens of a sequence, at least the longest example.
        packing: several examples a sequence.
        num_epochs: passes over the data, may be fractional (the last takes that share of its examples).
        max_steps: wins over `num_epochs`: exactly this many steps, in as many epochs as they need.
        held: the rows of each batch that are laid out, ascending; default: all. What they hold does not depend on it.
        group: examples that are drawn together and lie in rows one after the other, unpacked (the two texts of a pair):
            `mix` draws groups, of which number g is the examples `g * group ...`. Must divide `rows`.

    Attributes:
        beside: (the examples of each sequence) -> what else a batch holds of them, [len(held), length, ...] each.
    """

    def __init__(
        self,
        examples: Ragged,
        mix: Order,
        *,
        rows: int,
        length: int,
        packing: bool,
        num_epochs: float = 1.0,
        max_steps: int | None = None,
        held: Sequence[int] | None = None,
        group: int = 1,
    ):
        assert group == 1 or (rows % group == 0 and not packing), "a group lies in whole rows of one batch"
        self.held, self.group = held if held is not None else range(rows), group
        self.beside: Callable[[Sequence[np.ndarray]], Batch] | None = None
        self.examples, self.mix, self.rows, self.length, self.packing = examples, mix, rows, length, packing
        self.num_epochs = math.inf if max_steps is not None else num_epochs
        self.bins = functools.lru_cache(maxsize=2)(self._bins)
        # Where every whole epoch holds the same lengths it has as many bins; then one count serves all.
        ends = [0]
        wanted = math.inf if max_steps is None else max_steps * rows
        while ends[-1] < wanted and len(ends) - 1 < self.num_epochs:
            e = len(ends) - 1
            same = mix.alike and e > 0 and e + 1 <= self.num_epochs
            ends.append(ends[-1] + (ends[1] if same else len(self.bins(e))))
        self.ends = np.asarray(ends, np.int64)  # bins up to the end of each epoch, beginning with 0
        self.num_steps = max_steps if max_steps is not None else -(-ends[-1] // rows)

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> Batch:  # type: ignore[override]
        """The batch of one step, as of `assemble`: each array [len(held), length]."""
        if not 0 <= step < self.num_steps:
            raise IndexError(step)
        rows = [self.row(step * self.rows + int(r)) for r in self.held]
        batch = assemble(self.examples, rows, self.length)
        return batch if self.beside is None else batch | self.beside(rows)

    def row(self, i: int) -> np.ndarray:
        """The examples in sequence i, counted from the start of the run; none after its end."""
        e = int(np.searchsorted(self.ends, i, side="right")) - 1
        return self.bins(e)[i - int(self.ends[e])] if e < len(self.ends) - 1 else np.zeros(0, np.int64)

    def _bins(self, e: int) -> Bins:
        order = self.mix.epoch(e, min(1.0, self.num_epochs - e))
        if self.group > 1:
            order = (order[:, None] * self.group + np.arange(self.group)).reshape(-1)
        lengths = self.examples.lengths[order]
        if not self.packing:
            bins = one_each(len(order))
        elif self.mix.shuffle:
            bins = pack(lengths, self.length)
            bins = bins.reorder(np.random.default_rng([self.mix.seed, e, 0, 1]).permutation(len(bins)))
        else:
            bins = pack_in_order(lengths, self.length)
        return Bins(order[bins.members], bins.offsets)


def assemble(examples: Ragged, rows: Sequence[np.ndarray], length: int) -> Batch:
    """Lay examples out in sequences.

    Args:
        examples: the tokens.
        rows: the examples of each sequence; an empty one becomes padding.
        length: tokens of a sequence.

    Returns:
        tokens int32, loss_mask bool, segments int32 (1.. per example, 0 padding), positions int32 (restarting in each
        segment), each [len(rows), length]. Examples with `more` have that instead of the mask: labels int32 (-100 where
        there is none), and token_types int32 of pairs of texts.
    """
    shape = (len(rows), length)
    batch = {
        "tokens": np.zeros(shape, np.int32),
        "loss_mask": np.zeros(shape, bool),
        "segments": np.zeros(shape, np.int32),
        "positions": np.zeros(shape, np.int32),
    }
    if examples.more:
        del batch["loss_mask"]
        batch |= {name: np.full(shape, _PADDING[name], np.int32) for name in examples.more}
    for r, members in enumerate(rows):
        start = 0
        for segment, i in enumerate(members, 1):
            tokens, loss_mask = examples[int(i)]
            end = start + len(tokens)
            batch["tokens"][r, start:end] = tokens
            if "loss_mask" in batch:
                batch["loss_mask"][r, start:end] = loss_mask
            for name, value in examples.more_of(int(i)).items():
                batch[name][r, start:end] = value
            batch["segments"][r, start:end] = segment
            batch["positions"][r, start:end] = np.arange(len(tokens))
            start = end
    return batch
