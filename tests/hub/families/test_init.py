"""Which families there are."""

import json

import pytest

from jaxlean.errors import ModelError
from jaxlean.hub.families import FAMILIES, family_of, nearest


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3", "gemma3_text", "gpt2", "gpt_neox"])
def test_a_family_is_found_by_its_model_type(name):
    assert family_of(name) is FAMILIES[name]
    assert FAMILIES[name].model_type == name


@pytest.mark.parametrize(
    ("model_type", "says"),
    [
        ("gpt3", ["'gpt3' is not supported", "one of ", "gemma3_text, glm4, gpt2", "nearest: gpt2", "CONTRIBUTING.md"]),
        ("falcon", ["'falcon' is not supported", "CONTRIBUTING.md"]),
        (None, ["config.json needs a model_type"]),
        ("", ["config.json needs a model_type"]),
    ],
)
def test_another_family_is_refused_and_those_there_are_listed(model_type, says):
    with pytest.raises(ModelError) as caught:
        family_of(model_type, where="m/config.json")
    for words in [*says, "m/config.json"]:
        assert words in str(caught.value)


def test_the_nearest_family_is_found_without_a_word_of_transformers(caplog, capfd, monkeypatch):
    from transformers.utils import logging

    # transformers finds fault with the defaults of some of its own configs, and says so
    monkeypatch.setattr(logging.get_logger("transformers"), "propagate", True)
    before = logging.get_verbosity()
    assert nearest("falcon", {"num_key_value_heads": 2, "layer_types": [], "sliding_window": 5}) in FAMILIES
    assert (capfd.readouterr().err, caplog.text) == ("", "")
    assert logging.get_verbosity() == before


@pytest.fixture(scope="session")
def modules_of(golden):
    """family -> its table of names, of a golden checkpoint where it depends on the config."""
    from transformers import AutoConfig

    def find(family):
        if not callable(family.modules):
            return family.modules
        files = sorted(golden.glob("*/config.json"))
        own = next(file for file in files if json.loads(file.read_text())["model_type"] == family.model_type)
        return family.modules(family.config(AutoConfig.from_pretrained(own.parent)))

    return find


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_no_two_modules_share_a_name(family, modules_of):
    modules = modules_of(family)
    assert len(set(modules.values())) == len(modules)
    # what lies in a stack of layers has a place for its number, and only that
    assert all(("{}" in theirs) == ("layers" in ours.split(".")) for ours, theirs in modules.items())
