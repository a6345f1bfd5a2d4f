"""What every benchmark says beside its numbers: command, hardware, versions, config; as a table, as JSON, as a plot."""

import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "transformers", "torch", "peft")
Row = Mapping[str, Any]


def hardware() -> dict[str, Any]:
    """The machine: processor, cores that this process may use, memory, the accelerator where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found: dict[str, Any] = {"processor": _processor(), "cores": cores, "system": platform.system()}
    if hasattr(os, "sysconf"):
        found["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    import jax

    if jax.default_backend() != "cpu":
        found["accelerator"] = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return found


def versions() -> dict[str, str]:
    """Of the packages that decide speed; those that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def publish(name: str, config: Row, rows: Sequence[Row], columns: Mapping[str, str], out: Path | None) -> None:
    """Print the table, and write `<name>.json` into `out`.

    Args:
        name: of the benchmark.
        config: what was measured.
        rows: the raw numbers, every repeat.
        columns: key of a row -> how it is printed, a format spec; a row without the key has an empty cell.
        out: folder; None writes nothing.
    """
    from rich.console import Console
    from rich.table import Table

    result = {
        "command": " ".join(["python", shlex.join(sys.argv)]),
        "hardware": hardware(),
        "versions": versions(),
        "config": dict(config),
        "rows": [dict(row) for row in rows],
    }
    console = Console(width=160)
    for key in ("command", "hardware", "versions", "config"):
        console.print(f"{key}: {result[key]}", highlight=False, soft_wrap=True)
    table = Table()
    for key in columns:
        table.add_column(key.replace("_", " "), justify="left" if columns[key] == "" else "right")
    for row in rows:
        table.add_row(*(format(row[key], spec) if row.get(key) is not None else "" for key, spec in columns.items()))
    console.print(table)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")


def median(values: Sequence[float]) -> float:
    """The middle one; of an even number the mean of the two in the middle."""
    import statistics

    return statistics.median(values)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
