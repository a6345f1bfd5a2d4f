from typing import Any

import pytest

from jaxlean import config
from jaxlean.config import RunConfig, Section, read
from jaxlean.errors import ConfigError


def sections(section: type[Section] = RunConfig, prefix: str = "") -> dict[str, type[Section]]:
    """Every section by its path."""
    found = {prefix: section}
    for name, declared in section.model_fields.items():
        inner = read._section_of(declared.annotation)
        if inner is not None:
            found |= sections(inner, f"{prefix}{name}.")
    return found


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("train.lr", "train.learning_rate"),
        ("train.micro_batch_size", "train.per_device_train_batch_size"),
        ("train.num_epochs", "train.num_train_epochs"),
        ("train.gradient_checkpointing", "train.remat"),
        ("lora.lora_r", "lora.r"),
        ("data.cutoff_len", "data.max_length"),
        ("data.sample_packing", "data.packing"),
        ("data.datasets", "data.train"),
        ("model.base_model", "model.path"),
        ("eval.eval_batch_size", "eval.per_device_eval_batch_size"),
    ],
)
def test_names_from_other_projects_mean_the_same(alias: str, name: str) -> None:
    value = {"train.remat": "full", "data.packing": "false", "data.train": "a", "model.path": "a"}.get(name, "3")
    assert config.load(None, [f"{alias}={value}"]) == config.load(None, [f"{name}={value}"]) != RunConfig()


def test_no_name_means_two_things() -> None:
    for path, section in sections().items():
        names = [
            str(choice)
            for name, declared in section.model_fields.items()
            for choice in (name, *getattr(declared.validation_alias, "choices", ()))
        ]
        assert len(names) == len(set(names)), path


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": {"learning_rate": "fast"}}, r"train\.learning_rate: .* number.*\n  got:    'fast'"),
        ({"train": {"learning_rate": 0}}, r"train\.l\w+: Input should be greater than 0\n  got:    0"),
        ({"seed": None}, r"seed: Input should be a valid integer\n  got:    None"),
        ({"model": {"dtype": "float16"}}, r"model\.dtype: .*'bfloat16'\n  got:    'float16'"),
        ({"data": {"train": [{"path": "a", "weight": -1}]}}, r"data\.train\.0\.weight: .*greater than 0"),
        ({"data": {"train": [{"format": "text"}]}}, r"data\.train\.0\.path: Field required"),
        ({"data": {"eval_fraction": 1.5}}, r"data\.eval_fraction: .*less than or equal to 1"),
        ({"mesh": {"fsdp": -2}}, r"mesh\.fsdp: .*greater than or equal to -1"),
        ({"train": {"trainable": ["norm"]}}, r"train\.trainable needs lora: null"),
        ({"lora": {"use_dora": True, "init_lora_weights": "pissa"}}, r"exclude each other"),
        ({"data": {"streaming": True}}, r"data\.streaming needs train\.max_steps"),
    ],
)
def test_a_wrong_value_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.build(values)


def test_full_fine_tuning_may_choose_what_trains() -> None:
    assert config.build({"lora": None, "train": {"trainable": ["norm"]}}).train.trainable == ["norm"]


def test_every_setting_is_described_or_plain() -> None:
    """A setting says what it does, unless its name is the whole story (adam_beta1, logging_steps ...)."""
    plain = {
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "logging_steps",
        "tensorboard",
        "wandb",
        "wandb_project",
        "run_name",
    }
    for path, section in sections().items():
        for name, declared in section.model_fields.items():
            is_section = read._section_of(declared.annotation) is not None
            assert declared.description or is_section or name in plain, f"{path}{name}"


def test_names_that_hugging_face_has_for_optimizers():
    for name, ours in {
        "adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw_bnb_8bit": "adamw_8bit",
        "adamw_8bit": "adamw_8bit", "adafactor": "adafactor", "sgd": "sgd",
    }.items():  # fmt: skip
        assert config.load(None, [f"train.optim={name}"]).train.optim == ours
    with pytest.raises(ConfigError, match=r"train\.optim.*'adamw_8bit'[\s\S]*paged_adamw"):
        config.load(None, ["train.optim=paged_adamw_8bit"])


def test_a_dtype_of_momentum_needs_a_momentum():
    assert config.load(None, ["train.optim=lion", "train.momentum_dtype=bfloat16"]).train.momentum_dtype == "bfloat16"
    for optim in ("adafactor", "adamw_8bit"):
        with pytest.raises(ConfigError, match=rf"train\.momentum_dtype is for adamw.*not for {optim}"):
            config.load(None, [f"train.optim={optim}", "train.momentum_dtype=bfloat16"])


def test_the_compilation_cache_is_a_word_or_a_folder(tmp_path):
    for text, value in {"true": True, "on": True, "false": False, "off": False, "Off": False, "a/b": "a/b"}.items():
        assert config.load(None, [f"compilation_cache={text}"]).compilation_cache == value
    file = tmp_path / "run.yaml"
    file.write_text("compilation_cache: off\n")
    assert config.load(file).compilation_cache is False
    assert config.build({}).compilation_cache is True


def test_a_rule_that_is_not_a_regular_expression():
    with pytest.raises(ConfigError, match=r"train\.trainable: not a regular expression"):
        config.load(None, ["lora=null", "train.trainable=['(']"])


@pytest.mark.parametrize("path", sorted(sections()))
def test_an_unknown_key_is_an_error_that_knows_better(path: str) -> None:
    section = sections()[path]
    name = max(section.model_fields, key=len)
    wrong = name[:-2] + name[-1] + name[-2] + "x" if len(name) > 3 else name + "x"
    values: Any = {wrong: 1}
    for part in reversed(path.split(".")[:-1]):
        values = {part: [{"path": "a", **values}] if part in ("train", "eval") and path.startswith("data.") else values}
    with pytest.raises(
        ConfigError, match=f"unknown key: .*{wrong}\n  where:  here.yaml\n  fix:    did you mean '{name}'"
    ):
        config.build(values, where="here.yaml")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["distributed.num_processes=2"], "num_processes without coordinator_address and process_id"),
        (["distributed.coordinator_address=a:1", "distributed.process_id=0"], "without num_processes"),
        (
            ["distributed.coordinator_address=a:1", "distributed.process_id=2", "distributed.num_processes=2"],
            "process_id 2 of 2 processes: they count from 0",
        ),
        (
            ["distributed.coordinator_address=host", "distributed.process_id=0", "distributed.num_processes=2"],
            "coordinator_address is host:port, not 'host'",
        ),
    ],
)
def test_processes_that_cannot_be(overrides, words):
    with pytest.raises(ConfigError, match="distributed") as raised:
        config.load(None, overrides)
    assert words in str(raised.value)
