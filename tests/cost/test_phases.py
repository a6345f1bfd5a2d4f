"""Each second belongs to one phase."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlean.cost.phases import CHECKPOINT, COMPILE, DATA_WAIT, EVALUATION, LOAD, LOST, PHASES, STEP, Phases


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def make():
    clock = Clock()
    return clock, Phases(LOAD, started=clock.now, clock=clock)


def test_what_is_nested_counts_for_the_inner_one_alone():
    clock, phases = make()
    clock.now += 1
    phases.enter(STEP)
    clock.now += 2
    with phases.within(EVALUATION):
        clock.now += 4
        with phases.within(COMPILE):
            clock.now += 8
        clock.now += 16
    clock.now += 32
    assert phases.seconds() == {LOAD: 1, COMPILE: 8, STEP: 34, EVALUATION: 20}
    assert phases.phase == STEP
    assert phases.total == 63


def test_a_block_that_fails_ends_its_phase():
    clock, phases = make()
    with pytest.raises(KeyError), phases.within(CHECKPOINT):
        clock.now += 1
        raise KeyError
    clock.now += 2
    assert phases.seconds() == {LOAD: 2, CHECKPOINT: 1}


def test_what_is_moved_is_never_more_than_there_was():
    clock, phases = make()
    clock.now += 10
    phases.move(4, LOAD, COMPILE)
    assert phases.seconds() == {LOAD: 6, COMPILE: 4}
    phases.move(100, LOAD, COMPILE)
    assert phases.seconds() == {LOAD: 0, COMPILE: 10}
    phases.move(-1, COMPILE, LOAD)
    phases.move(3, DATA_WAIT, LOAD)
    assert phases.total == 10


def test_earlier_processes_come_in_front_and_unknown_phases_are_kept():
    clock, phases = make()
    clock.now += 1
    phases.restore({STEP: 5.0, LOST: 2.0, "of a later version": 1.0})
    assert phases.seconds() == {LOAD: 1, STEP: 5, LOST: 2, "of a later version": 1}
    assert next(iter(phases.seconds())) == PHASES[0]


@given(
    st.lists(
        st.tuples(st.sampled_from(["enter", "move", "within"]), st.sampled_from(PHASES), st.floats(0, 100)), max_size=20
    )
)
def test_whatever_happens_all_phases_together_are_the_time_that_passed(steps):
    clock, phases = make()
    passed = 0.0
    for what, phase, seconds in steps:
        clock.now += seconds
        passed += seconds
        if what == "enter":
            phases.enter(phase)
        elif what == "move":
            phases.move(seconds, phases.phase, phase)
        else:
            with phases.within(phase):
                clock.now += 1
                passed += 1
    assert phases.total == pytest.approx(passed)
    assert all(seconds >= -1e-9 for seconds in phases.seconds().values())
