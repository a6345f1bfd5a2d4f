"""What a fault is, and what came of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class Broken(AssertionError):
    """What was promised did not hold."""


@dataclass(frozen=True)
class Outcome:
    """What came of a fault.

    Args:
        lost_steps: steps that had to be done again.
        equal: whether the run ended in the very bytes of the undisturbed one; None where the promise is a refusal.
        said: what the user was told, its first line.
    """

    lost_steps: int | None = None
    equal: bool | None = None
    said: str = ""


@dataclass(frozen=True)
class Fault:
    """One fault.

    Args:
        name: what happens.
        moment: when.
        promised: what is said to come of it.
        inject: makes it happen in a job of `job.Job`, and checks; what it raises is a promise that did not hold.
    """

    name: str
    moment: str
    promised: str
    inject: Callable[[Any], Outcome]

    def __str__(self) -> str:
        return f"{self.name}, {self.moment}"


def hold(true: object, why: str) -> None:
    """Raises Broken where it is not true."""
    if not true:
        raise Broken(why)
