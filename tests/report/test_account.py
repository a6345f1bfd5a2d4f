"""What runs took: each number with how it is known, measured and modelled told apart."""

import pytest

from jaxlean.report.account import emissions, energy, how, rows
from jaxlean.report.read import read

TOOK = {
    "kwh": 0.000638, "energy_source": "modelled: 7 W of the hardware table times the time",
    "gco2e": 0.243, "gco2e_source": "DE: 381 gCO2e/kWh (regions.yaml)", "usd": 0.01,
    "usd_by_price": {"on_demand": 0.01, "electricity": 0.0002}, "price_source": "2 x vCPU at 0.04 USD/h",
    "accelerator_hours": 0.0911, "accelerator_utilization": 0.78, "data_wait_share": 0.0015, "mfu": None,
}  # fmt: skip


def runs(made, **each):
    return read([made(name, summary=TOOK | summary) for name, summary in each.items()])


def test_every_figure_has_its_unit_and_how_it_is_known(made):
    found = {row.label: row.found[0] for row in rows(runs(made, a={}))}
    assert {label: known.value for label, known in found.items()} == {
        "energy": "0.638 Wh", "emissions": "0.243 g CO2e", "cost": "$0.010", "cost of electricity": "$0.00020",
        "accelerator-hours": "0.0911 h", "accelerator utilization": "78.0 %", "waited for data": "0.15 %",
    }  # fmt: skip
    assert found["energy"].source == TOOK["energy_source"]
    assert found["emissions"].source == "from modelled energy: DE: 381 gCO2e/kWh (regions.yaml)"
    assert found["cost"].source == "2 x vCPU at 0.04 USD/h"


@pytest.mark.parametrize("word", ["measured", "modelled"])
def test_emissions_are_as_well_known_as_the_energy(made, word):
    (run,) = runs(made, a={"energy_source": f"{word}: by something", "gco2e": 12_345.0})
    assert how(energy(run)) == word
    assert emissions(run).value == "12.3 kg CO2e"
    assert emissions(run).source.startswith(f"from {word} energy: ")


def test_where_emissions_are_not_known_it_says_why(made):
    (run,) = runs(made, a={"gco2e": None, "gco2e_source": "no region: set cost.region or cost.gco2e_per_kwh"})
    known = emissions(run)
    assert (known.value, known.source) == ("-", "no region: set cost.region or cost.gco2e_per_kwh")


def test_what_is_known_of_several_runs_in_the_same_way_is_said_once(made):
    same = {row.label: row for row in rows(runs(made, a={}, b={"kwh": 0.5}))}
    assert same["energy"].source == TOOK["energy_source"]
    assert [(known.value, known.source) for known in same["energy"].found] == [("0.638 Wh", ""), ("500 Wh", "")]
    other = {row.label: row for row in rows(runs(made, c={}, d={"energy_source": "measured: GPU by NVML"}))}
    assert other["energy"].source == ""
    assert [how(known) for known in other["energy"].found] == ["modelled", "measured"]


def test_a_run_without_a_summary_says_what_its_last_line_does(made):
    (run,) = read([made("a", summary=None)])
    found = {row.label: row.found[0].value for row in rows([run])}
    assert list(found) == ["cost"]
    (with_energy,) = read([made("b", summary=None, lines=[{"step": 1, "loss": 1.0, "kwh": 0.25}])])
    assert (energy(with_energy).value, how(energy(with_energy))) == ("250 Wh", "source not known")
