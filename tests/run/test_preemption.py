"""Signals: at once, or at the end of a block that is not to be torn; never lost; handlers put back."""

import os
import pty
import signal
import threading
import time

import pytest

from jaxlean.errors import EXIT_BUDGET, BudgetReached, Preempted
from jaxlean.run.peers import Peers
from jaxlean.run.preemption import SIGNALS, Preemption


@pytest.fixture(autouse=True)
def handlers():
    """What was there before; a test that leaves ours behind fails."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    after = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == before


def test_a_limit_that_is_reached_at_a_known_time():
    reached = []
    with pytest.raises(BudgetReached, match="max_hours=1") as raised, Preemption() as preemption:
        preemption.leave_in(1e6, "another, which a later call replaces")
        with preemption.deferred():
            preemption.leave_in(0.01, "cost.max_hours=1 is reached")
            end = time.monotonic() + 30
            while preemption._pending is None:
                assert time.monotonic() < end
            reached.append("the rest of the block")
        reached.append("what follows it")
    assert reached == ["the rest of the block"]
    assert (raised.value.code, raised.value.status) == (EXIT_BUDGET, "budget")
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_the_timer_ends_with_the_run():
    with Preemption() as preemption:
        preemption.leave_in(1e6, "a limit")
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) in (signal.SIG_DFL, None)


def test_a_limit_that_is_reached_now_and_in_a_thread_without_timers():
    def thread():
        with pytest.raises(BudgetReached, match="now") as raised, Preemption() as preemption:
            preemption.leave_in(0.0, "a timer is for the main thread")
            preemption.leave("now")
        found.append(raised.value)

    found = []
    worker = threading.Thread(target=thread)
    worker.start()
    worker.join()
    assert len(found) == 1


def test_of_several_processes_all_leave_for_the_limit_of_one():
    peers, steps = Two(), []
    with pytest.raises(BudgetReached, match="spent") as raised, Preemption(peers) as preemption, preemption.stepping():
        for done in range(9):
            preemption.check(done)
            if done == 2:
                preemption.leave("spent")
            steps.append(done)
    assert steps == [0, 1, 2, 3, 4]
    assert raised.value.together


@pytest.mark.parametrize("number", SIGNALS)
def test_at_once_outside_a_deferred_block(number):
    reached = []
    with pytest.raises(Preempted, match=signal.Signals(number).name), Preemption():
        signal.raise_signal(number)
        reached.append("after the signal")
    assert reached == []


@pytest.mark.parametrize("number", SIGNALS)
def test_at_the_end_of_a_deferred_block(number):
    reached = []
    with pytest.raises(Preempted, match=signal.Signals(number).name), Preemption() as preemption:
        with preemption.deferred():
            signal.raise_signal(number)
            signal.raise_signal(number)
            reached.append("the rest of the block")
        reached.append("what follows it")
    assert reached == ["the rest of the block"]


def test_without_a_signal_nothing_happens():
    with Preemption() as preemption:
        for _ in range(3):
            with preemption.deferred():
                pass


def test_the_saving_that_follows_is_not_torn_by_a_second_signal():
    saved = []
    with pytest.raises(Preempted), Preemption() as preemption:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Preempted:
            signal.raise_signal(signal.SIGINT)  # before the block that saves has begun
            with preemption.deferred():
                signal.raise_signal(signal.SIGTERM)
                saved.append("everything")
            raise
    assert saved == ["everything"]


@pytest.mark.parametrize("saved", [True, False])
def test_who_leaves_tells_whether_there_is_something_to_resume(saved):
    with pytest.raises(Preempted) as preempted, Preemption() as preemption:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            with preemption.deferred():  # its end raises again
                preemption.saved = saved
    assert preempted.value.saved == saved


def test_a_block_that_fails_shows_its_own_error():
    with pytest.raises(KeyError, match="of the block"), Preemption() as preemption, preemption.deferred():
        signal.raise_signal(signal.SIGTERM)
        raise KeyError("of the block")


def test_a_signal_that_was_swallowed_comes_at_the_end_of_the_next_block():
    reached = []
    with pytest.raises(Preempted, match="SIGTERM"), Preemption() as preemption:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception:
            pass  # as a `__del__` would
        reached.append("went on")
        with preemption.deferred():
            reached.append("one more step")
        reached.append("too far")
    assert reached == ["went on", "one more step"]


def test_a_signal_that_was_swallowed_comes_where_it_is_asked_for():
    reached = []
    with pytest.raises(Preempted, match="SIGINT"), Preemption() as preemption:
        preemption.settle()
        try:
            signal.raise_signal(signal.SIGINT)
        except Exception:
            pass  # as a callback of the garbage collector would
        reached.append("went on")
        preemption.settle()
        reached.append("too far")
    assert reached == ["went on"]


def test_a_signal_that_a_library_made_another_error_of_is_a_signal_again():
    def library():
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception as error:
            raise ValueError("no tokenizer that can be read") from error

    with pytest.raises(Preempted, match="SIGTERM") as raised, Preemption():
        library()
    assert isinstance(raised.value.__cause__, ValueError)


def test_an_error_without_a_signal_stays_what_it_is():
    with pytest.raises(ValueError, match="a bug"), Preemption():
        raise ValueError("a bug")


def test_in_another_thread_the_signals_are_left_to_whoever_has_them():
    found = []

    def work():
        with Preemption() as preemption, preemption.deferred():
            found.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


class Two(Peers):
    """As if there were another process: it agrees to stop after step 5."""

    def __init__(self):
        super().__init__()
        self.num, self.asks = 2, 0

    def ask_to_stop(self, why=""):
        self._asked, self.asks, self.why = True, self.asks + 1, why

    def stop_before(self, done):
        return self._asked and done >= 5


@pytest.mark.parametrize("number", SIGNALS)
def test_of_several_processes_none_leaves_alone(number):
    peers, steps = Two(), []
    with pytest.raises(Preempted) as raised, Preemption(peers) as preemption, preemption.stepping():
        for done in range(9):
            preemption.check(done)
            with preemption.deferred():
                if done == 2:
                    signal.raise_signal(number)
                    signal.raise_signal(number)
                steps.append(done)
    assert steps == [0, 1, 2, 3, 4]
    assert peers.asks == 2
    assert raised.value.together


def test_of_several_processes_outside_the_steps_at_once():
    with pytest.raises(Preempted) as raised, Preemption(Two()):
        signal.raise_signal(signal.SIGTERM)
    assert not raised.value.together
    reached = []
    with pytest.raises(Preempted) as raised, Preemption(Two()) as preemption:
        with preemption.stepping():
            signal.raise_signal(signal.SIGTERM)
            reached.append("the last step")
        reached.append("what follows it")
    assert reached == ["the last step"]
    assert not raised.value.together


def test_once_the_result_is_written_nobody_is_told_to_leave():
    reached = []
    with Preemption() as preemption:
        preemption.over()
        signal.raise_signal(signal.SIGTERM)
        reached.append("the last words")
    assert reached == ["the last words"]


def test_under_nohup_a_terminal_that_closes_is_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Preemption():
            signal.raise_signal(signal.SIGHUP)
            with pytest.raises(Preempted, match="SIGTERM"):
                signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_when_the_terminal_closes_what_is_printed_goes_nowhere():
    ours, theirs = pty.openpty()
    kept = os.dup(1)
    try:
        os.dup2(theirs, 1)
        with pytest.raises(Preempted, match="SIGHUP"), Preemption():
            os.close(theirs)
            try:
                os.kill(os.getpid(), signal.SIGHUP)
            finally:
                os.write(1, b"a line that nobody reads")
                assert not os.isatty(1)
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(ours)
