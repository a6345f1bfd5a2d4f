"""Evaluations and checkpoints: how often, of how many rows, and what decides."""

import json

import pytest

from jaxlean.convert import cadence
from jaxlean.convert.row import UNSET


@pytest.mark.parametrize(
    ("keys", "kind", "settings"),
    [
        ({"eval_strategy": "no"}, "idle", {}),
        ({"eval_strategy": False}, "idle", {}),  # YAML 1.1's no
        ({"eval_strategy": "steps", "eval_steps": 5}, "carried", {}),
        ({"eval_strategy": "steps", "logging_steps": 20}, "carried", {"eval.eval_steps": 20}),
        ({"eval_strategy": "IntervalStrategy.STEPS"}, "carried", {"eval.eval_steps": 500}),
        ({"eval_strategy": "epoch"}, "missing", {}),
        ({"eval_strategy": "epoch", "num_train_epochs": 1}, "idle", {}),
    ],
)
def test_when_it_is_evaluated(source, keys, kind, settings) -> None:
    outcome = cadence.evaluates(lambda source: 500)(keys["eval_strategy"], source(**keys))
    assert (outcome.kind, dict(outcome.settings)) == (kind, settings)


@pytest.mark.parametrize(
    ("value", "rest", "kind", "settings"),
    [
        (50, {"save_strategy": "steps"}, "carried", {"train.save_steps": 50}),
        (50.0, {}, "carried", {"train.save_steps": 50}),
        (50, {"save_strategy": "epoch"}, "idle", {}),
        (0.1, {"max_steps": 200}, "carried", {"train.save_steps": 20}),
        (0.1, {}, "missing", {}),
        (0, {}, "idle", {}),
    ],
)
def test_every_so_many_steps(source, value, rest, kind, settings) -> None:
    outcome = cadence.every("train.save_steps", "save_strategy", default="steps")(value, source(**rest))
    assert (outcome.kind, dict(outcome.settings)) == (kind, settings)


def test_trainer_reads_no_eval_steps_without_a_strategy(source) -> None:
    becomes = cadence.every("eval.eval_steps", "eval_strategy", default="no")
    assert becomes(5, source()).kind == "idle"


@pytest.mark.parametrize(
    ("name", "kind"), [("steps", "carried"), ("epoch", "missing"), ("no", "missing"), ("best", "missing")]
)
def test_when_it_is_saved(source, name, kind) -> None:
    assert cadence.saves(name, source(save_strategy=name)).kind == kind
    assert (cadence.save_default(source(save_strategy=name)) is UNSET) == (name != "steps")


def test_so_often_in_an_epoch(source) -> None:
    becomes = cadence.per_epoch("eval.eval_steps")
    assert becomes(1, source(num_epochs=1)).kind == "idle"
    assert becomes(4, source(num_epochs=1)).kind == "missing"
    assert becomes(0, source()).kind == "idle"


@pytest.mark.parametrize(
    ("value", "kind", "settings"),
    [
        (0.1, "carried", {"data.eval_fraction": 0.1}),
        (0, "idle", {}),
        (5, "carried", {"data.eval_fraction": 0.125}),
        (500, "missing", {"data.eval_fraction": 0.05, "eval.max_examples": 500}),
    ],
)
def test_a_share_or_a_number_of_rows(source, write, value, kind, settings) -> None:
    write("".join(json.dumps({"text": str(n)}) + "\n" for n in range(100)), "rows.jsonl")
    outcome = cadence.held_out(lambda source: [{"path": "rows.jsonl", "limit": 40}])(value, source())
    assert (outcome.kind, dict(outcome.settings)) == (kind, settings)
    unknown = cadence.held_out(lambda source: [{"path": "hub/id"}])(5, source())
    assert unknown.kind == "missing"


def test_what_decides(source) -> None:
    assert cadence.best(True, source()).settings == {"eval.load_best": True}
    assert cadence.best(False, source()).kind == "idle"
    assert cadence.metric("eval_loss", source()).kind == "idle"
    assert cadence.metric("eval_rouge", source()).kind == "missing"
    assert cadence.greater(True, source()).kind == "missing"
    assert cadence.greater(True, source(metric_for_best_model="accuracy")).kind == "idle"
    assert cadence.patience(3, source()).settings == {"eval.stopping.patience": 3}
    assert cadence.patience(0, source()).kind == "idle"


@pytest.mark.parametrize(
    ("value", "kind", "settings"),
    [
        ("none", "carried", {"report.tensorboard": False}),
        ([], "carried", {"report.tensorboard": False}),
        (["wandb", "tensorboard"], "carried", {"report.tensorboard": True, "report.wandb": True}),
        ("mlflow", "missing", {"report.tensorboard": False}),
    ],
)
def test_trackers(source, value, kind, settings) -> None:
    outcome = cadence.reports(value, source())
    assert (outcome.kind, outcome.settings) == (kind, settings)


def test_logs_and_how_many_checkpoints_stay(source) -> None:
    assert cadence.logs(10, source()).settings == {"train.logging_steps": 10}
    assert cadence.logs(0.1, source(max_steps=50)).settings == {"train.logging_steps": 5}
    assert cadence.logs(0.1, source()).kind == "missing"
    assert cadence.keeps_all(3, source()).settings == {"train.save_total_limit": 3}
    assert "the last two" in cadence.keeps_all(None, source()).note
