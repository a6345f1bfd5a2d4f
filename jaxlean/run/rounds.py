"""`train.sync: diloco` in a run: the step between rounds (`train/diloco.py`), compiled beforehand, taken when due."""

import time
from typing import Any

import jax

from jaxlean.config import RunConfig
from jaxlean.run.job import State, compile_step
from jaxlean.run.predict import Machine, Seconds, step_seconds
from jaxlean.train.diloco import DilocoState
from jaxlean.xla import hlo
from jaxlean.xla.remat_auto import needed_bytes


class Rounds:
    """When replicas that train by themselves exchange. For `train.sync: step` all of this is nothing.

    Args:
        config: of the run.
        outer: as `job.outer_step` makes it.
        state: arrays, or shapes with shardings.
        num_steps: of the run, after the last of which they exchange in any case.
    """

    def __init__(self, config: RunConfig, outer: jax.stages.Wrapped | None, state: State, num_steps: int):
        self._every, self._num_steps = config.train.diloco.every, num_steps
        self._compiled: tuple[jax.stages.Compiled, Any] | None = None
        started = time.perf_counter()
        if outer is not None:
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
            self._compiled = compile_step(outer, shapes)
        self.compile_seconds = time.perf_counter() - started

    def __call__(self, state: State, done: int) -> State:
        """The state after `done` steps: exchanged, where that is due; what is given is donated then."""
        due = done % self._every == 0 or done == self._num_steps
        return self._compiled[0](state) if self._compiled is not None and due else state

    @property
    def memory_bytes(self) -> int:
        """Of one device while they exchange."""
        return needed_bytes(self._compiled[0]) if self._compiled is not None else 0

    @property
    def sent_bytes(self) -> float:
        """By one device, for each step of a round."""
        if self._compiled is None:
            return 0.0
        return hlo.read(self._compiled[0].as_text() or "").bytes / self._every

    def seconds(self, machine: Machine) -> Seconds:
        """That the exchange adds to each step of a round, estimated."""
        if self._compiled is None:
            return Seconds(0.0, 0.0)
        once = step_seconds(*self._compiled, machine)
        return Seconds(once.work / self._every, once.exchange / self._every)


def fixed(state: State) -> dict[str, Any]:
    """What a run cannot change when it is resumed, since its state has that shape: `section.key` -> value."""
    return {"mesh.data": state.step.shape[0]} if isinstance(state, DilocoState) else {}
