"""Few-shot baselines: loss as numpy computes it over the same prompt, labels by the nearest mean, once a run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxlean.config import RunConfig, build
from jaxlean.errors import ConfigError, DataError, UserError
from jaxlean.hub.load import load
from jaxlean.run.evaluate import evaluate
from jaxlean.run.few_shot import evaluate_few_shot, nearest_label
from jaxlean.run.finetune import finetune

pytestmark = pytest.mark.usefixtures("small_machine")

TOKENIZER = Path(__file__).parents[2] / "configs" / "quickstart" / "base"


def lines(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture
def labelled(encoder: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """Texts about one of three things; `labelled(K)` is the config of K examples a label."""
    train = [{"text": f"{thing} {thing} {n}", "label": thing} for thing in ("order", "street", "price") for n in "abcd"]
    held = [{"text": f"{thing} {n} {thing}", "label": thing} for thing in ("order", "street", "price") for n in "xy"]
    files = {"train": lines(tmp_path / "train.jsonl", train), "eval": lines(tmp_path / "held.jsonl", held)}

    def config(shots: int, **data: Any) -> RunConfig:
        return build(
            {
                "task": "classify", "model": {"path": str(encoder)}, "data": files | {"max_length": 32} | data,
                "eval": {"shots": shots, "per_device_eval_batch_size": 2},
            }
        )  # fmt: skip

    return config


def by_hand(folder: Path, row: dict[str, str], shots: list[dict[str, str]]) -> tuple[float, int]:
    """Summed cross entropy of a completion and its end behind the examples, in float64, and its tokens."""
    model = load(folder, "float32")
    turns = [f"<|im_start|>user\n{shot['prompt']}<|im_end|>\n<|im_start|>assistant\n{{}}" for shot in [*shots, row]]
    head = "".join(
        turn.format(f"{shot['completion']}<|im_end|>\n") for turn, shot in zip(turns, shots, strict=False)
    ) + turns[-1].format("")
    prompt, wanted = model.tokenizer(head)["input_ids"], model.tokenizer(row["completion"] + "<|im_end|>")["input_ids"]
    ids = np.zeros((1, 256), np.int32)
    ids[0, : len(prompt) + len(wanted)] = prompt + wanted
    logits = np.asarray(model(ids)[0], np.float64)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return -sum(logits[len(prompt) + i - 1, token] for i, token in enumerate(wanted)), len(wanted)


def test_the_loss_is_that_of_the_completion_behind_its_examples(tiny_run, tiny_base, tiny_rows, tmp_path, capsys):
    rows = [json.loads(line) for line in tiny_rows.read_text().splitlines()]
    train, held = rows[:2], rows[5:8]
    files = [
        f"data.train={lines(tmp_path / 'train.jsonl', train)}",
        f"data.eval={lines(tmp_path / 'held.jsonl', held)}",
    ]
    found = evaluate_few_shot(tiny_run(*files, "eval.shots=2", "eval.shots_by=nearest"))
    total = num = 0
    for row in held:
        # both rows are examples of all; the one that shares a word with the row stands last
        shared = [len(set(shot["prompt"].split()) & set(row["prompt"].split())) for shot in train]
        order = np.argsort(-np.array(shared), kind="stable")[::-1]
        loss, tokens = by_hand(tiny_base, row, [train[i] for i in order])
        total, num = total + loss, num + tokens
    assert found["loss"] == pytest.approx(total / num, rel=1e-5)
    assert (found["tokens"], found["examples"], found["shots"]) == (num, 3, 2.0)
    assert "few-shot: 2 examples before each of 3 held-out rows" in capsys.readouterr().out


def test_no_examples_are_the_evaluation(tiny_run, capsys):
    plain, found = evaluate(tiny_run()), evaluate_few_shot(tiny_run("eval.shots=0"))
    assert found == {**plain, "shots": 0.0}
    assert "zero-shot" in capsys.readouterr().out


def test_answers_from_the_command_line(cli, tiny_yaml, tiny_rows, tmp_path):
    rows = [json.loads(line) for line in tiny_rows.read_text().splitlines()]
    files = [
        f"data.train={lines(tmp_path / 'train.jsonl', rows[:9])}",
        f"data.eval={lines(tmp_path / 'h.jsonl', rows[9:12])}",
    ]
    answers = tmp_path / "answers.jsonl"
    code, out, err = cli("evaluate", tiny_yaml, *files, "--shots", 3, "--answers", answers)
    assert code == 0, err
    assert [json.loads(line)["wanted"] for line in answers.read_text().splitlines()] == [
        r["completion"] for r in rows[9:12]
    ]
    assert ["shots", "3.0000"] in [line.split() for line in out.splitlines()]
    assert "exact_match" in out
    code, _, err = cli("evaluate", tiny_yaml, "data.train=null", "--shots", 1)
    assert code == 2
    assert "examples come from training data, and none is named" in err


def test_a_run_measures_it_once_and_shows_it(cli, tiny_yaml, tiny_rows, tmp_path, monkeypatch):
    rows = [json.loads(line) for line in tiny_rows.read_text().splitlines()]
    files = [
        f"data.train={lines(tmp_path / 'train.jsonl', rows[:20])}",
        f"data.eval={lines(tmp_path / 'h.jsonl', rows[20:])}",
    ]
    code, out, err = cli("finetune", tiny_yaml, *files, "eval.shots=2", "train.max_steps=2")
    assert code == 0, err
    assert "2-shot" in out
    run = tmp_path / "run"
    summary = json.loads((run / "summary.json").read_text())
    measured = summary["eval_few_shot"]
    assert measured["shots"] == 2.0
    assert measured["loss"] != summary["eval_before"]["loss"]
    # it is the base that is measured, whatever the adapter becomes
    config = tiny_yaml, [*files, "eval.shots=2"]
    from jaxlean.config import load as read

    assert evaluate_few_shot(read(*config))["loss"] == pytest.approx(measured["loss"], rel=1e-5)
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert metrics[0]["step"] == 0
    assert sum("eval_few_shot_loss" in line for line in metrics) == 1

    def never(*args: Any) -> Any:
        raise AssertionError("measured twice")

    monkeypatch.setattr("jaxlean.run.few_shot.InPrompt.__call__", never)
    again = finetune(read(tiny_yaml, [*files, "eval.shots=2", "train.max_steps=2"]), resume=True)
    assert again["eval_few_shot"] == measured


def test_labels_by_the_nearest_mean(labelled, encoder, capsys):
    found = evaluate_few_shot(labelled(2))
    assert found["accuracy"] == 1.0
    assert (found["shots"], found["examples"]) == (2.0, 6)
    assert "loss" not in found
    assert "few-shot: 2 examples of each of 3 labels, for 6 held-out rows" in capsys.readouterr().out
    # more than there are: all there are
    assert evaluate_few_shot(labelled(9))["shots"] == 4.0
    assert "3 have fewer" in capsys.readouterr().out


def test_labels_by_their_names(labelled, encoder):
    found = evaluate_few_shot(labelled(0))
    model = load(encoder, "float32", task="embed")
    names = ["order", "price", "street"]
    held = [f"{thing} {n} {thing}" for thing in ("order", "street", "price") for n in "xy"]
    vectors, shown = (model.encode(texts).astype(np.float64) for texts in (held, names))
    vectors, shown = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (vectors, shown))
    got = (vectors @ shown.T).argmax(axis=1)
    assert found["accuracy"] == pytest.approx((got == [0, 0, 2, 2, 1, 1]).mean())
    assert found["accuracy"] > 0.6
    with pytest.raises(ConfigError, match="these have none"):
        evaluate_few_shot(labelled(0, labels=["1", "2", "3", "order", "street", "price"]))


def test_the_nearest_label_is_that_of_scikit_learn():
    from sklearn.neighbors import KNeighborsClassifier

    draw = np.random.default_rng(0)
    shown, labels = draw.normal(size=(40, 8)), draw.permutation(np.arange(40) % 5)
    vectors = draw.normal(size=(60, 8))
    got = nearest_label(vectors, shown, labels * 3)
    unit = shown / np.linalg.norm(shown, axis=1, keepdims=True)
    means = np.stack([unit[labels == i].mean(axis=0) for i in range(5)])
    wanted = KNeighborsClassifier(1, metric="cosine").fit(means, np.arange(5)).predict(vectors)
    assert (got == wanted * 3).all()
    assert len(set(got.tolist())) > 2


def test_examples_of_labels_are_not_held_out_rows(labelled, tmp_path):
    same = tmp_path / "held.jsonl"
    with pytest.raises(DataError, match="no training row can stand as an example"):
        config = labelled(1, train=str(same))
        evaluate_few_shot(config)


@pytest.mark.parametrize("form", [str.upper, lambda text: f"  {text}!", lambda text: text.replace(" ", "\u00a0, ")])
def test_a_held_out_text_in_other_letters_is_no_example(labelled, tmp_path, capsys, form):
    config = labelled(9)
    held = json.loads((tmp_path / "held.jsonl").read_text().splitlines()[0])
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(json.dumps(held | {"text": form(held["text"])}) + "\n")
    found = evaluate_few_shot(config)
    assert found["shots"] == 4.0, "as without it"
    assert "; 1 training rows are not used" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["tag", "embed"])
def test_other_tasks_are_refused(task):
    with pytest.raises(UserError, match=r"eval\.shots is for task: generate and classify"):
        build({"task": task, "eval": {"shots": 1}})


def test_settings_that_exclude_each_other():
    with pytest.raises(UserError, match="nearest is for task: generate"):
        build({"task": "classify", "eval": {"shots": 1, "shots_by": "nearest"}})
    with pytest.raises(UserError, match=r"data\.streaming does not have them all"):
        build({"data": {"streaming": True}, "train": {"max_steps": 2}, "eval": {"shots": 1}})


def test_a_model_without_vectors_of_texts(labelled, tiny_base, stand_in):
    config = labelled(1)
    config = config.model_copy(update={"model": config.model.model_copy(update={"path": str(tiny_base)})})
    with pytest.raises(UserError, match="vectors of texts need an encoder of text"):
        evaluate_few_shot(config)
