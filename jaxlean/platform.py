"""What a program is written for: the devices that are here or, where a program is only compiled, others."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

# Of a GPU's memory, what a run takes and a plan reckons with; the rest is for CUDA's context and its libraries.
GPU_SHARE = 0.92
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


def claim_gpu_memory() -> None:
    """Have jax take `GPU_SHARE` of each card instead of its 75 %, unless the user says how much.

    It takes it when it first looks for devices; afterwards this changes nothing.
    Source: https://docs.jax.dev/en/latest/201/gpu-memory.html
    """
    # the second is the older name; jaxlib refuses both together
    if not any(name in os.environ for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")):
        os.environ["XLA_CLIENT_MEM_FRACTION"] = str(GPU_SHARE)
