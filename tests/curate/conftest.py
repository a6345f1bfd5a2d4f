"""A tiny encoder, and texts that it can be taught to tell apart."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxlean.config import RunConfig, build

TOKENIZER = Path(__file__).parents[2] / "configs" / "quickstart" / "base"


@pytest.fixture(scope="module")
def encoder(small_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers that has learned nothing: its vectors tell which words there are."""
    from jaxlean.hub.load import initial
    from jaxlean.hub.write import write_model

    architecture = {
        "model_type": "bert", "vocab_size": 2048, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 64, "initializer_range": 0.05,
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("encoder") / "bert"
    write_model(initial(architecture, "float32", tokenizer=str(TOKENIZER)), folder)
    return folder


@pytest.fixture
def select_config(encoder: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """`select_config(train=FILE, ...)`: of a run of seconds; what is given goes into `data`."""

    def config(lora: dict[str, Any] | None = None, **data: Any) -> RunConfig:
        return build(
            {
                "task": "classify", "model": {"path": str(encoder), "dtype": "float32"},
                "data": {"max_length": 32} | data, "output_dir": str(tmp_path / "run"),
                "lora": {"r": 4, "lora_alpha": 8} | (lora or {}), "eval": {"per_device_eval_batch_size": 2},
                "train": {"max_steps": 40, "learning_rate": 0.02, "per_device_train_batch_size": 2},
                "report": {"tensorboard": False},
            }
        )  # fmt: skip

    return config


@pytest.fixture
def lines(tmp_path: Path) -> Callable[[str, list[dict[str, Any]]], Path]:
    """`lines(NAME, rows)`: a file of JSON lines."""

    def write(name: str, rows: list[dict[str, Any]]) -> Path:
        file = tmp_path / name
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file

    return write
