"""What a kWh emits: codes, names, clouds, the user's own table."""

import pytest

from jaxlean.config import CostSection
from jaxlean.cost.region import _read, built_in, intensity
from jaxlean.errors import ConfigError


def of(**cost):
    return intensity(CostSection(**cost))


def test_without_a_region_nothing_is_said():
    found = of()
    assert found.gco2e_per_kwh is None
    assert found.gco2e(1.0) is None
    assert "cost.region" in found.source


def test_the_users_own_number_wins():
    found = of(region="DE", gco2e_per_kwh=12.0)
    assert (found.gco2e_per_kwh, found.source) == (12.0, "cost.gco2e_per_kwh")
    assert found.gco2e(2.0) == 24.0
    assert found.gco2e(None) is None


@pytest.mark.parametrize("name", ["DE", "de", "DEU", "Germany", "germany"])
def test_a_country_by_any_of_its_names(name):
    assert of(region=name).gco2e_per_kwh == of(region="DE").gco2e_per_kwh == 381
    assert "381 gCO2e/kWh (regions.yaml)" in of(region=name).source


def test_a_clouds_region_has_its_own_number_or_that_of_where_it_stands():
    assert of(region="europe-west9").gco2e_per_kwh == 34
    assert of(region="eu-west-3").gco2e_per_kwh == of(region="FR").gco2e_per_kwh
    assert of(region="eu-west-3").source.startswith("eu-west-3 in FR")
    assert of(region="us-east-1").gco2e_per_kwh == of(region="US-VA").gco2e_per_kwh


def test_a_table_of_the_users_own_goes_first(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("regions: {DE: 5, cellar: DE, attic: SE}\n")
    assert of(region="DE", regions=str(file)).gco2e_per_kwh == 5
    assert of(region="cellar", regions=str(file)).gco2e_per_kwh == 5
    assert of(region="attic", regions=str(file)).gco2e_per_kwh == of(region="SE").gco2e_per_kwh
    assert "mine.yaml" in of(region="cellar", regions=str(file)).source


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("regions: {DE: -1}\n", ["table of regions", "regions.DE", "greater than or equal"]),
        ("regions: [DE]\n", ["table of regions, regions"]),
        ("region: {DE: 1}\n", ["table of regions"]),
        ("regions: {DE: [\n", ["not valid YAML"]),
        (None, ["no such table of regions"]),
    ],
)
def test_a_table_that_is_wrong(tmp_path, text, words):
    file = tmp_path / f"{abs(hash(text))}.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError) as told:
        of(region="DE", regions=str(file))
    for word in [*words, str(file)]:
        assert word in str(told.value)


@pytest.mark.parametrize(
    ("name", "word"), [("us-east-11", "us-east-1"), ("zz-moonbase-77", "configs/regions.yaml has")]
)
def test_an_unknown_region(name, word):
    with pytest.raises(ConfigError) as told:
        of(region=name)
    assert word in str(told.value)
    assert "cost.gco2e_per_kwh" in str(told.value)


def test_all_that_is_named_in_the_built_in_table_is_there():
    table = _read(str(built_in()), True)
    assert len(table.regions) > 300
    for name in (*table.regions, *table.names):
        assert 0 < of(region=name).gco2e_per_kwh < 1500, name
