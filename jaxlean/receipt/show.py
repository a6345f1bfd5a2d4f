"""A receipt as a table: what each cut saved, and how that is known."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from jaxlean.run.units import show_bytes, show_seconds, show_usd

if TYPE_CHECKING:
    from rich.console import Console

_BY = "timed side by side on the run's own rows; counted steps, at their measured time; or measured while it ran."


def show(told: Mapping[str, Any], console: "Console") -> None:
    """Print a receipt.

    Args:
        told: as `receipt.json` holds it.
        console: rich's.
    """
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("", "cut", "memory", "FLOPs", "time", "by", "USD"):
        table.add_column(name, justify="left" if name in ("", "cut", "by") else "right", no_wrap=name != "known by")
    for line in told["cuts"]:
        number = "" if line["number"] is None else str(line["number"])
        memory, flops, seconds, usd = (line.get(key) for key in ("memory_bytes", "flops", "seconds", "usd"))
        table.add_row(
            number, line["cut"], f"{_saved(memory, show_bytes)} {_share(memory)}", _share(flops) or "-",
            f"{_saved(seconds, show_seconds)} {_share(seconds)}", (seconds or usd or {}).get("source", ""),
            _saved(usd, show_usd),
        )  # fmt: skip
    console.print(
        "What each cut saved, against the same run without it. Memory and FLOPs: read off the compiled steps."
    )
    console.print(f"Time: {_BY}")
    console.print(table)
    for line in told["cuts"]:
        if line["note"]:
            console.print(f"{line['cut']}: {line['note']}", highlight=False, soft_wrap=True)
    total = told["total"]
    if total["memory_bytes_without"]:
        console.print(
            f"a step: {show_bytes(total['memory_bytes'])} on each device, {show_bytes(total['memory_bytes_without'])} "
            "without them",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    console.print(total["sentence"], highlight=False, soft_wrap=True, style="bold")


def _saved(pair: Mapping[str, Any] | None, shown: Callable[[float | None], str]) -> str:
    """How much less it is than without the cut; what a cut costs has a plus before it."""
    if pair is None:
        return "-"
    less = pair["without"] - pair["with"]
    return "0" if _is_nothing(pair) else f"{'' if less >= 0 else '+'}{shown(abs(less))}"


def _share(pair: Mapping[str, Any] | None) -> str:
    if pair is None or not pair["without"] or _is_nothing(pair):
        return ""
    less = 1 - pair["with"] / pair["without"]
    return f"{'' if less >= 0 else '+'}{abs(less):.0%}"


def _is_nothing(pair: Mapping[str, Any]) -> bool:
    return abs(pair["without"] - pair["with"]) < 0.0005 * abs(pair["without"])
