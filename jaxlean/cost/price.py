"""What a run costs in USD, and what its devices can do: a table the user may edit, `cost/prices.yaml`.

A price comes from the first of: `cost.usd_per_hour`, the user's table `cost.prices`, the built-in table. Where none
has one the price is unknown, with the reason; it is never guessed.
"""

import os
import re
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from jaxlean.config import CostSection
from jaxlean.errors import ConfigError, did_you_mean


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


@dataclass(frozen=True)
class Device:
    """What the table knows of one kind of device; None where it does not.

    Args:
        name: what people call it.
        usd_per_hour: of one device (one vCPU where `per` is vcpu).
        per: "device" or "vcpu".
        peak_tflops_bf16: dense peak, 10^12 operations a second.
        memory_gb: 10^9 bytes.
        watts: board power.
        source: of the price.
        match: regular expression for the whole of jax's `device_kind`.
    """

    match: str
    name: str | None = None
    usd_per_hour: float | None = None
    per: str = "device"
    peak_tflops_bf16: float | None = None
    memory_gb: float | None = None
    watts: float | None = None
    source: str | None = None

    @property
    def peak_flops_per_second(self) -> float | None:
        """Dense bfloat16 peak of one device."""
        return None if self.peak_tflops_bf16 is None else self.peak_tflops_bf16 * 1e12

    @property
    def memory_bytes(self) -> int | None:
        """Memory of one device."""
        return None if self.memory_gb is None else round(self.memory_gb * 1e9)


def lookup(device_kind: str, num_devices: int, cost: CostSection) -> Price:
    """Price of `num_devices` devices of a kind.

    Args:
        device_kind: as jax says it: `jax.devices()[0].device_kind` ("NVIDIA H100 80GB HBM3", "TPU v5 lite", "cpu").
        num_devices: devices of the run. CPU devices are threads of one machine: its price does not grow with them.
        cost: `usd_per_hour` and `prices` of the config.

    Raises:
        ConfigError: the user's table cannot be read, or holds an unknown key or a wrong value.
    """
    user = _find(device_kind, _read(Path(cost.prices))) if cost.prices is not None else None
    if cost.usd_per_hour is not None:
        return Price(cost.usd_per_hour, "cost.usd_per_hour")
    builtin = _find(device_kind, _read(None))
    for device, table in ((user, cost.prices), (builtin, "built-in table")):
        if device is None or device.usd_per_hour is None:
            continue
        number, unit = (_vcpus(), "vCPU") if device.per == "vcpu" else (num_devices, device.name or device_kind)
        source = f"{number} x {unit} at {device.usd_per_hour:g} USD/h ({table}: {device.source or 'no source given'})"
        return Price(device.usd_per_hour * number, source)
    known = "has no price in" if user or builtin else "is not in"
    return Price(None, f"{device_kind!r} {known} the price table; set cost.usd_per_hour or cost.prices")


def device(device_kind: str, cost: CostSection) -> Device | None:
    """What is known of a kind of device: the user's entry, else the built-in one; None for an unknown kind.

    What the user's entry leaves out (peak, memory, watts) the built-in one fills in.

    Raises:
        ConfigError: as `lookup`.
    """
    user = _find(device_kind, _read(Path(cost.prices))) if cost.prices is not None else None
    builtin = _find(device_kind, _read(None))
    if user is None or builtin is None:
        return user or builtin
    return Device(**{**_given(builtin), **_given(user)})


def _given(device: Device) -> dict[str, Any]:
    return {f.name: value for f in fields(device) if (value := getattr(device, f.name)) is not None}


def _find(device_kind: str, table: list[Device]) -> Device | None:
    return next((entry for entry in table if re.fullmatch(entry.match, device_kind, re.IGNORECASE)), None)


def _vcpus() -> int:
    """Processors this process may use: a container or `taskset` may allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read(file: Path | None) -> list[Device]:
    """A price table; None: the built-in one."""
    where = file or "jaxlean/cost/prices.yaml"
    try:
        text = (file or resources.files("jaxlean.cost").joinpath("prices.yaml")).read_text(encoding="utf-8")
        table = yaml.safe_load(text)
    except FileNotFoundError:
        raise ConfigError("no such price table", where=f"cost.prices={where}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("the price table cannot be read", where=where, got=error) from None
    except yaml.YAMLError as error:
        raise ConfigError("the price table is not valid YAML", where=where, got=error) from None
    entries = table.get("devices") if isinstance(table, dict) else None
    if not isinstance(entries, list):
        raise ConfigError("a price table has a list under 'devices'", where=where, fix="see jaxlean/cost/prices.yaml")
    return [_entry(entry, f"{where}: devices[{i}]") for i, entry in enumerate(entries)]


def _entry(entry: Any, where: str) -> Device:
    if not isinstance(entry, dict) or "match" not in entry:
        raise ConfigError("an entry of the price table has a 'match'", where=where, got=entry)
    texts, known = ("match", "name", "per", "source"), [f.name for f in fields(Device)]
    for key, value in entry.items():
        if key not in known:
            raise ConfigError(f"unknown key in the price table: {key}", where=where, fix=did_you_mean(str(key), known))
        number = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
        if not (isinstance(value, str) if key in texts else value is None or number):
            wanted = "text" if key in texts else "a number, not negative"
            raise ConfigError(f"{key} is not {wanted}", where=where, got=repr(value))
    if entry.get("per", "device") not in ("device", "vcpu"):
        raise ConfigError("per is device or vcpu", where=where, got=repr(entry["per"]))
    try:
        re.compile(entry["match"])
    except re.error as error:
        got = repr(entry["match"])
        raise ConfigError("match is not a regular expression", where=where, got=got, fix=str(error)) from None
    return Device(**entry)
