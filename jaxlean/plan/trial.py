"""How long a step takes on the devices that are here, by running a few over numbers that are all alike.

Estimates tell good meshes from bad ones; those in front of all others lie closer together than estimates are true.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxlean.config import RunConfig
from jaxlean.plan.candidate import Candidate
from jaxlean.run.job import outline
from jaxlean.xla.mesh import make_mesh

# Steps before those that count: the first ones find caches cold and clocks low.
_WARM, _TIMED = 1, 3


def trial_seconds(
    config: RunConfig,
    candidate: Candidate,
    devices: Sequence[Any],
    *,
    length: int,
    together: Callable[[], None] = lambda: None,
) -> float:
    """The median time of a step of a candidate, run. Needs no weights and no data, and the memory of the step.

    Args:
        config: of the job.
        candidate: with its policy.
        devices: of all processes, each of which calls this.
        length: tokens of a sequence.
        together: returns when every process has called it; before the first step, which does not wait for compilers.

    Raises:
        Exception: what the compiler or the devices raise: no room, most of all.
    """
    assert candidate.remat is not None
    job = candidate.apply(config)
    made = outline(job, make_mesh(job.mesh, list(devices)), length=length)
    compiled = made.build(candidate.remat).lower(*made.arguments).compile()
    state, frozen = _filled((made.state, made.frozen), 0)
    batch = _filled(made.batch, 1)  # every token carries loss
    times = []
    together()
    for _ in range(_WARM + _TIMED):
        started = time.perf_counter()
        state, measured = compiled(state, frozen, batch)
        jax.block_until_ready(measured)
        times.append(time.perf_counter() - started)
    return statistics.median(times[_WARM:])


def _filled(shapes: Any, number: int) -> Any:
    """Arrays of these shapes where their shardings say, each device's part made on it."""
    where = jax.tree.map(lambda x: x.sharding, shapes)
    return jax.jit(lambda: jax.tree.map(lambda x: jnp.full(x.shape, number, x.dtype), shapes), out_shardings=where)()
