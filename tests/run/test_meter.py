"""What a run has done so far: lines when their steps are done, sums over processes, the step that broke."""

import json
import math

import jax
import jax.numpy as jnp
import pytest

from jaxlean.cost.budget import Used
from jaxlean.cost.phases import CHECKPOINT, COMPILE, DATA_WAIT, EVALUATION, LOAD, LOST, STEP, WRITE
from jaxlean.cost.price import Price
from jaxlean.errors import RunError
from jaxlean.run import meter as module
from jaxlean.run.meter import Meter
from jaxlean.train.step import StepMetrics
from jaxlean.xla.compile import use_cache


class Clock:
    now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def measured(loss, tokens, *, total=None, broken_at=0):
    return StepMetrics(
        jnp.float32(loss), jnp.float32(0.5), jnp.int32(tokens), jnp.int32(total or 2 * tokens), jnp.int32(broken_at)
    )


def make(clock, usd_per_hour=3600.0):
    return Meter(Price(usd_per_hour, "test"), clock_start=clock.now)


def test_a_line_comes_when_later_steps_are_under_way_and_says_its_interval(clock):
    meter = make(clock)
    clock.now += 7  # loading
    meter.start_training()
    lines = {}
    for step, (loss, tokens) in enumerate([(4.0, 10), (2.0, 30), (9.0, 1), (9.0, 1)], 1):
        clock.now += 2
        meter.add(step, measured(loss, tokens))
        if step == 2:
            meter.mark(2)
        lines[step] = list(meter.ready())
    assert [len(found) for found in lines.values()] == [0, 0, 0, 1]
    (line,) = lines[4]
    assert line["step"] == 2
    assert line["loss"] == pytest.approx((4.0 * 10 + 2.0 * 30) / 40), "weighted by tokens"
    assert (line["tokens"], line["total_tokens"]) == (40, 80)
    assert line["grad_norm"] == 0.5
    assert line["seconds"] == 15.0
    assert line["usd"] == 15.0
    assert line["tokens_per_second"] == pytest.approx(80 / 8)
    meter.mark(4)
    (line,) = meter.ready(wait=True)
    assert (line["step"], line["loss"], line["tokens"]) == (4, 9.0, 42)


def test_evaluating_and_compiling_are_paid_for_but_are_not_training(clock):
    meter = make(clock)
    meter.start_training()
    clock.now += 3
    with meter.compiling():
        clock.now += 20
    clock.now += 4
    with meter.within(EVALUATION):
        clock.now += 50
    meter.add(1, measured(1.0, 35))
    meter.stop_training()
    clock.now += 5
    totals = meter.totals()
    assert totals["seconds"] == 82.0
    assert totals["train_seconds"] == 7.0
    assert totals["compile_seconds"] == 20.0
    assert totals["tokens_per_second"] == pytest.approx(70 / 7)
    assert totals["usd"] == 82.0


def test_it_tells_whether_the_step_was_read_from_the_cache(clock, tmp_path):
    def compiled(number):
        meter = make(clock)
        with meter.compiling():
            jax.jit(lambda x: x * number).lower(1.0).compile()
        return meter.totals()["compiled_from_cache"]

    assert make(clock).totals()["compiled_from_cache"] is None
    try:
        use_cache(str(tmp_path))
        assert [compiled(3.0), compiled(3.0), compiled(4.0)] == [False, True, False]
        use_cache(False)
        assert compiled(3.0) is None
    finally:
        use_cache(False)


def test_totals_count_steps_that_no_line_has_told_of(clock):
    meter = make(clock, None)
    meter.add(1, measured(1.0, 10))
    meter.add(2, measured(1.0, 20))
    totals = meter.totals()
    assert (totals["tokens"], totals["total_tokens"]) == (30, 60)
    assert totals["usd"] is None
    assert totals["tokens_per_second"] is None, "the clock of training never ran"


def test_a_restored_meter_goes_on(clock):
    first = make(clock)
    first.eval_before = {"loss": 3.0}
    first.start_training()
    with first.compiling():
        clock.now += 6
    clock.now += 4
    first.add(1, measured(5.0, 10))
    first.mark(1)
    assert len(list(first.ready(wait=True))) == 1
    first.add(2, measured(4.0, 10))
    state = json.loads(json.dumps(first.state()))

    clock.now += 1000  # lost between the checkpoint and the next process
    second = make(clock)
    second.restore(state)
    assert second.eval_before == {"loss": 3.0}
    assert second.train_loss == 5.0
    clock.now += 1
    second.start_training()
    clock.now += 4
    second.add(3, measured(3.0, 20))
    second.mark(3)
    (line,) = second.ready(wait=True)
    assert (line["tokens"], line["total_tokens"]) == (40, 80)
    assert line["tokens_per_second"] == pytest.approx(40 / 4), "of this process"
    totals = second.totals()
    assert totals["seconds"] == 15.0
    assert totals["train_seconds"] == 8.0
    assert totals["tokens_per_second"] == pytest.approx(80 / 8)
    with second.compiling():
        clock.now += 2
    assert second.totals()["compile_seconds"] == 8.0, "of both processes"


@pytest.mark.parametrize("drained", ["never", "by a save", "by a line"])
def test_a_step_is_timed_however_often_others_wait_for_it(clock, drained):
    meter = make(clock)
    meter.start_training()
    for step in range(1, 10):
        clock.now += 30 if step == 4 else 3
        meter.add(step, measured(1.0, 10))
        if drained == "by a save":
            meter.check(step)
        elif drained == "by a line":
            meter.mark(step)
            assert len(list(meter.ready(wait=True))) == 1
        with meter.within(EVALUATION):
            clock.now += 100
    assert meter.totals()["measured_step_seconds"] == 3.0


def broken(clock):
    meter = make(clock)
    for step in range(1, 4):
        meter.add(step, measured(1.0, 10))
    return meter


def test_a_broken_step_is_told_by_the_step_two_after_it(clock):
    meter = broken(clock)
    meter.add(4, measured(math.nan, 10, broken_at=4))
    meter.add(5, measured(math.nan, 10, broken_at=4))
    with pytest.raises(RunError) as raised:
        meter.add(6, measured(math.nan, 10, broken_at=4))
    for words in ("not a number at step 4", "train.learning_rate", "--resume", "train.max_grad_norm"):
        assert words in str(raised.value)
    assert meter.broken_at == 4
    assert meter.totals()["tokens"] == 30, "broken steps taught nothing"


def test_a_broken_step_is_told_by_a_line_and_before_a_save(clock):
    meter = broken(clock)
    meter.add(4, measured(math.inf, 10, broken_at=4))
    meter.check(3)
    with pytest.raises(RunError, match="at step 4"):
        meter.check(4)
    meter = broken(clock)
    meter.add(4, measured(math.inf, 10, broken_at=4))
    meter.mark(4)
    with pytest.raises(RunError, match="at step 4"):
        list(meter.ready(wait=True))


def test_adding_does_not_read_the_numbers_of_the_last_steps(clock):
    class Unread:
        """Not there yet: whoever reads it waits."""

        def copy_to_host_async(self):
            pass

        def __int__(self):
            raise AssertionError("waited for a step under way")

    meter = make(clock)
    for step in range(1, 10):
        ready = measured(1.0, 1)
        meter.add(step, ready._replace(broken_at=Unread()))
        if step >= 2:
            meter._waiting[-2] = (step - 1, ready)
    assert meter.broken_at == 0


def test_what_the_bar_shows(clock):
    meter = make(clock)
    meter.add(1, measured(1.5, 10))
    meter.mark(1)
    (line,) = meter.ready(wait=True)
    shown = Meter.shown(line)
    assert set(shown) == {"step", "loss", "tokens_per_second", "memory_bytes", "usd"}
    assert (shown["step"], shown["loss"], shown["memory_bytes"]) == (1, 1.5, line["peak_memory_bytes"])


def test_a_pause_does_not_begin_the_memory_anew(monkeypatch):
    meter, begun = Meter(Price(None, ""), clock_start=0.0), []
    monkeypatch.setattr(meter._memory, "begin", lambda *told: begun.append(told))
    meter.start_training(5, 4)
    with meter.within(EVALUATION):
        pass
    assert begun == [(5, 4)]


class Battery:
    """An energy meter that reads 1 kWh each hour."""

    source = "measured: a battery"

    def __init__(self, clock):
        self.clock, self.start, self.closed = clock, clock.now, False

    def kwh(self, *, fresh=False):
        return (self.clock.now - self.start) / 3600

    def close(self):
        self.closed = True


def test_each_second_belongs_to_one_phase_and_all_are_paid(clock):
    meter = Meter(Price(3600.0, "test"), clock_start=clock.now, energy=Battery(clock))
    clock.now += 7
    meter.compiled_before(2.0)
    meter.start_training()
    clock.now += 3
    with meter.within(CHECKPOINT):
        clock.now += 1
    with meter.within(EVALUATION):
        clock.now += 50
    meter.stop_training()
    meter.stop_training()
    clock.now += 5
    totals = meter.totals()
    assert totals["phases"] == {LOAD: 5, COMPILE: 2, STEP: 3, CHECKPOINT: 1, EVALUATION: 50, WRITE: 5}
    assert totals["seconds"] == totals["usd"] == 66
    assert totals["train_seconds"] == 4
    assert totals["kwh"] == pytest.approx(66 / 3600)
    assert totals["energy_source"] == "measured: a battery"
    assert meter.used() == Used(66.0, pytest.approx(66 / 3600), 66 / 3600)
    meter.close()
    assert meter._energy.closed


def test_waiting_for_data_is_taken_from_the_steps(clock):
    meter = make(clock)
    meter.start_training()
    for step in range(1, 4):
        wanted = clock.now
        clock.now += 4
        made = measured(1.0, 1)
        meter.add(step, made, wanted=wanted, ready=clock.now)
        meter._utilization.close()  # the thread has seen the step end
        clock.now += 1
    totals = meter.totals()
    # the stand-in for time stands still while a step computes: all of the 3 x 4 seconds are waiting
    assert totals["phases"] == {LOAD: 0, STEP: 3, DATA_WAIT: 12}
    assert totals["data_wait_share"] == meter.data_wait_share == pytest.approx(12 / 15)
    assert totals["train_seconds"] == 15


def test_what_a_killed_process_did_after_its_checkpoint_is_paid_for_and_lost(clock):
    first = Meter(Price(3600.0, "test"), clock_start=clock.now, energy=Battery(clock))
    clock.now += 1
    first.start_training()
    clock.now += 9
    state = json.loads(json.dumps(first.state()))
    clock.now += 20
    first.add(1, measured(1.0, 1))
    first.mark(1)
    (told,) = first.ready(wait=True)  # it is killed after this line
    second = Meter(Price(3600.0, "test"), clock_start=clock.now, energy=Battery(clock))
    second.restore(state, seen=told)
    totals = second.totals()
    assert totals["phases"] == {LOAD: 1, STEP: 9, LOST: 20}
    assert totals["usd"] == 30
    assert totals["kwh"] == pytest.approx(30 / 3600)
    third = make(clock)
    third.restore(json.loads(json.dumps(second.state())), seen=told)
    assert third.seconds == 30, "what was lost once is not lost again"
    assert third.kwh() is None, "where energy is not counted any more, none is said"


def test_a_checkpoint_of_an_earlier_version_has_no_phases(clock):
    state = {"tokens": 1, "total_tokens": 2, "seconds": 20.0, "train_seconds": 9.0, "compile_seconds": 4.0,
             "train_loss": 1.0, "eval_before": None}  # fmt: skip
    meter = make(clock)
    meter.restore(state)
    assert meter.phases == {LOAD: 7, COMPILE: 4, STEP: 9}
    assert (meter.seconds, meter.train_seconds, meter.compile_seconds) == (20, 9, 4)
