"""Leaving in order when the machine is taken away: SIGTERM from a scheduler, Ctrl-C from a person.

A handler that only sets a flag is too late when the flag is read between slow things (an evaluation, a load); one
that always raises may tear a step apart. So the signal raises `Preempted` at once, except inside `deferred()`, where it
waits for the end of the block. Once it has raised, further signals wait too: the saving that follows is not to be torn.
"""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from jaxlean.errors import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preemption:
    """While this context is open, SIGTERM and SIGINT raise `Preempted` in the main thread.

    What is raised inside a `__del__`, or inside a library that catches everything, may be swallowed or turned into
    another error. The signal is not lost then: the next `deferred()` raises it at its end, or the end of this context.

    Attributes:
        saved: set by who has saved the state; what leaves this context tells it (`Preempted.saved`).
    """

    def __init__(self) -> None:
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

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._pending = number
        if not self._deferring:
            self._deferring = True  # until the next deferred() ends
            raise Preempted(signal.Signals(number).name)
