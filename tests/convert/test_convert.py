"""Whole configs: what they become; nothing is dropped in silence, no secret gets through, what cannot be is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from jaxlean import config
from jaxlean.convert import convert
from jaxlean.convert.convert import nested
from jaxlean.convert.source import read
from jaxlean.convert.write import text
from jaxlean.errors import ConfigError

# Each example -> the settings that keep its meaning. What is at jaxlean's default there and here is not in it.
MEANT: dict[str, dict[str, Any]] = {
    "axolotl_lora.yaml": {
        "output_dir": "./outputs/lora", "seed": 42, "model.path": "example/llama-1b",
        "data.train": [{"path": "example/instructions", "format": "alpaca"}], "data.chat": False,
        "data.eval_fraction": 0.1, "data.max_length": 2048, "data.packing": True, "data.on_long": "drop",
        "lora.r": 16, "lora.lora_alpha": 32, "lora.lora_dropout": 0.05,
        "lora.target_modules": ["gate_proj", "down_proj", "q_proj"], "train.gradient_accumulation_steps": 2,
        "train.per_device_train_batch_size": 2, "train.num_train_epochs": 1, "train.optim": "adamw_8bit",
        "train.lr_scheduler_type": "cosine", "train.learning_rate": 2e-4, "train.remat": "full",
        "train.warmup_steps": 10, "train.weight_decay": 0.01, "train.save_total_limit": 4,
        "eval.per_device_eval_batch_size": 2,
    },
    "axolotl_chat.yaml": {
        "output_dir": "runs/axolotl_chat", "seed": 42, "model.path": "example/llama-8b-instruct",
        "model.quantization": "nf4", "model.dtype": "bfloat16", "model.new_tokens": ["<a>", "<b>"],
        "data.train": [
            {"path": "example/talks", "format": "sharegpt", "split": "train[:20%]"},
            {"path": "more.jsonl", "format": "messages"},
        ],
        "data.eval": [{"path": "example/talks", "format": "sharegpt", "split": "test"}], "data.max_length": 4096,
        "data.on_long": "truncate", "data.train_on": "completion", "data.shuffle": False, "data.packing": False,
        "lora.r": 32, "lora.lora_alpha": 16, "lora.target_modules": "all-linear", "lora.use_rslora": True,
        "lora.loraplus_lr_ratio": 16, "train.per_device_train_batch_size": 1,
        "train.gradient_accumulation_steps": 8,  # batch_size / micro_batch_size
        "train.num_train_epochs": 4, "train.max_steps": 2000, "train.learning_rate": 1e-4,
        "train.lr_scheduler_type": "cosine", "train.min_lr_ratio": 0.1, "train.optim": "adamw_8bit",
        "train.warmup_steps": 60,  # 3 % of 2000
        "train.save_steps": 200, "train.save_total_limit": 4, "eval.eval_steps": 100,  # a twentieth of 2000
        "eval.stopping.patience": 3, "eval.load_best": True, "eval.per_device_eval_batch_size": 1,
        "report.wandb": True, "report.wandb_project": "talks", "report.run_name": "first",
    },
    "axolotl_full.yaml": {
        "output_dir": "runs/axolotl_full", "seed": 42, "model.path": "example/llama-8b", "model.dtype": "bfloat16",
        "data.train": [{"path": "example/texts", "format": "text"}], "data.max_length": 4096,
        "data.on_long": "truncate", "data.packing": False, "lora": None, "train.per_device_train_batch_size": 2,
        "train.gradient_accumulation_steps": 4, "train.num_train_epochs": 2, "train.optim": "adamw",
        "train.learning_rate": 2e-5, "train.warmup_ratio": 0.1, "train.save_total_limit": 4,
        "eval.per_device_eval_batch_size": 2, "mesh.data": 1, "mesh.fsdp": -1, "mesh.context": 2,
    },
    "llama_factory_lora.yaml": {
        "output_dir": "saves/llama/lora", "seed": 42, "model.path": "example/llama-8b-instruct",
        "model.dtype": "bfloat16",
        "data.train": [
            {"path": "{here}/data/plain.json", "format": "alpaca", "limit": 50},
            {"path": "{here}/data/asked.jsonl", "format": "template", "prompt": "{question}",
             "completion": "{answer}", "limit": 50},
        ],
        "data.eval_fraction": 0.114286,  # 8 of 20 + 50 rows
        "data.max_length": 1024, "data.packing": False, "data.on_long": "truncate", "lora.r": 8, "lora.lora_alpha": 16,
        "lora.target_modules": "all-linear", "lora.init_lora_weights": "pissa", "train.per_device_train_batch_size": 1,
        "train.gradient_accumulation_steps": 8, "train.learning_rate": 1e-4, "train.num_train_epochs": 3.0,
        "train.lr_scheduler_type": "cosine", "train.warmup_ratio": 0.1, "train.remat": "full", "train.save_steps": 100,
        "train.logging_steps": 500, "eval.eval_steps": 50, "eval.stopping.patience": 2, "eval.load_best": True,
        "eval.per_device_eval_batch_size": 8, "report.tensorboard": False,
    },
    "llama_factory_full.yaml": {
        "output_dir": "runs/llama_factory_full", "seed": 42, "model.path": "example/llama-8b",
        "data.train": [{"path": "example/texts", "format": "text"}], "data.train_on": "all", "data.max_length": 2048,
        "data.shuffle": False, "data.packing": True, "data.on_long": "truncate", "lora": None,
        "train.learning_rate": 5e-6, "train.warmup_steps": 20, "train.remat": "none",
        "train.lr_scheduler_type": "linear", "train.num_train_epochs": 3.0, "train.save_steps": 500,
        "train.logging_steps": 500, "eval.per_device_eval_batch_size": 8, "mesh.data": 1, "mesh.fsdp": -1,
    },
    "trl_lora.yaml": {
        "output_dir": "qwen-sft", "seed": 42, "model.path": "example/qwen", "model.quantization": "nf4",
        "model.dtype": "bfloat16", "data.train": [{"path": "example/talks"}],
        "data.eval": [{"path": "example/talks", "split": "test"}], "data.packing": True,
        "data.train_on": "completion", "data.chat": False, "data.on_long": "truncate", "lora.r": 32,
        "lora.lora_alpha": 16, "lora.lora_dropout": 0.05, "lora.target_modules": ["q_proj", "v_proj"],
        "train.learning_rate": 2e-4, "train.num_train_epochs": 1, "train.per_device_train_batch_size": 2,
        "train.gradient_accumulation_steps": 8, "train.optim": "adamw_8bit", "train.lr_scheduler_type": "linear",
        "train.warmup_steps": 0, "train.remat": "full", "train.save_steps": 500, "eval.eval_steps": 100,
        "eval.load_best": True, "eval.per_device_eval_batch_size": 8, "report.tensorboard": False,
        "report.wandb": True,
    },
    "trainer_arguments.json": {
        "output_dir": "out", "seed": 7, "model.dtype": "bfloat16", "data.packing": False, "lora.r": 4,
        "lora.lora_alpha": 12, "lora.target_modules": ["q_proj", "v_proj"], "train.learning_rate": 3e-4,
        "train.lr_scheduler_type": "cosine_with_restarts", "train.num_cycles": 2, "train.warmup_steps": 50,
        "train.num_train_epochs": 3, "train.per_device_train_batch_size": 4, "train.gradient_accumulation_steps": 2,
        "train.weight_decay": 0.1, "train.max_grad_norm": None, "train.optim": "sgd", "train.momentum": 0.0,
        "train.remat": "none", "train.logging_steps": 20, "train.label_smoothing_factor": 0.1,
        "eval.per_device_eval_batch_size": 8, "report.tensorboard": False,
    },
    "unsloth.yaml": {
        "output_dir": "runs/unsloth", "seed": 3407, "model.path": "example/llama-1b-instruct",
        "model.quantization": "nf4",
        "data.train": [{"path": "a.jsonl", "format": "messages"}, {"path": "b.jsonl", "format": "messages"}],
        "data.train_on": "completion", "data.max_length": 2048, "data.packing": False, "data.on_long": "truncate",
        "lora.r": 16, "lora.lora_alpha": 16, "lora.use_rslora": True,
        "lora.target_modules": "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split(),
        "train.max_steps": 60, "train.learning_rate": 1e-4, "train.remat": "full", "train.num_train_epochs": 3,
        "train.per_device_train_batch_size": 2, "train.gradient_accumulation_steps": 4, "train.warmup_steps": 5,
        "train.weight_decay": 0.01, "train.optim": "adamw_8bit", "train.lr_scheduler_type": "linear",
        "train.logging_steps": 1, "report.wandb": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", MEANT)
def test_a_config_keeps_its_meaning(examples: Path, name: str) -> None:
    found = convert(examples / name)
    meant = yaml.safe_load(yaml.safe_dump(MEANT[name]).replace("{here}", str(examples)))
    assert found.settings == meant
    assert found.config == config.build(nested(meant))


@pytest.mark.parametrize("name", MEANT)
def test_every_key_of_the_file_is_told(examples: Path, name: str) -> None:
    found = convert(examples / name)
    told = {line.key.partition(".")[0] for line in found.lines} | {key.partition(".")[0] for key in found.empty}
    assert told == set(read(examples / name))
    for line in found.lines:
        outcome = line.outcome
        assert outcome.kind in ("carried", "idle", "missing"), f"{line.key} is unknown"
        assert outcome.note or outcome.settings, f"nothing is said of {line.key}"
    assert {key for line in (*found.lines, *found.written) for key in line.outcome.settings} | {"output_dir"} == set(
        found.settings
    ) | {"output_dir"}, "each setting is told by a line"


@pytest.mark.parametrize("name", MEANT)
def test_what_is_written_is_a_config_that_loads(examples: Path, name: str, tmp_path: Path) -> None:
    found = convert(examples / name)
    file = tmp_path / "ours.yaml"
    file.write_text(text(found, file), encoding="utf-8")
    assert config.load(file) == found.config


def test_no_secret_gets_through(examples: Path) -> None:
    for name, secret in (("llama_factory_lora.yaml", "hf_thisIs"), ("unsloth.yaml", "nobody-knows")):
        found = convert(examples / name)
        assert secret in (examples / name).read_text()
        assert secret not in text(found)
        assert secret not in str(found.settings)
        assert any(line.secret and secret in str(line.value) for line in found.lines)


def test_a_password_in_a_path_is_refused_and_not_shown(write) -> None:
    file = write("base_model: x\nadapter: lora\ndatasets: [{path: 'https://me:word@host/rows.jsonl', type: alpaca}]\n")
    with pytest.raises(ConfigError, match="password in a URL") as told:
        convert(file)
    assert "word@" not in str(told.value)
    assert "theirs.yaml" in str(told.value)


@pytest.mark.parametrize(
    ("text_", "of", "words"),
    [
        ("base_model: x\nadapter: lora\nrl: dpo\n", None, ["preferences or rewards", "rl: dpo", "supervised"]),
        ("stage: kto\nfinetuning_type: lora\n", None, ["preferences (KTO)", "stage: kto"]),
        ("stage: rm\nfinetuning_type: lora\n", None, ["a reward model"]),
        ("stage: sft\ndo_train: false\ntemplate: llama3\n", None, ["does not train", "jaxlean evaluate"]),
        ("stage: sft\ntemplate: qwen2_vl\ncutoff_len: 9\n", None, ["images, sound or film", "qwen2_vl"]),
        ("model_name_or_path: x\ndataset_name: y\nbeta: 0.1\nloss_type: sigmoid\n", "trl", ["preferences"]),
        ("base_model: x\nadapter: lora\nprocessor_type: AutoProcessor\n", None, ["images, sound or film"]),
        ("model: x\ntraining: {max_steps: 3}\nlora: {vision_all_linear: true}\n", None, ["images, sound or film"]),
    ],
)
def test_what_jaxlean_does_not_do_is_refused(write, text_: str, of: str | None, words: list[str]) -> None:
    with pytest.raises(ConfigError, match="jaxlean does not do this") as told:
        convert(write(text_), of=of)
    for word in (*words, "theirs.yaml"):
        assert word in str(told.value)


@pytest.mark.parametrize(
    ("text_", "words"),
    [
        ("base_model: x\nadapter: lora\nmicro_batch_size: two\n", ["micro_batch_size (train.per_device_", "integer"]),
        ("base_model: x\nadapter: lora\nlearning_rate: -1\n", ["learning_rate (train.learning_", "greater than 0"]),
        ("base_model: [1]\nadapter: lora\n", ["base_model (model.path)", "string"]),
        ("max_length: 5\nmax_seq_length: 6\nuse_peft: true\n", ["two keys say different things of data.max_length"]),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_named_as_it_is_there(write, text_: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as told:
        convert(write(text_))
    for word in (*words, "theirs.yaml"):
        assert word in str(told.value)


def test_without_an_adapter_nothing_of_adapters_is_written(write) -> None:
    found = convert(write("base_model: x\nmicro_batch_size: 1\nlora_r: 8\nload_in_8bit: true\nsequence_len: 9\n"))
    assert found.settings["lora"] is None
    assert not [key for key in found.settings if key.startswith("lora.")]
    kinds = {line.key: (line.outcome.kind, line.outcome.note) for line in found.lines}
    assert kinds["lora_r"] == ("idle", "all weights train: no adapter")
    assert kinds["load_in_8bit"][0] == "missing"
    assert "model.quantization" not in found.settings


def test_what_an_adapter_says_itself_is_not_said_again(write) -> None:
    found = convert(write("base_model: x\nadapter: lora\nlora_model_dir: out\nlora_r: 64\nlora_target_linear: true\n"))
    assert {key: value for key, value in found.settings.items() if key.startswith("lora.")} == {"lora.init_from": "out"}
    told = {line.key: line.outcome for line in found.lines}
    assert told["lora_r"].kind == "idle"
    assert "has its own" in told["lora_r"].note


def test_what_needs_scores_while_a_run_goes_is_taken_back_where_there_are_none(write) -> None:
    rest = "base_model: x\nadapter: lora\nearly_stopping_patience: 2\nload_best_model_at_end: true\n"
    without_rows = convert(write(rest + "eval_steps: 5\n"))
    without_steps = convert(write(rest + "val_set_size: 0.1\n"))
    for found, word in ((without_rows, "held-out rows"), (without_steps, "eval.eval_steps: STEPS")):
        told = {line.key: line.outcome for line in found.lines}
        for key in ("early_stopping_patience", "load_best_model_at_end"):
            assert told[key].kind == "missing"
            assert word in told[key].note
        assert "eval.load_best" not in found.settings
    both = convert(write(rest + "val_set_size: 0.1\neval_steps: 5\n"))
    assert both.settings["eval.stopping.patience"] == 2
    assert both.settings["eval.load_best"] is True


def test_a_stream_without_an_end_is_read_as_a_whole(write) -> None:
    found = convert(write("base_model: x\nadapter: lora\npretraining_dataset: [{path: a/b}]\n"))
    assert "data.streaming" not in found.settings
    bounded = convert(write("base_model: x\nadapter: lora\npretraining_dataset: [{path: a/b}]\nmax_steps: 5\n"))
    assert bounded.settings["data.streaming"] is True
    assert bounded.settings["data.train"] == [{"path": "a/b", "format": "text"}]


def test_an_unknown_key_is_told_with_what_was_meant_and_without_its_value(write) -> None:
    found = convert(write("base_model: x\nadapter: lora\nsequnce_len: secretive\nwholly_other: 1\n"))
    told = {line.key: line for line in found.lines}
    assert told["sequnce_len"].outcome.kind == "unknown"
    assert "did you mean 'sequence_len'?" in told["sequnce_len"].outcome.note
    assert told["sequnce_len"].secret
    assert "not a key of Axolotl" in told["wholly_other"].outcome.note
    assert "Without counterpart: sequnce_len, wholly_other" in text(found)


def test_sections_come_in_the_order_of_the_config() -> None:
    assert list(nested({"train.optim": 1, "seed": 2, "model.path": 3, "train.momentum": 4})) == [
        "seed",
        "model",
        "train",
    ]
