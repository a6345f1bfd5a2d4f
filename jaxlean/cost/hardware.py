"""What devices cost and can do: `configs/hardware.yaml`, which the user may edit, as one `Device` an entry.

An entry of the user's own table (`cost.hardware`) goes before the one that comes with jaxlean; what it leaves out the
other fills in.
"""

import re
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from jaxlean.errors import ConfigError, did_you_mean

Platform = Literal["cpu", "gpu", "tpu"]
Format = Literal["bfloat16", "float32", "int8", "float8"]
Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return pattern


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Gpu(_Entry):
    """The fields of XLA's `GpuTargetConfig` that differ from card to card, by XLA's names for them.

    Source: openxla/xla, `xla/backends/gpu/target_config/specs`; `unverified` ones come from data sheets.
    """

    capability: str = Field(pattern=r"^\d+\.\d$")
    core_count: int
    fpus_per_core: int
    shared_memory_per_core: int
    shared_memory_per_block_optin: int
    threads_per_core_limit: int
    memory_bandwidth: int
    l2_cache_size: int
    clock_rate_ghz: float
    device_memory_size: int
    unverified: bool = False


class Device(_Entry):
    """One kind of device; None where the table does not know. The table's head says what each field means."""

    match: Annotated[str, AfterValidator(_compiles)]
    target: str | None = None
    name: str | None = None
    platform: Platform | None = None
    usd_per_hour: Number | None = None
    usd_per_hour_spot: Number | None = None
    per: Literal["device", "vcpu"] = "device"
    source: str | None = None
    memory_gb: Rate | None = None
    tflops: dict[Format, Rate] = Field(default_factory=dict)
    memory_gb_per_second: Rate | None = None
    link_gb_per_second: Rate | None = None
    network_gb_per_second: Rate | None = None
    network_microseconds: Number | None = None
    network_source: str | None = None
    watts: Number | None = None
    max_devices: Annotated[int, Field(gt=0)] | None = None
    gpu: Gpu | None = None
    tpu: str | None = None
    per_chip: int = Field(1, ge=1)
    skypilot: str | None = None

    @property
    def memory_bytes(self) -> int | None:
        """Memory of one device."""
        return None if self.memory_gb is None else round(self.memory_gb * 1e9)

    def flops_per_second(self, dtype: Format) -> float | None:
        """Dense peak of one device for products of a dtype."""
        peak = self.tflops.get(dtype)
        return None if peak is None else peak * 1e12


def of_kind(device_kind: str, file: str | None = None) -> Device | None:
    """What is known of a kind of device; None for an unknown kind.

    Args:
        device_kind: as jax says it: `jax.devices()[0].device_kind` ("NVIDIA H100 80GB HBM3", "TPU v5 lite", "cpu").
        file: the user's table.

    Raises:
        ConfigError: the user's table cannot be read, or holds an unknown key or a wrong value.
    """
    return _joined(lambda entry: re.fullmatch(entry.match, device_kind, re.IGNORECASE) is not None, file)


def of_target(target: str, file: str | None = None) -> Device:
    """What is known of a target by its name in the table ("h100-80gb", "v5e").

    Raises:
        ConfigError: no entry has that name; says how to add one. Or as `of_kind`.
    """
    found = _joined(lambda entry: entry.target == target, file)
    if found is None:
        known = [entry.target for entry in (*table(file), *table(None)) if entry.target is not None]
        raise ConfigError(
            "no such target in the hardware table",
            got=target,
            fix=f"{did_you_mean(target, known)}; or copy configs/hardware.yaml, add an entry, and name the copy in "
            "cost.hardware",
        )
    return found


def table(file: str | None) -> tuple[Device, ...]:
    """The entries of the user's table, or (None) of the built-in one; none where the user has no table.

    Raises:
        ConfigError: as `of_kind`.
    """
    return _read(str(built_in() if file is None else file), file is None)


def built_in() -> Path:
    """The table that comes with jaxlean: inside of the installed package, or in the source tree's `configs`."""
    packaged = Path(str(resources.files("jaxlean.cost").joinpath("hardware.yaml")))
    return packaged if packaged.exists() else Path(__file__).parents[2] / "configs" / "hardware.yaml"


def _joined(wanted: Any, file: str | None) -> Device | None:
    user = next(filter(wanted, table(file)), None) if file is not None else None
    builtin = next(filter(wanted, table(None)), None)
    if user is None or builtin is None:
        return user or builtin
    given = {key: getattr(user, key) for key in user.model_fields_set}
    return builtin.model_copy(update=given)


@lru_cache
def _read(file: str, own: bool) -> tuple[Device, ...]:
    where = file if not own else "configs/hardware.yaml"
    try:
        found = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("no such hardware table", where=f"cost.hardware={where}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("the hardware table cannot be read", where=where, got=error) from None
    except yaml.YAMLError as error:
        raise ConfigError("the hardware table is not valid YAML", where=where, got=error) from None
    entries = found.get("devices") if isinstance(found, dict) else None
    if not isinstance(entries, list):
        raise ConfigError("a hardware table has a list under 'devices'", where=where, fix="see configs/hardware.yaml")
    return tuple(_entry(entry, f"{where}: devices[{i}]") for i, entry in enumerate(entries))


def _entry(entry: Any, where: str) -> Device:
    try:
        return Device.model_validate(entry)
    except ValidationError as error:
        # a misspelt key is also a missing one: the first says more
        first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
        key = ".".join(str(part) for part in first["loc"]) or "an entry"
        if first["type"] == "extra_forbidden":
            model = Gpu if first["loc"][0] == "gpu" else Device
            fix = did_you_mean(str(first["loc"][-1]), model.model_fields)
            raise ConfigError(f"unknown key in the hardware table: {key}", where=where, fix=fix) from None
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"hardware table, {key}: {message}", where=where, got=repr(first.get("input"))) from None
