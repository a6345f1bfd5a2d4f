from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlean.data.epochs import Mix, Steps, assemble
from jaxlean.data.tokenize import Ragged, Tokens


def ragged(lengths: list[int]) -> Ragged:
    """Example i holds the token i + 1, and learns all but its first token."""
    return Ragged.of(Tokens(np.full(n, i + 1, np.int32), np.arange(n) > 0) for i, n in enumerate(lengths))


def seen(batch: dict[str, np.ndarray]) -> list[int]:
    """The examples in a batch, checked to be whole and in their own segments."""
    found = []
    for row in range(len(batch["tokens"])):
        for segment in range(1, batch["segments"][row].max() + 1):
            at = np.flatnonzero(batch["segments"][row] == segment)
            assert (np.diff(at) == 1).all()
            assert batch["positions"][row, at].tolist() == list(range(len(at)))
            assert not batch["loss_mask"][row, at[0]]
            assert batch["loss_mask"][row, at[1:]].all()
            assert len(set(batch["tokens"][row, at])) == 1
            found.append(int(batch["tokens"][row, at[0]]) - 1)
        padding = batch["segments"][row] == 0
        assert (np.diff(padding.astype(int)) >= 0).all(), "padding stands at the end"
        for name in ("tokens", "loss_mask", "positions"):
            assert not batch[name][row, padding].any()
    return found


@given(
    lengths=st.lists(st.integers(1, 16), min_size=1, max_size=30),
    rows=st.integers(1, 5),
    num_epochs=st.integers(1, 3),
    packing=st.booleans(),
    shuffle=st.booleans(),
)
def test_an_epoch_shows_every_example_once(
    lengths: list[int], rows: int, num_epochs: int, packing: bool, shuffle: bool
) -> None:
    mix = Mix([len(lengths)], None, 0, shuffle)
    steps = Steps(ragged(lengths), mix, rows=rows, length=16, packing=packing, num_epochs=num_epochs)
    found = Counter(i for step in range(len(steps)) for i in seen(steps[step]))
    assert found == dict.fromkeys(range(len(lengths)), num_epochs)
    for batch in (steps[0], steps[len(steps) - 1]):
        assert {name: (value.dtype.name, value.shape) for name, value in batch.items()} == {
            "tokens": ("int32", (rows, 16)),
            "loss_mask": ("bool", (rows, 16)),
            "segments": ("int32", (rows, 16)),
            "positions": ("int32", (rows, 16)),
        }


def test_only_the_last_batch_has_empty_rows() -> None:
    steps = Steps(ragged([5] * 7), Mix([7], None, 0, True), rows=4, length=8, packing=False, num_epochs=3)
    assert len(steps) == 6  # 21 rows, not 3 epochs of 2
    used = [int((batch["segments"].max(1) > 0).sum()) for batch in steps]
    assert used == [4, 4, 4, 4, 4, 1]


def test_half_an_epoch_takes_half_of_the_examples() -> None:
    steps = Steps(ragged([5] * 10), Mix([10], None, 0, True), rows=1, length=8, packing=False, num_epochs=1.5)
    found = Counter(i for batch in steps for i in seen(batch))
    assert len(steps) == 15
    assert sorted(found.values()) == [1] * 5 + [2] * 5


@pytest.mark.parametrize("max_steps", [1, 3, 40])
def test_max_steps_is_exact_and_repeats_the_data(max_steps: int) -> None:
    steps = Steps(ragged([5] * 10), Mix([10], None, 0, True), rows=4, length=8, packing=False, max_steps=max_steps)
    assert len(steps) == max_steps
    found = Counter(i for batch in steps for i in seen(batch))
    assert sum(found.values()) == 4 * max_steps
    assert max(found.values()) - min(found.get(i, 0) for i in range(10)) <= 1


def test_epochs_have_orders_of_their_own_that_the_seed_decides() -> None:
    one, again, other = (Mix([50], None, seed, True) for seed in (1, 1, 2))
    assert one.epoch(0).tolist() == again.epoch(0).tolist()
    assert one.epoch(0).tolist() != one.epoch(1).tolist()
    assert one.epoch(0).tolist() != other.epoch(0).tolist()
    assert Mix([50], None, 1, False).epoch(3).tolist() == list(range(50))


@given(
    sizes=st.lists(st.integers(1, 30), min_size=2, max_size=4),
    seed=st.integers(0, 5),
    data=st.data(),
)
def test_weights_share_the_epoch_and_no_source_repeats_before_it_is_through(sizes: list[int], seed: int, data) -> None:
    weights = data.draw(st.lists(st.floats(0.1, 10), min_size=len(sizes), max_size=len(sizes)))
    mix = Mix(sizes, weights, seed, True)
    epochs = [mix.epoch(e) for e in range(4)]
    for epoch in epochs:
        assert len(epoch) == sum(sizes)
    for s, share in enumerate(np.array(weights) / sum(weights)):
        own = [int(((epoch >= mix.starts[s]) & (epoch < mix.starts[s + 1])).sum()) for epoch in epochs]
        assert set(own) == {mix.quota[s]}
        assert abs(mix.quota[s] - share * sum(sizes)) < 1
    found = Counter(np.concatenate(epochs).tolist())
    for s, size in enumerate(sizes):
        counts = [found.get(int(mix.starts[s]) + i, 0) for i in range(size)]
        assert max(counts) - min(counts) <= 1


def test_weights_without_shuffling_interleave() -> None:
    order = Mix([6, 2], [3.0, 1.0], 0, False).epoch(0)
    assert (order >= 6).tolist() == [False, False, True, False, False, False, True, False]


def test_assemble_by_hand() -> None:
    batch = assemble(ragged([2, 3, 1]), [np.array([1, 0]), np.array([], int)], 6)
    assert batch["tokens"].tolist() == [[2, 2, 2, 1, 1, 0], [0] * 6]
    assert batch["segments"].tolist() == [[1, 1, 1, 2, 2, 0], [0] * 6]
    assert batch["positions"].tolist() == [[0, 1, 2, 0, 1, 0], [0] * 6]
    assert batch["loss_mask"].astype(int).tolist() == [[0, 1, 1, 0, 1, 0], [0] * 6]


def test_no_such_step() -> None:
    steps = Steps(ragged([3]), Mix([1], None, 0, True), rows=1, length=8, packing=True)
    with pytest.raises(IndexError):
        steps[1]


@given(held=st.sets(st.integers(0, 4), min_size=1), packing=st.booleans())
def test_the_rows_of_a_process_are_those_of_the_whole_batch(held: set[int], packing: bool) -> None:
    examples, own = ragged([3, 7, 2, 8, 5, 1, 6, 4, 8, 8, 2]), sorted(held)
    mix = Mix([11], None, 3, shuffle=True)
    whole = Steps(examples, mix, rows=5, length=8, packing=packing, num_epochs=2)
    part = Steps(examples, mix, rows=5, length=8, packing=packing, num_epochs=2, held=own)
    assert len(part) == len(whole)
    for step in range(len(whole)):
        for name, value in whole[step].items():
            np.testing.assert_array_equal(part[step][name], value[own])
