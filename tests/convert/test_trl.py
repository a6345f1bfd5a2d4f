"""TRL's own keys, where a table's row needs more than its value; and what its defaults are by what the file is."""

import json

import pytest

from jaxlean.convert import trl
from jaxlean.convert.row import UNSET


def test_whose_defaults_hold(source) -> None:
    assert trl.is_sft(source(use_peft=True))
    assert trl.is_sft(source(dataset_name="a"))
    assert not trl.is_sft(source(learning_rate=1e-4, r=8))
    default = {row.keys[0]: row.default for row in trl.FORMAT.rows}
    assert default["learning_rate"](source(dataset_name="a")) == 2e-5
    assert default["learning_rate"](source(r=8)) == 5e-5
    assert default["lora_alpha"](source(use_peft=True)) == 32
    assert default["lora_alpha"](source(r=8)) == 8
    assert default["lora_alpha"](source()) is UNSET


def test_adapters(source) -> None:
    assert trl.use_peft(False, source()).settings == {"lora": None}
    assert trl.use_peft(True, source()).kind == "carried"
    outcomes = list(trl.others(source(dataset_name="a", lora_r=8)))
    assert any("use_peft: true alone" in outcome.check for outcome in outcomes)


def test_datasets_and_splits(source) -> None:
    one = trl.dataset("a", source(dataset_config="en", dataset_train_split="sft", eval_strategy="steps"))
    assert one.settings == {
        "data.train": [{"path": "a", "name": "en", "split": "sft"}],
        "data.eval": [{"path": "a", "name": "en", "split": "test"}],
    }
    assert trl.dataset("a", source()).settings == {"data.train": [{"path": "a"}]}
    assert trl.dataset("a", source(datasets=[])).kind == "idle"
    mixed = trl.mixture(
        [{"path": "json", "data_files": "b.jsonl"}, {"path": "c", "split": "train", "columns": ["x"]}, "d"], source()
    )
    assert mixed.settings == {"data.train": [{"path": "b.jsonl"}, {"path": "c"}, {"path": "d"}]}
    assert "not read of c: columns" in mixed.check


@pytest.mark.parametrize(
    ("row", "on"),
    [({"messages": []}, "all"), ({"prompt": "a", "completion": "b"}, "completion"), ({"text": "a"}, "all")],
)
def test_what_is_learned_hangs_on_the_columns(source, write, row, on) -> None:
    write(json.dumps(row) + "\n", "rows.jsonl")
    settings = [dict(outcome.settings) for outcome in trl.others(source(dataset_name="rows.jsonl"))]
    assert {"data.train_on": on} in settings


def test_what_is_learned_is_to_be_looked_at_where_the_rows_are_not_here(source) -> None:
    checks = [outcome.check for outcome in trl.others(source(dataset_name="org/rows"))]
    assert any("not seen here" in check for check in checks)
    said = [dict(outcome.settings) for outcome in trl.others(source(dataset_name="a", assistant_only_loss=True))]
    assert not any("data.train_on" in settings for settings in said)


@pytest.mark.parametrize(
    ("becomes", "value", "kind"),
    [
        (trl.strategy, "bfd", "idle"),
        (trl.text_field, "text", "idle"),
        (trl.text_field, "body", "missing"),
        (trl.template, "chat.jinja", "carried"),
        (trl.template, "org/other", "missing"),
        (trl.loss, "chunked_nll", "idle"),
        (trl.loss, "dft", "missing"),
        (trl.loss, "sigmoid", "refused"),
        (trl.truncation, "keep_start", "idle"),
        (trl.truncation, "keep_end", "missing"),
        (trl.revision, "main", "idle"),
        (trl.revision, "v2", "carried"),
        (trl.completion_only, False, "carried"),
        (trl.assistant_only, False, "idle"),
    ],
)
def test_values(source, becomes, value, kind) -> None:
    assert becomes(value, source()).kind == kind


def test_packing_that_cuts_rows_is_told(source) -> None:
    assert trl.strategy("wrapped", source(packing=True)).kind == "missing"
    assert "never see each other" in trl.packed(True, source()).note
    assert trl.split("train", source(dataset_name="a")).kind == "carried"
