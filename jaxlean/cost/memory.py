"""How much memory the run has used at most: of the device where it counts that itself, else of this process."""

import contextlib
import ctypes
import gc
import sys
from pathlib import Path

# Linux counts the peak resident set here, in kB (proc_pid_status(5)).
_STATUS = Path("/proc/self/status")
# 5 written here makes it count the peak anew (proc_pid_clear_refs(5)).
_CLEAR = Path("/proc/self/clear_refs")
# The peak before that.
_highest = 0


def peak_memory_bytes() -> int:
    """Peak memory so far, in bytes: the most that any local GPU or TPU had in use, on CPU that of the process.

    The process's peak counts everything since it started: loading and compiling too, and Python itself.
    """
    device = _device_peak()
    return _process_peak()[0] if device is None else device


class StepMemory:
    """The most that one device holds while the steps of a run are under way.

    GPUs and TPUs count it themselves. For CPU devices it is what they are handed, and each one's share of what the
    process takes beyond what it had when they began: Linux counts its peak anew from there.
    """

    def __init__(self) -> None:
        self._base = self._arguments = 0
        self._devices = 1
        self._held: int | None = None

    def begin(self, arguments: int, num_devices: int) -> None:
        """From here on the steps run.

        Args:
            arguments: bytes of theirs on one device, which are there already.
            num_devices: of this process.
        """
        global _highest
        _highest = max(_highest, _process_peak()[0])
        give_back()
        self._base, self._arguments, self._devices, self._held = _status("VmRSS:"), arguments, num_devices, None
        with contextlib.suppress(OSError):
            _CLEAR.write_text("5", encoding="utf-8")

    def held(self) -> int | None:
        """Bytes, on one device; None where nothing counts them."""
        device = _device_peak()
        if device is not None:
            return device
        if not self._base:
            return None
        if self._held is not None:
            return self._held
        return self._arguments + max(_status("VmHWM:") - self._base, 0) // self._devices

    def before_host_copies(self) -> None:
        """What the process takes from here on is more than the devices hold: copies of the state for a checkpoint."""
        if self._base and self._held is None:
            self._held = self.held()


def process_peak_bytes() -> int:
    """Resident memory of this process at its peak, whatever accelerators have in use."""
    return _process_peak()[0]


def memory_source() -> str:
    """Where `peak_memory_bytes` has its number from, for the report."""
    return _process_peak()[1] if _device_peak() is None else "device memory_stats()['peak_bytes_in_use']"


def give_back() -> None:
    """Return memory that is free to the system, where the C library keeps it (glibc does).

    After a model is loaded and its step compiled that is 0.2 to 0.3 GB, which the steps' peak would stand on.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _device_peak() -> int | None:
    import jax

    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    return max((peak for peak in peaks if peak is not None), default=None)


def _status(key: str) -> int:
    """A number of bytes from /proc/self/status; 0 where there is none."""
    try:
        status = _STATUS.read_text(encoding="utf-8")
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(key)), 0)


def _process_peak() -> tuple[int, str]:
    found = _status("VmHWM:")
    if found:
        return max(found, _highest), "peak resident set of the process (VmHWM)"
    if sys.platform == "win32":
        return 0, "not measured on Windows"
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # The one field of getrusage whose unit differs: bytes on macOS, kB everywhere else.
    return (peak if sys.platform == "darwin" else peak * 1024), "peak resident set of the process (getrusage)"
