"""Bars on one scale, with the number beside each: a step's memory by what takes it, a run's time by phase."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jaxlean.report.read import Run, number
from jaxlean.run.units import show_bytes, show_seconds

_MEMORY = {
    "frozen": "parameters, frozen",
    "trained": "parameters, trained",
    "optimizer": "optimizer state",
    "batch": "batch",
    "temporaries": "activations, gradients and the rest",
}
# Of a run's time, what no phase has to tell of it.
_UNTOLD = 0.01


@dataclass(frozen=True)
class Bar:
    """Attributes: run: its place; share: of the longest bar; text: the number; None where a run does not have it."""

    run: int
    share: float
    text: str


@dataclass(frozen=True)
class Row:
    """Attributes: label: what; bars: one a run; whole: whether it is the sum of others."""

    label: str
    bars: Sequence[Bar]
    whole: bool = False


@dataclass(frozen=True)
class Bars:
    """Attributes: key: its name in the page; title: what is shown; note: what a reader must know of it."""

    key: str
    title: str
    rows: Sequence[Row]
    note: str = ""


def memory(runs: Sequence[Run]) -> Bars | None:
    """A step's memory on one device; None where no run says anything of it."""
    parts = {label: [_part(run, "memory_by_category", key) for run in runs] for key, label in _MEMORY.items()}
    whole = {
        f"a step, {how}": [number(run.summary.get(f"{how}_memory_bytes")) for run in runs]
        for how in ("predicted", "measured")
    }
    note = "On one device. The parts are of the compiled step, and add up to what is predicted of it."
    return _bars("memory", "Memory of a step", parts, whole, show_bytes, note if _some(parts) else "On one device.")


def phases(runs: Sequence[Run]) -> Bars | None:
    """Where the time went; None where no run has measured it."""
    told = [run.summary.get("phases") for run in runs]
    names = list(dict.fromkeys(name for each in told if isinstance(each, Mapping) for name in each))
    parts = {name.replace("_", " "): [_part(run, "phases", name) for run in runs] for name in names}
    if not _some(parts):
        return None
    whole = [number(run.summary.get("seconds")) for run in runs]
    sums = [sum(value or 0.0 for value in column) for column in zip(*parts.values(), strict=True)]
    rest = [
        total - found if total is not None and found and total - found > _UNTOLD * total else None
        for total, found in zip(whole, sums, strict=True)
    ]
    if any(rest):
        parts["all else"] = rest
    return _bars("phases", "Time by phase", parts, {"the whole run": whole}, show_seconds, "")


def _part(run: Run, section: str, key: str) -> float | None:
    found = run.summary.get(section)
    return number(found.get(key)) if isinstance(found, Mapping) else None


def _some(rows: Mapping[str, Sequence[float | None]]) -> bool:
    return any(value is not None for values in rows.values() for value in values)


def _bars(
    key: str,
    title: str,
    parts: Mapping[str, Sequence[float | None]],
    whole: Mapping[str, Sequence[float | None]],
    show: Callable[[float], str],
    note: str,
) -> Bars | None:
    every = {**parts, **whole}
    longest = max((value for values in every.values() for value in values if value is not None), default=0.0)
    if longest <= 0:
        return None
    rows = [
        Row(label, [Bar(run, max(value, 0.0) / longest, show(value)) for run, value in enumerate(values)
                    if value is not None], label in whole)
        for label, values in every.items()
        if any(value is not None for value in values)
    ]  # fmt: skip
    return Bars(key, title, rows, note)
