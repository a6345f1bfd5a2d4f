"""The study: Optuna chooses what is tried next and what is given up; it lies on disk, and many workers share it.

Each worker asks for a trial, reports at the rungs, and tells what came of it. A worker that dies leaves a trial that is
neither: the others (or the next start) see that it is gone, count the trial as failed, and try the same values again;
not for ever, since these may be what kills it. One that was only stopped for a while (a suspended machine) finds its
trial taken over, and drops it.
"""

import math
import secrets
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlean.config import RunConfig, SearchSection
from jaxlean.errors import ConfigError, RunError, UserError
from jaxlean.redact import expand, hidden
from jaxlean.run.lease import Holder, Leases, this_process
from jaxlean.search import space
from jaxlean.search.heartbeat import Heartbeat

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial, Trial

JOURNAL = "study.journal"
# A database knows workers of other machines by signs of life, in seconds of its own clock.
_BEAT_SECONDS, _DEAD_SECONDS = 30, 120
# How long another one may hold an SQLite file; `?timeout=` in the URL says otherwise.
_LOCKED_SECONDS = 120
# Trials that could not be started, for each that was: then the space is at fault.
_MOST_REFUSED = 5
# A trial that was under way when its worker died so many times is not tried again.
_MOST_LOST = 3


def rungs(search: SearchSection, num_steps: int) -> list[int]:
    """The steps at which trials are compared; the last is the end."""
    first = search.min_steps or max(num_steps // search.reduction_factor**2, 1)
    if search.pruner == "none" or len(search.objectives) > 1 or first >= num_steps:
        return [num_steps]
    found = []
    while first < num_steps:
        found.append(first)
        first *= search.reduction_factor
    return [*found, num_steps]


class Study:
    """One study, seen by one worker.

    Args:
        config: the search's; its `seed` is the sampler's.
        folder: `output_dir`, which exists.
        num_steps: of a whole trial.

    Raises:
        RunError: the study cannot be opened, or is one of other objectives.
        ConfigError: no Optuna, or a storage that is none.
    """

    def __init__(self, config: RunConfig, folder: Path, num_steps: int):
        self.search, self.num_steps = config.search, num_steps
        self.rungs = rungs(config.search, num_steps)
        self._distributions = space.distributions(config.search.space)
        self._journal = folder / JOURNAL if config.search.storage is None else None
        self._folder, self._leases = folder / "workers", Leases()
        self.worker = secrets.token_hex(4)
        self._lease: Any = None
        self._unsigned: dict[int, float] = {}  # number of a trial that nobody has signed -> when it was seen first
        with _explained(self.where):
            self._study = self._open(config.seed)
        self._heartbeat = Heartbeat(self._beat, _BEAT_SECONDS)
        if self._journal is not None:
            self._folder.mkdir(exist_ok=True)
            self._lease = self._leases.take(self._folder / self.worker)

    @property
    def where(self) -> str:
        """Where the study lies, without a password."""
        return str(self._journal) if self._journal is not None else hidden(self.search.storage or "")

    def _open(self, seed: int) -> "optuna.Study":
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            storage=self._storage(), study_name=self.search.study_name, directions=self.search.directions,
            load_if_exists=True, pruner=self._pruner(),
        )  # fmt: skip
        if [d.name.lower() for d in study.directions] != self.search.directions:
            raise RunError("the study has other objectives", where=self.where, fix="another output_dir or study_name")
        # another worker, and another start, must not draw what the first has drawn
        study.set_user_attr(f"worker {self.worker}", asdict(this_process()))
        workers = [name for name in study.user_attrs if name.startswith("worker ")]
        order = 1000 * workers.index(f"worker {self.worker}")
        if self._journal is None:  # a database gives them back by the alphabet
            order = 1000 * (len(workers) - 1) + int(self.worker, 16) % 1000 * (len(workers) > 1)
        study.sampler = self._sampler(seed + order)
        return study

    def _storage(self) -> Any:
        import optuna

        if self._journal is not None:
            from jaxlean.search.journal import Journal

            return optuna.storages.JournalStorage(Journal(self._journal))
        url = _expanded(self.search.storage or "")
        sqlite = url.startswith("sqlite")
        waits = {} if "timeout=" in url else {"connect_args": {"timeout": _LOCKED_SECONDS}}
        with _quiet():
            return optuna.storages.RDBStorage(
                url, heartbeat_interval=_BEAT_SECONDS, grace_period=_DEAD_SECONDS,
                heartbeat_stale_trial_callback=lambda study, trial: self._try_again(trial, lost=True),
                # others may be writing for a while
                engine_kwargs=waits if sqlite else {"pool_pre_ping": True},
            )  # fmt: skip

    def _pruner(self) -> Any:
        from optuna import pruners

        first, factor = self.rungs[0], self.search.reduction_factor
        if self.rungs == [self.num_steps]:
            return pruners.NopPruner()
        match self.search.pruner:
            case "hyperband":
                return pruners.HyperbandPruner(first, self.num_steps, factor)
            case "asha":
                return pruners.SuccessiveHalvingPruner(first, factor)
            case _:
                return pruners.MedianPruner(n_startup_trials=self.search.startup_trials // 2)

    def _sampler(self, seed: int) -> Any:
        import optuna

        if self.search.sampler == "random":
            return optuna.samplers.RandomSampler(seed)
        with _quiet():
            return optuna.samplers.TPESampler(
                multivariate=True, group=True, constant_liar=True, seed=seed,
                n_startup_trials=self.search.startup_trials,
            )  # fmt: skip

    def keep(self, name: str, value: dict[str, str]) -> dict[str, str]:
        """Keep something, unless a worker has kept something under that name before; what was kept first."""
        with _explained(self.where):
            if not any(key.startswith(f"{name} ") for key in self._study.user_attrs):
                # each under its own name: of two that come at once the second does not write over the first
                self._study.set_user_attr(f"{name} {self.worker}", value)
            kept = self._study.user_attrs
            first: dict[str, str] = kept[next(key for key in kept if key.startswith(f"{name} "))]
            return first

    # ---- trials

    @property
    def trials(self) -> "list[FrozenTrial]":
        """All that were asked for, by all workers."""
        with _explained(self.where):
            return self._study.get_trials(deepcopy=False)

    def ask(self) -> "Trial | None":
        """The next trial; None when there are enough, or they have cost enough.

        Raises:
            RunError: hardly any of them can be started.
        """
        with _explained(self.where):
            self._rescue()
            if self.reason_to_end() is not None:
                return None
            with _quiet():
                trial = self._study.ask(self._distributions)
            if self._journal is None:
                self._heartbeat.add(trial._trial_id)
            trial.set_user_attr("worker", self.worker)
            # several workers may have seen room for one
            if len([t for t in self.trials if t.number < trial.number and _counts(t)]) >= self.search.num_trials:
                self._heartbeat.leave(trial._trial_id)
                self._study.tell(trial, state=_state("FAIL"))
                return None
        return trial

    def reason_to_end(self) -> str | None:
        """Why no trial is to be started any more."""
        trials = self.trials
        started = [t for t in trials if _counts(t)]
        refused = [t for t in trials if _is_refused(t)]
        if len(refused) > _MOST_REFUSED * (len(started) + 4):
            why = refused[-1].user_attrs.get("refused", f"its process died, {_MOST_LOST} times")
            raise RunError(
                "hardly any trial of this space can be started", where="search.space",
                got=f"{len(refused)} refused, {len(started)} started; the last: {why}",
                fix="leave out what does not fit or does not go together",
            )  # fmt: skip
        if len(started) >= self.search.num_trials:
            return f"{len(started)} trials"
        return self.too_dear()

    def too_dear(self) -> str | None:
        """Whether `search.max_usd` is spent, in words: by trials, lost ones too, and by loading and compiling."""
        if self.search.max_usd is None:
            return None
        spent = sum(t.user_attrs.get("usd") or 0.0 for t in self.trials) + self.setup_usd
        if spent < self.search.max_usd:
            return None
        return f"search.max_usd=${self.search.max_usd:g} is spent (${spent:.4f})"

    @property
    def setup_usd(self) -> float:
        """What all workers have paid for no trial in particular."""
        with _explained(self.where):
            return sum(value for name, value in self._study.user_attrs.items() if name.startswith("setup_usd "))

    def note_setup(self, usd: float) -> None:
        """Keep what this worker has paid so far for no trial in particular."""
        with _explained(self.where):
            self._study.set_user_attr(f"setup_usd {self.worker}", usd)

    def note(self, trial: "Trial", **notes: Any) -> None:
        """Keep something beside a trial; where others took it over, nothing."""
        with _explained(self.where), _unless_ended():
            for name, value in notes.items():
                trial.set_user_attr(name, value)

    def report(self, trial: "Trial", step: int, value: float) -> bool:
        """Tell the quality at a rung that is not the last; whether the trial goes on."""
        with _explained(self.where), _unless_ended():
            trial.report(value, step)
            return not trial.should_prune()
        return False

    def finish(self, trial: "Trial", values: Sequence[float] | None, **notes: Any) -> None:
        """The end of a trial: with its values, or given up without. Where others took it over, nothing: then it has
        failed, and is tried again.
        """
        self._heartbeat.leave(trial._trial_id)
        self.note(trial, **notes)
        with _explained(self.where), _unless_ended():
            complete = values is not None and all(math.isfinite(v) for v in values)
            state = _state("COMPLETE" if complete else "PRUNED")
            self._study.tell(trial, values if complete else None, state, skip_if_finished=True)

    def refuse(self, trial: "Trial", reason: str) -> None:
        """A trial that was not started: it would not fit, or its values do not go together."""
        self.finish(trial, None, refused=reason)

    def leave(self, trials: "Sequence[tuple[Trial, Mapping[str, Any]]]", *, lost: bool = False) -> None:
        """Give back what this worker has begun and will not end: somebody else tries the same values.

        Args:
            trials: each with what is kept beside it: what it has cost.
            lost: what ended them may have been their own doing.
        """
        with _explained(self.where):
            # what has raised may have come amid a word with the storage: not with that view of it
            import optuna

            self._study = optuna.load_study(study_name=self.search.study_name, storage=self._storage())
            for asked, notes in trials:
                self._heartbeat.leave(asked._trial_id)
                trial = self.trials[asked.number]
                with _unless_ended():
                    for name, value in notes.items():
                        self._study._storage.set_trial_user_attr(trial._trial_id, name, value)
                self._again(trial, lost=lost)

    def close(self) -> None:
        """The worker is done."""
        self._heartbeat.close()
        if self._lease is not None:
            self._lease.release()

    def best(self) -> "list[FrozenTrial]":
        """The best trial; of several objectives those that no other beats in all."""
        from optuna.trial import TrialState

        done = [t for t in self.trials if t.state == TrialState.COMPLETE]
        if len(self.search.objectives) > 1:
            return self._study.best_trials if done else []
        sign = 1 if self.search.directions[0] == "minimize" else -1
        return sorted(done, key=lambda t: (sign * t.values[0], t.number))[:1]

    def _beat(self, trial_id: int) -> None:
        """As Optuna does inside of its own loop, which is not ours; only a database has it."""
        self._study._storage.record_heartbeat(trial_id)  # type: ignore[attr-defined]

    def _rescue(self) -> None:
        """See to the trials of workers that are gone."""
        if self._journal is None:
            import optuna

            with _quiet():
                optuna.storages.fail_stale_trials(self._study)
        for trial in self.trials:
            worker = trial.user_attrs.get("worker")
            if trial.state.name != "RUNNING" or worker == self.worker:
                continue
            if self._is_lost(trial) if worker is None else self._is_gone(str(worker)):
                self._again(trial, lost=True)

    def _is_gone(self, worker: str) -> bool:
        """Whether a worker is known to be dead."""
        if self._journal is not None:
            return self._leases.is_free(self._folder / worker)
        # those elsewhere are known by their trials' heartbeat; one of this machine is seen to have ended
        holder = self._study.user_attrs.get(f"worker {worker}")
        return isinstance(holder, dict) and Holder(**holder).is_gone

    def _is_lost(self, trial: "FrozenTrial") -> bool:
        """Whether a trial that nobody has signed is nobody's: its worker was killed before it could."""
        if self._journal is not None:  # else it may be anybody's who is at work
            return all(map(self._is_gone, self._others()))
        first = self._unsigned.setdefault(trial.number, time.monotonic())
        return time.monotonic() - first > _DEAD_SECONDS

    def _others(self) -> set[str]:
        return {file.name.partition(".")[0] for file in self._folder.glob("*.lease")} - {self.worker}

    def _again(self, trial: "FrozenTrial", *, lost: bool) -> None:
        """Count a trial as failed, and have its values tried again."""
        try:
            self._study.tell(trial.number, state=_state("FAIL"))
        except UserError:
            raise
        except (ValueError, RuntimeError):
            return  # another worker saw it first
        self._try_again(trial, lost=lost)

    def _try_again(self, trial: "FrozenTrial", *, lost: bool) -> None:
        times = trial.user_attrs.get("lost", 0) + lost
        if times < _MOST_LOST:
            self._study.enqueue_trial(trial.params, user_attrs={"again": trial.number, "lost": times})


def _counts(trial: "FrozenTrial") -> bool:
    """Whether it is one of `search.num_trials`."""
    return trial.state.name in ("RUNNING", "COMPLETE", "PRUNED") and not _is_refused(trial)


def _is_refused(trial: "FrozenTrial") -> bool:
    """Whether it could not be started, or has killed whoever tried it."""
    given_up = trial.state.name == "FAIL" and trial.user_attrs.get("lost", 0) == _MOST_LOST - 1
    return given_up or bool(trial.user_attrs.get("refused"))


def _state(name: str) -> Any:
    from optuna.trial import TrialState

    return TrialState[name]


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """What goes wrong with the storage, as something to mend."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            "the search needs a package that is not installed", got=error,
            fix="pip install 'jaxlean[search]', and what the database of search.storage needs",
        ) from error  # fmt: skip
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("optuna", "sqlalchemy") and not isinstance(error, OSError):
            raise
        got = hidden(f"{type(error).__name__}: {error}".splitlines()[0])
        cause = error.__cause__
        if cause is not None:
            got += f" ({hidden(str(cause).splitlines()[0])})"
        fix = "see to the storage; what is in it is not lost: the same command goes on"
        raise RunError("the study cannot be read or written", where=where, got=got, fix=fix) from None


@contextmanager
def _unless_ended() -> Iterator[None]:
    """Nothing is told of a trial that others have ended, since they took its worker for dead."""
    from optuna.exceptions import UpdateFinishedTrialError

    try:
        yield
    except UpdateFinishedTrialError:
        pass


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's words on what it has had for years, and on a heartbeat that somebody else beats (`alive`)."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.filterwarnings("ignore", "Heartbeat of storage", UserWarning)
        yield


def _expanded(url: str) -> str:
    try:
        return expand(url)
    except KeyError as error:
        raise ConfigError(f"search.storage: {error.args[0]} is not set in the environment", got=url) from None
