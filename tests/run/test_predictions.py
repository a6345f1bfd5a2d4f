import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxlean.config import SourceSection, build
from jaxlean.errors import UserError
from jaxlean.run.evaluate import evaluate
from jaxlean.run.finetune import finetune
from jaxlean.run.predictions import predict

pytestmark = pytest.mark.usefixtures("small_machine", "stand_in")


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """Colours are marked, and of two words in a row that are, both."""
    rows = [
        {"tokens": [colour, "old", thing, str(n)], "ner_tags": ["B-COL", "I-COL", "O", "O"]}
        for colour in ("red", "green", "blue")
        for thing in ("house", "train")
        for n in range(2)
    ]
    file = tmp_path / "words.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


OVERRIDES = ("train.per_device_train_batch_size=4", "train.max_steps=30", "train.learning_rate=0.02",
             "eval.per_device_eval_batch_size=4")  # fmt: skip


def test_a_run_is_evaluated_and_used_from_its_own_config(
    cli: Callable[..., Any], tiny_yaml: Path, words: Path, tmp_path: Path
) -> None:
    code, out, err = cli("finetune", tiny_yaml, "task=tag", f"data.train={words}", f"data.eval={words}", *OVERRIDES)
    assert code == 0, err
    assert "labels: 3 in 'ner_tags': B-COL, I-COL, O" in out
    run = tmp_path / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["eval_after"]["f1"] == summary["eval_after"]["accuracy"] == 1.0
    assert summary["eval_before"]["f1"] < 1.0

    code, out, err = cli("evaluate", run / "config.yaml", "--adapter", run / "adapter")
    assert code == 0, err
    found = dict(line.split() for line in out.splitlines() if len(line.split()) == 2)
    assert float(found["f1"]) == 1.0
    assert float(found["loss"]) == pytest.approx(summary["eval_after"]["loss"], abs=1e-4)

    output = tmp_path / "said.jsonl"
    code, out, err = cli("predict", run / "config.yaml", "-i", words, "-o", output, "--adapter", run / "adapter")
    assert (code, out) == (0, f"12 rows: {output}\n"), err
    said = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["prediction"] for row in said] == [row["ner_tags"] for row in said]
    assert len(said) == 12


def lines(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_texts_get_a_label_and_its_probability(tiny_run: Callable[..., Any], tmp_path: Path) -> None:
    rows = [{"text": f"{colour} house {n}", "label": colour} for colour in ("red", "green") for n in range(5)]
    config = tiny_run("task=classify", f"data.train={lines(tmp_path / 'train.jsonl', rows)}", *OVERRIDES)
    finetune(config)
    config = config.model_copy(update={"data": config.data.model_copy(update={"on_long": "drop", "max_length": 20})})
    asked = [{"id": 7, "text": "green house 9"}, {"id": 8, "text": "house " * 40}, {"id": 9, "text": "red house 9"}]
    output = tmp_path / "said.jsonl"
    assert predict(config, lines(tmp_path / "asked.jsonl", asked), output, adapter=tmp_path / "run" / "adapter") == 3
    said = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["id"], row["prediction"]) for row in said] == [(7, "green"), (8, None), (9, "red")]
    assert said[1]["probability"] is None
    assert all(0.5 < row["probability"] <= 1.0 for row in (said[0], said[2]))

    # the adapter knows the labels: no training data are needed to find them, and no others are its own
    adapter = tmp_path / "run" / "adapter"
    for labels in (["green", "red"], None):
        data = config.data.model_copy(update={"train": [SourceSection(path="gone.csv")], "labels": labels})
        known = config.model_copy(update={"data": data})
        assert predict(known, tmp_path / "asked.jsonl", output, adapter=adapter) == 3
        assert [json.loads(line) for line in output.read_text().splitlines()] == said
    for labels in (["cold", "warm"], ["red", "green"]):
        data = config.data.model_copy(update={"labels": labels, "eval": [SourceSection(path="train.jsonl")]})
        other = config.model_copy(update={"data": data})
        with pytest.raises(UserError, match="the adapter was trained for other labels"):
            predict(other, tmp_path / "asked.jsonl", tmp_path / "guessed.jsonl", adapter=adapter)
        with pytest.raises(UserError, match="the adapter was trained for other labels"):
            evaluate(other, adapter=adapter)

    with pytest.raises(UserError) as error:  # the base's head is drawn: it knows nothing
        predict(config, tmp_path / "asked.jsonl", tmp_path / "guessed.jsonl")
    for words in ("has no head for task: classify", "no classifier.", "--adapter"):
        assert words in str(error.value)
    assert not (tmp_path / "guessed.jsonl").exists()


def test_pairs_learn_and_texts_become_vectors(tiny_run: Callable[..., Any], tmp_path: Path) -> None:
    words = ["house", "train", "order", "street", "price", "water", "card", "money"]
    rows = [{"anchor": word, "positive": f"where is my {word}?"} for word in words]
    file = lines(tmp_path / "pairs.jsonl", rows)
    config = tiny_run("task=embed", f"data.train={file}", f"data.eval={file}", *OVERRIDES, "train.max_steps=40")
    summary = finetune(config)
    before, after = summary["eval_before"], summary["eval_after"]
    assert after["examples"] == after["tokens"] == 8
    assert after["loss"] < before["loss"] / 2
    assert after["accuracy"] > before["accuracy"]
    assert after["mrr"] > before["mrr"]
    settings = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert (settings["task_type"], settings["modules_to_save"]) == ("FEATURE_EXTRACTION", None)

    adapter = tmp_path / "run" / "adapter"
    for column in ("anchor", "positive"):
        own = lines(tmp_path / f"{column}.jsonl", [{column: row[column]} for row in rows])
        assert predict(config, own, tmp_path / f"{column}.npy", adapter=adapter) == 8
    anchors, positives = (np.load(tmp_path / f"{column}.npy") for column in ("anchor", "positive"))
    assert (anchors.shape, anchors.dtype) == ((8, 32), np.float32)
    similar = (anchors / np.linalg.norm(anchors, axis=1)[:, None]) @ (
        positives / np.linalg.norm(positives, axis=1)[:, None]
    ).T
    assert (similar.argmax(1) == np.arange(8)).mean() == after["accuracy"]


@pytest.mark.parametrize(
    ("task", "columns", "output", "said"),
    [
        ("generate", "text", "o.jsonl", "jaxlean generate"),
        ("classify", "text", "o.csv", "are a .jsonl file"),
        ("embed", "text", "o.jsonl", "are a .npy file"),
        ("embed", "text sentence", "o.npy", "which column is to be embedded"),
        ("embed", "body", "o.npy", "which column is to be embedded"),
        ("classify", "text", "nowhere/o.jsonl", "a folder that is not there"),
        ("classify", "text", "o.jsonl", "it is not clear which column holds the label"),
        ("classify", "text", "asked.jsonl", "would replace the rows"),
    ],
)
def test_what_cannot_be_predicted(task: str, columns: str, output: str, said: str, tmp_path: Path) -> None:
    file = lines(tmp_path / "asked.jsonl", [dict.fromkeys(columns.split(), "a house")])
    with pytest.raises(UserError) as error:
        predict(build({"task": task}), file, tmp_path / output)
    assert said in str(error.value)


def test_a_file_of_the_folder_that_is_read_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    file = Path(lines(tmp_path / "rows" / "a.jsonl", [{"text": "a house"}]))
    with pytest.raises(UserError, match="would replace the rows"):
        predict(build({"task": "classify"}), tmp_path / "rows", file)
