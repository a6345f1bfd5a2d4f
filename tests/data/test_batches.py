import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlean.data.batches import Batches, EvalBatches, Stats, arrays, sequence_length
from jaxlean.data.epochs import Batch
from jaxlean.data.tokenize import Counts, Ragged, Tokens
from jaxlean.errors import DataError, RunError

EXAMPLES = [Tokens(np.full(n, n, np.int32), np.ones(n, bool)) for n in (3, 5, 8, 2, 7)]


def assert_equal(got: list[Batch], wanted: list[Batch]) -> None:
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        for name in other:
            np.testing.assert_array_equal(one[name], other[name])


def test_the_state_is_that_of_the_batch_handed_out_not_of_what_was_prefetched() -> None:
    batches = arrays(EXAMPLES, rows_per_step=1, length=8, packing=False)
    for step in range(5):
        assert batches.state()["step"] == batches.step == step
        next(batches)
    batches.close()


def test_a_state_of_other_batches_is_refused() -> None:
    state = arrays(EXAMPLES, rows_per_step=2).state()
    arrays(EXAMPLES, rows_per_step=2, num_epochs=3).restore(state)  # a longer run of the same goes on
    for other in (arrays(EXAMPLES, rows_per_step=3), arrays(EXAMPLES[::-1], rows_per_step=2)):
        with pytest.raises(RunError, match="changed since the checkpoint"):
            other.restore(state)


def test_sequence_length() -> None:
    examples = Ragged.of(EXAMPLES)
    assert sequence_length(examples, True, 1000) == 1000
    assert sequence_length(examples, False, 1000) == 64
    assert sequence_length(examples, False, 10) == 10


def test_stats_read_well() -> None:
    batches = arrays(EXAMPLES, rows_per_step=2, length=8)
    assert str(batches.stats) == (
        "rows 5: 5 used, 0 dropped, 0 truncated (longest 8 tokens)\n"
        "tokens 20 with loss of 25; 4 sequences of 8, 21.9% padding"
    )
    assert str(Stats(Counts(rows=9, dropped=2, longest=7), length=8)).startswith("streamed so far")


def test_no_eval_batches() -> None:
    none = EvalBatches(None, 64, Stats(Counts()))
    assert list(none) == []
    with pytest.raises(IndexError):
        none[0]


@given(
    lengths=st.lists(st.integers(2, 20), min_size=1, max_size=20),
    rows=st.integers(1, 4),
    steps=st.integers(1, 12),
    packing=st.booleans(),
    data=st.data(),
)
def test_resume_property(lengths: list[int], rows: int, steps: int, packing: bool, data) -> None:
    examples = [Tokens(np.full(n, i, np.int32), np.ones(n, bool)) for i, n in enumerate(lengths)]

    def fresh() -> Batches:
        return arrays(examples, rows_per_step=rows, length=24, max_steps=steps, packing=packing, seed=3)

    batches = fresh()
    before = data.draw(st.integers(0, steps))
    for _ in range(before):
        next(batches)
    state, rest = batches.state(), list(batches)
    again = fresh()
    again.restore(state)
    assert_equal(list(again), rest)
    assert len(rest) == steps - before


def test_arrays_need_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [Tokens(np.array([1, 2, 3], np.int32), np.array([1, 1, 0], bool))] * 5
    wanted = list(arrays(examples, rows_per_step=2, packing=False))
    for name in ("grain", "datasets", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it now raises ImportError
    batches = arrays(examples, rows_per_step=2, packing=False)
    assert_equal(list(batches), wanted)
    assert batches.length == 64
    assert wanted[0]["loss_mask"][0, :4].tolist() == [False, True, False, False]
    again = arrays(examples, rows_per_step=2, packing=False)
    again.restore({**batches.state(), "step": 2})
    assert_equal(list(again), wanted[2:])


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "empty"),
        ([Tokens(np.zeros(3, np.int32), np.array([1, 0, 0], bool))], "no loss token"),
        ([Tokens(np.zeros(0, np.int32), np.zeros(0, bool))], "no loss token"),
        ([Tokens(np.zeros(9, np.int32), np.ones(9, bool))], "too long"),
    ],
)
def test_arrays_that_cannot_be_trained_on(examples: list[Tokens], message: str) -> None:
    with pytest.raises(DataError, match=message):
        arrays(examples, rows_per_step=1, length=8)


def test_of_a_stream_a_process_hands_out_its_rows():
    source = [{"tokens": np.arange(12).reshape(4, 3) + 100 * step} for step in range(2)]
    about = {"num_steps": 2, "length": 3, "stats": Stats(Counts()), "fingerprint": "stream"}
    whole = [batch["tokens"] for batch in Batches(source, **about)]
    part = [batch["tokens"] for batch in Batches(source, **about, held=[1, 3])]
    for found, wanted in zip(part, whole, strict=True):
        np.testing.assert_array_equal(found, wanted[[1, 3]])


def test_what_is_learned_of_the_same_tokens_tells_data_apart():
    def of(mask):
        return arrays([Tokens(np.arange(4), np.array(mask, bool), "")], rows_per_step=1, num_epochs=1)

    assert of([0, 0, 1, 1]).fingerprint == of([0, 0, 1, 1]).fingerprint != of([0, 1, 1, 1]).fingerprint
