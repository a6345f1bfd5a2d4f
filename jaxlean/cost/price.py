"""What a run costs in USD.

A price comes from the first of: `cost.usd_per_hour`, the user's table `cost.hardware`, the built-in table. Where none
has one the price is unknown, with the reason; it is never guessed. With `cost.pricing: electricity` what is paid is
energy, at `cost.usd_per_kwh`.
"""

import os
from dataclasses import dataclass
from typing import Literal

from jaxlean.config import CostSection
from jaxlean.cost.hardware import Device, of_kind

Pricing = Literal["on_demand", "spot", "own", "electricity"]


@dataclass(frozen=True)
class Price:
    """Price of all devices of a run together.

    Args:
        usd_per_hour: None where it is not known, or where energy is what is paid.
        source: where the number is from, or why there is none.
        usd_per_kwh: of electricity, where that is what is paid.
    """

    usd_per_hour: float | None
    source: str
    usd_per_kwh: float | None = None

    def usd(self, seconds: float, kwh: float | None = None) -> float | None:
        """What a run costs that took so long and so much energy; None where the price, or the energy, is not known."""
        if self.usd_per_kwh is not None:
            return None if kwh is None else self.usd_per_kwh * kwh
        return None if self.usd_per_hour is None else self.usd_per_hour * seconds / 3600.0


def lookup(device_kind: str, num_devices: int, cost: CostSection, *, num_hosts: int = 1) -> Price:
    """Price of `num_devices` devices of a kind, as `cost.pricing` says.

    Args:
        device_kind: as jax says it: `jax.devices()[0].device_kind` ("NVIDIA H100 80GB HBM3", "TPU v5 lite", "cpu").
        num_devices: devices of the run. CPU devices are threads of one machine: its price does not grow with them.
        cost: the config's section.
        num_hosts: machines, taken to be alike.

    Raises:
        ConfigError: the user's table cannot be read, or holds an unknown key or a wrong value.
    """
    every = prices(device_kind, num_devices, cost, num_hosts=num_hosts)
    if cost.pricing == "electricity":
        return every["electricity"]
    return every["own"] if cost.usd_per_hour is not None else every[cost.pricing]


def prices(device_kind: str, num_devices: int, cost: CostSection, *, num_hosts: int = 1) -> dict[Pricing, Price]:
    """The same run by every price there is: on demand, spot, the user's own, electricity alone.

    Args and raises: as `lookup`.
    """
    found = of_kind(device_kind, cost.hardware)
    own_entry = of_kind(device_kind) if cost.hardware is not None else found

    def of_table(rate: float | None, builtin: float | None, what: str) -> Price:
        if found is None or rate is None:
            known = "is not in" if found is None else f"has no {what} in"
            return Price(None, f"{device_kind!r} {known} the hardware table; set cost.usd_per_hour or cost.hardware")
        table = "built-in table" if builtin == rate else cost.hardware
        number, unit = _number(found, num_devices, num_hosts), "vCPU" if found.per == "vcpu" else found.name
        given = found.source or "no source given"
        return Price(rate * number, f"{number} x {unit or device_kind} at {rate:g} USD/h ({table}: {given})")

    def rates(entry: Device | None) -> tuple[float | None, float | None]:
        return (None, None) if entry is None else (entry.usd_per_hour, entry.usd_per_hour_spot)

    (demand, spot), (own_demand, own_spot) = rates(found), rates(own_entry)
    return {
        "on_demand": of_table(demand, own_demand, "price"),
        "spot": of_table(spot, own_spot, "spot price"),
        "own": Price(cost.usd_per_hour, "cost.usd_per_hour" if cost.usd_per_hour is not None else "none is set"),
        "electricity": Price(None, "cost.usd_per_kwh" if cost.usd_per_kwh is not None else "set cost.usd_per_kwh",
                             cost.usd_per_kwh),
    }  # fmt: skip


def watts(device: Device | None, num_devices: int, *, num_hosts: int = 1) -> float | None:
    """Power of a run's devices at full load, by the table; None where it does not know."""
    if device is None or device.watts is None:
        return None
    return device.watts * _number(device, num_devices, num_hosts)


def _number(device: Device, num_devices: int, num_hosts: int) -> int:
    """What the table's numbers are of: devices, or processors of the machines."""
    return num_vcpus() * num_hosts if device.per == "vcpu" else num_devices


def num_vcpus() -> int:
    """Processors this process may use: a container or `taskset` may allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
