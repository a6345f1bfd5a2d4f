"""What a run has done and cost so far: tokens, seconds by phase, losses, energy, dollars.

Nothing in it waits for the step under way: the numbers of a step are read when those after it have been handed over.
"""

import contextlib
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import jax
import numpy as np

from jaxlean.cost.budget import Used
from jaxlean.cost.energy import EnergyMeter
from jaxlean.cost.memory import StepMemory, peak_memory_bytes
from jaxlean.cost.phases import CHECKPOINT, COMPILE, DATA_WAIT, LOAD, LOST, STEP, WRITE, Phases
from jaxlean.cost.price import Price
from jaxlean.cost.utilization import Utilization
from jaxlean.errors import RunError
from jaxlean.run.summary import Evaluation, MemoryByCategory
from jaxlean.train.step import StepMetrics, over_replicas
from jaxlean.xla.compile import Compilations
from jaxlean.xla.spread import fetch

# Steps that may be under way on the device while the host goes on.
AHEAD = 2
# Steps whose median is the time of one.
_TIMED = 200


class Meter:
    """Collects the metrics of steps while they are still being computed and hands them over when they are there.

    Args:
        price: of the run's devices.
        clock_start: `time.perf_counter()` at the start of the process's work: all of it is paid for.
        energy: of the run's devices, from that start; None: it is not counted.
    """

    def __init__(self, price: Price, *, clock_start: float, energy: EnergyMeter | None = None):
        self._price, self._energy = price, energy
        self._phases = Phases(LOAD, started=clock_start, clock=lambda: time.perf_counter())
        self._kwh_before: float | None = 0.0  # of earlier processes of the same run
        self._utilization = Utilization(lambda: time.perf_counter())
        self._busy_before = 0.0
        self.flops_of_step: float | None = None  # of matrix products on all devices, what is recomputed included
        self.compiled_from_cache: bool | None = None  # of this process; None: nothing compiled, or no cache
        self.predicted_memory_bytes: int | None = None  # of the compiled step on one device
        self.memory_by_category: MemoryByCategory | None = None  # of the same
        self.predicted_step_seconds: float | None = None
        self._memory = StepMemory()
        # of the last steps known to be done: their number, and the training seconds at which that was known
        self._done: deque[tuple[int, float]] = deque(maxlen=_TIMED)
        self.tokens = self.total_tokens = 0
        self.train_loss: float | None = None
        self.broken_at = 0  # the first step whose loss or gradient was not a number
        self.eval_before: Evaluation | None = None
        self.eval_few_shot: Evaluation | None = None
        self.eval_after: Evaluation | None = None
        self.eval_teacher: Evaluation | None = None
        self._waiting: list[tuple[int, StepMetrics]] = []
        self._marks: list[int] = []
        self._last_line = (0.0, 0)  # training seconds and total tokens at the last line

    # ---- clocks

    def start_training(self, arguments: int = 0, num_devices: int = 1) -> None:
        """The steps begin; `arguments` are bytes of theirs on one of this process's devices."""
        self._memory.begin(arguments, num_devices)
        self._phases.enter(STEP)

    def stop_training(self) -> None:
        """The steps are over: what is left is to write the result."""
        if self._phases.phase == STEP:
            self._phases.enter(WRITE)

    @contextlib.contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """The block is in this phase (`cost.phases`)."""
        self._utilization.pause()
        if phase == CHECKPOINT:
            self._memory.before_host_copies()
        with self._phases.within(phase):
            yield

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        programs = Compilations()
        with self.within(COMPILE):
            yield
        self.compiled_from_cache = programs.all_from_cache

    def compiled_before(self, seconds: float) -> None:
        """Of what has passed since the last change of phase, so much was compiling."""
        self._phases.move(seconds, self._phases.phase, COMPILE)

    @property
    def compile_seconds(self) -> float:
        """In compiling, over all processes."""
        return self._phases.seconds().get(COMPILE, 0.0)

    @property
    def seconds(self) -> float:
        """Wall time of the run, over all its processes."""
        return self._phases.total

    @property
    def train_seconds(self) -> float:
        """Of these, in steps: waiting for data and saving included."""
        found = self._phases.seconds()
        return sum(found.get(phase, 0.0) for phase in (STEP, DATA_WAIT, CHECKPOINT))

    @property
    def phases(self) -> dict[str, float]:
        """Seconds by phase."""
        waited = self._utilization.take_waited()
        self._phases.move(waited, STEP, DATA_WAIT)
        return self._phases.seconds()

    @property
    def data_wait_share(self) -> float:
        """Of the seconds in steps, those in which devices waited for data; 0 to 1."""
        found = self.phases
        waited = found.get(DATA_WAIT, 0.0)
        return waited / (waited + found.get(STEP, 0.0)) if waited else 0.0

    def kwh(self, *, fresh: bool = False) -> float | None:
        """Energy of the run, over all its processes; None where it is not known."""
        found = None if self._energy is None else self._energy.kwh(fresh=fresh)
        return None if found is None or self._kwh_before is None else self._kwh_before + found

    @property
    def energy_source(self) -> str:
        """How that is known."""
        return "not counted" if self._energy is None else self._energy.source

    def used(self) -> Used:
        """What counts for a budget."""
        seconds, kwh = self.seconds, self.kwh()
        return Used(self._price.usd(seconds, kwh), kwh, seconds / 3600)

    @property
    def step_seconds(self) -> float | None:
        """The median of this process's last steps; None before two are done."""
        steps = [(then - before) / (n - m) for (m, before), (n, then) in pairwise(self._done)]
        return statistics.median(steps) if steps else None

    # ---- steps

    def add(self, step: int, measured: StepMetrics, *, wanted: float | None = None, ready: float | None = None) -> None:
        """Remember a step that has been dispatched; waits only for the one `AHEAD` steps before it.

        Args:
            step: its number.
            measured: by it.
            wanted, ready: by `time.perf_counter()`, when its batch was asked for and when that was there.

        Raises:
            RunError: that one's loss or gradient was not a number.
        """
        if wanted is not None and ready is not None:
            self._utilization.step(wanted, ready, time.perf_counter(), measured.broken_at)
        measured.broken_at.copy_to_host_async()
        self._waiting.append((step, measured))
        if len(self._waiting) > AHEAD:
            earlier, was = self._waiting[-1 - AHEAD]
            self._refuse_broken(_own(was.broken_at))
            self._note(earlier)

    def mark(self, step: int) -> None:
        """A line of metrics is due at this step."""
        self._marks.append(step)

    def ready(self, *, wait: bool = False) -> Iterator[dict[str, Any]]:
        """The lines due whose steps are done; with `wait`, all that are due.

        Raises:
            RunError: a step's loss or gradient was not a number.
        """
        while self._marks and self._waiting and (wait or self._waiting[-1][0] >= self._marks[0] + AHEAD):
            yield self._line(self._marks.pop(0))

    def check(self, step: int) -> None:
        """Wait for everything up to `step` and see that it was sound: before it is saved.

        Raises:
            RunError: a step's loss or gradient was not a number.
        """
        for number, measured in [(number, measured) for number, measured in self._waiting if number <= step][-1:]:
            self._refuse_broken(_own(measured.broken_at))
            self._note(number)

    def _note(self, step: int) -> None:
        """This step and those before it are done."""
        if not self._done or step > self._done[-1][0]:
            self._done.append((step, self.train_seconds))

    def _line(self, step: int) -> dict[str, Any]:
        # every process is here at the same step: replicas of others may be asked for
        found = [measured for number, measured in self._waiting if number <= step]
        chosen = [over_replicas(measured) for measured in jax.tree.map(fetch, found)]
        self._waiting = [(number, measured) for number, measured in self._waiting if number > step]
        for measured in chosen:
            self._refuse_broken(measured.broken_at)
        self._note(step)
        tokens = sum(int(m.tokens) for m in chosen)
        self.tokens += tokens
        self.total_tokens += sum(int(m.total_tokens) for m in chosen)
        self.train_loss = sum(float(m.loss) * int(m.tokens) for m in chosen) / max(tokens, 1)
        now, seconds, kwh = self.train_seconds, self.seconds, self.kwh()
        passed, done = now - self._last_line[0], self.total_tokens - self._last_line[1]
        self._last_line = (now, self.total_tokens)
        return {
            "step": step,
            "loss": self.train_loss,
            "grad_norm": float(chosen[-1].grad_norm),
            "tokens": self.tokens,
            "total_tokens": self.total_tokens,
            "tokens_per_second": done / passed if passed > 0 else None,
            "seconds": seconds,
            "peak_memory_bytes": peak_memory_bytes(),
            "kwh": kwh,
            "usd": self._price.usd(seconds, kwh),
        }

    def _refuse_broken(self, broken_at: Any) -> None:
        """Of one step or of each of its replicas; those of other processes are these processes' to refuse."""
        self.broken_at = self.broken_at or min((int(at) for at in np.ravel(broken_at) if at), default=0)
        if self.broken_at:
            raise RunError(
                f"the loss or its gradient is not a number at step {self.broken_at}",
                where="training",
                wanted="a finite loss",
                fix="go on from the checkpoint before that step: --resume with a lower train.learning_rate; "
                "or start anew with --overwrite, train.max_grad_norm set",
            )

    @staticmethod
    def shown(line: dict[str, Any]) -> dict[str, Any]:
        """What the progress bar shows of a line."""
        return {
            "step": line["step"],
            "loss": line["loss"],
            "tokens_per_second": line["tokens_per_second"],
            "memory_bytes": line["peak_memory_bytes"],
            "usd": line["usd"],
        }

    # ---- across processes

    def state(self) -> dict[str, Any]:
        """What a resumed run must know; JSON. Waits for the steps under way."""
        tokens, total_tokens = self._counted(fetch)
        return {
            "tokens": tokens,
            "total_tokens": total_tokens,
            "phases": self.phases,
            "busy_seconds": self._busy_before + self._utilization.busy_seconds,
            "kwh": self.kwh(fresh=True),
            "train_loss": self.train_loss,
            "eval_before": self.eval_before,
            "eval_few_shot": self.eval_few_shot,
            "eval_teacher": self.eval_teacher,
        }

    def restore(self, state: dict[str, Any], *, seen: Mapping[str, Any] | None = None) -> None:
        """Go on from a checkpoint's `state`.

        Args:
            seen: the last line that a process of the run wrote: what it says beyond the checkpoint was paid for, and is
                lost.
        """
        self.tokens, self.total_tokens = state["tokens"], state["total_tokens"]
        before, kwh = _before(state), state.get("kwh")
        told = (seen or {}).get("seconds") or 0.0
        lost = told - sum(before.values())
        self._phases.restore(before | ({LOST: before.get(LOST, 0.0) + lost} if lost > 0 else {}))
        told_kwh = (seen or {}).get("kwh")
        self._kwh_before = max(kwh, told_kwh) if kwh is not None and told_kwh is not None else kwh
        self._busy_before = state.get("busy_seconds", 0.0)
        self.train_loss, self.eval_before = state["train_loss"], state["eval_before"]
        # a checkpoint of an earlier version has none
        self.eval_few_shot, self.eval_teacher = state.get("eval_few_shot"), state.get("eval_teacher")
        self._last_line = (self.train_seconds, self.total_tokens)

    def totals(self) -> dict[str, Any]:
        """The meter's part of the summary. Waits for the steps under way."""
        tokens, total_tokens = self._counted(_own)
        phases, kwh = self.phases, self.kwh(fresh=True)
        train_seconds, seconds = self.train_seconds, sum(phases.values())
        busy = self._busy_before + self._utilization.busy_seconds
        in_steps = phases.get(STEP, 0.0) + phases.get(DATA_WAIT, 0.0)
        return {
            "tokens": tokens,
            "total_tokens": total_tokens,
            "seconds": seconds,
            "train_seconds": train_seconds,
            "compile_seconds": phases.get(COMPILE, 0.0),
            "phases": phases,
            "data_wait_share": phases.get(DATA_WAIT, 0.0) / in_steps if in_steps else None,
            "accelerator_utilization": min(busy / seconds, 1.0) if seconds > 0 and busy else None,
            "flops_per_step": self.flops_of_step,
            "kwh": kwh,
            "energy_source": self.energy_source,
            "compiled_from_cache": self.compiled_from_cache,
            "predicted_memory_bytes": self.predicted_memory_bytes,
            "memory_by_category": self.memory_by_category,
            "measured_memory_bytes": self._memory.held(),
            "predicted_step_seconds": self.predicted_step_seconds,
            "measured_step_seconds": self.step_seconds,
            "tokens_per_second": total_tokens / train_seconds if train_seconds > 0 else None,
            "train_loss": self.train_loss,
            "eval_before": self.eval_before,
            "eval_few_shot": self.eval_few_shot,
            "eval_after": self.eval_after,
            "eval_teacher": self.eval_teacher,
            "usd": self._price.usd(seconds, kwh),
        }

    def close(self) -> None:
        """Stop what counts beside the steps."""
        self._utilization.close()
        if self._energy is not None:
            self._energy.close()

    def _counted(self, read: Callable[[jax.Array], np.ndarray]) -> tuple[int, int]:
        """Tokens with loss and in all, those of steps that no line has told of yet included.

        Args:
            read: what a process reads arrays by: `fetch` where all are at the same step.
        """
        waiting = [jax.tree.map(read, measured) for _, measured in self._waiting]
        pending = [m for m in map(over_replicas, waiting) if not m.broken_at]
        return (
            self.tokens + sum(int(m.tokens) for m in pending),
            self.total_tokens + sum(int(m.total_tokens) for m in pending),
        )


def _before(state: Mapping[str, Any]) -> dict[str, float]:
    """Seconds by phase of earlier processes; of a checkpoint of an earlier version, from what it has."""
    if "phases" in state:
        return dict(state["phases"])
    steps, compiling = state["train_seconds"], state["compile_seconds"]
    return {LOAD: max(state["seconds"] - steps - compiling, 0.0), COMPILE: compiling, STEP: steps}


def _own(x: jax.Array) -> np.ndarray:
    """Of an array that is spread over processes, what this one holds; of any other, all."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    parts = {str(shard.index): np.asarray(shard.data) for shard in x.addressable_shards}
    return np.concatenate(list(parts.values()))
