"""A run's receipt as a table: of each cut what the run took with it, and what it would have taken without."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxlean.report.read import Run, number
from jaxlean.run.units import show_bytes, show_seconds, show_usd


@dataclass(frozen=True)
class Saving:
    """Attributes: without, with_cut: amounts as text; change: of the former, as per cent; source: how it is known."""

    without: str
    with_cut: str
    change: str
    source: str


@dataclass(frozen=True)
class Cut:
    """Attributes: name: of the cut; settings, without: `section.key=value`s; savings: as `MEASURES`, or None."""

    name: str
    settings: str
    without: str
    savings: Sequence[Saving | None]
    note: str


@dataclass(frozen=True)
class Receipt:
    """Attributes: run: its place; name: of the run; sentence: what it all came to; measures: heads; cuts: rows."""

    run: int
    name: str
    sentence: str
    measures: Sequence[str]
    cuts: Sequence[Cut]


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
    "memory_bytes": ("memory", show_bytes),
    "flops": ("work", _show_flops),
    "seconds": ("time", show_seconds),
    "usd": ("cost", show_usd),
}


def receipts(runs: Sequence[Run]) -> list[Receipt]:
    """Those of the runs that have one with a cut or a total in it."""
    found = [_receipt(place, run) for place, run in enumerate(runs) if run.receipt is not None]
    return [each for each in found if each.cuts or each.sentence]


def _receipt(place: int, run: Run) -> Receipt:
    assert run.receipt is not None
    rows = run.receipt.get("cuts")
    cuts = [row for row in (rows if isinstance(rows, list) else []) if isinstance(row, Mapping)]
    measures = [key for key in MEASURES if any(_saving(cut, key) is not None for cut in cuts)]
    return Receipt(
        place, run.name, _sentence(run.receipt.get("total")), [MEASURES[key][0] for key in measures],
        [_cut(cut, measures) for cut in cuts],
    )  # fmt: skip


def _cut(cut: Mapping[str, Any], measures: Sequence[str]) -> Cut:
    which = number(cut.get("number"))
    name = str(cut.get("cut") or "a cut")
    settings, without = _settings(cut.get("settings")), _settings(cut.get("without"))
    return Cut(
        name if which is None else f"{which:.0f}. {name}", settings, without,
        [_saving(cut, key) for key in measures], str(cut.get("note") or ""),
    )  # fmt: skip


def _settings(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else ""


def _saving(cut: Mapping[str, Any], key: str) -> Saving | None:
    found = cut.get(key)
    if not isinstance(found, Mapping):
        return None
    with_cut, without = number(found.get("with")), number(found.get("without"))
    if with_cut is None and without is None:
        return None
    show = MEASURES[key][1]
    change = ""
    if with_cut is not None and without:
        change = f"{100 * (with_cut - without) / without:+.0f} %".replace("-", "\N{MINUS SIGN}")
    return Saving(
        show(without) if without is not None else "-", show(with_cut) if with_cut is not None else "-", change,
        str(found.get("source") or ""),
    )  # fmt: skip


def _sentence(total: Any) -> str:
    """As the receipt says it; where it does not, of its two amounts."""
    if not isinstance(total, Mapping):
        return ""
    if total.get("sentence"):
        return str(total["sentence"])
    usd, without = number(total.get("usd")), number(total.get("usd_without"))
    if usd is None:
        return ""
    where = f" {total['usd_without_where']}" if total.get("usd_without_where") else ""
    beside = f"; without the cuts {show_usd(without)}{where}" if without is not None else ""
    return f"It cost {show_usd(usd)}{beside}."
