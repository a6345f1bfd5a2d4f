"""What this machine has, as a target."""

import pytest

from jaxlean.cost.hardware import of_target
from jaxlean.errors import ConfigError
from jaxlean.plan.here import here, target_of
from jaxlean.run.devices import Devices


def test_the_table_knows_a_card_by_what_jax_calls_it(monkeypatch) -> None:
    monkeypatch.setattr("jaxlean.plan.here.look", lambda: Devices("gpu", "NVIDIA H100 80GB HBM3", 8))
    device, number = here(None)
    assert device is not None
    assert target_of(device, number, why="what", fix="say it") == "h100-80gb:8"
    monkeypatch.setattr("jaxlean.plan.here.look", lambda: None)
    assert here(None) == (None, 1)


def test_processors_are_one_target_however_many() -> None:
    assert target_of(of_target("cpu"), 8, why="what", fix="say it") == "cpu"


@pytest.mark.parametrize(("name", "words"), [(None, "does not know what is here"), ("v5e", "grid is not known")])
def test_what_cannot_be_named_is_to_be_said(name, words) -> None:
    device = None if name is None else of_target(name)
    with pytest.raises(ConfigError, match=words) as told:
        target_of(device, 1, why="what to plan for", fix="--targets NAME")
    assert "what to plan for?" in str(told.value)
    assert "--targets NAME" in str(told.value)
