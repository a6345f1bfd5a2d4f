"""What devices trials will find, asked by a process that ends: one that holds them keeps them from the trials'.

A TPU belongs to one process, and a GPU's memory to whoever came first; where each trial is a process, the search itself
computes on the CPU.
"""

import importlib.util
import json
import subprocess
import sys
from importlib.metadata import entry_points
from typing import NamedTuple

import jax

_LOOK = "import json, jax; d = jax.devices(); print(json.dumps([d[0].platform, d[0].device_kind, len(d)]))"
_LOOK_SECONDS = 300.0


class Devices(NamedTuple):
    """Of a process that is started now."""

    platform: str  # cpu, gpu or tpu
    kind: str  # as jax says it
    num: int


def may_be_accelerated() -> bool:
    """Whether jax could find anything but the CPU here."""
    # jax makes its flags' names at run time, which mypy does not see
    if jax.config.jax_platforms == "cpu":  # type: ignore[attr-defined]
        return False
    return bool(entry_points(group="jax_plugins")) or importlib.util.find_spec("libtpu") is not None


def look() -> Devices | None:
    """None where such a process does not get on: the trials' will say why."""
    try:
        done = subprocess.run([sys.executable, "-c", _LOOK], capture_output=True, text=True, timeout=_LOOK_SECONDS)
        return Devices(*json.loads(done.stdout.splitlines()[-1]))
    except (subprocess.TimeoutExpired, IndexError, ValueError, TypeError):
        return None


def leave() -> None:
    """Compute on the CPU from here on; before jax has looked at its devices."""
    jax.config.update("jax_platforms", "cpu")
