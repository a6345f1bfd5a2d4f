"""Where the seconds of a run go: each belongs to one phase, and all together are the run."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping

LOAD = "load"  # config, model, data, state: before the first step
COMPILE = "compile"
STEP = "step"  # computing, and what the host does beside it
DATA_WAIT = "data_wait"  # of the steps' time, devices idle until the next batch was there
CHECKPOINT = "checkpoint"
EVALUATION = "evaluation"
TEACHER = "teacher"  # its words, written before training
WRITE = "write"  # the result
LOST = "lost"  # steps after the last checkpoint, done again because the process was killed
PHASES = (LOAD, COMPILE, STEP, DATA_WAIT, CHECKPOINT, EVALUATION, TEACHER, WRITE, LOST)


class Phases:
    """A clock that is always in one phase; what is nested counts for the inner one alone.

    Args:
        phase: that it begins in.
        started: by `clock`, when it began.
        clock: seconds.

    >>> now = iter([10.0, 14.0, 15.0]).__next__
    >>> phases = Phases(LOAD, started=0.0, clock=now)
    >>> with phases.within(COMPILE):
    ...     pass
    >>> phases.seconds()
    {'load': 11.0, 'compile': 4.0}
    """

    def __init__(self, phase: str, *, started: float, clock: Callable[[], float] = time.perf_counter):
        self._clock, self._since, self._phase = clock, started, phase
        self._seconds: dict[str, float] = {}

    @property
    def phase(self) -> str:
        """That it is in."""
        return self._phase

    def enter(self, phase: str) -> None:
        """From now on it is in this one."""
        now = self._clock()
        self._add(self._phase, now - self._since)
        self._phase, self._since = phase, now

    @contextlib.contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """The block is in this phase; after it comes the one before it."""
        outer = self._phase
        self.enter(phase)
        try:
            yield
        finally:
            self.enter(outer)

    def move(self, seconds: float, source: str, to: str) -> None:
        """What was counted as one phase was another, as it turns out; never more than there was."""
        seconds = min(seconds, self.seconds().get(source, 0.0))
        if seconds > 0:
            self._add(source, -seconds)
            self._add(to, seconds)

    def restore(self, before: Mapping[str, float]) -> None:
        """Add the seconds of earlier processes of the same run."""
        for phase, seconds in before.items():
            self._add(phase, seconds)

    def seconds(self) -> dict[str, float]:
        """Of each phase so far, the one that is under way included."""
        found = dict(self._seconds)
        found[self._phase] = found.get(self._phase, 0.0) + self._clock() - self._since
        return {phase: found[phase] for phase in (*PHASES, *sorted(found.keys() - set(PHASES))) if phase in found}

    @property
    def total(self) -> float:
        """All of them."""
        return sum(self.seconds().values())

    def _add(self, phase: str, seconds: float) -> None:
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds
