import bisect
import time

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxlean.data.pack import Bins, one_each, pack, pack_in_order

CAPACITY = 40
lengths_of = st.lists(st.integers(1, CAPACITY), max_size=80)


def check(bins: Bins, lengths: list[int]) -> None:
    """Every example once, no bin over its capacity, none empty."""
    assert sorted(bins.members.tolist()) == list(range(len(lengths)))
    assert bins.offsets[0] == 0
    assert bins.offsets[-1] == len(lengths)
    for b in range(len(bins)):
        assert 1 <= sum(lengths[i] for i in bins[b]) <= CAPACITY


def best_fit_decreasing(lengths: list[int]) -> int:
    """The number of bins of the plain algorithm, one example at a time."""
    room: list[int] = []
    for length in sorted(lengths, reverse=True):
        at = bisect.bisect_left(room, length)
        left = room.pop(at) - length if at < len(room) else CAPACITY - length
        bisect.insort(room, left)
    return len(room)


@given(lengths_of)
def test_every_example_is_in_one_bin(lengths: list[int]) -> None:
    check(pack(np.array(lengths, int), CAPACITY), lengths)


@given(lengths_of)
def test_as_dense_as_best_fit_decreasing(lengths: list[int]) -> None:
    assert len(pack(np.array(lengths, int), CAPACITY)) == best_fit_decreasing(lengths)


@given(lengths_of, st.randoms())
def test_the_number_of_bins_does_not_depend_on_the_order(lengths: list[int], random) -> None:
    shuffled = random.sample(lengths, len(lengths))
    assert len(pack(np.array(lengths, int), CAPACITY)) == len(pack(np.array(shuffled, int), CAPACITY))


@given(lengths_of, st.integers(1, 20))
def test_in_order_packs_only_within_a_window(lengths: list[int], window: int) -> None:
    bins = pack_in_order(np.array(lengths, int), CAPACITY, window)
    check(bins, lengths)
    firsts = [min(bins[b]) for b in range(len(bins))]
    assert firsts == sorted(firsts)
    assert all(max(bins[b]) // window == min(bins[b]) // window for b in range(len(bins)))


@given(lengths_of, st.randoms())
def test_reorder_moves_whole_bins(lengths: list[int], random) -> None:
    bins = pack(np.array(lengths, int), CAPACITY)
    order = random.sample(range(len(bins)), len(bins))
    moved = bins.reorder(np.array(order, int))
    assert [moved[b].tolist() for b in range(len(bins))] == [bins[b].tolist() for b in order]


def test_one_each() -> None:
    check(one_each(3), [CAPACITY] * 3)
    assert len(one_each(3)) == 3


def test_many_examples_are_packed_densely_and_fast() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(5, 0.7, 300_000).astype(int), 1, 2048)
    start = time.perf_counter()
    bins = pack(lengths, 2048)
    assert time.perf_counter() - start < 5  # 0.2 s when nothing else runs
    assert lengths.sum() / (len(bins) * 2048) > 0.99
