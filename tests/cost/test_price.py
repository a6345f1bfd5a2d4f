"""The price table: which entry, whose price wins, and what is wrong with a table."""

import pytest

from jaxlean.config import CostSection
from jaxlean.cost import price
from jaxlean.cost.hardware import of_kind
from jaxlean.cost.price import lookup

NONE = CostSection()


@pytest.mark.parametrize("kind", ["NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA H100 PCIe", "TPU v9", "Radeon", ""])
def test_an_unknown_device_has_no_price_and_the_reason_says_what_to_do(kind):
    found = lookup(kind, 8, NONE)
    assert found.usd_per_hour is None
    assert found.usd(3600) is None
    assert repr(kind) in found.source
    assert "cost.usd_per_hour" in found.source
    assert of_kind(kind) is None


def test_a_known_device_without_a_price_says_so():
    assert lookup("NVIDIA B200", 1, NONE).usd_per_hour is None
    assert "has no price" in lookup("NVIDIA B200", 1, NONE).source


def test_the_price_is_for_all_devices_and_seconds_become_dollars():
    one, eight = lookup("NVIDIA H100 80GB HBM3", 1, NONE), lookup("NVIDIA H100 80GB HBM3", 8, NONE)
    assert eight.usd_per_hour == pytest.approx(8 * one.usd_per_hour)
    assert one.usd(1800) == pytest.approx(one.usd_per_hour / 2)
    assert "8 x H100" in eight.source
    assert "2026" in eight.source


def test_a_cpu_is_priced_by_its_processors_however_many_devices_xla_shows(monkeypatch):
    monkeypatch.setattr(price, "num_vcpus", lambda: 4)
    assert lookup("cpu", 1, NONE).usd_per_hour == lookup("cpu", 8, NONE).usd_per_hour == pytest.approx(0.16)
    assert lookup("cpu", 8, NONE, num_hosts=3).usd_per_hour == pytest.approx(0.48)
    assert "edit me" in lookup("cpu", 1, NONE).source
    monkeypatch.undo()
    assert price.num_vcpus() >= 1


def write(tmp_path, text):
    file = tmp_path / "hardware.yaml"
    file.write_text(text)
    return CostSection(hardware=str(file))


def test_who_wins(tmp_path):
    cost = write(tmp_path, "devices:\n- {match: NVIDIA H100.*, usd_per_hour: 1.5, source: our contract}\n")
    found = lookup("NVIDIA H100 80GB HBM3", 2, cost)
    assert found.usd_per_hour == 3.0
    assert "our contract" in found.source
    assert cost.hardware in found.source
    # What the user's table does not list, the built-in one does.
    assert lookup("NVIDIA H200", 1, cost).usd_per_hour == lookup("NVIDIA H200", 1, NONE).usd_per_hour
    cost.usd_per_hour = 9.0
    assert lookup("NVIDIA H100 80GB HBM3", 2, cost) == price.Price(9.0, "cost.usd_per_hour")
    assert lookup("no such device", 2, CostSection(usd_per_hour=0.0)).usd(10) == 0.0
