"""What is printed of a conversion: every key, in its group; no secret."""

import io

import pytest
from rich.console import Console

from jaxlean.convert import convert
from jaxlean.convert.report import print_report, show
from jaxlean.convert.source import read


def printed(file, **how) -> str:
    out = io.StringIO()
    print_report(convert(file, **how), Console(file=out, width=200))
    return out.getvalue()


@pytest.mark.parametrize(
    "name", ["axolotl_chat.yaml", "llama_factory_lora.yaml", "trl_lora.yaml", "trainer_arguments.json", "unsloth.yaml"]
)
def test_every_key_is_printed(examples, name) -> None:
    said = printed(examples / name)
    for key in read(examples / name):
        assert key in said


def test_groups_and_what_is_not_said_there(examples) -> None:
    said = printed(examples / "axolotl_lora.yaml")
    heads = [
        "carried over (",
        "not said there, where Axolotl does otherwise",
        "has no counterpart (",
        "not needed here",
    ]
    places = [said.index(head) for head in heads]
    assert places == sorted(places)
    assert "load_in_4bit" not in said
    assert "-> data.on_long: drop (jaxlean: error)" in said
    assert "empty there: lora_model_dir, wandb_project" in said
    assert "Axolotl, by " in said
    assert "Axolotl, as you say" in printed(examples / "axolotl_lora.yaml", of="axolotl")


def test_what_changes_its_meaning_says_how(examples) -> None:
    said = printed(examples / "axolotl_chat.yaml")
    assert "-> model.quantization: nf4" in said
    assert "-> train.gradient_accumulation_steps: 8  (microbatches of an update)" in said
    assert "to be looked at (" in printed(examples / "llama_factory_full.yaml")


def test_secrets_and_unknown_values_are_not_printed(examples, write) -> None:
    assert "hf_thisIs" not in printed(examples / "llama_factory_lora.yaml")
    assert "nobody-knows" not in printed(examples / "unsloth.yaml")
    said = printed(write("base_model: x\nadapter: lora\nwholly_other: word-of-mine\n"))
    assert "unknown key (1)" in said
    assert "wholly_other" in said
    assert "word-of-mine" not in said


def test_values_are_shown_as_yaml_has_them() -> None:
    assert [show(value) for value in (True, None, 3, "a")] == ["true", "null", "3", "a"]
    assert show("a" * 100) == "a" * 57 + "..."
