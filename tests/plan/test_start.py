"""A run waits for its time, holds nothing meanwhile, and says what that saves."""

import types
from datetime import UTC, datetime, timedelta

import pytest

from jaxlean.config import build
from jaxlean.errors import ConfigError
from jaxlean.plan import start as module
from jaxlean.plan.start import wait_for_start
from jaxlean.run.devices import Devices

NOW = datetime(2026, 11, 23, 18, 0, tzinfo=UTC)
H100 = Devices("gpu", "NVIDIA H100 80GB HBM3", 8)


class Clock:
    def __init__(self):
        self.time, self.slept = NOW, []

    def now(self):
        return self.time

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.time += timedelta(seconds=seconds)


@pytest.fixture
def forecast(tmp_path):
    file = tmp_path / "f.csv"
    rows = [
        f"{(NOW + timedelta(hours=i)).isoformat()},{g},{p}" for i, (g, p) in enumerate([(400, 3), (100, 5), (300, 1)])
    ]
    file.write_text("time,gco2e_per_kwh,usd_per_hour\n" + "\n".join(rows) + "\n")
    return str(file)


def wait(devices, monkeypatch, **cost):
    monkeypatch.setattr("jaxlean.plan.here.look", lambda: devices)
    clock, said = Clock(), []
    found = wait_for_start(build({"cost": cost}), say=said.append, now=clock.now, sleep=clock.sleep)
    return found, clock, said


def test_it_waits_until_it_is_time(forecast, monkeypatch):
    cost = {"start": "greenest within 12h", "forecast": forecast, "start_hours": 1}
    found, clock, (line,) = wait(H100, monkeypatch, **cost)
    assert clock.time == found.time == NOW + timedelta(hours=1)
    assert max(clock.slept) <= 60, "a clock that is set is noticed"
    assert "in 1 h 00 min" in line
    assert "100 gCO2e/kWh on average over the 1 h 00 min of the job, 400 now: 75% less" in line
    assert line.endswith("1.68e+03 gCO2e of 5.6 kWh saved")


def test_the_cheapest_by_the_hour(forecast, monkeypatch):
    cost = {"start": "cheapest within 12h", "forecast": forecast, "start_hours": 0.5}
    found, _, (line,) = wait(None, monkeypatch, **cost)
    assert found.time == NOW + timedelta(hours=2)
    assert line.endswith("1 USD/h on average over the 30 min 00 s of the job, 3 now: 67% less, $1.00 saved")


def test_now_may_be_the_time(forecast, monkeypatch):
    cost = {"start": "cheapest within 30 min", "forecast": forecast, "start_hours": 0.1}
    found, clock, (line,) = wait(H100, monkeypatch, **cost)
    assert (found.time, clock.slept) == (NOW, [])
    assert "within 30 min: now;" in line


def test_without_a_start_nothing_happens(monkeypatch):
    assert wait_for_start(build({}), say=print) is None


def test_how_long_it_takes_is_planned_for_what_is_here(forecast, monkeypatch):
    asked = []

    def plan(config, targets):
        asked.append(targets)
        return types.SimpleNamespace(winner=types.SimpleNamespace(hours=1.0))

    monkeypatch.setattr(module, "plan", plan)
    cost = {"start": "greenest within 12h", "forecast": forecast}
    found, _, _ = wait(H100, monkeypatch, **cost)
    assert found.time == NOW + timedelta(hours=1)
    wait(Devices("cpu", "cpu", 8), monkeypatch, **cost)
    assert asked == [["h100-80gb:8"], ["cpu"]]
    monkeypatch.setattr(module, "plan", lambda config, targets: types.SimpleNamespace(winner=None))
    for devices in (H100, Devices("gpu", "Radeon", 1), Devices("tpu", "TPU v5 lite", 8), None):
        with pytest.raises(ConfigError, match=r"cost\.start_hours"):
            wait(devices, monkeypatch, **cost)


def test_a_start_without_a_forecast(monkeypatch):
    with pytest.raises(ConfigError, match=r"cost\.forecast=FILE"):
        wait(H100, monkeypatch, start="greenest within 12h")


def test_from_the_command_line_a_resumed_run_does_not_wait(cli, tiny_yaml, monkeypatch, forecast):
    waited = []
    monkeypatch.setattr(module, "wait_for_start", lambda config, say: waited.append(config.cost.start))
    monkeypatch.setattr("jaxlean.run.finetune.finetune", lambda *given, **how: {})
    given = ["cost.start=greenest within 2h", f"cost.forecast={forecast}"]
    assert cli("finetune", tiny_yaml, *given)[0] == 0
    assert cli("finetune", tiny_yaml, *given, "--resume")[0] == 0
    assert cli("finetune", tiny_yaml)[0] == 0
    assert waited == ["greenest within 2h"]
