"""One search, top to bottom: config, study, trials, report, `best.yaml`.

The same command, started again or on another machine beside it, goes on with the same study.
"""

import importlib.util
import os
import time
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from jaxlean import config as settings
from jaxlean.config import RunConfig
from jaxlean.config.evaluation import METRICS
from jaxlean.cost.price import lookup
from jaxlean.errors import ConfigError, Preempted, RunError
from jaxlean.redact import hidden
from jaxlean.run import devices
from jaxlean.run.folder import SEARCH, check_links, check_writable, make, remove
from jaxlean.run.inputs import batches_of, tokenizer_of
from jaxlean.run.job import base, resolved, rows_of_step
from jaxlean.run.lease import DEAD_SECONDS, Leases
from jaxlean.run.peers import Peers
from jaxlean.run.preemption import Preemption
from jaxlean.search import report
from jaxlean.search.in_process import InProcess, cannot_share
from jaxlean.search.processes import Processes
from jaxlean.search.sources import FREE, check_same, check_settings, own_settings, sources
from jaxlean.search.space import check
from jaxlean.search.study import JOURNAL, Study
from jaxlean.xla.compile import use_cache
from jaxlean.xla.mesh import make_mesh, split_host

# What a search writes into its folder; `--overwrite` removes these and nothing else.
_RESULTS = ("trials.jsonl", "summary.json", "search.png", "trials", "workers", JOURNAL)


def search(config: RunConfig, *, overwrite: bool = False) -> dict[str, Any]:
    """Try settings as `config.search` says, and write what was found into `output_dir`.

    Args:
        config: what all trials have in common, and the space.
        overwrite: remove the search that is there.

    Returns:
        what `summary.json` holds.

    Raises:
        UserError: what the user can mend.
        Preempted: SIGTERM or Ctrl-C came; the trials at hand are left to whoever goes on.
    """
    with Preemption() as preemption:
        try:
            return _search(config, overwrite, preemption)
        except Preempted as preempted:
            preemption.saved = (Path(config.output_dir) / SEARCH).exists()
            preempted.goes_on = "the same command goes on with the study; the trials at hand are tried again"
            raise


def _search(config: RunConfig, overwrite: bool, preemption: Preemption) -> dict[str, Any]:
    started = time.perf_counter()
    console = Peers().console()
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)

    # ---- config
    config = _checked(config)
    folder = Path(config.output_dir)
    mesh, kind, reason = _devices(config)
    price = lookup(kind, mesh.size, config.cost)
    dear = [name for name in ("search.max_usd", "search.objectives: usd") if _asks_for(config, name)]
    if dear and price.usd_per_hour is None:
        raise ConfigError(f"{dear[0]} needs a price", got=price.source, fix="cost.usd_per_hour=...")
    if config.search.isolation == "program" and reason is not None:
        raise ConfigError("search.isolation: program is not for such a run", got=reason, fix="search.isolation=process")
    apart = config.search.isolation == "process" or reason is not None
    if overwrite and config.search.storage is not None:
        raise ConfigError(
            "--overwrite removes no study from a database", got=hidden(config.search.storage), fix=_anew(config)
        )

    # ---- study
    num_steps, made_of, own = _num_steps(config, mesh), sources(config), own_settings(config)
    is_new = _claim(folder, config, overwrite=overwrite)
    study = Study(config, folder, num_steps)
    with closing(study):
        try:
            check_settings(study.keep("settings", own), own, study.where, anew=_anew(config))
            check_same(study.keep("made of", made_of), made_of, study.where, anew=_anew(config))
        except RunError:
            if is_new:
                _unclaim(folder)
            raise
        rungs = f"compared at {study.rungs}" if len(study.rungs) > 1 else "none given up before its end"
        say(f"study: {study.where}, {config.search.num_trials} trials of {num_steps:,} steps, {rungs}")
        say(f"to look at it: optuna-dashboard {study.where}")
        before = len(study.trials)
        if before:
            say(f"going on: {before} trials are there")

        def told(trial: Any) -> None:
            row = report.row_of(next(t for t in study.trials if t.number == trial.asked.number), config.search)
            if row["state"] == "fail":
                say(f"trial {trial.asked.number}: dropped, as another worker has taken it over")
                return
            best = study.best() if len(config.search.objectives) == 1 else []
            say(report.line_of(row, num_steps, best[0].values[0] if best else None, config.search.objectives[0]))

        # ---- trials
        runner: InProcess | Processes
        if apart:
            say(f"each trial is a process{f', for {reason}' if reason is not None else ''}")
            runner = Processes(config, study, price, folder / "trials", say, told, preemption.settle)
        else:
            runner = InProcess(config, study, mesh, price, say, told, preemption.settle)
        for name in ("stopping", "load_best", "shots"):
            if getattr(config.eval, name):
                say(f"eval.{name} is not for trials: it stands in best.yaml")
        runner.run()
    others = sum(trial.state.name == "RUNNING" for trial in study.trials)
    say(f"the search ends: {study.reason_to_end()}")
    if others:
        say(f"others are at work on {others} of them: whoever ends last writes what is best of all")

    # ---- report
    rows = [report.row_of(trial, config.search) for trial in study.trials]
    seconds = time.perf_counter() - started
    of_worker = {
        "compiled": runner.compiled, "members": runner.members, "isolation": "process" if apart else "program",
        "trials_here": sum(row["worker"] == study.worker and bool(row["steps"]) for row in rows),
        "seconds_here": seconds, "usd_here": price.usd(seconds), "setup_seconds_here": runner.setup_seconds,
        "storage": study.where, "num_steps": num_steps,
    }  # fmt: skip
    best = [trial.number for trial in study.best()]
    summary = report.summarise(config, rows, best, num_steps=num_steps, of_worker=of_worker, setup_usd=study.setup_usd)
    picture = importlib.util.find_spec("matplotlib") is not None
    report.write_all(folder, config, rows, summary, picture)
    report.print_table(summary, rows, console)
    if not best:
        fix = "more trials, or another space" if study.too_dear() is None else "a higher search.max_usd, which goes on"
        raise RunError("no trial came to its end", where=folder, fix=fix)
    say(f"best: jaxlean finetune {folder / 'best.yaml' if len(best) == 1 else folder / 'best-0.yaml'}")
    return summary


def _devices(config: RunConfig) -> tuple[Any, str, str | None]:
    """(a mesh as trials have it, the kind of its devices, why trials cannot share a program; None where they can)."""
    reason = cannot_share(config)
    apart = reason is not None or config.search.isolation == "process"
    seen = devices.look() if devices.may_be_accelerated() else None
    if seen is not None and seen.platform != "cpu" and (apart or seen.num > 1):
        devices.leave()  # to the trials
        split_host(seen.num)
        mesh, kind = make_mesh(config.mesh), seen.kind
    else:
        split_host(config.mesh.host_devices)
        mesh = make_mesh(config.mesh)
        kind = mesh.devices.flat[0].device_kind
    use_cache(config.compilation_cache)
    if reason is None and mesh.size > 1:
        reason = f"a mesh of {mesh.size} devices (a worker for each, which sees it alone, would share a program)"
    return mesh, kind, reason


def _checked(config: RunConfig) -> RunConfig:
    """The config, where trials can be compared; with what its objectives need."""
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError("the search needs Optuna, which is not installed", fix="pip install 'jaxlean[search]'")
    check(config)
    if config.data.train is None:
        raise ConfigError("data.train is not set", fix="data.train=FILE, or a `data:` section in the config")
    if not config.data.eval and not config.data.eval_fraction:
        raise ConfigError(
            "trials are compared by held-out data, and there are none", where="data.eval",
            fix="data.eval=FILE, or data.eval_fraction=0.1",
        )  # fmt: skip
    if config.mesh.auto:
        raise ConfigError("mesh: auto is not for a search", fix="set the axes, or leave them: one process a device")
    measured = {
        "loss", "usd", "seconds", "bytes", "memory_bytes", *METRICS[config.task],
        *{"generate": ("exact_match",), "tag": ("precision", "recall")}.get(config.task, ()),
    }  # fmt: skip
    for name in config.search.objectives:
        if name not in measured:
            raise ConfigError(
                f"task: {config.task} has no {name}", where="search.objectives", got=name,
                wanted=" or ".join(sorted(measured)),
            )  # fmt: skip
    if "exact_match" in config.search.objectives:
        config = config.model_copy(update={"eval": config.eval.model_copy(update={"exact_match": True})})
    return config


def _anew(config: RunConfig) -> str:
    if config.search.storage is not None:
        return "another search.study_name and output_dir begin another study"
    return "--overwrite, or another output_dir"


def _asks_for(config: RunConfig, name: str) -> bool:
    return config.search.max_usd is not None if name == "search.max_usd" else "usd" in config.search.objectives


def _num_steps(config: RunConfig, mesh: Any) -> int:
    """Of a whole trial: `train.max_steps`, or what the epochs come to with the config's own settings."""
    if config.train.max_steps is not None:
        return config.train.max_steps
    config = resolved(config)
    model = base(config, mesh, shapes=True)
    batches = batches_of(config, model, tokenizer_of(model), rows=rows_of_step(config, mesh))
    batches.close()
    return batches.num_steps


def _claim(folder: Path, config: RunConfig, *, overwrite: bool) -> bool:
    """Make the folder this search's; one that is there goes on if it is the same. Whether there was none.

    Raises:
        RunError: it holds a run, another search, or cannot be written.
    """
    check_writable(folder)
    check_links(folder, [SEARCH, *_RESULTS])
    file = folder / SEARCH
    plain = config.model_copy(update={"output_dir": "", "report": RunConfig().report, "compilation_cache": True})
    try:
        if not file.exists() and any((folder / name).exists() for name in ("config.yaml", *_RESULTS)):
            raise RunError(
                "the output folder holds something else than a search", where=folder, fix="output_dir=... names another"
            )
        if file.exists() and overwrite:
            _check_alone(folder / "workers")
            for name in _RESULTS:
                if os.path.lexists(folder / name):
                    remove(folder / name)
            for best in report.best_files(folder):
                best.unlink()
        elif file.exists():
            before = settings.build(yaml.safe_load(file.read_text(encoding="utf-8")), where=file)
            old, new = (c.model_dump(mode="json", exclude={"output_dir", "report", "compilation_cache"})
                        for c in (before, config))  # fmt: skip
            old, new = (
                {"search": c["search"]} | c for c in (old, new)
            )  # what was asked for, before what follows from it
            for content in (old, new):
                for name in FREE:
                    del content["search"][name]
            differs = _first_difference(old, new)
            if differs is not None:
                path, was, wanted = differs
                raise RunError(
                    f"the output folder holds a search with another {path}", where=folder, got=wanted, wanted=was,
                    fix="the same config goes on with it, --overwrite replaces it, output_dir=... leaves it alone",
                )  # fmt: skip
        is_new = not file.exists()
        make(folder)
        (folder / "workers").mkdir(exist_ok=True)
        report.write(file, settings.dump(plain.model_copy(update={"output_dir": config.output_dir})))
        return is_new
    except OSError as error:
        raise RunError("the output folder cannot be written", where=folder, got=error) from error


def _unclaim(folder: Path) -> None:
    """Take back a claim that a study elsewhere has refused."""
    (folder / SEARCH).unlink(missing_ok=True)
    with suppress(OSError):  # what else is in it stays
        (folder / "workers").rmdir()
        folder.rmdir()


def _check_alone(workers: Path) -> None:
    """Raises RunError where somebody is at work in a study that is to be removed."""
    leases, began = Leases(), time.monotonic()
    while names := leases.alive(workers, ""):
        holder = leases.holder(workers / names[0])
        # who is silent for so long is dead; who is on this machine is known to live
        if (holder is not None and holder.is_here) or time.monotonic() - began > 1.5 * DEAD_SECONDS:
            raise RunError(
                "the search is not overwritten: others are at work in it", where=workers.parent, got=holder or names[0],
                fix="end them first, or output_dir=... names another folder",
            )  # fmt: skip
        time.sleep(0.5)


def _first_difference(old: Any, new: Any, path: str = "") -> tuple[str, Any, Any] | None:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            found = _first_difference(old.get(key), new.get(key), f"{path}.{key}" if path else key)
            if found is not None:
                return found
        return None
    return None if old == new else (path, old, new)
