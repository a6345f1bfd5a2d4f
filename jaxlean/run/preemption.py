"""Leaving in order when the machine is taken away: SIGTERM from a scheduler, Ctrl-C from a person.

A handler that only sets a flag is too late when the flag is read between slow things (an evaluation, a load); one that
always raises may tear a step apart. So the signal raises `Preempted` at once, except inside `deferred()`, where it waits
for the end of the block.
"""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from jaxlean.errors import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preemption:
    """While this context is open, SIGTERM and SIGINT raise `Preempted` in the main thread."""

    def __init__(self) -> None:
        self._old: dict[int, Any] = {}
        self._deferring = False
        self._pending: int | None = None

    def __enter__(self) -> "Preemption":
        with contextlib.suppress(ValueError):  # not in the main thread: the program around us owns the signals
            self._old = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """A block that is not to be torn apart: a signal inside it raises at its end."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        if self._pending is not None:
            number, self._pending = self._pending, None
            raise Preempted(signal.Signals(number).name)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._deferring:
            self._pending = number
        else:
            raise Preempted(signal.Signals(number).name)
