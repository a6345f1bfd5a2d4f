"""Signs of life for what a worker has begun, by a thread: a compilation or an evaluation may take minutes."""

import contextlib
import threading
from collections.abc import Callable


class Heartbeat:
    """Beats for each of some numbers, until it is told to leave them.

    Args:
        beat: number -> its sign of life. What it raises in the thread is dropped: a database may be away for a while,
            and whoever needs it next will say so.
        seconds: between two beats.
    """

    def __init__(self, beat: Callable[[int], None], seconds: float):
        self._beat, self._seconds = beat, seconds
        self._alive: set[int] = set()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, number: int) -> None:
        """Beat for it, now and from now on."""
        self._beat(number)
        self._alive.add(number)
        if self._thread is None:
            self._thread = threading.Thread(target=self._beating, daemon=True, name="heartbeat")
            self._thread.start()

    def leave(self, number: int) -> None:
        """No more for this one."""
        self._alive.discard(number)

    def close(self) -> None:
        """No more at all; a beat that hangs is not waited for."""
        self._over.set()

    def _beating(self) -> None:
        while not self._over.wait(self._seconds):
            for number in list(self._alive):
                with contextlib.suppress(Exception):
                    self._beat(number)
