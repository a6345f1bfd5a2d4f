"""Whose config a file is."""

import pytest

from jaxlean.convert.detect import by_name, detect, hint, is_ours
from jaxlean.convert.source import read
from jaxlean.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "whose"),
    [
        ("axolotl_lora.yaml", "axolotl"),
        ("axolotl_full.yaml", "axolotl"),
        ("llama_factory_lora.yaml", "llama-factory"),
        ("llama_factory_full.yaml", "llama-factory"),
        ("trl_lora.yaml", "trl"),
        ("trainer_arguments.json", "trl"),
        ("unsloth.yaml", "unsloth"),
    ],
)
def test_keys_tell_whose_it_is(examples, name, whose) -> None:
    guess = detect(examples / name, read(examples / name))
    assert guess.format.name == whose
    assert guess.by


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("colour: red\nspeed: 3\n", ["not a config that is known", "keys colour, speed", "Axolotl", "--from axolotl"]),
        ("learning_rate: 1\n", ["not a config that is known"]),
        ("model: {path: x}\ntrain: {max_steps: 3}\n", ["this is a config of jaxlean", "jaxlean finetune"]),
        (
            "base_model: x\nsequence_len: 5\nfinetuning_type: lora\ncutoff_len: 5\n",
            ["may be of several projects", "Axolotl: base_model", "LLaMA-Factory: ", "--from axolotl or --from llama"],
        ),
    ],
)
def test_a_config_of_nobody_or_of_two_is_refused(write, text, words) -> None:
    file = write(text)
    with pytest.raises(ConfigError) as told:
        detect(file, read(file))
    for word in (*words, "theirs.yaml"):
        assert word in str(told.value)


def test_a_name_that_is_no_format_is_told() -> None:
    assert by_name("unsloth").title == "Unsloth"
    with pytest.raises(ConfigError, match="--from names no format") as told:
        by_name("axolot")
    assert "did you mean 'axolotl'?" in str(told.value)


def test_the_hint_is_given_where_it_is_sure(examples, write, tmp_path) -> None:
    file = examples / "axolotl_lora.yaml"
    assert hint(file) == f"looks like an Axolotl config: jaxlean convert {file}"
    assert hint(write("base_model: x\n")) is None  # one key may be a slip
    assert hint(write("train: {lr: 1}\n")) is None
    assert hint(tmp_path / "absent.yaml") is None


def test_a_config_of_ours_is_known_also_where_it_is_wrong() -> None:
    assert is_ours({"train": {"lerning_rate": 1}})
    assert is_ours({"data": {"train": "a"}, "seed": 1})
    assert not is_ours({"model": "org/name", "data": {"dataset": "a"}, "lora": {"lora_r": 8}})  # Unsloth's
    assert not is_ours({"base_model": "x"})
