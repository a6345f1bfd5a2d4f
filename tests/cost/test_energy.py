"""How much energy, and how that is known."""

import sys
import types
from typing import ClassVar

import pytest

from jaxlean.cost import energy as module
from jaxlean.cost.energy import EnergyMeter
from jaxlean.cost.hardware import of_kind

H100, TPU, CPU = (of_kind(kind) for kind in ("NVIDIA H100 80GB HBM3", "TPU v5 lite", "cpu"))


class Clock:
    now = 50.0

    def __call__(self):
        return self.now


def test_by_the_table_it_is_board_power_times_time():
    clock = Clock()
    meter = EnergyMeter(H100, 8, library=False, clock=clock)
    assert meter.kwh() == 0
    clock.now += 1800
    assert meter.kwh() == pytest.approx(8 * 0.7 / 2)
    assert meter.source == "modelled: 5,600 W of the hardware table times the time"
    assert not meter.is_measured
    meter.close()
    clock.now += 1800
    assert meter.kwh() == pytest.approx(8 * 0.7 / 2), "what is closed stays what it is"


def test_a_cpu_is_its_processors_on_every_machine_and_the_centre_adds_its_own(monkeypatch):
    monkeypatch.setattr("jaxlean.cost.price.num_vcpus", lambda: 4)
    clock = Clock()
    meter = EnergyMeter(CPU, 8, num_hosts=3, pue=1.5, library=False, clock=clock)
    clock.now += 3600
    assert meter.kwh() == pytest.approx(3.5 * 4 * 3 / 1000 * 1.5)


def test_of_an_unknown_device_nothing_is_known():
    meter = EnergyMeter(None, 1, library=False)
    assert meter.kwh() is None
    assert meter.source.startswith("not known")
    meter.close()


class Tracker:
    """codecarbon's, as far as it is used: 100 Wh at every reading."""

    hardware: ClassVar[dict] = {}
    made: ClassVar[dict] = {}

    def __init__(self, **settings):
        Tracker.made, self.read = settings, 0
        (self.output,) = settings["output_handlers"]

    def start(self):
        self.started = True

    def get_detected_hardware(self):
        return self.hardware

    def flush(self):
        self.read += 1
        self.output.out(types.SimpleNamespace(energy_consumed=0.1 * self.read), None)

    def stop(self):
        self.stopped = True


@pytest.fixture
def library(monkeypatch):
    """A stand-in for codecarbon; gives the class to set what it finds."""
    package, output = types.ModuleType("codecarbon"), types.ModuleType("codecarbon.output_methods.base_output")
    package.OfflineEmissionsTracker, output.BaseOutput = Tracker, object
    for name, found in {
        "codecarbon": package,
        "codecarbon.output_methods": types.ModuleType("codecarbon.output_methods"),
        "codecarbon.output_methods.base_output": output,
    }.items():
        monkeypatch.setitem(sys.modules, name, found)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(module, "_RAPL", "/none")
    monkeypatch.setattr(Tracker, "hardware", {"gpu_count": 0, "gpu_model": ""})
    return Tracker


def test_a_reading_is_kept_for_a_while_and_taken_anew_where_it_counts(library):
    clock = Clock()
    meter = EnergyMeter(CPU, 1, clock=clock)
    assert meter.kwh() == pytest.approx(0.1)
    clock.now += 1
    assert meter.kwh() == pytest.approx(0.1)
    assert meter.kwh(fresh=True) == pytest.approx(0.2)
    clock.now += 60
    assert meter.kwh() == pytest.approx(0.3)
    meter.close()
    assert meter.kwh(fresh=True) == pytest.approx(0.4), "closing reads once more, and then never again"
    meter.close()
    assert meter.kwh() == pytest.approx(0.4)
    assert library.made["save_to_file"] is library.made["save_to_api"] is False


def test_only_what_is_read_off_the_device_is_called_measured(library, monkeypatch, tmp_path):
    meter = EnergyMeter(CPU, 1)
    assert meter.source.startswith("modelled: codecarbon: processor by its load")
    monkeypatch.setattr(library, "hardware", {"gpu_count": 8, "gpu_model": "8 x H100"})
    assert EnergyMeter(H100, 8).source.startswith("measured: codecarbon: 8 x H100 by NVML, processor by its load")
    assert not EnergyMeter(TPU, 8).is_measured
    (tmp_path / "energy_uj").write_text("1")
    monkeypatch.setattr(module, "_RAPL", f"{tmp_path}/energy_uj")
    assert EnergyMeter(CPU, 1, pue=1.2).source == (
        "measured: codecarbon: 8 x H100 by NVML, processor by RAPL, memory by its size; PUE 1.2"
    )
    monkeypatch.setattr(library, "hardware", {"gpu_count": 0})
    assert EnergyMeter(CPU, 1).is_measured
    assert not EnergyMeter(H100, 1).is_measured


def test_a_tpu_is_of_the_table_and_its_host_is_read(library):
    clock = Clock()
    meter = EnergyMeter(TPU, 8, num_hosts=2, clock=clock)
    clock.now += 3600
    assert meter.kwh() == pytest.approx(TPU.watts * 8 / 1000 + 2 * 0.1)
    assert "W of the hardware table times the time; codecarbon" in meter.source
    assert "of 2 machines alike" in meter.source


def test_where_the_library_fails_the_table_has_the_word(library, monkeypatch):
    def fails(self):
        raise OSError("no such counter")

    monkeypatch.setattr(library, "start", fails)
    clock = Clock()
    meter = EnergyMeter(H100, 1, clock=clock)
    clock.now += 3600
    assert meter.kwh() == pytest.approx(0.7)
    assert meter.source == "modelled: 700 W of the hardware table times the time"
    meter.close()
