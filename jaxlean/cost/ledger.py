"""The ledger: every run, when it ends, is a row in a small SQLite file, and rows are summed by who pays.

    ~/.local/share/jaxlean/ledger.sqlite          (cost.ledger=FILE names another, false none)

A run that is resumed is the same row, with its whole cost. The columns are the figures that teams account by: cost per
model trained, training time, accelerator utilization, energy per model, quality kept.
"""

import contextlib
import json
import os
import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from jaxlean.errors import RunError

# How long to wait for another run that writes the file.
_BUSY_SECONDS = 10.0
_VERSION = 1
# What rows are summed by -> the column, or what SQLite makes of one.
GROUPS = {
    "project": "project",
    "model": "model",
    "month": "substr(started, 1, 7)",
    "person": "person",
    "device": "device",
    "status": "status",
    "tag": "tag.value",
}


@dataclass(frozen=True)
class Entry:
    """One run, as it ended; None where something is not known.

    Args:
        run: its id, the same for all processes of a run that was resumed.
        started, ended: UTC, ISO 8601; of the first process, of the last.
        project, person, tags: who pays, who ran it, what else it belongs to.
        model, task, folder, name: what was trained, and where it lies.
        status: as in summary.json.
        device, num_devices: that it ran on.
        seconds: wall time.
        accelerator_hours: wall time of all devices.
        accelerator_utilization: share of the wall time in which devices computed steps.
        steps, tokens: trained.
        flops: of matrix products.
        mfu: model FLOPs utilisation.
        peak_memory_bytes: of one device.
        kwh, energy_source, gco2e: energy, how that is known, and what it emitted.
        usd, price_source: what it cost, and by which price.
        metric: what quality is measured in ("loss", "exact_match", ...).
        quality_before, quality_after, quality_reference: of the base, of the result, of a teacher.
        version: of jaxlean.
    """

    run: str
    started: str
    ended: str
    project: str
    person: str
    model: str
    task: str
    folder: str
    name: str | None
    status: str
    device: str
    num_devices: int
    seconds: float
    accelerator_hours: float
    accelerator_utilization: float | None
    steps: int
    tokens: int
    flops: float | None
    mfu: float | None
    peak_memory_bytes: int | None
    kwh: float | None
    energy_source: str | None
    gco2e: float | None
    usd: float | None
    price_source: str
    metric: str | None
    quality_before: float | None
    quality_after: float | None
    quality_reference: float | None
    version: str
    tags: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Sum:
    """Runs of one group together.

    Args:
        group: its name.
        runs: of any status.
        completed: models that were trained to the end.
        hours: wall time.
        accelerator_hours: of all devices.
        accelerator_utilization: share of the wall time in which devices computed steps, of runs that know it.
        tokens: trained.
        kwh, gco2e, usd: of runs that know it; None where none does.
        usd_unfinished: of `usd`, what runs cost that ended in no model.
        unpriced: runs whose price is not known.
        share: of all dollars.
    """

    group: str
    runs: int
    completed: int
    hours: float
    accelerator_hours: float
    accelerator_utilization: float | None
    tokens: int
    kwh: float | None
    gco2e: float | None
    usd: float | None
    usd_unfinished: float | None
    unpriced: int
    share: float | None

    @property
    def usd_per_model(self) -> float | None:
        """Cost per model trained: what failed is paid by what was finished."""
        return self.usd / self.completed if self.completed and self.usd is not None else None

    @property
    def kwh_per_model(self) -> float | None:
        """Energy per model trained."""
        return self.kwh / self.completed if self.completed and self.kwh is not None else None


def default_file() -> Path:
    """Where the user's ledger is: the platform's folder for data that is not to be lost."""
    given = os.environ.get("XDG_DATA_HOME", "")
    if os.path.isabs(given):
        folder = Path(given)
    elif sys.platform == "win32":
        folder = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        folder = Path.home() / "Library" / "Application Support"
    else:
        folder = Path.home() / ".local" / "share"
    return folder / "jaxlean" / "ledger.sqlite"


def file_of(setting: bool | str) -> Path | None:
    """The file that `cost.ledger` means; None: no ledger."""
    if setting is False:
        return None
    return default_file() if setting is True else Path(setting).expanduser()


def enter(file: Path, entry: Entry) -> None:
    """Write a run's row, or write it anew.

    Raises:
        RunError: the file cannot be written, or is no ledger.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(file, error) from None
    values = asdict(entry) | {"tags": json.dumps(entry.tags)}
    names = ", ".join(values)
    new = ", ".join(f"{name} = excluded.{name}" for name in values if name not in ("run", "started"))
    statement = f"INSERT INTO runs ({names}) VALUES ({', '.join(f':{name}' for name in values)})"
    with _opened(file, write=True) as ledger:
        ledger.execute(f"{statement} ON CONFLICT (run) DO UPDATE SET {new}", values)


def entries(file: Path, *, since: str | None = None, where: Mapping[str, str] | None = None) -> list[Entry]:
    """The rows, oldest first.

    Args:
        since: ISO date; earlier starts are left out.
        where: a key of `GROUPS` -> the value wanted.

    Raises:
        RunError: no such file, it is no ledger, or it cannot be read.
    """
    condition, values = _condition(since, where)
    names = ", ".join(f"runs.{known.name}" for known in fields(Entry))
    with _opened(file) as ledger:
        found = ledger.execute(f"SELECT DISTINCT {names} FROM {_source(where)} {condition} ORDER BY started", values)
        return [Entry(**(dict(row) | {"tags": json.loads(row["tags"])})) for row in found]


def sums(file: Path, by: str, *, since: str | None = None, where: Mapping[str, str] | None = None) -> list[Sum]:
    """Groups, the dearest first; a run with several tags counts in each.

    Args:
        by: a key of `GROUPS`.
        since, where: as `entries`.

    Raises:
        RunError: as `entries`.
    """
    condition, values = _condition(since, where)
    both = dict(where or {}) | {by: ""}
    query = f"""
        SELECT {GROUPS[by]} AS grouped, COUNT(*) AS runs, SUM(status = 'completed') AS completed,
          SUM(seconds) / 3600 AS hours, SUM(accelerator_hours) AS accelerator_hours,
          SUM(accelerator_utilization * seconds) / SUM(iif(accelerator_utilization IS NULL, 0, seconds))
            AS accelerator_utilization,
          SUM(tokens) AS tokens, SUM(kwh) AS kwh, SUM(gco2e) AS gco2e, SUM(usd) AS usd,
          SUM(iif(status = 'completed', 0, usd)) AS usd_unfinished, SUM(usd IS NULL) AS unpriced
        FROM {_source(both)} {condition} GROUP BY grouped ORDER BY usd DESC, grouped"""
    with _opened(file) as ledger:
        found = [dict(row) for row in ledger.execute(query, values)]
        paid = ledger.execute(f"SELECT SUM(usd) FROM {_source(where)} {condition}", values).fetchone()[0]
    rows = []
    for row in found:
        name = row.pop("grouped")
        share = row["usd"] / paid if paid and row["usd"] is not None else None
        rows.append(Sum(group="-" if name is None else str(name), share=share, **row))
    return rows


def _source(where: Mapping[str, str] | None) -> str:
    # a run without tags is a row with none
    return "runs LEFT JOIN json_each(runs.tags) AS tag" if "tag" in (where or {}) else "runs"


def _condition(since: str | None, where: Mapping[str, str] | None) -> tuple[str, Sequence[str]]:
    parts = [("started >= ?", since)] if since is not None else []
    parts += [(f"{GROUPS[key]} = ?", value) for key, value in (where or {}).items()]
    return ("WHERE " + " AND ".join(text for text, _ in parts) if parts else ""), [value for _, value in parts]


@contextlib.contextmanager
def _opened(file: Path, *, write: bool = False) -> Iterator[sqlite3.Connection]:
    if not write and not file.is_file():
        raise RunError("no such ledger", where=file, fix="runs enter themselves when they end; --file names another")
    try:
        with contextlib.closing(sqlite3.connect(file, timeout=_BUSY_SECONDS, isolation_level=None)) as ledger:
            ledger.row_factory = sqlite3.Row
            # whoever writes is alone from here on: two that both find an empty file would both fill it
            ledger.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            _check(ledger, file)
            yield ledger
            ledger.execute("COMMIT")  # where something is raised, closing takes all of it back
    except sqlite3.Error as error:
        raise _unusable(file, error) from None


def _check(ledger: sqlite3.Connection, file: Path) -> None:
    """A ledger of this version, or an empty file, which becomes one."""
    version = ledger.execute("PRAGMA user_version").fetchone()[0]
    tables = ledger.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
    if version == 0 and tables == 0:
        columns = ", ".join(known.name + (" PRIMARY KEY" if known.name == "run" else "") for known in fields(Entry))
        ledger.execute(f"CREATE TABLE runs ({columns})")
        ledger.execute(f"PRAGMA user_version = {_VERSION}")
    elif version != _VERSION:
        wanted = f"version {_VERSION}" if version else "a file that jaxlean made"
        raise RunError("not a ledger of this jaxlean", where=file, got=f"version {version}", wanted=wanted)


def _unusable(file: Path, error: Exception) -> RunError:
    return RunError(
        "the ledger cannot be used", where=file, got=error, fix="cost.ledger=FILE names another, false none"
    )
