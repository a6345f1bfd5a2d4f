"""Trials in one process: the base is loaded once, the rows are read once, the step is compiled once for all of them.

The loop fills the members' places, takes a step, and looks at those who are at a rung. A trial that needs another
program (another batch size, say) waits until those who are at work have ended; then the program is changed.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxlean import tree
from jaxlean.config import RunConfig
from jaxlean.cost.price import Price
from jaxlean.data.batches import Batches
from jaxlean.data.loader import Examples, lay_out, read_examples
from jaxlean.errors import ConfigError, Preempted, UserError
from jaxlean.hub.load import Model
from jaxlean.run.evaluate import evaluator_of
from jaxlean.run.image import image_of
from jaxlean.run.inputs import batches_of, tokenizer_of
from jaxlean.run.job import base, is_base_drawn, resolved, rows_of_step
from jaxlean.search.inputs import constants, is_argument, lora_is_drawn, program_key
from jaxlean.search.members import advise
from jaxlean.search.program import Program
from jaxlean.search.space import configured
from jaxlean.search.study import Study
from jaxlean.search.trial import Trial
from jaxlean.xla.remat_auto import say_bytes

# Between two looks at what has been spent, where there is a limit.
_COUNT_SECONDS = 5.0


def cannot_share(config: RunConfig) -> str | None:
    """Why trials of this search cannot share a program; None where they can."""
    if config.distill is not None:
        return "a teacher"
    if config.data.streaming:
        return "data.streaming"
    if config.train.sync == "diloco" or config.train.pruning is not None:
        return "train.sync: diloco" if config.train.sync == "diloco" else "train.pruning"
    if config.lora is not None and not lora_is_drawn(config):
        return "lora.init_lora_weights: pissa"
    if config.lora is not None and config.lora.init_from is not None:
        return "lora.init_from"
    if config.data.curriculum is not None and config.data.curriculum.difficulty == "loss":
        return "data.curriculum.difficulty: loss"
    if config.train.keep_zeros and config.lora is None:
        return "train.keep_zeros without adapters"
    return None


@dataclass
class InProcess:
    """Runs the trials of a study.

    Args:
        config: the search's.
        study: where trials come from.
        mesh: of one device.
        price: of the device.
        say: prints a line.
        told: is given each trial when it ends.
        settle: raises what asks the process to end and was not heard.

    Attributes:
        compiled: steps that were compiled.
        setup_seconds: wall time that loading, compiling and reading took, for no trial in particular.
    """

    config: RunConfig
    study: Study
    mesh: jax.sharding.Mesh
    price: Price
    say: Callable[[str], None]
    told: Callable[[Any], None] = lambda trial: None
    settle: Callable[[], None] = lambda: None
    compiled: int = 0
    setup_seconds: float = 0.0
    _examples: dict[str, Examples] = field(default_factory=dict)
    _programs: dict[str, Program | str] = field(default_factory=dict)
    _evaluators: dict[str, Any] = field(default_factory=dict)
    _model: tuple[str, Model] | None = None
    _waiting: deque[Trial] = field(default_factory=deque)
    _members: list[Trial | None] = field(default_factory=list)
    _program: tuple[str, Program] | None = None
    _counted: float = field(default_factory=time.monotonic)
    _told_setup: float = 0.0

    def run(self) -> None:
        """Until the study has enough."""
        try:
            while self._fill():
                self.settle()
                self._step()
        except BaseException as error:
            lost = not isinstance(error, Preempted | KeyboardInterrupt | UserError)
            self.study.leave(
                [(trial.asked, self._notes(trial)) for trial in self._running]
                + [(trial.asked, {}) for trial in self._waiting], lost=lost,
            )  # fmt: skip
            raise

    @property
    def members(self) -> int:
        """Trials side by side, at last."""
        return max(len(self._members), 1)

    # ---- places

    @property
    def _running(self) -> list[Trial]:
        return [trial for trial in self._members if trial is not None]

    def _fill(self) -> bool:
        """Give every empty place to a trial; whether any is at work."""
        while not self._members or None in self._members:
            trial = self._next()
            if trial is None:
                break
            if self._program is None or trial.key != self._program[0]:
                if self._running:
                    self._waiting.append(trial)
                    break
                if not self._change(trial):
                    continue
            self._begin(trial)
        usd = self.price.usd(self.setup_seconds)
        if usd is not None and self.setup_seconds > self._told_setup:
            self.study.note_setup(usd)
            self._told_setup = self.setup_seconds
        return bool(self._running)

    def _next(self) -> Trial | None:
        """One that waits for the program that there is, a new one, or one that waits for another program."""
        key = self._program[0] if self._program is not None else None
        for trial in self._waiting:
            if trial.key == key or not self._running:
                self._waiting.remove(trial)
                return trial
        if self._waiting:
            return None  # first those who are at work, so that nobody waits for ever
        while (asked := self.study.ask()) is not None:
            started = time.perf_counter()
            try:
                config = resolved(configured(self.config, asked.params))
                batches = self._batches(config)
            except UserError as error:
                self.study.refuse(asked, str(error).splitlines()[0])
                if not isinstance(error, ConfigError) and not _varies(self.config, "data", "model"):
                    raise  # files that are the same for all trials
                self.say(f"trial {asked.number}: not started: {error}")
                continue
            finally:
                self.setup_seconds += time.perf_counter() - started
            key = f"{program_key(config, list(self.config.search.space))} {batches.length}"
            return Trial(asked, config, batches, key)
        return None

    def _begin(self, trial: Trial) -> None:
        assert self._program is not None
        started, program = time.perf_counter(), self._program[1]
        trainable = program.start(trial.config)
        trial.nbytes = sum(x.nbytes for x in jax.tree.leaves(trainable))
        first = not self._running
        if not self._members:
            self._members = [None] * program.members
        place = self._members.index(None)
        if first and program.members > 1:
            program.release()  # every place starts as the first one does
        program.place(place, trainable)
        self._members[place] = trial
        trial.seconds += time.perf_counter() - started

    # ---- what trials share

    def _batches(self, config: RunConfig) -> Batches:
        model = self._base(config)
        tokenizer, rows = tokenizer_of(model), rows_of_step(config, self.mesh)
        if image_of(model) is not None:
            return batches_of(config, model, tokenizer, rows=rows)
        content = config.data.model_dump(mode="json", exclude={"shuffle", "curriculum", "packing"})
        for source in content["train"] or []:
            del source["weight"]
        column = config.data.curriculum.column if config.data.curriculum is not None else None
        key = repr(
            (content, column, config.seed if config.data.eval_fraction else None, self._model and self._model[0])
        )
        if key not in self._examples:
            self._examples[key] = read_examples(config, tokenizer, vocab_size=model.config.vocab_size)
        return lay_out(config, self._examples[key], rows_per_step=rows)

    def _base(self, config: RunConfig) -> Model:
        """The base of a trial; one at a time."""
        drawn = config.seed if is_base_drawn(config) else None
        key = repr((config.model.model_dump(mode="json"), config.data.labels, drawn, config.train.trainable))
        if self._model is None or self._model[0] != key:
            self._forget()
            self._model = (key, base(config, self.mesh, say=self.say))
        return self._model[1]

    def _forget(self) -> None:
        self._programs = {key: found for key, found in self._programs.items() if isinstance(found, str)}
        self._program, self._model, self._evaluators = None, None, {}

    def _change(self, trial: Trial) -> bool:
        """Make the program of a trial the one that runs; whether it fits."""
        started = time.perf_counter()
        model = self._base(trial.config)
        if self._program is not None:
            self._program[1].release()
        self._members, self._program = [], None
        found = self._programs.get(trial.key)
        if found is None:
            try:
                found = self._compiled(trial, model)
            except UserError as error:
                found = str(error)
            self._programs[trial.key] = found
        self.setup_seconds += time.perf_counter() - started
        if isinstance(found, str):
            self.study.refuse(trial.asked, found.splitlines()[0])
            self.say(f"trial {trial.asked.number}: not started: {found}")
            return False
        self._program = (trial.key, found)
        return True

    def _compiled(self, trial: Trial, model: Model) -> Program | str:
        space = self.config.search.space
        names = [*constants(trial.config, list(space)), "learning_rate"]
        rank = highest_rank(self.config, trial.config)

        def program(members: int) -> Program:
            how: dict[str, Any] = {"names": names, "rank": rank, "length": trial.batches.length}
            return Program(trial.config, model, self.mesh, members=members, **how)

        one = program(1)
        wanted = self.config.search.members
        drawn = "seed" in space and is_base_drawn(trial.config)
        if drawn or "data.train" in space or _varies(self.config, *_OF_BASE):
            wanted = 1  # one base at a time lies on the device, so trials must not overlap
        if wanted == 1 or wanted == "auto":
            self.compiled += 1
            if not one.compile():
                assert one.needed is not None
                return f"does not fit: a step takes {say_bytes(one.needed)} of {say_bytes(one.budget)}"
        if wanted == "auto":
            advice = advise(one, program, self.mesh, self.config)
            self.say(str(advice))
            wanted = advice.chosen
        while wanted > 1:
            several = program(wanted)
            self.compiled += 1
            if several.compile():
                return several
            self.say(f"{wanted} members do not fit: {say_bytes(several.needed or 0)} of {say_bytes(several.budget)}")
            wanted //= 2
        if not one.needed:
            self.compiled += 1
            if not one.compile():
                return f"does not fit: a step takes {say_bytes(one.needed or 0)} of {say_bytes(one.budget)}"
        return one

    # ---- steps

    def _step(self) -> None:
        assert self._program is not None
        program, running, started = self._program[1], self._running, time.perf_counter()
        # an empty place goes on with somebody else's rows, and nobody looks at it
        rows = {id(trial): next(trial.batches) for trial in running}
        everyone = [trial if trial is not None else running[0] for trial in self._members]
        measured = program.step([rows[id(trial)] for trial in everyone], [trial.inputs() for trial in everyone])
        for trial in running:
            trial.done += 1
        due = [trial for trial in running if trial.done in self.study.rungs or trial.done == trial.num_steps]
        if due:
            broken = np.atleast_1d(np.asarray(measured.broken_at))
        self._share(running, started)
        dear = self._too_dear(running)
        for trial in running:
            place = self._members.index(trial)
            if trial in due:
                started = time.perf_counter()
                trial.quality = {} if broken[place] else self._measure(trial, program.trained(place))
                trial.seconds += time.perf_counter() - started
                self._judge(trial, place)
            elif dear:
                self._end(trial, place, None, too_dear=True)

    def _too_dear(self, running: Sequence[Trial]) -> bool:
        """Whether the study's money is spent: looked at now and then, since a rung may be far."""
        if self.config.search.max_usd is None or time.monotonic() - self._counted < _COUNT_SECONDS:
            return False
        self._counted = time.monotonic()
        for trial in running:
            self.study.note(trial.asked, usd=self.price.usd(trial.seconds))
        return self.study.too_dear() is not None

    def _share(self, running: Sequence[Trial], started: float) -> None:
        passed = (time.perf_counter() - started) / len(running)
        for trial in running:
            trial.seconds += passed

    def _measure(self, trial: Trial, trainable: tree.Tree) -> dict[str, Any]:
        """Quality on the held-out rows of the search, the same for all trials."""
        assert self._program is not None
        assert self._model is not None
        program = self._program[1]
        key = self._program[0]
        if key not in self._evaluators:
            measured_by = trial.config.model_copy(update={"data": trial.config.data.model_copy(update={
                name: getattr(self.config.data, name) for name in ("eval", "eval_fraction", "max_length", "packing")
            })})  # fmt: skip
            self._evaluators[key] = evaluator_of(measured_by, program.model, tokenizer_of(self._model[1]), self.mesh)
        evaluator, frozen = self._evaluators[key], program.frozen
        if trial.scale is not None:
            frozen = program.with_scales(frozen, trial.scale)
        found: dict[str, Any] = dict(evaluator.loss(trainable, frozen))
        if "exact_match" in self.config.search.objectives:
            found |= evaluator(program.model, trainable, frozen)
        return found

    def _judge(self, trial: Trial, place: int) -> None:
        """At a rung: go on, or give up; at the end: what it came to."""
        values = [self._value(name, trial) for name in self.config.search.objectives]
        if trial.done == trial.num_steps:
            self._end(trial, place, values)
            return
        self.study.note(trial.asked, usd=self.price.usd(trial.seconds))
        if len(values) > 1 or (math.isfinite(values[0]) and self.study.report(trial.asked, trial.done, values[0])):
            if self.study.too_dear() is not None:
                self._end(trial, place, None, too_dear=True)
            return
        self._end(trial, place, None, diverged=not trial.quality)

    def _end(self, trial: Trial, place: int, values: Sequence[float] | None, **why: bool) -> None:
        """Its place is free for another."""
        trial.batches.close()
        if values is not None:
            why["diverged"] = not trial.quality
        self.study.finish(trial.asked, values, quality=trial.quality, **self._notes(trial), **why)
        self._members[place] = None
        self.told(trial)

    def _notes(self, trial: Trial) -> dict[str, Any]:
        """What it has taken."""
        usd = self.price.usd(trial.seconds)
        return {"steps": trial.done, "num_steps": trial.num_steps, "seconds": trial.seconds, "usd": usd}

    def _value(self, name: str, trial: Trial) -> float:
        if name in ("seconds", "usd", "bytes", "memory_bytes"):
            assert self._program is not None
            program = self._program[1]
            memory = (program.needed or 0) / program.members
            found = {"seconds": trial.seconds, "usd": self.price.usd(trial.seconds), "bytes": trial.nbytes}
            value = memory if name == "memory_bytes" else found[name]
        else:
            value = trial.quality.get(name)
        return math.nan if value is None else float(value)


# Settings of which each value is a base of its own.
_OF_BASE = ("model", "data.labels", "train.trainable")


def _varies(config: RunConfig, *sections: str) -> bool:
    """Whether trials differ in something of these."""
    return any(path == name or path.startswith(f"{name}.") for path in config.search.space for name in sections)


def highest_rank(config: RunConfig, trial: RunConfig) -> int | None:
    """Of all trials that share a program with this one."""
    if trial.lora is None:
        return None
    section = config.search.space.get("lora.r")
    if section is None or not is_argument("lora.r", trial):
        return trial.lora.r
    return max(section.choices or section.int_ or section.log_int or (trial.lora.r,))
