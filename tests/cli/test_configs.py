"""Verbs that make and explain configs."""

import json
from pathlib import Path

from jaxlean.errors import EXIT_USER_ERROR

CONFIGS = Path(__file__).parent.parent.parent / "configs"


def test_config_prints_keys(cli) -> None:
    code, out, _ = cli("config", "lora.r")
    assert code == 0
    assert "also: lora_r, lora_rank" in out
    assert "train.remat" in cli("config")[1]


def test_config_tells_a_misspelt_key(cli) -> None:
    code, out, err = cli("config", "train.lerning_rate")
    assert (code, out) == (EXIT_USER_ERROR, "")
    assert "did you mean 'learning_rate'?" in err


def test_config_prints_the_schema_and_nothing_else(cli) -> None:
    code, out, err = cli("config", "--schema")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads((CONFIGS / "schema.json").read_text(encoding="utf-8"))
    assert "--schema is of all keys" in cli("config", "train", "--schema")[2]
