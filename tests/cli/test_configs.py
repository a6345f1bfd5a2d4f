"""Verbs that make and explain configs."""

import json
from pathlib import Path

import yaml

from jaxlean.config import build, load
from jaxlean.errors import EXIT_USER_ERROR

CONFIGS = Path(__file__).parent.parent.parent / "configs"
THEIRS = Path(__file__).parent.parent / "convert" / "examples"


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


def test_convert_writes_a_config_and_tells_of_every_key(cli, tmp_path) -> None:
    output = tmp_path / "ours.yaml"
    code, out, err = cli("convert", THEIRS / "axolotl_lora.yaml", "-o", output)
    assert (code, out) == (0, "")
    assert "has no counterpart" in err
    assert f"written: {output}" in err
    made = load(output)
    assert made.train.per_device_train_batch_size == 2
    code, out, _ = cli("convert", THEIRS / "axolotl_lora.yaml")
    assert code == 0
    assert build(yaml.safe_load(out)) == made


def test_convert_writes_over_nothing_and_leaves_nothing_where_it_fails(cli, tmp_path) -> None:
    output = tmp_path / "ours.yaml"
    output.write_text("mine")
    code, _, err = cli("convert", THEIRS / "axolotl_lora.yaml", "--output", output)
    assert code == EXIT_USER_ERROR
    assert "the output is there already" in err
    assert output.read_text() == "mine"
    broken = tmp_path / "broken.yaml"
    broken.write_text("base_model: [x\nadapter: lora\n")
    code, _, err = cli("convert", broken, "--output", tmp_path / "new.yaml")
    assert code == EXIT_USER_ERROR
    assert "not valid YAML" in err
    broken.write_text("colour: red\n")
    assert "not a config that is known" in cli("convert", broken, "--output", tmp_path / "new.yaml")[2]
    assert "no such config file" in cli("convert", tmp_path / "absent.yaml")[2]
    assert not (tmp_path / "new.yaml").exists()
    assert cli("convert", THEIRS / "axolotl_lora.yaml", "--output", output, "--overwrite")[0] == 0
    load(output)


def test_convert_prints_the_table_of_keys(cli) -> None:
    code, out, err = cli("convert", "--table")
    assert (code, err) == (0, "")
    assert out == (CONFIGS / "MIGRATING.md").read_text(encoding="utf-8")
    assert "--table converts no file" in cli("convert", "a.yaml", "--table")[2]
    assert "no file to convert" in cli("convert")[2]


def test_another_projects_config_is_told_from_a_wrong_one(cli) -> None:
    code, _, err = cli("finetune", THEIRS / "axolotl_lora.yaml")
    assert code == EXIT_USER_ERROR
    assert "looks like an Axolotl config: jaxlean convert" in err
