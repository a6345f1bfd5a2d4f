"""How much energy a run takes, and how that is known.

With codecarbon (`pip install 'jaxlean[energy]'`, github.com/mlco2/codecarbon): GPUs by NVML and processors by RAPL
where the machine lets them be read, what cannot be read by codecarbon's models of it. Without, and for TPUs, which
nobody can read: the board power in the hardware table times the time, which is what a busy device takes at most. Only
what was read off a device is called measured.
"""

import contextlib
import glob
import importlib.util
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from jaxlean.cost.hardware import Device
from jaxlean.cost.price import watts

_RAPL = "/sys/class/powercap/*rapl*/energy_uj"
# A reading of NVML and of the load of every process takes 0.1 s.
_FRESH_SECONDS = 5.0


class EnergyMeter:
    """Energy of a run from when it is made, on all machines, which are taken to be alike.

    Args:
        device: what the table knows of one; None: nothing.
        num_devices: of the run.
        num_hosts: machines.
        pue: energy of the data centre over that of its machines.
        library: use codecarbon where it is installed.
        clock: seconds.
    """

    def __init__(
        self,
        device: Device | None,
        num_devices: int,
        *,
        num_hosts: int = 1,
        pue: float = 1.0,
        library: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._clock, self._pue, self._hosts = clock, pue, num_hosts
        self._watts = watts(device, num_devices, num_hosts=num_hosts)
        self._device = device
        self._started, self._closed = clock(), False
        self._last_of_table: float | None = None
        self._reader = _Reader() if library and importlib.util.find_spec("codecarbon") is not None else None
        self._read, self._read_at = 0.0, -_FRESH_SECONDS

    def kwh(self, *, fresh: bool = False) -> float | None:
        """So far; None where nothing is known of the devices.

        Args:
            fresh: read now, however short ago the last reading was.
        """
        table = self._of_table()
        found = None if self._reader is None else self._reading(fresh)
        if found is None:
            return None if table is None else table * self._pue
        return (found * self._hosts + ((table or 0.0) if self._is_tpu else 0.0)) * self._pue

    @property
    def is_measured(self) -> bool:
        """Whether what computes was read off the device."""
        if self._reader is None or self._is_tpu:
            return False
        return self._reader.reads_gpus or (self._platform != "gpu" and self._reader.reads_processors)

    @property
    def source(self) -> str:
        """How it is known, beginning with "measured" or "modelled"."""
        of_table = "" if self._watts is None else f"{self._watts:,.4g} W of the hardware table times the time"
        if self._reader is None or self._reader.failed:
            return f"modelled: {of_table}" if of_table else "not known: no watts in the hardware table"
        parts = [*([of_table] if self._is_tpu and of_table else []), self._reader.source]
        hosts = f"; of {self._hosts} machines alike" if self._hosts > 1 else ""
        centre = f"; PUE {self._pue:g}" if self._pue != 1 else ""
        return f"{'measured' if self.is_measured else 'modelled'}: {'; '.join(parts)}{hosts}{centre}"

    def close(self) -> None:
        """Stop reading. `kwh` stays what it is."""
        if self._closed:
            return
        if self._reader is not None:
            self._reading(fresh=True)
            self._reader.close()
        self._last_of_table, self._closed = self._of_table(), True

    @property
    def _platform(self) -> str | None:
        return None if self._device is None else self._device.platform

    @property
    def _is_tpu(self) -> bool:
        return self._platform == "tpu"

    def _of_table(self) -> float | None:
        if self._closed:
            return self._last_of_table
        return None if self._watts is None else self._watts * (self._clock() - self._started) / 3.6e6

    def _reading(self, fresh: bool) -> float | None:
        assert self._reader is not None
        if self._reader.failed:
            return None
        now = self._clock()
        if not self._closed and (fresh or now - self._read_at >= _FRESH_SECONDS):
            self._read, self._read_at = self._reader.kwh() or self._read, now
        return self._read


class _Reader:
    """codecarbon, which is slow to start (it looks up the processor) and so starts beside the loading."""

    def __init__(self) -> None:
        self._last: Any = None
        self._tracker: Any = None
        self._hardware: dict[str, Any] = {}
        self._starting = threading.Thread(target=self._start, name="jaxlean-energy", daemon=True)
        self._starting.start()

    def _start(self) -> None:
        logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
        with contextlib.suppress(Exception):  # it knows no such machine: the table has the word
            from codecarbon import OfflineEmissionsTracker
            from codecarbon.output_methods.base_output import BaseOutput

            reader = self

            class Output(BaseOutput):
                def out(self, total: Any, delta: Any) -> None:
                    reader._last = total

            tracker = OfflineEmissionsTracker(
                country_iso_code="USA",  # of energy alone: it would guess where we are by our address
                save_to_file=False, save_to_api=False, save_to_prometheus=False, save_to_logfire=False,
                output_handlers=[Output()], log_level="critical", allow_multiple_runs=True,
                tracking_mode="process",
            )  # fmt: skip
            tracker.start()
            self._hardware = tracker.get_detected_hardware()
            self._tracker = tracker

    @property
    def failed(self) -> bool:
        self._starting.join()
        return self._tracker is None

    @property
    def reads_gpus(self) -> bool:
        return not self.failed and bool(self._hardware.get("gpu_count"))

    @property
    def reads_processors(self) -> bool:
        return not self.failed and any(os.access(file, os.R_OK) for file in glob.glob(_RAPL))

    @property
    def source(self) -> str:
        gpus = [f"{self._hardware['gpu_model']} by NVML"] if self.reads_gpus else []
        known = "by RAPL" if self.reads_processors else "by its load and a table of processors"
        return f"codecarbon: {', '.join([*gpus, f'processor {known}', 'memory by its size'])}"

    def kwh(self) -> float | None:
        if self.failed:
            return None
        self._tracker.flush()
        return None if self._last is None else float(self._last.energy_consumed)

    def close(self) -> None:
        if not self.failed:
            self._tracker.stop()
