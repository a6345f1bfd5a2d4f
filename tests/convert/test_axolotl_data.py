"""Axolotl's datasets as sources."""

import json
from typing import Any

import pytest

from jaxlean.convert import axolotl_data
from jaxlean.convert.row import Outcome


def entry(source, **keys: Any) -> axolotl_data.Dataset:
    return axolotl_data.dataset({"path": "org/rows", **keys}, "datasets[0]", source())


def told(made: axolotl_data.Dataset, key: str) -> Outcome:
    return next(line.outcome for line in made.lines if line.key == f"datasets[0].{key}")


@pytest.mark.parametrize(
    ("keys", "settings", "plain"),
    [
        ({"type": "alpaca"}, {"format": "alpaca"}, True),
        ({"type": "chat_template"}, {"format": "messages"}, False),
        ({"type": "chat_template", "field_messages": "conversations"}, {"format": "sharegpt"}, False),
        ({"type": "sharegpt"}, {"format": "sharegpt"}, False),
        ({"type": "completion"}, {"format": "text"}, False),
        (
            {"type": "alpaca_chat.load_qa"},
            {"format": "template", "prompt": "{question}", "completion": "{answer}"}, True,
        ),
        (
            {"type": {"field_instruction": "q", "field_output": "a", "format": "Q: {instruction}\nA:"}},
            {"format": "template", "prompt": "Q: {q}\nA:", "completion": "{a}"}, True,
        ),
        (
            {"type": {"field_instruction": "q", "field_input": "more", "field_output": "a", "system_prompt": "Hi. "}},
            {"format": "template", "prompt": "Hi. {q} {more}", "completion": "{a}"}, True,
        ),
        ({"type": "alpaca", "name": "sub", "split": "train[:5%]"},
         {"format": "alpaca", "name": "sub", "split": "train[:5%]"}, True),
    ],
)  # fmt: skip
def test_shapes(source, keys, settings, plain) -> None:
    made = entry(source, **keys)
    assert (made.sources, made.plain) == ([{"path": "org/rows"} | settings], plain)
    assert all(line.outcome.kind != "unknown" for line in made.lines)


def test_what_a_shape_cannot_say_is_told(source) -> None:
    assert told(entry(source, type="gpteacher"), "type").kind == "missing"
    assert "call it text" in told(entry(source, type="completion", field="body"), "type").check
    assert "call it messages" in told(entry(source, type="chat_template", field_messages="talk"), "type").check
    other = entry(source, type={"field_instruction": "q", "field_input": "m", "field_output": "a",
                                "format": "{instruction} {input}", "no_input_format": "{instruction}"})  # fmt: skip
    assert "no_input_format" in told(other, "type").check
    assert told(entry(source, wholly_other=1), "wholly_other").kind == "unknown"


def test_a_file_of_ones_own_and_files_on_the_hub(source) -> None:
    local = axolotl_data.dataset(
        {"path": "json", "data_files": ["a.jsonl", "b.jsonl"], "type": "alpaca"}, "d", source()
    )
    assert [each["path"] for each in local.sources] == ["a.jsonl", "b.jsonl"]
    there = entry(source, data_files="x.jsonl", revision="v2")
    assert there.files == ["https://huggingface.co/datasets/org/rows/resolve/v2/x.jsonl"]
    assert axolotl_data.dataset("rows.jsonl", "d", source()).sources == [{"path": "rows.jsonl"}]


def test_splits_of_files(source, write) -> None:
    write(json.dumps({"text": "a"}) + "\n", "rows.jsonl")
    first = axolotl_data.dataset({"path": "rows.jsonl", "split": "train[:10]"}, "datasets[0]", source())
    assert first.settings == {"limit": 10}
    part = axolotl_data.dataset({"path": "rows.jsonl", "split": "train[10:20]"}, "datasets[0]", source())
    assert (part.settings, told(part, "split").kind) == ({}, "missing")
    assert told(entry(source, split="train"), "split").kind == "idle"


def test_who_speaks_and_who_is_learned(source) -> None:
    chat = {"type": "chat_template"}
    known = entry(source, **chat, roles={"user": ["human"], "assistant": ["gpt"]}, roles_to_train=["gpt"])
    assert {told(known, "roles").kind, told(known, "roles_to_train").kind} == {"idle"}
    assert told(entry(source, **chat, roles={"user": ["customer"]}), "roles").kind == "missing"
    assert entry(source, **chat, roles_to_train=["user", "assistant"]).train_on_all
    assert told(entry(source, **chat, roles_to_train=["tool"]), "roles_to_train").kind == "missing"
    assert told(entry(source, **chat, train_on_eos="last"), "train_on_eos").kind == "missing"
    mapping = {"role": "speaker", "content": "words"}
    assert told(entry(source, **chat, message_property_mappings=mapping), "message_property_mappings").kind == "missing"


def test_lists_of_datasets(source) -> None:
    plain = axolotl_data.datasets([{"path": "a", "type": "alpaca"}, None], source())
    assert plain.settings == {"data.train": [{"path": "a", "format": "alpaca"}], "data.chat": False}
    all_turns = axolotl_data.datasets([{"path": "a", "type": "chat_template", "roles_to_train": ["user"]}], source())
    assert all_turns.settings["data.train_on"] == "all"
    held = axolotl_data.held_out_sets([{"path": "a", "split": "test"}], source())
    assert held.settings == {"data.eval": [{"path": "a", "split": "test"}]}
    stream = axolotl_data.pretraining({"path": "a"}, source())
    assert stream.settings == {"data.train": [{"path": "a", "format": "text"}], "data.streaming": True}
    assert axolotl_data.sources(source()) is None
    assert axolotl_data.sources(source(datasets=["a"])) == [{"path": "a"}]
