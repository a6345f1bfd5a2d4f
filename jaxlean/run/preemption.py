"""Leaving in order when the machine is taken away, or the money is spent: SIGTERM from a scheduler, Ctrl-C, a terminal
that closes; a limit of the run's own, at a time known before (`leave_in`).

A handler that only sets a flag is too late when the flag is read between slow things (an evaluation, a load); one
that always raises may tear a step apart. So the signal raises `Preempted` at once, except inside `deferred()`, where it
waits for the end of the block. Once it has raised, further signals wait too: the saving that follows is not to be torn.

A process of several cannot leave alone while steps are run, since the others would wait for it: inside `stepping()` a
signal asks all of them (`run/peers.py`) to stop after the same step, and `check` raises there.

SIGHUP says that the terminal is gone, with an ssh connection that broke, say: what is printed from then on goes
nowhere, since a line that cannot be printed would be an error amid the saving. Under `nohup` it stays ignored.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from jaxlean.errors import BudgetReached, Preempted
from jaxlean.run.peers import Peers

_HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none
SIGNALS = (signal.SIGTERM, signal.SIGINT) + ((_HANGUP,) if _HANGUP is not None else ())
_ALARM = getattr(signal, "SIGALRM", None)


class Preemption:
    """While this context is open, SIGTERM, SIGINT and SIGHUP raise `Preempted` in the main thread.

    Args:
        peers: the processes of the run.

    What is raised inside a `__del__`, or inside a library that catches everything, may be swallowed or turned into
    another error. The signal is not lost then: the next `deferred()` raises it at its end, or `settle()`, or the end of
    this context.

    Attributes:
        saved: set by who has saved the state; what leaves this context tells it (`Preempted.saved`).
    """

    def __init__(self, peers: Peers | None = None) -> None:
        self._peers = peers if peers is not None else Peers()
        self._stepping = False
        self._old: dict[int, Any] = {}
        self._deferring = False
        self._pending: int | None = None
        self._terminals: list[int] = []
        self._limit = ""
        self.saved = False

    def __enter__(self) -> "Preemption":
        ours = [number for number in SIGNALS if number != _HANGUP or signal.getsignal(number) != signal.SIG_IGN]
        self._terminals = [descriptor for descriptor in (1, 2) if _is_terminal(descriptor)]
        with contextlib.suppress(ValueError):  # not in the main thread: the program around us owns the signals
            self._old = {number: signal.signal(number, self._handle) for number in ours}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if _ALARM in self._old:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        if isinstance(error, Preempted):
            error.saved = self.saved
        elif self._pending is not None and error is not None:
            raise self._asked(self._pending) from error

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """A block not to be torn apart: a signal inside it raises at its end, unless the block itself failed."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
            number, self._pending = self._pending, None
        if number is not None:
            raise self._asked(number)

    @contextlib.contextmanager
    def stepping(self) -> Iterator[None]:
        """The steps that all processes take together."""
        self._stepping = self._peers.num > 1
        try:
            yield
        finally:
            self._stepping = False
        if self._peers.asked:
            raise self._agreed()  # after the last step, which is saved: nothing to be agreed on

    def check(self, done: int) -> None:
        """Before each step: raises `Preempted` in all processes where they agreed to stop after `done` steps."""
        if self._peers.stop_before(done):
            self._deferring = True  # until the next deferred() ends
            preempted = self._agreed()
            preempted.together = True
            raise preempted

    def leave_in(self, seconds: float, limit: str) -> None:
        """A limit of the run is reached in so many seconds: leave then, as if asked to. The last call counts.

        Args:
            limit: in words.

        Where there are no timers (Windows, a thread that is not the main one) nothing happens: `leave` does.
        """
        self._limit = limit
        if _ALARM is None or threading.current_thread() is not threading.main_thread():
            return
        if _ALARM not in self._old:
            self._old[_ALARM] = signal.signal(_ALARM, self._handle)
        signal.setitimer(signal.ITIMER_REAL, min(max(seconds, 1e-3), 1e8))

    def leave(self, limit: str) -> None:
        """A limit of the run is reached: raises `BudgetReached`; in steps of several processes, after one of these."""
        self._limit = limit
        if self._stepping:
            self._peers.ask_to_stop(limit)
            return
        self._deferring = True  # until the next deferred() ends
        raise BudgetReached(limit)

    def settle(self) -> None:
        """Raises what came and was swallowed. For loops without blocks that are not to be torn."""
        with self.deferred():
            pass

    def over(self) -> None:
        """The result is written: what is left to do takes no time, and whoever asks to leave is about to get it."""
        self._deferring = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == _HANGUP:
            self._print_nowhere()
        if self._stepping:
            self._peers.ask_to_stop(self._limit if number == _ALARM else "")
            return
        self._pending = number
        if not self._deferring:
            self._deferring = True  # until the next deferred() ends
            raise self._asked(number)

    def _asked(self, number: int) -> Preempted:
        return BudgetReached(self._limit) if number == _ALARM else Preempted(signal.Signals(number).name)

    def _agreed(self) -> Preempted:
        """What all processes stop for."""
        return BudgetReached(self._peers.why) if self._peers.why else Preempted("SIGTERM")

    def _print_nowhere(self) -> None:
        nothing = os.open(os.devnull, os.O_WRONLY)
        for descriptor in self._terminals:
            os.dup2(nothing, descriptor)
        os.close(nothing)


def _is_terminal(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:  # closed
        return False
