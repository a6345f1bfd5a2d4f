"""The output folder: claimed by one job, gone on with or replaced only when asked."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from jaxlean import config as settings
from jaxlean.config import RunConfig
from jaxlean.curate.found import write_text
from jaxlean.curate.inputs import Stamps, rows_read
from jaxlean.curate.layout import KEPT, KEPT_OF_SOURCES
from jaxlean.curate.output import DROPPED
from jaxlean.curate.steps import folder_of, planned
from jaxlean.errors import RunError
from jaxlean.run.folder import changed, check_links, check_writable, make, remove
from jaxlean.run.lock import FolderLock

_CONFIG, _INPUTS = "curate.yaml", "inputs.json"
REPORT = "report.json"
# In the order in which they may go: without a report the job has not ended, and stamps outlive what was made of them.
_RESULTS = (REPORT, KEPT, KEPT_OF_SOURCES, DROPPED, "report.md", "histograms.png", "work", _INPUTS)
# What rows come out does not hang on these.
_FREE = {"output_dir", "report", "cost", "compilation_cache", "mesh", "distributed"}
_FREE_IN_CURATE = {"processes", "engine", "examples"}


def claim(folder: Path, config: RunConfig, *, resume: bool, overwrite: bool, lock: FolderLock) -> None:
    """Make the folder this job's and write `curate.yaml` into it.

    Args:
        lock: of the folder. It is taken.

    Raises:
        RunError: it holds a job, or a training run, and neither was asked for; both were; the job that is there is
            another; another process writes it; it cannot be written.
    """
    if resume and overwrite:
        raise RunError("--resume and --overwrite exclude each other")
    check_writable(folder)
    make(folder)
    lock.acquire()
    ours = (folder / _CONFIG).exists()
    results = [name for name in _RESULTS if os.path.lexists(folder / name)]
    if (folder / "config.yaml").exists() or (results and not ours):
        got = "config.yaml: a training run" if (folder / "config.yaml").exists() else ", ".join(results)
        raise RunError(
            "the output folder holds what no `jaxlean curate` wrote",
            where=folder,
            got=got,
            fix="output_dir=... names another folder",
        )
    if ours and not (resume or overwrite):
        raise RunError(
            "the output folder already holds a curated dataset, or the start of one",
            where=folder,
            fix="--resume goes on with it, --overwrite replaces it, output_dir=... leaves it alone",
        )
    if ours and resume:
        _check_same(folder, config)
    check_links(folder, [_CONFIG, *(() if overwrite else _RESULTS)])
    try:
        if overwrite:
            for name in results:
                remove(folder / name)
        write_text(folder / _CONFIG, settings.dump(config))  # first: what lies there without it is not ours
    except OSError as error:
        raise RunError("the output folder cannot be written", where=folder, got=error) from error


def check_apart(folder: Path, config: RunConfig) -> None:
    """What is read must not be what is written: neither may lie in the other.

    Raises:
        RunError: rows are read from the output folder, or it lies in a folder that rows are read from.
    """
    own = folder.resolve()
    for key, path in rows_read(config):
        place = Path(path).resolve()
        if not place.exists():  # a hub id, or an error that opening it tells better
            continue
        inside = place.is_relative_to(own)
        if inside or (place.is_dir() and own.is_relative_to(place)):
            raise RunError(
                f"{key} lies in the output folder" if inside else f"the output folder lies in a folder of {key}",
                where=path,
                got=f"output_dir: {folder}",
                fix="output_dir=... names another, beside the data",
            )


def check_same_inputs(folder: Path, now: Stamps) -> None:
    """What is kept of the rows must be of these rows, and of these models. The first time their stamps are kept.

    Raises:
        RunError: a file has changed since the job was started.
    """
    file = folder / _INPUTS
    if not file.exists():
        write_text(file, json.dumps(now, indent=1, ensure_ascii=False))
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    for path in sorted(before.keys() | now.keys()):
        if before.get(path) != now.get(path):
            how = "has changed" if path in before and path in now else "is gone" if path in before else "is new"
            raise RunError(
                f"--resume with other data: the file {how} since the job was started",
                where=path,
                fix="start anew with --overwrite or another output_dir",
            )


def release(folder: Path) -> None:
    """Nothing was done that is worth keeping: the same command may start again."""
    shutil.rmtree(folder / "work", ignore_errors=True)
    (folder / _INPUTS).unlink(missing_ok=True)
    (folder / _CONFIG).unlink()


def finished(folder: Path) -> dict[str, Any] | None:
    """The report of a job that has ended, or None."""
    if not (folder / REPORT).exists():
        return None
    shutil.rmtree(folder / "work", ignore_errors=True)  # killed after its last word, it left this behind
    report: dict[str, Any] = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    return report


def _check_same(folder: Path, config: RunConfig) -> None:
    file = folder / _CONFIG
    try:
        before = settings.build(yaml.safe_load(file.read_text(encoding="utf-8")), where=file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RunError("the config of the job cannot be read", where=file, got=error) from error
    old, new = (
        one.model_dump(exclude=dict.fromkeys(_FREE, True) | {"curate": _FREE_IN_CURATE | {"steps"}})
        for one in (before, config)
    )
    for key, one, other in _differences(old, new):
        raise changed(folder, key, one, other)
    _check_same_steps(folder, before, config)


def _check_same_steps(folder: Path, before: RunConfig, config: RunConfig) -> None:
    """Steps that nothing has been computed of may be others than before: a mistake in a late one can be mended."""
    was, now = planned(before), planned(config)
    begun = max((i for i, step in enumerate(was, 1) if _holds_any(folder / "work" / folder_of(i, step))), default=0)
    whole = (folder / REPORT).exists()
    old, new = ([step.model_dump() for step in (steps if whole else steps[:begun])] for steps in (was, now))
    own = len(was) - len(before.curate.steps)  # leakage, which the config does not name
    for i, (one, other) in enumerate(zip(old, new, strict=False)):
        for key, *values in _differences(one, other, f"curate.steps.{i - own}"):
            raise changed(folder, key, *values)
    if len(old) != len(new):
        raise changed(folder, "curate.steps", [step.name for step in was], [step.name for step in now])


def _holds_any(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, old, new) of each setting that is another, as deep as both have it."""
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        parts: Any = ((name, old[name], new[name]) for name in old)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        parts = ((i, *pair) for i, pair in enumerate(zip(old, new, strict=True)))
    else:
        if old != new:
            yield key, old, new
        return
    for name, one, other in parts:
        yield from _differences(one, other, f"{key}.{name}" if key else str(name))
