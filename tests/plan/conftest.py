"""Jobs to plan: a model that is a config alone, and hardware of any size."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxlean.config import RunConfig, build

SHAPE = {
    "model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 512, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture(scope="session")
def outlined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config.json and no weights."""
    folder = tmp_path_factory.mktemp("outlined")
    (folder / "config.json").write_text(json.dumps(SHAPE))
    return folder


@pytest.fixture(scope="session")
def job(outlined: Path) -> Callable[..., RunConfig]:
    """A config of 8 sequences a step, with sections changed."""

    def make(**sections: dict[str, Any] | None) -> RunConfig:
        values: dict[str, Any] = {
            "model": {"path": str(outlined), "dtype": "float32"},
            "data": {"train": "unread"},
            "lora": {"r": 4},
            "train": {"per_device_train_batch_size": 8},
            "compilation_cache": False,
        }
        for name, changes in sections.items():
            values[name] = None if changes is None else {**values.get(name, {}), **changes}
        return build(values)

    return make


@pytest.fixture
def hardware(tmp_path: Path) -> Callable[[float], str]:
    """A hardware table in which a CPU has so many bytes."""

    def make(memory: float) -> str:
        file = tmp_path / "hardware.yaml"
        file.write_text(
            f"devices: [{{target: cpu, name: CPU, match: cpu, platform: cpu, memory_gb: {memory / 1e9}}}]\n"
        )
        return str(file)

    return make
