"""The study: Optuna chooses what is tried next and what is given up; it lies on disk, and many workers share it.

Each worker asks for a trial, reports at the rungs, and tells what came of it. A worker that dies leaves a trial that is
neither: the others (or the next start) see that it is gone, count the trial as failed, and try the same values again.
One that was only stopped for a while (a suspended machine) finds its trial taken over, and drops it.
"""

import math
import secrets
import socket
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlean.config import RunConfig, SearchSection
from jaxlean.errors import ConfigError, RunError, UserError
from jaxlean.redact import expand, hidden
from jaxlean.run.lease import Leases
from jaxlean.search import space

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial, Trial

JOURNAL = "study.journal"
# A database tells workers apart by signs of life in seconds of its own clock.
_BEAT_SECONDS, _DEAD_SECONDS = 30, 120
# How long another one may hold an SQLite file; `?timeout=` in the URL says otherwise.
_LOCKED_SECONDS = 120
# Trials that could not be started, for each that was: then the space is at fault.
_MOST_REFUSED = 5


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
        self._beaten = -math.inf
        with _explained(self.where):
            self._study = self._open(config.seed)
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
        study.set_user_attr(f"worker {self.worker}", socket.gethostname())
        order = list(study.user_attrs).index(f"worker {self.worker}")
        study.sampler = self._sampler(seed + 1000 * order)
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
                heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=2),
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
        """What the first worker kept under a name; this is the first one where there is nothing."""
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
            trial.set_user_attr("worker", self.worker)
            # several workers may have seen room for one
            if len([t for t in self.trials if t.number < trial.number and _counts(t)]) >= self.search.num_trials:
                self._study.tell(trial, state=_state("FAIL"))
                return None
        return trial

    def reason_to_end(self) -> str | None:
        """Why no trial is to be started any more."""
        trials = self.trials
        started = [t for t in trials if _counts(t)]
        refused = [t for t in trials if t.user_attrs.get("refused")]
        if len(refused) > _MOST_REFUSED * (len(started) + 4):
            raise RunError(
                "hardly any trial of this space can be started", where="search.space",
                got=f"{len(refused)} refused, {len(started)} started; the last: {refused[-1].user_attrs['refused']}",
                fix="leave out what does not fit or does not go together",
            )  # fmt: skip
        if len(started) >= self.search.num_trials:
            return f"{len(started)} trials"
        return self.too_dear()

    def too_dear(self) -> str | None:
        """Whether `search.max_usd` is spent, in words."""
        spent = sum(t.user_attrs.get("usd") or 0.0 for t in self.trials)
        if self.search.max_usd is None or spent < self.search.max_usd:
            return None
        return f"search.max_usd=${self.search.max_usd:g} is spent (${spent:.4f})"

    def alive(self, trials: "Sequence[Trial]") -> None:
        """A sign of life of these trials, where a database wants one; costs nothing most of the time."""
        if self._journal is not None or time.monotonic() - self._beaten < _BEAT_SECONDS / 2:
            return
        self._beaten = time.monotonic()
        with _explained(self.where):
            for trial in trials:
                self._study._storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]

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
        self.note(trial, **notes)
        with _explained(self.where), _unless_ended():
            complete = values is not None and all(math.isfinite(v) for v in values)
            state = _state("COMPLETE" if complete else "PRUNED")
            self._study.tell(trial, values if complete else None, state, skip_if_finished=True)

    def refuse(self, trial: "Trial", reason: str) -> None:
        """A trial that was not started: it would not fit, or its values do not go together."""
        self.finish(trial, None, refused=reason)

    def leave(self, trials: "Sequence[Trial]") -> None:
        """Give back what this worker has begun and will not end: somebody else tries the same values."""
        with _explained(self.where):
            # what has raised may have come amid a word with the storage: not with that view of it
            import optuna

            self._study = optuna.load_study(study_name=self.search.study_name, storage=self._storage())
            for trial in trials:
                self._again(trial.number, dict(trial.params))

    def close(self) -> None:
        """The worker is done."""
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

    def _rescue(self) -> None:
        """See to the trials of workers that are gone."""
        if self._journal is None:
            import optuna

            with _quiet():
                optuna.storages.fail_stale_trials(self._study)
            return
        for trial in self.trials:
            worker = trial.user_attrs.get("worker")
            if trial.state.name != "RUNNING" or worker == self.worker:
                continue
            # killed before it could sign, it may be anybody's who is at work
            gone = self._is_gone(str(worker)) if worker is not None else all(map(self._is_gone, self._others()))
            if gone:
                self._again(trial.number, trial.params)

    def _is_gone(self, worker: str) -> bool:
        return self._leases.is_free(self._folder / worker)

    def _others(self) -> set[str]:
        return {file.name.partition(".")[0] for file in self._folder.glob("*.lease")} - {self.worker}

    def _again(self, number: int, params: dict[str, Any]) -> None:
        try:
            self._study.tell(number, state=_state("FAIL"))
        except UserError:
            raise
        except (ValueError, RuntimeError):
            return  # another worker saw it first
        self._study.enqueue_trial(params, user_attrs={"again": number})


def _counts(trial: "FrozenTrial") -> bool:
    """Whether it is one of `search.num_trials`."""
    return trial.state.name in ("RUNNING", "COMPLETE", "PRUNED") and not trial.user_attrs.get("refused")


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
