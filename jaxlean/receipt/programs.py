"""The step of a run and of the same run without a cut: what the compiler says of each, and how long each takes.

Memory and FLOPs are read off the compiled step, so they are exact for it. Times are calibrations: a few steps of each
over the run's own rows, on the devices that are here, in turns, so that a machine that drifts does so under all alike.
"""

import itertools
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlean.config import RunConfig
from jaxlean.errors import UserError
from jaxlean.run.generate import chat_template
from jaxlean.run.inputs import batches_of, tokenizer_of
from jaxlean.run.job import ANY_ACTIVATION, Outline, base, outline, resolved, rows_of_step, tokens_at_a_time
from jaxlean.run.predict import workspace
from jaxlean.xla.compile import use_cache
from jaxlean.xla.mesh import make_mesh
from jaxlean.xla.remat import check
from jaxlean.xla.remat_auto import compile_within
from jaxlean.xla.work import count

# Steps at a time, the first of which finds caches cold, and how often it is a program's turn.
_STEPS = 3


@dataclass
class Program:
    """A step.

    Args:
        memory_bytes: that it takes on one device, by XLA's analysis.
        flops: of its matrix products, over all devices, recomputation included.
        fits: whether the compiler found room for it, and the devices that are here have it.
        compile_seconds: what compiling took, with nothing from a cache.
        refused: why there is no such program; all else is nothing then.
        step_seconds: of each calibration.
    """

    memory_bytes: int = 0
    flops: float = 0.0
    fits: bool = True
    compile_seconds: float = 0.0
    refused: str = ""
    step_seconds: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float | None:
        """Of a step, the median; None where it was not run."""
        return statistics.median(self.step_seconds) if self.step_seconds else None


def compile_programs(
    configs: Mapping[str, RunConfig], policies: Mapping[str, Any], *, length: int, capacity: int | None
) -> tuple[dict[str, Program], dict[str, tuple[Outline, Any]]]:
    """Compile the step of each config for the devices that are here.

    Args:
        configs: name -> config.
        policies: name -> what is recomputed.
        length: tokens of a sequence.
        capacity: bytes that a program may take on one device; None: not known.

    Returns:
        (name -> what the compiler says, name -> (its outline, the compiled step) of those that fit).
    """
    use_cache(False)  # what compiling takes is one of the figures
    said: dict[str, Program] = {}
    made: dict[str, tuple[Outline, Any]] = {}
    for name, config in configs.items():
        check(policies[name], ANY_ACTIVATION)
        try:
            started = time.perf_counter()
            mesh = make_mesh(config.mesh)
            found = outline(config, mesh, length=length)
            traced = found.build(policies[name]).trace(*found.arguments)
            tokens = tokens_at_a_time(config, found.rows, length, mesh)
            more = workspace(mesh.devices.flat[0].platform, found.model.config.hidden_size, tokens=tokens)
            compiled, memory = compile_within(traced, (capacity or 2**62) - more)
        except UserError as error:
            said[name] = Program(refused=error.what, fits=False)
            continue
        took = time.perf_counter() - started
        fits = compiled is not None and (capacity is None or memory + more <= capacity)
        said[name] = Program(memory + more, float(count(traced.jaxpr.jaxpr).total_flops), fits, took)
        if compiled is not None and fits:
            made[name] = (found, compiled)
    return said, made


def calibrate(
    said: Mapping[str, Program],
    made: Mapping[str, tuple[Outline, Any]],
    batches: Sequence[dict[str, np.ndarray]],
    *,
    rounds: int,
) -> None:
    """Run a few steps of each program in turns; adds to `Program.step_seconds`.

    Args:
        said, made: as of `compile_programs`.
        batches: of the run; a program of other shapes gets what fits of them.
        rounds: how often it is each program's turn.
    """
    for _ in range(rounds):
        for name, (found, compiled) in made.items():
            said[name].step_seconds.extend(_run(found, compiled, batches))


def _run(found: Outline, compiled: Any, batches: Sequence[dict[str, np.ndarray]]) -> list[float]:
    """Seconds of some steps over parameters that are all zero: how long a product takes is no matter of its numbers."""
    state, frozen = _zeros((found.state, found.frozen))
    times = []
    try:
        for batch in itertools.islice(_like(batches, found.batch), 1 + _STEPS):
            started = time.perf_counter()
            state, measured = compiled(state, frozen, batch)
            jax.block_until_ready(measured)
            times.append(time.perf_counter() - started)
    finally:
        jax.tree.map(lambda x: x.delete(), (state, frozen))  # there may be no room for the next one's beside them
    return times[1:]


def _zeros(shapes: Any) -> Any:
    where = jax.tree.map(lambda x: x.sharding, shapes)
    return jax.jit(lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), out_shardings=where)()


def _like(batches: Sequence[dict[str, np.ndarray]], shapes: Mapping[str, Any]) -> Iterator[dict[str, jax.Array]]:
    """The batches one after the other, over and over, on the devices; rows are laid out as a program takes them.

    What a teacher would say is zero.
    """

    def laid_out(name: str, batch: dict[str, np.ndarray], shape: Any) -> np.ndarray:
        return np.reshape(batch[name], shape.shape) if name in batch else np.zeros(shape.shape, shape.dtype)

    for batch in itertools.cycle(batches):
        yield {
            name: jax.device_put(laid_out(name, batch, shape).astype(shape.dtype), shape.sharding)
            for name, shape in shapes.items()
        }


def rows_of_run(config: RunConfig, *, num: int) -> tuple[list[dict[str, np.ndarray]], int, int]:
    """(some batches of the run, tokens of a sequence, its number of steps).

    Raises:
        UserError: as `finetune`, where the data or the base is gone.
    """
    config = resolved(config)
    mesh = make_mesh(config.mesh)
    model = base(config, mesh, shapes=True)
    tokenizer = tokenizer_of(model, chat_template(config.model))
    rows = rows_of_step(config, mesh)
    # which rows the base finds hard changes no shape, and of the number of steps one or two at most
    batches = batches_of(config, model, tokenizer, rows=rows, losses=lambda examples: np.zeros(len(examples)))
    try:
        return list(itertools.islice(batches, num)), batches.length, batches.num_steps
    finally:
        batches.close()
