"""Folders as runs leave them, made up: of any length and in any state."""

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
RECEIPT = {
    "format": 1, "made": "2026-01-02T03:04:05Z",
    "total": {"usd": 0.002, "usd_without": 0.02, "usd_without_where": "on a larger machine",
              "sentence": "This job would have cost $0.02 on a larger machine; it cost $0.0020."},
    "cuts": [
        {"number": 2, "cut": "LoRA", "settings": ["lora.r=8"], "without": ["lora=null"],
         "memory_bytes": {"with": 2**20, "without": 2**22, "source": "compiled"},
         "flops": {"with": 2.5e12, "without": 3e12, "source": "compiled"},
         "seconds": {"with": 60.0, "without": 90.0, "source": "measured"},
         "usd": {"with": 0.002, "without": 0.003, "source": "measured"}, "note": "of the base no gradient"},
        {"number": 4, "cut": "remat", "settings": ["train.remat=full"], "without": ["train.remat=none"],
         "memory_bytes": {"with": 2**20, "without": 2**21, "source": "compiled"}, "flops": None, "usd": None},
    ],
}  # fmt: skip


def line(step: int, **other: Any) -> dict[str, Any]:
    """A line of training."""
    return {
        "step": step, "loss": 0.05 + 5 * math.exp(-step / 30), "grad_norm": 1.0, "tokens": 100 * step,
        "total_tokens": 200 * step, "tokens_per_second": 1000.0, "seconds": 10 + step / 5, "peak_memory_bytes": 10**9,
        "usd": (10 + step / 5) / 3600, "learning_rate": 0.003,
    } | other  # fmt: skip


def summary(steps: int, **other: Any) -> dict[str, Any]:
    return {
        "status": "completed", "ended": "2026-01-02T03:04:05Z", "steps": steps, "tokens": 100 * steps,
        "total_tokens": 200 * steps, "seconds": 15 + steps / 5, "train_seconds": steps / 5, "tokens_per_second": 1000.0,
        "predicted_memory_bytes": sum(MEMORY.values()), "memory_by_category": MEMORY, "measured_memory_bytes": 120_000,
        "peak_memory_bytes": 10**9, "num_params": 2000, "num_trainable": 500, "train_loss": 0.06, "usd": 0.01,
        "eval_before": {"loss": 5.25, "perplexity": 190.6, "exact_match": 0.0, "examples": 300, "tokens": 8000},
        "eval_after": {"loss": 0.0136, "perplexity": 1.0137, "exact_match": 0.937, "examples": 300, "tokens": 8000},
        "eval_few_shot": None, "eval_teacher": None, "best_step": None, "stopped_early": None, "device_kind": "cpu",
        "num_devices": 1, "versions": {"jaxlean": "0.1.0", "jax": "0.10.2"},
    } | other  # fmt: skip


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
            lines = [line(step) for step in range(2, steps + 1, 2)]
            lines += [{"step": step, "eval_loss": 0.06 + 5 * math.exp(-step / 30)} for step in range(0, steps + 1, 20)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
        if summary is not None:
            (folder / "summary.json").write_text(json.dumps(_summary(steps, **summary)))
        if receipt is not None:
            (folder / "receipt.json").write_text(json.dumps(receipt))
        return folder

    return make


_summary = summary
