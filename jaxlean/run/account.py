"""What a run comes to in hours, FLOPs, energy and dollars: for its summary, and as a row of the ledger."""

import contextlib
import getpass
import sqlite3
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jaxlean import __version__
from jaxlean.config import CostSection, RunConfig
from jaxlean.cost.flops import model_flops_utilisation
from jaxlean.cost.ledger import Entry, enter, file_of
from jaxlean.cost.price import lookup, prices
from jaxlean.cost.region import intensity
from jaxlean.errors import UserError
from jaxlean.run.predict import Machine

# What quality is told by, where it was measured: the first.
_METRICS = ("exact_match", "f1", "accuracy", "mrr", "loss")


class Account:
    """One run's.

    Args:
        config: of the run.
        machine: that it runs on.
        device_kind: as jax says it.
        num_hosts: machines.

    Attributes:
        price: by which it is paid.
        flops_per_step: useful ones, without what is computed twice; None: not known.

    Raises:
        ConfigError: the tables of hardware or regions cannot be read, or lack what the config names.
    """

    def __init__(self, config: RunConfig, machine: Machine, device_kind: str, *, num_hosts: int = 1):
        self._config, self._machine, self._kind = config, machine, device_kind
        cost: CostSection = config.cost
        self.price = lookup(device_kind, machine.num_devices, cost, num_hosts=num_hosts)
        self._prices = prices(device_kind, machine.num_devices, cost, num_hosts=num_hosts)
        self._intensity = intensity(cost)
        # the devices of a CPU are threads of one machine
        self._accelerators = num_hosts if machine.platform == "cpu" else machine.num_devices
        self.flops_per_step: float | None = None
        self.run, self.started = uuid.uuid4().hex, _now()

    # ---- across processes

    def state(self) -> dict[str, str]:
        """What a resumed run must know."""
        return {"run": self.run, "started": self.started}

    def restore(self, state: Mapping[str, str] | None) -> None:
        """Go on with the row of the run that is resumed."""
        if state is not None:  # a checkpoint of an earlier version has none
            self.run, self.started = state["run"], state["started"]

    # ---- figures

    def figures(self, totals: Mapping[str, Any], steps: int) -> dict[str, Any]:
        """What follows from a meter's totals; keys of `Summary`."""
        seconds, kwh = totals["seconds"], totals["kwh"]
        each = totals["flops_per_step"]
        return {
            "accelerator_hours": seconds / 3600 * self._accelerators,
            "flops": None if each is None else each * steps,
            "mfu": self._mfu(totals["measured_step_seconds"]),
            "gco2e": self._intensity.gco2e(kwh),
            "gco2e_source": self._intensity.source,
            "price_source": self.price.source,
            "usd_by_price": {
                name: usd for name, by in self._prices.items() if (usd := by.usd(seconds, kwh)) is not None
            },
        }

    def _mfu(self, step_seconds: float | None) -> float | None:
        # what is multiplied in fewer bits is still measured by what bfloat16 would reach
        wide = self._config.model.dtype == "float32"
        peak = self._machine.device.tflops.get("float32" if wide else "bfloat16")
        if peak is None or not step_seconds or self.flops_per_step is None:
            return None
        return model_flops_utilisation(self.flops_per_step, step_seconds, peak * 1e12, self._machine.num_devices)

    # ---- the ledger

    def enter(self, summary: Mapping[str, Any], say: Callable[[str], Any]) -> None:
        """Write the run's row; that it cannot be written is worth a line, not a run."""
        with contextlib.suppress(RuntimeError):  # of pathlib: a user without a home
            file = file_of(self._config.cost.ledger)
            if file is not None:
                try:
                    enter(file, self.entry(summary))
                except (UserError, sqlite3.Error, OSError) as error:
                    say(f"ledger: this run is not entered: {error}")

    def entry(self, summary: Mapping[str, Any]) -> Entry:
        """The row of a run, from its summary."""
        config = self._config
        metric, before, after, reference = _quality(summary)
        copied: dict[str, Any] = {key: summary.get(key) for key in _COPIED}
        return Entry(
            run=self.run,
            started=self.started,
            ended=_now(),
            project=config.cost.project or Path.cwd().name,
            person=_person(),
            model=config.model.path or (config.model.architecture or {}).get("model_type", "-"),
            task=config.task,
            folder=str(Path(config.output_dir).absolute()),
            name=config.report.run_name,
            status=summary["status"],
            device=self._machine.device.name or self._kind,
            num_devices=self._machine.num_devices,
            metric=metric,
            quality_before=before,
            quality_after=after,
            quality_reference=reference,
            version=__version__,
            tags=list(config.cost.tags),
            **copied,
        )


_COPIED = (
    *("seconds", "accelerator_hours", "accelerator_utilization", "steps", "tokens", "flops", "mfu"),
    *("peak_memory_bytes", "kwh", "energy_source", "gco2e", "usd", "price_source"),
)  # fmt: skip


def _quality(summary: Mapping[str, Any]) -> tuple[str | None, float | None, float | None, float | None]:
    """(what it is measured in, of the base, of the result, of a teacher)."""
    measured = [summary.get(key) or {} for key in ("eval_before", "eval_after", "eval_teacher")]
    metric = next((name for name in _METRICS if any(found.get(name) is not None for found in measured)), None)
    before, after, teacher = (found.get(metric) if metric else None for found in measured)
    return metric, before, after, teacher


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _person() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's nameless user
        return "-"
