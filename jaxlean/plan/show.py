"""A plan as a table for people."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxlean.config import RunConfig
from jaxlean.errors import ConfigError
from jaxlean.plan.offer import Offer
from jaxlean.plan.plan import Plan, best_of_each, plan, write
from jaxlean.plan.target import DEFAULT
from jaxlean.run.units import show_count
from jaxlean.xla.remat import Policy


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

    if json is not None and (json.is_dir() or not json.absolute().parent.is_dir()):
        raise ConfigError("the plan cannot be written there", where=json, fix="--json names a file")
    names = list(targets) if targets is not None else list(DEFAULT)
    console, errors = Console(), Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.fields[what]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=errors, transient=True) as progress:
        tasks = {name.strip(): progress.add_task(name.strip(), total=1, what="waiting", start=False) for name in names}

        def watch(target: str, what: str) -> None:
            progress.start_task(tasks[target])
            progress.update(tasks[target], what=what, completed=int(what == "done"))

        found = plan(config, names, watch=watch, **how)
    console.print(table(found, every=every))
    console.print(summary(found), highlight=False, soft_wrap=True)
    if json is not None:
        write(found, json)
    return found


def table(plan: Plan, *, every: bool = False) -> Any:
    """A rich table: a row for each target, or (`every`) for each candidate that was looked at."""
    from rich import box
    from rich.table import Table

    found = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, justify in (
        ("target", "left"), ("mesh", "left"), ("base", "left"), ("remat", "left"), ("rows", "right"),
        ("memory, GB", "right"), ("s/step", "right"), ("tokens/s", "right"), ("hours", "right"), ("USD", "right"),
        ("spot", "right"), ("kWh", "right"), ("", "left"),
    ):  # fmt: skip
        found.add_column(name, justify=justify)  # type: ignore[arg-type]
    for each in plan.offers if every else best_of_each(plan.offers):
        found.add_row(*_cells(each))
    return found


def summary(plan: Plan) -> str:
    """The job in a sentence, and what the table's figures are."""
    work = plan.work
    notes = sorted({note for each in plan.offers if each.row.status == "fits" for note in each.row.note.splitlines()})
    sources = {each.row.target.partition(":")[0]: each.price_source for each in plan.offers if each.usd is not None}
    lines = [
        f"{work.num_steps:,} steps of {work.rows} x {work.length:,} tokens; "
        f"of an epoch's tokens {show_count(work.tokens)} carry loss",
        *notes,
        *(f"price of {name}: {source}" for name, source in sources.items()),
    ]
    return "\n".join(lines)


def _cells(each: Offer) -> list[str]:
    row, candidate = each.row, each.row.candidate
    memory = "-" if row.memory is None else f"{row.memory / 1e9:.2f}"
    capacity = "" if row.capacity is None else f" / {row.capacity / 1e9:.2f}"
    rows = "-"
    if candidate is not None:
        rows = f"{candidate.microbatch}" + (f" x {candidate.accumulation}" if candidate.accumulation > 1 else "")
    bound = "~" if row.status == "bound" else ""
    return [
        row.target,
        candidate.mesh_name if candidate is not None else "-",
        _base(candidate.dtype, candidate.quantization) if candidate is not None else "-",
        _remat(candidate.remat) if candidate is not None and candidate.remat is not None else "-",
        rows,
        f"{bound}{memory}{capacity}",
        _number(row.step_seconds, bound),
        "-" if each.tokens_per_second is None else f"{bound}{each.tokens_per_second:,.0f}",
        _number(each.hours, bound),
        _number(each.usd, bound),
        _number(each.usd_spot, bound),
        _number(each.kwh, bound),
        each.why or ("the cheapest" if each.runs else row.note),
    ]


def _number(value: float | None, bound: str = "") -> str:
    if value is None:
        return "-"
    return f"{bound}{value:.2f}" if value >= 1 else f"{bound}{value:.3g}"


def _base(dtype: str, quantization: str) -> str:
    return dtype if quantization == "none" else quantization


def _remat(policy: Policy) -> str:
    return policy if isinstance(policy, str) else f"keeps {len(tuple(policy))}"
