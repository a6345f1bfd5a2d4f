"""What a program is written for: the devices that are here or, where a program is only compiled, others."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_TARGET: ContextVar[str | None] = ContextVar("platform", default=None)


def platform() -> str:
    """cpu, gpu or tpu: what is traced now is meant for it."""
    return _TARGET.get() or jax.default_backend()


@contextmanager
def written_for(name: str) -> Iterator[None]:
    """Within this block functions are traced for another platform, to be compiled for it.

    jax keeps what it has traced: what one process traces for two platforms must be two functions.
    """
    token = _TARGET.set(name)
    try:
        yield
    finally:
        _TARGET.reset(token)
