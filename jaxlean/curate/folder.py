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
from jaxlean.curate.corpus import Corpus
from jaxlean.curate.found import write_text
from jaxlean.curate.output import DROPPED, KEPT
from jaxlean.errors import RunError
from jaxlean.run.folder import changed, check_writable

_CONFIG, _DATA = "curate.yaml", "work/data.json"
REPORT = "report.json"
_RESULTS = (KEPT, DROPPED, REPORT, "report.md", "histograms.png", "work")
# What rows come out does not hang on these.
_FREE = {"output_dir", "report", "cost", "compilation_cache", "mesh", "distributed"}
_FREE_IN_CURATE = {"processes", "engine", "examples"}


def claim(folder: Path, config: RunConfig, *, resume: bool, overwrite: bool) -> None:
    """Make the folder this job's and write `curate.yaml` into it.

    Raises:
        RunError: it holds a job, or a training run, and neither was asked for; both were; the job that is there is
            another; it holds what is read; it cannot be written.
    """
    if resume and overwrite:
        raise RunError("--resume and --overwrite exclude each other")
    check_writable(folder)
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
    _check_spares_inputs(folder, config)
    try:
        if overwrite:
            for name in results:
                shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
        (folder / "work").mkdir(parents=True, exist_ok=True)
        write_text(folder / _CONFIG, settings.dump(config))
    except OSError as error:
        raise RunError("the output folder cannot be written", where=folder, got=error) from error


def check_same_data(folder: Path, corpus: Corpus) -> None:
    """What is kept of the rows must be of these rows.

    Raises:
        RunError: a file has changed since the job was started.
    """
    now: dict[str, Any] = {}
    for source, part in zip(corpus.sources, corpus.parts, strict=True):
        file = Path(source.path)
        found = file.stat() if file.is_file() else None
        now[source.path] = [len(part), *((found.st_size, found.st_mtime_ns) if found else ())]
    file = folder / _DATA
    if not file.exists():
        write_text(file, json.dumps(now))
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    for path, seen in now.items():
        if before.get(path) != seen:
            raise RunError(
                "--resume with other data: the file has changed since the job was started",
                where=path,
                fix="start anew with --overwrite or another output_dir",
            )


def release(folder: Path) -> None:
    """Nothing was done that is worth keeping: the same command may start again."""
    shutil.rmtree(folder / "work")
    (folder / _CONFIG).unlink()


def finished(folder: Path) -> dict[str, Any] | None:
    """The report of a job that has ended, or None."""
    if not (folder / REPORT).exists():
        return None
    report: dict[str, Any] = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    return report


def _check_same(folder: Path, config: RunConfig) -> None:
    file = folder / _CONFIG
    try:
        before = settings.build(yaml.safe_load(file.read_text(encoding="utf-8")), where=file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RunError("the config of the job cannot be read", where=file, got=error) from error
    old, new = (
        one.model_dump(exclude=dict.fromkeys(_FREE, True) | {"curate": _FREE_IN_CURATE}) for one in (before, config)
    )
    for key, one, other in _differences(old, new):
        raise changed(folder, key, one, other)


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


def _check_spares_inputs(folder: Path, config: RunConfig) -> None:
    """What is read must not be what is written."""
    for key, sources in (("data.train", config.data.train), ("data.eval", config.data.eval)):
        for source in sources or []:
            place = Path(source.path).resolve()
            if place == folder.resolve() or place.parent == folder.resolve():
                raise RunError(
                    f"{key} lies in the output folder", where=source.path, fix="output_dir=... names another"
                )
