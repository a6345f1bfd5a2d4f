"""Folders as runs leave them, made up: of any length and in any state."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

CONFIG = {
    "output_dir": "runs/x", "seed": 0, "model": {"path": "org/base"}, "lora": {"r": 8, "lora_alpha": 16.0},
    "data": {"train": [{"path": "train.jsonl"}], "eval": [{"path": "heldout.jsonl"}]},
    "train": {"learning_rate": 0.003}, "eval": {"eval_steps": 20},
}  # fmt: skip
MEMORY = {"frozen": 8000, "trained": 2000, "optimizer": 4000, "batch": 1000, "temporaries": 85_000}
RECEIPT: dict[str, Any] = {
    "format": 1, "made": "2026-01-02T04:00:00+00:00", "run": "runs/x", "versions": {"jaxlean": "0.1.0"},
    "device_kind": "cpu", "num_devices": 1, "calibration": {"rounds": 3, "steps": [0.1, 0.1]},
    "cuts": [
        {"number": 1, "cut": "open weights", "kind": "unmeasured", "settings": ["model.path=org/base"], "without": [],
         "memory_bytes": None, "flops": None, "seconds": None, "kwh": None, "usd": None, "note": "nothing is claimed"},
        {"number": 2, "cut": "LoRA", "kind": "program", "settings": ["lora.r=8"], "without": ["lora=null"],
         "memory_bytes": {"with": 2**20, "without": 2**22, "source": "compiled"},
         "flops": {"with": 2.5e12, "without": 2e12, "source": "compiled"},
         "seconds": {"with": 60.0, "without": 90.0, "source": "timed"},
         "kwh": {"with": 0.0006, "without": 0.0009, "source": "timed, at the run's power"},
         "usd": {"with": 0.002, "without": 0.003, "source": "timed"}, "note": ""},
        {"number": 5, "cut": "loss in chunks", "kind": "program", "settings": ["train.loss_chunk_bytes=auto"],
         "without": ["train.loss_chunk_bytes=null"],
         "memory_bytes": {"with": 1_000_000, "without": 1_000_100, "source": "compiled"}, "flops": None,
         "seconds": None, "kwh": None, "usd": None, "note": ""},
        {"number": None, "cut": "packing", "kind": "steps", "settings": ["data.packing=true"],
         "without": ["data.packing=False"], "memory_bytes": None, "flops": None,
         "seconds": {"with": 60.0, "without": 120.0, "source": "counted"},
         "kwh": {"with": 0.0006, "without": 0.0012, "source": "counted, at the run's power"},
         "usd": {"with": 0.002, "without": 0.004, "source": "counted"}, "note": ""},
    ],
    "total": {"usd": 0.002, "seconds": 60.0, "kwh": 0.0006, "memory_bytes": 2**20, "memory_bytes_without": 2**22,
              "cuts": ["LoRA", "loss in chunks", "packing"], "usd_without": 0.006, "seconds_without": 180.0,
              "kwh_without": 0.0018, "usd_without_where": "these devices",
              "sentence": "on these devices, without LoRA and packing, this job would have cost $0.006"},
}  # fmt: skip


def _line(step: int, **other: Any) -> dict[str, Any]:
    """A line of training."""
    return {
        "step": step, "loss": 0.05 + 5 * math.exp(-step / 30), "grad_norm": 1.0, "tokens": 100 * step,
        "total_tokens": 200 * step, "tokens_per_second": 1000.0, "seconds": 10 + step / 5, "peak_memory_bytes": 10**9,
        "usd": (10 + step / 5) / 3600, "learning_rate": 0.003,
    } | other  # fmt: skip


def summary(steps: int) -> dict[str, Any]:
    return {
        "status": "completed", "ended": "2026-01-02T03:04:05Z", "steps": steps, "tokens": 100 * steps,
        "total_tokens": 200 * steps, "seconds": 15 + steps / 5, "train_seconds": steps / 5, "tokens_per_second": 1000.0,
        "predicted_memory_bytes": sum(MEMORY.values()), "memory_by_category": MEMORY, "measured_memory_bytes": 120_000,
        "peak_memory_bytes": 10**9, "num_params": 2000, "num_trainable": 500, "train_loss": 0.06, "usd": 0.01,
        "eval_before": {"loss": 5.25, "perplexity": 190.6, "exact_match": 0.0, "examples": 300, "tokens": 8000},
        "eval_after": {"loss": 0.0136, "perplexity": 1.0137, "exact_match": 0.937, "examples": 300, "tokens": 8000},
        "eval_few_shot": None, "eval_teacher": None, "best_step": None, "stopped_early": None, "device_kind": "cpu",
        "num_devices": 1, "measured_step_seconds": 0.2, "versions": {"jaxlean": "0.1.0", "jax": "0.10.2"},
    }  # fmt: skip


@pytest.fixture
def line() -> Callable[..., dict[str, Any]]:
    """`line(3, loss=2.0)`: a line of training at a step."""
    return _line


@pytest.fixture
def told() -> dict[str, Any]:
    """A receipt as `jaxlean receipt` writes it."""
    return copy.deepcopy(RECEIPT)


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Path]:
    """`made("a", steps=40, summary={...})`: a run's folder; None in the place of a file leaves it out."""

    def make(
        name: str,
        *,
        steps: int = 40,
        config: dict[str, Any] | None = None,
        summary: dict[str, Any] | None = {},  # noqa: B006  (None: there is none)
        lines: list[dict[str, Any]] | None = None,
        receipt: Any = None,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG | (config or {}), sort_keys=False))
        if lines is None:
            lines = [_line(step) for step in range(2, steps + 1, 2)]
            lines += [{"step": step, "eval_loss": 0.06 + 5 * math.exp(-step / 30)} for step in range(0, steps + 1, 20)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
        if summary is not None:
            (folder / "summary.json").write_text(json.dumps(_summary(steps) | summary))
        if receipt is not None:
            (folder / "receipt.json").write_text(json.dumps(receipt))
        return folder

    return make


_summary = summary
