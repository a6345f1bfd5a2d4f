"""Small datasets, curated in this process, as a whole or by one step; a tiny encoder, and texts it can be taught."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from jaxlean import config
from jaxlean.config import RunConfig, build
from jaxlean.curate.corpus import Corpus
from jaxlean.curate.curate import curate
from jaxlean.curate.found import Found
from jaxlean.curate.steps import find
from jaxlean.curate.work import Processes, Work


def write(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., RunConfig]:
    """`job(rows, steps, eval=rows, section={...})`: a config over rows that are written to a file."""

    def make(rows: list[Any], steps: list[Any], held_out: list[Any] | None = None, **values: Any) -> RunConfig:
        data: dict[str, Any] = {"train": str(write(tmp_path / "rows.jsonl", rows))} | values.pop("data", {})
        if held_out is not None:
            data["eval"] = str(write(tmp_path / "heldout.jsonl", held_out))
        own = {"steps": steps, "processes": 1} | values.pop("curate", {})
        return config.build({"data": data, "curate": own, "output_dir": str(tmp_path / "out"), **values})

    return make


@pytest.fixture
def curated(job: Callable[..., RunConfig]) -> Callable[..., tuple[dict[str, Any], list[Any], list[Any]]]:
    """The same, curated: (the report, the rows that stay, those that do not)."""

    def run(*arguments: Any, **values: Any) -> tuple[dict[str, Any], list[Any], list[Any]]:
        made = job(*arguments, **values)
        told = curate(made)
        folder = Path(made.output_dir)
        kept, dropped = (
            pyarrow.parquet.read_table(folder / name).to_pylist() for name in ("train.parquet", "dropped.parquet")
        )
        return told, kept, dropped

    return run


@pytest.fixture
def texts() -> list[str]:
    """Six, of which the second is the first but for its marks, the last the fourth, and the third nearly the first."""
    return [
        "The cat sat on the mat and looked at the birds in the garden.",
        "the cat sat on the mat, and looked at the birds in the garden!",
        "The cat sat on the mat and looked at the bees in the garden.",
        "A train leaves the station at seven in the morning.",
        "Nobody has seen the river this high since the spring of the flood.",
        "A train leaves the station at seven in the morning.",
    ]


@pytest.fixture
def corpus_of(tmp_path: Path) -> Callable[..., Corpus]:
    """`corpus_of(rows, rows, task="classify", ...)`: files of these rows as the sources, under this config."""

    def make(*sources: list[Any], **values: Any) -> Corpus:
        files = [str(write(tmp_path / f"source-{i}.jsonl", rows)) for i, rows in enumerate(sources)]
        data = {"train": files, **values.pop("data", {})}
        return Corpus(config.build({"output_dir": str(tmp_path / "out"), "data": data, **values}))

    return make


@pytest.fixture
def run_step(tmp_path: Path) -> Callable[..., Found]:
    """`run_step(corpus, {"keep": {"count": 3}})`: what the step finds, all rows (or those in `alive`) being left."""

    def run(
        corpus: Corpus,
        step: dict[str, Any],
        *,
        alive: Sequence[int] | None = None,
        scores: dict[str, Any] | None = None,
        folder: str = "work/01-step",
    ) -> Found:
        (entry,) = config.build({"curate": {"steps": [step]}}).curate.steps
        mask = np.zeros(len(corpus), bool)
        mask[slice(None) if alive is None else list(alive)] = True
        known = {name: np.asarray(score, np.float32) for name, score in (scores or {}).items()}
        with Processes(corpus.config) as workers:
            work = Work(tmp_path / folder, workers, scores=known)
            work.folder.mkdir(parents=True, exist_ok=True)
            return find(entry.name)(corpus, mask, entry.settings, work)

    return run


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
