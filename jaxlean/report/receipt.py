"""A run's receipt as a table: of each cut what the run took with it, and what it would have taken without.

Every number, source and note is as `jaxlean receipt` wrote it into receipt.json; only shares are computed here.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from jaxlean.report.read import Run, number
from jaxlean.run.units import show_bytes, show_energy, show_seconds, show_usd

# A smaller share is none: receipt and table agree on it (`jaxlean receipt` prints 0 there).
_NOTHING = 0.0005


@dataclass(frozen=True)
class Saving:
    """Attributes: without, with_cut: amounts as text; change: of the former, as per cent; source: how it is known."""

    without: str
    with_cut: str
    change: str
    source: str = ""


@dataclass(frozen=True)
class Cut:
    """One row.

    Attributes:
        name: of the cut, with its number of the twelve; of the last row, what all of them are.
        settings, without: `section.key=value`s.
        savings: one for each of the receipt's measures, or None where nothing was measured.
        note: what a table cannot say.
        whole: whether it is the sum of it all.
    """

    name: str
    settings: str
    without: str
    savings: Sequence[Saving | None]
    note: str
    whole: bool = False


@dataclass(frozen=True)
class Receipt:
    """Attributes: run: its place; name: of it; sentence: what it came to; measures: heads; cuts: rows; made: how."""

    run: int
    name: str
    sentence: str
    measures: Sequence[str]
    cuts: Sequence[Cut]
    made: str


def _show_flops(value: float | None) -> str:
    """
    >>> _show_flops(2.5e13), _show_flops(310.0)
    ('25 TFLOP', '310 FLOP')
    """
    value = value or 0.0
    size, unit = next(((size, unit) for size, unit in _FLOPS if abs(value) >= size), (1.0, ""))
    return f"{value / size:.3g} {unit}FLOP"


_FLOPS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))
# Key of a receipt -> (head, how its amounts are written).
MEASURES: Mapping[str, tuple[str, Callable[[float | None], str]]] = {
    "memory_bytes": ("memory of a step", show_bytes),
    "flops": ("FLOPs of a step", _show_flops),
    "seconds": ("time", show_seconds),
    "kwh": ("energy", show_energy),
    "usd": ("cost", show_usd),
}


def receipts(runs: Sequence[Run]) -> list[Receipt]:
    """Those of the runs that have one with a cut or a total in it."""
    found = [_receipt(place, run, run.receipt) for place, run in enumerate(runs) if run.receipt is not None]
    return [each for each in found if each.cuts or each.sentence]


def missing(runs: Sequence[Run]) -> list[tuple[str, str, str]]:
    """(name, what it lacks, the command that writes it) of runs that have no receipt, or one of a part of them."""
    found = []
    for run in runs:
        command = shlex.join(["jaxlean", "receipt", str(run.folder)])
        if run.receipt is not None:
            made = _date(run.receipt.get("made"))
            if made is not None and run.ended is not None and made < run.ended:
                found.append((run.name, "Went on after its receipt was made, which is measured again by", command))
        elif run.summary.get("measured_step_seconds"):
            found.append((run.name, "No receipt yet: it is measured, and written into the run's folder, by", command))
        else:
            found.append((run.name, "No receipt yet: once the run has ended, it is measured by", command))
    return found


def _receipt(place: int, run: Run, told: Mapping[str, Any]) -> Receipt:
    rows = told.get("cuts")
    cuts = [row for row in (rows if isinstance(rows, list) else []) if isinstance(row, Mapping)]
    total = told.get("total")
    total = total if isinstance(total, Mapping) else {}
    measures = [key for key in MEASURES if any(_saving(cut, key) is not None for cut in cuts)]
    found = [_cut(cut, measures) for cut in cuts]
    whole = _whole(total, measures)
    return Receipt(
        place, run.name, _sentence(total), [MEASURES[key][0] for key in measures],
        [*found, whole] if whole is not None else found, _made(told),
    )  # fmt: skip


def _cut(cut: Mapping[str, Any], measures: Sequence[str]) -> Cut:
    which = number(cut.get("number"))
    name = str(cut.get("cut") or "a cut")
    return Cut(
        name if which is None else f"{which:.0f}. {name}", _joined(cut.get("settings")), _joined(cut.get("without")),
        [_saving(cut, key) for key in measures], str(cut.get("note") or ""),
    )  # fmt: skip


def _joined(value: Any, by: str = " ") -> str:
    return by.join(map(str, value)) if isinstance(value, list) else ""


def _saving(cut: Mapping[str, Any], key: str) -> Saving | None:
    found = cut.get(key)
    if not isinstance(found, Mapping):
        return None
    return _pair(number(found.get("with")), number(found.get("without")), key, str(found.get("source") or ""))


def _pair(with_cut: float | None, without: float | None, key: str, source: str = "") -> Saving | None:
    if with_cut is None or without is None:
        return None
    show = MEASURES[key][1]
    return Saving(show(without), show(with_cut), _change(with_cut, without), source)


def _change(with_cut: float, without: float) -> str:
    """
    >>> _change(3.0, 2.0), _change(1.0, 1.0001)
    ('+50 %', '0 %')
    """
    less = with_cut - without
    if abs(less) < _NOTHING * abs(without) or less == 0:
        return "0 %"
    return f"{100 * less / without:+.0f} %".replace("-", "\N{MINUS SIGN}") if without else ""


def _whole(total: Mapping[str, Any], measures: Sequence[str]) -> Cut | None:
    """The run against the same run without any of them."""
    names = total.get("cuts")
    savings = [_pair(number(total.get(key)), number(total.get(f"{key}_without")), key) for key in measures]
    if not isinstance(names, list) or len(names) < 2 or not any(savings):
        return None
    return Cut("together", "", "", savings, _joined(names, ", "), whole=True)


def _made(told: Mapping[str, Any]) -> str:
    """Where and when it was measured, and how often."""
    made, kind, num = _date(told.get("made")), told.get("device_kind"), number(told.get("num_devices"))
    calibration = told.get("calibration")
    rounds = number(calibration.get("rounds")) if isinstance(calibration, Mapping) else None
    found = [
        f"made {made:%Y-%m-%d %H:%M} UTC" if made is not None else "",
        f"on {num:,.0f} x {kind}" if kind is not None and num is not None else "",
        "" if rounds is None else f"each program timed in {rounds:.0f} turns" if rounds else "no steps timed",
    ]
    return ", ".join(filter(None, found))


def _date(text: Any) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _sentence(total: Mapping[str, Any]) -> str:
    return str(total.get("sentence") or "")
