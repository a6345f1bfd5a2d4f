"""Packing: several short examples share one sequence, so that few tokens are padding.

Best-fit decreasing: the longest example first, each into the fullest bin that still holds it. No example is split
or lost. The number of bins depends on the lengths alone, not on their order, which is what lets a run state its
exact number of steps before it starts (grain's packers work on a stream and cannot know it; see stream.py for those).
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Bins:
    """Bin b holds the examples `members[offsets[b]:offsets[b + 1]]`."""

    members: np.ndarray  # int [num_examples]
    offsets: np.ndarray  # int64 [num_bins + 1]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, b: int) -> np.ndarray:
        return self.members[self.offsets[b] : self.offsets[b + 1]]

    def reorder(self, order: np.ndarray) -> "Bins":
        """The same bins in another order (a permutation of range(len(self)))."""
        sizes = np.diff(self.offsets)[order]
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        # Position p of the new members lies `p - offsets[b]` into its bin, whose old start is offsets_old[order[b]].
        source = np.arange(len(self.members)) + np.repeat(self.offsets[:-1][order] - offsets[:-1], sizes)
        return Bins(self.members[source], offsets)


def pack(lengths: np.ndarray, capacity: int) -> Bins:
    """Put examples into as few bins as best-fit decreasing needs.

    Equal lengths are placed together: an example goes into the fullest bin that holds it, and so do its equals until
    that bin is full, then the next fullest. The work grows with the number of *different* lengths, so a million
    examples pack in well under a second.

    Args:
        lengths: int [num_examples], tokens of each, all in 1..capacity.
        capacity: tokens of a bin.

    Returns:
        Bins whose members index `lengths`. Within equal lengths the given order is kept, so shuffled examples give
        shuffled company.
    """
    lengths = np.asarray(lengths, np.int64)
    if len(lengths) == 0:
        return Bins(np.zeros(0, np.int64), np.zeros(1, np.int64))
    assert lengths.min() >= 1, "an example without tokens"
    assert lengths.max() <= capacity, "an example does not fit a bin"
    by_length = np.argsort(-lengths, kind="stable")
    bin_of = np.empty(len(lengths), np.int64)
    num_bins = 0
    room: list[np.ndarray] = [np.zeros(0, np.int64) for _ in range(capacity + 1)]  # bins by the tokens still free
    filled = np.zeros(capacity + 1, bool)  # which of them are not empty

    def put(items: np.ndarray, bins: np.ndarray, free: int, length: int) -> int:
        """Fill `bins` (each with `free` tokens) with items in turn; returns how many found a place."""
        each = free // length
        taken = min(len(items), len(bins) * each)
        full, rest = divmod(taken, each)
        bin_of[items[:taken]] = np.repeat(bins, each)[:taken]
        for part, used in ((bins[:full], each), (bins[full : full + 1], rest), (bins[full + 1 :], 0)):
            if len(part):
                left = free - used * length
                room[left] = np.concatenate([room[left], part])
                filled[left] = True
        return taken

    ends = np.flatnonzero(np.diff(lengths[by_length])) + 1
    for items in np.split(by_length, ends):
        length = int(lengths[items[0]])
        for free in np.flatnonzero(filled[length:]) + length:
            if len(items) == 0:
                break
            bins, room[free], filled[free] = room[free], np.zeros(0, np.int64), False
            items = items[put(items, bins, int(free), length) :]
        if len(items):
            new = np.arange(num_bins, num_bins - (-len(items) // (capacity // length)))
            num_bins += len(new)
            put(items, new, capacity, length)
    members = np.argsort(bin_of, kind="stable")
    return Bins(members, np.concatenate([[0], np.cumsum(np.bincount(bin_of, minlength=num_bins))]).astype(np.int64))


def pack_in_order(lengths: np.ndarray, capacity: int, window: int = 1024) -> Bins:
    """Pack while (nearly) keeping the order: best-fit within windows of consecutive examples, bins by first member."""
    parts = []
    for start in range(0, len(lengths), window):
        bins = pack(lengths[start : start + window], capacity)
        firsts = np.minimum.reduceat(bins.members, bins.offsets[:-1])
        bins = bins.reorder(np.argsort(firsts, kind="stable"))
        parts.append(Bins(bins.members + start, bins.offsets))
    if not parts:
        return pack(lengths, capacity)
    sizes = np.concatenate([np.diff(part.offsets) for part in parts])
    members = np.concatenate([part.members for part in parts])
    return Bins(members, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))


def one_each(num_examples: int) -> Bins:
    """No packing: every example has a sequence to itself."""
    return Bins(np.arange(num_examples), np.arange(num_examples + 1, dtype=np.int64))
