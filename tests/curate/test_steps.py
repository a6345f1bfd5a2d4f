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
