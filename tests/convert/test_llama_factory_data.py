"""dataset_info.json as sources."""

import json

import pytest

from jaxlean.convert import llama_factory_data
from jaxlean.errors import ConfigError

INFO = {
    "plain": {"file_name": "plain.json"},
    "columns": {"file_name": "c.json", "columns": {"prompt": "q", "query": "more", "response": "a", "history": "h"}},
    "talk": {"hf_hub_url": "org/talk", "subset": "en", "split": "test", "num_samples": 9, "formatting": "sharegpt",
             "columns": {"messages": "turns"}, "tags": {"user_tag": "customer"}},
    "openai": {"hf_hub_url": "org/open", "formatting": "sharegpt", "columns": {"messages": "messages"}},
    "mirror": {"ms_hub_url": "org/mirror", "folder": "part"},
    "liked": {"file_name": "l.json", "ranking": True},
    "seen": {"file_name": "s.json", "columns": {"images": "image"}},
    "holes": {"file_name": "h.json", "columns": {"prompt": "q"}},
}  # fmt: skip


@pytest.fixture
def described(source, write):
    write(json.dumps(INFO), "data/dataset_info.json")
    return source


def test_each_name_is_looked_up(described, tmp_path) -> None:
    folder = tmp_path / "data"
    outcome = llama_factory_data.dataset("plain, openai", described(max_samples=5, interleave_probs="0.7,0.3"))
    assert outcome.settings["data.train"] == [
        {"path": str(folder / "plain.json"), "format": "alpaca", "weight": 0.7, "limit": 5},
        {"path": "org/open", "format": "messages", "weight": 0.3, "limit": 5},
    ]
    assert str(folder / "dataset_info.json") in outcome.note
    held = llama_factory_data.held_out("plain", described())
    assert held.settings == {"data.eval": [{"path": str(folder / "plain.json"), "format": "alpaca"}]}


def test_columns_become_a_template_and_what_is_left_out_is_told(described) -> None:
    outcome = llama_factory_data.dataset("columns", described())
    (made,) = outcome.settings["data.train"]
    assert (made["prompt"], made["completion"]) == ("{q}\n{more}", "{a}")
    assert "earlier turns" in outcome.check
    assert "line end" in outcome.check
    assert "names no column" in llama_factory_data.dataset("holes", described()).check


def test_a_conversation_with_other_names_is_to_be_looked_at(described) -> None:
    outcome = llama_factory_data.dataset("talk", described())
    assert outcome.settings["data.train"] == [
        {"path": "org/talk", "name": "en", "split": "test", "limit": 9, "format": "sharegpt"}
    ]
    for words in ("column turns", "user_tag: customer", "drawn at random"):
        assert words in outcome.check
    check = llama_factory_data.dataset("mirror", described()).check
    assert "not on Hugging Face's hub" in check
    assert "folder part" in check


def test_texts(described) -> None:
    outcome = llama_factory_data.dataset("plain", described(stage="pt"))
    assert outcome.settings["data.train"][0]["format"] == "text"
    assert "column instruction" in outcome.check


@pytest.mark.parametrize(
    ("name", "words"),
    [("liked", "preferences"), ("seen", "images"), ("plian", "did you mean 'plain'?")],
)
def test_what_cannot_be_is_refused(described, name, words) -> None:
    with pytest.raises(ConfigError, match="dataset") as told:
        llama_factory_data.dataset(name, described())
    assert words in str(told.value)


def test_without_descriptions_a_name_may_be_a_path(source) -> None:
    outcome = llama_factory_data.dataset("identity", source())
    assert outcome.settings == {"data.train": [{"path": "identity"}]}
    assert "no dataset_info.json here" in outcome.check
    assert llama_factory_data.sources(source(dataset="identity")) is None
    online = llama_factory_data.dataset("org/rows", source(dataset_dir="ONLINE"))
    assert online.settings == {"data.train": [{"path": "org/rows", "format": "alpaca"}]}


@pytest.mark.parametrize(("text", "words"), [("not json", "cannot be read"), ("[]", "no mapping")])
def test_descriptions_that_are_none_are_told(source, write, text, words) -> None:
    write(text, "data/dataset_info.json")
    with pytest.raises(ConfigError, match=words) as told:
        llama_factory_data.dataset("plain", source())
    assert "dataset_info.json" in str(told.value)


def test_mixtures(source) -> None:
    assert llama_factory_data.mixes("concat", source()).kind == "idle"
    assert "ends an epoch" in llama_factory_data.mixes("interleave_under", source()).check
    assert llama_factory_data.with_sources(5, source()).note == "with the sources"
