from importlib.util import find_spec

import pytest

from jaxlean.config import StepSection
from jaxlean.curate import steps
from jaxlean.errors import ConfigError


@pytest.mark.parametrize("name", list(StepSection.model_fields))
def test_every_step_of_the_config_is_a_file_with_its_function(name):
    assert steps.find(name).__name__ == name


def test_a_library_that_is_missing_is_named_before_anything_is_read(monkeypatch):
    monkeypatch.setattr(steps, "find_spec", lambda name: None if name == "rensa" else find_spec(name))
    with pytest.raises(ConfigError) as error:
        steps.find("near_duplicates")
    assert "near_duplicates needs rensa" in str(error.value)
    assert "pip install 'jaxlean[curate]'" in str(error.value)


def test_two_scores_of_one_name_are_refused():
    entries = [StepSection.model_validate(step) for step in ("loss", "exact_duplicates", {"loss": {"adapter": "a"}})]
    with pytest.raises(ConfigError, match="two steps give the score 'loss'") as error:
        steps.find_all(entries)
    assert "loss and loss" in str(error.value)


def test_no_two_steps_give_scores_of_one_name():
    entries = [StepSection.model_validate(step) for step in ("loss", "ifd", "learnability", "el2n", "exact_duplicates")]
    assert [function.__name__ for function in steps.find_all(entries)] == [entry.name for entry in entries]


def test_settings_that_cannot_work_are_refused_before_anything_is_read():
    step = StepSection.model_validate({"near_duplicates": {"threshold": 0.01, "num_perm": 16}})
    with pytest.raises(ConfigError, match="fix:    num_perm: 349"):
        steps.find_all([step])
