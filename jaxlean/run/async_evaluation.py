"""Asynchronous evaluation: training hands over snapshots and goes on; other processes score them (`eval.mode: async`).

    training                             output_dir                       evaluators, any number
      hand_over(step, what trains)  ->   snapshots/120/              ->   take its lease, newest step first
      a thread: collect(), replaces      evaluations/120.json        <-   its score, once
      evaluators that died

Nothing is exchanged but files, so an evaluator may be a process that training started on this machine's CPU, or
`jaxlean evaluate --watch RUN_DIR` anywhere that sees the folder. It builds base and adapters as training does
(`run.job`), on a mesh of the same shape where it has as many devices, and calls what training itself calls in
`eval.mode: sync`: on the same kind of processor its numbers are the same to the last bit.

Training's side never waits: what nobody gets to is left out (`run/snapshots.py`), and a score is taken up whenever it
is there. An evaluator that dies is replaced, its lease falls silent, and the next one scores the snapshot. What is not
as it was written is refused, and told.
"""

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from jaxlean import config as settings
from jaxlean import tree
from jaxlean.config import MeshSection, RunConfig
from jaxlean.errors import ConfigError, Preempted, RunError
from jaxlean.hub.load import Model
from jaxlean.models.cpu import hold
from jaxlean.run.evaluate import Evaluator, evaluator_of
from jaxlean.run.evaluator_processes import PREFIX, EvaluatorProcesses, evaluator_name
from jaxlean.run.folder import SEARCH
from jaxlean.run.generate import chat_template
from jaxlean.run.inputs import tokenizer_of
from jaxlean.run.job import adapt, base, is_pissa, placed
from jaxlean.run.lease import Lease, Leases
from jaxlean.run.manifest import Damaged, Unreadable
from jaxlean.run.parent import end_with
from jaxlean.run.preemption import Preemption
from jaxlean.run.quality import TaskEvaluator
from jaxlean.run.score_files import Score, read_score, remove_score, scored_steps, write_score
from jaxlean.run.snapshots import (
    FOLDER,
    FROZEN,
    LEASE,
    Origin,
    Snapshots,
    read_origin,
    read_snapshot,
    snapshot_steps,
    write_origin,
)
from jaxlean.run.summary import Evaluation
from jaxlean.run.units import show_number, show_seconds
from jaxlean.xla.compile import use_cache
from jaxlean.xla.mesh import AXES, check_axes, make_mesh, place, split_host
from jaxlean.xla.spread import put

SCORES = "evaluations"
_LOOK_SECONDS = 0.5


# ---- training's side


class Handed:
    """What training has handed over, and what came back.

    Args:
        config: of the run.
        run: its folder.
        snapshots: of the run.
        origin: what evaluators must know.
        say: prints a line; also called by a thread.
    """

    def __init__(
        self, config: RunConfig, run: Path, snapshots: Snapshots, origin: Origin, *, say: Callable[[str], None]
    ):
        self._run, self._snapshots, self._origin, self._say = run, snapshots, origin, say
        self._folder, self._scores = run / FOLDER, run / SCORES
        self._leases = Leases()
        self._processes = EvaluatorProcesses(
            run, config.eval.evaluators, threads=origin.threads, snapshots=self._folder, leases=Leases(),
            log=self._scores, nice=config.eval.nice, say=say,
        )  # fmt: skip
        self._seen = set(scored_steps(self._scores))
        self._came: list[Score] = []
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="evaluators")

    def start(self) -> None:
        """Say what evaluators must know, and start those of the config."""
        write_origin(self._folder, self._origin)
        self._processes.start()
        self._thread.start()

    def collect(self) -> list[Score]:
        """The scores that came since it was asked last; takes microseconds."""
        if not self._came:
            return []
        with self._lock:
            came, self._came = self._came, []
        return came

    def somebody_works(self) -> bool:
        """Whether there is an evaluator, started here or elsewhere, from which a score may still come."""
        return bool(self._processes.processes or self._leases.alive(self._folder, PREFIX))

    @property
    def restarted(self) -> int:
        """Evaluators that were started again."""
        return self._processes.restarted

    def known(self, step: int) -> None:
        """Training has the score of a step from elsewhere."""
        self._seen.add(step)

    def close(self, *, finished: bool) -> None:
        """End the evaluators that training started.

        Args:
            finished: those elsewhere may end too: the run will not go on.
        """
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        self._processes.stop()
        if finished:
            with contextlib.suppress(OSError):  # a full disk, say: those elsewhere wait on, and the run is whole
                write_origin(self._folder, replace(self._origin, finished=True))

    def _watch(self) -> None:
        """In the thread."""
        while not self._over.wait(_LOOK_SECONDS):
            try:
                self._processes.check()
                self._look()
            except OSError as error:  # a file system that is away for a moment
                self._say(f"evaluations cannot be looked at: {error}")
                self._over.wait(10 * _LOOK_SECONDS)

    def _look(self) -> None:
        for step in scored_steps(self._scores):
            if step in self._seen:
                continue
            score = read_score(self._scores, step)
            stale = score is not None and score.refused is None and score.token != self._snapshots.token(step)
            if score is None or stale:
                remove_score(self._scores, step)  # cut short, or of a snapshot of an earlier start
                if self._snapshots.is_foreign(step):  # it would be scored for ever
                    self._say(f"the snapshot of step {step} is not this run's, and is removed")
                    self._snapshots.remove(step)
                continue
            self._seen.add(step)
            if score.refused is None:
                self._processes.scored()
            with self._lock:
                self._came.append(score)


def origin_of(config: RunConfig, model: Model, mesh: jax.sharding.Mesh, snapshots: Path) -> Origin:
    """What evaluators must know of a run that starts, or goes on."""
    there = read_origin(snapshots)
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Origin(
        run=there.run if there is not None else secrets.token_hex(8),
        platform=mesh.devices.flat[0].platform,
        mesh={axis: mesh.shape[axis] for axis in AXES},
        threads=int(os.environ.get("NPROC", threads)),
        dtype=model.dtype.name,
        folder=os.getcwd(),
        frozen=has_own_frozen(config),
    )


def has_own_frozen(config: RunConfig) -> bool:
    """Whether what is frozen was computed from the base's files, and is therefore handed over, once, as well.

    What PiSSA leaves of the kernels, and a student cut out of its teacher: other processors round, or cut, otherwise.
    """
    return is_pissa(config) or (config.distill is not None and config.distill.student is not None)


# ---- an evaluator's side


class Scorer:
    """A run's model without what trains, and what measures it.

    Args:
        config: of the run.
        origin: of the run.
        snapshots: the folder.

    Raises:
        UserError: the base cannot be loaded here, or needs what this machine does not have.
    """

    def __init__(self, config: RunConfig, origin: Origin, snapshots: Path, *, say: Callable[[str], None]):
        config = _for_here(config, origin)
        template = chat_template(config.model)
        mesh = _mesh(origin)
        shapes = origin.frozen
        self._model = base(config, mesh, shapes=shapes, say=say)
        self.tokenizer = tokenizer_of(self._model, template)
        if shapes:
            params = jax.eval_shape(lambda p: adapt(config, self._model, p, shapes=True)[0], self._model.params)
            frozen: tree.Tree = read_snapshot(snapshots, FROZEN)[1]
            there = tree.flatten(frozen)
            self._model = self._model.with_params(params)
            trainable = tree.split(params, lambda path: path not in there)[0]
            where = place(mesh)
            frozen = tree.map_with_path(lambda path, x: put(x, where(path, tuple(x.shape))), frozen)
        else:
            self._model, trains = placed(config, self._model, mesh)
            trainable, frozen = tree.split(self._model.params, trains)
        self._where = place(mesh)
        self._wanted = {path: (tuple(x.shape), str(x.dtype)) for path, x in tree.flatten(trainable).items()}
        declared = {path: tuple(leaf.shape) for path, leaf in tree.flatten(self._model.params).items()}
        self._frozen = hold(frozen)
        self._evaluator: Evaluator | TaskEvaluator = evaluator_of(config, self._model, self.tokenizer, mesh)
        length = self._evaluator.length
        check_axes(mesh, declared, num_kv_heads=self._model.config.num_kv_heads, length=length)
        self._model.params = {}
        say(f"held-out data: {self._evaluator.stats}")

    def __call__(self, trainable: tree.Tree, *, whole: bool) -> Evaluation:
        """Measure.

        Args:
            trainable: a snapshot's leaves, as numpy arrays.
            whole: as a result is measured, and not the loss alone.

        Raises:
            Damaged: they are not what trains in this run.
        """
        got = {path: (tuple(x.shape), x.dtype.name) for path, x in tree.flatten(trainable).items()}
        for path in sorted(got.keys() | self._wanted.keys()):
            if got.get(path) != self._wanted.get(path):
                raise Damaged(f"it is of another run: {path} is {got.get(path)}, here {self._wanted.get(path)}")
        placed = tree.map_with_path(lambda path, x: put(x, self._where(path, tuple(x.shape))), trainable)
        if whole:
            return self._evaluator(self._model, placed, self._frozen)
        return self._evaluator.loss(placed, self._frozen)


def _for_here(config: RunConfig, origin: Origin) -> RunConfig:
    """The run's config, where the model is computed as in the run, on these devices."""
    named: dict[str, Any] = {"dtype": origin.dtype}
    if origin.platform != jax.default_backend():
        named["attention"] = "auto"  # that of the run may need its hardware
    if config.model.new_tokens is not None:  # their rows train: where they started does not matter
        named |= {"new_tokens_init": "mean", "new_tokens_vectors": None}
    return config.model_copy(update={"model": config.model.model_copy(update=named)})


def _mesh(origin: Origin) -> jax.sharding.Mesh:
    """Of the run's shape, where there are as many devices; else of one."""
    num = 1
    for size in origin.mesh.values():
        num *= size
    devices = jax.devices()
    if len(devices) < num:
        return make_mesh(devices=devices[:1])
    return make_mesh(MeshSection(**origin.mesh), devices[:num])


def watch(run: Path, *, parent: int | None = None, nice: int = 0) -> None:
    """`jaxlean evaluate --watch`: score the snapshots of a run, newest first, until it is finished.

    Args:
        run: its folder; it may still be empty.
        parent: the process with which this one ends.
        nice: how much it yields to other processes.

    Raises:
        UserError: the folder is not there, or the run's model cannot be built here.
    """
    run = run.absolute()
    if not run.is_dir():
        raise RunError(
            "there is no such folder to watch", where=run, wanted="the output_dir of a run, made before it is watched"
        )
    if nice:
        os.nice(nice)
    if parent is not None:
        end_with(parent)
    watcher = _Watcher(run)
    try:
        with Preemption() as preemption:
            watcher.go(settle=preemption.settle)
    except Preempted as asked:
        _print(f"asked to leave ({asked}): {watcher.num} snapshots scored")
    finally:
        watcher.close()


class _Watcher:
    """One process that scores what lies in a run's folder."""

    def __init__(self, run: Path):
        self._run, self._snapshots, self._scores = run, run / FOLDER, run / SCORES
        self._leases = Leases()
        self._own: Lease | None = None
        self._scorer: Scorer | None = None
        self._of: Origin | None = None
        self._last_said = ""
        self._later: dict[int, float] = {}  # step of a snapshot that could not be read -> when to look again
        self._name = evaluator_name(os.getpid())
        self.num = 0
        self.who = f"process {os.getpid()} on {socket.gethostname()}"

    def close(self) -> None:
        if self._own is not None:
            self._own.release(remove=True)

    def go(self, until: Callable[[], bool] = lambda: False, settle: Callable[[], None] = lambda: None) -> None:
        """Score until the run is finished, or until it is told to leave.

        Args:
            settle: raises what asks the process to end and was not heard.
        """
        while not until():
            settle()
            origin = read_origin(self._snapshots)
            if origin is None:
                self._check_comes()
                self._say(f"waiting for a run with eval.mode: async in {self._run}")
                time.sleep(_LOOK_SECONDS)
                continue
            if origin.finished and self._of is not None and origin.run == self._of.run:
                _print(f"the run is finished: {self.num} snapshots scored")
                return
            if origin.finished:
                raise RunError(
                    "the run is finished: there is nothing to score", where=self._run,
                    fix="jaxlean evaluate CONFIG --adapter RUN_DIR/adapter measures its result",
                )  # fmt: skip
            self._hold_own()
            if self._scorer is None or self._of != origin:
                try:
                    self._begin(origin)
                except Unreadable as trouble:
                    self._say(f"what does not train cannot be read now, and is looked at again: {trouble}")
                    time.sleep(10 * _LOOK_SECONDS)
                    continue
            if not self._one():
                self._say("waiting for a snapshot")
                time.sleep(_LOOK_SECONDS)

    def _check_comes(self) -> None:
        """Raises RunError where the folder is one that nobody will hand snapshots over in."""
        if (self._run / SEARCH).exists():
            raise RunError(
                "this is a search, whose trials are compared by itself", where=self._run,
                wanted="the output_dir of a run with eval.mode=async",
            )  # fmt: skip
        if not (self._run / "config.yaml").exists():
            return
        mode = settings.load(self._run / "config.yaml").eval.mode
        if mode != "async":
            raise RunError(
                "the run hands no snapshots over", where=self._run, got=f"eval.mode={mode}", wanted="eval.mode=async",
                fix="--watch after a run with eval.mode=async has begun there, or in a folder that is still empty",
            )  # fmt: skip

    def _hold_own(self) -> None:
        """Say that this process is alive; again, where the folder was made anew, or had no room for it."""
        if self._own is None or not self._own.held():
            with contextlib.suppress(OSError):
                self._own = self._leases.take(self._snapshots / self._name)

    def _begin(self, origin: Origin) -> None:
        """Build what measures."""
        if self._of is None:
            self._prepare(origin)
        self._scorer = None  # before another stands beside it
        config = settings.load(self._run / "config.yaml")
        use_cache(config.compilation_cache)
        self._scorer = Scorer(config, origin, self._snapshots, say=self._say)
        self._of = origin

    def _prepare(self, origin: Origin) -> None:
        """Before jax has looked at its devices."""
        os.environ.setdefault("NPROC", str(origin.threads))
        if os.path.isdir(origin.folder):
            os.chdir(origin.folder)
        num = 1
        for size in origin.mesh.values():
            num *= size
        if origin.platform == "cpu":
            with contextlib.suppress(ConfigError):  # there is an accelerator here: `_mesh` takes one device
                split_host(num)

    def _one(self) -> bool:
        """Score the newest snapshot that can be read and that nobody works on; whether there was one."""
        assert self._scorer is not None
        scored = set(scored_steps(self._scores))
        for step in reversed([step for step in snapshot_steps(self._snapshots) if step not in scored]):
            if time.monotonic() < self._later.get(step, 0.0):
                continue
            try:
                lease = self._leases.take(self._snapshots / str(step) / LEASE)
            except OSError:
                continue  # removed in between
            if lease is None:
                continue
            with lease:
                if self._score(step, lease):
                    return True
        return False

    def _score(self, step: int, lease: Lease) -> bool:
        """Whether there was something to score."""
        assert self._scorer is not None
        started, token = time.perf_counter(), ""
        found: Evaluation | None = None
        refused: str | None = None
        try:
            content, trainable = read_snapshot(self._snapshots, str(step))
            token = content["token"]
            found = self._scorer(trainable, whole=content["whole"])
        except FileNotFoundError:
            return False
        except Unreadable as trouble:
            if step not in self._later:
                self._say(f"the snapshot of step {step} cannot be read now, and is looked at again: {trouble}")
            self._later[step] = time.monotonic() + 10 * _LOOK_SECONDS
            return False
        except Damaged as damage:
            refused = str(damage)
        seconds = time.perf_counter() - started
        score = Score(step, token, found, refused, self.who, seconds)
        while lease.held():  # else another one has it, or training wants it no more
            try:
                if write_score(self._scores, score):
                    self.num += refused is None
                    said = f"refused: {refused}" if found is None else f"loss {show_number(found.get('loss'))}"
                    self._say(f"step {step}: {said} ({show_seconds(seconds)})")
                return True
            except OSError as error:
                self._say(f"the score of step {step} cannot be written, and is kept until it can: {error}")
                time.sleep(10 * _LOOK_SECONDS)
        self._say(f"step {step}: somebody else has it, or nobody wants it any more; the score is dropped")
        return True

    def _say(self, line: str) -> None:
        if line != self._last_said:
            _print(line)
        self._last_said = line


def _print(line: str) -> None:
    """A line for whoever reads; that a full disk has no room for it in a log ends no evaluator."""
    with contextlib.suppress(OSError):
        print(line, flush=True)
