"""Computing and waiting, from when steps were handed over and when they were done."""

import threading

import jax
import jax.numpy as jnp
import pytest

from jaxlean.cost.utilization import Utilization


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Step:
    """A result that is there at a time, or fails."""

    def __init__(self, clock, at, *, fails=False):
        self.clock, self.at, self.fails = clock, at, fails

    def block_until_ready(self):
        self.clock.now = self.at
        if self.fails:
            raise RuntimeError("the step failed")


def run(*steps):
    """(wanted, ready, handed, done[, pause before]) of each -> the figures."""
    clock = Clock()
    found = Utilization(clock)
    for wanted, ready, handed, done, *pause in steps:
        if pause:
            found.pause()
        found.step(wanted, ready, handed, Step(clock, done))
    found.close()
    return found.busy_seconds, found.take_waited(), found.idle_seconds


def test_the_first_step_waits_for_its_batch():
    assert run((10, 12, 12, 15)) == (3, 2, 2)


def test_a_batch_that_is_made_while_the_device_computes_is_not_waited_for():
    busy, waited, idle = run((0, 0, 0, 10), (1, 6, 6, 20), (7, 9, 9, 30))
    assert (busy, waited, idle) == (30, 0, 0)


def test_only_the_part_after_the_step_before_is_waited_for():
    # step 1 is done at 10; the batch was asked for at 4 and came at 13; it was handed over at 14
    busy, waited, idle = run((0, 0, 0, 10), (4, 13, 14, 20))
    assert busy == 16
    assert waited == 3, "from 10 to 13"
    assert idle == 4, "and one second of other things"


def test_what_lies_between_is_not_waiting():
    # an evaluation from 10 to 50
    busy, waited, idle = run((0, 0, 0, 10), (50, 51, 51, 60, "pause"))
    assert (busy, waited, idle) == (19, 1, 1)


def test_waiting_is_told_once_and_a_step_that_fails_is_not_our_affair():
    clock = Clock()
    found = Utilization(clock)
    found.step(0, 2, 2, Step(clock, 3, fails=True))
    found.close()
    assert found.take_waited() == 2
    assert found.take_waited() == 0
    found.close()


def test_with_jax_a_step_is_busy_as_long_as_it_computes():
    import time

    found = Utilization()
    compute = jax.jit(lambda x: jax.lax.fori_loop(0, 200, lambda _, y: jnp.tanh(y @ y), x))
    x = compute(jnp.eye(200)).block_until_ready()
    start = time.perf_counter()
    for _ in range(3):
        wanted = time.perf_counter()
        x = compute(x)
        found.step(wanted, wanted, time.perf_counter(), x)
    x.block_until_ready()
    passed = time.perf_counter() - start
    found.close()
    assert 0 < found.busy_seconds <= passed + 0.5
    assert found.busy_seconds + found.idle_seconds == pytest.approx(passed, abs=0.5)
    assert not [thread for thread in threading.enumerate() if thread.name == "jaxlean-utilization"]
