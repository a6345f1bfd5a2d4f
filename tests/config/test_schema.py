"""The JSON schema: what is committed is what the code gives, every config fits, and what is wrong does not."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from jaxlean import config
from jaxlean.config.keys import every
from jaxlean.config.schema import schema, schema_text
from jaxlean.errors import ConfigError

CONFIGS = Path(__file__).parent.parent.parent / "configs"
FILE = CONFIGS / "schema.json"
OURS = sorted(file.name for file in CONFIGS.glob("*.yaml") if file.stem not in ("hardware", "regions"))


@pytest.fixture(scope="module")
def wrong() -> Any:
    """(a config) -> the messages of what does not fit."""
    jsonschema = pytest.importorskip("jsonschema", reason="pip install -e '.[test]' brings it")
    made = schema()
    jsonschema.Draft202012Validator.check_schema(made)
    validator = jsonschema.Draft202012Validator(made)
    return lambda values: [error.message for error in validator.iter_errors(values)]


def test_the_committed_schema_is_current() -> None:
    # parsed: versions of pydantic write 0 and 0.0
    assert json.loads(FILE.read_text(encoding="utf-8")) == schema(), "jaxlean config --schema > configs/schema.json"
    assert json.loads(schema_text()) == schema() == schema()


@pytest.mark.parametrize("name", OURS)
def test_every_config_fits_the_schema_and_the_code(wrong, name: str) -> None:
    values = yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8"))
    assert wrong(values) == []
    config.build(values)


# As people write them: with other projects' names, and the short forms of sections.
FINE: list[dict[str, Any]] = [
    {"mesh": "auto", "seed": 1},
    {"mesh": {"fsdp": -1}, "lora": None},
    {"model": {"base_model": "org/name", "load_in_4bit": True}, "lora": {"lora_r": 8}},
    {"train": {"lr": 1e-4, "gradient_checkpointing": True, "optimizer": "adamw_torch", "memory_budget": "12GB"}},
    {"train": {"remat": {"save": ["gate"], "offload": []}}},
    {"data": {"train": "a.jsonl", "eval": {"path": "b.jsonl", "type": "alpaca"}, "curriculum": "length"}},
    {"data": {"train": ["a.jsonl", {"path": "b", "weight": 2}], "max_seq_length": 5}},
    {"data": {"train": "a", "eval_fraction": 0.1}, "eval": {"early_stopping_patience": 2, "eval_steps": 5}},
    {"curate": {"steps": ["exact_duplicates", {"near_duplicates": {"threshold": 0.8}}]}},
    {"curate": {"steps": "exact_duplicates"}},
    {"search": {"space": {"train.learning_rate": {"log": [1e-5, 1e-2]}, "lora.r": [8, 16], "lora": {"r": [2, 4]}}}},
    {"distill": {"teacher": "org/name", "student": {"num_layers": 2}}},
    {"task": "text-classification"},
    {"prune": {"pattern": 124}},
]
NOT_FINE: list[dict[str, Any]] = [
    {"sed": 1},
    {"train": {"lerning_rate": 1e-4}},
    {"train": {"optim": "adamm"}},
    {"train": {"learning_rate": 0}},
    {"lora": {"r": 0}},
    {"mesh": "manual"},
    {"data": {"train": [{"pth": "a"}]}},
    {"data": {"eval_fraction": 2}},
    {"search": {"sampler": "grid"}},
]


@pytest.mark.parametrize("values", FINE, ids=str)
def test_what_the_code_takes_the_schema_takes(wrong, values: dict[str, Any]) -> None:
    config.build(values)
    assert wrong(values) == []


@pytest.mark.parametrize("values", NOT_FINE, ids=str)
def test_what_the_code_refuses_the_schema_refuses(wrong, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        config.build(values)
    assert wrong(values) != []


def test_a_dumped_config_fits(wrong) -> None:
    assert wrong(yaml.safe_load(config.dump(config.RunConfig()))) == []


def test_editors_are_told_of_every_key_and_of_no_other() -> None:
    made = schema()
    for section in (made, *made["$defs"].values()):
        if "properties" in section:
            assert section["additionalProperties"] is False
            assert all(each.get("description") for each in section["properties"].values())
    names = {key.name for key in every()} | {alias for key in every() for alias in key.aliases}
    told = {name for section in (made, *made["$defs"].values()) for name in section.get("properties", {})}
    assert names <= told
    assert "Another name of learning_rate" in made["$defs"]["TrainSection"]["properties"]["lr"]["description"]
