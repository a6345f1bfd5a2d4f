"""What a run costs in USD.

A price comes from the first of: `cost.usd_per_hour`, the user's table `cost.hardware`, the built-in table. Where none
has one the price is unknown, with the reason; it is never guessed.
"""

import os
from dataclasses import dataclass

from jaxlean.config import CostSection
from jaxlean.cost.hardware import of_kind


@dataclass(frozen=True)
class Price:
    """Price of all devices of a run together.

    Args:
        usd_per_hour: None where it is not known.
        source: where the number is from, or why there is none.
    """

    usd_per_hour: float | None
    source: str

    def usd(self, seconds: float) -> float | None:
        """What `seconds` cost; None where the price is not known."""
        return None if self.usd_per_hour is None else self.usd_per_hour * seconds / 3600.0


def lookup(device_kind: str, num_devices: int, cost: CostSection, *, num_hosts: int = 1) -> Price:
    """Price of `num_devices` devices of a kind.

    Args:
        device_kind: as jax says it: `jax.devices()[0].device_kind` ("NVIDIA H100 80GB HBM3", "TPU v5 lite", "cpu").
        num_devices: devices of the run. CPU devices are threads of one machine: its price does not grow with them.
        cost: `usd_per_hour` and `hardware` of the config.
        num_hosts: machines, taken to be alike.

    Raises:
        ConfigError: the user's table cannot be read, or holds an unknown key or a wrong value.
    """
    found = of_kind(device_kind, cost.hardware)
    if cost.usd_per_hour is not None:
        return Price(cost.usd_per_hour, "cost.usd_per_hour")
    if found is None or found.usd_per_hour is None:
        known = "is not in" if found is None else "has no price in"
        return Price(None, f"{device_kind!r} {known} the hardware table; set cost.usd_per_hour or cost.hardware")
    own = of_kind(device_kind) if cost.hardware is not None else found
    table = "built-in table" if own is not None and own.usd_per_hour == found.usd_per_hour else cost.hardware
    number, unit = (
        (num_vcpus() * num_hosts, "vCPU") if found.per == "vcpu" else (num_devices, found.name or device_kind)
    )
    source = f"{number} x {unit} at {found.usd_per_hour:g} USD/h ({table}: {found.source or 'no source given'})"
    return Price(found.usd_per_hour * number, source)


def num_vcpus() -> int:
    """Processors this process may use: a container or `taskset` may allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
