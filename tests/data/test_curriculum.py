"""Pacings against their formulas; what an epoch promises, as a property; order, floor, packing, sources."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlean.config import CurriculumSection
from jaxlean.data.batches import in_memory
from jaxlean.data.curriculum import Curriculum, available, difficulty, length_of, rarity_of
from jaxlean.data.epochs import Mix, Steps
from jaxlean.data.tokenize import Counts, Ragged, Tokens
from jaxlean.errors import ConfigError, DataError

PACINGS = ["linear", "root", "step", "competence"]


def ragged(lengths: list[int]) -> Ragged:
    """Example i holds the token i + 1, and learns all but its first token."""
    return Ragged.of(Tokens(np.full(n, i + 1, np.int32), np.arange(n) > 0) for i, n in enumerate(lengths))


def make(
    scores: Any, costs: Any = None, *, epochs: float = 1.0, most: int = 100, seed: int = 0, **how: Any
) -> Curriculum:
    costs = np.ones(len(scores), np.int64) if costs is None else np.asarray(costs)
    return Curriculum(
        CurriculumSection(**how), np.asarray(scores, float), costs, sizes=[len(scores)], quota=[len(scores)],
        epochs=epochs, most=most, seed=seed,
    )  # fmt: skip


def phases(curriculum: Curriculum) -> list[list[int]]:
    return [curriculum.epoch(p).tolist() for p in range(curriculum.num_phases)]


@pytest.mark.parametrize("start", [0.0, 0.2, 0.7])
@pytest.mark.parametrize("until", [0.3, 1.0])
def test_pacings_are_their_formulas(start: float, until: float) -> None:
    for t in np.linspace(0, until, 7)[:-1]:
        x = t / until
        want = {
            "linear": start + (1 - start) * x,
            "root": start + (1 - start) * math.sqrt(x),
            "competence": min(1.0, math.sqrt(t * (1 - start**2) / until + start**2)),  # with T = until, as in the paper
            "step": start,
        }
        for pacing, share in want.items():
            assert available(pacing, t, start=start, until=until) == pytest.approx(share)
    for pacing in PACINGS:
        assert available(pacing, until, start=start, until=until) == available(pacing, 1, start=start, until=until) == 1
    assert available("linear", 0.0, start=start, until=0.0) == 1.0


settings_of = st.fixed_dictionaries(
    {
        "pacing": st.sampled_from(PACINGS),
        "order": st.sampled_from(["easy_first", "hard_first", "random"]),
        "start": st.floats(0.01, 1),
        "until": st.floats(0, 1),
        "floor": st.floats(0, 1),
        "phases": st.integers(1, 12),
    }
)


@given(
    rows=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 40)), min_size=1, max_size=60),
    how=settings_of,
    epochs=st.floats(1, 4),
    seed=st.integers(0, 3),
)
@settings(max_examples=300)
def test_a_run_that_takes_the_data_once_sees_every_row(rows: Any, how: Any, epochs: float, seed: int) -> None:
    scores, costs = np.array(rows).T
    curriculum = make(scores, costs, epochs=epochs, seed=seed, **how)
    found = Counter(i for phase in phases(curriculum) for i in phase)
    assert set(found) == set(range(len(rows)))
    taken = sum(int(costs[i]) * n for i, n in found.items())
    wanted = round(epochs * costs.sum())
    assert wanted <= taken < wanted + costs.max(), "as much as without a curriculum, but for the end of a row"


@given(
    rows=st.lists(st.integers(1, 40), min_size=1, max_size=60), how=settings_of, epochs=st.sampled_from([0.3, 0.8, 1])
)
@settings(max_examples=200)
def test_up_to_one_epoch_no_row_is_seen_twice(rows: Any, how: Any, epochs: float) -> None:
    found = Counter(i for phase in phases(make(rows, rows, epochs=epochs, **how)) for i in phase)
    assert set(found.values()) == {1}


@given(how=settings_of, num=st.integers(1, 40), seed=st.integers(0, 5))
def test_what_is_drawn_is_available_but_for_the_floor(how: Any, num: int, seed: int) -> None:
    curriculum = make(np.arange(num), epochs=3, seed=seed, **how)
    for p, drawn in enumerate(phases(curriculum)):
        there = set(curriculum.available(p)[0].tolist())
        beyond = [i for i in drawn if i not in there]
        assert len(beyond) <= how["floor"] * len(drawn) + 1


def test_easy_rows_come_first_hard_ones_by_the_floor_and_at_last() -> None:
    easy = phases(make(np.arange(100)[::-1], phases=5, pacing="linear", start=0.2, until=1, floor=0))
    assert set(easy[0]) <= set(range(60, 100)), "larger scores are harder"
    means = [np.mean(phase) for phase in easy]
    assert means == sorted(means, reverse=True)
    hard = phases(
        make(np.arange(100)[::-1], phases=5, pacing="linear", start=0.2, until=1, floor=0, order="hard_first")
    )
    assert set(hard[0]) <= set(range(40))
    floored = phases(make(np.arange(1000), phases=5, pacing="step", start=0.2, until=1, floor=0.25))
    assert 20 < sum(i >= 400 for i in floored[0]) < 50, "of 200 a quarter are drawn from all rows"


@given(rows=st.lists(st.integers(1, 40), min_size=1, max_size=60), how=settings_of, epochs=st.floats(0.3, 4))
@settings(max_examples=200)
def test_the_floor_is_a_share_of_the_run_so_far(rows: Any, how: Any, epochs: float) -> None:
    """However few rows a phase has: no remainder is lost, and none is drawn twice over."""
    for costs in (np.ones(len(rows), np.int64), np.array(rows)):
        curriculum, most = make(rows, costs, epochs=epochs, **how), int(costs.max())
        for p in range(curriculum.num_phases):
            curriculum.epoch(p)
            (part,) = curriculum.parts
            assert -most - 1 <= part.from_all - how["floor"] * part.drawn <= most + 1


@pytest.mark.parametrize("num", [40, 60, 100, 1000])
def test_harder_rows_come_from_the_first_phases_on_in_a_small_run_too(num: int) -> None:
    found = drawn = 0
    for seed in range(20):
        curriculum = make(np.arange(num), seed=seed, pacing="step", start=0.2, until=0.5, floor=0.1)
        for p in range(10):
            there = curriculum.available(p)[0]
            drawn += len(curriculum.epoch(p))
            found += int((~np.isin(curriculum.epoch(p), there)).sum())
    assert drawn == 20 * num // 2
    # a tenth is drawn from all, of which some are easy: of those never drawn, which go first, less than half
    assert 0.05 * drawn < found <= 0.1 * drawn + 20


def test_a_step_opens_everything_at_once() -> None:
    curriculum = make(np.arange(100), epochs=10, phases=10, pacing="step", start=0.3, until=0.5, floor=0)
    assert [len(curriculum.available(p)[0]) for p in range(10)] == [30] * 5 + [100] * 5
    found = phases(curriculum)
    assert all(set(phase) <= set(range(30)) for phase in found[:5])
    assert sorted(found[5])[-1] == 99
    assert set(range(30, 100)) <= set(found[5]), "those never drawn come first"


def test_what_is_available_goes_round() -> None:
    counts = Counter(i for phase in phases(make(np.arange(10), epochs=7, start=1.0)) for i in phase)
    assert set(counts.values()) == {7}
    halves = make(np.arange(10), epochs=8, phases=2, pacing="step", start=0.5, until=0.5, floor=0)
    assert Counter(halves.epoch(0).tolist()) == dict.fromkeys(range(5), 8)


def test_random_scores_have_the_same_machinery_and_know_nothing_of_difficulty() -> None:
    how = {"pacing": "linear", "start": 0.1, "until": 1.0, "floor": 0.1, "phases": 10}
    first = [make(np.arange(400), order="random", seed=seed, **how) for seed in range(40)]
    easy = make(np.arange(400), **how)
    for p in (0, 4, 9):
        assert {len(c.epoch(p)) for c in first} == {len(easy.epoch(p))}
        assert [len(c.available(p)[0]) for c in first] == [len(easy.available(p)[0])] * 40
        # the mean score of what is drawn is that of all rows, whichever phase: 199.5, of 40 x 40 draws 115 / 40 apart
        assert np.mean([c.epoch(p).mean() for c in first]) == pytest.approx(199.5, abs=12)
    assert easy.epoch(0).mean() < 80


def test_the_seed_decides() -> None:
    one, again, other = (phases(make(np.zeros(50), seed=seed)) for seed in (1, 1, 2))
    assert one == again != other
    assert make(np.zeros(50), seed=1).fingerprint != make(np.zeros(50), seed=2).fingerprint
    assert make(np.arange(50)).fingerprint != make(np.arange(50)[::-1]).fingerprint
    late = make(np.zeros(50), seed=1)
    assert late.epoch(late.num_phases - 1).tolist() == one[-1], "whatever was asked for before"


def test_equals_are_mixed() -> None:
    opened = make([0] * 500 + [1] * 500, phases=10, pacing="linear", start=0.25, until=1).available(0)[0]
    assert 80 < (opened < 250).sum() < 170, "of 250, not those that stand first in the file"


@given(
    lengths=st.lists(st.integers(1, 16), min_size=1, max_size=40),
    rows=st.integers(1, 4),
    packing=st.booleans(),
    num_epochs=st.sampled_from([1, 2, 2.5]),
)
def test_steps_hold_every_row_whole_packed_or_not(lengths: Any, rows: int, packing: bool, num_epochs: float) -> None:
    examples, mix = ragged(lengths), Mix([len(lengths)], None, 0, True)
    how: dict[str, Any] = {"rows": rows, "length": 16, "packing": packing, "max_steps": None}
    plain = Steps(examples, mix, num_epochs=num_epochs, **how)
    curriculum = Curriculum.of_run(CurriculumSection(), length_of(examples), plain, num_epochs)
    steps = Steps(examples, curriculum, num_epochs=curriculum.num_phases, **how)
    found = [np.unique(batch["tokens"][batch["segments"] > 0]) - 1 for batch in steps]
    assert set(np.concatenate(found).tolist()) == set(range(len(lengths)))
    drawn = [i for s in range(len(steps) * rows) for i in steps.row(s).tolist()]
    assert Counter(drawn) == Counter(i for phase in phases(curriculum) for i in phase)


def test_sequences_are_packed_within_a_phase() -> None:
    lengths = np.random.default_rng(0).integers(1, 30, 600).tolist()
    examples = ragged(lengths)
    plain = Steps(examples, Mix([600], None, 0, True), rows=2, length=64, packing=True)
    section = CurriculumSection(pacing="linear", start=0.1, until=1.0, floor=0.0, phases=6)
    curriculum = Curriculum.of_run(section, length_of(examples), plain, 1.0)
    steps = Steps(examples, curriculum, rows=2, length=64, packing=True, num_epochs=curriculum.num_phases)
    at = 0
    for p in range(6):
        drawn: set[int] = set()
        while len(drawn) < len(curriculum.epoch(p)):
            drawn |= set(steps.row(at).tolist())
            at += 1
        assert drawn == set(curriculum.epoch(p).tolist()), "no sequence holds rows of two phases"
    # rows of like length fill a sequence worse: three of 20 leave 4 of 64 free, two of 22 leave 20
    assert len(plain) < len(steps) < 1.25 * len(plain)


def test_weights_hold_from_the_first_phase_on() -> None:
    examples = ragged([4] * 100 + [8] * 50)
    plain = Steps(examples, Mix([100, 50], [1.0, 2.0], 0, True), rows=1, length=8, packing=False)
    section = CurriculumSection(pacing="linear", until=0.8, floor=0.0, phases=10)
    curriculum = Curriculum.of_run(section, length_of(examples), plain, 2.0)
    for phase in phases(curriculum):
        assert sum(i >= 100 for i in phase) == 20, "two thirds, though its rows are longer"
        assert len(phase) == 30


@pytest.mark.parametrize("max_steps", [3, 50])
def test_max_steps_is_exact_and_everything_is_available_in_time(max_steps: int) -> None:
    lengths = np.random.default_rng(1).integers(1, 30, 200).tolist()

    def ordered(steps: Steps, epochs: float) -> Curriculum:
        made.append(Curriculum.of_run(CurriculumSection(), length_of(steps.examples), steps, epochs))
        return made[-1]

    made: list[Curriculum] = []
    batches = in_memory(
        ragged(lengths), Mix([200], None, 0, True), rows=4, length=64, packing=True, num_epochs=1, max_steps=max_steps,
        counts=Counts(), names=["a"], ordered=ordered,
    )  # fmt: skip
    assert batches.num_steps == len(list(batches)) == max_steps
    assert "curriculum: length, easy first" in str(batches.stats)
    # with so many phases all steps are made, and with the last of them they end
    last = made[-1]
    assert last.num_phases == min(max_steps, 20)
    whole = Steps(ragged(lengths), last, rows=4, length=64, packing=True, num_epochs=last.num_phases)
    assert whole.ends[-2] < max_steps * 4
    assert whole.ends[-1] == pytest.approx(max_steps * 4, abs=4)


def test_difficulties() -> None:
    examples = Ragged.of(
        Tokens(np.array(ids, np.int32), np.ones(len(ids), bool)) for ids in ([1, 1, 1, 2], [2, 3], [1, 1], [1])
    )
    assert length_of(examples).tolist() == [4, 2, 2, 1]
    assert length_of(examples, 2).tolist() == [6, 3], "of a pair both texts"
    surprise = -np.log(np.array([np.nan, 6, 2, 1]) / 9)
    want = [(3 * surprise[1] + surprise[2]) / 4, (surprise[2] + surprise[3]) / 2, surprise[1], surprise[1]]
    np.testing.assert_allclose(rarity_of(examples), want)
    np.testing.assert_allclose(rarity_of(examples, 2)[1], surprise[1])
    how: dict[str, Any] = {"column": np.arange(4.0), "losses": lambda rows: np.full(len(rows), 7.0)}
    for section, wanted in (
        ({"difficulty": "column", "column": "c"}, [0, 1, 2, 3]),
        ({"difficulty": "loss"}, [7] * 4),
        ({"difficulty": "length"}, [4, 2, 2, 1]),
    ):
        assert difficulty(CurriculumSection(**section), examples, **how).tolist() == wanted
    np.testing.assert_allclose(difficulty(CurriculumSection(difficulty="rarity"), examples, **how), want)


def test_errors() -> None:
    with pytest.raises(DataError, match=r"(?s)difficulty of a row is not a number.*loss.*nan.*place 3"):
        make([1, 2, math.nan], difficulty="loss")
    with pytest.raises(ConfigError, match=r"(?s)no base here.*difficulty"):
        difficulty(CurriculumSection(difficulty="loss"), ragged([3]), column=np.zeros(1), losses=None)
