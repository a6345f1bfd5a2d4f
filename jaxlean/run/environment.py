"""What a run stands on: versions, machine, devices, settings. `jaxlean env` prints it to be pasted into an issue."""

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from jaxlean.config import CostSection
from jaxlean.cost import price
from jaxlean.run.units import show_bytes

PACKAGES = ("jaxlean", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "datasets", "grain")


def versions() -> dict[str, str]:
    """Installed versions of jaxlean and what it stands on, read from package metadata: nothing is imported."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def environment(cost: CostSection | None = None) -> dict[str, Any]:
    """Everything a bug report needs, JSON-able.

    Args:
        cost: where the price is looked up; default: the built-in table.

    Returns:
        versions, os, cpu, num_cores, memory_bytes (of the machine; None where it cannot be known), devices (kind,
        count, memory_bytes of one), device_error (None, or why jax found none), settings (XLA_* and JAX_* variables),
        compilation_cache (the folder that a run would use, or None), usd_per_hour (None where not known), price_source.
    """
    devices, device_error, cache = _devices()
    found: dict[str, Any] = {
        "versions": versions(),
        "os": platform.platform(),
        "cpu": _cpu(),
        "num_cores": os.cpu_count(),
        "memory_bytes": _memory(),
        "devices": devices,
        "device_error": device_error,
        "settings": {key: os.environ[key] for key in sorted(os.environ) if key.startswith(("XLA_", "JAX_"))},
        "compilation_cache": cache,
        "usd_per_hour": None,
        "price_source": "no device",
    }
    if devices:
        found_price = price.lookup(devices[0]["kind"], devices[0]["count"], cost or CostSection())
        found["usd_per_hour"], found["price_source"] = found_price.usd_per_hour, found_price.source
    return found


def print_environment(cost: CostSection | None = None) -> None:
    """Print `environment()` as one plain block of text."""
    print(_text(environment(cost)))


def _text(found: dict[str, Any]) -> str:
    devices = [f"{d['count']} x {d['kind']} ({show_bytes(d['memory_bytes'])})" for d in found["devices"]]
    usd = found["usd_per_hour"]
    rows = [
        *found["versions"].items(),
        ("os", found["os"]),
        ("cpu", f"{found['cpu']}, {found['num_cores']} cores"),
        ("memory", show_bytes(found["memory_bytes"])),
        ("devices", ", ".join(devices) or f"none: {found['device_error']}"),
        ("price", f"{'unknown' if usd is None else f'{usd:g} USD/h'}: {found['price_source']}"),
        ("cache", found["compilation_cache"] or "none"),
        *(found["settings"] or {"XLA_*, JAX_*": "none set"}).items(),
    ]
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name:<{width}}{value}" for name, value in rows)


def _devices() -> tuple[list[dict[str, Any]], str | None, str | None]:
    """`jax.devices()` by kind, why there are none, and the folder of the compilation cache."""
    import jax

    try:
        devices = jax.devices()
    except RuntimeError as error:  # a driver that does not fit, a GPU that another process holds
        return [], str(error), None
    kinds: dict[str, dict[str, Any]] = {}
    for device in devices:
        # A device of another process answers no questions about its memory.
        local = device.process_index == jax.process_index()
        memory = (device.memory_stats() or {}).get("bytes_limit") if local else None
        entry = kinds.setdefault(device.device_kind, {"kind": device.device_kind, "count": 0, "memory_bytes": None})
        entry["count"] += 1
        entry["memory_bytes"] = entry["memory_bytes"] or memory
    from jaxlean.xla.compile import cache_folder

    folder = cache_folder()
    return list(kinds.values()), None, None if folder is None else str(folder)


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no sysconf (Windows), or no such name (old macOS)
        return None
