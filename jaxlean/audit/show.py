"""An audit as a table for people, and the lines to add."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from jaxlean.audit.audit import Audit, Cost, Finding, audit, check_targets
from jaxlean.config import RunConfig
from jaxlean.convert.convert import nested
from jaxlean.plan.here import here, target_of
from jaxlean.plan.local import NEAR
from jaxlean.run.units import show_bytes, show_seconds, show_usd

if TYPE_CHECKING:
    from rich.console import Console


def audit_and_print(
    config: RunConfig, targets: str | None, *, file: Path, console: "Console | None" = None, **how: Any
) -> Audit:
    """`jaxlean audit`: plan with progress on the screen, print what was found.

    Args:
        targets: by commas; default: this machine.
        file: the config's, for the commands that are printed.
        how: of `audit`: limit_seconds, parallel.

    Raises:
        UserError: as `audit`; this machine is no target.
    """
    from rich.console import Console

    console = console if console is not None else Console(highlight=False, markup=False, soft_wrap=True)
    if targets is None:
        device, number = here(config.cost.hardware)
        names = [target_of(device, number, why="what to plan for", fix="--targets h100-80gb:1,cpu says it")]
    else:
        names = [name.strip() for name in targets.split(",") if name.strip()]
        check_targets(names)
    with Console(stderr=True).status("reading") as status:
        found = audit(config, names, here=targets is None, watch=lambda what: status.update(what), **how)
    show(found, console, file=file)
    return found


def show(found: Audit, console: "Console", *, file: Path) -> None:
    """Print an audit."""
    work = found.work
    console.print(f"{work.num_steps:,} steps of {work.rows} x {work.length:,} tokens, on {' or '.join(found.targets)}")
    console.print(f"as written: {_cost(found.cost) if found.cost is not None else 'it runs on none: ' + found.why}")
    console.print(f"in force: {_names(found.in_force) or 'no cut'}")
    if found.pays:
        console.print("\nleft on the table, what saves most first:")
        for line in _table(found):
            console.print(line)
    else:
        console.print("\nleft on the table: nothing that a plan shows to pay")
    for each in found.pays:
        if each.note:
            console.print(f"{each.proposal.name}: {_for(each.note, file)}")
    if any(each.close for each in found.pays):
        console.print(f"~ the two steps differ by less than {NEAR - 1:.0%}, which estimates do not tell apart: measure")
    if found.together is not None and found.together.cost is not None:
        console.print(f"\nall of these: {_cost(found.together.cost)}{_less(found.together)}")
        console.print(_block(found.together.settings))
    if found.others:
        console.print("\nplanned, and not worth it here:")
        for each in found.others:
            console.print(f"  {_head(each.proposal.number, each.proposal.name)}: {_reason(each, found.cost)}")
    if found.unplanned:
        console.print("\nnot planned, and so not ranked:")
        for left in sorted(found.unplanned, key=lambda left: (left.number is None, left.number or 0)):
            line = f"; {_line(left.settings)}" if left.settings else ""
            console.print(f"  {_head(left.number, left.name)}: {left.why}{line}")
    console.print("")
    for note in found.notes:
        console.print(f"~ {note}" if note.startswith("bound only") else note)
    if found.cost is not None and found.cost.offer.price_source:
        console.print(f"price: {found.cost.offer.price_source}")


def _table(found: Audit) -> Iterable[str]:
    """Rows of what pays, in columns as wide as their longest."""
    several = len(found.targets) > 1
    head = ["", "cut", "saves", "USD then", "time then", "memory then", *(["on"] if several else []), "add"]
    rows = [head]
    for each in found.pays:
        assert each.cost is not None
        made, row = each.cost.offer, each.cost.offer.row
        saves = "it runs" if each.saves_hours is None else _saves(each)
        where = [row.target] if several else []
        rows.append([
            "" if each.proposal.number is None else str(each.proposal.number), each.proposal.name, saves,
            show_usd(each.cost.usd), show_seconds((made.hours or 0.0) * 3600), show_bytes(row.memory), *where,
            _line(each.settings),
        ])  # fmt: skip
    wide = [max(len(cells[i]) for cells in rows) for i in range(len(head))]
    for cells in rows:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, wide, strict=True)).rstrip()


def _saves(each: Finding) -> str:
    mark = "~" if each.close else ""
    if each.saves_usd is not None:
        return f"{mark}{show_usd(each.saves_usd)}"
    return f"{mark}{show_seconds((each.saves_hours or 0.0) * 3600)}"


def _cost(cost: Cost) -> str:
    row = cost.offer.row
    bound = "~ " if row.status == "bound" else ""
    paid = f"{show_usd(cost.usd)}, " if cost.usd is not None else ""
    step = f"{row.step_seconds:.3g} s a step" if row.step_seconds is not None else ""
    return f"{bound}{paid}{show_seconds(cost.hours * 3600)} on {row.target} ({step}, {show_bytes(row.memory)})"


def _less(found: Finding) -> str:
    if found.saves_usd is None:
        return f", {show_seconds(found.saves_hours * 3600)} less" if found.saves_hours is not None else ""
    return f", {show_usd(found.saves_usd)} less" if found.saves_usd > 0 else ", no less than alone"


def _reason(found: Finding, base: Cost | None) -> str:
    """Why a cut does not pay."""
    if found.cost is None or found.how == "counted" or found.note.startswith("saves less"):
        return found.note
    if not found.settings:
        return "the config's mesh and microbatch are the planner's"
    more = found.cost.hours - (base.hours if base is not None else 0.0)
    if base is None or more == 0:
        return "the step is the same"
    memory, own = found.cost.offer.row.memory, base.offer.row.memory
    room = ""
    if memory is not None and own is not None and memory < own:
        room = f", for {show_bytes(own - memory)} less memory: it pays where a smaller device then does (--targets)"
    return f"{show_seconds(more * 3600)} longer{room}"


def _head(number: int | None, name: str) -> str:
    return name if number is None else f"{number} {name}"


def _names(cuts: Iterable[tuple[int | None, str]]) -> str:
    return ", ".join(_head(number, name) for number, name in cuts)


def _for(note: str, file: Path) -> str:
    return note.replace("CONFIG", str(file))


def _line(settings: Mapping[str, Any]) -> str:
    """Settings as a line of YAML."""
    if not settings:
        return ""
    parts = (
        yaml.safe_dump({key: value}, default_flow_style=None, sort_keys=False, width=10_000).strip()
        if not isinstance(value, dict)
        else f"{key}: {yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000).strip()}"
        for key, value in nested(settings).items()
    )
    return "  ".join(parts)


def _block(settings: Mapping[str, Any]) -> str:
    """Settings as lines of YAML."""
    return yaml.safe_dump(nested(settings), sort_keys=False, default_flow_style=False).rstrip()
