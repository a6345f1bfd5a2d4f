"""What became of each key, for people: `jaxlean convert` prints it beside the config."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxlean.config import RunConfig
from jaxlean.convert.convert import Conversion
from jaxlean.convert.row import Line
from jaxlean.redact import HIDDEN, hidden

_LONGEST = 60
_HEADS = {
    "carried": "carried over",
    "missing": "has no counterpart",
    "unknown": "unknown key",
    "idle": "is the default, or not needed here",
}


def print_report(found: Conversion, console: Console) -> None:
    """Every key of the file in one of four groups, what was written besides, and what is to be looked at."""
    keys = len(found.lines) + len(found.empty)
    told = f"by {', '.join(found.by[:5])}" + (", ..." if len(found.by) > 5 else "") if found.by else "as you say"
    _say(console, f"{found.file}: {found.format.title}, {told}; {keys} keys")
    every = [inner for line in found.lines for inner in (line, *line.outcome.inner)]
    for kind, head in _HEADS.items():
        lines = [line for line in every if line.outcome.kind == kind]
        if kind == "idle" and found.empty:
            head = f"{head} ({len(lines) + len(found.empty)})"
        elif lines:
            head = f"{head} ({len(lines)})"
        if lines or (kind == "idle" and found.empty):
            _say(console, f"\n{head}", bold=True)
            console.print(_table(lines, kind))
        if kind == "idle" and found.empty:
            _say(console, f"  empty there: {', '.join(found.empty)}")
        if kind == "carried" and (written := [line for line in found.written if _matters(line)]):
            _say(console, f"\nnot said there, where {found.format.title} does otherwise than jaxlean", bold=True)
            console.print(_written(written))
    checks = [(line.key, line.outcome.check) for line in (*every, *found.written) if line.outcome.check]
    if checks:
        _say(console, f"\nto be looked at ({len(checks)})", bold=True)
        for key, check in checks:
            _say(console, f"  {key}: {check}" if key else f"  {check}")


def _matters(line: Line) -> bool:
    return bool(
        line.outcome.settings or line.outcome.kind == "missing" or (line.outcome.note and not line.outcome.check)
    )


def _say(console: Console, line: str, *, bold: bool = False) -> None:
    console.print(Text(hidden(line), style="bold" if bold else ""), soft_wrap=True)


def _table(lines: list[Line], kind: str) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    for name in ("", "key", "what"):
        table.add_column(name, overflow="fold", no_wrap=name == "")
    for line in lines:
        ours = ", ".join(f"{key}: {show(value)}" for key, value in line.outcome.settings.items())
        arrow = f"-> {ours}" if ours else ""
        what = "  ".join(
            part
            for part in (arrow, f"({line.outcome.note})" if ours and line.outcome.note else line.outcome.note)
            if part
        )
        shown = f"{line.key}: {HIDDEN if line.secret else show(line.value)}" if kind != "unknown" else line.key
        table.add_row("", Text(hidden(shown)), Text(hidden(what)))
    return table


def _written(lines: list[Line]) -> Table:
    plain = RunConfig()
    table = Table.grid(padding=(0, 2, 0, 0))
    for name in ("", "key", "what"):
        table.add_column(name, overflow="fold")
    for line in lines:
        ours = []
        for key, value in line.outcome.settings.items():
            node: Any = plain
            for part in key.split("."):
                node = getattr(node, part, None)
            ours.append(f"{key}: {show(value)}" + ("" if key == "lora" else f" (jaxlean: {show(node)})"))
        table.add_row(
            "",
            Text(line.key or "always"),
            Text("  ".join([*(["-> " + ", ".join(ours)] if ours else []), line.outcome.note])),
        )
    return table


def show(value: Any) -> str:
    """A value in a line, as YAML would have it, cut where it is long."""
    text = {True: "true", False: "false", None: "null"}.get(value, "") if isinstance(value, bool | None) else ""
    text = text or (value if isinstance(value, str) else f"{value}")
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
