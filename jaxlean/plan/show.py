"""A plan as a table for people."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jaxlean.config import RunConfig
from jaxlean.errors import ConfigError
from jaxlean.plan.offer import Offer
from jaxlean.plan.plan import Plan, best_of_each, check_writable, plan, write
from jaxlean.plan.target import DEFAULT
from jaxlean.run.units import show_count
from jaxlean.xla.remat import Policy

# Why an offer is not the first; the column has no head.
_WHY = ""
_COLUMNS: dict[str, Literal["left", "right"]] = {
    **dict.fromkeys(("target", "mesh", "base", "remat"), "left"),
    **dict.fromkeys(("rows", "memory, GB", "s/step", "tokens/s", "hours", "USD", "spot", "kWh"), "right"),
    _WHY: "left",
}
# What a narrow screen does without, in this order; and what the last column has at least.
_LEAST_FIRST = ("kWh", "tokens/s", "spot", "rows", "base", "remat", "s/step", "mesh")
_LEAST_WHY, _MOST_WHY = 26, 42
_GAP = 3  # between columns


def plan_and_print(
    config: RunConfig,
    targets: Sequence[str] | None,
    *,
    json: Path | None = None,
    every: bool = False,
    **how: Any,
) -> Plan:
    """`jaxlean plan`: plan with progress on the screen, print the table, write the file.

    Args:
        targets: default: those of `plan.target`.
        json: the file.
        every: show every candidate.
        how: of `plan.plan`: deadline_hours, max_usd, parallel, limit_seconds.

    Raises:
        UserError: as `plan.plan`; the file cannot be written.
    """
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    if json is not None:
        check_writable(json)
    names = [name.strip() for name in targets if name.strip()] if targets is not None else list(DEFAULT)
    if not names:
        raise ConfigError("--targets names nothing", wanted="h100-80gb:8,v5e:2x4,cpu", fix="leave it out for a mix")
    errors = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.fields[what]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        tasks = {name: progress.add_task(name, total=1, what="waiting", start=False) for name in names}

        def watch(target: str, what: str) -> None:
            progress.start_task(tasks[target])
            progress.update(tasks[target], what=what, completed=int(what == "done"))

        found = plan(config, names, watch=watch, **how)
    width = _width()
    shown = table(found, every=every, width=width)
    # what no person looks at is as wide as its longest row
    console = Console(width=width or 10_000)
    console.print(shown)
    console.print(summary(found), highlight=False, markup=False, soft_wrap=True)
    if json is not None:
        write(found, json)
    return found


def table(plan: Plan, *, every: bool = False, width: int | None = None) -> Any:
    """A rich table: a row for each target, or (`every`) for each candidate that was looked at.

    Args:
        width: of the screen, in characters: where it is narrow the columns that matter least are left out, and the
            table says so.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = [_cells(each) for each in (plan.offers if every else best_of_each(plan.offers))]
    wide = {name: max(len(name), *(len(row[name]) for row in rows), 0) + _GAP for name in _COLUMNS} if rows else {}
    # it goes over several lines, and a setting is to be copied: none is cut in two
    words = [len(word) for row in rows for word in row[_WHY].split()]
    least = min(max([_LEAST_WHY, *words]), _MOST_WHY)
    wide[_WHY] = min(wide.get(_WHY, 0), least + _GAP)
    left_out: list[str] = []
    for name in _LEAST_FIRST:
        if width is not None and sum(size for column, size in wide.items() if column not in left_out) > width:
            left_out.append(name)
    caption = f"too narrow for: {', '.join(left_out)}" if left_out else None
    found = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left")
    shown = [name for name in _COLUMNS if name not in left_out]
    for name in shown:
        why = name == _WHY
        found.add_column(
            name, justify=_COLUMNS[name], no_wrap=not why, overflow="fold", min_width=least if why else None
        )
    for row in rows:
        found.add_row(*(Text(row[name]) for name in shown))  # as it is: brackets are no markup
    return found


def _width() -> int | None:
    """Of the screen; None where standard output is none, and nobody says how wide it should be."""
    from rich.console import Console

    return Console().width if Console().is_terminal or "COLUMNS" in os.environ else None


def summary(plan: Plan) -> str:
    """The job in a sentence, and what the table's figures are."""
    work = plan.work
    marks = {"fits": "", "bound": "~ "}
    told = ((marks[each.row.status], each.row.note) for each in plan.offers if each.row.status in marks)
    notes = {line: mark for mark, note in told for line in note.splitlines()}
    sources = {each.row.target.partition(":")[0]: each.price_source for each in plan.offers if each.usd is not None}
    nothing = [] if plan.winner is not None else ["no target runs the job as asked: the last column says why"]
    lines = [
        *nothing,
        f"{work.num_steps:,} steps of {work.rows} x {work.length:,} tokens"
        + (f"; of an epoch's tokens {show_count(work.tokens)} carry loss" if work.tokens else ""),
        *(mark + note for note, mark in sorted(notes.items()) if note),
        *(f"price of {name}: {source}" for name, source in sources.items()),
    ]
    return "\n".join(lines)


def _cells(each: Offer) -> dict[str, str]:
    """Text by column."""
    row, candidate = each.row, each.row.candidate
    memory = "-" if row.memory is None else f"{row.memory / 1e9:.2f}"
    capacity = "" if row.capacity is None else f" / {row.capacity / 1e9:.2f}"
    rows = "-"
    if candidate is not None:
        rows = f"{candidate.microbatch}" + (f" x {candidate.accumulation}" if candidate.accumulation > 1 else "")
    bound = "~" if row.status == "bound" else ""
    return {
        "target": row.target,
        "mesh": candidate.mesh_name if candidate is not None else "-",
        "base": _base(candidate.dtype, candidate.quantization) if candidate is not None else "-",
        "remat": _remat(candidate.remat) if candidate is not None and candidate.remat is not None else "-",
        "rows": rows,
        "memory, GB": f"{bound}{memory}{capacity}",
        "s/step": _number(row.step_seconds, bound),
        "tokens/s": "-" if each.tokens_per_second is None else f"{bound}{each.tokens_per_second:,.0f}",
        "hours": _number(each.hours, bound),
        "USD": _number(each.usd, bound),
        "spot": _number(each.usd_spot, bound),
        "kWh": _number(each.kwh, bound),
        _WHY: each.why or ("the cheapest" if each.runs else row.note),
    }


def _number(value: float | None, bound: str = "") -> str:
    if value is None:
        return "-"
    return f"{bound}{value:.2f}" if value >= 1 else f"{bound}{value:.3g}"


def _base(dtype: str, quantization: str) -> str:
    return dtype if quantization == "none" else quantization


def _remat(policy: Policy) -> str:
    return policy if isinstance(policy, str) else f"keeps {len(tuple(policy))}"
