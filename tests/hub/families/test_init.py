"""Which families there are."""

import pytest

from jaxlean.errors import ModelError
from jaxlean.hub.families import FAMILIES, family_of
from jaxlean.hub.family import LEAVES


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_family_is_found_by_its_model_type(name):
    assert family_of(name) is FAMILIES[name]
    assert FAMILIES[name].model_type == name


@pytest.mark.parametrize(
    ("model_type", "says"),
    [
        ("gpt2", ["'gpt2' is not supported", "one of llama, mistral, qwen2, qwen3", "CONTRIBUTING.md"]),
        ("qwen2_moe", ["'qwen2_moe' is not supported", "did you mean 'qwen2'?"]),
        (None, ["config.json needs a model_type"]),
    ],
)
def test_another_family_is_refused_and_those_there_are_listed(model_type, says):
    with pytest.raises(ModelError) as caught:
        family_of(model_type, where="m/config.json")
    for words in [*says, "m/config.json"]:
        assert words in str(caught.value)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_no_two_modules_share_a_name(family):
    assert len(set(family.modules.values())) == len(family.modules)
    # what lies in a layer has a place for its number, and only that
    assert all(("{}" in theirs) == ours.startswith("layers.") for ours, theirs in family.modules.items())
    # `adapt.lora` and PEFT's target_modules go by the last word
    words = [theirs.rsplit(".", 1)[-1] for theirs in family.modules.values()]
    assert len(set(words)) == len(words)
    assert family.tensor("layers.mlp.up.kernel") == f"{family.modules['layers.mlp.up']}.{LEAVES['kernel']}"
