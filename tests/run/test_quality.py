import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxlean.config import load
from jaxlean.run import merge
from jaxlean.run.finetune import finetune

pytestmark = pytest.mark.usefixtures("small_machine", "stand_in")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A text whose label is told by its first word."""
    rows = [
        {"text": f"{colour} {thing} {n}", "category": colour}
        for colour in ("red", "green", "blue")
        for thing in ("house", "train")
        for n in range(4)
    ]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def task_run(tiny_run: Callable[..., Any]) -> Callable[..., Any]:
    def run(task: str, file: Path, *overrides: str) -> Any:
        return tiny_run(
            f"task={task}", f"data.train={file}", f"data.eval={file}", "train.per_device_train_batch_size=4",
            "eval.per_device_eval_batch_size=4", "train.max_steps=30", "train.learning_rate=0.02", *overrides,
        )  # fmt: skip

    return run


def test_classify_learns(task_run: Callable[..., Any], texts: Path) -> None:
    summary = finetune(task_run("classify", texts))
    before, after = summary["eval_before"], summary["eval_after"]
    assert before["loss"] == pytest.approx(math.log(3), abs=0.1)
    assert before["tokens"] == after["tokens"] == before["examples"] == 24
    assert after["accuracy"] == after["macro_f1"] == 1.0
    assert after["loss"] < 0.2


def test_tags_that_are_no_spans_have_no_spans_scores(task_run: Callable[..., Any], tmp_path: Path) -> None:
    rows = [{"words": [colour, "old", "house"], "pos_tags": ["ADJ", "ADJ", "NOUN"]} for colour in ("red", "green")] * 4
    file = tmp_path / "words.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    after = finetune(task_run("tag", file, "train.max_steps=2", "eval.before=false"))["eval_after"]
    assert {"accuracy", "macro_f1", "weighted_f1"} < after.keys()
    assert "f1" not in after
    assert after["tokens"] == 24


def test_a_run_knows_its_columns_and_labels_and_goes_on(
    task_run: Callable[..., Any], texts: Path, cli: Callable[..., Any], tmp_path: Path
) -> None:
    """The table shows what the task measures; resumed, the config's labels are those of the run."""
    finetune(task_run("classify", texts, "train.max_steps=4", "train.save_steps=4"))
    run = tmp_path / "run"
    data = load(run / "config.yaml").data
    assert (data.text_column, data.label_column, data.labels) == ("text", "category", ["blue", "green", "red"])
    config = json.loads((run / "adapter" / "config.json").read_text())
    assert config["id2label"] == {"0": "blue", "1": "green", "2": "red"}
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"eval_accuracy", "eval_macro_f1"} <= metrics[0].keys()
    again = finetune(task_run("classify", texts, "train.max_steps=4", "train.save_steps=4"), resume=True)
    assert again["steps"] == 4
    code, out, err = cli("finetune", run / "config.yaml", f"output_dir={tmp_path / 'other'}")
    assert code == 0, err
    assert "accuracy" in out
    assert "macro f1" in out
    assert "perplexity" not in out
    assert json.loads((tmp_path / "other" / "summary.json").read_text())["eval_after"] == again["eval_after"]


def test_an_adapter_is_folded_in_under_its_head(
    task_run: Callable[..., Any], texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = task_run("classify", texts, "train.max_steps=4", "eval.before=false")
    finetune(config)
    written: list[Any] = []

    def write(model: Any, folder: Path, dtype: str) -> None:
        folder.mkdir()  # as the writer does; what is staged there is moved into place
        written.append(model)

    monkeypatch.setattr(merge, "write_model", write)
    merge.merge(tmp_path / "run" / "adapter", tmp_path / "merged", base=str(config.model.path))
    (model,) = written
    assert (tmp_path / "merged").is_dir()
    base = merge.load(config.model.path, task="classify", labels=["blue", "green", "red"])
    adapter = merge.load_adapted(base, tmp_path / "run" / "adapter")
    np.testing.assert_array_equal(model.params["classifier"]["kernel"], adapter.params["classifier"]["kernel"])
    assert model.hf_config["id2label"] == {"0": "blue", "1": "green", "2": "red"}
    assert "lora_a" not in model.params["layers"]["mlp"]["up"]
