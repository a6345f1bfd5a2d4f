"""The price table: which entry, whose price wins, and what is wrong with a table."""

import pytest

from jaxlean.config import CostSection
from jaxlean.cost import price
from jaxlean.cost.price import device, lookup
from jaxlean.errors import ConfigError

NONE = CostSection()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("cpu", "CPU"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM 80 GB"),
        ("NVIDIA H200", "H200 141 GB"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM 80 GB"),
        ("NVIDIA A100-SXM4-40GB", "A100 SXM 40 GB"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-16GB", "V100 SXM 16 GB"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("TPU v4", "TPU v4"),
        ("TPU v5 lite", "TPU v5e"),
        ("TPU v5", "TPU v5p"),
        ("TPU v6 lite", "TPU v6e"),
        ("TPU7x", "TPU v7x"),
    ],
)
def test_device_kinds_as_jax_says_them(kind, name):
    found = device(kind, NONE)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize("kind", ["NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA H100 PCIe", "TPU v9", "Radeon", ""])
def test_an_unknown_device_has_no_price_and_the_reason_says_what_to_do(kind):
    found = lookup(kind, 8, NONE)
    assert found.usd_per_hour is None
    assert found.usd(3600) is None
    assert repr(kind) in found.source
    assert "cost.usd_per_hour" in found.source
    assert device(kind, NONE) is None


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
    monkeypatch.setattr(price, "_vcpus", lambda: 4)
    assert lookup("cpu", 1, NONE).usd_per_hour == lookup("cpu", 8, NONE).usd_per_hour == pytest.approx(0.16)
    assert "edit me" in lookup("cpu", 1, NONE).source
    monkeypatch.undo()
    assert price._vcpus() >= 1


def test_every_price_of_the_table_has_a_dated_source():
    table = price._read(None)
    assert len(table) > 10
    assert len({entry.match for entry in table}) == len(table)
    for entry in table:
        if entry.usd_per_hour is not None:
            assert "2026" in (entry.source or ""), entry


def write(tmp_path, text):
    file = tmp_path / "prices.yaml"
    file.write_text(text)
    return CostSection(prices=str(file))


def test_who_wins(tmp_path):
    cost = write(tmp_path, "devices:\n- {match: NVIDIA H100.*, usd_per_hour: 1.5, source: our contract}\n")
    found = lookup("NVIDIA H100 80GB HBM3", 2, cost)
    assert found.usd_per_hour == 3.0
    assert "our contract" in found.source
    assert cost.prices in found.source
    # What the user's table does not list, the built-in one does.
    assert lookup("NVIDIA H200", 1, cost).usd_per_hour == lookup("NVIDIA H200", 1, NONE).usd_per_hour
    cost.usd_per_hour = 9.0
    assert lookup("NVIDIA H100 80GB HBM3", 2, cost) == price.Price(9.0, "cost.usd_per_hour")
    assert lookup("no such device", 2, CostSection(usd_per_hour=0.0)).usd(10) == 0.0


def test_the_built_in_entry_fills_in_what_the_users_leaves_out(tmp_path):
    cost = write(tmp_path, "devices:\n- {match: NVIDIA H100.*, usd_per_hour: 1.5, watts: 650}\n")
    found = device("NVIDIA H100 80GB HBM3", cost)
    assert (found.usd_per_hour, found.watts) == (1.5, 650)
    assert found.peak_flops_per_second == 989e12
    assert found.memory_bytes == 84_943_000_000
    assert device("NVIDIA H100 PCIe", cost).peak_flops_per_second is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("devices:\n- {match: x, usd_per_hours: 1}", ("usd_per_hours", "did you mean 'usd_per_hour'")),
        ("devices:\n- {match: x, usd_per_hour: cheap}", ("usd_per_hour is not a number", "'cheap'", "devices[0]")),
        ("devices:\n- {match: x, usd_per_hour: -1}", ("not negative",)),
        ("devices:\n- {match: x, usd_per_hour: .nan}", ("usd_per_hour is not a number",)),
        ("devices:\n- {match: 3}", ("match is not text",)),
        ("devices:\n- {match: '('}", ("not a regular expression",)),
        ("devices:\n- {match: x, per: hour}", ("device or vcpu",)),
        ("devices:\n- {usd_per_hour: 1}", ("has a 'match'",)),
        ("H100: 3", ("list under 'devices'",)),
        ("devices: [", ("not valid YAML",)),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path, text, words):
    cost = write(tmp_path, text)
    with pytest.raises(ConfigError) as raised:
        lookup("cpu", 1, cost)
    for word in (*words, cost.prices):
        assert word in str(raised.value)


def test_a_table_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(ConfigError, match="no such price table"):
        lookup("cpu", 1, CostSection(prices=str(tmp_path / "none.yaml")))
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        lookup("cpu", 1, CostSection(prices=str(tmp_path / "bytes.yaml")))
