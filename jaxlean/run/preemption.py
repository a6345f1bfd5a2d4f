"""Leaving in order when the machine is taken away: SIGTERM from a scheduler, Ctrl-C from a person.

A handler that only sets a flag is too late when the flag is read between slow things (an evaluation, a load); one
that always raises may tear a step apart. So the signal raises `Preempted` at once, except inside `deferred()`, where it
waits for the end of the block. Once it has raised, further signals wait too: the saving that follows is not to be torn.

A process of several cannot leave alone while steps are run, since the others would wait for it: inside `stepping()` a
signal asks all of them (`run/peers.py`) to stop after the same step, and `check` raises there.
"""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from jaxlean.errors import Preempted
from jaxlean.run.peers import Peers

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preemption:
    """While this context is open, SIGTERM and SIGINT raise `Preempted` in the main thread.

    Args:
        peers: the processes of the run.

    What is raised inside a `__del__`, or inside a library that catches everything, may be swallowed or turned into
    another error. The signal is not lost then: the next `deferred()` raises it at its end, or the end of this context.

    Attributes:
        saved: set by who has saved the state; what leaves this context tells it (`Preempted.saved`).
    """

    def __init__(self, peers: Peers | None = None) -> None:
        self._peers = peers if peers is not None else Peers()
        self._stepping = False
        self._old: dict[int, Any] = {}
        self._deferring = False
        self._pending: int | None = None
        self.saved = False

    def __enter__(self) -> "Preemption":
        with contextlib.suppress(ValueError):  # not in the main thread: the program around us owns the signals
            self._old = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        if isinstance(error, Preempted):
            error.saved = self.saved
        elif self._pending is not None and error is not None:
            raise Preempted(signal.Signals(self._pending).name) from error

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
            raise Preempted(signal.Signals(number).name)

    @contextlib.contextmanager
    def stepping(self) -> Iterator[None]:
        """The steps that all processes take together."""
        self._stepping = self._peers.num > 1
        try:
            yield
        finally:
            self._stepping = False
        if self._peers.asked:
            raise Preempted("SIGTERM")  # after the last step, which is saved: nothing to be agreed on

    def check(self, done: int) -> None:
        """Before each step: raises `Preempted` in all processes where they agreed to stop after `done` steps."""
        if self._peers.stop_before(done):
            self._deferring = True  # until the next deferred() ends
            preempted = Preempted("SIGTERM")
            preempted.together = True
            raise preempted

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._stepping:
            self._peers.ask_to_stop()
            return
        self._pending = number
        if not self._deferring:
            self._deferring = True  # until the next deferred() ends
            raise Preempted(signal.Signals(number).name)
