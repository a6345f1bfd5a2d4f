"""What a run took, a figure a row, and beside each how it is known: measured or modelled, and by what."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxlean.report.read import Run, number
from jaxlean.run.units import show_energy, show_percent, show_usd

_PRICES = {
    "on_demand": "cost on demand", "spot": "cost at spot price", "own": "cost at your own price",
    "electricity": "cost of electricity",
}  # fmt: skip


@dataclass(frozen=True)
class Known:
    """Attributes: value: a number with its unit; source: how it is known."""

    value: str
    source: str = ""


@dataclass(frozen=True)
class Row:
    """Attributes: label: what; found: one a run, None where it does not say; source: of all, where they have one."""

    label: str
    found: Sequence[Known | None]
    source: str = ""


def rows(runs: Sequence[Run]) -> list[Row]:
    """Those that at least one of the runs says something of."""
    figures: list[tuple[str, Callable[[Run], Known | None]]] = [
        ("energy", energy), ("emissions", emissions), ("cost", _cost),
        *((label, _by_price(name)) for name, label in _PRICES.items()),
        ("accelerator-hours", _hours),
        ("accelerator utilization", _share("accelerator_utilization", "of the time, in steps")),
        ("waited for data", _share("data_wait_share", "of the steps' time")),
        ("MFU", _share("mfu", "of the device's peak FLOPs")),
    ]  # fmt: skip
    found = [(label, [figure(run) for run in runs]) for label, figure in figures]
    return [_row(label, known) for label, known in found if any(known)]


def _row(label: str, found: Sequence[Known | None]) -> Row:
    """What is known of several in the same way is said once."""
    sources = {known.source for known in found if known is not None}
    if len(found) == 1 or len(sources) > 1:
        return Row(label, found)
    return Row(label, [known and replace(known, source="") for known in found], sources.pop())


def energy(run: Run) -> Known | None:
    """What it took, measured or modelled."""
    kwh = run.last("kwh")
    return None if kwh is None else Known(show_energy(kwh), str(run.summary.get("energy_source") or "source not known"))


def how(known: Known) -> str:
    """In a word, of an energy.

    >>> how(Known("5 Wh", "modelled: 8 W of the hardware table times the time"))
    'modelled'
    """
    return known.source.split(":")[0]


def emissions(run: Run) -> Known | None:
    """What that emitted, which is as well known as the energy; where it is not, why."""
    known, grams, region = energy(run), number(run.summary.get("gco2e")), run.summary.get("gco2e_source")
    if known is None or (grams is None and not region):
        return None
    if grams is None:
        return Known("-", str(region))
    amount = f"{grams / 1000:,.3g} kg CO2e" if grams >= 1000 else f"{grams:.3g} g CO2e"
    return Known(amount, f"from {how(known)} energy" + (f": {region}" if region else ""))


def _cost(run: Run) -> Known | None:
    usd = run.last("usd")
    source = str(run.summary.get("price_source") or "")
    if usd is None:
        return Known("-", source) if source else None
    return Known(show_usd(usd), source)


def _by_price(name: str) -> Callable[[Run], Known | None]:
    def found(run: Run) -> Known | None:
        every = run.summary.get("usd_by_price")
        usd = number(every.get(name)) if isinstance(every, Mapping) else None
        # that by which the run was paid is the cost above
        return None if usd is None or usd == run.last("usd") else Known(show_usd(usd))

    return found


def _hours(run: Run) -> Known | None:
    hours: Any = number(run.summary.get("accelerator_hours"))
    return None if hours is None else Known(f"{hours:,.3g} h")


def _share(key: str, words: str) -> Callable[[Run], Known | None]:
    def found(run: Run) -> Known | None:
        share = number(run.summary.get(key))
        return None if share is None else Known(show_percent(share), words)

    return found
