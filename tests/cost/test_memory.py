"""Peak memory of the device or the process."""

import platform
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from jaxlean.cost import memory


def device(peak):
    return types.SimpleNamespace(memory_stats=lambda: None if peak is None else {"peak_bytes_in_use": peak})


def test_the_most_loaded_device_counts(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: [device(5), device(9), device(7)])
    assert memory.peak_memory_bytes() == 9
    assert memory.process_peak_bytes() > 1e7, "the process's own, whatever devices count"
    assert "peak_bytes_in_use" in memory.memory_source()


def test_the_process_where_devices_do_not_count(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: [device(None)])
    assert "process" in memory.memory_source()
    before = memory.peak_memory_bytes()
    block = np.ones(before // 8 + (64 << 20) // 8)  # more than the process ever had
    after = memory.peak_memory_bytes()
    assert after >= before + (32 << 20)
    del block
    assert memory.peak_memory_bytes() >= after - (4 << 20)  # the kernel counts pages in batches


@pytest.mark.parametrize(("system", "unit"), [("darwin", 1), ("linux", 1024), ("freebsd14", 1024)])
def test_getrusage_counts_bytes_on_macos_and_kilobytes_elsewhere(monkeypatch, tmp_path, system, unit):
    import resource

    monkeypatch.setattr(memory, "_STATUS", tmp_path / "none")
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(resource, "getrusage", lambda who: types.SimpleNamespace(ru_maxrss=1000))
    assert memory._process_peak() == (1000 * unit, "peak resident set of the process (getrusage)")


def test_proc_status_counts_kilobytes(monkeypatch, tmp_path):
    status = tmp_path / "status"
    status.write_text("VmPeak:\t 900 kB\nVmHWM:\t 123 kB\nVmRSS:\t 100 kB\n")
    monkeypatch.setattr(memory, "_STATUS", status)
    monkeypatch.setattr(memory, "_highest", 0)  # of what ran before in this process
    assert memory._process_peak() == (123 * 1024, "peak resident set of the process (VmHWM)")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps what was freed")
def test_what_is_free_goes_back_to_the_system():
    code = """
from jaxlean.cost.memory import give_back
def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS:"))
blocks = [bytes(100_000) + bytes([number % 256]) for number in range(1000)]
pinned = [bytes(50_000) for _ in range(10)]  # lies above them: the heap cannot shrink by itself
del blocks
before = resident()
give_back()
print(before - resident())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 50e6


def test_another_c_library_has_nothing_to_give(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: types.SimpleNamespace())
    memory.give_back()


def test_copies_for_a_checkpoint_are_no_memory_of_a_step(monkeypatch):
    told = {"VmRSS:": 1000, "VmHWM:": 1000}
    monkeypatch.setattr(memory, "_device_peak", lambda: None)
    monkeypatch.setattr(memory, "_status", told.__getitem__)
    counted = memory.StepMemory()
    assert counted.held() is None
    counted.before_host_copies()
    counted.begin(100, 2)
    told["VmHWM:"] = 1400
    assert counted.held() == 100 + 400 // 2
    counted.before_host_copies()
    told["VmHWM:"] = 5000
    counted.before_host_copies()
    assert counted.held() == 300
    counted.begin(100, 1)  # the next process of a run
    assert counted.held() == 4100
