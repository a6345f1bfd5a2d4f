"""Unsloth's own keys, where a table's row needs more than its value."""

import pytest

from jaxlean.convert import unsloth
from jaxlean.convert.row import UNSET


def test_data_and_its_shape(source) -> None:
    chat = source(data__format_type="chatml")
    assert unsloth.dataset("org/rows", chat).settings == {"data.train": [{"path": "org/rows", "format": "messages"}]}
    assert unsloth.files(["a", "b"], source()).settings == {"data.train": [{"path": "a"}, {"path": "b"}]}
    assert unsloth.files("a", source(data__dataset="org/rows")).kind == "idle"
    assert "alpaca" in unsloth.form("alpaca", source()).note


def test_four_bits_are_for_adapters(source) -> None:
    assert unsloth.in_4bit(True, source()).settings == {"model.quantization": "nf4"}
    assert unsloth.in_4bit(True, source(training__training_type="full")).kind == "idle"
    assert unsloth.four_bits_by_default(source()) is True
    assert unsloth.four_bits_by_default(source(training__training_type="full")) is UNSET
    assert unsloth.kind("full", source()).settings == {"lora": None}
    assert unsloth.kind("lora", source()).kind == "carried"


@pytest.mark.parametrize(("value", "on"), [(True, "completion"), (False, "all"), ("no", "all")])
def test_what_is_learned(source, value, on) -> None:
    assert unsloth.completions(value, source()).settings == {"data.train_on": on}


def test_checkpoints_and_warm_up(source) -> None:
    assert unsloth.saves(0, source()).kind == "missing"
    assert unsloth.saves(50, source()).settings == {"train.save_steps": 50}
    assert unsloth.warmup(5, source()).settings == {"train.warmup_steps": 5}


def test_what_its_trainer_always_does(source) -> None:
    settings = {key: value for outcome in unsloth.others(source()) for key, value in outcome.settings.items()}
    assert settings == {
        "train.optim": "adamw_8bit", "train.lr_scheduler_type": "linear", "data.on_long": "truncate",
        "train.logging_steps": 1,
    }  # fmt: skip
