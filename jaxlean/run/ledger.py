"""The ledger as a table, as CSV, and as a bill."""

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlean.cost.ledger import GROUPS, Entry, Sum, entries, sums
from jaxlean.errors import ConfigError, RunError, did_you_mean
from jaxlean.run.units import show_count, show_number, show_percent, show_seconds, show_usd

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# Runs that are listed where no sum is asked for; all of them go into a CSV.
_LISTED = 20


def show_ledger(
    file: Path,
    *,
    by: str | None = None,
    since: str | None = None,
    where: Mapping[str, str] | None = None,
    bill: bool = False,
    to: Path | None = None,
    console: "Console | None" = None,
) -> None:
    """Print runs, sums or a bill; or write them as CSV.

    Args:
        file: the ledger.
        by: a key of `jaxlean.cost.ledger.GROUPS`; None: the runs themselves.
        since: ISO date; what began earlier is left out.
        where: group -> its value.
        bill: by project and month, with a total: who pays what.
        to: CSV file to write instead of printing; "-": standard output.

    Raises:
        ConfigError: an unknown group, no date, or a bill by something.
        RunError: there is no ledger, or the CSV file cannot be written.
    """
    from rich.console import Console

    _check(by, since, bill)
    if bill:
        rows: Sequence[Any] = _bill(file, since, where)
    else:
        rows = entries(file, since=since, where=where) if by is None else sums(file, by, since=since, where=where)
    if to is not None:
        _write(to, [_plain(row) for row in rows])
        return
    if console is None:  # lines that are too long for a terminal are its affair: numbers that are folded cannot be read
        console = Console(width=max(Console().width, 160))
    if not rows:
        console.print(f"no runs: {file}")
        return
    if by is None and not bill:
        console.print(_runs(rows[-_LISTED:]))
        if len(rows) > _LISTED:
            console.print(f"the last {_LISTED} of {len(rows):,} runs; --csv has all of them")
        return
    console.print(_sums("project, month" if bill else str(by), rows))


def _check(by: str | None, since: str | None, bill: bool) -> None:
    if by is not None and by not in GROUPS:
        raise ConfigError("--by what?", got=by, fix=did_you_mean(by, GROUPS))
    if bill and by is not None:
        raise ConfigError("--chargeback is by project and month", fix="leave out --by")
    if since is not None:
        try:
            date.fromisoformat(since)
        except ValueError:
            raise ConfigError("--since is no date", got=since, wanted="2026-01-31") from None


def _bill(file: Path, since: str | None, where: Mapping[str, str] | None) -> list[Sum]:
    months = sorted(sum_.group for sum_ in sums(file, "month", since=since, where=where))
    rows = []
    for month in months:
        of_month = dict(where or {}) | {"month": month}
        for found in sums(file, "project", since=since, where=of_month):
            rows.append(Sum(**(asdict(found) | {"group": f"{found.group}, {month}"})))
    return sorted(rows, key=lambda row: row.group)


def _runs(rows: Sequence[Entry]) -> "Table":
    table = _table("started", "project", "model", "status", "device", "time", "steps", "quality", "kWh", "USD", text=5)
    for row in rows:
        quality = "-" if row.metric is None else f"{row.metric} {show_number(row.quality_after, 3)}"
        table.add_row(
            row.started[:16].replace("T", " "), row.project, row.model, row.status, f"{row.num_devices} x {row.device}",
            show_seconds(row.seconds), show_count(row.steps), quality, _number(row.kwh), show_usd(row.usd),
        )  # fmt: skip
    return table


def _sums(by: str, rows: Sequence[Sum]) -> "Table":
    table = _table(
        by, "runs", "models", "hours", "used", "kWh", "gCO2e", "USD", "unfinished", "share", "USD/model", "kWh/model",
        text=1,
    )  # fmt: skip
    for row in rows:
        unpriced = f" + {row.unpriced} unpriced" if row.unpriced else ""
        table.add_row(
            row.group, show_count(row.runs), show_count(row.completed), _number(row.accelerator_hours),
            show_percent(row.accelerator_utilization), _number(row.kwh), _number(row.gco2e),
            show_usd(row.usd) + unpriced, show_usd(row.usd_unfinished), show_percent(row.share),
            show_usd(row.usd_per_model), _number(row.kwh_per_model),
        )  # fmt: skip
    if len(rows) > 1 and by != "tag":  # a run counts under each of its tags
        paid, kwh, gas = (_total(rows, name) for name in ("usd", "kwh", "gco2e"))
        hours = _total(rows, "accelerator_hours")
        table.add_section()
        table.add_row(
            "all", show_count(sum(row.runs for row in rows)), show_count(sum(row.completed for row in rows)),
            _number(hours), "", _number(kwh), _number(gas), show_usd(paid), show_usd(_total(rows, "usd_unfinished")),
        )  # fmt: skip
    return table


def _total(rows: Sequence[Sum], name: str) -> float | None:
    known = [getattr(row, name) for row in rows if getattr(row, name) is not None]
    return sum(known) if known else None


def _table(*columns: str, text: int) -> "Table":
    from rich.table import Table

    table = Table(header_style="bold", box=None, pad_edge=False)
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i < text else "right", no_wrap=True)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def _plain(row: Entry | Sum) -> dict[str, Any]:
    if isinstance(row, Sum):
        return asdict(row) | {"usd_per_model": row.usd_per_model, "kwh_per_model": row.kwh_per_model}
    return asdict(row) | {"tags": " ".join(row.tags)}


def _write(to: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """CSV (RFC 4180), whole or not at all."""
    import sys

    if str(to) == "-":
        _csv(sys.stdout, rows)
        return
    part = to.with_name(f".{to.name}.{os.getpid()}")
    try:
        with part.open("w", encoding="utf-8", newline="") as out:
            _csv(out, rows)
        os.replace(part, to)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise RunError("the CSV file cannot be written", where=to, got=error.strerror, fix="--csv FILE") from None


def _csv(out: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(rows)
