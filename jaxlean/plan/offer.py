"""What a row of a plan means for a job: hours, dollars, energy, and its place among the others."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from jaxlean.cost.hardware import table
from jaxlean.cost.price import num_vcpus, watts
from jaxlean.cost.skypilot import cheapest
from jaxlean.plan.search import Row
from jaxlean.plan.target import Target
from jaxlean.xla.remat_auto import say_bytes


@dataclass(frozen=True)
class JobSize:
    """What a job is, whatever it runs on.

    Args:
        num_steps: optimizer steps.
        rows: sequences of a step.
        length: tokens of a sequence.
        tokens: that carry loss, in the whole job.
    """

    num_steps: int
    rows: int
    length: int
    tokens: int


@dataclass(frozen=True)
class Offer:
    """A row with its price.

    Args:
        row: what was found.
        num_devices: of the target.
        tokens_per_second: positions, padding included, as the hardware sees them.
        hours: of training.
        usd, usd_spot: of these hours, all devices; None where there is no price.
        kwh: at the devices' board power.
        price_source: of the dollars.
        why: why it is not the first; empty for the first.
    """

    row: Row
    num_devices: int
    tokens_per_second: float | None
    hours: float | None
    usd: float | None
    usd_spot: float | None
    kwh: float | None
    price_source: str
    why: str = ""

    @property
    def runs(self) -> bool:
        """Whether, as far as anyone knows, the job would run so."""
        return self.row.status in ("fits", "bound") and self.hours is not None and not self._over

    @property
    def _over(self) -> bool:
        return self.row.capacity is not None and self.row.memory is not None and self.row.memory > self.row.capacity

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "row": self.row.as_dict()}


def price_of(target: Target, file: str | None) -> tuple[float | None, float | None, str]:
    """(USD an hour on demand, USD an hour spot, where from), of all devices of a target.

    First the user's own table, then the SkyPilot catalog of this machine, then the table of jaxlean.
    """
    device, number = target.device, target.num_devices
    own = file is not None and any(
        entry.target == device.target and entry.usd_per_hour is not None for entry in table(file)
    )
    if device.per == "vcpu":
        number = num_vcpus()
    elif not own and device.skypilot is not None and (found := cheapest(device.skypilot)) is not None:
        spot = found.usd_per_hour_spot
        return (
            None if found.usd_per_hour is None else found.usd_per_hour * number,
            None if spot is None else spot * number,
            found.source,
        )
    spot = device.usd_per_hour_spot
    return (
        None if device.usd_per_hour is None else device.usd_per_hour * number,
        None if spot is None else spot * number,
        device.source or "no price in the table",
    )


def offer(row: Row, target: Target, work: JobSize, file: str | None) -> Offer:
    """A row with what its job costs there, and a note where it is several machines."""
    row = replace(row, note="\n".join(filter(None, (row.note, target.note))))
    if row.step_seconds is None or row.step_seconds <= 0:
        return Offer(row, target.num_devices, None, None, None, None, None, "")
    hours = row.step_seconds * work.num_steps / 3600
    usd, spot, source = price_of(target, file)
    power = watts(target.device, target.num_devices)
    return Offer(
        row,
        target.num_devices,
        work.rows * work.length / row.step_seconds,
        hours,
        None if usd is None else usd * hours,
        None if spot is None else spot * hours,
        None if power is None else power * hours / 1000,
        source,
    )


def ranked(
    offers: Sequence[Offer], *, deadline_hours: float | None = None, max_usd: float | None = None
) -> list[Offer]:
    """The cheapest first, those that cannot be or may not be after them; each with the reason why it lost.

    Args:
        deadline_hours: longer ones may not be.
        max_usd: dearer ones may not be.
    """

    def refused(found: Offer) -> str:
        row = found.row
        if row.status == "failed" or row.status == "nothing" or found.hours is None:
            return row.note or row.status
        written = "as written: " if row.as_written else ""
        mends = f"; {row.remedy}" if row.remedy else ""
        if row.memory is not None and row.capacity is not None and row.memory > row.capacity:
            return f"{written}does not fit by {say_bytes(row.memory - row.capacity)}{mends}"
        if row.status == "too large":
            return f"{written}does not fit: the compiler finds no room for it{mends}"
        if deadline_hours is not None and found.hours > deadline_hours:
            return f"{found.hours - deadline_hours:.2g} h over the deadline"
        if max_usd is not None and found.usd is not None and found.usd > max_usd:
            return f"${found.usd - max_usd:.2f} over the limit"
        if max_usd is not None and found.usd is None:
            return "no price: whether it is within the limit is not known"
        return ""

    reasons = [refused(found) for found in offers]
    able = [found for found, reason in zip(offers, reasons, strict=True) if not reason]
    # a price that is not known is no price: those come after
    able.sort(key=lambda o: (o.usd is None, o.usd if o.usd is not None else o.hours, o.hours))
    out: list[Offer] = []
    for place, found in enumerate(able):
        out.append(replace(found, why="" if place == 0 else _worse(found, able[0])))
    lost = [replace(found, why=reason) for found, reason in zip(offers, reasons, strict=True) if reason]
    return out + lost


def _worse(found: Offer, best: Offer) -> str:
    assert found.hours is not None
    assert best.hours is not None
    parts = []
    if found.usd is None:
        parts.append("no price")
    elif best.usd:
        dearer = found.usd / best.usd
        parts.append(f"{_times(dearer)} dearer" if dearer > 1.05 else "as cheap")
    ratio = found.hours / best.hours
    slower, faster = f"{_times(ratio)} slower", f"{_times(1 / ratio)} faster"
    parts.append(slower if ratio > 1.02 else faster if ratio < 0.98 else "as fast")
    return ", ".join(parts)


def _times(ratio: float) -> str:
    return f"{ratio:.2g}x" if ratio < 99.5 else f"{ratio:,.0f}x"
