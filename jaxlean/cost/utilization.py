"""How long the devices compute, and how long they wait for the next batch.

jax hands a step to the device and goes on, so the host's own clock knows neither. A thread waits for the result of each
step and notes when it was there:

    handed over     s1  s2        s3              between the end of a step and the next that is handed over
    device          [ step 1 ][ step 2 ]....[ step 3 ]      the device waits; for the data, where that was
    next batch         [ 2 ]      [     3     ]             being made in that time
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import Any


class Utilization:
    """Seconds of computing and of waiting for data, of steps one after the other.

    Args:
        clock: seconds, the same that times are given in.

    The thread lasts until `close`.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._steps: queue.SimpleQueue[tuple[float, float, float, bool, Any] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._busy = self._waited = self._idle = 0.0
        self._anew = True
        self._thread: threading.Thread | None = None

    def step(self, wanted: float, ready: float, handed: float, result: Any) -> None:
        """A step was handed to the devices.

        Args:
            wanted: when its batch was asked for.
            ready: when the batch was there.
            handed: when the step was handed over.
            result: a jax array that is there when the step is done; it is not donated to a later one.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="jaxlean-utilization", daemon=True)
            self._thread.start()
        self._steps.put((wanted, ready, handed, self._anew, result))
        self._anew = False

    def pause(self) -> None:
        """Something else comes between: until the next batch is asked for, nothing counts."""
        self._anew = True

    @property
    def busy_seconds(self) -> float:
        """In which devices computed steps that are done."""
        with self._lock:
            return self._busy

    @property
    def idle_seconds(self) -> float:
        """Between steps, waiting for data included."""
        with self._lock:
            return self._idle

    def take_waited(self) -> float:
        """Seconds that devices waited for data, since it was last asked."""
        with self._lock:
            waited, self._waited = self._waited, 0.0
        return waited

    def close(self) -> None:
        """Wait for the steps under way, and end."""
        if self._thread is not None:
            self._steps.put(None)
            self._thread.join()
            self._thread = None

    def _watch(self) -> None:
        done = 0.0
        while (step := self._steps.get()) is not None:
            wanted, ready, handed, anew, result = step
            if anew:
                done = wanted
            start = max(handed, done)
            waited = max(0.0, min(ready, start) - max(wanted, done))
            with contextlib.suppress(Exception):  # whoever reads the result is told
                result.block_until_ready()
            idle, done = start - done, max(self._clock(), start)
            with self._lock:
                self._busy += done - start
                self._waited += waited
                self._idle += max(idle, 0.0)
