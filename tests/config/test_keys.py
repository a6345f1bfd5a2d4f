"""Every key says what it is; a path, an alias or a bare name finds it."""

import pytest

from jaxlean.config import RunConfig
from jaxlean.config.keys import every, find, inner_section
from jaxlean.errors import ConfigError

KEYS = list(every())


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.path)
def test_every_key_says_what_it_means(key) -> None:
    assert len(key.about) > 3
    assert key.about[0] != " "
    assert key.type


def test_all_sections_are_walked() -> None:
    paths = [key.path for key in KEYS]
    assert len(paths) == len(set(paths)) > 250
    for path in ("seed", "train.diloco.every", "data.train[].limit", "curate.steps[].near_duplicates.ngram"):
        assert path in paths
    assert "search.space{}.int" in paths, "as users write it, not as Python's field is called"


@pytest.mark.parametrize(
    ("wanted", "type_", "default", "aliases"),
    [
        ("lora.r", "whole number above 0", "16", ("lora_r", "lora_rank")),
        ("lora.lora_dropout", "number from 0 below 1", "0.0", ()),
        ("data.packing", "true or false", "true", ("sample_packing",)),
        ("train.max_grad_norm", "number above 0 or null", "1", ()),
        ("train.adam_epsilon", "number above 0", "1e-08", ()),
        ("train.lr_scheduler_type", "constant | linear | cosine | warmup_stable_decay | cosine_with_restarts", "cosine",
         ("lr_scheduler",)),
        ("train.loss_chunk_bytes", "whole number above 0 or auto or null", "auto", ()),
        ("lora.target_modules", "text or list of text", "all-linear", ()),
        ("distill.match.layers", "mapping of whole number from 0 to whole number from 0 or null", "null", ()),
        ("search.space.uniform", "[number, number] or null", "null", ()),
        ("distill.teacher.path", "text", "", ("model_name_or_path",)),
    ],
)  # fmt: skip
def test_a_key_in_words(wanted, type_, default, aliases) -> None:
    (key,) = find(wanted)
    assert (key.type, key.default, key.aliases) == (type_, default, aliases)


def test_a_section_comes_with_its_keys_and_a_list_with_those_of_its_entries() -> None:
    lora, *rest = find("lora")
    assert lora.section == "LoraSection"
    assert lora.about.startswith("Low-rank adaptation")
    assert [key.path for key in rest] == [f"lora.{name}" for name in _fields("lora")]
    assert [key.name for key in find("data.train")[1:]][:2] == ["path", "split"]
    assert find("data.train.0.path") == find("data.train[].path") == find("data.train.path")


def _fields(section: str) -> list[str]:
    inner, _ = inner_section(RunConfig.model_fields[section].annotation)
    assert inner is not None
    return list(inner.model_fields)


def test_a_bare_name_or_an_alias_is_found_wherever_it_stands() -> None:
    assert [key.path for key in find("remat")] == ["train.remat"]
    assert [key.path for key in find("lora_rank")] == ["lora.r"]
    assert [key.path for key in find("train.lr")] == ["train.learning_rate"]
    assert {key.path for key in find("temperature")} == {"distill.temperature"}
    assert len(find("quantization")) == 2


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("train.lerning_rate", ["got:    train.lerning_rate", "did you mean 'learning_rate'?"]),
        ("lorra", ["did you mean 'lora'?"]),
        ("lora.zzzz", ["known: init_from, init_lora_weights, lora_alpha"]),
    ],
)
def test_a_misspelt_key_is_told(wanted, words) -> None:
    with pytest.raises(ConfigError, match="no such key") as told:
        find(wanted)
    for word in words:
        assert word in str(told.value)
